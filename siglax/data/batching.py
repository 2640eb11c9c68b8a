"""Rows to batches: threads, of this process or of worker processes, write rows into the arrays of
the next few batches.

Work is shared in chunks of a few rows, which are handed out in order. So all threads are at the
same batch, or at the next one; the first batch has all of them; and the number of batches in memory
does not depend on the number of threads.

OpenCV decodes without Python's lock, so a few threads keep a few cores busy; from where on workers
are better, pipeline.loader_threads says. Rows of small pictures spend their time in Python; of
them, two workers made 1.6 times as many as two threads on two cores (configs/quickstart.py, 17,100
rows a second). Free-threaded Python has not been tried.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
import dataclasses
import functools
from multiprocessing import util
import threading
import time
import traceback
import weakref

import numpy as np

from siglax.data import layout as layout_lib
from siglax.data import workers as workers_lib

# Rows that a thread takes at once, at most: so few that all threads are done with a batch at about
# the same time, and so many that the lock costs nothing even where a row takes 20 µs.
MAX_CHUNK = 64
# How long an end waits for threads, each of which is at one last element.
END_SECONDS = 5


class Batches:
  """Endless iterator of dicts of arrays [rows, …]; row r of batch s is
  `elements[first + s * stride + r]`.

  elements: int → dict of arrays and NumPy scalars, all with the same names, shapes and types. Many
  threads call it at once; it is pickled to the workers.
  threads: that call it, in this process or in each of `workers` processes.
  buffer: batches in memory, ready or in the making, beside the one that was handed out last.

  An exception of an element is raised where its batch would have been returned, after all batches
  before it; of two in a batch, that of the lower row. The end of a worker is an error at once.
  Nothing is started before the first `__next__`, which makes one element more to see its form.
  """

  def __init__(self, elements, first, rows, stride, *, threads, workers=0, buffer):
    self._elements, self._first, self._rows, self._stride = elements, first, rows, stride
    self._threads, self._workers, self._buffer = threads, workers, buffer
    self._schedule = self._end = None
    self._threads_started = []

  def __iter__(self):
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    if self._schedule is None:
      self._start()
    return self._schedule.next()

  def close(self):
    """Ends workers, and threads with the element that each is at, for good."""
    if self._end is not None:
      self._end()
      _join(self._threads_started)

  def _start(self):
    layout = layout_lib.Layout.of(self._elements[self._first], self._rows)
    lanes = self._threads * max(1, self._workers)
    chunk = max(1, min(MAX_CHUNK, self._rows // (4 * lanes)))
    if self._workers:
      pool = workers_lib.Pool(self._elements, layout, self._workers, self._threads)
      makers, allocate, stop = (
        pool.makers,
        functools.partial(workers_lib.allocate, layout),
        pool.kill,
      )
    else:
      make = functools.partial(_make, self._elements)
      makers, allocate, stop = [make] * lanes, lambda: (layout.arrays(), None), None
    number = functools.partial(_number, self._first, self._stride)
    self._schedule = Schedule(allocate, number, self._rows, chunk, self._buffer)
    # Neither the threads nor this refer to the iterator: one that is forgotten ends as well. At the
    # end of the process it runs before multiprocessing waits for its processes.
    self._end = util.Finalize(self, _end, (self._schedule, stop), exitpriority=10)
    for k, make in enumerate(makers):
      name = f"siglax-data-{k}"
      thread = threading.Thread(target=_work, args=(self._schedule, make), name=name, daemon=True)
      thread.start()
      self._threads_started.append(thread)
      _all_threads.add(thread)


def _join(threads):
  until = time.monotonic() + END_SECONDS
  for thread in list(threads):
    thread.join(max(0, until - time.monotonic()))


# Python ends a daemon thread where it is, and in OpenCV's code that aborts the process. So its end
# waits for them, after the finalizers of the iterators.
_all_threads = weakref.WeakSet()
util.Finalize(None, _join, (_all_threads,), exitpriority=5)


def _number(first, stride, batch):
  return first + batch * stride


def _make(elements, chunk: Chunk, ended):
  batch = chunk.batch
  return layout_lib.write(
    elements, batch.number + chunk.first, batch.arrays, chunk.first, chunk.last, ended
  )


def _work(schedule: Schedule, make):
  """What each thread does until the end."""
  chunk = None
  try:
    while True:
      chunk = schedule.take()
      if chunk is None:
        return
      schedule.put_back(chunk, make(chunk, schedule.ended))
      chunk = None  # no batch is kept alive by a thread that waits for the next one
  except BaseException as e:  # no memory for a batch, or a worker that is gone
    chunk = None
    schedule.end(e)


def _end(schedule: Schedule, stop: Callable | None):
  schedule.end()
  if stop is not None:
    stop()


@dataclasses.dataclass
class Batch:
  """A batch in the making. number: of the element in its first row; file: of its memory, where
  workers share that; taken, done: rows.
  """

  number: int
  arrays: dict[str, np.ndarray]
  file: object
  taken: int = 0
  done: int = 0
  errors: list[tuple[int, BaseException]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Chunk:
  """Rows first … last − 1 of a batch, for one thread to make."""

  batch: Batch
  first: int
  last: int


class Schedule:
  """Which rows come next. All methods may be called by any thread."""

  def __init__(self, allocate, number, rows, chunk, buffer):
    """allocate() → (arrays, file or None) of a batch; number: batch → its first element."""
    self._allocate, self._number = allocate, number
    self._rows, self._chunk, self._buffer = rows, chunk, buffer
    self._batches: collections.deque[Batch] = collections.deque()
    self._started = 0  # batches
    self._failed = self._ended = False
    self._error: BaseException | None = None
    # Reentrant: a garbage collection in one of the methods may be what ends it.
    lock = threading.RLock()
    self._room, self._ready = threading.Condition(lock), threading.Condition(lock)

  def take(self) -> Chunk | None:
    """The next rows to make, as soon as there is room for them; None at the end."""
    with self._room:
      while not (self._failed or self._ended):
        if self._batches and self._batches[-1].taken < self._rows:
          return self._next_chunk()
        if len(self._batches) < self._buffer:
          self._batches.append(Batch(self._number(self._started), *self._memory()))
          self._started += 1
          return self._next_chunk()
        self._room.wait()
      return None

  def _memory(self):
    try:
      return self._allocate()
    except (OSError, MemoryError) as e:
      raise MemoryError(
        f"no memory for a batch, beside {len(self._batches)} that wait or are being made "
        f"(config.loader.buffer={self._buffer}, config.batch_size): {e}"
      ) from None

  def _next_chunk(self):
    batch = self._batches[-1]
    first, batch.taken = batch.taken, min(batch.taken + self._chunk, self._rows)
    return Chunk(batch, first, batch.taken)

  def put_back(self, chunk: Chunk, error: tuple[int, BaseException] | None):
    """The rows are made, or one of them is in error. Then no others are begun: all rows before it
    are made, or on their way.
    """
    with self._ready:
      chunk.batch.done += chunk.last - chunk.first
      if error is not None:
        self._failed = True
        # An exception may be kept for long; the frames it came through hold the batch.
        traceback.clear_frames(error[1].__traceback__)
        chunk.batch.errors.append(error)
        self._room.notify_all()
      if chunk.batch.done == chunk.batch.taken:
        self._ready.notify_all()

  def next(self) -> dict[str, np.ndarray]:
    """The arrays of the oldest batch, once they are whole."""
    with self._ready:
      while not (self._ended or self._is_ready()):
        self._ready.wait()
      if self._ended:
        raise StopIteration if self._error is None else self._error
      if self._batches[0].errors:
        raise min(self._batches[0].errors, key=lambda error: error[0])[1]
      batch = self._batches.popleft()
      self._forget(batch)
      self._room.notify_all()
      return batch.arrays

  def _is_ready(self):
    """Whether the oldest batch is whole, or has a row in error and all rows before it made."""
    batch = self._batches[0] if self._batches else None
    return batch and batch.done == batch.taken and (batch.errors or batch.done == self._rows)

  def ended(self) -> bool:
    return self._ended

  def end(self, error: BaseException | None = None):
    """Wakes and ends all; `next` then raises the error, if there is one."""
    with self._ready:
      if self._ended:
        return
      self._ended, self._error = True, error
      if error is not None:
        traceback.clear_frames(error.__traceback__)
      while self._batches:
        self._forget(self._batches.pop())
      self._room.notify_all()
      self._ready.notify_all()

  @staticmethod
  def _forget(batch):
    if batch.file is not None:
      batch.file.close()
