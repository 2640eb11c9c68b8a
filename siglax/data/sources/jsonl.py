"""Lines of JSON."""

from __future__ import annotations

import json

import numpy as np

from siglax.config import values
from siglax.data import captions as captions_lib
from siglax.data import index as index_lib
from siglax.data import names
from siglax.data import rows
from siglax.data import storage
from siglax.data.source import Source

KIND = "jsonl 1"
CHUNK = 2**20
# Rows that are looked at for the names that there are.
LOOKED_AT = 100
SPACES = np.isin(np.arange(256), list(b" \t\r\n"))


class JsonLines(rows.Rows):
  """Lines with a JSON object each; see `rows.Rows`. Its arguments are the fields of SOURCE.

  Captions are a string or a list of strings. Blank lines are no rows. A line that is no object or
  not UTF-8 is broken.
  """

  source = "jsonl"

  def _index(self, file):
    head = storage.read(file, 0, min(storage.size(file), CHUNK)).decode("utf-8-sig", "replace")
    if head.lstrip().startswith("["):
      raise ValueError(
        f"path={file!r} is one list; source jsonl needs an object a line: "
        "jq -c '.[]' a.json > a.jsonl"
      )
    return index_lib.of_file(file, KIND, _index)

  def _names(self, file):
    k, found = self._spans.files.index(file), {}
    first = int(self.shard_sizes[:k].sum())
    for i in range(first, first + min(LOOKED_AT, int(self.shard_sizes[k]))):
      try:
        found |= self._row(i)
      except ValueError as e:  # broken; training deals with it
        error = e
    if not found:
      raise ValueError(f"path={file!r}: no object in its first lines: {error}")
    return list(found)

  def _row(self, i):
    text = captions_lib.text(self._spans.read(i), "the line")
    try:
      found = json.loads(text)
    except (ValueError, RecursionError) as e:
      raise ValueError(f"no JSON: {values.one_line(e)}") from None
    if not isinstance(found, dict):
      raise ValueError(f"the line holds {values.shown(found)}; it must be an object")
    return found


def _index(path: str, size: int) -> index_lib.Index:
  """Where the lines begin that are not blank."""
  # Of each line the start, and how many bytes before it are no spaces.
  starts, written, before = [np.zeros(1, np.uint64)], [np.zeros(1, np.int64)], 0
  for offset in range(0, size, CHUNK):
    piece = np.frombuffer(storage.read(path, offset, min(CHUNK, size - offset)), np.uint8)
    counts = before + np.cumsum(~SPACES[piece])
    ends = np.flatnonzero(piece == ord("\n"))
    starts.append((ends + offset + 1).astype(np.uint64))
    written.append(counts[ends])
    before = int(counts[-1])
  starts, written = np.concatenate(starts), np.concatenate([*written, [before]])
  return index_lib.Index(np.append(starts[np.diff(written) > 0], np.uint64(size)), size)


SOURCE = Source(
  "jsonl",
  "lines with a JSON object each, that hold the path of a picture and its captions",
  JsonLines,
  check=names.check,
  endings=("jsonl", "ndjson"),
  fields=rows.FIELDS,
)
