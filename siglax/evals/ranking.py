"""Where the right answer comes in a ranking by similarity: what every evaluation here counts.

Shapes: Q queries and N items, of width d, on D devices; a step ranks q queries on each device
against a tile of t items: [q·D, t] similarities.
"""

from __future__ import annotations

import collections
import functools
import json

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from siglax.devices import distributed
from siglax.devices import mesh as mesh_lib

# Similarities in a tile on a device: 64 MiB in float32, whatever the number of examples.
MAX_SIMILARITIES = 2**24
# Queries on a device at a time. The more there are, the less often the items are sent.
MAX_QUERIES = 2**13
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
  mesh = mesh_lib.make()
  q, t = shape(len(queries), len(items), mesh.size)
  run, found = _programs(mesh), []
  for start in range(0, len(queries), q * mesh.size):
    block = slice(start, start + q * mesh.size)
    found.append(_rank_block(run, q, t, queries[block], query_owner[block], items, item_owner))
  return np.concatenate(found)


def shape(Q: int, N: int, devices: int) -> tuple[int, int]:
  """(queries on a device at a time, items of a tile, a multiple of the devices)."""
  q = min(-(-Q // devices), MAX_QUERIES, MAX_SIMILARITIES)
  t = min(N, MAX_SIMILARITIES // q)
  return q, -(-t // devices) * devices


def _rank_block(run, q, t, queries, query_owner, items, item_owner) -> np.ndarray:
  """Ranks of queries that fit the devices together."""
  Q = q * run.mesh.size
  z, owner = run.put(_padded(queries, Q), _padded(query_owner, Q))
  best, first, ahead = run.put(
    np.full(Q, -np.inf, np.float32), np.full(Q, NOT_FOUND, np.int32), np.zeros(Q, np.int32)
  )
  sent = collections.deque()

  def tile(start):
    """What the programs take of a tile."""
    part = slice(start, start + t)
    here = run.put(_padded(items[part], t), _padded(item_owner[part], t))
    return run.similarity(z, here[0]), owner, here[1], *run.put_whole(start, len(items))

  def wait(x):
    sent.append(x)
    if len(sent) > TILES_AHEAD:
      sent.popleft().block_until_ready()
    return x

  starts, owners = range(0, len(items), t), np.unique(query_owner)
  for start in starts:
    if np.isin(item_owner[start : start + t], owners).any():
      best, first = run.best(*tile(start), best, first)
      wait(first)
  for start in starts:
    ahead = wait(run.ahead(*tile(start), best, first, ahead))
  return jax.device_get(run.gather(ahead).addressable_data(0))[: len(queries)]


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
    of_tile = (tiles, rows, rows, whole, whole)
    self.best = jax.jit(_best, in_shardings=(*of_tile, rows, rows), out_shardings=(rows, rows))
    self.ahead = jax.jit(_ahead, in_shardings=(*of_tile, rows, rows, rows), out_shardings=rows)
    self.gather = jax.jit(lambda x: x, out_shardings=whole)

  def put(self, *arrays):
    """Arrays that all processes have → rows over all devices."""
    return [self._put(x, self._rows) for x in arrays]

  def put_whole(self, *numbers):
    return [self._put(np.int32(x), self._whole) for x in numbers]

  def _put(self, x, sharding):
    # jax.device_put would compare the arrays of all processes first.
    held = sharding.addressable_devices_indices_map(x.shape)
    shards = jax.device_put([x[part] for part in held.values()], list(held))
    return jax.make_array_from_single_device_arrays(x.shape, sharding, shards)


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
  return ahead_q + jnp.sum(before_qt, axis=1, dtype=jnp.int32)


def _index(owner_t, start):
  return start + jnp.arange(owner_t.size, dtype=jnp.int32)


def embed_images(examples, indices, embedder) -> tuple[np.ndarray, list[dict]]:
  """Embeddings [n, d] of the images at these indices, and the rest of each example (captions,
  label). Global view: all processes call it together.

  Each process reads the examples whose images it embeds, and the processes tell each other the
  rest.
  """
  rest = {}

  def image(k):
    rest[k] = dict(examples[indices[k]])
    return rest[k].pop("image")

  zimg = embedder.images(image, len(indices))
  return zimg, _of_all(rest, len(indices))


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
