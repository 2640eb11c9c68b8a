"""Which kernel computes the attention of a block, softmax(q·kᵀ / √c)·v, and its calls.

"xla" writes the logits [n, h, l, l] to memory and reads them again in the backward pass. The others
are fused: they keep q, k, v, what comes out, and one number for each query and head.
- "cudnn", on NVIDIA GPUs: jax.nn.dot_product_attention(implementation="cudnn").
- "flash", on TPUs: jax.experimental.pallas.ops.tpu.flash_attention.
All round their products' operands to the dtype of q, k, v, and have logits and sums in float32.

Shapes: n examples, l positions, h heads, c width of a head.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from siglax.devices import mesh as mesh_lib

KERNELS = ("auto", "xla", "cudnn", "flash")
NEEDS = {
  "cudnn": "an NVIDIA GPU of compute capability 8.0 or more",
  "flash": "a TPU",
}
# What the fused kernels are in a jaxpr.
PRIMITIVES = ("dot_product_attention_fwd_wrapper", "pallas_call")
TILE = 128  # positions of a tile of both fused kernels
# Positions from which auto takes one. With fewer than a tile, most of it is padding, and the logits
# of a head are no more than its q, k and v. TPU's kernel passes three float32 numbers of each query
# 128 times each through memory, 3 KB in and out, where XLA passes about 20 bytes for each input.
SHORTEST = {"cudnn": TILE, "flash": 4 * TILE}
WIDEST = 128  # head of cuDNN's backward pass on any GPU


def device() -> jax.Device:
  """One of those that this process computes on; they are all alike."""
  return jax.local_devices()[0]


def of_device(device) -> str | None:
  """The fused kernel of a device; None where there is none."""
  if device.platform == "tpu":
    return "flash"
  capability = str(getattr(device, "compute_capability", ""))  # AMD's are such as "gfx942"
  number = capability.replace(".", "", 1)
  return "cudnn" if number.isdecimal() and float(capability) >= 8 else None


def choose(wanted: str, device, dtype, c: int, l: int) -> str:
  """The kernel of q, k, v [n, l, h, c]: "auto" takes the device's where there is one that takes the
  dtype, which is bfloat16, and the width, and where l is at least SHORTEST.

  A fused kernel by name is taken at any l, on its own device alone: a model that was trained on one
  kind of device runs on all.
  """
  fused = of_device(device)
  if fused is None or wanted not in ("auto", fused) or problem(fused, dtype, c):
    return "xla"
  return fused if wanted == fused or l >= SHORTEST[fused] else "xla"


def problem(kernel: str, dtype, c: int) -> str | None:
  """What a fused kernel needs that is not so, as "what it needs; what there is"."""
  if jnp.dtype(dtype) != jnp.bfloat16:
    return f'config.train.dtype="bfloat16"; it is "{dtype}"'
  if kernel == "cudnn" and (c % 8 or c > WIDEST):
    return f"heads of a width that is a multiple of 8 and at most {WIDEST}; it is {c}"
  if kernel == "flash" and c > TILE and c % TILE:
    return f"heads of a width of at most {TILE} or a multiple of it; it is {c}"
  return None


def check(kernel: str, dtype, widths: dict[str, int]):
  """ValueError in one line for a fused kernel that is asked for by name and does not take the dtype
  or a width. widths: of a head, {"image": c, "text": c}.
  """
  for tower, c in widths.items() if kernel in NEEDS else ():
    if found := problem(kernel, dtype, c):
      raise ValueError(
        f'config.train.attention="{kernel}" needs {found} (config.model.{tower}); change it, or '
        'set config.train.attention to "auto"'
      )


def check_device(kernel: str):
  """ValueError in one line for a fused kernel that is asked for by name on another device."""
  here = device()
  if kernel in NEEDS and of_device(here) != kernel:
    kind = getattr(here, "device_kind", here.platform)
    raise ValueError(
      f'config.train.attention="{kernel}" needs {NEEDS[kernel]}; this device is "{kind}"; set '
      'config.train.attention to "auto"'
    )


def attend(q, k, v, wanted: str = "xla", causal: bool = False, mask=None) -> jax.Array:
  """[n, q, h, c] of queries q and inputs k, v [n, l, h, c]. Global view, rows on the batch axes.

  wanted: one of KERNELS; all but "xla" want as many queries as inputs. mask: bool [n, l], the
  inputs that are there, which are the first so many of each example.
  """
  kernel = choose(wanted, device(), q.dtype, q.shape[-1], k.shape[1])
  if kernel == "xla":
    mask = None if mask is None else mask[:, None, None]
    return jax.nn.dot_product_attention(q, k, v, is_causal=causal, mask=mask)
  per_device = functools.partial({"cudnn": _cudnn, "flash": _flash}[kernel], causal)
  return mesh_lib.per_device(per_device)(q, k, v, mask)  # XLA cannot split a Pallas kernel


def _cudnn(causal: bool, q, k, v, mask):
  """An odd l is filled up to an even one, the only kind that jax takes for a gradient. A mask is
  given as lengths: jax would make a bias [n, h, l, l] of it, and its gradient.
  """
  n, l, *_ = q.shape
  if mask is None and l % 2:
    mask = jnp.ones((n, l), bool)
  # A length of 0 would leave a softmax without a sum.
  lengths = None if mask is None else jnp.maximum(jnp.sum(mask, axis=1, dtype=jnp.int32), 1)
  fill = lambda x: jnp.pad(x, ((0, 0), (0, l % 2), (0, 0), (0, 0)))
  y = jax.nn.dot_product_attention(
    *map(fill, (q, k, v)),
    is_causal=causal,
    key_value_seq_lengths=lengths,
    implementation="cudnn",
  )
  return y[:, :l]


def _flash(causal: bool, q, k, v, mask):
  """l is filled up to whole tiles."""
  from jax.experimental.pallas.ops.tpu import flash_attention as flash_lib

  n, l, _, c = q.shape
  filled = -(-l // TILE) * TILE
  size = next(size for size in (512, 384, 256, TILE) if filled % size == 0)
  names = [f.name for f in dataclasses.fields(flash_lib.BlockSizes)]
  # The kernel of dq is given one number of each query block_k_major_dq times.
  sizes = dict.fromkeys(names, size) | {"block_k_major_dq": TILE, "block_k_dq": TILE, "block_b": 1}
  fill = lambda x: jnp.pad(x.transpose(0, 2, 1, 3), ((0, 0), (0, 0), (0, filled - l), (0, 0)))
  ids = None
  if mask is not None or filled > l:
    there = jnp.ones((n, l), bool) if mask is None else mask
    # Queries meet the inputs of their own number.
    there = jnp.pad(there.astype(jnp.int32), ((0, 0), (0, filled - l)))
    ids = flash_lib.SegmentIds(jnp.ones((n, filled), jnp.int32), there)
  y = flash_lib.flash_attention(
    *map(fill, (q, k, v)),
    segment_ids=ids,
    causal=causal,
    sm_scale=c**-0.5,
    block_sizes=flash_lib.BlockSizes(**sizes),
  )
  return y[:, :, :l].transpose(0, 2, 1, 3)
