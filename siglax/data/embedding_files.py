"""Files of pictures that a frozen image tower has already embedded, as `siglax embed` writes them.

A row is {"image_embedding": [d], "captions": [str, …]}, with "label", "weight" and "key" where the
dataset has them, "text_embeddings": [captions, d] and "image_tokens": [patches, width] where they
were asked for; of texts alone it has no
"image_embedding". Beside the rows a file holds its description, a dict that JSON can hold
(siglax/commands/embed.py). Three formats, by the file's ending:

.npz: arrays of all rows; text_embeddings one after the other, in the order of the captions;
captions, key and the
    description ("siglax") as JSON in UTF-8. label is −1 and weight 1 where there is none.
.parquet: a column each, null where there is none; the description is the file's metadata "siglax".
.array_record: a record is a row in safetensors' format: the arrays as tensors, the rest as JSON in
the metadata "row".
    The last record has no tensors, and the description as the metadata "siglax".
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
import itertools
import json
import os
import pathlib
from typing import Any

from array_record.python import array_record_data_source
from array_record.python import array_record_module
import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy

from siglax.config import values
from siglax.data import files as files_lib

DESCRIPTION = "siglax"
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
SAFETENSORS = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
# Rows of Parquet that are held before they are written.
ROW_GROUP_BYTES = 32 * 2**20
# What the descriptions of all files say.
DESCRIBED = {"digest": str, "width": int, "image": dict, "classnames": (list, type(None))}
# What those of the files of one dataset must share.
SHARED = ("digest", "width", "image", "classnames")


class _TextsAlone(Exception):
  """A file of siglax embed --texts-only."""


def open_file(file: str, readers=None):
  """The reader of one of these files, of READERS or of others by ending. ValueError, beginning with
  "path", for any other.
  """
  ending, readers = pathlib.Path(file).suffix, readers or READERS
  if ending not in readers:
    raise ValueError(f"path={file!r} must end in {', '.join(readers)}")
  size = files_lib.size(file)
  try:
    reader = readers[ending](file)
    for field, kind in DESCRIBED.items():
      if not isinstance(value := reader.description[field], kind):
        raise ValueError(f"its description says {field}={value!r}")
    return reader
  except _TextsAlone:
    raise ValueError(
      f"path={file!r} holds embeddings of texts alone, and none of pictures"
    ) from None
  except Exception as e:  # whatever the libraries raise of bytes that are none of theirs
    reason = values.one_line(e)
    raise ValueError(
      f"path={file!r} ({size} bytes) is no {ending} of siglax embed, or is cut short: {reason}"
    ) from e


def check_same(names: list[str], readers: list):
  """ValueError for files of which some were embedded by another tower or in another way."""
  for name, reader in zip(names, readers):
    for field in SHARED:
      if reader.description[field] != readers[0].description[field]:
        raise ValueError(
          f"path: {names[0]} and {name} differ in their {field}; give them as separate specs"
        )


def described(description: dict) -> dict:
  """The description of a file with embeddings of pictures."""
  if description["digest"] is None:
    raise _TextsAlone
  return description


def _in_columns(rows: list[dict]) -> dict:
  """What `Embeddings.rows` returns, of rows one by one."""
  captions = np.empty(len(rows), object)
  captions[:] = [row["captions"] for row in rows]
  return {
    "image_embedding": np.stack([row["image_embedding"] for row in rows]),
    "captions": captions,
    "label": [row.get("label", -1) for row in rows],
    "weight": [row.get("weight", 1.0) for row in rows],
  }


class NpzReader:
  """All of an .npz file, in memory."""

  def __init__(self, file: str):
    _, headers = files_lib.npz_headers(file)
    with np.load(file, allow_pickle=False) as arrays:
      self.description = described(_from_json(arrays[DESCRIPTION]))
    rows, width = headers["image_embedding"][0]
    for name, shape in (
      ("image_embedding", (rows, width)),
      ("label", (rows,)),
      ("weight", (rows,)),
    ):
      if headers[name][0] != shape or headers[name][1].kind not in "fiu":
        raise ValueError(
          f"{name} is {headers[name][1]}{list(headers[name][0])}; it must be numbers of the shape "
          f"{list(shape)}"
        )
    with np.load(file, allow_pickle=False) as arrays:
      self._embeddings, self._labels, self._weights = (
        arrays[k] for k in ("image_embedding", "label", "weight")
      )
      self._captions = pa.array(_from_json(arrays["captions"]), pa.list_(pa.string()))
      self._keys = pa.array(_from_json(arrays["key"]), pa.string())
    if not len(self._captions) == len(self._keys) == rows:
      raise ValueError(
        f"it has {rows} embeddings, {len(self._captions)} rows of captions and {len(self._keys)} "
        "keys"
      )
    arrays = self._embeddings, self._labels, self._weights, self._captions, self._keys
    self.held_bytes = sum(array.nbytes for array in arrays)

  def __len__(self):
    return len(self._embeddings)

  def row(self, i: int) -> dict:
    row = {
      "image_embedding": self._embeddings[i],
      "captions": self._captions[i].as_py(),
      "key": self._keys[i].as_py(),
      "label": int(self._labels[i]),
      "weight": float(self._weights[i]),
    }
    return {k: v for k, v in row.items() if v is not None and (k != "label" or v >= 0)}

  def rows(self, places: np.ndarray) -> dict:
    captions = np.empty(len(places), object)
    captions[:] = self._captions.take(pa.array(places)).to_pylist()
    return {
      "image_embedding": self._embeddings[places],
      "captions": captions,
      "label": self._labels[places],
      "weight": self._weights[places],
    }


class ParquetReader:
  """The columns of a .parquet file that training needs."""

  def __init__(self, file: str):
    opened = files_lib.open_parquet(file)
    schema = opened.schema_arrow
    self.description = described(json.loads((opened.metadata.metadata or {})[DESCRIPTION.encode()]))
    names = ("image_embedding", "captions", "label", "weight", "key")
    columns = files_lib.Columns(pa.schema([schema.field(name) for name in names]))
    table = files_lib.read({file: opened}, columns)
    self._columns, self._rows = {name: table.column(name) for name in names}, table.num_rows
    # Of a file that is mapped, the pages belong to all processes.
    in_memory = columns.bytes({file: opened}) <= files_lib.MEMORY_BYTES
    self.held_bytes = table.nbytes if in_memory else 0

  def __len__(self):
    return self._rows

  def row(self, i: int) -> dict:
    row = {k: column[i].as_py() for k, column in self._columns.items() if k != "image_embedding"}
    embedding = self._columns["image_embedding"][i].values.to_numpy()
    return {"image_embedding": embedding} | {k: v for k, v in row.items() if v is not None}

  def rows(self, places: np.ndarray) -> dict:
    return _in_columns([self.row(place) for place in places.tolist()])


class ArrayRecordReader:
  """Rows of an .array_record file, read and parsed one at a time."""

  def __init__(self, file: str):
    self._records = array_record_data_source.ArrayRecordDataSource(file)
    _, metadata = parse_record(self._records[len(self._records) - 1])
    self.description = described(json.loads(metadata[DESCRIPTION]))
    self.held_bytes = 8 * len(self._records)

  def __len__(self):
    return len(self._records) - 1

  def row(self, i: int) -> dict:
    return _of_record(self._records[i])

  def rows(self, places: np.ndarray) -> dict:
    return _in_columns(list(map(_of_record, self._records.__getitems__(places.tolist()))))


def _of_record(record: bytes) -> dict:
  arrays, metadata = parse_record(record)
  return {"image_embedding": arrays["image_embedding"], **json.loads(metadata["row"])}


def rows_of(file, count: int) -> Iterator[list[dict]]:
  """All rows of an .array_record file as they were written, `count` at a time."""
  records = array_record_data_source.ArrayRecordDataSource(os.fspath(file))
  for start in range(0, len(records) - 1, count):
    places = range(start, min(start + count, len(records) - 1))
    parsed = map(parse_record, records.__getitems__(list(places)))
    yield [arrays | json.loads(metadata["row"]) for arrays, metadata in parsed]


def parse_record(record: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """(tensors, metadata) of bytes in safetensors' format; its own reader for numpy knows no bfloat16
  and no metadata.
  """
  start = 8 + int.from_bytes(record[:8], "little")
  header, data = json.loads(record[8:start]), memoryview(record)[start:]
  metadata = header.pop("__metadata__", {})
  arrays = {}
  for name, tensor in header.items():
    first, last = tensor["data_offsets"]
    arrays[name] = np.frombuffer(data[first:last], SAFETENSORS[tensor["dtype"]]).reshape(
      tensor["shape"]
    )
  return arrays, metadata


class NpzWriter:
  """Holds all rows until the end."""

  # NumPy has no bfloat16 that a reader without ml_dtypes understands.
  dtypes = (
    "float32",
    "float16",
  )

  def __init__(self, file: pathlib.Path):
    self._file, self._rows = file, []

  def write(self, rows: list[dict]):
    self._rows += rows

  def close(self, description: dict):
    rows, self._rows = self._rows, []
    column = lambda name, none: [row.get(name, none) for row in rows]
    arrays = {
      name: np.stack(column(name, None))
      for name in ("image_embedding", "image_tokens")
      if name in rows[0]
    }
    if "text_embeddings" in rows[0]:
      arrays["text_embeddings"] = np.concatenate(column("text_embeddings", None))
    arrays["label"] = np.array(column("label", -1), np.int64)
    arrays["weight"] = np.array(column("weight", 1), np.float64)
    arrays["captions"], arrays["key"] = (
      _to_json(column("captions", None)),
      _to_json(column("key", None)),
    )
    with self._file.open("wb") as f:  # given a path, numpy would put .npz behind the temporary name
      np.savez(f, **arrays, **{DESCRIPTION: _to_json(description)})


class ParquetWriter:
  """Writes row groups of about ROW_GROUP_BYTES."""

  dtypes = ("float32", "float16")

  def __init__(self, file: pathlib.Path):
    self._file, self._writer, self._held, self._bytes = file, None, [], 0

  def write(self, rows: list[dict]):
    column: Callable[[str], list[Any]] = lambda name: [row.get(name) for row in rows]
    fixed = [name for name in ("image_embedding", "image_tokens") if name in rows[0]]
    arrays = {name: _fixed_lists(np.stack(column(name))) for name in fixed}
    if "text_embeddings" in rows[0]:
      texts = column("text_embeddings")
      ends = pa.array(itertools.accumulate(map(len, texts), initial=0), pa.int32())
      arrays["text_embeddings"] = pa.ListArray.from_arrays(
        ends, _fixed_lists(np.concatenate(texts))
      )
    types = {
      "captions": pa.list_(pa.string()),
      "label": pa.int64(),
      "weight": pa.float64(),
      "key": pa.string(),
    }
    arrays |= {name: pa.array(column(name), kind) for name, kind in types.items()}
    self._held.append(pa.RecordBatch.from_pydict(arrays))
    self._bytes += self._held[-1].nbytes
    if self._bytes >= ROW_GROUP_BYTES:
      self._flush()

  def _flush(self):
    table = pa.Table.from_batches(self._held)
    if self._writer is None:  # embeddings look like noise: no value comes twice
      self._writer = pq.ParquetWriter(
        self._file, table.schema, compression="zstd", use_dictionary=False, write_page_checksum=True
      )
    self._writer.write_table(table, row_group_size=table.num_rows)
    self._held, self._bytes = [], 0

  def close(self, description: dict):
    if self._held:
      self._flush()
    self._writer.add_key_value_metadata({DESCRIPTION: json.dumps(description)})
    self._writer.close()


class ArrayRecordWriter:
  """Writes each row at once."""

  dtypes = tuple(DTYPES)

  def __init__(self, file: pathlib.Path):
    self._writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1,uncompressed")

  def write(self, rows: list[dict]):
    for row in rows:
      arrays = {k: v for k, v in row.items() if isinstance(v, np.ndarray)}
      rest = {k: v for k, v in row.items() if k not in arrays}
      self._record(arrays, {"row": json.dumps(rest)})

  def close(self, description: dict):
    self._record({}, {DESCRIPTION: json.dumps(description)})
    try:
      self._writer.close()
    except RuntimeError as e:
      raise OSError(values.one_line(e)) from e

  def _record(self, arrays, metadata):
    try:
      self._writer.write(safetensors.numpy.save(arrays, metadata))
    except RuntimeError as e:
      raise OSError(values.one_line(e)) from e


READERS = {".npz": NpzReader, ".parquet": ParquetReader, ".array_record": ArrayRecordReader}
WRITERS = {".npz": NpzWriter, ".parquet": ParquetWriter, ".array_record": ArrayRecordWriter}


def _fixed_lists(x: np.ndarray) -> pa.Array:
  """[n, a, b, …] as n fixed-size lists of fixed-size lists."""
  array = pa.array(x.reshape(-1))
  for size in reversed(x.shape[1:]):
    array = pa.FixedSizeListArray.from_arrays(array, size)
  return array


def _to_json(value) -> np.ndarray:
  return np.frombuffer(json.dumps(value).encode(), np.uint8)


def _from_json(array: np.ndarray):
  return json.loads(array.tobytes())
