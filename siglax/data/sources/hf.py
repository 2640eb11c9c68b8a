"""Folders that Hugging Face's `Dataset.save_to_disk` wrote, read without that library."""

from __future__ import annotations

from collections.abc import Iterator
import functools
import json
import os

import numpy as np
import pyarrow as pa

from siglax.config import values
from siglax.config.parts import Field
from siglax.data import captions as captions_lib
from siglax.data import names as names_lib
from siglax.data import remote
from siglax.data import storage
from siglax.data import tables
from siglax.data.numbering import Numbering
from siglax.data.source import Source


class HuggingFace:
  """Rows of a saved dataset, in its order: {"image": bytes, "captions": [str, …], "label",
  "weight", "key"}.

  The Arrow files are mapped, so that a row costs no memory until it is read. Its arguments are the
  fields of SOURCE. classnames: of the ClassLabel in `label`. shard_sizes: int64 [files].
  Raises ValueError, beginning with the argument, for a folder that holds no saved dataset, for one
  whose rows were selected or shuffled but not written anew, and as `tables.ImageText`.
  """

  def __init__(self, path, split, template, **names):
    self._arguments = {"path": path, "split": split, "template": template, **names}
    folder, files = _files(remote.copied(path), split)
    opened = {file: _opened(file) for file in files}
    schemas = {file: table.schema for file, table in opened.items()}
    self._tables, self._templates = list(opened.values()), captions_lib.read_templates(template)
    features = _features(folder)
    needed = template is None or not any(tables.names_of(features, name) for name in features)
    self._columns = tables.ImageText(schemas, **names, need_caption=needed)
    self.classnames = tables.names_of(features, self._columns.label)
    self.shard_sizes = np.array([table.num_rows for table in self._tables], np.int64)
    self._numbering = Numbering(self.shard_sizes)
    if not len(self):
      raise ValueError(f"path={path!r} has no rows")

  def __len__(self) -> int:
    return len(self._numbering)

  def __getitem__(self, i: int) -> dict:
    file, row = self._numbering.find(i)
    row = self._columns.row(self._tables[file].slice(row, 1))
    return self._columns.example(row, self.classnames, self._templates)

  def texts(self) -> Iterator[dict | None]:
    """Captions and labels, of which the pictures are not read."""
    columns = self._columns.without_pictures()
    rows = (
      row
      for table in self._tables
      for batch in table.to_batches()
      for row in columns.convert(batch).to_pylist()
    )
    return columns.texts(rows, self.classnames, self._templates)

  def __repr__(self):
    return f"HuggingFace({self._arguments['path']!r})"

  def __reduce__(self):  # a worker process maps the files itself
    return functools.partial(HuggingFace, **self._arguments), ()


def _files(path: str, split: str | None) -> tuple[str, list[str]]:
  """(the folder of the dataset, its Arrow files)."""
  if splits := _json(os.path.join(path, "dataset_dict.json"), path, missing={}).get("splits"):
    if split is None or split not in splits:
      raise ValueError(f"split={split!r}: {path} has the splits {', '.join(splits)}; name one")
    path = os.path.join(path, split)
  elif split is not None:
    raise ValueError(f"split={split!r}: {path} has no splits; leave it None")
  state = _json(os.path.join(path, "state.json"), path)
  if state.get("_indices_files"):
    raise ValueError(
      f"path={path!r} holds rows that were selected or shuffled: write them anew by "
      "dataset.flatten_indices().save_to_disk(…)"
    )
  try:
    names = [file["filename"] for file in state["_data_files"]]
    if not all(name == os.path.basename(name) for name in names):
      raise ValueError("a file outside of the folder")
  except (LookupError, TypeError, ValueError) as e:
    raise ValueError(f"path={path!r}: its state.json is damaged: {values.one_line(e)}") from None
  return path, [os.path.join(path, name) for name in names]


def _json(file: str, path: str, missing: dict | None = None) -> dict:
  if not storage.exists(file):
    if missing is not None:
      return missing
    raise ValueError(
      f"path={path!r} has no {os.path.basename(file)}; source hf reads folders that a dataset's "
      "save_to_disk(…) wrote"
    )
  try:
    found = json.loads(storage.read_all(file))
  except (ValueError, RecursionError) as e:
    raise ValueError(f"path={path!r}: {os.path.basename(file)} is damaged: {e}") from None
  return found if isinstance(found, dict) else {}


def _features(folder: str) -> dict:
  features = _json(os.path.join(folder, "dataset_info.json"), folder, missing={}).get("features")
  return features if isinstance(features, dict) else {}


def _opened(file: str) -> pa.Table:
  try:
    return pa.ipc.open_stream(pa.memory_map(file)).read_all()
  except (pa.ArrowException, OSError) as e:
    raise ValueError(f"path={file!r} is damaged or missing: {values.one_line(e)}") from None


SOURCE = Source(
  "hf",
  "rows of a folder that Hugging Face's Dataset.save_to_disk wrote",
  HuggingFace,
  endings=("arrow",),
  check=names_lib.check,
  fields={
    "path": Field(None, "the folder", kind=str),
    "split": Field(None, "the split, of a folder that has several", kind=str, optional=True),
    "template": captions_lib.TEMPLATE,
    **tables.named("column"),
  },
)
