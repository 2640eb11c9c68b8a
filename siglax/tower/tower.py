"""A trained model with its preprocessing, and where it is loaded from."""

from __future__ import annotations

import math
import pathlib

import jax
import numpy as np

from siglax import config as config_lib
from siglax import interop
from siglax import models
from siglax.data import images as images_lib
from siglax.devices import mesh as mesh_lib
from siglax.evals import zero_shot
from siglax.tower import origin as origin_lib
from siglax.tower.embedder import Embedder
from siglax.tower.embedder import ScaleAndBias
from siglax.tower.embedder import in_turn


class Tower(ScaleAndBias):
  """A trained model with its preprocessing: raw pictures and strings to unit embeddings.

  model, params: see siglax.models. config: the run's resolved config, or one that describes a
  checkpoint of another library; the model is built of it unless given. text: a TextProcessor; None
  where there is no tokenizer. scale = exp(t'), bias: floats.
  """

  def __init__(self, config, params, text, mesh=None, model=None):
    self.config, self.params, self.text = config, params, text
    config_lib.fill_text(config, text)
    self.model = model or models.build(
      config.model, tuple(name for name in models.TOWERS if name in params)
    )
    self.mesh = mesh or mesh_lib.make()
    self._embedders, self._compiled = {}, {}

  def _size(self, batch_size: int | None, count: int) -> int:
    """Pictures or texts at a time, where there are `count`."""
    devices = self.mesh.size
    # One picture is no full batch of it; powers of two, so that few sizes are compiled.
    size = min(batch_size or self.config.eval.batch_size, 1 << max(count - 1, 0).bit_length())
    # Rounded up, so that any batch size runs on any number of devices.
    return -(-size // devices) * devices

  def _embedder(self, batch_size: int | None, count: int) -> Embedder:
    size = self._size(batch_size, count)
    if size not in self._embedders:
      self._embedders[size] = Embedder(
        self.model, self.params, self.text, self.mesh, batch_size=size
      )
    return self._embedders[size]

  def embed_images(self, images, batch_size: int | None = None) -> np.ndarray:
    """Unit rows float32 [N, d] of N pictures: uint8 arrays [H, W, 3], encoded bytes, or paths, of
    any size.

    Resized as in evaluation, to config.image.size by config.image.resize and .fit. batch_size:
    pictures at a time. Raises ValueError that names the picture which cannot be read.
    """
    _check_list("images", images, (str, bytes, pathlib.Path))
    return self._embedder(batch_size, len(images)).images(
      lambda i: self.pixels(images[i], f"images[{i}]"), len(images)
    )

  def embed_texts(self, texts: list[str], batch_size: int | None = None) -> np.ndarray:
    """Unit rows float32 [N, d] of N strings, canonicalised and tokenized as in training."""
    if "text" not in self.params:
      raise ValueError("there is no text tower here; load a checkpoint that has one")
    if self.text is None:
      raise ValueError(
        "this checkpoint has no tokenizer (tokenizer.json, spiece.model or tokenizer.model in its "
        "folder); "
        "give tokens to tower.model.embed_text(tower.params, tokens)"
      )
    _check_list("texts", texts)
    texts = list(texts)
    return self._embedder(batch_size, len(texts)).texts(texts)

  def pixels(self, image, name: str = "the image") -> np.ndarray:
    """uint8 [S, S, 3], what the image tower sees of a picture: a uint8 array [H, W, 3], encoded
    bytes, or a path.

    Resized as in evaluation. Raises ValueError that starts with the path, or else with `name`, when
    it cannot be read.
    """
    c = self.config.image
    try:
      if isinstance(image, (str, pathlib.Path)):
        name = str(image)
        image = images_lib.read(image, c)
      return images_lib.prepare(image, c)
    except (OSError, ValueError) as e:
      raise ValueError(f"{name}: {getattr(e, 'strerror', None) or e}") from e

  def patch_similarity(self, images, texts, batch_size: int | None = None) -> np.ndarray:
    """Cosines float32 [N, M, rows, columns] of each patch of N pictures with M texts: where in a
    picture a text is.

    A patch stands for the embedding that the image tower would give if its pooling saw that patch
    alone. With mean pooling the logits of a picture are, but for the lengths of these embeddings,
    the mean of its map; with other pooling the map is a picture of the tower, no part of the sum.
    Other arguments and errors as of embed_images and embed_texts.
    """
    z = self._of_patches("patch_embeddings", images, batch_size)
    return _as_grid(np.einsum("npd,md->nmp", z, self.embed_texts(texts)))

  def pooling_attention(self, images, batch_size: int | None = None) -> np.ndarray:
    """Float32 [N, heads, rows, columns]: the weight that the image tower's pooling gives each
    patch of N pictures.

    model.image.pool="map": the attention of the probe, sums of 1. "cls": of the class token in the
    last block, whose sums lack what it gives itself. "mean": all alike, one head.
    """
    return _as_grid(self._of_patches("pooling_attention", images, batch_size))

  def _of_patches(self, name: str, images, batch_size: int | None) -> np.ndarray:
    """What a method of the model gives for N pictures, [N, …]."""
    _check_list("images", images, (str, bytes, pathlib.Path))
    side, count, size = self.config.image.size, len(images), self._size(batch_size, len(images))
    one = jax.ShapeDtypeStruct((1, side, side, 3), np.uint8)
    method = getattr(self.model, name)
    found = np.empty((count, *jax.eval_shape(method, self.params, one).shape[1:]), np.float32)
    if name not in self._compiled:
      self._compiled[name] = jax.jit(method, out_shardings=mesh_lib.replicated(self.mesh))
    # The last batch repeats its last picture up to the full size, so that one program serves all.
    numbers = np.minimum(np.arange(-(-count // size) * size), count - 1).reshape(-1, size)
    batches = (
      (rows, np.stack([self.pixels(images[i], f"images[{i}]") for i in rows])) for rows in numbers
    )
    run = lambda pixels: self._compiled[name](self.params, pixels)
    for rows, values in in_turn(run, self.mesh, batches):
      found[rows] = values
    return found

  def logits(self, zimg: np.ndarray, ztxt: np.ndarray) -> np.ndarray:
    """scale·zimg·ztxtᵀ + bias, [N, M]; the sigmoid of it is SigLIP's probability that they
    match.
    """
    return self.scale * zimg @ ztxt.T + self.bias

  def zero_shot(self, images, classnames, templates=("a photo of a {}.",)) -> np.ndarray:
    """Logits [N, classes] of pictures against class names, each the normalised mean over the
    templates.
    """
    _check_list("classnames", classnames)
    _check_list("templates", templates)
    for name, given in (("classnames", classnames), ("templates", templates)):
      if not len(given):
        raise ValueError(f"{name} is empty; give at least one")
    ztxt = zero_shot.classifier(self.embed_texts, classnames, templates)
    return self.logits(self.embed_images(images), ztxt)


def _as_grid(x: np.ndarray) -> np.ndarray:
  """[…, patches] of square pictures as […, rows, columns]."""
  side = math.isqrt(x.shape[-1])
  return x.reshape(*x.shape[:-1], side, side)


def _check_list(name: str, given, single=(str,)):
  """ValueError for one text or picture in place of a list of them, which Python would take letter
  by letter.
  """
  if isinstance(given, single):
    raise ValueError(f"{name} is one {type(given).__name__}; give a list: [{given!r:.60}]")


def load(path) -> Tower:
  """The towers at a path or a URL: a run folder (its newest good checkpoint), a Hugging Face folder
  or a big_vision .npz.

  ":img" or ":txt" behind the path takes one of its towers. Raises ValueError in one line for what
  is missing, damaged or of an architecture that siglax does not have.
  """
  mesh = mesh_lib.make()
  origin = origin_lib.find(interop.local(path))
  config, model = origin.config, origin.model()
  params = origin.read(model, mesh)
  if origin.foreign is not None:
    return Tower(config, params, origin.text, mesh, model)
  for name in models.TOWERS:
    config.model[name].lora_rank = 0
  config.model.relative_bias = False
  return Tower(config, models.plain_params(params), origin.text, mesh)
