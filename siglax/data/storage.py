"""Access to files: all that the sources of pictures and text read goes through here.

Reads name a path, an offset and a length, so that a file of any size costs no memory but what is
asked for, and so that another kind of storage can stand behind the same functions.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
import glob as glob_lib
import os
import pathlib
import stat
import threading

# Files that are open at a time, whatever the number of shards and threads.
MAX_OPEN = 128
# Bytes of a file that is read whole, or of an example: a picture is thousands of times smaller.
MAX_BYTES = 2**28
# Ending of an index that stands beside its file (siglax/data/index.py). No glob means it.
INDEX_ENDING = ".siglax-index"


class _Descriptor:
  """An open file, closed when nobody uses it any more."""

  def __init__(self, number: int):
    self.number = number

  def __del__(self):
    os.close(self.number)


_lock = threading.Lock()
_descriptors: collections.OrderedDict[str, _Descriptor] = collections.OrderedDict()


def exists(path: str) -> bool:
  return os.path.exists(path)


def is_folder(path: str) -> bool:
  return os.path.isdir(path)


def glob(pattern: str) -> list[str]:
  """Paths that match a pattern, sorted; `**` means any folders."""
  found = sorted(glob_lib.glob(pattern, recursive=True))
  return [path for path in found if not path.endswith(INDEX_ENDING)]


def glob_in(folder: str, pattern: str) -> list[str]:
  """`glob` of a pattern in a folder, whatever characters the folder's name has."""
  return glob(os.path.join(glob_lib.escape(folder), pattern))


def stamp(path: str) -> tuple[int, int]:
  """(bytes, time of the last change in ns) of a file as it is now; reads that follow are of it.

  Raises ValueError for one that is missing, or is no file.
  """
  with _lock:
    _descriptors.pop(path, None)
  try:
    found = os.stat(path)
  except (OSError, ValueError) as e:
    raise _unreadable(path, e) from None
  if not stat.S_ISREG(found.st_mode):
    raise ValueError(f"{path!r} is no file")
  return found.st_size, found.st_mtime_ns


def size(path: str) -> int:
  """Bytes of a file; see `stamp`."""
  return stamp(path)[0]


def read(path: str, offset: int, length: int) -> bytes:
  """`length` bytes from `offset` on, from any thread; ValueError where there are fewer."""
  try:
    file = _descriptor(path)
  except (OSError, ValueError) as e:
    raise _unreadable(path, e) from None
  return _read(path, file, offset, length)


def read_all(path: str, most: int = MAX_BYTES) -> bytes:
  """A whole file of at most so many bytes; ValueError for a larger one."""
  try:
    number = os.open(path, _FLAGS)
  except (OSError, ValueError) as e:
    raise _unreadable(path, e) from None
  file = _Descriptor(number)
  found = os.fstat(number)
  if not stat.S_ISREG(found.st_mode):
    raise ValueError(f"{path!r} is no file")
  if found.st_size > most:
    raise ValueError(f"{path!r} has {found.st_size:,} bytes, more than {most:,}")
  return _read(path, file, 0, found.st_size)


def cache_folder() -> pathlib.Path | None:
  """Where siglax keeps what it made of data, on the disk of this machine; None without a home."""
  try:
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "siglax"
  except RuntimeError:
    return None


def walk(folder: str) -> Iterator[tuple[str, list[str]]]:
  """(sub-folder, names of its files), of the folder itself, "", and of all in it, sorted.

  Names that begin with a dot are left out. A link to a folder is followed; each folder is read
  once. Raises ValueError for a folder that cannot be read.
  """
  seen, waiting = set(), [""]
  while waiting:
    below = waiting.pop()
    path = os.path.join(folder, below)
    try:
      found = os.stat(path)
      if (found.st_dev, found.st_ino) in seen:
        continue
      seen.add((found.st_dev, found.st_ino))
      folders, files = [], []
      with os.scandir(path) as entries:
        for entry in entries:
          if not entry.name.startswith("."):
            (folders if entry.is_dir() else files).append(entry.name)
    except OSError as e:
      raise _unreadable(path, e) from None
    waiting += (os.path.join(below, name) for name in sorted(folders, reverse=True))
    files.sort()
    yield below, files


# A pipe that is opened without waiting for its writer can be told from a file, and refused.
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


def _descriptor(path: str) -> _Descriptor:
  """The open file of a path, of the MAX_OPEN that were used last."""
  with _lock:
    if path in _descriptors:
      _descriptors.move_to_end(path)
      return _descriptors[path]
  opened = _Descriptor(os.open(path, _FLAGS))
  with _lock:
    found = _descriptors.setdefault(path, opened)
    _descriptors.move_to_end(path)
    while len(_descriptors) > MAX_OPEN:
      _descriptors.popitem(last=False)
  return found


def _read(path: str, file: _Descriptor, offset: int, length: int) -> bytes:
  data = b""
  try:
    while len(data) < length and (
      more := os.pread(file.number, length - len(data), offset + len(data))
    ):
      data = data + more if data else more
  except OSError as e:
    raise _unreadable(path, e) from None
  if len(data) < length:
    raise ValueError(f"{path!r} ends at byte {offset + len(data)}, before {offset + length}")
  return data


def _unreadable(path, error) -> ValueError:
  return ValueError(f"{path!r}: {getattr(error, 'strerror', None) or error}")
