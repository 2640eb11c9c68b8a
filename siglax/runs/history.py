"""The starts of a run: when and where each began, how far it came, how it ended, and where its time
went.

A run folder's starts.jsonl has records {start: its number, host, pid, time: when it began,
first_step: what it began at, last_step: the last one logged, saved: the step of the last
checkpoint, seconds: in each phase of `goodput`, peak_bytes: the most memory that one of its devices
had in use, where they tell, ended: "finished", the name of a signal, an error, "killed", or null of
a start that runs}. A start appends its record again and again; the last one
counts, so that SIGKILL costs only what was not logged. The end of a start, or the next one, leaves
one line of each.
"""

from __future__ import annotations

import collections
import contextlib
import datetime
import logging
import math
import os
import pathlib
import socket

import jax

from siglax.devices import disk
from siglax.devices import host
from siglax.runs import files
from siglax.runs import goodput as goodput_lib
from siglax.runs import lock

logger = logging.getLogger("siglax")

FILE = "starts.jsonl"
# Phases whose time is lost with the steps that are computed again. The others, such as init, are
# overhead of their start.
WORK = ("data_wait", "step")
LOST = "lost"


class History:
  """Records one start. Only process 0 writes, and a file that fails is no reason to stop: it is
  left with a warning.

  step: what the start begins at. saved: () → the step of the last checkpoint on the disk. As a
  context manager it notes an error that ends the start, but for the loss of the folder to another
  process, whose records these then are.
  """

  def __init__(
    self, workdir: str | os.PathLike, *, step: int, goodput: goodput_lib.Goodput, saved=lambda: 0
  ):
    self._goodput, self._saved, self._lines, self._ended, self._step = (
      goodput,
      saved,
      None,
      False,
      step,
    )
    if jax.process_index() != 0:
      return
    self._path = pathlib.Path(workdir) / FILE
    try:
      starts = [
        start if start["ended"] else {**start, "ended": "killed"} for start in read(workdir)
      ]
      self._rewrite(starts)
      self._lines = files.Lines(self._path, keep=1)
    except OSError as e:
      logger.warning(
        "%s cannot be written (%s): this start will be in no report", self._path, e.strerror
      )
      return
    self._record = {
      "start": starts[-1]["start"] + 1 if starts else 1,
      "host": socket.gethostname(),
      "pid": os.getpid(),
      "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
      "first_step": step,
    }
    self.update(step)

  def update(self, step: int):
    """Notes the last step logged and the seconds so far: one write of a line, without a sync."""
    self._write(step, None)

  def end(self, step: int, how: str):
    """Notes the end of this start: "finished", a signal's name or an error. The first end
    counts.
    """
    if not self._ended:
      self._ended = True
      self._write(step, how)
      if self._lines is not None:
        self._lines.close()
        with contextlib.suppress(OSError):  # it is as good with several lines a start
          self._rewrite(read(self._path.parent))

  def _write(self, step, ended):
    self._step = step
    if self._lines is not None:
      seconds = {phase: round(s, 3) for phase, s in self._goodput.totals().items()}
      self._lines.append(
        {
          **self._record,
          "last_step": step,
          "saved": self._saved(),
          "seconds": seconds,
          **({} if (peak := host.peak_bytes()) is None else {"peak_bytes": peak}),
          "ended": ended,
        }
      )

  def _rewrite(self, starts):
    disk.write_atomic(self._path, b"".join(map(files.encode, starts)))

  def __enter__(self):
    return self

  def __exit__(self, kind, error, traceback):
    if isinstance(error, lock.Lost):
      self._ended = True
    elif error is not None:
      self.end(self._step, f"{kind.__name__}: {error}")


def read(workdir: str | os.PathLike) -> list[dict]:
  """The starts of a run folder, in order; none where it has no starts.jsonl."""
  path = pathlib.Path(workdir) / FILE
  records = files.read_records(path, "start") if path.is_file() else []
  return list({record["start"]: record for record in records if _is_whole(record)}.values())


def _is_whole(record: dict) -> bool:
  """Whether a record has what reports read, of the right types; damage leaves others."""
  steps = all(type(record.get(name)) is int for name in ("first_step", "last_step"))
  seconds = record.get("seconds")
  return (
    steps
    and "ended" in record
    and isinstance(seconds, dict)
    and all(isinstance(s, (int, float)) for s in seconds.values())
  )


def account(starts: list[dict]) -> tuple[int, dict[str, float]]:
  """Steps that stops made be computed again, and the seconds of all starts in each phase, with
  those steps' as "lost".

  A step is lost when a later start begins before it. Of what followed a start's last line in the
  log, nothing is known.
  """
  steps, redone_from = 0, math.inf
  seconds: dict[str, float] = collections.defaultdict(
    float, dict.fromkeys((*goodput_lib.PHASES, LOST), 0.0)
  )
  for start in reversed(starts):
    first, last = start["first_step"], start["last_step"]
    lost = last - min(max(redone_from, first), last)
    for phase, s in start["seconds"].items():
      in_vain = s * lost / (last - first) if lost and phase in WORK else 0.0
      seconds[phase] += s - in_vain
      seconds[LOST] += in_vain
    steps += lost
    redone_from = min(redone_from, first)
  return steps, dict(seconds)
