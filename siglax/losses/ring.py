"""Tiles and hops, no maths: how every image of a sharded batch meets every text in flat memory.

Images stay where they are, texts go round. A transport brings the texts of the other devices:
`Ring` passes them on from device to device, `Gather` fetches all at once. `sweep` pairs the images
of a device with the texts at hand, a tile of images with a tile of texts at a time.
A loss gives a function `visit`, which says what one pair of tiles adds to the sums that are kept
for its images (`row_state`) and to those kept for its texts (`col_state`), which travel with the
texts. The program of a loss (`_per_device` in pairs.py, `per_device` in softmax.py and hinge.py)
sends one or two visits round and makes the loss and its gradients of the sums; `differentiable`
makes of it a function of global arrays. As the program itself gives the gradients, no tile is kept
for a backward pass.

Shapes: B global batch, b examples per device, D devices, t examples of a tile.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from siglax.losses.layout import Batch
from siglax.losses.layout import Layout


def present_rows(z_bd, weights_b) -> jax.Array:
  """The embeddings, 0 for those of weight 0, which may be NaN."""
  return z_bd if weights_b is None else jnp.where(weights_b[:, None] > 0, z_bd, 0)


@dataclasses.dataclass(frozen=True)
class Side:
  """The images or the texts of a sweep, per device.

  arrays: {name: [b, …]}, among them "z", the embeddings, and "w", the weights or None. first:
  global index of the first example. state: sums that are kept for each example, arrays [b, …].
  """

  arrays: dict
  first: Any
  state: Any


def sweep(visit, tile: int, rows: Side, cols: Side, paired: bool = True):
  """Calls visit(row, col, row_state, col_state) → states on all pairs of tiles; returns both
  states. Per device.

  row, col: dicts of at most `tile` examples [t, …] with their "index" [t] and "paired", whether
  examples of one index may be among the two. A last tile that would not be full begins earlier, at
  b − t, and those of its examples that were in the tile before get the weight 0: nothing is padded
  or copied. "z" is 0 where the weight is.
  """
  row_tiles, col_tiles = _Tiles(rows, tile, paired), _Tiles(cols, tile, paired)

  def across(j, states):
    row_state, col_state = states
    col = col_tiles.take(j)

    def down(i, states):
      row_state, part = states
      new, part = visit(row_tiles.take(i), col, row_tiles.cut(row_state, i), part)
      return row_tiles.put(row_state, new, i), part

    row_state, part = _loop(row_tiles.count, down, (row_state, col_tiles.cut(col_state, j)))
    return row_state, col_tiles.put(col_state, part, j)

  return _loop(col_tiles.count, across, (rows.state, cols.state))


class _Tiles:
  """One side seen as `count` tiles of t examples; t ≤ tile, and the tiles overlap as little as they
  can.
  """

  def __init__(self, side: Side, tile: int, paired: bool):
    self.arrays, self.index, self.paired = side.arrays, side.first, paired
    self.b = len(self.arrays["z"])
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
    return jax.tree.map(
      lambda x, y: lax.dynamic_update_slice_in_dim(x, y, self.start(i), 0), tree, part
    )

  def take(self, i):
    tile, position = (
      self.cut(self.arrays, i),
      jnp.int32(self.start(i)) + jnp.arange(self.t, dtype=jnp.int32),
    )
    w = tile["w"]
    if self.count * self.t > self.b:
      w = jnp.where(position >= i * self.t, jnp.float32(1) if w is None else w, 0)
    z = present_rows(tile["z"], w)
    return {**tile, "z": z, "w": w, "index": self.index + position, "paired": self.paired}


def _loop(count, body, carry):
  return body(0, carry) if count == 1 else lax.fori_loop(0, count, body, carry)


def _relay(send, visit, merge, texts, first, last, row_state, before, spare=True):
  """Visits the texts here, which have made `first` hops, and then those that each hop brings, until
  they have made `last` hops. Returns row_state and the state of the last texts. The state of texts
  follows them one hop behind.

  visit(texts, hops, row_state, before) → (row_state, state). send: a hop. before: the state of what
  was visited before. spare: whether the texts may make a hop more at the end, which nothing needs
  and which keeps the last visit in the loop.
  """

  def hop(hops, carry):
    texts, sent, row_state = carry
    coming, arrived = send(texts), send(sent)
    row_state, state = visit(texts, hops, row_state)
    return coming, merge(arrived, state), row_state

  coming = send(texts) if last > first else texts
  row_state, state = visit(texts, first, row_state, before)
  stop = last + 1 if spare else last
  if stop > first + 1:
    coming, state, row_state = lax.fori_loop(first + 1, stop, hop, (coming, state, row_state))
  if last > first and not spare:
    arrived = send(state)
    row_state, new = visit(coming, last, row_state, state)
    state = merge(arrived, new)
  return row_state, state


class Ring:
  """Texts go round the devices of one or several mesh axes, flattened; per device.

  A device meets the texts of its neighbours first. Its own come last, when their state has returned
  after D − 1 hops. While a device works on the texts at hand, the next ones and the state of those
  before are on their way.

  Between slices of devices, as many in each, the network is slow. There each device has a place in
  its slice, and its texts go round its own slice, cross to the same place of the next slice, go
  round that one, and so on: of texts and of their state, b examples a device cross slices − 1
  times, the least that is possible. What crosses is not needed before the next round: the first
  texts cross while the first half of the own slice's round is computed, and the last state on its
  way home while the second half is.
  """

  def __init__(self, axes, size, tile, slices=1):
    self.axes, self.size, self.tile, self.slices = axes, size, tile, slices
    self.places = size // slices
    self.index = lax.axis_index(axes) if size > 1 else 0

  def sum(self, tree):
    """Over all devices."""
    return lax.psum(tree, self.axes) if self.axes else tree

  def varying(self, tree):
    """Marks constants as differing between devices, as loops whose results do ask for."""
    return lax.pcast(tree, self.axes, to="varying") if self.axes else tree

  def around(self, visit, rows, cols, row_state, col_state, merge):
    """Sweeps this device's images and the texts of all devices; returns the states of its own
    images and texts.

    merge(a, b): the col_state of some texts, of what two sets of images added to it.
    """
    row_state, empty = self.varying((row_state, col_state))
    b = len(cols["z"])

    def meet(texts, crossed, hops, row_state, before=None, paired=False):
      """Sweeps the images here and texts that have crossed `crossed` times to the next slice, and
      have then made `hops` hops there. before: the state of the texts that were met before.
      """
      images, first = Side(rows, self.index * b, row_state), self._origin(crossed, hops) * b
      # An empty state that XLA cannot make earlier, where it would take memory all the while.
      state = empty if before is None else jax.tree.map(lambda e, p: e + 0 * p, empty, before)
      return sweep(visit, self.tile, images, Side(texts, first, state), paired)

    if self.size == 1:
      return meet(cols, 0, 0, row_state, paired=True)

    def go_on(texts, crossed, first, last, row_state, before=None):
      """Meets texts that have made `first` hops in this slice, and on, until after the `last`, when
      their state is where they are.
      """
      visit = lambda texts, hops, *states: meet(texts, crossed, hops, *states)
      return _relay(self.pass_on, visit, merge, texts, first, last, row_state, before)

    def go_round(texts, crossed, row_state, before=None):
      row_state, part = go_on(texts, crossed, 0, self.places - 1, row_state, before)
      return row_state, self.pass_on(part)

    parts, part = [], None
    crossing = self.cross(cols) if self.slices > 1 else cols
    half = self.places - 1 if self.slices == 1 else self.places // 2
    if half:
      row_state, part = go_on(self.pass_on(cols), 0, 1, half, row_state)
      parts.append(self.pass_on(part, self.places - half))
    if self.slices > 1:
      last = self.slices - 1
      row_state, part = _relay(
        self.cross, go_round, merge, crossing, 1, last, row_state, part, spare=False
      )
      parts.append(self.cross(part))
    if half + 1 < self.places:
      texts = self.pass_on(cols, half + 1)
      row_state, part = go_on(texts, 0, half + 1, self.places - 1, row_state, part)
      parts.append(self.pass_on(part))
    row_state, part = meet(cols, 0, 0, row_state, part, paired=True)
    return row_state, functools.reduce(merge, [*parts, part])

  def _origin(self, crossed, hops):
    """Whose texts have crossed to so many slices and made so many hops in this one."""
    place = (self.index - hops) % self.places
    return (self.index // self.places - crossed) % self.slices * self.places + place

  def fetch(self, table, at):
    """Entries `at`, int32 [b], of a table [n, …] that lies over the devices in equal parts; 0 for
    −1.

    The numbers go round, and each device adds what it has, so that nothing is larger than O(b).
    """
    found = jax.tree.map(lambda x: jnp.zeros((len(at), *x.shape[1:]), x.dtype), table)
    if self.size == 1:
      return self._look(table, at, found)
    hop = lambda carry: self.pass_on((carry[0], self._look(table, *carry)))
    return self._tour(hop, self.cross, (at, self.varying(found)))[1]

  def store(self, table, at, values):
    """The table with the values [b, …] at the entries `at`, of which none but −1 is there twice,
    on all devices together.
    """
    if self.size == 1:
      return self._put(table, at, values)
    hop = lambda carry: (self._put(*carry), *self.pass_on(carry[1:]))
    cross = lambda carry: (carry[0], *self.cross(carry[1:]))
    return self._tour(hop, cross, (table, at, values))[0]

  def _tour(self, hop, cross, carry):
    """What is carried through all devices, and back home."""
    go_round = lambda carry: lax.fori_loop(0, self.places, lambda _, carry: hop(carry), carry)
    if self.slices == 1:
      return go_round(carry)
    return lax.fori_loop(0, self.slices, lambda _, carry: cross(go_round(carry)), carry)

  def _place(self, table, at):
    """The places in this device's part of a table, and which of `at` it has."""
    n = len(jax.tree.leaves(table)[0])
    place = at - self.index * n
    return place, (0 <= place) & (place < n), n

  def _look(self, table, at, found):
    place, here, n = self._place(table, at)
    place = jnp.clip(place, 0, n - 1)
    return jax.tree.map(lambda x, f: jnp.where(here, x[place], f), table, found)

  def _put(self, table, at, values):
    place, here, n = self._place(table, at)
    place = jnp.where(here, place, n)
    return jax.tree.map(lambda x, v: x.at[place].set(v, mode="drop"), table, values)

  def pass_on(self, tree, hops=1):
    """To the device so many places further in the slice."""
    n = self.places
    return self._send(tree, [(i, i // n * n + (i + hops) % n) for i in range(self.size)])

  def cross(self, tree):
    """To the same place of the next slice."""
    return self._send(tree, [(i, (i + self.places) % self.size) for i in range(self.size)])

  def _send(self, tree, pairs):
    if all(source == target for source, target in pairs):
      return tree
    return jax.tree.map(lambda x: lax.ppermute(x, self.axes, pairs), tree)


class Gather(Ring):
  """All texts on every device at once, O(B·d): fewer and larger messages, for a small b."""

  def around(self, visit, rows, cols, row_state, col_state, merge):
    gather = lambda x: lax.all_gather(x, self.axes, tiled=True)
    row_state, col_state = self.varying((row_state, col_state))
    b = len(cols["z"])
    if self.size > 1:
      cols = jax.tree.map(gather, cols)
      col_state = jax.tree.map(lambda x: jnp.concatenate([x] * self.size), col_state)
    images, texts = Side(rows, self.index * b, row_state), Side(cols, 0, col_state)
    row_state, col_state = sweep(visit, self.tile, images, texts)
    if self.size > 1 and col_state:
      exchange = lambda x: lax.all_to_all(x.reshape(self.size, b, *x.shape[1:]), self.axes, 0, 0)
      parts = jax.tree.map(exchange, col_state)
      first = jax.tree.map(lambda x: x[0], parts)
      rest = jax.tree.map(lambda x: x[1:], parts)
      col_state, _ = lax.scan(lambda a, x: (merge(a, x), None), first, rest)
    return row_state, col_state

  def fetch(self, table, at):
    if self.size == 1:
      return super().fetch(table, at)
    everywhere = lax.all_gather(at, self.axes, tiled=True)
    zeros = lambda x: jnp.zeros((len(everywhere), *x.shape[1:]), x.dtype)
    found = self._look(table, everywhere, jax.tree.map(zeros, table))
    return jax.tree.map(lambda x: lax.psum_scatter(x, self.axes, tiled=True), found)

  def store(self, table, at, values):
    if self.size > 1:
      at, values = jax.tree.map(lambda x: lax.all_gather(x, self.axes, tiled=True), (at, values))
    return self._put(table, at, values)


def transport(layout: Layout) -> Ring:
  """What carries the texts of a layout between devices; called on each device, inside a shard_map.

  impl must be filled in. A "dense" loss gets `Gather`, for the few values that it exchanges.
  """
  kind = Ring if layout.impl == "ring" else Gather
  return kind(layout.axes, layout.devices, layout.tile, layout.slices)


def differentiable(program, layout: Layout):
  """loss(zimg, ztxt, scalars, weights, labels, running) → float32 scalar with gradients in the
  first three. Global view.

  program(transport, batch, scalars, grad) → (loss, grads), per device: the loss of all devices,
  and, if grad, d loss / d (zimg, ztxt, scalars) in float32, else None. layout: its impl and tile
  are filled in. The program gets embeddings in its dtype; the gradients come out in the dtype of
  what was given. With running (siglax/losses/running.py), which is None for a loss that remembers
  nothing, both give (loss, rows to store) in place of the loss.
  """

  def run(grad, zimg, ztxt, *rest):
    args = layout.operand(zimg), layout.operand(ztxt), *rest

    def per_device(zimg, ztxt, scalars, weights, labels, running):
      return program(transport(layout), Batch(zimg, ztxt, weights, labels, running), scalars, grad)

    if layout.mesh is None:
      return per_device(*args)
    rows, whole = P(layout.axes), P()
    specs = (rows, rows, whole, rows, rows, rows)
    value = whole if args[-1] is None else (whole, rows)
    out = (value, (rows, rows, whole) if grad else None)
    return jax.shard_map(per_device, mesh=layout.mesh, in_specs=specs, out_specs=out)(*args)

  @jax.custom_vjp
  def loss(zimg, ztxt, scalars, weights, labels, running):
    return run(False, zimg, ztxt, scalars, weights, labels, running)[0]

  def forward(*args):
    value, grads = run(True, *args)
    dtypes = jax.tree.map(lambda x: jnp.zeros((), x.dtype), args[:3])
    return value, (grads, dtypes)

  def backward(residuals, g):
    grads, dtypes = residuals
    g, *_ = jax.tree.leaves(g)  # the rows to store have no gradient
    of_first = jax.tree.map(lambda x, like: (g * x).astype(like.dtype), grads, dtypes)
    return *of_first, None, None, None

  loss.defvjp(forward, backward)
  return loss
