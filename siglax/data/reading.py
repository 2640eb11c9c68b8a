"""All examples of a source, one after the other: read ahead by threads, and counted."""

from __future__ import annotations

import collections
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import concurrent.futures
import itertools
import logging
import time
from typing import Any

from siglax.data.broken import NOT_BROKEN
from siglax.devices import cores

logger = logging.getLogger("siglax")
REPORT_SECONDS = 10


def read_ahead(
  read: Callable[[int], Any], indices: Iterable[int], ahead: int, threads: int | None = None
) -> Iterator[tuple[int, Any]]:
  """(i, read(i)) of the indices in their order, in place of it the exception that it raised.

  Threads, one for each core by default, read `ahead` of them before they are asked for. Raises what
  says nothing of the example itself (`broken.NOT_BROKEN`).
  """
  pool = concurrent.futures.ThreadPoolExecutor(
    threads or cores.usable(), thread_name_prefix="siglax-read"
  )
  try:
    pending, left = collections.deque(), iter(indices)
    submit = lambda most: pending.extend(
      (i, pool.submit(read, i)) for i in itertools.islice(left, most)
    )
    submit(ahead)
    while pending:
      i, future = pending.popleft()
      error = future.exception()
      if isinstance(error, NOT_BROKEN) or not isinstance(error, Exception | None):
        raise error
      yield i, future.result() if error is None else error
      submit(1)
  finally:
    pool.shutdown(cancel_futures=True)


class Progress:
  """Counts examples, and tells of them in the log every REPORT_SECONDS."""

  def __init__(self, total: int):
    self.done, self._total, self._start = 0, total, time.perf_counter()
    self._reported = self._start

  def add(self, count: int):
    self.done += count
    now = time.perf_counter()
    if now - self._reported > REPORT_SECONDS:
      self._reported = now
      logger.info(
        "%s of %s, %.0f a second",
        f"{self.done:,}",
        f"{self._total:,}",
        self.done / (now - self._start),
      )
