"""Files of `siglax embed` searched from end to end, in memory that does not grow with them.

The source `embeddings` (sources/embeddings.py) reads rows of the same files at random, for which it
holds an .npz in memory, and a .parquet up to a size.
Shapes: q queries, n rows of a block, d width of the embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import json
import re
import zipfile

import numpy as np
import pyarrow as pa

from siglax.config import values
from siglax.data import embedding_files
from siglax.data import files as files_lib
from siglax.data import paths
from siglax.data import remote
from siglax.data.numbering import Numbering

# Rows of an .npz and of an .array_record that are held at a time; of .parquet it is what
# files.Columns reads.
BLOCK = 4096


class Index:
  """The rows of files of `siglax embed`, numbered from the first file's to the last one's.

  path: as of the source `embeddings`. description: of the first file. Raises ValueError, beginning
  with "path", for what that source refuses, and for embeddings of texts alone; what reads rows does
  so for a damaged file.
  """

  def __init__(self, path):
    self.path = path
    self._names = paths.find(path, "embeddings")
    self._files = [embedding_files.open_file(remote.copied(n), READERS) for n in self._names]
    self._numbering = Numbering([len(file) for file in self._files])
    self.description = self._files[0].description
    embedding_files.check_same(self._names, self._files)
    if not len(self):
      raise ValueError(f"path={path!r} has no rows")

  def __len__(self) -> int:
    return len(self._numbering)

  def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the first row, embeddings float32 [n, d]) of all rows, in their order."""
    width = self.description["width"]
    for name, file, start in zip(self._names, self._files, self._numbering.starts.tolist()):
      with _damage_named(name):
        for block in file.blocks():
          if block.shape[1:] != (width,):
            raise ValueError(f"it has rows of the shape {list(block.shape[1:])}, not [{width}]")
          yield start, np.asarray(block, np.float32)
          start += len(block)

  def told(self, numbers: Sequence[int]) -> list[dict]:
    """{"captions": [str, …], "key": str or None} of some rows."""
    found = [{} for _ in numbers]
    for file, which, places in self._numbering.parts(np.array(numbers, np.int64)):
      with _damage_named(self._names[file]):
        for i, row in zip(which.tolist(), self._files[file].told(places.tolist())):
          found[i] = {"captions": list(row["captions"]), "key": row.get("key")}
    return found


@contextlib.contextmanager
def _damage_named(name: str) -> Iterator[None]:
  """ValueError that names the file, for whatever the libraries raise of a damaged one."""
  try:
    yield
  except files_lib.DamagedGroup:  # names it
    raise
  except Exception as e:
    raise ValueError(f"path={name!r} is damaged: {values.one_line(e)}") from e


def nearest(index: Index, queries: np.ndarray, top: int) -> list[list[tuple[float, int]]]:
  """(cosine, number) of the `top` rows nearest to each query [q, d], the best first; of equal ones
  the earlier first. It is what a sort of all cosines gives.

  queries: unit rows float32. ValueError for an embedding that is not finite.
  """
  best = [(np.empty(0, np.float32), np.empty(0, np.int64)) for _ in queries]
  for start, block in index.blocks():
    with np.errstate(invalid="ignore"):
      cosines = queries @ block.T
    if not np.isfinite(cosines).all():
      row = start + int(np.flatnonzero(~np.isfinite(cosines).all(axis=0))[0])
      raise ValueError(f"path={index.path!r}: row {row} is not finite; run siglax embed again")
    best = [_merged(kept, row, start, top) for kept, row in zip(best, cosines)]
  return [list(zip(cosines.tolist(), rows.tolist())) for cosines, rows in best]


def _merged(kept: tuple, cosines: np.ndarray, start: int, top: int) -> tuple:
  """The best of those kept and of the rows of a block."""
  values, rows = kept
  # A later row takes the place of an earlier one only if it is nearer.
  able = np.flatnonzero(cosines > values[-1]) if len(values) == top else np.arange(len(cosines))
  if len(able) > top:
    able = able[cosines[able] >= np.partition(cosines[able], -top)[-top]]
  values, rows = np.append(values, cosines[able]), np.append(rows, start + able)
  order = np.argsort(-values, kind="stable")[:top]
  return values[order], rows[order]


class _Npz:
  """The members of an .npz as streams."""

  def __init__(self, file: str):
    self._file = file
    _, headers = files_lib.npz_headers(file)
    about = json.loads(self._member(embedding_files.DESCRIPTION))
    self.description = embedding_files.described(about)
    self._shape, self._dtype = headers["image_embedding"]
    if len(self._shape) != 2 or self._dtype.kind not in "fiu":
      raise ValueError(f"image_embedding is {self._dtype}{list(self._shape)}; it must be [N, d]")

  def __len__(self):
    return self._shape[0]

  def _member(self, name: str) -> bytes:
    with np.load(self._file, allow_pickle=False) as arrays:
      return arrays[name].tobytes()

  def blocks(self):
    (rows, width), name = self._shape, "image_embedding.npy"
    with zipfile.ZipFile(self._file) as z, z.open(name) as f:
      header = f.read(z.getinfo(name).file_size - rows * width * self._dtype.itemsize)
      if b"'fortran_order': True" in header:
        raise ValueError("image_embedding lies column by column; save np.ascontiguousarray of it")
      for start in range(0, rows, BLOCK):
        count = min(BLOCK, rows - start)
        data = f.read(count * width * self._dtype.itemsize)
        yield np.frombuffer(data, self._dtype).reshape(count, width)

  def told(self, places):
    captions, keys = (_elements(self._member(name), places) for name in ("captions", "key"))
    return [{"captions": captions[i], "key": keys[i]} for i in places]


def _elements(data: bytes, places: Sequence[int]) -> dict:
  """Some elements of a JSON list, {place: value}; those before them are not held."""
  text, found, wanted = data.decode(), {}, set(places)
  decode, first, between = json.JSONDecoder().raw_decode, re.compile(r"\s*\["), re.compile(r"\s*,")
  space, at = re.compile(r"\s*"), 0
  for i in range(max(wanted, default=-1) + 1):
    if (there := (between if i else first).match(text, at)) is None:
      raise ValueError(f"its captions or keys end before row {i}")
    at = there.end()
    value, at = decode(text, space.match(text, at).end())
    if i in wanted:
      found[i] = value
  return found


class _Parquet:
  """A .parquet file, a row group at a time."""

  def __init__(self, file: str):
    self._file, self._opened = file, files_lib.open_parquet(file)
    metadata = self._opened.metadata
    about = json.loads((metadata.metadata or {})[embedding_files.DESCRIPTION.encode()])
    self.description = embedding_files.described(about)
    groups = range(metadata.num_row_groups)
    self._groups = Numbering([metadata.row_group(group).num_rows for group in groups])

  def __len__(self):
    return len(self._groups)

  def blocks(self):
    columns = files_lib.Columns(pa.schema([self._opened.schema_arrow.field("image_embedding")]))
    for batch in columns.batches({self._file: self._opened}):
      column = batch.column(0)
      yield column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)

  def told(self, places):
    found = [{} for _ in places]
    for group, which, rows in self._groups.parts(np.array(places, np.int64)):
      table = self._opened.read_row_group(group, columns=["captions", "key"])
      for i, row in zip(which.tolist(), table.take(pa.array(rows)).to_pylist()):
        found[i] = row
    return found


class _ArrayRecord(embedding_files.ArrayRecordReader):
  """An .array_record file, some records at a time."""

  def blocks(self):
    for start in range(0, len(self), BLOCK):
      yield self.rows(np.arange(start, min(start + BLOCK, len(self))))["image_embedding"]

  def told(self, places):
    return [self.row(place) for place in places]


READERS = {".npz": _Npz, ".parquet": _Parquet, ".array_record": _ArrayRecord}
