"""Pictures that a frozen image tower has already embedded: the files that `siglax embed` writes,
and the source of them.

A row is {"image_embedding": [d], "captions": [str, …]}, with "label", "weight" and "key" where the
dataset has them, "text_embeddings": [captions, d] and "image_tokens": [patches, width] where they
were asked for. Beside the rows a file holds its description, a dict that JSON can hold
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

import bisect
import itertools
import json
import pathlib

from array_record.python import array_record_data_source
from array_record.python import array_record_module
import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy

from siglax.data import files as files_lib
from siglax.devices import errors

SOURCE = "embeddings"
DESCRIPTION = "siglax"
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
SAFETENSORS = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
# Rows of Parquet that are held before they are written.
ROW_GROUP_BYTES = 32 * 2**20
# What the parts of one dataset, and a file and the run that reads it, must share.
PICTURE_FIELDS = ("size", "mean", "std", "resize", "fit")
# What the descriptions of all files say.
DESCRIBED = {"digest": str, "width": int, "image": dict, "classnames": (list, type(None))}


class Embeddings:
  """Rows of files of `siglax embed`: {"image_embedding": float32 [d], "captions": [str, …],
  "label", "weight", "key"}.

  path: a .npz, .parquet or .array_record file, a glob, a tuple of them, or the same with commas.
  description: of the first file. An .npz is held in memory; so are the embeddings and captions of
  .parquet up to files.MEMORY_BYTES, above which they are mapped from disk; an .array_record is read
  row by row. Raises ValueError, beginning with the argument, for a missing or damaged file, another
  file, or parts of which some were embedded by another tower or in another way.
  """

  def __init__(self, path):
    self._path = path
    names = files_lib.find(path)
    self._files = [_open(name) for name in names]
    self._starts = list(itertools.accumulate(map(len, self._files), initial=0))
    self.description = self._files[0].description
    self.classnames = tuple(self.description["classnames"] or ()) or None
    for name, file in zip(names, self._files):
      for field in ("digest", "width", "image", "classnames"):
        if file.description[field] != self.description[field]:
          raise ValueError(
            f"path: {names[0]} and {name} differ in their {field}; give them as separate specs"
          )
    if not len(self):
      raise ValueError(f"path={path!r} has no rows")

  def __len__(self) -> int:
    return self._starts[-1]

  def __getitem__(self, i: int) -> dict:
    if not 0 <= i < len(self):
      raise IndexError(f"row {i} of {len(self)}")
    k = bisect.bisect_right(self._starts, i) - 1
    row = self._files[k].row(i - self._starts[k])
    embedding, width = np.asarray(row["image_embedding"], np.float32), self.description["width"]
    if embedding.shape != (width,):
      raise ValueError(
        f"the image embedding has the shape {list(embedding.shape)}; it must be [{width}]"
      )
    return row | {"image_embedding": embedding}

  def __repr__(self):
    return f"Embeddings({self._path!r})"

  def __reduce__(self):  # a worker process opens the files itself
    return Embeddings, (self._path,)


def _open(file: str):
  ending = pathlib.Path(file).suffix
  if ending not in READERS:
    raise ValueError(f"path={file!r} must end in {', '.join(READERS)}")
  size = files_lib.size(file)
  try:
    reader = READERS[ending](file)
    for field, kind in DESCRIBED.items():
      if not isinstance(value := reader.description[field], kind):
        raise ValueError(f"its description says {field}={value!r}")
    return reader
  except Exception as e:  # whatever the libraries raise of bytes that are none of theirs
    reason = errors.one_line(e)
    raise ValueError(
      f"path={file!r} ({size} bytes) is no {ending} of siglax embed, or is cut short: {reason}"
    ) from e


class NpzReader:
  """All of an .npz file, in memory."""

  def __init__(self, file: str):
    _, headers = files_lib.npz_headers(file)
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
      self.description = _from_json(arrays[DESCRIPTION])
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


class ParquetReader:
  """The columns of a .parquet file that training needs."""

  def __init__(self, file: str):
    opened = files_lib.open_parquet(file)
    schema = opened.schema_arrow
    self.description = json.loads((opened.metadata.metadata or {})[DESCRIPTION.encode()])
    names = ("image_embedding", "captions", "label", "weight", "key")
    columns = files_lib.Columns(pa.schema([schema.field(name) for name in names]))
    table = files_lib.read({file: opened}, columns)
    self._columns, self._rows = {name: table.column(name) for name in names}, table.num_rows

  def __len__(self):
    return self._rows

  def row(self, i: int) -> dict:
    row = {k: column[i].as_py() for k, column in self._columns.items() if k != "image_embedding"}
    embedding = self._columns["image_embedding"][i].values.to_numpy()
    return {"image_embedding": embedding} | {k: v for k, v in row.items() if v is not None}


class ArrayRecordReader:
  """Rows of an .array_record file, read and parsed one at a time."""

  def __init__(self, file: str):
    self._records = array_record_data_source.ArrayRecordDataSource(file)
    _, metadata = parse_record(self._records[len(self._records) - 1])
    self.description = json.loads(metadata[DESCRIPTION])

  def __len__(self):
    return len(self._records) - 1

  def row(self, i: int) -> dict:
    arrays, metadata = parse_record(self._records[i])
    return {"image_embedding": arrays["image_embedding"], **json.loads(metadata["row"])}


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

  dtypes = (
    "float32",
    "float16",
  )  # numpy has no bfloat16 that a reader without ml_dtypes understands

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
    column = lambda name: [row.get(name) for row in rows]
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
      raise OSError(errors.one_line(e)) from e

  def _record(self, arrays, metadata):
    try:
      self._writer.write(safetensors.numpy.save(arrays, metadata))
    except RuntimeError as e:
      raise OSError(errors.one_line(e)) from e


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


def given(config) -> bool:
  """Whether config.data holds precomputed embeddings in place of pictures."""
  return any(spec["source"] == SOURCE for spec in config.data)


def validate(config):
  """Checks what needs neither data nor parameters when config.data holds embeddings; ValueError in
  one line.

  All specs must, nothing may change pictures on their way, and there must be an image tower to
  start from.
  """
  if not given(config):
    return
  for i, spec in enumerate(config.data):
    if spec["source"] != SOURCE:
      raise ValueError(
        f"config.data.{i}.source={spec['source']!r} has pictures, another spec of config.data has "
        "embeddings; "
        "a batch holds the one or the other"
      )
  image = config.image
  for field, value, needed in (
    ("image.crop_min_area", image.crop_min_area, 1.0),
    ("image.pad", image.pad, 0),
    ("image.flip", image.flip, False),
    ("model.image.dropout", config.model.image.dropout, 0.0),
    ("train.patch_drop", config.train.patch_drop, 0.0),
    ("model.image.lora_rank", config.model.image.lora_rank, 0),
  ):
    if value != needed:
      raise ValueError(
        f"config.{field}={value} changes what an image tower sees, but config.data with source "
        f'"{SOURCE}" is past it; '
        f"it must be {needed}"
      )
  if config.model.init_from is None:
    raise ValueError(
      f'config.model.init_from=None, but config.data has source "{SOURCE}"; give the image tower '
      "that made them, as "
      "siglax embed --from had it"
    )


def check(config, sources, embed_dim: int):
  """ValueError when the embeddings do not fit the model, or their pictures were prepared otherwise
  than in evaluation.
  """
  for i, source in enumerate(sources):
    made, field = source.description, f"config.data.{i}.path"
    if made["width"] != embed_dim:
      raise ValueError(
        f"{field}: its embeddings are {made['width']} wide, but config.model.embed_dim is "
        f"{embed_dim}"
      )
    for name in PICTURE_FIELDS:
      here = config.image[name]
      here = list(here) if isinstance(here, tuple) else here
      if (there := made["image"].get(name)) != here:
        raise ValueError(
          f"{field}: its pictures were embedded with image.{name}={there}, config.image.{name} is "
          f"{here}"
        )


def check_tower(sources, digest: str):
  """ValueError when the embeddings were made by another image tower than the one with this digest
  (siglax/runs/digest.py).
  """
  for i, source in enumerate(sources):
    made = source.description
    if made["digest"] != digest:
      raise ValueError(
        f"config.data.{i}.path: its embeddings are of another image tower ({made.get('tower')}, "
        f"{made['digest']}) than "
        f"this run's ({digest}); set config.model.init_from to that one, or run siglax embed "
        "--from this one"
      )
