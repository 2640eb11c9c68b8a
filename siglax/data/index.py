"""Where the examples of large files begin: found by one pass over a file, and kept for the next
time.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import hashlib
import itertools
import json
import logging
import os
import pathlib
import zlib

import numpy as np

from siglax.data import storage
from siglax.devices import disk

# A smaller file is read anew in a moment, and gets no index beside it.
MIN_BYTES = 2**20
logger = logging.getLogger("siglax")


@dataclasses.dataclass(frozen=True)
class Index:
  """Where the examples of one file begin.

  starts [n + 1]: of each example, and the end of the last, in the unit of its source.
  size: bytes of the file.
  damage: (offset in bytes, what is wrong there); the examples before it are whole.
  """

  starts: np.ndarray
  size: int
  damage: tuple[int, str] | None = None

  def __len__(self) -> int:
    return len(self.starts) - 1


def of_file(path: str, kind: str, make: Callable[[str, int], Index]) -> Index:
  """The index of a file, from beside it or from the cache folder, or else made and kept there.

  kind: names what is indexed and how, so that another version makes it anew; so does a file of
  another size or time. make: (path, bytes) → the index.
  """
  size, modified = storage.stamp(path)
  key = {"kind": kind, "bytes": size, "modified": modified}
  places = _places(path) if size >= MIN_BYTES or storage.is_url(path) else []
  for place in places:
    if (stored := _read(place, key)) is not None:
      return stored
  made = make(path, size)
  if places:
    _keep(made, key, places)
  return made


class Spans:
  """Where each example of several files lies, in the order of the files.

  files: paths. indices: of each. unit: bytes that its starts count. In memory are the starts: 4 or
  8 bytes an example. random: the examples are read in an order that keeps to no file.
  """

  random = False

  def __init__(self, files: Sequence[str], indices: Sequence[Index], unit: int = 1):
    self.files, self._unit = list(files), unit
    self.sizes = np.array([len(index) for index in indices], np.int64)
    self._bytes = [index.size for index in indices]
    self._firsts = list(itertools.accumulate(map(len, indices), initial=0))
    self._starts = np.concatenate([index.starts for index in indices])

  def __len__(self) -> int:
    return self._firsts[-1]

  def file_of(self, i: int) -> int:
    """The number of the file that holds example i."""
    if not 0 <= i < len(self):
      raise IndexError(f"example {i} of {len(self)}")
    return bisect.bisect_right(self._firsts, i) - 1

  def __getitem__(self, i: int) -> tuple[str, int, int]:
    """(file, its first byte, bytes) of example i."""
    k = self.file_of(i)
    # Each file has one start more than examples: the end of its last.
    start, end = self._starts[i + k : i + k + 2].tolist()
    start, end = start * self._unit, min(end * self._unit, self._bytes[k])
    return self.files[k], start, end - start

  def read(self, i: int) -> bytes:
    """The bytes of example i; ValueError for more than storage.MAX_BYTES."""
    file, start, length = self[i]
    if length > storage.MAX_BYTES:
      raise ValueError(
        f"{file!r}, byte {start}: an example of {length:,} bytes; {storage.MAX_BYTES:,} are allowed"
      )
    return storage.read(file, start, length, self.random)

  def read_ahead(self, k: int):
    """Fetches file k, where it is in a bucket, because its examples are going to be read."""
    storage.read_ahead(self.files[k])

  @property
  def most_open(self) -> int | None:
    """Files that the disk keeps at a time while as many come from a bucket; None for local ones."""
    if not any(map(storage.is_url, self.files)):
      return None
    return max(1, storage.room() // (2 * max(self._bytes)))


def _places(path: str) -> list[pathlib.Path]:
  """Where the index of a file may be: beside it, or where that is read-only or a bucket in the
  cache.
  """
  places = [] if storage.is_url(path) else [pathlib.Path(path + storage.INDEX_ENDING)]
  if (cache := storage.cache_folder()) is not None:
    name = hashlib.sha256(os.fsencode(storage.absolute(path))).hexdigest()[:24]
    places.append(cache / (name + storage.INDEX_ENDING))
  return places


def _read(place: pathlib.Path, key: dict) -> Index | None:
  """What `_keep` wrote for that key; None where it did not, or where it is damaged."""
  try:
    head, _, body = storage.read_all(str(place), most=2**40).partition(b"\n")
    stored = json.loads(head)
    if any(stored[name] != value for name, value in key.items()):
      return None
    if zlib.crc32(body) != stored["crc32"]:
      return None
    damage = stored["damage"] and (int(stored["damage"][0]), str(stored["damage"][1]))
    return Index(np.frombuffer(body, stored["type"]), key["bytes"], damage)
  except (ValueError, LookupError, TypeError, RecursionError, storage.Unreachable):
    return None


def _keep(index: Index, key: dict, places: list[pathlib.Path]):
  body = index.starts.tobytes()
  facts = {"type": index.starts.dtype.str, "crc32": zlib.crc32(body), "damage": index.damage}
  head = json.dumps(key | facts).encode()
  for place in places:
    try:
      place.parent.mkdir(parents=True, exist_ok=True)
      with disk.replacing(place) as temporary:
        temporary.write_bytes(head + b"\n" + body)
      return
    except OSError as e:
      error = e
  logger.warning("%s: the index is not kept, and made again next time: %s", places[0], error)
