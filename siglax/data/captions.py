"""Captions and labels of a source, as files of text hold them."""

from __future__ import annotations

from collections.abc import Sequence
import os

from siglax.config import values
from siglax.config.parts import Field
from siglax.data import names
from siglax.data import storage

# Bytes of a file of captions, or of one row of a table: far more than any caption.
MAX_TEXT = 2**24
# Files beside the data, with a name or a template a line.
CLASSNAMES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"
TEMPLATE = Field(
  "a photo of a {}.",
  "caption of a picture that has none but a class, {} for the name of the class: a text, a tuple "
  f"of them, or a file with one a line, such as {TEMPLATES}, of which training draws one each "
  "time. None makes none",
  kind=str | tuple,
  optional=True,
  check=lambda value: (
    None
    if isinstance(value, str) and value or value and all(_is_template(text) for text in value)
    else "must be a text with {} for the name of the class, several, or a file of them"
  ),
)


def _is_template(value) -> bool:
  return isinstance(value, str) and "{}" in value


def text(data: bytes, name: str) -> str:
  """UTF-8 to text; ValueError that names the file."""
  if len(data) > MAX_TEXT:
    raise ValueError(f"{name} has {len(data):,} bytes, more than {MAX_TEXT:,}")
  try:
    return data.decode("utf-8-sig")
  except UnicodeDecodeError as e:
    raise ValueError(f"{name} is not UTF-8 at byte {e.start}") from None


def lines(data: bytes, name: str) -> list[str]:
  """The lines of a file of captions, without blank ones."""
  return [line.strip() for line in text(data, name).splitlines() if line.strip()]


def listed(value, name: str) -> list[str]:
  """The captions of a value of JSON: a string, or a list of strings, or null."""
  found = [] if value is None else value if isinstance(value, list) else [value]
  if not all(isinstance(caption, str) for caption in found):
    raise ValueError(f"{name}={values.shown(value)} is no string or list of strings")
  return found


def label(value, name: str) -> int | None:
  """A class index, of text or JSON; None where there is none."""
  if value is None or isinstance(value, str) and not value.strip():
    return None
  try:
    if isinstance(value, bool) or isinstance(value, float) and value != int(value):
      raise ValueError
    return int(value)
  except (ValueError, TypeError, OverflowError):
    raise ValueError(f"{name}={values.shown(value)} is no whole number") from None


def of_class(captions: list[str], index: int | None, classnames, templates) -> list[str]:
  """The captions, or where there is none those of the class. templates: of `read_templates`."""
  if captions or templates is None or index is None or not classnames:
    return captions
  if not 0 <= index < len(classnames):
    raise ValueError(f"label={index} is none of the {len(classnames)} classes")
  return [template.replace("{}", classnames[index]) for template in templates]


def of_example(columns: list[list[str]], weights, index, classnames, templates) -> dict:
  """`names.of_columns`, or where all columns are empty the captions of the class."""
  found = names.of_columns(columns, weights) if columns else {"captions": []}
  if found["captions"]:
    return found
  return {"captions": of_class([], index, classnames, templates)}


def read_templates(value: str | Sequence[str] | None) -> tuple[str, ...] | None:
  """The templates that the field `template` stands for."""
  if value is None:
    return None
  if not isinstance(value, str):
    return tuple(value)
  if _is_template(value):
    return (value,)
  try:
    found = lines(storage.read_all(value, MAX_TEXT), f"template={value!r}")
  except ValueError as e:
    raise ValueError(
      f"template={value!r} must be a text with {{}} for the name of the class, or a file of such "
      f"texts: {e}"
    ) from None
  found = tuple(text.replace("{c}", "{}") for text in found)
  if not found or not all(map(_is_template, found)):
    raise ValueError(f"template={value!r}: each line must have {{}} for the name of the class")
  return found


def refuse_weights(spec, where: str):
  """ValueError for weights of captions where what is written has no place for them."""
  if spec.get("caption_weights") is not None:
    raise ValueError(
      f"{where}: caption_weights={spec['caption_weights']!r} has no place in what is written: all "
      "captions of an example in one list; leave it out"
    )


def beside(files: list[str], name: str) -> tuple[str, ...] | None:
  """The lines of a file beside these files, or else one folder up: the names of the classes, or
  templates.
  """
  found = set()
  for folder in {os.path.dirname(file) for file in files}:
    places = [os.path.join(folder, name), os.path.join(storage.parent(folder), name)]
    place = next(filter(storage.exists, places), None)
    data = storage.read_all(place, MAX_TEXT) if place else b""
    found.add(tuple(lines(data, f"path={place!r}")))
  if len(found) > 1:
    raise ValueError(f"path: the files differ in their {name}; give them as separate specs")
  return found.pop() or None


def templates(files: list[str]) -> tuple[str, ...] | None:
  """Those beside the files, with {} for the name of a class, which CLIP_benchmark writes {c}."""
  found = beside(files, TEMPLATES)
  return found and tuple(text.replace("{c}", "{}") for text in found)
