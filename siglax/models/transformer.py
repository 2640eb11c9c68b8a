"""Pre-LN transformer shared by the towers (Dosovitskiy et al., arXiv 2010.11929; Zhai et al., arXiv
2303.15343).

Parameters are float32; activations have `dtype`; layer norms and the attention softmax are computed
in float32.
Shapes: n examples, l positions, d width, h heads.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

from flax import nnx
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from siglax.devices import mesh as mesh_lib
from siglax.models import attention as attention_lib
from siglax.models import linear as linear_lib

# width, depth, heads, mlp_dim. So400m is shape-optimised (arXiv 2305.13035); g-opt is SigLIP 2's
# (arXiv 2502.14786).
SIZES = {
  "Ti": (192, 12, 3, 768),
  "S": (384, 12, 6, 1536),
  "B": (768, 12, 12, 3072),
  "L": (1024, 24, 16, 4096),
  "So400m": (1152, 27, 16, 4304),
  "g-opt": (1536, 40, 16, 6144),
}
# Those of a tower's config that any transformer has.
FIELDS = (
  *("width", "depth", "heads", "mlp_dim", "norm_eps", "activation"),
  *("head", "dropout", "lora_rank", "scan", "remat"),
)
# What the backward pass keeps of a block, from the most to the least; the rest is computed again.
# Of width d, attn_mlp keeps 2·d + mlp_dim numbers a position: the input, what attention gives and
# the MLP's first product, which are the dearest to make. dots keeps 6·d + mlp_dim.
REMAT = {
  "none": jax.checkpoint_policies.everything_saveable,
  "dots": jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    lambda primitive, *_, **__: primitive is jax.lax.conv_general_dilated_p,
  ),
  "attn_mlp": jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.save_only_these_names("attention", "mlp"),
    # Their sums for each query too, without which the kernel would run again.
    lambda primitive, *_, **__: primitive.name in attention_lib.PRIMITIVES,
  ),
  "full": jax.checkpoint_policies.nothing_saveable,
}
AUTO = "auto"  # of these, what siglax/training/remat.py takes; outside of training none
# SigLIP's is the tanh approximation; OpenAI's CLIP has x·σ(1.702x), and later CLIPs the exact form.
ACTIVATIONS = {
  "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
  "gelu": functools.partial(jax.nn.gelu, approximate=False),
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


@dataclasses.dataclass(frozen=True)
class Shape:
  """Sizes of one transformer, its activation and the epsilon of its norms."""

  width: int
  depth: int
  heads: int
  mlp_dim: int
  activation: str
  norm_eps: float

  @classmethod
  def of(cls, config, sizes=SIZES) -> Shape:
    """The variant of a tower's config with its overrides; a width alone keeps the
    variant's ratios. sizes: those of each variant.
    """
    width, depth, heads, mlp_dim = sizes[config.variant]
    if config.width:
      mlp_dim = mlp_dim * config.width // width
      heads = max(1, heads * config.width // width)
      width = config.width
    depth, heads = config.depth or depth, config.heads or heads
    shape = cls(width, depth, heads, config.mlp_dim or mlp_dim, config.activation, config.norm_eps)
    if shape.width % shape.heads:
      raise ValueError(
        f"width={shape.width} is not divisible by heads={shape.heads}; change one of them in "
        "config.model"
      )
    return shape


def rematerialised(function, remat: str, **options):
  """The function, of which the backward pass keeps what REMAT says and computes the rest again.
  options: of jax.checkpoint.
  """
  if remat in ("none", AUTO):
    return function
  return jax.checkpoint(function, policy=REMAT[remat], **options)


def head(config) -> str:
  """The kind of a head that is there."""
  return "linear_no_bias" if config.head == "linear_no_bias" else "linear"


def layer_norm(width: int, epsilon: float, rngs: nnx.Rngs) -> nnx.LayerNorm:
  return nnx.LayerNorm(width, epsilon=epsilon, dtype=jnp.float32, rngs=rngs)


def dropout(x: jax.Array, rate: float, keys: jax.Array | None) -> jax.Array:
  """Zeroes a share of the activations and scales the rest up; keys of None keep all.

  keys: [n], one for each example, so that what is dropped does not depend on which examples are
  computed together.
  """
  if keys is None or not rate:
    return x
  keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
  return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def fold_in(keys: jax.Array | None, number: int | jax.Array) -> jax.Array | None:
  """Another key for each example, by a number."""
  return None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, number)


class Mlp(nnx.Module):
  """fc2(activation(fc1(x)))."""

  def __init__(self, shape: Shape, dtype, rngs: nnx.Rngs):
    linear = functools.partial(
      linear_lib.Linear,
      dtype=dtype,
      kernel_init=nnx.initializers.xavier_uniform(),
      bias_init=nnx.initializers.normal(1e-6),
      rngs=rngs,
    )
    self.fc1 = linear(shape.width, shape.mlp_dim)
    self.fc2 = linear(shape.mlp_dim, shape.width)
    self.activation = shape.activation

  def __call__(self, x):
    y = checkpoint_name(self.fc1(x), "mlp")
    return self.fc2(ACTIVATIONS[self.activation](y))


class Attention(nnx.Module):
  """Multi-head attention of queries [n, q, d] over inputs [n, l, d], or over those of them that a
  mask, bool [n, l], names; out_width: of what comes out, d when None. kernel: one of
  attention.KERNELS.

  lora_rank: r > 0 adds x·A·B with A [d, r], B [r, d] to each of its four maps, nothing at the
  start, as B is 0 (LoRA: Hu et al., arXiv 2106.09685, section 4.1, with α = r).
  """

  def __init__(
    self,
    width: int,
    heads: int,
    dtype,
    rngs: nnx.Rngs,
    out_width: int | None = None,
    lora_rank: int = 0,
    kernel: str = "xla",
  ):
    make = (
      functools.partial(linear_lib.LoRALinear, lora_rank=lora_rank, lora_dtype=dtype)
      if lora_rank
      else linear_lib.Linear
    )
    linear = functools.partial(
      make, width, dtype=dtype, kernel_init=nnx.initializers.xavier_uniform(), rngs=rngs
    )
    self.query, self.key, self.value = linear(width), linear(width), linear(width)
    self.out = linear(out_width or width)
    self.heads, self.kernel = heads, kernel

  def __call__(self, queries, inputs, causal: bool = False, mask=None):
    def split(x):
      return x.reshape(*x.shape[:-1], self.heads, -1)

    y = attention_lib.attend(
      split(self.query(queries)),
      split(self.key(inputs)),
      split(self.value(inputs)),
      self.kernel,
      causal,
      mask,
    )
    y = y.reshape(queries.shape[0], queries.shape[1], -1)
    return self.out(checkpoint_name(y, "attention"))

  def weights(self, queries, inputs):
    """What each query [n, q, d] takes of each input [n, l, d]: float32 [n, h, q, l], sums of 1."""
    q, k = (
      f(x).astype(jnp.float32).reshape(*x.shape[:2], self.heads, -1)
      for f, x in ((self.query, queries), (self.key, inputs))
    )
    logits = jnp.einsum("nqhc,nlhc->nhql", q, k) * q.shape[-1] ** -0.5
    return jax.nn.softmax(logits, axis=-1)


class Block(nnx.Module):
  """x + attention(norm(x)), then x + mlp(norm(x))."""

  def __init__(self, shape: Shape, lora_rank: int, kernel: str, dtype, rngs: nnx.Rngs):
    self.norm1 = layer_norm(shape.width, shape.norm_eps, rngs)
    self.attention = Attention(
      shape.width, shape.heads, dtype, rngs, lora_rank=lora_rank, kernel=kernel
    )
    self.norm2 = layer_norm(shape.width, shape.norm_eps, rngs)
    self.mlp = Mlp(shape, dtype, rngs)

  def __call__(self, x, keys, *, causal: bool, rate: float, mask=None):
    x = mesh_lib.constrain_batch(x)
    y = self.norm1(x).astype(x.dtype)
    x = x + dropout(self.attention(y, y, causal, mask), rate, fold_in(keys, 0))
    y = self.norm2(x).astype(x.dtype)
    return x + dropout(self.mlp(y), rate, fold_in(keys, 1))


def stacked(make, depth: int, rngs: nnx.Rngs):
  """`depth` modules as one, their parameters stacked: the same numbers as of make(rngs), called so
  many times.

  A seed then stands for one model, whether its layers are scanned or not.
  """
  key, first = rngs.default.key[...], rngs.default.count[...]

  def make_at(count):
    """The module, and the number of random keys that its stream has given."""
    own = nnx.Rngs(key)
    own.default.count[...] = count
    return make(own), own.default.count[...]

  each = make_at(first)[1] - first
  counts = first + each * jnp.arange(depth, dtype=first.dtype)
  rngs.default.count[...] = first + each * depth
  return nnx.vmap(lambda count: make_at(count)[0])(counts)


class Encoder(nnx.Module):
  """A stack of blocks; with scan, their parameters are stacked over depth and one block is
  compiled.
  """

  def __init__(self, shape: Shape, config, rngs: nnx.Rngs):
    dtype = jnp.dtype(config.dtype)
    self.depth, self.rate, self.scan, self.remat = (
      shape.depth,
      config.dropout,
      config.scan,
      config.remat,
    )
    make = functools.partial(Block, shape, config.lora_rank, config.attention, dtype)
    if config.scan:
      self.blocks: Any = stacked(make, shape.depth, rngs)
    else:
      self.blocks = nnx.List([make(rngs) for _ in range(shape.depth)])

  def __call__(self, x, keys=None, *, causal: bool = False, mask=None, first: int | None = None):
    """first: runs so many blocks alone; None runs all."""
    graphdef, _ = nnx.split(self.blocks if self.scan else self.blocks[0])

    def block(x, layer):
      params, depth = layer
      return nnx.merge(graphdef, params)(
        x, fold_in(keys, depth), causal=causal, rate=self.rate, mask=mask
      ), None

    block = rematerialised(block, self.remat, prevent_cse=not self.scan)
    if self.scan:
      layers = nnx.state(self.blocks), jnp.arange(self.depth)
      if first is not None:
        layers = jax.tree.map(lambda leaf: leaf[:first], layers)
      return jax.lax.scan(block, x, layers)[0]
    for i, layer in enumerate(itertools.islice(self.blocks, first)):
      x, _ = block(x, (nnx.state(layer), i))
    return x

  @property
  def last(self) -> Block:
    """The last block."""
    if not self.scan:
      return self.blocks[-1]
    graphdef, state = nnx.split(self.blocks)
    return nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[-1], state))


class MapHead(nnx.Module):
  """Multi-head attention pooling: one learned probe attends to all positions, or to those that a
  mask names (arXiv 2106.04560, section 3.3).
  """

  def __init__(self, shape: Shape, dtype, rngs: nnx.Rngs):
    self.probe = nnx.Param(nnx.initializers.xavier_uniform()(rngs.params(), (1, 1, shape.width)))
    self.attention = Attention(shape.width, shape.heads, dtype, rngs)
    self.norm = layer_norm(shape.width, shape.norm_eps, rngs)
    self.mlp = Mlp(shape, dtype, rngs)

  def __call__(self, x, mask=None):
    y = self.attention(self._probe(x), x, mask=mask)
    return (y + self.mlp(self.norm(y).astype(y.dtype)))[:, 0]

  def weights(self, x):
    """What the probe takes of each position [n, l, d]: float32 [n, h, l], sums of 1."""
    return self.attention.weights(self._probe(x), x)[:, :, 0]

  def _probe(self, x):
    return jnp.broadcast_to(self.probe[...], (x.shape[0], 1, x.shape[2])).astype(x.dtype)


def unit(x: jax.Array) -> jax.Array:
  """x / ‖x‖ over the last axis, in float32."""
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))
