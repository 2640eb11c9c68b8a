"""Blocks of files in buckets, kept on this machine's disk, so that each is fetched once.

Examples that are read near each other in a file share a block, and the blocks behind the one that
is read are fetched by threads of their own. So a reader waits for the server's answer at the start
of a file, and hardly again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import logging
import os
import pathlib
import queue
import secrets
import shutil
import threading

from siglax.data import buckets

BLOCK = 2**22
# Blocks that are fetched ahead of the one that is read, and the threads that fetch them.
AHEAD = 8
THREADS = 16
# What the blocks may take of the disk where SIGLAX_CACHE_BYTES does not say it: half of what is
# free, and no more than this.
MOST_BYTES = 2**38
VARIABLE = "SIGLAX_CACHE_BYTES"
# Of the blocks that are there or on their way, so many are known; then the disk is asked again.
KNOWN = 2**13
logger = logging.getLogger("siglax")


class Cache:
  """Blocks of files in a folder. Safe from many threads and processes.

  limit: bytes that they may take; those that were wanted longest ago go first.
  """

  def __init__(self, folder: pathlib.Path, limit: int):
    self._folder, self.limit = folder, limit
    # A block is fetched by one thread; another that needs it waits.
    self._fetching = [threading.Lock() for _ in range(2**12)]
    self._lock = threading.Lock()
    self._known: set[tuple[str, int]] = set()
    self._bytes: int | None = None
    self._waiting: queue.PriorityQueue = queue.PriorityQueue()
    self._order = itertools.count()
    self._threads: list[threading.Thread] = []
    self._full = False

  def read(self, path: str, found: buckets.Found, offset: int, length: int) -> bytes:
    """`length` bytes of a file from `offset` on, by way of its blocks."""
    file, pieces, end = _file(path, found.version, found.size), [], offset + length
    first, last = offset // BLOCK, (end - 1) // BLOCK
    self._announce(path, found, range(first + 1, last + AHEAD + 1), urgency=0)
    for block in range(first, last + 1):
      start = block * BLOCK
      begin, stop = max(offset - start, 0), min(end - start, BLOCK)
      pieces.append(self._piece(path, found, file, block, begin, stop))
    return b"".join(pieces)

  def read_ahead(self, path: str):
    """Has all blocks of a file fetched, after what is more urgent."""

    def announce():
      found = buckets.known(path)
      self._announce(path, found, range(-(-found.size // BLOCK)), urgency=1)

    self._put(0, announce)

  def _announce(self, path, found, blocks: range, urgency: int):
    file, count = _file(path, found.version, found.size), -(-found.size // BLOCK)
    # Without the lock first: nearly always all are known.
    if not (new := [b for b in blocks if b < count and (file, b) not in self._known]):
      return
    with self._lock:
      new = [b for b in new if (file, b) not in self._known]
      if len(self._known) > KNOWN:
        self._known.clear()
      self._known.update((file, block) for block in new)
    for block in new:
      self._put(urgency, functools.partial(self._ahead, path, found, file, block))

  def _put(self, urgency: int, work):
    with self._lock:
      if not self._threads:
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(THREADS)]
        for thread in self._threads:
          thread.start()
    self._waiting.put((urgency, next(self._order), work))

  def _work(self):
    while True:
      _, _, work = self._waiting.get()
      # The reader that needs the block meets the error itself.
      with contextlib.suppress(ValueError, OSError):
        work()

  def _piece(self, path, found, file: str, block: int, begin: int, stop: int) -> bytes:
    """Bytes begin to stop of a block, which is fetched where it is not there."""
    place = f"{self._folder}/{file[:2]}/{file}-{block}"
    if (data := _stored(place, begin, stop)) is not None:
      return data
    with self._fetching[hash((file, block)) % len(self._fetching)]:
      if (data := _stored(place, begin, stop)) is None:
        start = block * BLOCK
        whole = buckets.fetch(path, start, min(BLOCK, found.size - start))
        self._keep(pathlib.Path(place), whole)
        data = whole[begin:stop]
    return data

  def _ahead(self, path, found, file: str, block: int):
    length = min(BLOCK, found.size - block * BLOCK)
    self._piece(path, found, file, block, length - 1, length)
    # It is going to be used, so that it goes late.
    os.utime(f"{self._folder}/{file[:2]}/{file}-{block}")

  def _keep(self, place: pathlib.Path, data: bytes):
    temporary = place.with_name(f"{place.name}.{secrets.token_hex(4)}")
    try:
      place.parent.mkdir(parents=True, exist_ok=True)
      temporary.write_bytes(data)
      os.replace(temporary, place)
    except OSError as e:
      with contextlib.suppress(OSError):
        temporary.unlink()
      if not self._full:
        self._full = True
        logger.warning(
          "%s: what is read of buckets is not kept, so it is fetched again and again: %s; "
          "XDG_CACHE_HOME moves it, %s limits it",
          self._folder,
          e.strerror,
          VARIABLE,
        )
      return
    self._make_room(len(data))

  def _make_room(self, added: int):
    with self._lock:
      if self._bytes is not None:
        self._bytes += added
        if self._bytes <= self.limit:
          return
      # Other processes add and remove too, so that the folder is looked through.
      there = _files(self._folder)
      self._bytes = sum(size for _, size, _ in there)
      if self._bytes <= self.limit:
        return
      self._known.clear()
      for _, size, file in sorted(there):
        if self._bytes <= self.limit * 0.9:
          return
        with contextlib.suppress(OSError):
          file.unlink()
        self._bytes -= size


def _stored(place: str, begin: int, stop: int) -> bytes | None:
  """Bytes begin to stop of a block's file; None where it is missing or too short."""
  try:
    number = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
  except OSError:
    return None
  try:
    data = os.pread(number, stop - begin, begin)
    return data if len(data) == stop - begin else None
  except OSError:
    return None
  finally:
    os.close(number)


@functools.lru_cache(2**12)
def _file(path: str, version: str, size: int) -> str:
  return hashlib.sha256(f"{path}\n{version}\n{size}".encode()).hexdigest()[:32]


def limit(folder: pathlib.Path) -> int:
  """Bytes that blocks in a folder may take."""
  if stated := os.environ.get(VARIABLE):
    if not stated.isdecimal():
      raise ValueError(f"{VARIABLE}={stated!r} must be a whole number of bytes, such as {2**36}")
    return int(stated)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
  except OSError as e:
    raise ValueError(
      f"data in a bucket needs the cache folder {str(folder)!r}: {e.strerror}; XDG_CACHE_HOME "
      "moves it"
    ) from None
  return min(MOST_BYTES, (free + sum(size for _, size, _ in _files(folder))) // 2)


def _files(folder: pathlib.Path) -> list[tuple[int, int, pathlib.Path]]:
  """(time of the last use, bytes, path) of each block."""
  there = []
  for file in folder.glob("*/*"):
    # Another process may remove it meanwhile.
    with contextlib.suppress(OSError):
      facts = file.stat()
      there.append((facts.st_mtime_ns, facts.st_size, file))
  return there
