"""Folders that open_clip opens as local-dir:PATH: a SigLIP image tower of timm or a ResNet, and
open_clip's text tower.

open_clip builds a SigLIP tower by its timm name, which fixes patch, image size and activation;
names of other sizes do not exist. Names: open_clip's timm_model.py, modified_resnet.py and
transformer.py, timm's vision_transformer.py.
"""

from __future__ import annotations

import pathlib

from siglax import config as config_lib
from siglax import models
from siglax.interop import fields
from siglax.interop import files
from siglax.interop import layout
from siglax.interop.layout import CONV
from siglax.interop.layout import LEAD
from siglax.interop.layout import Row
from siglax.interop.layout import linear
from siglax.interop.layout import norm
from siglax.models import resnet
from siglax.models import transformer

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"
# (size, patch): {activation: image sizes} of timm 1.0.31's vit_{size}_patch{patch}_siglip_{image
# size}.
TRUNKS = {
  ("base", 32): {"gelu_tanh": (256,)},
  ("base", 16): {"gelu": (224, 256, 384, 512)},
  ("large", 16): {"gelu": (256, 384), "gelu_tanh": (512,)},
  ("so400m", 14): {"gelu": (224, 378, 384)},
  ("so400m", 16): {"gelu_tanh": (256, 384, 512)},
  ("giantopt", 16): {"gelu_tanh": (256, 384)},
}
SIZES = {"base": "B", "large": "L", "so400m": "So400m", "giantopt": "g-opt"}

_QKV = ("query", "key", "value")
_BLOCK, _TRUNK = "image/encoder/blocks/{i}", "visual.trunk.blocks.{i}"
_TEXT_BLOCK = "text/encoder/blocks/{i}"
_POOL = "visual.trunk.attn_pool"
_IN_PROJ = ("in_proj_weight", "in_proj_bias")


def _fused(ours, parts, theirs, **options) -> tuple[Row, ...]:
  """The rows of projections that are one array there."""
  return tuple(
    row
    for part, name in enumerate(parts)
    for row in linear(f"{ours}/{name}", theirs, part=part, parts=len(parts), **options)
  )


def _text_rows(prefix: str) -> tuple[Row, ...]:
  """All but the head."""
  block = f"{prefix}transformer.resblocks.{{i}}"
  return (
    Row("text/embedding", f"{prefix}token_embedding.weight"),
    Row("text/pos_embedding", f"{prefix}positional_embedding"),
    *norm(f"{_TEXT_BLOCK}/norm1", f"{block}.ln_1."),
    *_fused(f"{_TEXT_BLOCK}/attention", _QKV, f"{block}.attn.", names=_IN_PROJ),
    *linear(f"{_TEXT_BLOCK}/attention/out", f"{block}.attn.out_proj."),
    *norm(f"{_TEXT_BLOCK}/norm2", f"{block}.ln_2."),
    *linear(f"{_TEXT_BLOCK}/mlp/fc1", f"{block}.mlp.c_fc."),
    *linear(f"{_TEXT_BLOCK}/mlp/fc2", f"{block}.mlp.c_proj."),
    *norm("text/norm", f"{prefix}ln_final."),
  )


FORMAT = layout.Format(
  (
    Row("image/stem/embedding/kernel", "visual.trunk.patch_embed.proj.weight", CONV),
    Row("image/stem/embedding/bias", "visual.trunk.patch_embed.proj.bias"),
    Row("image/pos_embedding", "visual.trunk.pos_embed", LEAD),
    *norm(f"{_BLOCK}/norm1", f"{_TRUNK}.norm1."),
    *_fused(f"{_BLOCK}/attention", _QKV, f"{_TRUNK}.attn.qkv."),
    *linear(f"{_BLOCK}/attention/out", f"{_TRUNK}.attn.proj."),
    *norm(f"{_BLOCK}/norm2", f"{_TRUNK}.norm2."),
    *linear(f"{_BLOCK}/mlp/fc1", f"{_TRUNK}.mlp.fc1."),
    *linear(f"{_BLOCK}/mlp/fc2", f"{_TRUNK}.mlp.fc2."),
    *norm("image/norm", "visual.trunk.norm."),
    Row("image/pool/probe", f"{_POOL}.latent"),
    *linear("image/pool/attention/query", f"{_POOL}.q."),
    *_fused("image/pool/attention", ("key", "value"), f"{_POOL}.kv."),
    *linear("image/pool/attention/out", f"{_POOL}.proj."),
    *norm("image/pool/norm", f"{_POOL}.norm."),
    *linear("image/pool/mlp/fc1", f"{_POOL}.mlp.fc1."),
    *linear("image/pool/mlp/fc2", f"{_POOL}.mlp.fc2."),
    *_text_rows("text."),
    *linear("text/head", "text.text_projection."),
    Row("log_scale", "logit_scale"),
    Row("bias", "logit_bias"),
  ),
  {"image": ("visual.",), "text": ("text.",)},
)


def _conv_norm(ours: str, conv: str, bn: str) -> tuple[Row, ...]:
  """The rows of a convolution and its batch norm."""
  return (
    Row(f"{ours}/conv/kernel", f"visual.{conv}.weight", CONV),
    *norm(f"{ours}/norm", f"visual.{bn}."),
    Row(f"{ours}/norm/mean", f"visual.{bn}.running_mean"),
    Row(f"{ours}/norm/var", f"visual.{bn}.running_var"),
  )


def _bottleneck(stage: int, block: int) -> tuple[Row, ...]:
  ours, theirs = f"image/stages/{stage}/{block}", f"layer{stage + 1}.{block}"
  convs = (_conv_norm(f"{ours}/conv{i}", f"{theirs}.conv{i}", f"{theirs}.bn{i}") for i in (1, 2, 3))
  shortcut = _conv_norm(f"{ours}/shortcut", f"{theirs}.downsample.0", f"{theirs}.downsample.1")
  return (*(row for rows in convs for row in rows), *shortcut)


# Where the image tower is a ResNet the text tower has no prefix, and its head without a bias is a
# matrix of its own.
_RESNET_ROWS = (
  *(row for i in (1, 2, 3) for row in _conv_norm(f"image/stem/conv{i}", f"conv{i}", f"bn{i}")),
  *(
    row
    for stage, counts in enumerate(zip(*(layers for _, layers, _ in resnet.SIZES.values())))
    for block in range(max(counts))
    for row in _bottleneck(stage, block)
  ),
  Row("image/pos_embedding", "visual.attnpool.positional_embedding"),
  *(
    row
    for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "c"))
    for row in linear(f"image/pool/{ours}", f"visual.attnpool.{theirs}_proj.")
  ),
  *_text_rows(""),
  Row("log_scale", "logit_scale"),
  Row("bias", "logit_bias"),
)
_RESNET_PREFIXES = {
  "image": ("visual.",),
  "text": (
    "token_embedding.",
    "positional_embedding",
    "transformer.",
    "ln_final.",
    "text_projection",
  ),
}
RESNET_FORMATS = {
  "linear": layout.Format(
    (*_RESNET_ROWS, *linear("text/head", "text_projection.")), _RESNET_PREFIXES
  ),
  "linear_no_bias": layout.Format(
    (*_RESNET_ROWS, Row("text/head/kernel", "text_projection")), _RESNET_PREFIXES
  ),
}
# What open_clip carries of either kind of image tower (fields.py).
_CARRIES = {
  **fields.any_value(
    "model.embed_dim", "image.size", "image.mean", "image.std", "image.resize", "image.fit"
  ),
  **fields.any_value("model.text.vocab_size", "model.text.eos_id", "model.text.norm_eps"),
  **fields.any_value("text.tokenizer", "text.length", "text.lowercase"),
  **fields.sizes("text"),
  "model.text.variant": tuple(transformer.SIZES),
  "text.strip_punctuation": (True,),
  "text.pad": ("eos",),
}
RESNET_POOLS = ("last", "eos", "argmax")
RESNET_CARRIES = {
  **_CARRIES,
  **fields.any_value("model.image.width", "model.text.causal", "model.text.activation"),
  "model.image.variant": tuple(resnet.SIZES),
  "model.text.pool": RESNET_POOLS,
  "model.text.head": ("linear", "linear_no_bias"),
}
# Sizes, patch, activation and image size of a trunk are those of one of timm's names: see
# `trunk_name`.
CARRIES = {
  **_CARRIES,
  **fields.sizes("image"),
  **fields.any_value("model.image.patch", "model.image.activation", "model.image.head"),
  "model.image.variant": tuple(transformer.SIZES),
  "model.image.stem": ("patch",),
  "model.image.patch_bias": (True,),
  "model.image.position": ("learned",),
  "model.image.pre_norm": (False,),
  "model.image.pool": ("map",),
  "model.image.norm_eps": (1e-6,),
  "model.text.pool": ("last",),
  "model.text.causal": (False,),
  "model.text.activation": ("gelu", "gelu_tanh"),
  "model.text.head": ("linear",),
}


def table(tower) -> layout.Format:
  """The names of two towers."""
  return RESNET_FORMATS[tower.config.model.text.head] if tower.model.has_batch_norm else FORMAT


def carries(tower) -> dict:
  """What open_clip has a place for."""
  return RESNET_CARRIES if tower.model.has_batch_norm else CARRIES


def config_json(tower) -> dict:
  """open_clip_config.json of two towers."""
  c, text = tower.config, transformer.Shape.of(tower.model.config.text)
  words = {
    "context_length": c.text.length,
    "vocab_size": c.model.text.vocab_size,
    "hf_tokenizer_name": "local",
    "tokenizer_kwargs": {"clean": "whitespace"},
    "width": text.width,
    "heads": text.heads,
    "layers": text.depth,
    # open_clip truncates width·mlp_ratio; half a unit more keeps it from falling short by rounding.
    "mlp_ratio": (text.mlp_dim + 0.5) / text.width,
    "no_causal_mask": not c.model.text.causal,
    "proj_bias": c.model.text.head == "linear",
    "pool_type": c.model.text.pool,
    "eos_id": c.model.text.eos_id,
    "norm_kwargs": {"eps": text.norm_eps},
  }
  if text.activation == "gelu_tanh":
    words["act_kwargs"] = {"approximate": "tanh"}
  vision = (
    _resnet_json(tower)
    if tower.model.has_batch_norm
    else {
      "timm_model_name": trunk_name(tower),
      "timm_model_pretrained": False,
      "timm_pool": "map",
      "timm_proj": "none",
    }
  )
  model = {
    "embed_dim": tower.model.embed_dim,
    "custom_text": not tower.model.has_batch_norm,
    "quick_gelu": text.activation == "quick_gelu",
    "vision_cfg": {"image_size": c.image.size, **vision},
    "text_cfg": words,
  }
  if "bias" in tower.params:
    model["init_logit_bias"] = -10
  fit = {"squash": "squash", "crop": "shortest"}[c.image.fit]
  preprocess = {
    "mean": list(c.image.mean),
    "std": list(c.image.std),
    "interpolation": c.image.resize,
    "resize_mode": fit,
  }
  return {"model_cfg": model, "preprocess_cfg": preprocess}


def _resnet_json(tower) -> dict:
  shape = resnet.Shape.of(tower.model.config.image)
  return {"layers": list(shape.layers), "width": shape.width, "patch_size": None}


def _trunk(tower) -> tuple[str | None, dict]:
  """timm's name of a trunk of these sizes, and its image sizes by activation; None and {} when
  there is none.
  """
  shape = transformer.Shape.of(tower.model.config.image)
  sizes = (shape.width, shape.depth, shape.heads, shape.mlp_dim)
  name = next((n for n, ours in SIZES.items() if transformer.SIZES[ours] == sizes), None)
  return name, TRUNKS.get((name, tower.config.model.image.patch), {})


def trunk_name(tower) -> str:
  """timm's name of the image tower, of which `trunk_problem` found nothing."""
  return (
    f"vit_{_trunk(tower)[0]}_patch{tower.config.model.image.patch}_siglip_{tower.config.image.size}"
  )


def trunk_problem(tower) -> str | None:
  """Which fields timm has no trunk for, and those it has; None for a trunk of timm, and for a
  ResNet.
  """
  if tower.model.has_batch_norm:
    return None
  image, size = tower.config.model.image, tower.config.image.size
  shape, (name, kinds) = transformer.Shape.of(tower.model.config.image), _trunk(tower)
  if not kinds:
    return (
      f"config.model.image of width {shape.width}, depth {shape.depth}, heads {shape.heads}, "
      f"mlp_dim {shape.mlp_dim} "
      f"and patch {image.patch}; timm has {', '.join(f'{SIZES[n]}/{patch}' for n, patch in TRUNKS)}"
    )
  if size not in kinds.get(shape.activation, ()):
    known = " or ".join(
      f"{activation!r} with config.image.size in {sizes}" for activation, sizes in kinds.items()
    )
    return (
      f"config.model.image.activation={shape.activation!r} with config.image.size={size}; timm's "
      f"vit_{name}_patch{image.patch}_siglip has {known}"
    )
  return None


def open_folder(folder: pathlib.Path):
  """(arrays, format, config, towers, tokenizer) of a folder that `siglax export --format open_clip`
  wrote, or its like.

  Raises ValueError for an image tower that is neither timm's SigLIP nor CLIP's RN50 or RN101, or a
  text tower with other options.
  """
  file = folder / CONFIG
  found = files.read_json(file)
  config = config_lib.default()
  try:
    model, preprocess = (
      _Section(file, name, found[name]) for name in ("model_cfg", "preprocess_cfg")
    )
    vision, text = (
      _Section(file, f"model_cfg.{name}", model[name]) for name in ("vision_cfg", "text_cfg")
    )
    config.model.embed_dim = model.get("embed_dim", int)
    if vision.there("timm_model_name"):
      form = _open_trunk(config, vision, text, file)
    else:
      form = _open_resnet(config, model, vision, text, file)
    _open_text(config, model, text)
    image = config.image
    image.mean = files.channels(file, "preprocess_cfg.mean", preprocess["mean"])
    image.std = files.channels(file, "preprocess_cfg.std", preprocess["std"], positive=True)
    image.resize = preprocess.one_of(
      "interpolation", {name: name for name in ("bicubic", "bilinear")}
    )
    image.fit = preprocess.one_of("resize_mode", {"shortest": "crop", "squash": "squash"})
  except KeyError as e:
    raise ValueError(
      f"{file} does not describe a SigLIP or ResNet of open_clip: KeyError {e}"
    ) from None
  arrays = files.Safetensors(folder, WEIGHTS)
  if "logit_bias" in arrays.shapes:
    config.loss.bias_init = -10.0
  else:
    config.loss.name = "softmax"
  tokenizer = next((folder / n for n in files.TOKENIZERS if (folder / n).is_file()), None)
  if tokenizer:
    config.text.tokenizer = str(tokenizer)
    config.text.lowercase = _lowercase(folder / "tokenizer_config.json")
  return arrays, form, config, models.TOWERS, tokenizer


class _Section:
  """A JSON object of open_clip_config.json, whose values are checked as they are taken; errors name
  the file and the key.
  """

  def __init__(self, file, name, values):
    self._file, self._name = file, name
    self._values = files.checked(file, name, values, {})

  def __getitem__(self, key):
    return self._values[key]

  def there(self, key) -> bool:
    return self._values.get(key) is not None

  def get(self, key, like):
    """Its value, of the type of `like`; `like` itself where it is left out, and KeyError where
    `like` is a type.
    """
    value, like = (
      (self._values[key], like(1))
      if isinstance(like, type)
      else (self._values.get(key, like), like)
    )
    return files.checked(self._file, f"{self._name}.{key}", value, like)

  def section(self, key) -> _Section:
    """The object in it, {} where it is left out."""
    return _Section(self._file, f"{self._name}.{key}", self._values.get(key) or {})

  def one_of(self, key, values: dict):
    """What its value stands for; the first where it is left out."""
    value = self._values.get(key, next(iter(values)))
    if not isinstance(value, str) or value not in values:
      raise ValueError(
        f"{self._file}: {self._name}.{key}={value!r} is none that siglax has; it has "
        f"{', '.join(values)}"
      )
    return values[value]


def _open_text(config, model, text):
  """The fields that the text tower has beside either image tower."""
  tower = config.model.text
  tower.width, tower.depth, tower.heads = (
    text.get(name, int) for name in ("width", "layers", "heads")
  )
  tower.mlp_dim = int(tower.width * text.get("mlp_ratio", 4.0))
  tower.vocab_size, config.text.length = (
    text.get("vocab_size", 49_408),
    text.get("context_length", 77),
  )
  tower.eos_id = text.get("eos_id", 2)
  options = {name: text.section(name) for name in ("norm_kwargs", "act_kwargs")}
  tower.norm_eps = options["norm_kwargs"].get("eps", 1e-5)
  if model.get("quick_gelu", False):
    tower.activation = "quick_gelu"
  else:
    tower.activation = (
      "gelu_tanh" if options["act_kwargs"].get("approximate", "none") == "tanh" else "gelu"
    )


def _open_resnet(config, model, vision, text, file) -> layout.Format:
  """The image tower's fields, and those of the text tower that a SigLIP fixes."""
  layers, pool = str(vision["layers"]), text.get("pool_type", "argmax")
  sizes = {str(list(layers)): size for size, (_, layers, _) in resnet.SIZES.items()}
  heads = vision.get("head_width", 64)
  if (
    layers not in sizes
    or model.get("custom_text", False)
    or heads != 64
    or pool not in RESNET_POOLS
  ):
    raise ValueError(
      f"{file}: siglax reads open_clip's ResNets of layers {' or '.join(sizes)} with heads of 64 "
      "and text without "
      f"custom_text, pooled by {', '.join(RESNET_POOLS)}"
    )
  image, tower = config.model.image, config.model.text
  image.variant, image.width, config.image.size = (
    sizes[layers],
    vision.get("width", int),
    vision.get("image_size", int),
  )
  tower.causal, tower.pool = not text.get("no_causal_mask", False), pool
  tower.head = "linear" if text.get("proj_bias", False) else "linear_no_bias"
  return RESNET_FORMATS[tower.head]


def _open_trunk(config, vision, text, file) -> layout.Format:
  """The image tower's fields, of the name that timm gives it."""
  trunks = {
    f"vit_{name}_patch{patch}_siglip_{size}": (name, patch, size, activation)
    for (name, patch), kinds in TRUNKS.items()
    for activation, sizes in kinds.items()
    for size in sizes
  }
  trunk = vision.get("timm_model_name", str)
  if trunk not in trunks or (text["pool_type"], text["no_causal_mask"]) != ("last", True):
    raise ValueError(
      f"{file}: siglax reads timm's vit_*_siglip_* with text pooled from its last position"
    )
  name, config.model.image.patch, config.image.size, config.model.image.activation = trunks[trunk]
  config.model.image.variant = SIZES[name]
  return FORMAT


def _lowercase(file) -> bool:
  given = files.read_json(file) if file.is_file() else {}
  return files.checked(file, "do_lower_case", given.get("do_lower_case", True), True)
