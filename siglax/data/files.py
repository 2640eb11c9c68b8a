"""Files of arrays and of Parquet rows, checked before they are read."""

from __future__ import annotations

from collections.abc import Iterator
import hashlib
import logging
import math
import os
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from siglax.config import values
from siglax.data import remote
from siglax.data import storage
from siglax.devices import disk
from siglax.devices import errors

# Parquet data larger than this is mapped from disk instead of held in memory.
MEMORY_BYTES = 4 * 2**30
# Rows read at a time: bounds what is held besides the data itself.
READ_ROWS = 1024
# A file may unpack to this many times its own size: floats and pictures hardly shrink, a bomb by a
# thousand.
MAX_UNPACKED = 16
# A Parquet file may always unpack to this many bytes: one that repeats a few rows is small on disk.
SMALL_BYTES = 2**27
logger = logging.getLogger("siglax")


def size(file: str) -> int:
  """Bytes of a file; ValueError when it has none, or cannot be looked at."""
  try:
    found = storage.size(file)
  except ValueError as e:
    raise ValueError(f"path={e}") from None
  if not found:
    raise ValueError(f"path={file!r} is empty (0 bytes)")
  return found


def npz_headers(file, prefix: str = "") -> tuple[str, dict[str, tuple[tuple[int, ...], np.dtype]]]:
  """(prefix, {name: (shape, dtype)}) of the arrays in an .npz, before any is read.

  prefix: only arrays whose names start with it are listed, and without it. Where no name does, all
  are listed, and the prefix returned is "".
  Raises ValueError for what would unpack to more than MAX_UNPACKED times the file's size, for an
  array that states another size than its member has, and for one of objects: a pickle, which is
  never read. A file that is no zip, or cut, raises what zipfile does.
  """
  with zipfile.ZipFile(file) as z:
    members = [m for m in z.infolist() if m.filename.endswith(".npy")]
    unpacked, limit = sum(m.file_size for m in members), MAX_UNPACKED * os.path.getsize(file)
    if unpacked > limit:
      raise ValueError(f"it unpacks to {unpacked} bytes, more than {MAX_UNPACKED} times its size")
    prefix, headers = prefix if any(m.filename.startswith(prefix) for m in members) else "", {}
    for member in members:
      if member.filename.startswith(prefix):
        name = member.filename.removeprefix(prefix).removesuffix(".npy")
        with z.open(member) as f:
          headers[name] = _npy_header(f, name, member.file_size)
    return prefix, headers


def _npy_header(f, name, size: int):
  try:
    version = np.lib.format.read_magic(f)
    read_header = {
      (1, 0): np.lib.format.read_array_header_1_0,
      (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    shape, _, dtype = read_header(f)
    stated, there = math.prod(shape) * dtype.itemsize, size - f.tell()
  except (
    ValueError,
    LookupError,
    TypeError,
    SyntaxError,
    RecursionError,
  ) as e:  # what a parser of Python's literals raises
    raise ValueError(f"{name} is no array: {values.one_line(e)}") from None
  if dtype.hasobject:
    raise ValueError(f"{name} is a pickle, which is never read; save it as an array of numbers")
  if stated != there:
    raise ValueError(f"{name} declares {list(shape)} of {dtype}, {stated} bytes, and has {there}")
  return tuple(shape), dtype


def open_parquet(file: str) -> pq.ParquetFile:
  """A Parquet file whose pages are compared with their checksums, where it has them."""
  bytes_there, source = size(file), file
  if storage.is_url(file):
    source = remote.File(file)
  else:
    try:
      storage.attempt(file, lambda: open(file, "rb").close())
    except ValueError as e:
      raise ValueError(f"path={e}") from None
  try:
    opened = pq.ParquetFile(source, page_checksum_verification=True)
    opened.schema_arrow  # made of the footer, which may contradict itself
    return opened
  except (storage.Unreachable, MemoryError):  # of Arrow's, too
    raise
  except (pa.ArrowException, OSError) as e:
    reason = f"is not a Parquet file, or is cut short: {values.one_line(e).rstrip('.')}"
    if not file.endswith(".parquet"):
      reason += "; if it is of another kind, name its source, as in csv:path=PATH (docs/data.md)"
    raise ValueError(f"path={file!r} ({bytes_there} bytes) {reason}") from None


class Columns:
  """Columns to read of Parquet files ({path: ParquetFile}), the same for all, as `schema`."""

  def __init__(self, schema: pa.Schema):
    self.schema = schema

  def paths(self, file: pq.ParquetFile) -> list[str]:
    """Names to ask Parquet for."""
    return self.schema.names

  def convert(self, batch: pa.RecordBatch) -> pa.RecordBatch:
    """Rows as they are read, in self.schema."""
    return batch.cast(self.schema)

  def bytes(self, files) -> int:
    """Uncompressed size of what `batches` reads."""
    return sum(
      self.group_bytes(file, group)
      for file in files.values()
      for group in range(file.num_row_groups)
    )

  def group_bytes(self, file: pq.ParquetFile, group: int) -> int:
    """Uncompressed size of what is read of a row group, as the file states it."""
    wanted, stated = tuple(f"{path}." for path in self.paths(file)), file.metadata.row_group(group)
    columns = map(stated.column, range(stated.num_columns))
    return sum(
      c.total_uncompressed_size for c in columns if f"{c.path_in_schema}.".startswith(wanted)
    )

  def batches(self, files) -> Iterator[pa.RecordBatch]:
    """The rows of all files in self.schema."""
    return (batch for _, batch in self.numbered_batches(files))

  def numbered_batches(
    self, files, skip_damaged: bool = False, fill: bool = False
  ) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(number of the row group among those of all files, rows) of all files.

    skip_damaged: of a damaged row group the rows before the damage are read, with a warning;
    otherwise DamagedGroup with the file and the offset in it. fill: rows of nulls take the place of
    those that are lost.
    """
    number = 0
    for path, file in files.items():
      _check_unpacked(path, self.bytes({path: file}), _limit(path))
      unpacked = 0  # counted too: the metadata understates columns with dictionaries
      for group in range(file.num_row_groups):
        read = 0
        try:
          for batch in self.of_group(path, file, group):
            read += batch.num_rows
            unpacked += batch.nbytes
            _check_unpacked(path, unpacked, _limit(path))
            yield number, batch
        except DamagedGroup as e:
          if not skip_damaged:
            raise
          lost = file.metadata.row_group(group).num_rows - read
          logger.warning("%s; %d of its rows are left out", e, lost)
          if fill:
            nulls = [pa.nulls(lost, kind) for kind in self.schema.types]
            yield number, pa.record_batch(nulls, schema=self.schema)
        number += 1

  def of_group(self, path, file: pq.ParquetFile, group: int) -> Iterator[pa.RecordBatch]:
    """The rows of one row group. DamagedGroup says where it is damaged."""
    try:
      for batch in file.iter_batches(READ_ROWS, row_groups=[group], columns=self.paths(file)):
        yield self.convert(batch)
    except (storage.Unreachable, MemoryError):
      raise
    except (pa.ArrowException, OSError) as e:
      if errors.is_passing(e):
        raise storage.Unreachable(f"{path!r}: {values.one_line(e)}") from None
      columns = file.metadata.row_group(group)
      start = min(_start(columns.column(i)) for i in range(columns.num_columns))
      raise DamagedGroup(
        f"path={path!r} is damaged in row group {group}, which begins at byte {start}: "
        f"{values.one_line(e)}"
      ) from None


class DamagedGroup(ValueError):
  """A row group that cannot be read: it says where it is."""


def _start(column) -> int:
  """The first byte of a row group's column."""
  pages = column.data_page_offset, column.dictionary_page_offset
  return min(page for page in pages if page is not None)


def _limit(path) -> int:
  return max(SMALL_BYTES, MAX_UNPACKED * size(path))


def _check_unpacked(path, unpacked: int, limit: int):
  if unpacked > limit:
    raise ValueError(
      f"path={path!r} ({size(path)} bytes) unpacks to {unpacked} bytes or more, {limit} are "
      "allowed; write it again with less "
      "compression if it is sound"
    )


def read(files, columns: Columns) -> pa.Table:
  """The columns of all files, decompressed: in memory, or mapped from disk where they are more than
  MEMORY_BYTES.

  Row groups are units of compression, thousands of rows each: too coarse to read for one random
  row.
  """
  if columns.bytes(files) <= MEMORY_BYTES:
    return pa.Table.from_batches(columns.batches(files), columns.schema)
  return mapped(files, columns)


def mapped(files, columns: Columns, skip_damaged: bool = False) -> pa.Table:
  """The rows as an uncompressed Arrow file in the user's cache, written once, for all processes of
  the machine. skip_damaged: rows of nulls take the place of those that damage has cost.
  """
  needed = columns.bytes(files)
  if (folder := storage.cache_folder()) is None:
    raise ValueError(
      f"path: rows of {needed / 2**30:.1f} GB need a cache folder, and there is no home; set "
      "XDG_CACHE_HOME"
    )
  folder.mkdir(parents=True, exist_ok=True)
  # One with gaps is none that another run, which does not allow them, may take.
  cache = folder / f"{_fingerprint(files, columns)}{'-skip' * skip_damaged}.arrow"
  if not cache.exists():
    logger.warning(
      "writing %.1f GB of decompressed rows to %s, once; XDG_CACHE_HOME moves it",
      needed / 2**30,
      cache,
    )
    # Whole or not at all, also when several processes write it.
    with disk.replacing(cache) as temporary, pa.OSFile(str(temporary), "wb") as out:
      with pa.ipc.new_file(out, columns.schema) as writer:
        for _, batch in columns.numbered_batches(files, skip_damaged, fill=True):
          writer.write_batch(batch)
  return pa.ipc.open_file(pa.memory_map(str(cache))).read_all()


def _fingerprint(files, columns: Columns) -> str:
  """Names the content: which files, their sizes and times, and the columns read."""
  stats = [(storage.absolute(path), *storage.stamp(path)) for path in files]
  paths = [columns.paths(file) for file in files.values()]
  return hashlib.sha256(repr((stats, paths, columns.schema.to_string())).encode()).hexdigest()[:24]
