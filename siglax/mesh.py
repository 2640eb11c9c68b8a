"""Devices, axes and shardings; host arrays to global arrays and back.

Two axes: "data" splits the batch; "fsdp" splits the batch, the parameters and the optimizer state.
The batch and the loss use both, as one flattened axis.
"""

from __future__ import annotations

import ctypes
import glob
import sys

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import numpy as np

BATCH_AXES = ("data", "fsdp")
# A leaf smaller than this is replicated: gathering it costs more than holding it.
FSDP_MIN_ELEMENTS = 2**18


def keep_freed_memory():
  """On a machine of CPUs only, has glibc keep freed buffers for the next step. Call before jax makes its devices.

  XLA's CPU client allocates its temporaries anew each step; by default glibc returns them to the system, which then
  zeroes every page again: a quarter of a small step's time (benchmarks/step.py --config configs/quickstart.py).
  """
  accelerators = [device for pattern in ("nvidia[0-9]*", "accel*", "vfio/*") for device in glob.glob(f"/dev/{pattern}")]
  libc = ctypes.CDLL(None) if sys.platform == "linux" and not accelerators else None
  if hasattr(libc, "mallopt"):  # musl has none
    libc.mallopt(-8, 1)  # M_ARENA_MAX: all threads share one heap; those of their own are unmapped when empty
    libc.mallopt(-4, 0)  # M_MMAP_MAX: no mappings, so everything comes from the heap
    libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap keeps up to 2 GiB of free memory at its end


def make(data: int | str = "rest", fsdp: int = 1) -> jax.sharding.Mesh:
  """The mesh of config.mesh over all devices; "rest" takes those that fsdp leaves."""
  data = jax.device_count() // fsdp if data == "rest" else data
  return jax.make_mesh((data, fsdp), BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Rows over all devices."""
  return NamedSharding(mesh, P(BATCH_AXES))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
  return NamedSharding(mesh, P())


def state_shardings(mesh: jax.sharding.Mesh, state):
  """One rule over the whole train state: a large leaf is split over "fsdp" in its largest divisible dimension.

  state: arrays or jax.ShapeDtypeStruct. The first dimension of a leaf stacked over layers is not split while
  another one divides, so that the scan over layers slices locally.
  """
  size = mesh.shape["fsdp"]

  def rule(path, leaf):
    if size == 1 or leaf.size <= FSDP_MIN_ELEMENTS:
      return NamedSharding(mesh, P())
    stacked = any(getattr(k, "key", None) == "blocks" for k in path) and leaf.ndim > 2
    dims = [i for i in range(leaf.ndim) if leaf.shape[i] % size == 0 and not (stacked and i == 0)]
    if not dims:
      return NamedSharding(mesh, P())
    largest = max(dims, key=lambda i: leaf.shape[i])
    return NamedSharding(mesh, P(*("fsdp" if i == largest else None for i in range(leaf.ndim))))

  return jax.tree_util.tree_map_with_path(rule, state)


def abstract(mesh: jax.sharding.Mesh, shapes):
  """Shapes (of jax.eval_shape) with the shardings of `state_shardings`: what a checkpoint is restored into."""
  return jax.tree.map(
      lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, state_shardings(mesh, shapes)
  )


def constrain_batch(x: jax.Array) -> jax.Array:
  """Keeps rows of activations on the batch axes of the mesh in use, so that weights are gathered, not activations."""
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, P(BATCH_AXES, *(None,) * (x.ndim - 1)))


def to_global(mesh: jax.sharding.Mesh, batch):
  """Per process rows (numpy) → global arrays with rows over all devices."""
  sharding = batch_sharding(mesh)
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def process_rows(batch_size: int) -> int:
  """Rows of a global batch that this process provides."""
  return batch_size // jax.process_count()


def to_host(x: jax.Array) -> np.ndarray:
  """A replicated global array as numpy."""
  return np.asarray(x.addressable_data(0))
