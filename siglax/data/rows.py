"""Rows of text files that name a picture each: what the sources csv and jsonl share."""

from __future__ import annotations

from collections.abc import Mapping
import os
import re
from typing import Any

from siglax.config.parts import Field
from siglax.data import captions as captions_lib
from siglax.data import index as index_lib
from siglax.data import paths
from siglax.data import storage

# Names that are taken where a spec gives none, the first that is there: those of siglax, open_clip
# and Hugging Face.
NAMES = {
  "image": ("image", "filepath", "file_name", "image_path", "path"),
  "caption": ("captions", "caption", "title", "text"),
  "label": ("label",),
}
FIELDS = {
  "path": Field(
    None,
    "a file, a glob, braces, a tuple of them, or the same with commas",
    kind=str | tuple,
    check=paths.path_problem,
  ),
  "image": Field(
    None,
    f"name of the paths of the pictures; None takes {', '.join(NAMES['image'])}, the first there "
    "is",
    kind=str,
    optional=True,
  ),
  "caption": Field(
    None,
    f"name of the captions; None takes {', '.join(NAMES['caption'])}, the first there is",
    kind=str,
    optional=True,
  ),
  "label": Field(
    None,
    'name of the class indices; None takes "label" if there is one',
    kind=str,
    optional=True,
  ),
  "root": Field(
    None,
    "folder that the paths of the pictures begin in; None takes that of the file",
    kind=str,
    optional=True,
  ),
}


class Rows:
  """Rows of files, in the order of the files: {"image": bytes, "captions": [str, …], "label",
  "key"}, of which the key is the path of the picture as the row has it.

  A subclass gives `_index(file)`, `_row(i)` and `_names(file)`. shard_sizes: int64 [files], the
  rows of each. A row costs 8 bytes of memory.
  """

  source = ""

  def __init__(self, path, image, caption, label, root):
    self._path, self._root = path, root
    files = paths.find(path, self.source)
    for file in files:
      _check_text(file)
    self._spans = index_lib.Spans(files, [self._index(file) for file in files])
    self.shard_sizes, self.open_shards = self._spans.sizes, self._spans.most_open
    self.read_ahead = self._spans.read_ahead
    if not len(self):
      raise ValueError(f"path={path!r} has no rows")
    given = {"image": image, "caption": caption, "label": label}
    self._wanted = [_chosen(given, file, self._names(file)) for file in files]
    self._refuse_urls()

  def _index(self, file: str) -> index_lib.Index:
    raise NotImplementedError

  def _row(self, i: int) -> Mapping[str, Any]:
    """{name: value} of a row; ValueError for a broken one."""
    raise NotImplementedError

  def _names(self, file: str) -> list[str]:
    """The names that its rows have."""
    raise NotImplementedError

  def __len__(self) -> int:
    return len(self._spans)

  def __getitem__(self, i: int) -> dict:
    file, start, _ = self._spans[i]
    wanted = self._wanted[self._spans.file_of(i)]
    try:
      row = self._row(i)
      name = row.get(wanted["image"])
      if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{wanted['image']} names no picture")
      example = {
        "image": storage.read_all(os.path.join(self._folder(file), name)),
        "captions": _captions(row, wanted),
        "key": name,
      }
      label = captions_lib.label(row.get(wanted.get("label")), wanted.get("label"))
    except ValueError as e:
      raise ValueError(f"{file!r}, byte {start}: {e}") from None
    return example if label is None else example | {"label": label}

  def captions(self, i: int) -> list[str]:
    """Those of row i, without a look at its picture."""
    file, start, _ = self._spans[i]
    try:
      return _captions(self._row(i), self._wanted[self._spans.file_of(i)])
    except ValueError as e:
      raise ValueError(f"{file!r}, byte {start}: {e}") from None

  def prepare_random_access(self):
    """Rows in any order are read one by one from here on."""
    self._spans.random = True

  def __repr__(self):
    return f"{type(self).__name__}({self._path!r})"

  def _folder(self, file: str) -> str:
    return os.path.dirname(file) if self._root is None else self._root

  def _refuse_urls(self):
    """ValueError for rows that name pictures on the web: the first tells."""
    name = self._wanted[0]["image"]
    try:
      found = self._row(0).get(name)
    except ValueError:  # broken; training deals with it
      return
    if isinstance(found, str) and re.match(r"[A-Za-z][\w+.-]*://", found):
      raise ValueError(
        f"image={name!r}: the rows of {self._spans.files[0]} name URLs, such as {found[:60]!r}; "
        "download the pictures first, for instance with img2dataset, whose tars are source "
        "webdataset"
      )


def _captions(row: Mapping[str, Any], wanted: dict[str, str]) -> list[str]:
  found = row.get(wanted.get("caption"))
  return [] if found == "" else captions_lib.listed(found, wanted.get("caption"))


def _check_text(file: str):
  """ValueError for a file that is empty, compressed or UTF-16."""
  paths.refuse_compressed(file)
  if not (size := storage.size(file)):
    raise ValueError(f"path={file!r} is empty (0 bytes)")
  if storage.read(file, 0, min(size, 2)) in (b"\xff\xfe", b"\xfe\xff"):
    raise ValueError(f"path={file!r} is UTF-16; write it as UTF-8")


def _chosen(given: dict[str, str | None], file: str, names: list[str]) -> dict[str, str]:
  """{"image": its name in a file, "caption", "label"}, of those that there are."""
  chosen, listed = {}, ", ".join(names[:50])
  for argument, name in given.items():
    if name is None:
      name = next((name for name in NAMES[argument] if name in names), None)
    elif name not in names:
      raise ValueError(f"{argument}={name!r}: no such name in {file} but {listed}; give one")
    if name is not None:
      chosen[argument] = name
      if names.count(name) > 1:
        raise ValueError(f"{argument}={name!r}: {file} has it several times; rename them")
  for argument in ("image", "caption"):
    if argument not in chosen and (argument == "image" or "label" not in chosen):
      known = ", ".join(map(repr, NAMES[argument]))
      raise ValueError(f"{argument}=None: {file} has none of {known} but {listed}; name one")
  return chosen
