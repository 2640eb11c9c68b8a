"""Both towers with their scale and bias as pure functions over one plain dict of parameters.

NNX modules describe the towers; they are split once, so that a step sees a plain nested dict under
jax.jit:
    {"image": {…}, "text": {…}, "log_scale": (), "bias": ()}       bias only where the loss has one
With config.model.relative_bias there is "relative_bias" in the place of "bias".
The running statistics of batch norm (siglax/models/resnet.py) are leaves among them, "…/norm/mean"
and "…/norm/var".
"""

from __future__ import annotations

import functools
import math

from flax import nnx
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from ml_collections import FrozenConfigDict

from siglax.devices import paths
from siglax.models import towers as towers_lib
from siglax.models import transformer

TOWERS = ("image", "text")


class TwoTowers:
  """An image tower and a text tower into one unit sphere. Global view; every method is traceable.

  config: `config.model`, with `text.vocab_size` and `text.eos_id` filled in. towers: those that are
  there; a checkpoint of one tower has one, and then neither scale nor bias.
  """

  def __init__(self, config: ConfigDict, towers: tuple[str, ...] = TOWERS):
    config = FrozenConfigDict(config.copy_and_resolve_references())
    for field in ("vocab_size", "eos_id"):
      if "text" in towers and config.text[field] is None:
        raise ValueError(
          f"config.model.text.{field} is None; siglax.config.resolve takes it from the tokenizer"
        )
    self.config = config
    self.towers = towers
    self.declared = towers_lib.declared(config)  # the Tower of both, whichever are there
    image = self.declared["image"]
    self.has_batch_norm = image.has_batch_norm and "image" in towers
    self.embed_dim = config.embed_dim or image.embed_dim(config.image)
    self.extra_positions = image.rows_before_grid(config.image)
    self._builders = {
      name: functools.partial(self.declared[name].build, config[name], self.embed_dim)
      for name in towers
    }
    self._graphdefs, self._shapes = {}, {}
    for name in towers:
      self._graphdefs[name], self._shapes[name] = self._structure(name)

  def _structure(self, name: str) -> tuple[nnx.GraphDef, dict]:
    """A tower without its numbers, and their shapes. ValueError for running statistics that it does
    not declare, or of other names than the step and the optimizer know.
    """
    module = nnx.eval_shape(lambda: self._builders[name](nnx.Rngs(0)))
    graphdef, state = nnx.split(module)
    names = lambda state: set(paths.flatten(_pure(state)))
    statistics = names(nnx.state(module, nnx.BatchStat))
    named = {path for path in names(state) if is_statistic(f"/{path}")}
    if statistics != named or bool(named) > self.declared[name].has_batch_norm:
      raise ValueError(
        f"the {name} tower {self.declared[name].name!r} has running statistics "
        f"{sorted(statistics)[:2]} and parameters {sorted(named)[:2]}; has_batch_norm must tell of "
        'them, and each must be an nnx.BatchStat at ".../norm/mean" or ".../norm/var"'
      )
    return graphdef, _pure(state)

  @property
  def shapes(self) -> dict:
    """The parameters of `init` as jax.ShapeDtypeStruct."""
    return jax.eval_shape(self._with_numbers, self._shapes)

  def init(self, key: jax.Array) -> dict:
    """Fresh float32 parameters, initialised as SigLIP's, a ResNet's as CLIP's; log_scale is t' =
    log(scale).
    """
    keys = jax.random.split(key)
    return self._with_numbers(
      {
        name: _pure(nnx.state(build(nnx.Rngs(k))))
        for (name, build), k in zip(self._builders.items(), keys)
      }
    )

  def _with_numbers(self, towers: dict) -> dict:
    """Parameters of towers, with scale and bias where both are there."""
    params = dict(towers)
    if len(params) < len(TOWERS):
      return params
    params["log_scale"] = jnp.float32(math.log(self.config.scale_init))
    if self.config.bias_init is not None and self.config.relative_bias:
      params["relative_bias"] = jnp.float32(-self.config.bias_init / self.config.scale_init)
    elif self.config.bias_init is not None:
      params["bias"] = jnp.float32(self.config.bias_init)
    return params

  def _tower(self, params: dict, name: str) -> nnx.Module:
    if name not in self._graphdefs:
      raise ValueError(f"there is no {name} tower here; load a checkpoint that has one")
    return nnx.merge(
      self._graphdefs[name], _rename(params[name], lambda k: int(k) if k.isdigit() else k)
    )

  def normalize(self, images: jax.Array) -> jax.Array:
    """uint8 pixels → (pixels / 255 − mean) / std; floats are taken as already normalised."""
    if images.dtype != jnp.uint8:
      return images
    mean, std = (
      jnp.asarray(x, jnp.float32) for x in (self.config.image.mean, self.config.image.std)
    )
    if (own := self.declared["image"].normalize) is not None:
      return own(images, mean, std)
    return (images.astype(jnp.float32) / 255 - mean) / std

  def embed_image(
    self, params: dict, images: jax.Array, keys: jax.Array | None = None
  ) -> jax.Array:
    """images [N, H, W, 3], or packed ones of NaFlex (siglax/models/naflex.py), uint8 or normalised
    float → unit rows [N, d] in float32. Random keys [N] turn dropout on.
    """
    return transformer.unit(self._tower(params, "image")(self.normalize(images), keys))

  def embed_image_in_training(self, params: dict, images: jax.Array, keys: jax.Array | None = None):
    """As embed_image, with batch norm by the statistics of these images: (unit rows, the running
    statistics after them).

    The statistics are a part of params, {"image": {…}}, without leaves where there is no batch
    norm.
    """
    tower = self._tower(params, "image")
    tower.train()
    z = transformer.unit(tower(self.normalize(images), keys))
    return z, {"image": _pure(nnx.state(tower, nnx.BatchStat))}

  def embed_text(self, params: dict, tokens: jax.Array, keys: jax.Array | None = None) -> jax.Array:
    """tokens int32 [N, L] → unit rows [N, d] in float32. Random keys [N] turn dropout on."""
    return transformer.unit(self._tower(params, "text")(tokens, keys))

  def image_tokens(self, params: dict, images: jax.Array) -> jax.Array:
    """images [N, H, W, 3] → tokens [N, places, width] of the last layer, before pooling: patches,
    or a ResNet's last map.
    """
    return self._tower(params, "image").tokens(self.normalize(images))

  def patch_embeddings(self, params: dict, images: jax.Array) -> jax.Array:
    """images [N, H, W, 3] → unit rows float32 [N, places, d] in the space of the texts: what the
    image tower would give if its pooling saw one place alone.
    """
    return transformer.unit(self._maps(params, "patch_embeddings")(self.normalize(images)))

  def pooling_attention(self, params: dict, images: jax.Array) -> jax.Array:
    """images [N, H, W, 3] → float32 [N, heads, places]: the weight of each place in pooling."""
    return self._maps(params, "pooling_attention")(self.normalize(images))

  def _maps(self, params: dict, name: str):
    """A method of the image tower that not all have."""
    if (method := getattr(self._tower(params, "image"), name, None)) is None:
      raise ValueError(
        f"the image tower {self.declared['image'].name!r} has no {name}; those of siglax with a "
        "fixed grid of places have (vit, resnet)"
      )
    return method


def plain(model: TwoTowers) -> TwoTowers:
  """The model whose parameters `plain_params` gives: without LoRA, with a bias as all formats have
  it.
  """
  config = ConfigDict(model.config)
  config.relative_bias = False
  for name in model.towers:
    config[name].lora_rank = 0
  return TwoTowers(config, model.towers)


def stack_blocks(params: dict, config) -> dict:
  """The same parameters with the blocks of each tower stacked over depth or apart, as `config`
  (config.model) scans them.
  """
  stacked = {}
  for name, tower in params.items():
    if "encoder" in (tower if isinstance(tower, dict) else ()):
      blocks, scan = tower["encoder"]["blocks"], config[name].scan
      if scan and "0" in blocks:
        blocks = jax.tree.map(
          lambda *layers: jnp.stack(layers), *(blocks[str(i)] for i in range(len(blocks)))
        )
      elif not scan and "0" not in blocks:
        depth = len(jax.tree.leaves(blocks)[0])
        blocks = {str(i): jax.tree.map(lambda x: x[i], blocks) for i in range(depth)}
      tower = tower | {"encoder": tower["encoder"] | {"blocks": blocks}}
    stacked[name] = tower
  return stacked


def is_statistic(path: str) -> bool:
  """Whether a leaf of the parameters is a running statistic of batch norm, which no gradient
  trains.
  """
  return path.endswith(("/norm/mean", "/norm/var"))


def merge_lora(params: dict) -> dict:
  """The parameters of the same towers without LoRA: each kernel plus A·B. Traceable; [depth, …]
  stacks too.
  """
  if not isinstance(params, dict):
    return params
  merged = {name: merge_lora(value) for name, value in params.items() if name != "lora"}
  if "lora" in params:
    merged["kernel"] += params["lora"]["lora_a"] @ params["lora"]["lora_b"]
  return merged


def plain_params(params: dict) -> dict:
  """The parameters of the same towers without LoRA, and with a bias in the place of a relative
  one.
  """
  return with_bias(merge_lora(params), relative=False)


def with_bias(params: dict, relative: bool) -> dict:
  """The parameters with the bias, if there is one, as a relative one or not."""
  here, wanted = ("bias", "relative_bias") if relative else ("relative_bias", "bias")
  if here not in params:
    return params
  scale, bias = scale_and_bias(params)
  rest = {name: value for name, value in params.items() if name != here}
  return rest | {wanted: -bias / scale if relative else bias}


def scale_and_bias(params: dict) -> tuple[jax.Array, jax.Array]:
  """exp(t') and the bias, 0 where the loss has none; of a relative bias r it is −exp(t')·r, so that
  the logits are exp(t')·(zimg·ztxt − r). ValueError for the parameters of one tower alone.
  """
  if "log_scale" not in params:
    raise ValueError("one tower alone has neither a scale nor a bias; load a checkpoint of both")
  scale = jnp.exp(params["log_scale"])
  if "relative_bias" in params:
    return scale, -scale * params["relative_bias"]
  return scale, params.get("bias", jnp.float32(0))


def _pure(state: nnx.State) -> dict:
  return _rename(nnx.to_pure_dict(state), str)


def _rename(tree: dict, rename) -> dict:
  """NNX numbers the entries of a list with ints; paths, files and regexes want strings."""
  return {rename(k): _rename(v, rename) if isinstance(v, dict) else v for k, v in tree.items()}
