"""The elements of a run: number k → a row of the training batches, one by one or many at once."""

from __future__ import annotations

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
    indices = order.of_sources(config, sources)
    # At the same place behind the indices as the loaders, and so of the same random numbers.
    self._numbered = [part.random_map(_numbered) for part in indices]
    parts = [part.random_map(loader) for part, loader in zip(indices, loaders)]
    self._elements = order.mixed(config, sources, parts)

  def __getitem__(self, k: int) -> dict:
    return self._elements[k]

  def rows(self, first: int, count: int) -> dict[str, np.ndarray] | None:
    """Elements first … first + count − 1 as arrays [count, …], the same as one by one. None where a
    source cannot read several at once, or one of these is broken: then [k] makes them.
    """
    if not all(loader.reads_rows for loader in self._loaders):
      return None
    numbers = [self._mix[k] for k in range(first, first + count)]
    try:
      parts = []
      for source in sorted({source for source, _ in numbers}):
        which = [row for row, (of, _) in enumerate(numbers) if of == source]
        parts.append((which, self._rows(source, [numbers[row][1] for row in which])))
    except Exception:  # whatever a source raises of a row that is broken
      return None
    if len(parts) == 1:
      return parts[0][1]
    made = {name: np.empty((count, *x.shape[1:]), x.dtype) for name, x in parts[0][1].items()}
    for which, found in parts:
      for name, array in made.items():
        array[which] = found[name]
    return made

  def _rows(self, source: int, places: list[int]) -> dict[str, np.ndarray]:
    """Of one source, the elements at these places of its order."""
    numbered = self._numbered[source]
    return self._loaders[source].rows(*zip(*(numbered[place] for place in places)))


def _numbered(index, rng: np.random.Generator) -> tuple[int, float]:
  return int(index), rng.random()
