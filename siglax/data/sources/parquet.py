"""Rows of Parquet files, as Hugging Face datasets and img2dataset write them."""

from __future__ import annotations

from collections.abc import Iterator
import logging

from siglax.config.parts import Field
from siglax.data import captions as captions_lib
from siglax.data import files as files_lib
from siglax.data import names as names_lib
from siglax.data import paths
from siglax.data import row_groups
from siglax.data import tables
from siglax.data.source import SKIP_DAMAGED
from siglax.data.source import Source

logger = logging.getLogger("siglax")


class Parquet:
  """Rows of Parquet files, in the order of the files: {"image": bytes, "captions": [str, …],
  "label", "weight", "key"}.

  Its arguments are the fields of SOURCE. classnames: see `tables.classnames`. shard_sizes: int64
  [row groups], the rows of each.
  Up to files.MEMORY_BYTES of rows are read at the start and held in memory. Of more, a row group is
  read when one of its rows is asked for, and those that were used last are held, up to
  MEMORY_BYTES: open_shards is how many that are. Rows in any order would read each row group again
  and again, so `prepare_random_access` writes them all into a file once. held_bytes: what each
  process that reads the rows holds in memory.

  Raises ValueError, beginning with the argument, for a missing, empty or damaged file, or a column
  that is missing or of another type.
  """

  def __init__(self, path, template, skip_damaged_shards, **names):
    self._arguments = {
      "path": path,
      "template": template,
      "skip_damaged_shards": skip_damaged_shards,
      **names,
    }
    files = _opened(path, skip_damaged_shards)
    schemas = {file: opened.schema_arrow for file, opened in files.items()}
    self._templates = captions_lib.read_templates(template)
    label = names["label"] or "label"
    needed = self._templates is None or tables.classnames(schemas, label) is None
    self._columns = tables.ImageText(schemas, **names, need_caption=needed)
    self.classnames = tables.classnames(schemas, self._columns.label)
    if self._columns.bytes(files) <= files_lib.MEMORY_BYTES:
      self._rows = row_groups.InMemory(files, self._columns, skip_damaged_shards)
    else:
      self._rows = row_groups.OnDemand(files, self._columns, skip_damaged_shards)
    self.shard_sizes, self.open_shards = self._rows.sizes, self._rows.most_open
    if not len(self):
      raise ValueError(f"path={path!r} has no rows")

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, i: int) -> dict:
    if not 0 <= i < len(self):
      raise IndexError(f"row {i} of {len(self)}")
    return self._columns.example(self._rows[i], self.classnames, self._templates)

  def texts(self) -> Iterator[dict | None]:
    """Captions and labels, of which the pictures are not read."""
    columns = self._columns.without_pictures()
    return columns.texts(self._rows.read(columns), self.classnames, self._templates)

  def __repr__(self):
    return f"Parquet({self._arguments['path']!r})"

  def __reduce__(self):  # a worker process opens the files itself
    return _again, (self._arguments, isinstance(self._rows, row_groups.Mapped))

  @property
  def held_bytes(self) -> int:
    return self._rows.held_bytes

  def prepare_random_access(self):
    """Rows in any order are as fast as rows in a row from here on."""
    if isinstance(self._rows, row_groups.OnDemand):
      path, skip = self._arguments["path"], self._arguments["skip_damaged_shards"]
      self._rows = row_groups.Mapped(_opened(path, skip), self._columns, skip)


def _again(arguments, mapped: bool) -> Parquet:
  examples = Parquet(**arguments)
  if mapped:
    examples.prepare_random_access()
  return examples


def _opened(path, skip: bool) -> dict:
  """{file: ParquetFile}. skip: a file that cannot be opened is left out."""
  files = {}
  for file in paths.find(path, "parquet", missing=skip):
    try:
      files[file] = files_lib.open_parquet(file)
    except ValueError as e:
      if not skip:
        raise
      logger.warning("%s; its rows are left out", e)
  if not files:
    raise ValueError(f"path={path!r} has no file that can be read")
  return files


SOURCE = Source(
  "parquet",
  "rows of Parquet files, in the order of the files",
  Parquet,
  endings=("parquet",),
  check=names_lib.check,
  fields={
    "path": Field(
      None,
      "a file, a glob, braces, a tuple of them, or the same with commas: "
      '"train-{000..127}.parquet,more-*.parquet"',
      kind=str | tuple,
      check=paths.path_problem,
    ),
    **tables.named("column"),
    "template": captions_lib.TEMPLATE,
    "skip_damaged_shards": SKIP_DAMAGED,
  },
)
