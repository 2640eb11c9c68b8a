"""Folders of pictures, with captions in text files or with a folder a class."""

from __future__ import annotations

from collections.abc import Iterator
import os

import numpy as np

from siglax.config.parts import Field
from siglax.data import captions as captions_lib
from siglax.data import paths
from siglax.data import storage
from siglax.data.source import Source

# Names of folders that are parts of a dataset and no classes.
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}
TEXT_ENDINGS = (".txt", ".TXT")


class Folder:
  """The pictures of folders and of all folders in them, in the order of their names: {"image":
  bytes, "captions": [str, …], "label", "key"}.

  The captions of a.jpg are the lines of a.txt (or a.TXT) beside it. Where no picture has such a
  file, the first folder on its way is its class: cat/1.jpg and cat/x/2.jpg are of the class "cat".
  Names that begin with a dot are left out, and a link to a folder is followed once.
  Its arguments are the fields of SOURCE. classnames: the names of the class folders, sorted, "_" as
  a space; else None. An example costs the bytes of its file's name and 12 more; twice that while
  the folders are listed.

  Raises ValueError, beginning with the argument, for a folder without pictures, or whose pictures
  have neither captions nor classes.
  """

  def __init__(self, path, classes, template):
    self._path, self._templates = path, captions_lib.read_templates(template)
    self._roots = paths.find(path, "folder", in_folder=lambda folder: [folder])
    self._list()
    if classes is None:
      classes = not self._with_text and all(below for _, below in self._folders)
      self._refuse_table(classes)
    if not self._with_text and not classes:
      raise ValueError(self._nothing_to_say())
    tops = [below.split(os.sep)[0] for _, below in self._folders]
    self.classnames, self._labels = None, [None] * len(tops)
    if classes:
      names = sorted(set(tops))
      self._check_classes(names)
      self.classnames = tuple(name.replace("_", " ") for name in names)
      self._labels = [names.index(top) for top in tops]

  def __len__(self) -> int:
    return len(self._folder_of)

  def __getitem__(self, i: int) -> dict:
    k, name = self._find(i)
    (root, below), label = self._folders[k], self._labels[k]
    stem = os.path.join(below, os.path.splitext(name)[0])
    example = {
      "image": storage.read_all(os.path.join(root, below, name)),
      "captions": self.captions(i),
      "key": os.fsencode(stem).decode("utf-8", "replace"),
    }
    return example if label is None else example | {"label": label}

  def texts(self) -> Iterator[dict] | None:
    """Captions and labels, where the folders alone tell them."""
    if self._with_text:
      return None
    labels = (self._labels[k] for k in self._folder_of.tolist())
    class_of = lambda k: captions_lib.of_class([], k, self.classnames, self._templates)
    return ({"captions": class_of(label), "label": label} for label in labels)

  def captions(self, i: int) -> list[str]:
    """Those of picture i, without a look at the picture."""
    k, name = self._find(i)
    stem, found = os.path.join(*self._folders[k], os.path.splitext(name)[0]), []
    texts = (f"{stem}{ending}" for ending in TEXT_ENDINGS if self._with_text)
    if text := next(filter(storage.exists, texts), None):
      found = captions_lib.lines(storage.read_all(text), repr(text))
    return captions_lib.of_class(found, self._labels[k], self.classnames, self._templates)

  def __repr__(self):
    return f"Folder({self._path!r})"

  def _find(self, i: int) -> tuple[int, str]:
    """(the number of its folder, its name) of a picture."""
    if not 0 <= i < len(self):
      raise IndexError(f"picture {i} of {len(self)}")
    start, end = self._ends[i : i + 2].tolist()
    return int(self._folder_of[i]), os.fsdecode(self._names[start:end])

  def _list(self):
    """_folders: (root, folder below it) of those with pictures. Of each picture the number of its
    folder, _folder_of, and its name, _names[_ends[i]:_ends[i + 1]].
    """
    self._folders, self._with_text = [], 0
    names, lengths, counts = bytearray(), [np.zeros(1, np.int64)], []
    for root in self._roots:
      if not storage.is_folder(root):
        raise ValueError(f"path={root!r} is a file; name the folder that holds it")
      for below, files in storage.walk(root):
        pictures = [name for name in files if paths.ending(name) in paths.PICTURE_ENDINGS]
        if not pictures:
          continue
        if any(name.endswith(TEXT_ENDINGS) for name in files):
          texts = {os.path.splitext(name)[0] for name in files if name.endswith(TEXT_ENDINGS)}
          self._with_text += sum(os.path.splitext(name)[0] in texts for name in pictures)
        encoded = list(map(os.fsencode, pictures))
        names += b"".join(encoded)
        lengths.append(np.fromiter(map(len, encoded), np.int64, len(encoded)))
        counts.append(len(pictures))
        self._folders.append((root, below))
    if not counts:
      paths.refuse_folder(self._roots[0], "folder")
    self._names = bytes(names)
    self._ends = np.cumsum(np.concatenate(lengths))
    self._folder_of = np.repeat(np.arange(len(counts), dtype=np.uint32), counts)

  def _nothing_to_say(self) -> str:
    """Why pictures have neither captions nor classes."""
    here = next(root for root, below in self._folders if not below)
    table = _table(here, "*")
    return (
      f"path={here!r} holds pictures and no captions: write those of a.jpg into a.txt, one a line, "
      f"or put each class into a folder of its own{f', or use {table}' if table else ''}"
    )

  def _refuse_table(self, classes: bool):
    """ValueError where folders would be taken for classes beside a table as Hugging Face has it."""
    table = next(filter(None, (_table(root, "metadata") for root in self._roots)), None)
    if classes and table:
      raise ValueError(
        f"path={self._path!r} holds pictures in folders, and a table of them: use {table}, or set "
        "classes=True, where the folders are classes"
      )

  def _check_classes(self, names: list[str]):
    root = self._roots[0]
    if "" in names:
      here = next(root for root, below in self._folders if not below)
      raise ValueError(
        f"classes=True, but path={here!r} holds pictures outside of its class folders; put them "
        "into folders, or leave classes out"
      )
    if set(names) <= SPLITS:
      raise ValueError(
        f"path={root!r} holds {', '.join(names)}, which are parts and no classes; use one of them, "
        f"such as {os.path.join(root, names[0])!r}"
      )
    if len(names) == 1:
      raise ValueError(
        f"path={root!r} holds the pictures of one class, {names[0]!r}, and no captions; write "
        "those of a.jpg into a.txt, one a line"
      )


def _table(folder: str, name: str) -> str | None:
  """The source and path of a table in a folder, in words; None where there is none."""
  for of in ("csv", "tsv", "jsonl", "parquet"):
    if tables := storage.glob_in(folder, f"{name}.{of}"):
      return f"source {paths.source_of(tables[0])} with path={tables[0]!r}"
  return None


SOURCE = Source(
  "folder",
  "pictures in folders, the captions of a.jpg in a.txt beside it, or a folder a class",
  Folder,
  endings=paths.PICTURE_ENDINGS,
  fields={
    "path": Field(
      None,
      "a folder, a glob of folders, a tuple of them, or the same with commas",
      kind=str | tuple,
      check=paths.path_problem,
    ),
    "classes": Field(
      None,
      "whether the folders in it are classes; None takes them as such where no picture has a .txt",
      kind=bool,
      optional=True,
    ),
    "template": captions_lib.TEMPLATE,
  },
)
