"""Files of a run folder that grow line by line. No failure leaves half of a line."""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import pathlib

logger = logging.getLogger("siglax")


def encode(record: dict) -> bytes:
  """A record as one line of JSON. Raises ValueError for a value that is not finite."""
  return json.dumps(record, allow_nan=False).encode() + b"\n"


def read_records(path: pathlib.Path, key: str) -> list[dict]:
  """The JSON objects whose `key` is a whole number in a file of lines; what a kill tore is left
  out.
  """
  records = map(_parse, path.read_bytes().splitlines())
  return [record for record in records if record is not None and type(record.get(key)) is int]


def _refuse(constant: str):
  """NaN and its kind, which no JSON holds."""
  raise ValueError(constant)


def _parse(line: bytes) -> dict | None:
  try:
    record = json.loads(line, parse_constant=_refuse)
  except (ValueError, RecursionError):
    return None
  return record if isinstance(record, dict) else None


class Lines:
  """Records appended to a file, one a line, each flushed at once: kill -9 tears at most the last
  line.

  While the file cannot be written, as on a full disk, the newest `keep` records wait in memory, and
  each new one tries them all again: a warning says that it begins, a line that it is over. Raises
  OSError where the file cannot be opened.
  """

  def __init__(self, path: pathlib.Path, keep: int):
    self._path, self._waiting, self._failing = path, collections.deque(maxlen=keep), False
    self._file = path.open("ab", buffering=0)
    self._size = path.stat().st_size  # of whole lines

  def append(self, record: dict):
    self._waiting.append(encode(record))
    try:
      self._write_waiting()
    except OSError as e:
      if not self._failing:
        logger.warning(
          "%s cannot be written (%s): its lines wait in memory, and the training goes on",
          self._path,
          e.strerror,
        )
      self._failing = True
    else:
      if self._failing:
        logger.warning("%s is written again", self._path)
      self._failing = False

  def close(self):
    """Tries once more to write what waits; a warning says what is lost where that fails."""
    try:
      self._write_waiting()
    except OSError as e:
      logger.warning(
        "%s lacks its last lines, %d of them (%s)", self._path, len(self._waiting), e.strerror
      )
      with contextlib.suppress(OSError):
        self._file.truncate(self._size)
    with contextlib.suppress(OSError):
      self._file.close()

  def _write_waiting(self):
    if self._failing:
      self._file.truncate(self._size)  # cuts off what there is of a line
    while self._waiting:
      line = self._waiting[0]
      left = memoryview(line)
      while left:
        left = left[self._file.write(left) :]
      self._size += len(line)
      self._waiting.popleft()
