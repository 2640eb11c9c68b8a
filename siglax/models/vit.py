"""The image tower: a Vision Transformer (Dosovitskiy et al., arXiv 2010.11929) as SigLIP
trains it.
"""

from __future__ import annotations

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from siglax.models import linear as linear_lib
from siglax.models import transformer
from siglax.models.tower import Tower

PATCHES = 2**16  # folded into the keys of examples to choose patches; no block has this number


class PatchStem(nnx.Module):
  """One linear map per patch: images [n, H, W, 3] → [n, H/p, W/p, d]."""

  def __init__(self, config, shape: transformer.Shape, dtype, rngs: nnx.Rngs):
    patch = (config.patch, config.patch)
    self.embedding = linear_lib.Patches(
      3, shape.width, patch, patch, use_bias=config.patch_bias, dtype=dtype, rngs=rngs
    )

  def __call__(self, x):
    return self.embedding(x)


class ConvStem(nnx.Module):
  """3×3 convolutions of stride 2, widths doubling up to d, each with a norm and GELU, then a 1×1
  map.

  As early convolutions of Xiao et al., arXiv 2106.14881, with layer norms over the channels. At
  small sizes and short schedules shapes are learned several times sooner than from one linear patch
  embedding.
  """

  def __init__(self, config, shape: transformer.Shape, dtype, rngs: nnx.Rngs):
    width, strides = shape.width, config.patch.bit_length() - 1
    widths = [3] + [max(width >> (strides - 1 - i), 16) for i in range(strides)]
    self.convs = nnx.List(
      [
        nnx.Conv(
          a, b, (3, 3), (2, 2), padding=((1, 1), (1, 1)), use_bias=False, dtype=dtype, rngs=rngs
        )
        for a, b in zip(widths, widths[1:])
      ]
    )
    self.norms = nnx.List([transformer.layer_norm(w, shape.norm_eps, rngs) for w in widths[1:]])
    self.embedding = linear_lib.Linear(widths[-1], width, dtype=dtype, rngs=rngs)

  def __call__(self, x):
    for conv, norm in zip(self.convs, self.norms):
      x = jax.nn.gelu(norm(conv(x)).astype(x.dtype), approximate=True)
    return self.embedding(x)


def sincos_2d(rows: int, columns: int, width: int, temperature: float = 10_000.0) -> np.ndarray:
  """Fixed position embedding [rows·columns, width]: sin and cos of both coordinates (MoCo v3, arXiv
  2104.02057).

  Raises ValueError when the width is not a multiple of 4.
  """
  if width % 4:
    raise ValueError(
      f'width={width} must be a multiple of 4 for config.model.image.position="sincos"'
    )
  y, x = np.mgrid[:rows, :columns]
  frequency = temperature ** -(np.arange(width // 4) / max(width // 4 - 1, 1))
  angles = [np.outer(axis.ravel(), frequency) for axis in (x, y)]
  return np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=1).astype(np.float32)


def drop_patches(x: jax.Array, share: float, keys: jax.Array) -> jax.Array:
  """Keeps a random (1 − share) of the patches [n, l, d] of each example, in their order, by its key
  [n].

  Source: FLIP, Li et al., arXiv 2212.00794, section 3.
  """
  keep = max(1, round(x.shape[1] * (1 - share)))
  kept = jax.vmap(lambda key: jnp.sort(jax.random.permutation(key, x.shape[1])[:keep]))(keys)
  return jnp.take_along_axis(x, kept[..., None], axis=1)


class VisionTransformer(nnx.Module):
  """Images [n, H, W, 3], normalised → tokens [n, patches, d] and pooled vectors [n, embed_dim]."""

  def __init__(self, config, embed_dim: int, rngs: nnx.Rngs):
    shape, dtype = transformer.Shape.of(config), jnp.dtype(config.dtype)
    width, grid = shape.width, config.image_size // config.patch
    self.config, self.dtype = config, dtype
    stem = {"patch": PatchStem, "conv": ConvStem}[config.stem]
    self.stem = stem(config, shape, dtype, rngs)
    positions = grid * grid + (config.pool == "cls")
    if config.position == "learned":
      initial = nnx.initializers.normal(width**-0.5)(rngs.params(), (positions, width))
      self.pos_embedding = nnx.Param(initial)
    if config.pool == "cls":
      self.cls = nnx.Param(jnp.zeros((width,)))
    if config.pre_norm:
      self.pre_norm = transformer.layer_norm(width, shape.norm_eps, rngs)
    self.encoder = transformer.Encoder(shape, config, rngs)
    self.norm = transformer.layer_norm(width, shape.norm_eps, rngs)
    if config.pool == "map":
      self.pool = transformer.MapHead(shape, dtype, rngs)
    if config.head != "auto" or embed_dim != width:
      use_bias = config.head != "linear_no_bias"
      self.head = linear_lib.Linear(width, embed_dim, use_bias=use_bias, dtype=dtype, rngs=rngs)

  def _positions(self, rows, columns, width):
    if self.config.position == "learned":
      return self.pos_embedding[...]
    fixed = sincos_2d(rows, columns, width)
    return (
      np.concatenate([np.zeros((1, width), np.float32), fixed])
      if self.config.pool == "cls"
      else fixed
    )

  def encode(self, images, keys=None):
    """All positions after the last norm, [n, positions, d]; the class token, where there is one,
    comes first.

    Random keys [n], given in training, turn dropout and config.patch_drop on.
    """
    x = self.encoder(self._embed(images, keys), keys)
    return self.norm(x).astype(self.dtype)

  def _embed(self, images, keys=None):
    """All positions before the first block, [n, positions, d]."""
    x = self.stem(images.astype(self.dtype))
    n, rows, columns, width = x.shape
    positions = jnp.asarray(self._positions(rows, columns, width))
    cls_token = int(self.config.pool == "cls")
    x = linear_lib.plus(x.reshape(n, rows * columns, width), positions[cls_token:])
    if keys is not None and self.config.patch_drop:
      x = drop_patches(x, self.config.patch_drop, transformer.fold_in(keys, PATCHES))
    if cls_token:
      cls = linear_lib.plus(jnp.zeros((n, 1, width), x.dtype), self.cls[...] + positions[:1])
      x = jnp.concatenate([cls, x], axis=1)
    if self.config.pre_norm:
      x = self.pre_norm(x).astype(x.dtype)
    return x

  def tokens(self, images):
    """Patch tokens [n, patches, d] of the last layer, before pooling."""
    x = self.encode(images)
    return x[:, 1:] if self.config.pool == "cls" else x

  def patch_embeddings(self, images):
    """[n, patches, embed_dim]: what the tower would give if pooling saw one patch alone.

    With pool="mean" the embedding of a picture is their mean, before it is normalised. With "cls" a
    patch token takes the place of the class token.
    """
    x = self.tokens(images)
    if self.config.pool == "map":
      x = self.pool(x.reshape(-1, 1, x.shape[-1])).reshape(x.shape)
    return self.head(x) if hasattr(self, "head") else x

  def pooling_attention(self, images):
    """Float32 [n, heads, patches]: what pooling takes of each patch. With pool="map" the attention
    of the probe, sums of 1; with "cls" that of the class token in the last block, whose sums lack
    what it takes of itself; with "mean" 1/patches, of one head.
    """
    if self.config.pool == "map":
      return self.pool.weights(self.encode(images))
    if self.config.pool == "cls":
      last = self.encoder.last
      x = self.encoder(self._embed(images), first=self.encoder.depth - 1)
      x = last.norm1(x).astype(x.dtype)
      return last.attention.weights(x[:, :1], x)[:, :, 0, 1:]
    n, patches, _ = jax.eval_shape(self.tokens, images).shape
    return jnp.full((n, 1, patches), 1 / patches, jnp.float32)

  def __call__(self, images, keys=None):
    x = self.encode(images, keys)
    if self.config.pool == "map":
      x = self.pool(x)
    elif self.config.pool == "cls":
      x = x[:, 0]
    else:
      x = x.mean(axis=1, dtype=jnp.float32).astype(x.dtype)
    return self.head(x) if hasattr(self, "head") else x


def check(config):
  """ValueError for pictures that the patches do not divide, and for what a stem does not have."""
  if config.image_size % config.patch:
    raise ValueError(
      f"config.image.size={config.image_size} is not divisible by "
      f"config.model.image.patch={config.patch}"
    )
  if config.stem == "conv" and not config.patch_bias:
    raise ValueError(
      'config.model.image.patch_bias=False has no place in config.model.image.stem="conv"; leave '
      "it True"
    )
  if config.stem == "conv" and config.patch & (config.patch - 1):
    raise ValueError(
      f"config.model.image.patch={config.patch} must be a power of two for "
      'config.model.image.stem="conv"'
    )


def identity(config, embed_dim: int) -> dict:
  """The variant stands for its sizes, which another one may have too."""
  shape = transformer.Shape.of(config)
  linear = config.head != "auto" or embed_dim != shape.width
  return {
    "variant": "a transformer's",
    **dataclasses.asdict(shape),
    **{name: config[name] for name in ("patch", "stem", "position", "pool", "pre_norm")},
    "patch_bias": config.patch_bias,
    "head": transformer.head(config) if linear else "auto",
  }


TOWER = Tower(
  name="vit",
  doc="a Vision Transformer (arXiv 2010.11929) as SigLIP trains it, or as CLIP does",
  variants=transformer.SIZES,
  build=VisionTransformer,
  embed_dim=lambda config: transformer.Shape.of(config).width,
  uses=(
    *transformer.FIELDS,
    *("patch", "stem", "position", "pool", "patch_bias", "pre_norm", "patch_drop"),
  ),
  check=check,
  shape=transformer.Shape.of,
  identity=identity,
  rows_before_grid=lambda config: int(config.pool == "cls"),
  stride=lambda config: config.patch,
)
