"""Rows of text files that name a picture each: what the sources csv and jsonl share."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
import os
import re
from typing import Any

from siglax.config.parts import Field
from siglax.data import captions as captions_lib
from siglax.data import index as index_lib
from siglax.data import names as names_lib
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
  **names_lib.caption(
    f"name of the captions; None takes {', '.join(NAMES['caption'])}, the first there is"
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

  def __init__(self, path, image, caption, caption_weights, label, root):
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
    self._weights = None if caption_weights is None else names_lib.numbers(caption_weights)
    self._wanted = [self._chosen(given, file) for file in files]
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
    try:
      row, wanted = self._row(i), self._wanted[self._spans.file_of(i)]
      (of_image,) = wanted["image"]
      if not isinstance(name := row.get(of_image), str) or not name.strip():
        raise ValueError(f"{of_image} names no picture")
      image = storage.read_all(os.path.join(self._folder(file), name))
      return {"image": image, **self._texts_of(row, wanted), "key": name}
    except ValueError as e:
      raise ValueError(f"{file!r}, byte {start}: {e}") from None

  def _captions_of(self, row: Mapping[str, Any], wanted: dict[str, tuple[str, ...]]) -> dict:
    columns = [_captions(row.get(column), column) for column in wanted.get("caption", ())]
    return captions_lib.of_example(columns, self._weights, None, None, None)

  def _texts_of(self, row: Mapping[str, Any], wanted: dict[str, tuple[str, ...]]) -> dict:
    """The captions of a row, and its label where it has one."""
    found = self._captions_of(row, wanted)
    (of_label,) = wanted.get("label", ("",))
    label = captions_lib.label(row.get(of_label), of_label)
    return found if label is None else found | {"label": label}

  def texts(self) -> Iterator[dict | None]:
    """Captions and labels, of which the pictures are not read."""
    for i in range(len(self)):
      try:
        yield self._texts_of(self._row(i), self._wanted[self._spans.file_of(i)])
      except ValueError:  # broken; training deals with it
        yield None

  def captions(self, i: int) -> list[str]:
    """Those of row i, without a look at its picture."""
    file, start, _ = self._spans[i]
    try:
      return self._captions_of(self._row(i), self._wanted[self._spans.file_of(i)])["captions"]
    except ValueError as e:
      raise ValueError(f"{file!r}, byte {start}: {e}") from None

  def prepare_random_access(self):
    """Rows in any order are read one by one from here on."""
    self._spans.random = True

  def __repr__(self):
    return f"{type(self).__name__}({self._path!r})"

  def _folder(self, file: str) -> str:
    return os.path.dirname(file) if self._root is None else self._root

  def _chosen(self, given: dict, file: str) -> dict[str, tuple[str, ...]]:
    """The names of a file that the fields stand for. A row needs captions or a label."""
    there = self._names(file)
    chosen = names_lib.chosen(given, NAMES, there, "name", file, ("image",))
    needed = () if "label" in chosen else ("caption",)
    return names_lib.chosen(given, NAMES, there, "name", file, needed)

  def _refuse_urls(self):
    """ValueError for rows that name pictures on the web: the first tells."""
    (name,) = self._wanted[0]["image"]
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


def _check_text(file: str):
  """ValueError for a file that is empty, compressed or UTF-16."""
  paths.refuse_compressed(file)
  if not (size := storage.size(file)):
    raise ValueError(f"path={file!r} is empty (0 bytes)")
  if storage.read(file, 0, min(size, 2)) in (b"\xff\xfe", b"\xfe\xff"):
    raise ValueError(f"path={file!r} is UTF-16; write it as UTF-8")


def _captions(value, column: str) -> list[str]:
  return [] if value == "" else captions_lib.listed(value, column)
