"""Access to files: all that the sources of pictures and text read goes through here.

Reads name a path, an offset and a length, so that a file of any size costs no memory but what is
asked for. A path is one of this machine's disks, or a URL of a bucket or a server
(siglax/data/buckets.py), whose files are read by way of blocks on the disk
(siglax/data/blocks.py).
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import errno
import functools
import glob as glob_lib
import os
import pathlib
import stat
import threading
import time
from typing import Any

from siglax.data import blocks
from siglax.data import buckets
from siglax.data import listing
from siglax.data.buckets import Unreachable as Unreachable
from siglax.data.buckets import is_url as is_url
from siglax.devices import errors

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
  if is_url(path):
    return buckets.find(path) is not None
  return os.path.exists(path)


def is_folder(path: str) -> bool:
  if is_url(path):
    return (found := buckets.find(path)) is not None and found.folder
  return os.path.isdir(path)


def glob(pattern: str) -> list[str]:
  """Paths that match a pattern, sorted; `**` means any folders."""
  if is_url(pattern):
    return [path for path in listing.glob(pattern) if not path.endswith(INDEX_ENDING)]
  found = sorted(glob_lib.glob(pattern, recursive=True))
  return [path for path in found if not path.endswith(INDEX_ENDING)]


def glob_in(folder: str, pattern: str) -> list[str]:
  """`glob` of a pattern in a folder, whatever characters the folder's name has."""
  return glob(os.path.join(glob_lib.escape(folder), pattern))


def parent(folder: str) -> str:
  """The folder that holds a folder."""
  return os.path.dirname(folder.rstrip("/")) if is_url(folder) else os.path.join(folder, os.pardir)


def absolute(path: str) -> str:
  """The path as it is from any folder."""
  return path if is_url(path) else os.path.abspath(path)


def stamp(path: str) -> tuple[int, int | str]:
  """(bytes, time of the last change in ns) of a file as it is now; reads that follow are of it. Of
  a URL the server's own name of the content takes the place of the time.

  Raises ValueError for one that is missing, or is no file.
  """
  if is_url(path):
    buckets.find(path)
    return (found := buckets.known(path)).size, found.version
  with _lock:
    _descriptors.pop(path, None)
  found = attempt(path, lambda: os.stat(path))
  if not stat.S_ISREG(found.st_mode):
    raise ValueError(f"{path!r} is no file")
  return found.st_size, found.st_mtime_ns


def size(path: str) -> int:
  """Bytes of a file; see `stamp`."""
  return stamp(path)[0]


def read(path: str, offset: int, length: int, alone: bool = False) -> bytes:
  """`length` bytes from `offset` on, from any thread; ValueError where there are fewer.

  alone: what stands near them is not going to be read, so that it is not fetched from a bucket.
  """
  if is_url(path):
    return _read_url(path, offset, length, alone)
  return attempt(path, lambda: _read(path, _descriptor(path), offset, length))


def read_all(path: str, most: int = MAX_BYTES) -> bytes:
  """A whole file of at most so many bytes; ValueError for a larger one."""
  if is_url(path):
    if (size := buckets.known(path).size) > most:
      raise ValueError(f"{path!r} has {size:,} bytes, more than {most:,}")
    return _read_url(path, 0, size)
  return attempt(path, lambda: _read_all(path, most))


def cache_folder() -> pathlib.Path | None:
  """Where siglax keeps what it made of data, on the disk of this machine; None without a home."""
  try:
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "siglax"
  except RuntimeError:
    return None


def look_up(paths: Sequence[str]):
  """Asks for many files of buckets at a time, before each is opened."""
  if urls := list(filter(is_url, paths)):
    listing.look_up(urls)


def read_ahead(path: str):
  """Fetches a file of a bucket in the background, because it is going to be read."""
  if is_url(path):
    _blocks().read_ahead(path)


def room() -> int:
  """Bytes of buckets that this machine's disk keeps."""
  return _blocks().limit


def walk(folder: str) -> Iterator[tuple[str, list[str]]]:
  """(sub-folder, names of its files), of the folder itself, "", and of all in it, sorted.

  Names that begin with a dot are left out. A link to a folder is followed; each folder is read
  once. Raises ValueError for a folder that cannot be read.
  """
  if is_url(folder):
    yield from _walk_url(folder.rstrip("/"))
    return
  seen, waiting = set(), [""]
  while waiting:
    below = waiting.pop()
    path = os.path.join(folder, below)
    found = attempt(path, lambda path=path: os.stat(path))
    if (found.st_dev, found.st_ino) in seen:
      continue
    seen.add((found.st_dev, found.st_ino))
    folders, files = attempt(path, lambda path=path: _entries(path))
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
  while len(data) < length and (
    more := os.pread(file.number, length - len(data), offset + len(data))
  ):
    data = data + more if data else more
  if len(data) < length:
    raise ValueError(f"{path!r} ends at byte {offset + len(data)}, before {offset + length}")
  return data


def _read_all(path: str, most: int) -> bytes:
  file = _Descriptor(os.open(path, _FLAGS))
  found = os.fstat(file.number)
  if not stat.S_ISREG(found.st_mode):
    raise ValueError(f"{path!r} is no file")
  if found.st_size > most:
    raise ValueError(f"{path!r} has {found.st_size:,} bytes, more than {most:,}")
  return _read(path, file, 0, found.st_size)


def _entries(folder: str) -> tuple[list[str], list[str]]:
  """Names of the folders and of the files in a folder, without those that begin with a dot."""
  folders, files = [], []
  with os.scandir(folder) as entries:
    for entry in entries:
      if not entry.name.startswith("."):
        (folders if _is_folder(entry) else files).append(entry.name)
  return folders, files


def _is_folder(entry: os.DirEntry) -> bool:
  try:
    return entry.is_dir()
  except OSError as e:
    if e.errno == errno.ELOOP:  # a link to itself: who reads it is told
      return False
    raise


def _walk_url(folder: str) -> Iterator[tuple[str, list[str]]]:
  folders = collections.defaultdict(list)
  for path in listing.files_in(folder):
    below, _, name = path[len(folder) + 1 :].rpartition("/")
    if name and not any(part.startswith(".") for part in (*below.split("/"), name)):
      folders[below].append(name)
  folders[""].sort()
  for below in sorted(folders, key=lambda below: below.split("/")):
    yield below, sorted(folders[below])


def _read_url(path: str, offset: int, length: int, alone: bool = False) -> bytes:
  found = buckets.known(path)
  if offset + length > found.size:
    raise ValueError(f"{path!r} ends at byte {found.size}, before {offset + length}")
  if alone or not length:
    return buckets.fetch(path, offset, length)
  try:
    cache = _blocks()
  except ValueError as e:  # no folder for it
    raise ValueError(f"{path!r}: {e}") from None
  return cache.read(path, found, offset, length)


@functools.cache
def _blocks() -> blocks.Cache:
  if (folder := cache_folder()) is None:
    raise ValueError(
      "data in a bucket needs a cache folder, and there is no home; set XDG_CACHE_HOME"
    )
  folder = folder / "blocks"
  return blocks.Cache(folder, blocks.limit(folder))


def attempt(path: str, read: Callable[[], Any]) -> Any:
  """What read() returns of a local file, after several attempts where the machine fails.

  Raises ValueError for a file that cannot be read, Unreachable where no file can be.
  """
  for delay in (0, *errors.RETRY_SECONDS, None):
    try:
      return read()
    except ValueError as e:  # a path that no file can have is not named
      named = str(e).startswith(repr(path))
      raise (e if named else ValueError(f"{path!r}: {e}")) from None
    except OSError as e:
      if not errors.is_passing(e):
        raise ValueError(f"{path!r}: {e.strerror or e}") from None
      if delay is None:
        raise Unreachable(
          f"{path!r}: {e.strerror or e}; no file can be read now (ulimit -n and -v limit a process)"
        ) from None
      with _lock:  # their numbers are of use to others, and a server may have forgotten them
        _descriptors.clear()
    time.sleep(delay)
