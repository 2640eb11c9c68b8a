"""Tables of text with a line of names: CSV and TSV."""

from __future__ import annotations

import array
from collections.abc import Iterator
import csv
import io

import numpy as np

from siglax.config.parts import Field
from siglax.data import captions as captions_lib
from siglax.data import index as index_lib
from siglax.data import names as names_lib
from siglax.data import rows
from siglax.data import storage
from siglax.data.source import Source

CHUNK = 2**20
BOM = b"\xef\xbb\xbf"


class Csv(rows.Rows):
  """Rows of CSV and TSV files; see `rows.Rows`. Its arguments are the fields of SOURCE.

  What a row is, Python's csv module says: fields may be quoted, and quoted ones hold separators and
  newlines. Blank lines are no rows. A row that is not UTF-8, or of another number of fields than
  the first line has, is broken.
  """

  source = "csv"

  def __init__(self, separator, **fields):
    self._separator, self._headers = separator, {}
    super().__init__(**fields)

  def _index(self, file):
    head = storage.read(file, 0, min(storage.size(file), CHUNK)).removeprefix(BOM)
    separator = self._separator
    if separator is None:
      separator = "\t" if b"\t" in head.strip().partition(b"\n")[0] else ","
    # Only the names need be UTF-8: other rows of the piece are read when they are asked for.
    try:
      names = next(filter(_is_row, _parsed(head.decode("latin-1"), separator)), [])
    except csv.Error as e:
      raise ValueError(
        f"path={file!r}: the first line is no line of names: {e}; lines end in \\n or \\r\\n"
      ) from None
    names = [name.encode("latin-1").decode("utf-8", "replace") for name in names]
    others = [s for s in ";|" if self._separator is None and len(names) == 1 and s in names[0]]
    if others:
      raise ValueError(
        f"separator=None: the first line of {file!r} has {others[0]!r} and no {separator!r}; set "
        f"separator={others[0]!r}"
      )
    self._headers[file] = separator, names
    kind = f"csv 1 {separator!r}"
    return index_lib.of_file(file, kind, lambda path, size: _index(path, size, separator))

  def _names(self, file):
    return self._headers[file][1]

  def _row(self, i):
    separator, names = self._headers[self._spans[i][0]]
    text = captions_lib.text(self._spans.read(i), "the row")
    try:
      found = next(_parsed(text, separator))
    except csv.Error as e:
      raise ValueError(f"no row of CSV: {e}") from None
    if len(found) != len(names):
      raise ValueError(f"the row has {len(found)} fields, the first line has {len(names)}")
    return dict(zip(names, found))


def _parsed(text: str, separator: str) -> Iterator[list[str]]:
  return csv.reader(io.StringIO(text, newline="\n"), delimiter=separator)


def _is_row(row: list[str]) -> bool:
  return len(row) > 1 or bool(row and row[0].strip())


class _Lines:
  """The lines of a file, a character a byte; `position` is the first byte of the next."""

  def __init__(self, path: str, size: int):
    self._path, self._size = path, size
    self.position = len(BOM) if storage.read(path, 0, min(size, len(BOM))) == BOM else 0

  def __iter__(self) -> Iterator[str]:
    rest = b""
    for offset in range(self.position, self._size, CHUNK):
      rest += storage.read(self._path, offset, min(CHUNK, self._size - offset))
      *lines, rest = rest.split(b"\n")
      for line in lines:
        self.position += len(line) + 1
        yield line.decode("latin-1") + "\n"
      if len(rest) > captions_lib.MAX_TEXT:  # broken, and not to be held
        self.position, line, rest = self.position + len(rest), rest, b""
        yield line.decode("latin-1")
    if rest:
      self.position += len(rest)
      yield rest.decode("latin-1")


def _index(path: str, size: int, separator: str) -> index_lib.Index:
  """Where the rows behind the line of names begin: separators, quotes and newlines are the same
  bytes in UTF-8 as in Latin-1.
  """
  starts, lines = array.array("Q"), _Lines(path, size)
  reader = csv.reader(iter(lines), delimiter=separator)
  while True:
    start = lines.position
    try:
      if not _is_row(next(reader)):
        continue
    except StopIteration:
      break
    except csv.Error:  # a broken row
      pass
    starts.append(start)
  starts.append(size)
  return index_lib.Index(np.array(starts[1:] if len(starts) > 1 else starts, np.uint64), size)


def _separator_problem(value) -> str | None:
  good = isinstance(value, str) and len(value) == 1 and value not in '"\r\n ' and value.isascii()
  return None if good else "must be one character, such as ';'"


SOURCE = Source(
  "csv",
  "rows of CSV and TSV files with the paths of pictures, under a line of names",
  Csv,
  check=names_lib.check,
  endings=("csv", "tsv"),
  fields=rows.FIELDS
  | {
    "separator": Field(
      None,
      "character between fields; None takes a tab where the first line has one, else a comma",
      kind=str,
      optional=True,
      check=_separator_problem,
    )
  },
)
