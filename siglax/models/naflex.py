"""SigLIP 2's image tower for any aspect ratio: NaFlex (Tschannen et al., arXiv 2502.14786, section
2.4).

A picture keeps its aspect ratio and is cut into as many patches as fit into config.image.size². It
comes packed, uint8 [l, 3p² + 4] (siglax/data/native.py): a row for each patch. The row holds the
patch's pixels, row by row and channels last, and then its row and its column in the picture, two
bytes each, the lower one first. Rows of 0 with ABSENT for both fill it up. A picture as training
makes it, [s, s, 3], is cut here.

The learned positions are a grid, which is resized to the patches of each picture by antialiased
linear interpolation. Attention and the pooling head see no patch that is filled up.
Shapes: n pictures, l patches at most, p pixels a side of a patch, d width, g rows of the grid.
"""

from __future__ import annotations

import dataclasses

from flax import nnx
import jax.numpy as jnp

from siglax.config.parts import Field
from siglax.models import linear as linear_lib
from siglax.models import transformer
from siglax.models.tower import Tower

VARIANTS = {f"naflex-{name}": sizes for name, sizes in transformer.SIZES.items()}
PLACE = 4  # numbers of a row that say where the patch is
ABSENT = 2**16 - 1


class NaFlex(nnx.Module):
  """Pictures, normalised and packed [n, l, 3p² + 4] or square [n, s, s, 3] → tokens [n, l, d] and
  pooled vectors [n, embed_dim].
  """

  def __init__(self, config, embed_dim: int, rngs: nnx.Rngs):
    shape, dtype = sizes_of(config), jnp.dtype(config.dtype)
    self.patch, self.grid, self.dtype = config.patch, config.grid, dtype
    self.embedding = linear_lib.Linear(3 * config.patch**2, shape.width, dtype=dtype, rngs=rngs)
    initial = nnx.initializers.normal(shape.width**-0.5)
    self.pos_embedding = nnx.Param(initial(rngs.params(), (config.grid**2, shape.width)))
    self.encoder = transformer.Encoder(shape, config, rngs)
    self.norm = transformer.layer_norm(shape.width, shape.norm_eps, rngs)
    self.pool = transformer.MapHead(shape, dtype, rngs)
    if embed_dim != shape.width:
      self.head = linear_lib.Linear(shape.width, embed_dim, dtype=dtype, rngs=rngs)

  def _encode(self, images, keys=None):
    """(tokens [n, l, d] after the last norm, which of them are there: bool [n, l])."""
    patches, rows, columns = _unpacked(images, self.patch)
    there = rows != ABSENT
    x = self.embedding(patches.astype(self.dtype))
    grid = self.pos_embedding[...].reshape(self.grid, self.grid, -1)
    across, down = (_interpolated(at, there, self.grid) for at in (columns, rows))
    positions = jnp.einsum("nlg,nlh,ghd->nld", down, across, grid)
    x = x + positions.astype(x.dtype)
    x = self.encoder(x, keys, mask=there)
    return self.norm(x).astype(self.dtype), there

  def tokens(self, images):
    """Tokens [n, l, d] of the last layer, before pooling; of patches that are filled up they mean
    nothing.
    """
    return self._encode(images)[0]

  def __call__(self, images, keys=None):
    x = self.pool(*self._encode(images, keys))
    return self.head(x) if hasattr(self, "head") else x


def sizes_of(config) -> transformer.Shape:
  return transformer.Shape.of(config, VARIANTS)


def _unpacked(images, p: int):
  """(pixels of the patches [n, l, 3p²], their rows and columns [n, l] in int32)."""
  if images.ndim == 3:
    places = images[..., -PLACE:].astype(jnp.int32).reshape(*images.shape[:2], 2, 2)
    places = places[..., 0] + 256 * places[..., 1]
    return images[..., :-PLACE], places[..., 0], places[..., 1]
  n, height, width, _ = images.shape
  rows, columns = height // p, width // p
  patches = images.reshape(n, rows, p, columns, p, 3).transpose(0, 1, 3, 2, 4, 5)
  places = jnp.broadcast_to(jnp.mgrid[:rows, :columns].reshape(2, 1, -1), (2, n, rows * columns))
  return patches.reshape(n, rows * columns, -1), places[0], places[1]


def _interpolated(at, there, g: int):
  """[n, l, g]: how much of each of g learned positions goes into that of a patch; sums are 1.

  at: int32 [n, l], rows or columns. A picture has as many of them as its largest says. With
  s = max(g / count, 1), patch k takes max(0, 1 − |j + ½ − (k + ½)·g / count| / s) of position j:
  torch's interpolate(mode="bilinear", antialias=True).
  """
  at = jnp.where(there, at, 0).astype(jnp.float32)
  ratio = g / (1 + at.max(axis=1, keepdims=True))
  centres = ((at + 0.5) * ratio)[..., None]
  distances = jnp.abs(jnp.arange(g) + 0.5 - centres) / jnp.maximum(ratio, 1)[..., None]
  weights = jnp.maximum(0, 1 - distances)
  return weights / weights.sum(axis=-1, keepdims=True)


def normalize(images, mean, std):
  """uint8, packed or square → (pixels / 255 − mean) / std; places stay what they are."""
  images = images.astype(jnp.float32)
  if images.ndim == 4:
    return (images / 255 - mean) / std
  pixels = images[..., :-PLACE].reshape(*images.shape[:2], -1, 3)
  pixels = ((pixels / 255 - mean) / std).reshape(*images.shape[:2], -1)
  return jnp.concatenate([pixels, images[..., -PLACE:]], axis=-1)


def check(config):
  """ValueError for a size without a whole number of patches."""
  if config.image_size % config.patch:
    raise ValueError(
      f"config.image.size={config.image_size} is not divisible by "
      f"config.model.image.patch={config.patch}"
    )


def identity(config, embed_dim: int) -> dict:
  """The variant stands for its sizes, which another one may have too."""
  shape = dataclasses.asdict(sizes_of(config))
  return {"variant": "a NaFlex transformer's", **shape, "patch": config.patch}


TOWER = Tower(
  name="naflex",
  doc="SigLIP 2's Vision Transformer for any aspect ratio (arXiv 2502.14786)",
  variants=VARIANTS,
  build=NaFlex,
  embed_dim=lambda config: sizes_of(config).width,
  uses=(*(name for name in transformer.FIELDS if name != "head"), "patch"),
  fields={
    "grid": Field(
      16, "Rows, and columns, of a NaFlex tower's learned position embedding.", least=1, most=2**10
    ),
  },
  check=check,
  shape=sizes_of,
  identity=identity,
  stride=lambda config: config.patch,
  normalize=normalize,
)
