"""Tiles and hops, no maths: how every image of a sharded batch meets every text in flat memory.

Images stay, texts go round. `sweep` pairs the images of one device with the texts at hand in tiles of both; a transport
brings the texts of the other devices: `Ring` passes them on from device to device, `Gather` fetches all at once.
A loss is a program over a transport (see sigmoid.py): per device, it says what one tile adds to a state of its images
(`row_state`) and to a state of its texts (`col_state`), which travels with them. `differentiable` makes of a program a
function of global arrays whose gradients come out of the program itself, so that no tile is kept for a backward pass.

Shapes: B global batch, b examples per device, D devices, t tile.
"""

from __future__ import annotations

import math

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P


def present_rows(z_bd, weights_b) -> jax.Array:
  """The embeddings, 0 for those of weight 0, which may be NaN."""
  return z_bd if weights_b is None else jnp.where(weights_b[:, None] > 0, z_bd, 0)


def sweep(visit, tile, rows, cols, row_index, col_index, row_state, col_state, paired=True):
  """Calls visit(row, col, row_state, col_state) → states on all pairs of tiles. Per device.

  rows, cols: dicts of arrays [b, …] with "w", the weights (or None). row_index, col_index: global index of the first
  of each. visit sees up to `tile` examples at a time, their "index" [t] and whether they may be "paired", as those of
  equal index are. A last tile that is not full begins earlier, at b − t, and gives those it has seen before the weight 0:
  nothing is padded or copied. "z" is 0 where the weight is.
  """
  row_tiles, col_tiles = _Tiles(rows, row_index, tile, paired), _Tiles(cols, col_index, tile, paired)

  def across(j, states):
    row_state, col_state = states
    col = col_tiles.take(j)

    def down(i, states):
      row_state, part = states
      new, part = visit(row_tiles.take(i), col, row_tiles.cut(row_state, i), part)
      return row_tiles.put(row_state, new, i), part

    row_state, part = _loop(row_tiles.count, down, (row_state, col_tiles.cut(col_state, j)))
    return row_state, col_tiles.put(col_state, part, j)

  return _loop(col_tiles.count, across, (row_state, col_state))


class _Tiles:
  """Arrays [b, …] seen as `count` tiles of t rows, t ≤ tile as even as can be."""

  def __init__(self, arrays, index, tile, paired):
    self.arrays, self.index, self.paired = arrays, index, paired
    self.b = len(arrays["z"])
    self.count = -(-self.b // tile)
    self.t = -(-self.b // self.count)

  def start(self, i):
    return jnp.minimum(i * self.t, self.b - self.t)

  def cut(self, tree, i):
    if self.count == 1:
      return tree
    return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, self.start(i), self.t), tree)

  def put(self, tree, part, i):
    if self.count == 1:
      return part
    return jax.tree.map(lambda x, y: lax.dynamic_update_slice_in_dim(x, y, self.start(i), 0), tree, part)

  def take(self, i):
    tile, position = self.cut(self.arrays, i), jnp.int32(self.start(i)) + jnp.arange(self.t, dtype=jnp.int32)
    w = tile["w"]
    if self.count * self.t > self.b:
      w = jnp.where(position >= i * self.t, jnp.float32(1) if w is None else w, 0)
    z = present_rows(tile["z"], w)
    return {**tile, "z": z, "w": w, "index": self.index + position, "paired": self.paired}


def _loop(count, body, carry):
  return body(0, carry) if count == 1 else lax.fori_loop(0, count, body, carry)


class Ring:
  """Texts go round the devices of one or several mesh axes, flattened; per device.

  A device meets the texts of its neighbours first and its own last, when their state has come home after D − 1 hops.
  The next texts and the state of the last ones travel while a device works on those at hand.
  """

  def __init__(self, axes, size, tile):
    self.axes, self.size, self.tile = axes, size, tile
    self.index = lax.axis_index(axes) if size > 1 else 0

  def sum(self, tree):
    """Over all devices."""
    return lax.psum(tree, self.axes) if self.axes else tree

  def varying(self, tree):
    """Marks constants as differing between devices, as loops whose results do ask for."""
    return lax.pcast(tree, self.axes, to="varying") if self.axes else tree

  def around(self, visit, rows, cols, row_state, col_state, merge):
    """Sweeps all texts of all devices; returns the states of this device's images and of its own texts.

    merge(a, b): the col_state of two parts of the images.
    """
    row_state, empty = self.varying((row_state, col_state))
    b = len(cols["z"])

    def meet(texts, hops, row_state, paired=False):
      origin = (self.index - hops) % self.size
      return sweep(visit, self.tile, rows, texts, self.index * b, origin * b, row_state, empty, paired)

    if self.size == 1:
      return meet(cols, 0, row_state, paired=True)

    def hop(hops, carry):
      texts, sent, row_state = carry
      coming, arrived = self.pass_on(texts), self.pass_on(sent)
      row_state, part = meet(texts, hops, row_state)
      return coming, merge(arrived, part), row_state

    texts = self.pass_on(cols)
    coming = self.pass_on(texts) if self.size > 2 else texts
    row_state, part = meet(texts, 1, row_state)
    if self.size > 2:
      _, part, row_state = lax.fori_loop(2, self.size, hop, (coming, part, row_state))
    arrived = self.pass_on(part)
    # An empty state that XLA cannot make before the loop, where it would take memory all the while.
    empty = jax.tree.map(lambda e, p: e + 0 * p, empty, part)
    row_state, part = meet(cols, 0, row_state, paired=True)
    return row_state, merge(arrived, part)

  def pass_on(self, tree):
    ring = [(i, (i + 1) % self.size) for i in range(self.size)]
    return jax.tree.map(lambda x: lax.ppermute(x, self.axes, ring), tree)


class Gather(Ring):
  """All texts on every device at once, O(B·d): fewer and larger messages, for a small b."""

  def around(self, visit, rows, cols, row_state, col_state, merge):
    gather = lambda x: lax.all_gather(x, self.axes, tiled=True)
    row_state, col_state = self.varying((row_state, col_state))
    b = len(cols["z"])
    if self.size > 1:
      cols = jax.tree.map(gather, cols)
      col_state = jax.tree.map(lambda x: jnp.concatenate([x] * self.size), col_state)
    row_state, col_state = sweep(visit, self.tile, rows, cols, self.index * b, 0, row_state, col_state)
    if self.size > 1 and col_state:
      exchange = lambda x: lax.all_to_all(x.reshape(self.size, b, *x.shape[1:]), self.axes, 0, 0)
      parts = jax.tree.map(exchange, col_state)
      first = jax.tree.map(lambda x: x[0], parts)
      rest = jax.tree.map(lambda x: x[1:], parts)
      col_state, _ = lax.scan(lambda a, x: (merge(a, x), None), first, rest)
    return row_state, col_state


def axes(axis) -> tuple[str, ...]:
  """Names of one mesh axis or of several."""
  return (axis,) if isinstance(axis, str) else tuple(axis)


def axis_size(mesh, axis) -> int:
  """Devices of one mesh axis or of several flattened; 1 without a mesh."""
  return 1 if mesh is None else math.prod(mesh.shape[name] for name in axes(axis))


TRANSPORTS = {"ring": Ring, "gather": Gather}


def differentiable(program, impl, tile, mesh, axis):
  """loss(zimg, ztxt, scalars, weights, labels) → float32 scalar with gradients in the first three. Global view.

  program(transport, zimg, ztxt, scalars, weights, labels, grad) → (loss, grads), per device: the loss of all devices,
  and, if grad, d loss / d (zimg, ztxt, scalars) in float32, else None.
  """
  names = () if mesh is None else axes(axis)
  size = axis_size(mesh, axis)

  def run(grad, *args):
    per_device = lambda *args: program(TRANSPORTS[impl](names, size, tile), *args, grad)
    if mesh is None:
      return per_device(*args)
    rows, whole = P(names), P()
    specs = (rows, rows, whole, rows, rows)
    out = (whole, (rows, rows, whole) if grad else None)
    return jax.shard_map(per_device, mesh=mesh, in_specs=specs, out_specs=out)(*args)

  @jax.custom_vjp
  def loss(zimg, ztxt, scalars, weights, labels):
    return run(False, zimg, ztxt, scalars, weights, labels)[0]

  def forward(*args):
    value, grads = run(True, *args)
    dtypes = jax.tree.map(lambda x: jnp.zeros((), x.dtype), args[:3])
    return value, (grads, dtypes)

  def backward(residuals, g):
    grads, dtypes = residuals
    return *jax.tree.map(lambda x, like: (g * x).astype(like.dtype), grads, dtypes), None, None

  loss.defvjp(forward, backward)
  return loss
