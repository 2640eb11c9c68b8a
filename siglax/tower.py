"""A trained model in use: pictures and texts to embeddings.

`Embedder` runs the towers on all devices of a mesh; evaluations use it. `Tower` adds preprocessing and names;
`siglax.load` makes one of a run folder.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import logging
import pathlib
import re
from typing import Callable

import jax
import numpy as np

from siglax import checkpoint
from siglax import config as config_lib
from siglax import interop
from siglax import mesh as mesh_lib
from siglax import models
from siglax import optim
from siglax import state as state_lib
from siglax.data import images as images_lib
from siglax.data import text as text_lib
from siglax.interop import layout
from siglax.interop import positions
from siglax.runs import digest

logger = logging.getLogger("siglax")
TOKENIZER = "tokenizer.model"
CONFIG = "config.json"


class Embedder:
  """Both towers over all devices, a fixed number of examples at a time, so that each compiles once.

  Global view: all processes call together; each reads its rows of a batch, and all get every embedding.
  params may be replaced between calls, by those of the next evaluation.
  """

  def __init__(self, model, params, text, mesh, *, batch_size: int, threads: int = 2):
    self.params, self._text, self._mesh = params, text, mesh
    self._batch_size, self._threads, self._width = batch_size, threads, model.embed_dim
    out = mesh_lib.replicated(mesh)
    self._embed_image = jax.jit(model.embed_image, out_shardings=out)
    self._embed_text = jax.jit(model.embed_text, out_shardings=out)

  @property
  def scale(self) -> float:
    return float(jax.device_get(models.scale_and_bias(self.params)[0]))

  @property
  def bias(self) -> float:
    return float(jax.device_get(models.scale_and_bias(self.params)[1]))

  def images(self, get: Callable[[int], np.ndarray], count: int) -> np.ndarray:
    """Unit rows float32 [count, d] of the images get(0) … get(count − 1), each uint8 [S, S, 3]."""
    with concurrent.futures.ThreadPoolExecutor(self._threads) as pool:
      return self._run(self._embed_image, lambda rows: np.stack(list(pool.map(get, rows))), count)

  def texts(self, texts: list[str]) -> np.ndarray:
    """Unit rows float32 [len(texts), d]."""
    return self._run(self._embed_text, lambda rows: self._text([texts[i] for i in rows]), len(texts))

  def _run(self, embed, read, count):
    done, mine = [], mesh_lib.process_indices(self._mesh, self._batch_size)
    for start in range(0, count, self._batch_size):
      # The last batch repeats its last example up to the full size; those rows are cut off again.
      rows = read(np.minimum(start + mine, count - 1).tolist())
      with jax.set_mesh(self._mesh):
        done.append(mesh_lib.to_host(embed(self.params, mesh_lib.to_global(self._mesh, rows))))
    return np.concatenate(done)[:count] if done else np.zeros((0, self._width), np.float32)


class Tower:
  """A trained model with its preprocessing: raw pictures and strings to unit embeddings.

  model, params: see siglax.models. config: the run's resolved config, or one that describes a checkpoint of another
  library; the model is built of it unless given. text: a TextProcessor; None where there is no tokenizer.
  scale = exp(t'), bias: floats.
  """

  def __init__(self, config, params, text, mesh=None, model=None):
    self.config, self.params, self.text = config, params, text
    self.model = model or models.build(config.model, tuple(name for name in models.TOWERS if name in params))
    self.mesh = mesh or mesh_lib.make()
    self._embedders = {}

  @property
  def scale(self) -> float:
    return float(jax.device_get(models.scale_and_bias(self.params)[0]))

  @property
  def bias(self) -> float:
    return float(jax.device_get(models.scale_and_bias(self.params)[1]))

  def _embedder(self, batch_size: int | None, count: int) -> Embedder:
    devices = self.mesh.size
    # One picture is no full batch of it; powers of two, so that few sizes are compiled.
    size = min(batch_size or self.config.eval.batch_size, 1 << max(count - 1, 0).bit_length())
    # Rounded up, so that any batch size runs on any number of devices.
    size = -(-size // devices) * devices
    if size not in self._embedders:
      self._embedders[size] = Embedder(self.model, self.params, self.text, self.mesh, batch_size=size)
    return self._embedders[size]

  def embed_images(self, images, batch_size: int | None = None) -> np.ndarray:
    """Unit rows float32 [N, d] of N pictures: uint8 arrays [H, W, 3], encoded bytes, or paths, of any size.

    Resized as in evaluation, to config.image.size by config.image.resize and .fit. batch_size: pictures at a time.
    Raises ValueError that names the picture which cannot be read.
    """
    _check_list("images", images, (str, bytes, pathlib.Path))
    return self._embedder(batch_size, len(images)).images(lambda i: self.pixels(images[i], f"images[{i}]"), len(images))

  def embed_texts(self, texts: list[str], batch_size: int | None = None) -> np.ndarray:
    """Unit rows float32 [N, d] of N strings, canonicalised and tokenized as in training."""
    if "text" not in self.params:
      raise ValueError("there is no text tower here; load a checkpoint that has one")
    if self.text is None:
      raise ValueError(
          "this checkpoint has no sentencepiece tokenizer (spiece.model or tokenizer.model in its folder); "
          "give tokens to tower.model.embed_text(tower.params, tokens)"
      )
    _check_list("texts", texts)
    texts = list(texts)
    return self._embedder(batch_size, len(texts)).texts(texts)

  def pixels(self, image, name: str = "the image") -> np.ndarray:
    """uint8 [S, S, 3], what the image tower sees of a picture: a uint8 array [H, W, 3], encoded bytes, or a path.

    Resized as in evaluation. Raises ValueError that starts with the path, or else with `name`, when it cannot be read.
    """
    c = self.config.image
    try:
      if isinstance(image, (str, pathlib.Path)):
        name = str(image)
        image = images_lib.read(image, c)
      return images_lib.resize(images_lib.decode(image, c), c.size, c.resize, c.fit)
    except (OSError, ValueError) as e:
      raise ValueError(f"{name}: {getattr(e, 'strerror', None) or e}") from e

  def logits(self, zimg: np.ndarray, ztxt: np.ndarray) -> np.ndarray:
    """scale·zimg·ztxtᵀ + bias, [N, M]; the sigmoid of it is SigLIP's probability that they match."""
    return self.scale * zimg @ ztxt.T + self.bias

  def zero_shot(self, images, classnames, templates=("a photo of a {}.",)) -> np.ndarray:
    """Logits [N, classes] of pictures against class names, each the normalised mean over the templates."""
    _check_list("classnames", classnames)
    _check_list("templates", templates)
    texts = [template.replace("{}", name) for name in classnames for template in templates]
    ztxt = self.embed_texts(texts).reshape(len(classnames), len(templates), -1).mean(axis=1)
    return self.logits(self.embed_images(images), ztxt / np.linalg.norm(ztxt, axis=1, keepdims=True))


def _check_list(name: str, given, single=(str,)):
  """ValueError for one text or picture in place of a list of them, which Python would take letter by letter."""
  if isinstance(given, single):
    raise ValueError(f"{name} is one {type(given).__name__}; give a list: [{given!r:.60}]")


def load(path) -> Tower:
  """The towers at a path: a run folder (its newest good checkpoint), a Hugging Face folder or a big_vision .npz.

  ":img" or ":txt" behind the path takes one of its towers. Raises ValueError in one line for what is missing, damaged
  or of an architecture that siglax does not have.
  """
  mesh = mesh_lib.make()
  if (foreign := interop.find(path)) is not None:
    with foreign.naming():
      text = text_processor(foreign.config) if foreign.tokenizer else None
      config_lib.check_vocabulary(foreign.config, text)
    model = foreign.model()
    return Tower(foreign.config, foreign.read(model, mesh), text, mesh, model)
  folder, towers = interop.split(path)
  config = read_config(folder)
  text = text_processor(config, folder) if "text" in towers else None
  params = read_params(folder, models.build(config.model, towers), mesh)
  for name in models.TOWERS:
    config.model[name].lora_rank = 0
  return Tower(config, models.merge_lora(params), text, mesh)


def read_config(folder):
  """The resolved config of a run folder. ValueError when there is none."""
  file = pathlib.Path(folder) / CONFIG
  if not file.is_file():
    raise ValueError(f"{folder} is no run folder: it has no {CONFIG}; give the --workdir of siglax train")
  return config_lib.read(file)


def text_processor(config, folder=None) -> text_lib.TextProcessor:
  """The run's text preprocessing; a run folder carries a copy of its tokenizer."""
  copy = pathlib.Path(folder or ".") / TOKENIZER
  tokenizer = copy if folder is not None and copy.is_file() else config.text.tokenizer
  return text_lib.TextProcessor(
      tokenizer,
      length=config.text.length,
      lowercase=config.text.lowercase,
      strip_punctuation=config.text.strip_punctuation,
      pad=config.text.pad,
  )


def initial_params(path, model, mesh, config=None) -> dict:
  """Parameters to start `model` from, of what config.model.init_from names: those of both towers, or of one. LoRA's own
  are not among them: those that a run has are merged into the rest.

  config: of the run that starts; how its preprocessing differs from theirs is a line in the log.
  Raises ValueError in one line when they do not fit the model.
  """
  model = models.without_lora(model)
  if (foreign := interop.find(path)) is not None:
    params = foreign.read_into(model, mesh)
    if config is not None:
      _say_changes(path, foreign.config, config, foreign.towers, foreign.tokenizer and text_processor(foreign.config))
    return params
  folder, towers = interop.split(path)
  config_there = read_config(folder)
  there = models.build(config_there.model)
  interop.check_same(there, model, towers, path)
  if config is not None:
    _say_changes(path, config_there, config, towers, "text" in towers and text_processor(config_there, folder))
  wanted = mesh_lib.abstract(mesh, jax.eval_shape(model.init, jax.random.key(0)))
  read = models.stack_blocks(models.merge_lora(read_params(folder, there, mesh, towers)), model.config)
  params = {name: value for name, value in read.items() if name in wanted}
  for name in (read.keys() ^ wanted.keys()) - set(models.TOWERS) if towers == models.TOWERS else ():
    logger.warning("%s: %s", path, f"{name} is left out, this loss has none" if name in read else f"it has no {name}, which starts afresh")
  if "image" in params and (need := wanted["image"].get("pos_embedding")) is not None:
    old = np.asarray(jax.device_get(params["image"]["pos_embedding"]))
    resized = positions.resize(old, need.shape[0], model.extra_positions)
    params["image"]["pos_embedding"] = jax.device_put(resized, need.sharding)
  return params


def _say_changes(path, there, here, towers, text):
  """Logs in one line where the preprocessing of pictures and texts differs. text: the TextProcessor there, if known."""
  known = [name for name in towers if name == "image" or text]
  changes = interop.changes(there, here, known)
  if text and text.model != text_processor(here).model:
    changes.append(f"config.text.tokenizer is another one there ({text.tokenizer}) than {here.text.tokenizer!r} here")
  if changes:
    logger.warning("config.model.init_from=%s was trained with other inputs: %s", path, "; ".join(changes))


def read_params(folder, model, mesh, towers: tuple[str, ...] = models.TOWERS) -> dict:
  """Parameters of the newest good checkpoint of a run folder, sharded over the mesh: their average, if the run kept one.

  ValueError when there is no good checkpoint. towers: one tower alone comes without scale and bias.
  """
  missing = f"{folder} has no checkpoint; let siglax train save one"
  if not (pathlib.Path(folder) / checkpoint.FOLDER).is_dir():
    raise ValueError(missing)
  config, shapes = read_config(folder), jax.eval_shape(model.init, jax.random.key(0))
  wanted = {"params": shapes}
  if config.train.ema is not None:  # of the frozen parameters there is none; the patterns are those of both towers
    frozen = optim.frozen_mask(config, jax.eval_shape(models.build(config.model).init, jax.random.key(0)))
    wanted["ema"], wanted["params"] = state_lib.split(shapes, {name: frozen[name] for name in shapes})
  if towers != models.TOWERS:
    wanted = {field: {name: tree[name] for name in towers} for field, tree in wanted.items()}
  abstract = mesh_lib.abstract(mesh, wanted)
  checkpoints = checkpoint.Checkpoints(folder)
  try:
    restored = checkpoints.restore(abstract)
  finally:
    checkpoints.close()
  if restored is None:
    raise ValueError(missing)
  read = restored[0]
  return state_lib.merge(read["ema"], read["params"]) if "ema" in read else read["params"]


def image_digest(model, params, mesh) -> str:
  """Names an image tower: its parameters, to the bit, and what it makes of them; preprocessing is no part of it.

  Global view: all processes call together. The same whether layers are stacked (config.model.image.scan) or not.
  """
  leaves = layout.flatten(params["image"])
  stacked = {name for name in leaves if re.search(r"(^|/)blocks/(?!\d+/)", name)}
  of_layers = jax.vmap(digest.leaf_digest)
  digests = lambda leaves: {k: of_layers(x) if k in stacked else digest.leaf_digest(x) for k, x in leaves.items()}
  sums = {}
  for name, value in jax.device_get(jax.jit(digests, out_shardings=mesh_lib.replicated(mesh))(leaves)).items():
    if name in stacked:
      sums |= {name.replace("blocks/", f"blocks/{i}/"): int(x) for i, x in enumerate(value)}
    else:
      sums[name] = int(value)
  options = {name: model.config.image[name] for name in ("activation", "norm_eps", "pool", "position")}
  return hashlib.sha256(json.dumps([options, sums], sort_keys=True).encode()).hexdigest()[:16]
