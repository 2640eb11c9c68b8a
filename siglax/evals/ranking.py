"""Where the right answer comes in a ranking by similarity: what every evaluation here counts.

Shapes: Q queries and N items, of width d, on D devices; a step ranks q queries on each device
against a tile of t items: [q·D, t] similarities.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from collections.abc import Iterator
import functools
import json

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from siglax.data import prepared
from siglax.devices import distributed
from siglax.devices import mesh as mesh_lib

# Similarities in a tile on a device: 64 MiB in float32, whatever the number of examples.
MAX_SIMILARITIES = 2**24
# Queries on a device at a time. The more there are, the less often the items are sent.
MAX_QUERIES = 2**13
# The same for a CPU. Its tile of 4 MiB stays in the cache, where a pass takes a third of the time.
CPU_SIMILARITIES, CPU_QUERIES = 2**20, 2**11
# Tiles that are sent to the devices before the oldest of them is done.
TILES_AHEAD = 2
# Examples that a task's check looks at.
LOOKED_AT = 32
# Examples whose captions and labels the processes tell each other at a time.
TOLD_AT_ONCE = 2**14
NOT_FOUND = np.iinfo(np.int32).max


def ranks(
  queries: np.ndarray, items: np.ndarray, query_owner: np.ndarray, item_owner: np.ndarray
) -> np.ndarray:
  """The place, from 0, of each query's best own item when all items are sorted by similarity to the
  query. Global view: all processes call it together, with the same arrays.

  queries [Q, d], items [N, d]: float32; query_owner [Q], item_owner [N]: ints; an item is a query's
  own where they are equal, and each query needs at least one. Returns int32 [Q]. Equal similarities
  are ordered by lowest index, as by a stable sort, so a model whose embeddings are all equal scores
  chance. NaN counts as −∞.
  The queries are split over all devices of all processes, and the items pass by in tiles: beside
  its arguments and its result, what this holds on a host or a device does not grow with Q or N.
  """
  run, found = _programs(mesh_lib.make()), []
  for start, tiles in _blocks(run, queries, items, query_owner, item_owner):
    none = np.full(tiles.Q, -np.inf, np.float32), np.full(tiles.Q, NOT_FOUND, np.int32)
    best = tiles.reduce(run.best, run.put(*none), own=True)
    (ahead,) = tiles.reduce(run.ahead, run.put(np.zeros(tiles.Q, np.int32)), best)
    found.append(run.fetch(ahead)[: len(queries) - start])
  return np.concatenate(found)


def reduced(update: Callable, zeros: Callable, queries, items, query_owner, item_owner, *numbers):
  """(number of the first query, what became of it) of each block of queries that fit the devices
  together, after all items have passed by in tiles. Global view: all processes call it together.

  The arguments are those of `ranks`, but a query needs no own item. update: (similarity_qt,
  own_qt, index_t, there_t, numbers, *state) → the state with this tile, traceable: own_qt says
  which items are the query's own, index_t numbers them, there_t is False for padding. A function
  of a module, so that it compiles once. zeros: how many queries → the state before, arrays with a
  row a query. numbers: float32 scalars for update.
  """
  run = _programs(mesh_lib.make())
  program, numbers = run.reducing(update), np.array(numbers, np.float32)
  for start, tiles in _blocks(run, queries, items, query_owner, item_owner):
    state = tiles.reduce(program, run.put(*zeros(tiles.Q)), (run.put_one(numbers),))
    yield start, [run.fetch(x)[: len(queries) - start] for x in state]


def nearest(queries: np.ndarray, items: np.ndarray, k: int) -> np.ndarray:
  """The k items nearest to each query, the nearest first: int32 [Q, k] of queries [Q, d] and items
  [N, d], k ≤ N. Equal similarities are ordered by lowest index. Global view, as `ranks`.
  """

  def zeros(Q):
    return np.full((Q, k), -np.inf, np.float32), np.full((Q, k), NOT_FOUND, np.int32)

  nobody = np.zeros(len(queries), np.int32), np.zeros(len(items), np.int32)
  blocks = reduced(_nearer, zeros, queries, items, *nobody)
  return np.concatenate([index for _, (_, index) in blocks])


def _nearer(similarity_qt, own_qt, index_t, there_t, numbers, best_qk, index_qk):
  """The nearest k of those before and of this tile; in a tie those before come first."""
  del own_qt, numbers
  # What is not there is further away than anything, NaN included.
  lowest = jnp.finfo(similarity_qt.dtype).min
  here_qt = jnp.where(there_t[None, :], jnp.maximum(similarity_qt, lowest), -jnp.inf)
  best, at = jax.lax.top_k(jnp.concatenate([best_qk, here_qt], axis=1), best_qk.shape[1])
  index_qt = jnp.broadcast_to(index_t[None, :], similarity_qt.shape)
  both = jnp.concatenate([index_qk, index_qt], axis=1)
  return best, jnp.take_along_axis(both, at, axis=1)


def shape(Q: int, N: int, devices: int) -> tuple[int, int]:
  """(queries on a device at a time, items of a tile, a multiple of the devices)."""
  similarities, most = MAX_SIMILARITIES, MAX_QUERIES
  if jax.default_backend() == "cpu":
    similarities, most = min(similarities, CPU_SIMILARITIES), CPU_QUERIES
  q = min(-(-Q // devices), most, similarities)
  t = min(N, similarities // q)
  return q, -(-t // devices) * devices


def _blocks(run, queries, items, query_owner, item_owner) -> Iterator[tuple[int, _Tiles]]:
  """(number of the first query, the tiles that pass it by) of each block of queries."""
  q, t = shape(len(queries), len(items), run.mesh.size)
  for start in range(0, len(queries), Q := q * run.mesh.size):
    block = slice(start, start + Q)
    yield start, _Tiles(run, Q, t, queries[block], items, query_owner[block], item_owner)


class _Tiles:
  """The items in tiles of t, for Q queries, some of them padding, that fit the devices together."""

  def __init__(self, run, Q, t, queries, items, query_owner, item_owner):
    self.Q, self._run, self._t = Q, run, t
    self._items, self._item_owner = items, item_owner
    self._owners = np.unique(query_owner)
    self._queries, self._owner = run.put(_padded(queries, Q), _padded(query_owner, Q))

  def reduce(self, program, state, before=(), own=False):
    """The state after each tile has changed it. own: only tiles with an item of a query's own."""
    sent = collections.deque()
    for start in range(0, len(self._items), self._t):
      part = slice(start, start + self._t)
      if own and not np.isin(self._item_owner[part], self._owners).any():
        continue
      here = self._run.put(*(_padded(x[part], self._t) for x in (self._items, self._item_owner)))
      similarity = self._run.similarity(self._queries, here[0])
      numbers = [self._run.put_one(np.int32(x)) for x in (start, len(self._items))]
      state = program(similarity, self._owner, here[1], *numbers, *before, *state)
      sent.append(state[0])
      if len(sent) > TILES_AHEAD:
        sent.popleft().block_until_ready()
    return state


def _padded(x: np.ndarray, rows: int) -> np.ndarray:
  return np.pad(x, [(0, rows - len(x))] + [(0, 0)] * (x.ndim - 1), mode="edge")


class _Programs:
  """What runs on the devices of a mesh. Similarities come from one program, so that those of equal
  items have equal bits in both passes.
  """

  def __init__(self, mesh):
    self.mesh, rows, whole = mesh, mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)
    self._rows, self._whole = rows, whole
    tiles = NamedSharding(mesh, P(mesh_lib.BATCH_AXES, None))
    self.similarity = jax.jit(
      functools.partial(_similarity, whole=whole), in_shardings=(rows, rows), out_shardings=tiles
    )
    self.best, self.ahead = (jax.jit(f, out_shardings=rows) for f in (_best, _ahead))
    self.reducing = functools.cache(self._reducing)
    self._gather = jax.jit(lambda x: x, out_shardings=whole)

  def _reducing(self, update):
    """The program of `reduced` for an update."""

    def program(similarity_qt, owner_q, owner_t, start, N, numbers, *state):
      own_qt, index_t = owner_q[:, None] == owner_t[None, :], _index(owner_t, start)
      return update(similarity_qt, own_qt, index_t, index_t < N, numbers, *state)

    return jax.jit(program, out_shardings=self._rows)

  def fetch(self, x) -> np.ndarray:
    """Rows over all devices, on the host."""
    return jax.device_get(self._gather(x).addressable_data(0))

  def put(self, *arrays):
    """Arrays that all processes have → rows over all devices."""
    return [mesh_lib.from_whole(self._rows, x) for x in arrays]

  def put_one(self, x):
    """A number, or an array that each device gets whole."""
    return mesh_lib.from_whole(self._whole, x)


_programs = functools.cache(_Programs)


def _similarity(queries_qd, items_td, *, whole):
  items_td = jax.lax.with_sharding_constraint(items_td, whole)
  similarity_qt = jnp.matmul(queries_qd, items_td.T, precision=jax.lax.Precision.HIGHEST)
  # A comparison with NaN is false, which would put every answer of a diverged model first.
  return jnp.where(jnp.isnan(similarity_qt), -jnp.inf, similarity_qt)


def _best(similarity_qt, owner_q, owner_t, start, N, best_q, first_q):
  """Similarity and index of each query's best own item, this tile of items seen too."""
  own_qt = (owner_q[:, None] == owner_t[None, :]) & (_index(owner_t, start) < N)[None, :]
  here_q = jnp.max(similarity_qt, axis=1, where=own_qt, initial=-jnp.inf)
  at_q = start + jnp.argmax(own_qt & (similarity_qt == here_q[:, None]), axis=1).astype(jnp.int32)
  better_q = jnp.any(own_qt, axis=1) & ((here_q > best_q) | (first_q == NOT_FOUND))
  return jnp.where(better_q, here_q, best_q), jnp.where(better_q, at_q, first_q)


def _ahead(similarity_qt, owner_q, owner_t, start, N, best_q, first_q, ahead_q):
  """How many items come before each query's best own one, with those of this tile."""
  index_t = _index(owner_t, start)[None, :]
  others_qt = (owner_q[:, None] != owner_t[None, :]) & (index_t < N)
  equal_qt = (similarity_qt == best_q[:, None]) & (index_t < first_q[:, None])
  before_qt = others_qt & ((similarity_qt > best_q[:, None]) | equal_qt)
  return (ahead_q + jnp.sum(before_qt, axis=1, dtype=jnp.int32),)


def _index(owner_t, start):
  return start + jnp.arange(owner_t.size, dtype=jnp.int32)


def embed_images(examples, indices, embedder) -> tuple[np.ndarray, list[dict]]:
  """Embeddings [n, d] of the images at these indices, and the rest of each example (captions,
  label). Global view: all processes call it together.

  Each process reads the examples whose images it embeds, and the processes tell each other the
  rest.
  """
  pictures = prepared.OfExamples(examples, indices)
  zimg = embedder.images(pictures, len(indices))
  return zimg, _of_all(pictures.rest, len(indices))


def _of_all(mine: dict[int, dict], count: int) -> list[dict]:
  """What each of `count` examples has beside its image; mine: of those that this process read."""
  if jax.process_count() == 1:
    return [mine[k] for k in range(count)]
  found = [{}] * count
  for start in range(0, count, TOLD_AT_ONCE):
    here = [(k, mine[k]) for k in range(start, min(start + TOLD_AT_ONCE, count)) if k in mine]
    # NumPy's integers are labels.
    for text in distributed.of_all(json.dumps(here, default=int)):
      for k, example in json.loads(text):
        found[k] = example
  return found


def embed_captioned_images(examples, indices, embedder) -> tuple[np.ndarray, list[dict]]:
  """`embed_images` without the images that have no caption."""
  zimg, rest = embed_images(examples, indices, embedder)
  keep = [k for k, example in enumerate(rest) if example["captions"]]
  if not keep:
    raise _no_captions(len(rest))
  if len(keep) == len(rest):
    return zimg, rest
  return zimg[keep], [rest[k] for k in keep]


def check_captions(data, examples: int | None):
  """ValueError when no example has a caption, or the first that has is broken."""
  indices = first(data, examples)
  captioned = next((i for i in indices if data.captions(i)), None)
  if captioned is None:
    raise _no_captions(len(indices))
  data[captioned]  # decodes its image


def _no_captions(count: int) -> ValueError:
  return ValueError(f"none of the {count} examples has a caption; check the fields of data")


def first(data, examples: int | None) -> range:
  """Indices of the first `examples` examples, of all when None."""
  return range(len(data) if examples is None else min(examples, len(data)))
