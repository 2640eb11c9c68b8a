"""Tables of pictures and texts: which columns are read, and rows of them as examples."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
import copy
import json

import pyarrow as pa
import pyarrow.compute as pc

from siglax.config.parts import Field
from siglax.data import captions as captions_lib
from siglax.data import files as files_lib
from siglax.data import names

# Names that are taken where a spec gives none, the first that is there.
CAPTIONS = ("captions", "caption")
KNOWN = {"caption": CAPTIONS, "label": ("label",), "weights": ("weight",), "key": ("key",)}


def named(part: str) -> dict[str, Field]:
  """The fields of a data spec that name the parts of an example. part: what it calls one, such as
  "column".
  """
  default = lambda name, what: Field(
    None, f'{part} of {what}; None takes "{name}" if there is one', kind=str, optional=True
  )
  return {
    "image": Field("image", f"{part} of encoded images"),
    **names.caption(
      f"{part} of captions, one or a list of them; None takes {' or '.join(CAPTIONS)}"
    ),
    "label": default("label", "class indices"),
    "weights": default("weight", "weights in the loss"),
    "key": default("key", "names of the examples"),
  }


def chosen(given: dict, there, part: str, where: str, need_caption: bool) -> dict:
  """`names.chosen` of the fields of `named`."""
  needed = ("caption",) if need_caption else ()
  return names.chosen(given, KNOWN, there, part, where, needed)


class ImageText(files_lib.Columns):
  """The columns of pictures and texts, the same for all files: which they are, and as what they are
  read.

  schemas: {path: schema}. The other arguments are those of `named`. Raises ValueError, beginning
  with the argument, for a column that is missing, there twice, or of another type.
  """

  def __init__(
    self,
    schemas: dict[str, pa.Schema],
    image,
    caption,
    caption_weights,
    label,
    weights,
    key,
    need_caption: bool = True,
  ):
    path, first = next(iter(schemas.items()))
    if key is None and "key" in first.names and not _is_string(first.field("key").type):
      first = first.remove(first.get_field_index("key"))  # a number is no name
    given = {"image": image, "caption": caption, "label": label, "weights": weights, "key": key}
    self._wanted = chosen(given, first.names, "column", path, need_caption)
    self._weights = None if caption_weights is None else names.numbers(caption_weights)
    for path, schema in schemas.items():
      self._check(path, schema)
    types = {
      "image": ("image", pa.binary()),
      "label": ("label", pa.int64()),
      "weights": ("weight", pa.float64()),
      "key": ("key", pa.string()),
    }
    fields = []
    for field, columns in self._wanted.items():
      if field != "caption":
        fields.append(types[field])
        continue
      several = len(columns) > 1
      for k, column in enumerate(columns):
        listed = _is_list(first.field(column).type)
        kind = pa.list_(pa.string()) if listed else pa.string()
        fields.append((f"captions {k}" if several else "captions", kind))
    self._captions = [name for name, _ in fields if name.startswith("captions")]
    super().__init__(pa.schema(fields))

  def _check(self, path, schema):
    pairs = [(argument, name) for argument, found in self._wanted.items() for name in found]
    for argument, name in pairs:
      names.chosen({argument: name}, {}, schema.names, "column", path)
      right, needed = _TYPES[argument]
      if not right(kind := schema.field(name).type):
        raise ValueError(
          f"{argument}={name!r}: the column of {path} holds {kind}, it must hold {needed}"
        )

  @property
  def _columns(self) -> list[str]:
    """The columns that are read, in the order of the schema."""
    return [name for found in self._wanted.values() for name in found]

  def paths(self, file):
    """Names to ask Parquet for: of a struct only its bytes."""
    kinds = {name: file.schema_arrow.field(name).type for name in self._columns}
    return [f"{name}.bytes" if pa.types.is_struct(kind) else name for name, kind in kinds.items()]

  def without_pictures(self) -> ImageText:
    """The columns of captions and labels alone."""
    found = copy.copy(self)
    found._wanted = {f: n for f, n in self._wanted.items() if f in ("caption", "label")}
    fields = [f for f in self.schema if f.name in ("label", *self._captions)]
    found.schema = pa.schema(fields)
    return found

  @property
  def label(self) -> str | None:
    """The name of the column of labels."""
    return next(iter(self._wanted.get("label", ())), None)

  def row(self, table: pa.Table) -> dict:
    """The values of a table of one row, of the columns as they are stored."""
    (batch,) = table.select(self._columns).to_batches()
    return self.convert(batch).to_pylist()[0]

  def convert(self, batch):
    arrays = []
    for name, target in zip(self._columns, self.schema.types):
      array = batch.column(name)
      if pa.types.is_struct(array.type):
        array = pc.struct_field(array, "bytes")
      arrays.append(array.cast(target))
    return pa.record_batch(arrays, schema=self.schema)

  def example(self, row: dict, classnames, templates) -> dict:
    """An example of the values of a row in the schema. templates: of `captions.read_templates`."""
    columns = []
    for name in self._captions:
      found = row[name]
      found = [found] if isinstance(found, str) else found or ()
      columns.append([caption for caption in found if caption is not None])
    # A caption, a label or a weight may be null; a null image stays one, and is broken.
    rest = {
      name: value
      for name, value in row.items()
      if name not in self._captions and (value is not None or name == "image")
    }
    return rest | captions_lib.of_example(
      columns, self._weights, rest.get("label"), classnames, templates
    )

  def texts(self, rows: Iterable[dict | None], classnames, templates) -> Iterator[dict | None]:
    """Captions and labels of rows of `without_pictures`; None for a broken one."""
    for row in rows:
      try:
        yield row and self.example(row, classnames, templates)
      except ValueError:
        yield None


def _is_bytes(kind):
  if pa.types.is_struct(kind):
    return kind.get_field_index("bytes") >= 0 and _is_bytes(kind.field("bytes").type)
  return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_list(kind):
  return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _is_string(kind):
  return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_text(kind):
  if _is_list(kind):
    kind = kind.value_type
  if pa.types.is_dictionary(kind):
    kind = kind.value_type
  return _is_string(kind)


_TYPES = {
  "image": (_is_bytes, "bytes or a struct with bytes"),
  "caption": (_is_text, "strings or lists of strings"),
  "label": (pa.types.is_integer, "whole numbers"),
  "weights": (lambda kind: pa.types.is_floating(kind) or pa.types.is_integer(kind), "numbers"),
  "key": (_is_string, "strings"),
}


def rest(values: dict) -> dict:
  """What an example has beside its picture and captions, of {field of `named`: value or None}."""
  parts = ("label", "label", int), ("weights", "weight", float), ("key", "key", text)
  return {part: kind(values[field]) for field, part, kind in parts if values.get(field) is not None}


def text(value) -> str:
  """Of bytes in UTF-8, or of a text."""
  return value.decode() if isinstance(value, bytes) else str(value)


def classnames(schemas: dict[str, pa.Schema], label: str | None) -> tuple[str, ...] | None:
  """The names of the classes, the same in all files; None where there are none.

  They stand in the schema's metadata: "classes" holds the names with commas between, "huggingface"
  the features of Hugging Face's datasets, of which a ClassLabel has names. Raises ValueError where
  files differ, since labels mean nothing then.
  """
  names = {path: _named(path, schema.metadata or {}, label) for path, schema in schemas.items()}
  if len(set(names.values())) > 1:
    raise ValueError(
      "path: the files differ in the class names of the schema's metadata; give them as separate "
      "specs"
    )
  return next(iter(names.values()))


def _named(path: str, metadata: dict[bytes, bytes], label: str | None):
  if found := metadata.get(b"classes"):
    try:
      return tuple(name.strip() for name in found.decode().split(","))
    except UnicodeDecodeError as e:
      raise ValueError(f"path={path!r}: the schema metadata 'classes' is not UTF-8: {e}") from None
  try:
    features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
    return names_of(features, label)
  except (LookupError, TypeError, ValueError, RecursionError):
    return None


def names_of(features: dict, label: str | None) -> tuple[str, ...] | None:
  """The names of a ClassLabel among the features of Hugging Face's datasets; None without one."""
  feature = features.get(label)
  names = feature.get("names") if isinstance(feature, dict) else None
  whole = isinstance(names, list) and names and all(isinstance(name, str) for name in names)
  return tuple(names) if whole else None
