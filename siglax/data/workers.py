"""Worker processes that write the rows of batches into memory that they share with the trainer.

The memory of a batch is a file without a name, whose descriptor goes to a worker with each chunk of
rows: it is gone with the last process that has it, however that ends, and no limit on /dev/shm
applies. Each thread of a worker has a pipe of its own, with a thread of the trainer at its other
end, which makes the rows itself for the seconds that the worker takes to start.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
from multiprocessing import connection
from multiprocessing import reduction
import os
import pickle
import signal
import tempfile
import threading

from siglax.data import layout as layout_lib

# How long a process that has closed its pipe may take to end.
END_SECONDS = 5
# What a worker says first: that it waits for what it is to make batches of, and that it has it.
ASKS, STARTED = "asks", "started"


def allocate(layout: layout_lib.Layout):
  """(arrays, file) of a batch, the file being the memory of the arrays."""
  if hasattr(os, "memfd_create"):
    file = os.fdopen(os.memfd_create("siglax-batch"), "r+b", buffering=0)
  else:
    file = tempfile.TemporaryFile(buffering=0)
  file.truncate(layout.nbytes)
  return layout.arrays(mmap.mmap(file.fileno(), layout.nbytes)), file


class Pool:
  """Worker processes with some threads each.

  makers: for each of those threads a function that has it make a chunk.
  """

  def __init__(self, elements, layout, workers: int, threads: int):
    content = pickle.dumps((elements, layout))
    context = multiprocessing.get_context("spawn")
    self._processes, self.makers = [], []
    try:
      for _ in range(workers):
        here, there = zip(*(context.Pipe() for _ in range(threads)))
        process = context.Process(target=_serve_all, args=(there,), daemon=True)
        process.start()
        self._processes.append(process)
        for pipe in there:
          pipe.close()
        self.makers += [
          _Maker(elements, process, pipe, content if pipe is here[0] else None, workers)
          for pipe in here
        ]
    except BaseException:
      self.kill()
      raise

  def kill(self):
    """Ends the processes at once: they hold nothing that could be lost."""
    for process in self._processes:
      process.kill()
    for process in self._processes:
      _exit_code(process)


class _Maker:
  """Has one thread of a worker make a chunk of rows."""

  def __init__(self, elements, process, pipe: connection.Connection, content, workers: int):
    self._elements, self._content, self._workers = elements, content, workers
    self._process, self._pipe, self._started = process, pipe, False

  def __call__(self, chunk, ended):
    """As layout.write: None, or the row in error and its exception."""
    batch = chunk.batch
    try:
      number = batch.number + chunk.first
      if not self._has_started():
        return layout_lib.write(
          self._elements, number, batch.arrays, chunk.first, chunk.last, ended
        )
      self._pipe.send((number, chunk.first, chunk.last))
      reduction.send_handle(self._pipe, batch.file.fileno(), self._process.pid)
      failed, objects = self._pipe.recv()
      for name, values in objects.items():
        batch.arrays[name][chunk.first : chunk.last] = values
      return failed
    except (EOFError, OSError, ValueError):  # a pipe that was cut, or a file closed at the end
      if ended():
        return None
      raise self._gone() from None

  def _has_started(self) -> bool:
    while not self._started and self._pipe.poll():
      if self._pipe.recv() == ASKS:
        self._pipe.send_bytes(self._content)  # not before: it may be more than a pipe holds
        self._content = None
      else:
        self._started = True
    return self._started

  def _gone(self):
    code = _exit_code(self._process)
    how = "with its pipe" if code is None else f"with exit code {code}"
    if code is not None and code < 0:
      how = f"by {signal.Signals(-code).name}"
    return ValueError(
      f"the worker process {self._process.pid}, which loads data, was ended {how}; the same "
      f"command resumes, with fewer config.loader.workers={self._workers} where memory was short"
    )


# Of two threads that wait for a process at once, one is told that there is none.
_waiting = threading.RLock()


def _exit_code(process) -> int | None:
  """Waits for the end of a process; None if it does not come."""
  with _waiting:
    process.join(END_SECONDS)
    return process.exitcode


def _serve_all(pipes):
  """What a worker process does."""
  # The trainer gets them too, and may go on for a while to save: it ends its workers itself.
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
  _end_with_parent()
  elements = layout = error = None
  pipes[0].send(ASKS)
  content = pipes[0].recv_bytes()
  try:
    elements, layout = pickle.loads(content)
  except BaseException as e:  # such as an imported file that fails here
    error = e
  threads = [
    threading.Thread(target=_serve, args=(pipe, elements, layout, error), daemon=True)
    for pipe in pipes
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()


def _serve(pipe, elements, layout, error):
  """Makes chunks for one thread of the trainer, until that closes the pipe."""
  # Closed at the end, whatever that is: the trainer waits at the other end.
  with pipe, contextlib.suppress(EOFError, OSError):
    pipe.send(STARTED)
    while True:
      number, first, last = pipe.recv()
      file = reduction.recv_handle(pipe)
      try:
        failed, objects = (
          ((first, error), {}) if error else _write(file, elements, layout, number, first, last)
        )
      except Exception as e:  # no memory for the batch
        failed, objects = (first, e), {}
      finally:
        os.close(file)
      pipe.send((failed and (failed[0], _sendable(failed[1])), objects))


def _write(file, elements, layout, number, first, last):
  """(as layout.write, the objects of these rows by the name of their array)."""
  # The memory is unmapped with the last of its arrays, which is here.
  arrays = layout.arrays(mmap.mmap(file, layout.nbytes))
  failed = layout_lib.write(elements, number, arrays, first, last, lambda: False)
  return failed, {name: arrays[name][first:last] for name in layout.objects}


def _sendable(error: BaseException) -> BaseException:
  """The exception, or one that says the same where it cannot be pickled."""
  try:
    return pickle.loads(pickle.dumps(error))
  except Exception:
    return ValueError(f"{type(error).__name__}: {error}")


def _end_with_parent():
  """Ends this process when its parent is gone, which a SIGKILL keeps from telling it."""
  parent = multiprocessing.parent_process()

  def watch():
    parent.join()
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()
