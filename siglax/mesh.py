"""Devices, axes and shardings; host arrays to global arrays and back.

Two axes: "data" splits the batch; "fsdp" splits the batch, the parameters and the optimizer state.
The batch and the loss use both, as one flattened axis.
"""

from __future__ import annotations

import ctypes
import glob
import hashlib
import os
import pathlib
import platform
import re
import sys

import jax
from jax.experimental import mesh_utils
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


def keep_compiled_programs():
  """Keeps compiled programs in the user's cache folder, so that a run that resumes or repeats starts at once.

  JAX_COMPILATION_CACHE_DIR names another folder. The default one is private and this kind of machine's own: XLA compiles
  for the CPU at hand.
  """
  if jax.config.jax_compilation_cache_dir is None:
    machine = hashlib.sha256(f"{platform.machine()} {platform.processor()} {_cpu_flags()}".encode()).hexdigest()[:12]
    try:
      cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "siglax"
      folder = cache / f"xla-{machine}"
      folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):
      return  # no home, or one that cannot be written
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _cpu_flags() -> str:
  file = pathlib.Path("/proc/cpuinfo")
  lines = file.read_text().splitlines() if file.exists() else []
  return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def make(data: int | str = "rest", fsdp: int = 1) -> jax.sharding.Mesh:
  """The mesh of config.mesh over all devices; "rest" takes those that fsdp leaves.

  jax lays neighbours on the mesh out as neighbours on the links. Between slices of several TPU pods the network is
  slow, so they split "data" from the outside, and a ring over both axes leaves a slice once a round.
  """
  data = jax.device_count() // fsdp if data == "rest" else data
  slices = len({getattr(device, "slice_index", 0) for device in jax.devices()})
  if slices == 1:
    return jax.make_mesh((data, fsdp), BATCH_AXES, axis_types=(AxisType.Auto,) * 2)
  if data % slices:
    raise ValueError(f"config.mesh.data={data} is not divisible by the {slices} slices; choose config.mesh.fsdp so that it is")
  devices = mesh_utils.create_hybrid_device_mesh((data // slices, fsdp), (slices, 1), jax.devices())
  return jax.sharding.Mesh(devices, BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Rows over all devices."""
  return NamedSharding(mesh, P(BATCH_AXES))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
  return NamedSharding(mesh, P())


def state_shardings(mesh: jax.sharding.Mesh, state, rules=()):
  """One rule over the whole train state: a large leaf is split over "fsdp" in its largest divisible dimension.

  state: arrays or jax.ShapeDtypeStruct. The first dimension of a leaf stacked over layers is not split while
  another one divides, so that the scan over layers slices locally.
  rules: config.mesh.shard, pairs (pattern, dimension to split, or None to replicate); the first that matches the whole
  path of a parameter decides for it, its moments and its average. ValueError where that dimension does not divide.
  """
  size = mesh.shape["fsdp"]

  def dimension(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    for i, (pattern, dim) in enumerate(rules):
      if re.search(f"(^|/)(?:{pattern})$", name):
        if dim is None or leaf.ndim > dim and leaf.shape[dim] % size == 0:
          return dim
        if leaf.ndim > 1:  # what an optimizer keeps of a row or a column follows the shape rule
          raise ValueError(
              f"config.mesh.shard.{i}: dimension {dim} of {name} {leaf.shape} is not divisible by config.mesh.fsdp={size}"
          )
    if leaf.size <= FSDP_MIN_ELEMENTS:
      return None
    stacked = any(getattr(k, "key", None) == "blocks" for k in path) and leaf.ndim > 2
    dims = [i for i in range(leaf.ndim) if leaf.shape[i] % size == 0 and not (stacked and i == 0)]
    return max(dims, key=lambda i: leaf.shape[i]) if dims else None

  def sharding(path, leaf):
    split = None if size == 1 else dimension(path, leaf)
    return NamedSharding(mesh, P() if split is None else P(*("fsdp" if i == split else None for i in range(leaf.ndim))))

  return jax.tree_util.tree_map_with_path(sharding, state)


def abstract(mesh: jax.sharding.Mesh, shapes, rules=()):
  """Shapes (of jax.eval_shape) with the shardings of `state_shardings`: what a checkpoint is restored into."""
  return jax.tree.map(
      lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, state_shardings(mesh, shapes, rules)
  )


def constrain(tree, shardings):
  """Keeps traced arrays in these shardings."""
  return jax.tree.map(jax.lax.with_sharding_constraint, tree, shardings)


def split_rows(mesh: jax.sharding.Mesh, x: jax.Array, chunks: int) -> jax.Array:
  """[B, …] → [chunks, B / chunks, …], each chunk with rows of every device, so that none moves. Global view."""
  B, rest = x.shape[0], x.shape[1:]
  x = x.reshape(mesh.size, chunks, B // mesh.size // chunks, *rest).swapaxes(0, 1).reshape(chunks, B // chunks, *rest)
  return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(None, BATCH_AXES)))


def join_rows(mesh: jax.sharding.Mesh, x: jax.Array) -> jax.Array:
  """What `split_rows` split, in its first order."""
  chunks, size, *rest = x.shape
  x = x.reshape(chunks, mesh.size, size // mesh.size, *rest).swapaxes(0, 1).reshape(chunks * size, *rest)
  return jax.lax.with_sharding_constraint(x, batch_sharding(mesh))


def constrain_batch(x: jax.Array) -> jax.Array:
  """Keeps rows of activations on the batch axes of the mesh in use, so that weights are gathered, not activations."""
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, P(BATCH_AXES, *(None,) * (x.ndim - 1)))


def to_global(mesh: jax.sharding.Mesh, batch):
  """Per process rows (numpy) → global arrays with rows over all devices."""
  sharding = batch_sharding(mesh)
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def process_indices(mesh: jax.sharding.Mesh, batch_size: int) -> np.ndarray:
  """Indices in a global batch of the rows that this process provides, in the order that `to_global` takes them.

  A mesh may list the devices of several processes in turn, as TPUs' links run; then they are no single block.
  """
  held = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
  return np.sort(np.concatenate([np.arange(batch_size)[rows] for rows, in held.values()]))


def to_host(x: jax.Array) -> np.ndarray:
  """A replicated global array as numpy."""
  return np.asarray(x.addressable_data(0))
