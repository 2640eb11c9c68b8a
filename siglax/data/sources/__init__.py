"""Where examples come from: data specs, and the sources that they name.

A data spec names a source and gives its fields: {"source": "parquet", "path": "a.parquet"}.
docs/recipes/source.md lists the sources and their fields.

A source is a file with a `SOURCE` (siglax/data/source.py says what that declares) and its place in
SOURCES; one of a user's own file is registered with `SOURCES.register`.
"""

from __future__ import annotations

import re

from siglax.config import options
from siglax.config import values as values_lib
from siglax.config.parts import Registry
from siglax.data import filters
from siglax.data import noise
from siglax.data import paths
from siglax.data import storage
from siglax.data.shapes import dataset as shapes
from siglax.data.source import COMMON_FIELDS
from siglax.data.source import MAX_BAD_FRACTION
from siglax.data.source import Source
from siglax.data.sources import array_record
from siglax.data.sources import csv
from siglax.data.sources import embeddings
from siglax.data.sources import folder
from siglax.data.sources import hf
from siglax.data.sources import jsonl
from siglax.data.sources import parquet
from siglax.data.sources import tfds
from siglax.data.sources import webdataset

SOURCES: Registry[Source] = Registry(
  "source",
  (
    shapes.SOURCE,
    parquet.SOURCE,
    folder.SOURCE,
    webdataset.SOURCE,
    csv.SOURCE,
    jsonl.SOURCE,
    array_record.SOURCE,
    tfds.SOURCE,
    hf.SOURCE,
    embeddings.SOURCE,
  ),
)


def parse_spec(text: str) -> dict:
  """The spec of a command line's words: `SOURCE:field=value,field=value`, or a path in place of the
  source.

  "shapes:examples=300" is {"source": "shapes", "examples": 300}; "a.parquet:caption=text" is
  {"source": "parquet", "path": "a.parquet", "caption": "text"}, "pictures" is {"source": "folder",
  "path": "pictures"} (`paths.source_of`). A value may contain commas. Raises ValueError for a part
  that is no field=value.
  """
  head, _, rest = text.partition(":")
  if head not in SOURCES:  # a path, which may hold colons, so that only name= ends it
    head, rest = re.fullmatch(r"(.*?)(?::([A-Za-z_]\w*=.*))?", text, re.DOTALL).groups("")
    word = head.rpartition(":")[2]
    if word.isidentifier() and word != head and not storage.is_url(text):
      if not storage.exists(head):
        raise ValueError(f"{text}: {word!r} must be field=value")
  spec = {"source": head} if head in SOURCES else {"source": paths.source_of(head), "path": head}
  fields = COMMON_FIELDS | SOURCES[spec["source"]].fields
  for part in values_lib.arguments(rest):
    name, equals, value = part.partition("=")
    if not equals:
      raise ValueError(f"{text}: {part!r} must be field=value")
    spec[name] = _parsed(value, fields[name].kind if name in fields else None)
  return spec


def _parsed(value: str, kind):
  """The words of a command line as a value: True, False, a whole number, a number, or text."""
  if kind in (str, str | tuple):
    return value
  if kind is bool and value in ("True", "False"):
    return value == "True"
  number = (
    int
    if re.fullmatch("[0-9]+", value)
    else float
    if re.fullmatch(r"[0-9]*\.[0-9]+", value)
    else str
  )
  return number(value)


def open_source(spec, field: str = ""):
  """The examples of a data spec, filtered as it says, of which there is at least one.

  field: where the spec stands, such as "config.data.0", for the messages. Raises ValueError in one
  line.
  """
  source, values = _values(spec, field)
  try:
    examples = source.open(**values)
    if not len(examples):
      raise ValueError(f"source={source.name!r} has no examples")
    return noise.opened(filters.opened(examples, spec, _prefix(field)), spec, _prefix(field))
  except (ValueError, storage.Unreachable) as e:
    kind = ValueError if isinstance(e, ValueError) else storage.Unreachable
    # What storage says begins with the file.
    said = f"path={e}" if str(e).startswith("'") else e
    raise kind(f"{_prefix(field)}{said}") from e
  except TypeError as e:
    raise ValueError(f"{field or 'data'}={dict(spec)!r} has a value of a wrong type: {e}") from e


def validate_spec(spec, field: str = ""):
  """Checks a data spec's fields without reading data; ValueError says which, and what is known.

  field: where the spec stands, such as "config.data.0".
  """
  _values(spec, field)


def classnames(examples) -> tuple[str, ...] | None:
  """The names of the classes of a source's examples, None where it has none."""
  return getattr(examples, "classnames", None)


def markdown() -> str:
  """The sources and their fields, for docs/recipes/source.md."""
  common = {name: field for name, field in COMMON_FIELDS.items() if name != "source"}
  every = f"Every data spec may have, beside `source`:\n\n{options.table(common)}"
  each = [f"`{s.name}`: {s.doc}.\n\n{options.table(s.fields)}" for s in SOURCES.values()]
  return "\n\n".join([every, *each])


def _values(spec, field: str) -> tuple[Source, dict]:
  """The source that a spec names, and the value of each field of it."""
  if not hasattr(spec, "items"):
    raise ValueError(f'{field or "data"}={spec!r} must be a dict such as {{"source": "shapes"}}')
  name = spec.get("source")
  if not isinstance(name, str) or name not in SOURCES:
    raise ValueError(f"{_prefix(field)}source={name!r} is unknown; known are {', '.join(SOURCES)}")
  values = SOURCES[name].values(spec, _prefix(field))
  of_pictures = [f for f in ("max_pixels", "noise_images") if spec.get(f)]
  if of_pictures and not SOURCES[name].pictures:
    raise ValueError(
      f"{_prefix(field)}{of_pictures[0]}={spec[of_pictures[0]]}: source {name!r} has no pictures; "
      "leave it out"
    )
  return SOURCES[name], values


def _prefix(field: str) -> str:
  """Before the name of an argument; of a flag of the command line, whose spec is written
  DATA:argument=value.
  """
  return "" if not field else f"{field} DATA:" if field.startswith("--") else f"{field}."
