"""Rows of Parquet files by number: in memory, a few row groups at a time, or mapped from disk.

A row group is what Parquet compresses, thousands of rows: the least that can be read.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
import contextlib
import logging
import threading

import numpy as np
import pyarrow as pa

from siglax.data import files as files_lib
from siglax.data.numbering import Numbering

ADVICE = "; mend it, or set skip_damaged_shards=True to use the other rows"
logger = logging.getLogger("siglax")


class _Whole:
  """All rows in one table."""

  most_open = None
  _table: pa.Table

  def __len__(self) -> int:
    return self._table.num_rows

  def __getitem__(self, i: int) -> dict:
    return _row(self._table, i)

  def read(self, columns: files_lib.Columns) -> Iterator[dict | None]:
    """The rows, of some of the columns; None for one that cannot be read."""
    for batch in self._table.select(columns.schema.names).to_batches(files_lib.READ_ROWS):
      yield from batch.to_pylist()


class InMemory(_Whole):
  """All rows, read at the start. sizes: int64 [row groups], the rows read of each.

  skip_damaged: what cannot be read of a row group is left out, with a warning; otherwise it is a
  ValueError.
  """

  def __init__(self, files: dict, columns: files_lib.Columns, skip_damaged: bool = False):
    self.sizes, batches = np.zeros_like(_sizes(files)), []
    with _advice():
      for group, batch in columns.numbered_batches(files, skip_damaged):
        batches.append(batch)
        self.sizes[group] += batch.num_rows
    self._table = pa.Table.from_batches(batches, columns.schema)
    self.held_bytes = self._table.nbytes


class Mapped(_Whole):
  """All rows, decompressed once into a file of the cache folder, and mapped from there.

  skip_damaged: what cannot be read of a row group is rows without a picture, which are broken
  examples, with a warning; otherwise it is a ValueError.
  """

  held_bytes = 0  # the pages belong to all processes

  def __init__(self, files: dict, columns: files_lib.Columns, skip_damaged: bool = False):
    self.sizes = _sizes(files)
    with _advice():
      self._table = files_lib.mapped(files, columns, skip_damaged)
    if skip_damaged and (lost := self._table.column("image").null_count):
      logger.warning("path: %d rows have no picture; those of damaged row groups are of them", lost)


class OnDemand:
  """Rows whose row group is read when one of them is asked for.

  Those that were used last are held decompressed, up to files.MEMORY_BYTES. most_open: how many of
  the largest fit. Safe from many threads: of several that ask for a row group, one reads it.

  A row that damage has cost raises files.DamagedGroup. skip_damaged: it raises ValueError, as a
  broken example does, and a warning tells once how many there are.
  """

  def __init__(self, files: dict, columns: files_lib.Columns, skip_damaged: bool = False):
    self._columns, self._files, self._skip = columns, list(files), skip_damaged
    self._told: set[int] = set()
    self.sizes = _sizes(files)
    self._rows = Numbering(self.sizes)
    self._groups = Numbering([file.num_row_groups for file in files.values()])
    largest = max(columns.group_bytes(file, g) for file in files.values() for g in _groups(file))
    self.most_open = max(1, files_lib.MEMORY_BYTES // max(largest, 1))
    self.held_bytes = files_lib.MEMORY_BYTES
    self._lock = threading.Lock()
    self._held: collections.OrderedDict[int, _Held] = collections.OrderedDict()

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, i: int) -> dict:
    group, row = self._rows.find(i)
    held = self._group(group)
    if row < held.table.num_rows:
      return _row(held.table, row)
    raise ValueError(held.damage) if self._skip else files_lib.DamagedGroup(held.damage)

  def read(self, columns: files_lib.Columns) -> Iterator[dict | None]:
    """As of _Whole, without what the other columns hold."""
    for group, size in enumerate(self.sizes.tolist()):
      file, place = self._groups.find(group)
      path, read = self._files[file], 0
      try:
        for batch in columns.of_group(path, files_lib.open_parquet(path), place):
          yield from batch.to_pylist()
          read += batch.num_rows
      except ValueError as e:
        if not self._skip:
          raise files_lib.DamagedGroup(f"{e}{ADVICE}") from None
      yield from [None] * (size - read)

  def _group(self, group: int) -> _Held:
    with self._lock:
      held = self._held.setdefault(group, _Held())
      self._held.move_to_end(group)
    with held.lock:
      if held.table is None:
        self._read(group, held)
        self._make_room()
    return held

  def _read(self, number: int, held: _Held):
    file, group = self._groups.find(number)
    path, batches = self._files[file], []
    try:
      opened = files_lib.open_parquet(path)
      batches.extend(self._columns.of_group(path, opened, group))
    except ValueError as e:  # a file that is gone by now, too
      held.damage = str(e) if self._skip else f"{e}{ADVICE}"
      if self._skip and number not in self._told:
        self._told.add(number)
        lost = int(self.sizes[number]) - sum(batch.num_rows for batch in batches)
        logger.warning("%s; %d of its rows are left out", e, lost)
    held.table = pa.Table.from_batches(batches, self._columns.schema)

  def _make_room(self):
    with self._lock:
      held = sum(h.table.nbytes for h in self._held.values() if h.table is not None)
      for group in list(self._held)[:-1]:
        if held <= files_lib.MEMORY_BYTES:
          return
        # One that is being read by another thread has no table, and is that thread's.
        if (table := self._held[group].table) is not None:
          held -= table.nbytes
          del self._held[group]


class _Held:
  """A row group in memory, and why it has fewer rows than it should."""

  def __init__(self):
    self.lock = threading.Lock()
    self.table: pa.Table | None = None
    self.damage: str | None = None


@contextlib.contextmanager
def _advice():
  """Says of a damaged row group what can be done."""
  try:
    yield
  except files_lib.DamagedGroup as e:
    raise files_lib.DamagedGroup(f"{e}{ADVICE}") from None


def _groups(file) -> range:
  return range(file.num_row_groups)


def _sizes(files: dict) -> np.ndarray:
  """int64, the rows of each row group of all files."""
  rows = [file.metadata.row_group(g).num_rows for file in files.values() for g in _groups(file)]
  return np.array(rows, np.int64)


def _row(table: pa.Table, i: int) -> dict:
  return {name: table.column(name)[i].as_py() for name in table.column_names}
