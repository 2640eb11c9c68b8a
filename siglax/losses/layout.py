"""What a loss is given, and how it is computed: on which devices, through which transport, in tiles
of which size.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

IMPLS = ("auto", "dense", "ring", "gather")
DTYPES = ("float32", "bfloat16")

# The rule of impl="auto".
DENSE_PAIRS = 2**20  # b·B up to which the logits are small: at about 20 bytes a pair 20 MiB
RING_EXAMPLES = 4096  # b from which a hop takes no longer than a device works on its texts
GATHER_SHARE = 1 / 16  # of a device's memory that all texts and their gradients may take
DEVICE_MEMORY = 16 * 2**30  # bytes, where a device does not tell


@dataclasses.dataclass(frozen=True)
class Batch:
  """Embeddings zimg and ztxt [B, d] with weights float [B] and labels int [B], each None where not
  given.

  running: of a loss that remembers examples, what `running.fetch` gives of these.
  In the global view; within a transport, the rows of one device.
  """

  zimg: jax.Array
  ztxt: jax.Array
  weights: jax.Array | None = None
  labels: jax.Array | None = None
  running: dict | None = None

  def check(self):
    """ValueError in one line for shapes that differ, and for labels that are not integers."""
    if self.zimg.ndim != 2 or self.zimg.shape != self.ztxt.shape:
      raise ValueError(
        f"zimg {self.zimg.shape} and ztxt {self.ztxt.shape} must have the same shape [B, d]"
      )
    size = self.zimg.shape[:1]
    for name, x in (("weights", self.weights), ("labels", self.labels)):
      if x is not None and x.shape != size:
        raise ValueError(f"{name} {x.shape} must have the shape {size}, one for each example")
    if self.labels is not None and not jnp.issubdtype(self.labels.dtype, jnp.integer):
      raise ValueError(f"labels have dtype {self.labels.dtype}; they must be integers")


@dataclasses.dataclass(frozen=True)
class Layout:
  """Where the rows of a batch lie, and how all images meet all texts.

  mesh: None for one device. axis: the mesh axis, or the axes, that split the batch. impl: one of
  IMPLS. tile: examples of a tile; None takes `default_tile`, and so does "dense", which has no
  tiles. dtype: one of DTYPES, of the embeddings that travel and of the operands of products; None
  leaves the embeddings as they are. slices: between which the network is slow; they split the
  devices of the axes, in their order, into equal parts.
  """

  mesh: Any = None
  axis: str | tuple[str, ...] = "data"
  impl: str = "auto"
  tile: int | None = None
  dtype: str | None = None
  slices: int = 1

  @property
  def axes(self) -> tuple[str, ...]:
    """Names of the mesh axes that split the batch; none without a mesh."""
    return () if self.mesh is None else _names(self.axis)

  @property
  def devices(self) -> int:
    """Among which the batch is split."""
    return axis_size(self.mesh, self.axis)

  def check(self, B: int):
    """ValueError in one line for an unknown impl, dtype or axis, a tile below 1, devices that the
    slices do not divide, a batch of B that the devices do not divide.
    """
    if self.impl not in IMPLS:
      raise ValueError(
        f"impl={self.impl!r} is unknown; known are {', '.join(IMPLS)} (config.loss.impl)"
      )
    if self.dtype is not None and self.dtype not in DTYPES:
      raise ValueError(
        f"dtype={self.dtype!r} is unknown; known are {', '.join(DTYPES)} (config.loss.dtype)"
      )
    if self.tile is not None and self.tile <= 0:
      raise ValueError(f"tile={self.tile} must be positive")
    if self.mesh is not None and not set(self.axes) <= set(self.mesh.axis_names):
      raise ValueError(
        f"axis={self.axis!r} is not of the mesh, whose axes are {', '.join(self.mesh.axis_names)}"
      )
    if self.devices % self.slices:
      raise ValueError(
        f"slices={self.slices} do not divide the {self.devices} devices of axis={self.axis!r} "
        "(config.mesh.slices)"
      )
    if B % self.devices:
      raise ValueError(
        f"a batch of {B} is not divisible by the {self.devices} devices of axis={self.axis!r}"
      )

  def operand(self, z_bd) -> jax.Array:
    """Embeddings in `dtype`."""
    return z_bd if self.dtype is None else z_bd.astype(self.dtype)

  def chosen(self, B: int, d: int) -> Layout:
    """The same with impl and tile filled in for B embeddings of width d."""
    impl, tile = plan(self.impl, self.tile, B, d, self.mesh, self.axis)
    return dataclasses.replace(self, impl=impl, tile=tile)


def axis_size(mesh, axis) -> int:
  """Devices of one mesh axis or of several flattened; 1 without a mesh."""
  return 1 if mesh is None else math.prod(mesh.shape[name] for name in _names(axis))


def choose(B: int, d: int, mesh=None, axis="data", memory: int | None = None) -> str:
  """What impl="auto" takes for a global batch of B embeddings of width d.

  dense: the logits of a device are at most DENSE_PAIRS. gather: b < RING_EXAMPLES, where hops would
  take longer than the work on them, and the texts of all devices and two copies of their gradients,
  12·B·d bytes, are at most GATHER_SHARE of a device's memory (bytes; None asks the device). ring:
  everything else.
  """
  size = axis_size(mesh, axis)
  b = B // size
  if b * B <= DENSE_PAIRS:
    return "dense"
  if memory is None:
    memory = (jax.devices()[0].memory_stats() or {}).get("bytes_limit", DEVICE_MEMORY)
  fits = 12 * B * d <= GATHER_SHARE * memory
  return "gather" if 1 < size and b < RING_EXAMPLES and fits else "ring"


def default_tile(b: int, d: int) -> int:
  """Examples of a tile: √(b·d/6), within 256 and 1024, in steps of 128, so that the memory of a
  tile is small beside b·d.

  The largest such number that divides b is taken where it is at least half of that, so that no work
  is done twice.
  """
  most = min(max(int(math.sqrt(b * d / 6)) // 128 * 128, 256), 1024)
  even = [t for t in range(most, most // 2 - 1, -128) if b % t == 0]
  return even[0] if even else most


def plan(
  impl: str, tile: int | None, B: int, d: int, mesh=None, axis="data"
) -> tuple[str, int | None]:
  """The impl and the tile that a loss takes, "auto" and None filled in; "dense" has no tile."""
  if impl == "auto":
    impl = choose(B, d, mesh, axis)
  if impl == "dense":
    return impl, None
  b = B // axis_size(mesh, axis)
  return impl, min(b, tile or default_tile(b, d))


def _names(axis) -> tuple[str, ...]:
  return (axis,) if isinstance(axis, str) else tuple(axis)
