"""Files of buckets for libraries: read as Python's files are, or copied to this machine."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import pathlib
import shutil

from siglax.data import buckets
from siglax.data import listing
from siglax.data import storage
from siglax.devices import disk

# Of a copy, so many bytes are asked for at a time, in so many threads.
PIECE, THREADS = 2**25, 8
logger = logging.getLogger("siglax")


class File(io.RawIOBase):
  """A file of any path, for reading by `storage.read`; not from several threads at a time."""

  def __init__(self, path: str):
    self._path, self._at = path, 0
    self._size = storage.size(path)

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
    start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
    self._at = max(0, start + offset)
    return self._at

  def tell(self) -> int:
    return self._at

  def readinto(self, buffer) -> int:
    length = max(0, min(len(buffer), self._size - self._at))
    buffer[:length] = storage.read(self._path, self._at, length)
    self._at += length
    return length


def copied(path: str) -> str:
  """A local path with the content of a URL, a file or a folder; a local path is itself.

  The copy is in the cache folder, and made anew when the content has changed. Raises ValueError
  where there is nothing, or no room for it.
  """
  if not storage.is_url(path):
    return path
  path = path.rstrip("/")
  if (found := buckets.find(path)) is None:
    raise ValueError(f"{path!r}: no such file or folder")
  folder = found.folder
  files = sorted(listing.files_in(path, hidden=True)) if folder else [path]
  facts = [(file, buckets.known(file)) for file in files]
  if (cache := storage.cache_folder()) is None:
    raise ValueError(f"{path!r} needs a cache folder, and there is no home; set XDG_CACHE_HOME")
  name = hashlib.sha256(repr(facts).encode()).hexdigest()[:24]
  place = cache / "copies" / name / os.path.basename(path)
  if not place.exists():
    total = sum(found.size for _, found in facts)
    logger.info("copying %s, %.1f MB, to %s", path, total / 1e6, place)
    place.parent.mkdir(parents=True, exist_ok=True)
    if total > (free := shutil.disk_usage(place.parent).free):
      raise ValueError(
        f"{path!r} is copied to {place.parent}, and its {total:,} bytes are more than the {free:,} "
        "that are free; make room, or name another folder by XDG_CACHE_HOME"
      )
    try:
      with disk.replacing(place) as temporary:
        place_of = lambda file: temporary / file[len(path) + 1 :] if folder else temporary
        download({file: place_of(file) for file in files})
    except OSError:
      # Another process may have put the same there in the meantime.
      if not place.exists():
        raise
  return str(place)


def download(files: dict[str, pathlib.Path]):
  """Copies files of buckets to this machine: {URL: the path of its copy}."""
  pieces = []
  for url, place in files.items():
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(b"")
    pieces += [(url, place, start) for start in range(0, buckets.known(url).size, PIECE)]

  def copy(piece):
    url, place, start = piece
    data = buckets.fetch(url, start, min(PIECE, buckets.known(url).size - start))
    with place.open("r+b") as out:
      out.seek(start)
      out.write(data)

  # So many pieces at a time are held in memory.
  listing.in_threads(copy, pieces, THREADS)
