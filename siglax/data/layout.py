"""The arrays of a batch, and how its rows are written into them."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import math

import numpy as np

# Arrays in one piece of memory begin at multiples of this many bytes, as XLA wants them.
ALIGNMENT = 64


@dataclasses.dataclass(frozen=True)
class Layout:
  """Of the arrays of a batch of `rows`: the shape and type of one row of each.

  A value that is no array and no number, such as a dict, makes an array of objects, whose memory no
  process shares.
  """

  rows: int
  fields: tuple[tuple[str, tuple[int, ...], np.dtype], ...]

  @classmethod
  def of(cls, example: dict, rows: int) -> Layout:
    """That of a batch of examples like this one."""
    fields = ((name, np.shape(value), np.asarray(value).dtype) for name, value in example.items())
    return cls(rows, tuple(fields))

  @property
  def nbytes(self) -> int:
    """Of one piece of memory for all arrays but those of objects; at least 1, as no memory is
    empty.
    """
    return max(1, sum(size for _, _, _, size in self._places()))

  @property
  def objects(self) -> list[str]:
    """The arrays of objects."""
    return [name for name, _, dtype in self.fields if dtype.kind == "O"]

  def arrays(self, memory=None) -> dict[str, np.ndarray]:
    """Arrays of their own, or in a buffer of `nbytes`."""
    if memory is None:
      return {name: np.empty((self.rows, *shape), dtype) for name, shape, dtype in self.fields}
    arrays, offset = {name: np.empty(self.rows, object) for name in self.objects}, 0
    for name, shape, dtype, size in self._places():
      arrays[name] = np.ndarray((self.rows, *shape), dtype, memory, offset)
      offset += size
    return arrays

  def _places(self):
    for name, shape, dtype in self.fields:
      if dtype.kind == "O":
        continue
      size = self.rows * math.prod(shape) * dtype.itemsize
      yield name, shape, dtype, -(-size // ALIGNMENT) * ALIGNMENT


def write(
  elements, number: int, arrays: dict, first: int, last: int, ended: Callable[[], bool]
) -> tuple[int, BaseException] | None:
  """Writes elements[number], elements[number + 1], … into rows first … last − 1 of the arrays.

  Stops at an element that raises, and returns (row, exception); stops as well once `ended()`.
  Elements with a method `rows` (siglax/data/elements.py) may make all of them at once.
  """
  if hasattr(elements, "rows") and (rows := elements.rows(number, last - first)) is not None:
    try:
      _write(rows, arrays, slice(first, last), 1)
    except ValueError as e:
      return first, e
    return None
  for row in range(first, last):
    if ended():
      return None
    try:
      _write(elements[number + row - first], arrays, row)
    except BaseException as e:
      return row, e
  return None


def _write(example, arrays, row: int | slice, axes: int = 0):
  """axes: those of the example's values before the axes of one row."""
  if example.keys() != arrays.keys():
    raise ValueError(f"an example has {sorted(example)}, the first one had {sorted(arrays)}")
  for name, array in arrays.items():
    value = np.asarray(example[name])
    if value.shape[axes:] != array.shape[1:] or value.dtype != array.dtype:
      raise ValueError(
        f"an example's {name} is {value.dtype}{list(value.shape[axes:])}, the first one's was "
        f"{array.dtype}{list(array.shape[1:])}; all must be alike"
      )
    array[row] = example[name] if array.dtype.kind == "O" else value
