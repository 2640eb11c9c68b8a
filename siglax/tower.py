"""A trained model in use: pictures and texts to embeddings.

`Embedder` runs the towers on all devices of a mesh; evaluations use it. `Tower` adds preprocessing and names;
`siglax.load` makes one of a run folder.
"""

from __future__ import annotations

import concurrent.futures
import logging
import pathlib
from typing import Callable

import jax
import numpy as np

from siglax import checkpoint
from siglax import config as config_lib
from siglax import interop
from siglax import mesh as mesh_lib
from siglax import models
from siglax.data import images as images_lib
from siglax.data import text as text_lib
from siglax.interop import positions

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
    self._batch_size, self._threads = batch_size, threads
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
    return np.concatenate(done)[:count] if done else np.zeros((0, 0), np.float32)


class Tower:
  """A trained model with its preprocessing: raw pictures and strings to unit embeddings.

  model, params: see siglax.models. config: the run's resolved config, or one that describes a checkpoint of another
  library; the model is built of it unless given. text: a TextProcessor; None where there is no tokenizer.
  scale = exp(t'), bias: floats.
  """

  def __init__(self, config, params, text, mesh=None, model=None):
    self.config, self.params, self.text = config, params, text
    self.model = model or models.build(config.model, tuple(name for name in models.TOWERS if name in params))
    self._mesh = mesh or mesh_lib.make()
    self._embedders = {}

  @property
  def scale(self) -> float:
    return self._embedder(None).scale

  @property
  def bias(self) -> float:
    return self._embedder(None).bias

  def _embedder(self, batch_size: int | None) -> Embedder:
    devices = self._mesh.size
    # Rounded up, so that any batch size runs on any number of devices.
    size = -(-(batch_size or self.config.eval.batch_size) // devices) * devices
    if size not in self._embedders:
      self._embedders[size] = Embedder(self.model, self.params, self.text, self._mesh, batch_size=size)
    return self._embedders[size]

  def embed_images(self, images, batch_size: int | None = None) -> np.ndarray:
    """Unit rows float32 [N, d] of N pictures: uint8 arrays [H, W, 3], encoded bytes, or paths, of any size.

    Resized as in evaluation, to config.image.size by config.image.resize and .fit. batch_size: pictures at a time.
    Raises ValueError that names the picture which cannot be read.
    """
    return self._embedder(batch_size).images(lambda i: self._pixels(i, images[i]), len(images))

  def embed_texts(self, texts: list[str], batch_size: int | None = None) -> np.ndarray:
    """Unit rows float32 [N, d] of N strings, canonicalised and tokenized as in training."""
    if self.text is None:
      raise ValueError(
          "this checkpoint has no sentencepiece tokenizer (spiece.model or tokenizer.model in its folder); "
          "give tokens to tower.model.embed_text(tower.params, tokens)"
      )
    return self._embedder(batch_size).texts(list(texts))

  def _pixels(self, i, image) -> np.ndarray:
    try:
      if isinstance(image, (str, pathlib.Path)):
        image = pathlib.Path(image).read_bytes()
      c = self.config.image
      return images_lib.resize(images_lib.decode(image), c.size, c.resize, c.fit)
    except (OSError, ValueError) as e:
      raise ValueError(f"images[{i}]: {e}") from e

  def logits(self, zimg: np.ndarray, ztxt: np.ndarray) -> np.ndarray:
    """scale·zimg·ztxtᵀ + bias, [N, M]; the sigmoid of it is SigLIP's probability that they match."""
    return self.scale * zimg @ ztxt.T + self.bias

  def zero_shot(self, images, classnames, templates=("a photo of a {}.",)) -> np.ndarray:
    """Logits [N, classes] of pictures against class names, each the normalised mean over the templates."""
    texts = [template.format(name) for name in classnames for template in templates]
    ztxt = self.embed_texts(texts).reshape(len(classnames), len(templates), -1).mean(axis=1)
    return self.logits(self.embed_images(images), ztxt / np.linalg.norm(ztxt, axis=1, keepdims=True))


def load(path) -> Tower:
  """The towers at a path: a run folder (its newest good checkpoint), a Hugging Face folder or a big_vision .npz.

  ":img" or ":txt" behind the path takes one of its towers. Raises ValueError in one line for what is missing, damaged
  or of an architecture that siglax does not have.
  """
  mesh = mesh_lib.make()
  if (foreign := interop.find(path)) is not None:
    text = text_processor(foreign.config) if foreign.tokenizer else None
    config_lib.check_vocabulary(foreign.config, text)
    model = foreign.model()
    return Tower(foreign.config, foreign.read(model, mesh), text, mesh, model)
  folder, towers = interop.split(path)
  config = read_config(folder)
  text = text_processor(config, folder) if "text" in towers else None
  return Tower(config, read_params(folder, models.build(config.model, towers), mesh), text, mesh)


def read_config(folder):
  """The resolved config of a run folder. ValueError when there is none."""
  file = pathlib.Path(folder) / CONFIG
  if not file.is_file():
    raise ValueError(f"{folder} is no run folder: it has no {CONFIG}; give the --workdir of siglax train")
  return config_lib.from_json(file.read_text())


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


def initial_params(path, model, mesh) -> dict:
  """Parameters to start `model` from, of what config.model.init_from names: those of both towers, or of one.

  Raises ValueError in one line when they do not fit the model.
  """
  if (foreign := interop.find(path)) is not None:
    return foreign.read_into(model, mesh)
  folder, towers = interop.split(path)
  there = models.build(read_config(folder).model)
  interop.check_same(there, model, towers, path)
  wanted = mesh_lib.abstract(mesh, jax.eval_shape(model.init, jax.random.key(0)))
  read = read_params(folder, there, mesh, towers)
  params = {name: value for name, value in read.items() if name in wanted}
  for name in (read.keys() ^ wanted.keys()) - set(models.TOWERS) if towers == models.TOWERS else ():
    logger.warning("%s: %s", path, f"{name} is left out, this loss has none" if name in read else f"it has no {name}, which starts afresh")
  if "image" in params and (need := wanted["image"].get("pos_embedding")) is not None:
    old = np.asarray(jax.device_get(params["image"]["pos_embedding"]))
    resized = positions.resize(old, need.shape[0], model.extra_positions)
    params["image"]["pos_embedding"] = jax.device_put(resized, need.sharding)
  return params


def read_params(folder, model, mesh, towers: tuple[str, ...] = models.TOWERS) -> dict:
  """Parameters of the newest good checkpoint of a run folder, sharded over the mesh: their average, if the run kept one.

  ValueError when there is no good checkpoint. towers: one tower alone comes without scale and bias.
  """
  missing = f"{folder} has no checkpoint; let siglax train save one"
  if not (pathlib.Path(folder) / checkpoint.FOLDER).is_dir():
    raise ValueError(missing)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  shapes = shapes if towers == models.TOWERS else {name: shapes[name] for name in towers}
  name = "params" if read_config(folder).train.ema is None else "ema"
  abstract = mesh_lib.abstract(mesh, {name: shapes})
  checkpoints = checkpoint.Checkpoints(folder)
  try:
    restored = checkpoints.restore(abstract)
  finally:
    checkpoints.close()
  if restored is None:
    raise ValueError(missing)
  return restored[0][name]
