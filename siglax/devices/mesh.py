"""Devices, axes and shardings; host arrays to global arrays and back.

Two axes: "data" splits the batch; "fsdp" splits the batch, the parameters and the optimizer state.
The batch and the loss use both, as one flattened axis.
"""

from __future__ import annotations

import collections
import functools
import math
import re

import jax
from jax.experimental import mesh_utils
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from siglax.devices import paths

BATCH_AXES = ("data", "fsdp")
# A leaf smaller than this is replicated: gathering it costs more than holding it.
FSDP_MIN_ELEMENTS = 2**18
# The table [V, w] of a text tower. Split over w, not over V: see `take_rows`.
VOCABULARY = re.compile(r"(^|/)text/embedding$")


def make(data: int | str = "rest", fsdp: int = 1, slices: int | str = "auto") -> jax.sharding.Mesh:
  """The mesh of config.mesh over all devices; "rest" takes those that fsdp leaves.

  jax lays neighbours on the mesh out as neighbours on the links of a slice. Between slices the
  network is slow, so they split "data" from the outside, and "fsdp" lies inside of them: of the
  devices of both axes, flattened, each slice is a block. Raises ValueError in one line for what
  `count_slices` does, and for slices that do not divide `data`.
  """
  data, count = jax.device_count() // fsdp if data == "rest" else int(data), count_slices(slices)
  if data % count:
    raise ValueError(
      f"config.mesh.data={data} is not divisible by config.mesh.slices={count}; choose "
      "config.mesh.fsdp so that it is"
    )
  if count == 1:
    return jax.make_mesh((data, fsdp), BATCH_AXES, axis_types=(AxisType.Auto,) * 2)
  place = lambda device: (_slice_index(device), device.process_index, device.id)
  devices = sorted(jax.devices(), key=place)[: data * fsdp]
  parts = np.array(devices, object).reshape(count, -1)
  grids = [mesh_utils.create_device_mesh((data // count, fsdp), list(part)) for part in parts]
  return jax.sharding.Mesh(np.concatenate(grids), BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def of_batch(mesh: jax.sharding.Mesh, slices: int | str) -> tuple:
  """(mesh, BATCH_AXES, number of slices): where a batch lies, as `losses.make` and `losses.layout`
  take it. slices: config.mesh.slices.
  """
  return mesh, BATCH_AXES, count_slices(slices)


def count_slices(slices: int | str) -> int:
  """config.mesh.slices as a number. "auto" is the number of slices that the devices report: pods
  of TPUs, machines of GPUs; it is 1 where they report none.

  Raises ValueError in one line for a number that does not fit what they report. On TPUs it must be
  the same number. On other devices it may also be a multiple, which divides each slice into equal
  parts, or a divisor, which joins equal numbers of slices.
  """
  told = collections.Counter(map(_slice_index, jax.devices()))
  count, sizes = len(told) if slices == "auto" else int(slices), sorted(set(told.values()))
  fits = len(sizes) == 1 and (count % len(told) == 0 or len(told) % count == 0)
  if jax.devices()[0].platform == "tpu" and count != len(told) or not fits:
    raise ValueError(
      f"config.mesh.slices={slices}, but the devices lie in {len(told)} slices of "
      f"{' and '.join(map(str, sizes))} devices; use config.mesh.slices=auto, and slices of as "
      "many devices each"
    )
  return count


def _slice_index(device) -> int:
  return getattr(device, "slice_index", 0)


def local() -> jax.sharding.Mesh:
  """A mesh of this process's own devices, on which it works for itself."""
  devices = jax.local_devices()
  shape = len(devices), 1
  return jax.make_mesh(shape, BATCH_AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def to_local(mesh: jax.sharding.Mesh, tree):
  """Replicated global arrays as arrays that are replicated over the mesh of `local`."""
  return jax.tree.map(lambda x: jax.device_put(x.addressable_data(0), replicated(mesh)), tree)


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Rows over all devices."""
  return NamedSharding(mesh, P(BATCH_AXES))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
  return NamedSharding(mesh, P())


def state_shardings(mesh: jax.sharding.Mesh, state, rules=()):
  """One rule over the whole train state: a large leaf is split over "fsdp" in its largest divisible
  dimension; the table of the vocabulary in its width.

  state: arrays or jax.ShapeDtypeStruct. The first dimension of a leaf stacked over layers is not
  split while another one divides, so that the scan over layers slices locally.
  rules: config.mesh.shard, pairs (pattern, dimension to split, or None to replicate); the first
  that matches the whole path of a parameter decides for it, its moments and its average. ValueError
  where that dimension does not divide.
  """
  size = mesh.shape["fsdp"]

  def dimension(path, leaf):
    name = paths.name(path)
    for i, (pattern, dim) in enumerate(rules):
      if re.search(f"(^|/)(?:{pattern})$", name):
        if dim is None or leaf.ndim > dim and leaf.shape[dim] % size == 0:
          return dim
        if leaf.ndim > 1:  # what an optimizer keeps of a row or a column follows the shape rule
          raise ValueError(
            f"config.mesh.shard.{i}: dimension {dim} of {name} {leaf.shape} is not divisible by "
            f"config.mesh.fsdp={size}"
          )
    if leaf.size <= FSDP_MIN_ELEMENTS:
      return None
    if VOCABULARY.search(name) and leaf.ndim == 2 and leaf.shape[1] % size == 0:
      return 1
    stacked = paths.is_stacked(name) and leaf.ndim > 2
    dims = [i for i in range(leaf.ndim) if leaf.shape[i] % size == 0 and not (stacked and i == 0)]
    return max(dims, key=lambda i: leaf.shape[i]) if dims else None

  def sharding(path, leaf):
    split = None if size == 1 else dimension(path, leaf)
    return NamedSharding(
      mesh, P() if split is None else P(*("fsdp" if i == split else None for i in range(leaf.ndim)))
    )

  return jax.tree_util.tree_map_with_path(sharding, state)


def abstract(mesh: jax.sharding.Mesh, shapes, rules=()):
  """Shapes (of jax.eval_shape) with the shardings of `state_shardings`: what a checkpoint is
  restored into.
  """
  return jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
    shapes,
    state_shardings(mesh, shapes, rules),
  )


def constrain(tree, shardings):
  """Keeps traced arrays in these shardings, which inside of a shard_map name none of its axes."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.manual_axes:
    if not mesh.auto_axes:
      return tree
    shardings = jax.tree.map(lambda sharding: sharding.spec, shardings)
  return jax.tree.map(jax.lax.with_sharding_constraint, tree, shardings)


def split_rows(mesh: jax.sharding.Mesh, x: jax.Array, chunks: int) -> jax.Array:
  """[B, …] → [chunks, B / chunks, …], each chunk with rows of every device, so that none moves.
  Global view.
  """
  B, rest = x.shape[0], x.shape[1:]
  x = (
    x.reshape(mesh.size, chunks, B // mesh.size // chunks, *rest)
    .swapaxes(0, 1)
    .reshape(chunks, B // chunks, *rest)
  )
  return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(None, BATCH_AXES)))


def join_rows(mesh: jax.sharding.Mesh, x: jax.Array) -> jax.Array:
  """What `split_rows` split, in its first order."""
  chunks, size, *rest = x.shape
  x = (
    x.reshape(chunks, mesh.size, size // mesh.size, *rest)
    .swapaxes(0, 1)
    .reshape(chunks * size, *rest)
  )
  return jax.lax.with_sharding_constraint(x, batch_sharding(mesh))


def _auto_axes() -> tuple[str, ...]:
  """The batch axes of the mesh in use that XLA splits: all, but for those that a shard_map maps
  over here; none without a mesh.
  """
  automatic = jax.sharding.get_abstract_mesh().auto_axes
  return tuple(axis for axis in BATCH_AXES if axis in automatic)


def constrain_batch(x: jax.Array) -> jax.Array:
  """Keeps rows of activations on the batch axes of the mesh in use, so that weights are gathered,
  not activations. Inside of a shard_map the axes that it maps over have split them already.
  """
  if not (axes := _auto_axes()):
    return x
  return jax.lax.with_sharding_constraint(x, P(axes, *(None,) * (x.ndim - 1)))


def take_rows(table: jax.Array, index: jax.Array, dtype) -> jax.Array:
  """table[index] in dtype: rows of a table [V, w] for index [B, …], which the mesh in use splits as
  the batch → [B, …, w].

  Where the table is split over "fsdp" (`state_shardings`), each device of such a group looks the
  indices of the whole group up in its columns [V, w/fsdp]. It sends each other device its columns
  of that device's rows. So a device sends about as many bytes as its own rows have, and 4 for each
  index; the table and its gradient do not move over "fsdp". XLA partitions the lookup where the
  devices do not divide B.
  """
  mesh = jax.sharding.get_abstract_mesh()
  axes = tuple(axis for axis in _auto_axes() if mesh.shape[axis] > 1)
  is_split = "fsdp" in axes and table.size > FSDP_MIN_ELEMENTS
  places = math.prod(mesh.shape[axis] for axis in axes)
  if not is_split or table.shape[1] % mesh.shape["fsdp"] or index.shape[0] % places:
    return jnp.take(table, index, axis=0).astype(dtype)
  like = jax.ShapeDtypeStruct(table.shape, table.dtype)
  return _taken(table, index, axes, jnp.dtype(dtype), like)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _taken(table, index, axes, dtype, like):
  """`take_rows` of a table like that over these axes, "fsdp" the last. It has a gradient of its own
  because jax 0.10 cannot differentiate a shard_map inside of another one.
  """

  def take(table, index):
    index = jax.lax.all_gather(index, "fsdp", axis=0, tiled=True)
    rows = jnp.take(table, index, axis=0).astype(dtype)
    return jax.lax.all_to_all(rows, "fsdp", 0, rows.ndim - 1, tiled=True)

  return jax.shard_map(
    take, in_specs=(P(None, "fsdp"), P(axes)), out_specs=P(axes), axis_names=set(axes)
  )(table, index)


def _take_forward(table, index, axes, dtype, like):
  return _taken(table, index, axes, dtype, like), index


def _take_backward(axes, dtype, like, index, rows):
  def add(index, rows):
    index = jax.lax.all_gather(index, "fsdp", axis=0, tiled=True)
    rows = jax.lax.all_to_all(rows, "fsdp", rows.ndim - 1, 0, tiled=True).astype(like.dtype)
    columns = jnp.zeros((like.shape[0], rows.shape[-1]), like.dtype).at[index].add(rows)
    return jax.lax.psum(columns, axes[:-1])

  add = jax.shard_map(
    add, in_specs=(P(axes), P(axes)), out_specs=P(None, "fsdp"), axis_names=set(axes)
  )
  return add(index, rows), None


_taken.defvjp(_take_forward, _take_backward)


def summed_over_data(mesh: jax.sharding.Mesh, function):
  """A function of (same, chunks), two tuples: the sum of function(*same, *chunks) over the places
  of the axis "data", which crosses the network once.

  same: trees that are alike at each place. chunks: trees of arrays [chunks, B / chunks, …], of
  which each place has its own rows. XLA splits what is inside over "fsdp", as it does outside.
  """
  if mesh.shape["data"] == 1:
    return lambda same, chunks: function(*same, *chunks)
  axes = ("data",) if mesh.shape["fsdp"] > 1 else BATCH_AXES

  return jax.shard_map(
    lambda same, chunks: jax.lax.psum(function(*same, *chunks), axes),
    mesh=mesh,
    in_specs=(P(), P(None, axes)),
    out_specs=P(),
    axis_names=set(axes),
    check_vma=False,  # else the gradient of what is the same everywhere is summed in each chunk
  )


def per_device(function):
  """The function (*arrays) → array, all with the rows of a batch, such that each device computes
  it for its own rows: for a function that XLA cannot split.

  Inside of a shard_map over "data" alone, the backward pass computes the function a second time:
  jax 0.10 cannot differentiate a shard_map inside of another one.
  """
  if not (axes := _auto_axes()):
    return function
  mapped = lambda f: jax.shard_map(
    f, in_specs=P(axes), out_specs=P(axes), axis_names=set(axes), check_vma=False
  )
  if not jax.sharding.get_abstract_mesh().manual_axes:
    return mapped(function)
  again = jax.custom_vjp(lambda *arrays: mapped(function)(*arrays))
  backward = mapped(lambda arrays, gradient: jax.vjp(function, *arrays)[1](gradient))
  again.defvjp(lambda *arrays: (mapped(function)(*arrays), arrays), backward)
  return again


def to_global(mesh: jax.sharding.Mesh, batch):
  """Per process rows (numpy) → global arrays with rows over all devices."""
  sharding = batch_sharding(mesh)
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def from_whole(sharding: NamedSharding, x: np.ndarray) -> jax.Array:
  """An array that every process has whole → a global array."""
  # jax.device_put would compare the arrays of all processes first.
  held = sharding.addressable_devices_indices_map(x.shape)
  shards = jax.device_put([x[part] for part in held.values()], list(held))
  return jax.make_array_from_single_device_arrays(x.shape, sharding, shards)


def process_indices(mesh: jax.sharding.Mesh, batch_size: int) -> np.ndarray:
  """Indices in a global batch of the rows that this process provides, in the order that `to_global`
  takes them.

  A mesh may list the devices of several processes in turn, as TPUs' links run; then they are no
  single block.
  """
  held = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
  return np.sort(np.concatenate([np.arange(batch_size)[rows] for rows in held.values()]))


def to_host(x: jax.Array) -> np.ndarray:
  """A replicated global array as numpy."""
  return np.asarray(x.addressable_data(0))


def to_host_later(x: jax.Array) -> jax.Array:
  """A replicated global array as one of a single device, on its way to the host: of what this
  returns np.asarray waits only until it is there.
  """
  x = x.addressable_data(0)
  x.copy_to_host_async()
  return x
