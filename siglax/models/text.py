"""The text tower: a transformer over tokens (SigLIP, arXiv 2303.15343; causal with
eos pooling as CLIP's).
"""

from __future__ import annotations

import dataclasses

from flax import nnx
import jax.numpy as jnp

from siglax.devices import mesh as mesh_lib
from siglax.models import linear as linear_lib
from siglax.models import transformer
from siglax.models.tower import Tower


class TextTransformer(nnx.Module):
  """Tokens int32 [n, l] → pooled vectors [n, embed_dim]. Padding is attended to, as in SigLIP."""

  def __init__(self, config, embed_dim: int, rngs: nnx.Rngs):
    shape, dtype = transformer.Shape.of(config), jnp.dtype(config.dtype)
    width = shape.width
    self.config, self.dtype = config, dtype
    normal = nnx.initializers.normal(width**-0.5)
    self.embedding = nnx.Param(normal(rngs.params(), (config.vocab_size, width)))
    self.pos_embedding = nnx.Param(normal(rngs.params(), (config.length, width)))
    self.encoder = transformer.Encoder(shape, config, rngs)
    self.norm = transformer.layer_norm(width, shape.norm_eps, rngs)
    if config.pool == "map":
      self.pool = transformer.MapHead(shape, dtype, rngs)
    self.head = linear_lib.Linear(
      width, embed_dim, use_bias=config.head != "linear_no_bias", dtype=dtype, rngs=rngs
    )

  def encode(self, tokens, keys=None):
    """All positions after the last norm, [n, l, d]."""
    x = mesh_lib.take_rows(self.embedding[...], tokens, self.dtype)
    x = linear_lib.plus(x, self.pos_embedding[...])
    return self.norm(self.encoder(x, keys, causal=self.config.causal)).astype(self.dtype)

  def __call__(self, tokens, keys=None):
    x = self.encode(tokens, keys)
    # argmax finds the first end of sentence; a text without one ends at position 0 of argmax, so
    # use the last.
    is_eos = tokens == self.config.eos_id
    end = jnp.where(is_eos.any(axis=1), is_eos.argmax(axis=1), tokens.shape[1] - 1)
    if self.config.pool == "map":
      x = self.pool(x)
    elif self.config.pool == "last":
      x = x[:, -1]
    elif self.config.pool in ("eos", "argmax"):
      at = end if self.config.pool == "eos" else tokens.argmax(axis=1)
      x = jnp.take_along_axis(x, at[:, None, None], axis=1)[:, 0]
    else:
      real = (jnp.arange(tokens.shape[1]) <= end[:, None])[..., None]
      x = (jnp.sum(x * real, axis=1, dtype=jnp.float32) / jnp.sum(real, axis=1)).astype(x.dtype)
    return self.head(x)


def identity(config, embed_dim: int) -> dict:
  """What two text towers must share for the parameters of one to fit the other. The length is not
  among it: positions are cut or repeated (siglax/interop/positions.py).
  """
  del embed_dim  # its head is always there
  return {
    **dataclasses.asdict(transformer.Shape.of(config)),
    **{name: config[name] for name in ("vocab_size", "pool", "causal")},
    "head": transformer.head(config),
  }


TOWER = Tower(
  name="transformer",
  doc="a transformer over tokens, as SigLIP's, or causal as CLIP's",
  variants=transformer.SIZES,
  build=TextTransformer,
  uses=(*transformer.FIELDS, "causal", "pool"),
  shape=transformer.Shape.of,
  identity=identity,
)
