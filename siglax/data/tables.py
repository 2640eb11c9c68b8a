"""Tables of pictures and texts: which columns are read, and rows of them as examples."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.compute as pc

from siglax.config.parts import Field
from siglax.data import files as files_lib

# Names that are taken where a spec gives none, the first that is there.
CAPTIONS = ("captions", "caption")


def named(part: str) -> dict[str, Field]:
  """The fields of a data spec that name the parts of an example. part: what it calls one, such as
  "column".
  """
  default = lambda name, what: Field(
    None, f'{part} of {what}; None takes "{name}" if there is one', kind=str, optional=True
  )
  return {
    "image": Field("image", f"{part} of encoded images"),
    "caption": Field(
      None,
      f"{part} of captions, one or a list of them; None takes {' or '.join(CAPTIONS)}",
      kind=str,
      optional=True,
    ),
    "label": default("label", "class indices"),
    "weights": default("weight", "weights in the loss"),
    "key": default("key", "names of the examples"),
  }


def chosen(there, given: dict, part: str, need_caption: bool = True) -> dict[str, str]:
  """{field: the name that it stands for} of the fields of `named`, without what is not there.

  there: the names of the columns or features. given: {field: value} of the data spec. Raises
  ValueError, beginning with the field, for a name that is not there, and for none of captions.
  """
  found = {}
  defaults = {"caption": CAPTIONS, "label": ("label",), "weights": ("weight",), "key": ("key",)}
  for field, name in given.items():
    if name is None:
      name = next((name for name in defaults[field] if name in there), None)
    elif name not in there:
      raise ValueError(f"{field}={name!r}: no such {part} but {', '.join(there)}; name one")
    if name is not None:
      found[field] = name
  if need_caption and "caption" not in found:
    raise ValueError(
      f"caption=None: no {part} {' or '.join(map(repr, CAPTIONS))} but {', '.join(there)}; name one"
    )
  return found


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
    label,
    weights,
    key,
    need_caption: bool = True,
  ):
    first = next(iter(schemas.values()))
    if key is None and "key" in first.names and not _is_string(first.field("key").type):
      first = first.remove(first.get_field_index("key"))  # a number is no name
    given = {"image": image, "caption": caption, "label": label, "weights": weights, "key": key}
    self._wanted = chosen(first.names, given, "column", need_caption)
    for path, schema in schemas.items():
      self._check(path, schema)
    caption = self._wanted.get("caption")
    listed = caption is not None and _is_list(first.field(caption).type)
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

  @property
  def label(self) -> str | None:
    """The name of the column of labels."""
    return self._wanted.get("label")

  def row(self, table: pa.Table) -> dict:
    """The values of a table of one row, of the columns as they are stored."""
    (batch,) = table.select(list(self._wanted.values())).to_batches()
    return self.convert(batch).to_pylist()[0]

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


def example(row: dict) -> dict:
  """An example of the values of a row in the schema of `ImageText`."""
  captions = row.get("captions")
  captions = [captions] if isinstance(captions, str) else captions or ()
  row = row | {"captions": [caption for caption in captions if caption is not None]}
  # A caption, a label or a weight may be null; a null image stays one, and is broken.
  return {name: value for name, value in row.items() if value is not None or name == "image"}


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
