"""Where examples come from.

A source is a class with `__len__`, `__getitem__(i)` and `classnames` (a tuple, or None). Example i
is {"image": encoded bytes or uint8 array, "captions": [str, …]}, and optionally "label": int, an
index into classnames, "weight": float, the example's weight in the loss, and "key": str, its name.
Of precomputed embeddings, "image_embedding": float32 [d] takes the place of "image". `__getitem__`
is random access, safe from many threads, and the same on every call; a source can be pickled.
Raising from it marks the example as broken: training replaces it.

A data spec names a source and gives its constructor's arguments: {"source": "parquet", "path":
"a.parquet"}. A new source is such a class and its line in SOURCES; its constructor raises
ValueErrors that begin with the argument.
"""

from __future__ import annotations

import difflib
import inspect
import math
import numbers
import re

import pyarrow as pa
import pyarrow.compute as pc

from siglax.config import versions
from siglax.data import files as files_lib
from siglax.data.embeddings import Embeddings
from siglax.data.shapes import Shapes

# Fields of every spec, whatever its source.
COMMON_FIELDS = ("source", "weight", "max_bad_fraction")
MAX_BAD_FRACTION = 0.01


class Parquet:
  """Rows of Parquet files, in the order of the files: {"image": bytes, "captions": [str, …],
  "label", "weight", "key"}.

  path: a file, a glob, a tuple of them, or the same with commas: "train-*.parquet,more.parquet".
  image: column of encoded images: bytes, or a struct with bytes, as Hugging Face datasets write it.
  caption: column of captions, a string or a list of strings a row; None takes "captions" or
  "caption".
  label: column of class indices; None takes "label" if there is one.
  weights: column of weights in the loss; None takes "weight" if there is one.
  key: column of names of the examples; None takes "key" if there is one that holds strings.
  classnames: from the schema's metadata "classes", names with commas between, else None.

  Raises ValueError, beginning with the argument, for a missing, empty or damaged file, or a column
  that is missing or of another type.
  """

  def __init__(self, path, image="image", caption=None, label=None, weights=None, key=None):
    self._arguments = (path, image, caption, label, weights, key)
    files = {file: files_lib.open_parquet(file) for file in files_lib.find(path)}
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


SOURCES = {"shapes": Shapes, "parquet": Parquet, "embeddings": Embeddings}


def parse_spec(text: str) -> dict:
  """The spec of a command line's words: `SOURCE:field=value,field=value`, or a file in place of the
  source.

  "shapes:examples=300" is {"source": "shapes", "examples": 300}; "a.parquet:caption=text" is
  {"source": "parquet", "path": "a.parquet", "caption": "text"}. Raises ValueError for a part that
  is no field=value.
  """
  files_lib.refuse_url(text)
  head, _, rest = text.partition(":")
  spec = {"source": head} if head in SOURCES else {"source": "parquet", "path": head}
  for part in filter(None, rest.split(",")):
    name, equals, value = part.partition("=")
    if not equals:
      raise ValueError(f"{text}: {part!r} must be field=value")
    number = int if value.isdigit() else float if re.fullmatch(r"\d*\.\d+", value) else str
    spec[name] = number(value)
  return spec


def open_source(spec, field: str = ""):
  """The source of a data spec.

  field: where the spec stands, such as "config.data.0", for the messages. Raises ValueError in one
  line.
  """
  validate_spec(spec, field)
  arguments = {name: value for name, value in spec.items() if name not in COMMON_FIELDS}
  try:
    return SOURCES[spec["source"]](**arguments)
  except ValueError as e:
    raise ValueError(f"{_prefix(field)}{e}") from e
  except TypeError as e:
    raise ValueError(f"{field or 'data'}={dict(spec)!r} has a value of a wrong type: {e}") from e


def validate_spec(spec, field: str = ""):
  """Checks a data spec's fields without reading data; ValueError says which, and what is known.

  field: where the spec stands, such as "config.data.0".
  """
  if not hasattr(spec, "items"):
    raise ValueError(f'{field or "data"}={spec!r} must be a dict such as {{"source": "shapes"}}')
  name = spec.get("source")
  if not isinstance(name, str) or name not in SOURCES:
    raise ValueError(f"{_prefix(field)}source={name!r} is unknown; known are {', '.join(SOURCES)}")
  arguments = inspect.signature(SOURCES[name]).parameters
  known = [*arguments, *COMMON_FIELDS]
  for key in spec:
    if key not in known:
      near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
      hint = f"did you mean {near[0]}? " if near else ""
      if (new := versions.SPEC.get(key)) in known:
        hint = f"it is called {new} now; "
      shown = key if str(key).isidentifier() else repr(key)
      raise ValueError(
        f"{_prefix(field)}{shown} is unknown; {hint}source {name!r} has {', '.join(known)}"
      )
  for key, argument in arguments.items():
    if argument.default is argument.empty and key not in spec:
      raise ValueError(f"{_prefix(field)}{key} is missing; source {name!r} needs it")
  weight, fraction = spec.get("weight"), spec.get("max_bad_fraction")
  if weight is not None and not (_is_number(weight) and 0 < weight < math.inf):
    raise ValueError(
      f"{_prefix(field)}weight={weight!r} must be a positive number, the spec's share of the mix"
    )
  if fraction is not None and not (_is_number(fraction) and 0 <= fraction <= 1):
    raise ValueError(f"{_prefix(field)}max_bad_fraction={fraction!r} must be a number from 0 to 1")


def _prefix(field):
  """Before the name of an argument; of a flag of the command line, whose spec is written
  DATA:argument=value.
  """
  return "" if not field else f"{field} DATA:" if field.startswith("--") else f"{field}."


def _is_number(value):
  return isinstance(value, numbers.Real) and not isinstance(value, bool)


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

  def __init__(self, files, image, caption, label, weights, key=None):
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
