"""Rows of Parquet files, as Hugging Face datasets and img2dataset write them."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from siglax.config.parts import Field
from siglax.data import files as files_lib
from siglax.data import paths
from siglax.data.source import Source


class Parquet:
  """Rows of Parquet files, in the order of the files: {"image": bytes, "captions": [str, …],
  "label", "weight", "key"}.

  Its arguments are the fields of SOURCE. classnames: from the schema's metadata "classes", names
  with commas between, else None.

  Raises ValueError, beginning with the argument, for a missing, empty or damaged file, or a column
  that is missing or of another type.
  """

  def __init__(self, path, image, caption, label, weights, key):
    self._arguments = (path, image, caption, label, weights, key)
    files = {file: files_lib.open_parquet(file) for file in paths.find(path, "parquet")}
    columns = _Columns(files, *self._arguments[1:])
    self.classnames = _classnames(files)
    table = files_lib.read(files, columns)
    if not table.num_rows:
      raise ValueError(f"path={path!r} has no rows")
    self._columns = {name: table.column(name) for name in table.column_names}
    self._rows = table.num_rows

  def __len__(self) -> int:
    return self._rows

  def __getitem__(self, i: int) -> dict:
    if not 0 <= i < self._rows:
      raise IndexError(f"row {i} of {self._rows}")
    # A caption, a label or a weight may be null; a null image stays one, and is broken.
    example = {name: column[i].as_py() for name, column in self._columns.items()}
    captions = example["captions"]
    if isinstance(captions, str):
      example["captions"] = [captions]
    else:
      example["captions"] = [caption for caption in captions or () if caption is not None]
    return {name: value for name, value in example.items() if value is not None or name == "image"}

  def __repr__(self):
    return f"Parquet({self._arguments[0]!r})"

  def __reduce__(self):  # a worker process opens the files itself
    return Parquet, self._arguments


def _classnames(files) -> tuple[str, ...] | None:
  """The files' class names; labels mean nothing when they differ."""
  names = {path: (file.schema_arrow.metadata or {}).get(b"classes") for path, file in files.items()}
  if len(set(names.values())) > 1:
    raise ValueError(
      "path: the files differ in the schema metadata 'classes'; give them as separate specs"
    )
  path, found = next(iter(names.items()))
  try:
    return tuple(name.strip() for name in found.decode().split(",")) if found else None
  except UnicodeDecodeError as e:
    raise ValueError(f"path={path!r}: the schema metadata 'classes' is not UTF-8: {e}") from None


class _Columns(files_lib.Columns):
  """Which columns to read, and as what, the same for all files ({path: ParquetFile})."""

  def __init__(self, files, image, caption, label, weights, key):
    first = next(iter(files.values())).schema_arrow
    if caption is None:
      caption = next((name for name in ("captions", "caption") if name in first.names), None)
      if caption is None:
        raise ValueError(
          f"caption=None: no column 'captions' or 'caption' but {', '.join(first.names)}; name one"
        )
    label = "label" if label is None and "label" in first.names else label
    weights = "weight" if weights is None and "weight" in first.names else weights
    if key is None and "key" in first.names and pa.types.is_string(first.field("key").type):
      key = "key"
    wanted = {"image": image, "caption": caption, "label": label, "weights": weights, "key": key}
    self._wanted = {argument: name for argument, name in wanted.items() if name is not None}
    for path, file in files.items():
      self._check(path, file.schema_arrow)
    listed = pa.types.is_list(first.field(caption).type) or pa.types.is_large_list(
      first.field(caption).type
    )
    types = {
      "image": ("image", pa.binary()),
      "caption": ("captions", pa.list_(pa.string()) if listed else pa.string()),
      "label": ("label", pa.int64()),
      "weights": ("weight", pa.float64()),
      "key": ("key", pa.string()),
    }
    super().__init__(pa.schema([types[argument] for argument in self._wanted]))

  def _check(self, path, schema):
    for argument, name in self._wanted.items():
      if name not in schema.names:
        raise ValueError(
          f"{argument}={name!r}: no such column in {path} but {', '.join(schema.names)}; name one"
        )
      if schema.names.count(name) > 1:
        raise ValueError(
          f"{argument}={name!r}: {path} has several columns of that name; rename them"
        )
      right, needed = _TYPES[argument]
      if not right(kind := schema.field(name).type):
        raise ValueError(
          f"{argument}={name!r}: the column of {path} holds {kind}, it must hold {needed}"
        )

  def paths(self, file):
    """Names to ask Parquet for: of a struct only its bytes."""
    structs = [
      name
      for name in self._wanted.values()
      if pa.types.is_struct(file.schema_arrow.field(name).type)
    ]
    return [f"{name}.bytes" if name in structs else name for name in self._wanted.values()]

  def convert(self, batch):
    arrays = []
    for name, target in zip(self._wanted.values(), self.schema.types):
      array = batch.column(name)
      if pa.types.is_struct(array.type):
        array = pc.struct_field(array, "bytes")
      arrays.append(array.cast(target))
    return pa.record_batch(arrays, schema=self.schema)


def _is_bytes(kind):
  if pa.types.is_struct(kind):
    return kind.get_field_index("bytes") >= 0 and _is_bytes(kind.field("bytes").type)
  return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_text(kind):
  if pa.types.is_list(kind) or pa.types.is_large_list(kind):
    kind = kind.value_type
  if pa.types.is_dictionary(kind):
    kind = kind.value_type
  return pa.types.is_string(kind) or pa.types.is_large_string(kind)


_TYPES = {
  "image": (_is_bytes, "bytes or a struct with bytes"),
  "caption": (_is_text, "strings or lists of strings"),
  "label": (pa.types.is_integer, "whole numbers"),
  "weights": (lambda kind: pa.types.is_floating(kind) or pa.types.is_integer(kind), "numbers"),
  "key": (lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind), "strings"),
}

SOURCE = Source(
  "parquet",
  "rows of Parquet files, in the order of the files",
  Parquet,
  endings=("parquet",),
  fields={
    "path": Field(
      None,
      "a file, a glob, braces, a tuple of them, or the same with commas: "
      '"train-{000..127}.parquet,more-*.parquet"',
      kind=str | tuple,
      check=paths.path_problem,
    ),
    "image": Field("image", "column of encoded images: bytes, or a struct with bytes"),
    "caption": Field(
      None,
      'column of captions, a string or a list of strings a row; None takes "captions" or "caption"',
      kind=str,
      optional=True,
    ),
    "label": Field(
      None,
      'column of class indices; None takes "label" if there is one',
      kind=str,
      optional=True,
    ),
    "weights": Field(
      None,
      'column of weights in the loss; None takes "weight" if there is one',
      kind=str,
      optional=True,
    ),
    "key": Field(
      None,
      'column of names of the examples; None takes "key" if there is one that holds strings',
      kind=str,
      optional=True,
    ),
  },
)
