"""The lock of a run folder in a bucket: an object, which the server makes for one process only.

Its holder puts it again every HEARTBEAT_SECONDS. One that is taken over is put and, once a rival's
put must have come, read back: the last one has it.
"""

from __future__ import annotations

import contextlib
import json
import os
import time

from siglax.data import buckets
from siglax.data import uploads
from siglax.runs import bucket
from siglax.runs import lock

# Seconds in which two processes that take over the same lock both have put theirs.
SETTLE_SECONDS = 3.0
# A request is not made again after so many seconds; a training that has begun does not wait.
BEGIN_WITHIN, WITHIN = 15.0, 2.0


def take(folder: str | os.PathLike) -> lock.Lock:
  """The lock of a run folder, or of that which a stand-in stands for; see `lock.Lock`."""
  return lock.Lock(folder) if bucket.url_of(folder) is None else BucketLock(folder)


class BucketLock(lock.Lock):
  """A `lock.Lock` in a bucket."""

  def __init__(self, folder: str | os.PathLike):
    self._url = f"{bucket.url_of(folder)}/{lock.FILE}"
    self._beats, self._seen, self._other = 0, time.time(), None
    self._within = BEGIN_WITHIN
    super().__init__(folder, self._url)
    self._within = WITHIN

  def check(self):
    """As of a lock on a disk, by what the last heartbeat saw; one that is late is made up for."""
    if time.time() - self._seen > 2 * lock.HEARTBEAT_SECONDS:
      super().check()
      self._seen = time.time()  # also of a server that does not answer: it is asked again later
    if self._other is not None:
      raise self._lost(self._other)

  def held(self) -> bool:
    holder = self._read()
    self._seen = time.time()
    self._other = None if holder is None or self._is_mine(holder) else holder
    return self._is_mine(holder)

  def _guard(self):
    return contextlib.nullcontext()

  def _read(self) -> dict | None:
    try:
      return lock.parse(buckets.read(self._url, self._within))
    except buckets.Missing:
      return None

  def _write(self, before: dict | None) -> bool:
    if before is None:
      return uploads.put_new(self._url, self._content())
    uploads.put(self._url, self._content())
    time.sleep(SETTLE_SECONDS)
    return self._is_mine(self._read())

  def _content(self) -> bytes:
    self._beats += 1
    return json.dumps({**self._me, "beats": self._beats}).encode()

  def _touched(self):
    found = buckets.look(self._url)
    return None if found is None else found.version

  def _touch(self):
    uploads.put(self._url, self._content(), self._within)

  def _remove(self):
    uploads.delete(self._url, self._within)

  def _age(self) -> float:
    """By the server's clock."""
    now = f"{self._url}.{self.key}"
    modified = lambda f, name: f.modified(name)
    try:
      uploads.put(now, b"")
      times = [buckets.request(path, modified).timestamp() for path in (now, self._url)]
      return times[0] - times[1]
    except buckets.Missing:
      return float("inf")
    finally:
      uploads.delete(now)


def sees(folder: str | os.PathLike, key: str) -> bool:
  """`lock.sees`, also of a stand-in."""
  if (url := bucket.url_of(folder)) is None:
    return lock.sees(folder, key)
  with contextlib.suppress(buckets.Missing):
    return key.encode() in buckets.read(f"{url}/{lock.FILE}")
  return False
