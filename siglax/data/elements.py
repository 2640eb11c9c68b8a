"""The elements of a run: number k → a row of the training batches, one by one or many at once."""

from __future__ import annotations

from grain.experimental import RngPool
import numpy as np

from siglax.data import order


class Elements:
  """Element k of the run at [k], whichever process or thread asks for it.

  loaders: an `ExampleLoader` for each source of config.data.
  """

  def __init__(self, config, loaders: list):
    sources = [loader.source for loader in loaders]
    self._loaders = loaders
    self._mix = order.Mix(order.shares_of(config, sources))
    self._orders = order.of_sources(config, sources)
    self._random = [RngPool(shuffled.random_seed) for shuffled in self._orders]

  def __getitem__(self, k: int) -> dict:
    source, place = self._mix[k]
    rng = self._random[source].acquire_rng(place)
    try:
      return self._loaders[source](self._orders[source][place], rng)
    finally:
      self._random[source].release_rng(rng)

  def rows(self, first: int, count: int) -> dict[str, np.ndarray] | None:
    """Elements first … first + count − 1 as arrays [count, …], the same as one by one. None where a
    source cannot read several at once, or one of these is broken: then [k] makes them.
    """
    if not all(loader.reads_rows for loader in self._loaders):
      return None
    elements = [self._mix[k] for k in range(first, first + count)]
    try:
      parts = []
      for source in sorted({source for source, _ in elements}):
        which = [row for row, (of, _) in enumerate(elements) if of == source]
        parts.append((which, self._rows(source, [elements[row][1] for row in which])))
      order_of_rows = np.argsort(np.concatenate([which for which, _ in parts]))
      return {
        name: np.concatenate([found[name] for _, found in parts])[order_of_rows]
        for name in parts[0][1]
      }
    except Exception:  # whatever a source raises of a row that is broken
      return None

  def _rows(self, source: int, places: list[int]) -> dict[str, np.ndarray]:
    """Of one source, the elements at these places of its order."""

    def draw(row: int) -> float:
      rng = self._random[source].acquire_rng(places[row])
      number = rng.random()
      self._random[source].release_rng(rng)
      return number

    shuffled = self._orders[source]
    return self._loaders[source].rows([shuffled[place] for place in places], draw)
