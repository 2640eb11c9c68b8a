"""Where a tokenizer is: a file, a folder that holds one, or a URL of either."""

from __future__ import annotations

from collections.abc import Mapping
import os
import pathlib

from siglax.data import storage
from siglax.data.text.kind import Kind
from siglax.data.text.kind import Source

SHIPPED = {"shapes": pathlib.Path(__file__).parent.with_name("shapes.model")}
# Of a tokenizer's file; Gemma's 256,000 pieces take 4 MB, and 34 MB as a tokenizer.json.
MAX_BYTES = 2**26


def find(tokenizer: str, kinds: Mapping[str, Kind]) -> tuple[Kind, Source]:
  """The kind and the file of config.text.tokenizer. ValueError in one line where there is none, or
  more than one.
  """
  field = f"config.text.tokenizer={tokenizer!r}"
  path = str(SHIPPED.get(tokenizer, tokenizer))
  try:
    is_folder, exists = storage.is_folder(path), storage.exists(path)
  except (ValueError, storage.Unreachable) as e:
    raise type(e)(f"{field}: {e}") from None
  if is_folder:
    path = _join(path, _only(path, field, kinds))
  elif not exists and not storage.is_url(path):
    raise ValueError(
      f"{field}: no such file; give a sentencepiece .model, a tokenizer.json, a folder that holds "
      f"one of them, or {', '.join(SHIPPED)}"
    )
  suffixes = {kind.suffix: kind for kind in kinds.values()}
  kind = suffixes.get(os.path.splitext(path)[1], next(iter(kinds.values())))
  return kind, Source(field, path, _read(path, field), lambda name: _beside(path, name, field))


def names_in(folder: str, kinds: Mapping[str, Kind]) -> list[str]:
  """The names of the tokenizers' files that a folder holds."""
  names = [name for kind in kinds.values() for name in kind.names]
  return [name for name in names if storage.exists(_join(folder, name))]


def _only(folder, field, kinds):
  found = names_in(folder, kinds)
  if not found:
    wanted = ", ".join(name for kind in kinds.values() for name in kind.names)
    raise ValueError(f"{field}: the folder holds no tokenizer; it needs one of {wanted}")
  if len(found) > 1:
    raise ValueError(
      f"{field}: the folder holds {' and '.join(found)}; give the path of one of them"
    )
  return found[0]


def _join(folder, name):
  return f"{folder.rstrip('/')}/{name}"


def _beside(path, name, field):
  other = _join(os.path.dirname(path) or ".", name)
  return _read(other, field) if storage.exists(other) else None


def _read(path, field) -> bytes:
  """A whole file of a size that a tokenizer has."""
  if storage.is_url(path):
    try:
      return storage.read_all(path, MAX_BYTES)
    except (ValueError, storage.Unreachable) as e:
      raise type(e)(f"{field}: {e}") from None
  file = pathlib.Path(path)
  if not file.is_file():
    raise ValueError(f"{field}: {path} is no file")
  if (size := file.stat().st_size) > MAX_BYTES:
    raise ValueError(
      f"{field}: {path} has {size} bytes, more than the {MAX_BYTES} of any tokenizer; give another "
      "file"
    )
  try:
    return file.read_bytes()
  except OSError as e:
    raise ValueError(f"{field}: {path} cannot be read: {e.strerror}") from None
