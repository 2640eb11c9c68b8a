"""Examples of several parts, such as files, numbered from the first part's to the last one's."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


class Numbering:
  """sizes: int [parts], the examples of each. starts: int64 [parts + 1], the number of each part's
  first example, and that of all.
  """

  def __init__(self, sizes):
    self.starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])

  def __len__(self) -> int:
    return int(self.starts[-1])

  def find(self, i: int) -> tuple[int, int]:
    """(part, place in it) of example i; IndexError where there is none."""
    if not 0 <= i < len(self):
      raise IndexError(f"example {i} of {len(self)}")
    part = int(np.searchsorted(self.starts, i, "right")) - 1
    return part, i - int(self.starts[part])

  def parts(self, numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(part, which of the numbers are in it, their places in it) of each part that has some.

    numbers: int64 [n], of examples that there are. The last two are int64 [those in the part].
    """
    part_of = np.searchsorted(self.starts, numbers, "right") - 1
    for part in np.unique(part_of).tolist():
      which = np.flatnonzero(part_of == part)
      yield part, which, numbers[which] - self.starts[part]
