"""The processes of a study: each run is a `siglax train`, one at a time in each set of devices."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

from siglax.devices import disk
from siglax.studies import environment as environment_lib
from siglax.studies import folder as folder_lib
from siglax.studies.grid import Run

POLL_SECONDS = 0.2
# Exit code of a training that a second signal ended.
INTERRUPTED = 130
# Before the line of `siglax train` that tells why it failed.
SAYS = "siglax train: "
# What it says where another process trains in the run folder.
IN_USE = "is in use: process"


@dataclasses.dataclass
class Process:
  """A run that is being made. said_before: bytes of its log of earlier starts."""

  run: Run
  popen: subprocess.Popen
  log: pathlib.Path
  said_before: int
  since: float = dataclasses.field(default_factory=time.monotonic)

  def reason(self) -> str:
    """Why it failed, in one line: the error that it told, or else the last that it said, or the
    signal that killed it.
    """
    with self.log.open("rb") as file:
      file.seek(self.said_before)
      said = file.read().decode(errors="replace").strip().splitlines()
    if self.popen.returncode < 0:
      name = signal.Signals(-self.popen.returncode).name
      hint = "; was there memory enough?" if name == "SIGKILL" else ""
      return f"killed by {name}{hint}"
    # Another siglax ablate in the folder may write into the same log: what its runs log, and that
    # this one is in use.
    said = [line for line in said if f"{IN_USE} {self.popen.pid} " not in line]
    told = [line for line in said if line.startswith(SAYS)] or said
    last = told[-1].strip() if told else f"exit code {self.popen.returncode}, without a word"
    return last.removeprefix(SAYS)


class Starter:
  """Starts processes of `siglax train`.

  folder: the study's. variables: environment of the processes; environment: of `environment.ask`.
  imports: the files of --import.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    variables: Mapping[str, str],
    environment: Mapping[str, Any],
    imports: Sequence[str],
  ):
    self._folder, self._variables, self._imports = folder, dict(variables), imports
    self._platform = environment["platform"]

  def start(self, run: Run, devices: tuple[int, ...], of: str) -> Process:
    """devices: that it may use, all of them where there are none. of: the folder that its run
    folder lies in.
    """
    log = self._folder / folder_lib.LOGS / f"{run.name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    cores = ",".join(map(str, devices)) if devices and self._platform == "cpu" else "all"
    words = command(run, self._folder, of, self._imports)
    with log.open("ab") as file:
      said_before = file.tell()
      popen = subprocess.Popen(
        [sys.executable, "-m", "siglax.commands.child", str(os.getpid()), cores, *words[1:]],
        env=self._variables | environment_lib.variables(self._platform, devices),
        stdin=subprocess.DEVNULL,
        stdout=file,
        stderr=file,
        # A terminal's Ctrl-C comes to the study alone, which passes it on once.
        start_new_session=True,
      )
    return Process(run, popen, log, said_before)


def command(run: Run, folder: pathlib.Path, of: str, imports: Sequence[str] = ()) -> list[str]:
  """The command line that makes a run, and that anyone may give again."""
  overrides = dict(run.overrides)
  if run.trunk is not None:
    trunk = folder / folder_lib.TRUNKS / run.trunk
    if run.branch_step is None:
      overrides["model.init_from"] = str(trunk)
    else:
      overrides["train.branch_from"] = f"{trunk}@{run.branch_step}"
  return [
    "siglax",
    "train",
    "--config",
    run.base,
    "--workdir",
    str(folder / of / run.name),
    *(word for name in imports for word in ("--import", name)),
    *(f"--config.{field}={text}" for field, text in overrides.items()),
  ]


def place(run: Run) -> str:
  """The folder that its run folder lies in."""
  return folder_lib.TRUNKS if run.is_trunk else folder_lib.RUNS


class Scheduler:
  """Makes the runs of a study that are not finished, in their order.

  sets: of devices; each has one run at a time. show: is told of each start and end, and every
  POLL_SECONDS of those under way. A run that fails is noted, and the others go on; a branch waits
  for its trunk.
  """

  def __init__(self, folder: pathlib.Path, runs: Sequence[Run], starter: Starter, sets, show):
    self._folder, self._starter, self._show, self._runs = folder, starter, show, list(runs)
    self._free, self._active = list(sets), {}
    self._stopped, self._at_once = "", False

  def until_the_end(self) -> str:
    """Returns the name of the signal that stopped it, or nothing. OSError where the disk fails,
    after the runs under way have saved and ended.
    """
    waiting = [run for run in self._runs if self._status(run) in _TO_DO]
    failed = None
    with self._signals():
      while (waiting and not self._stopped) or self._active:
        try:
          self._end_finished()
          waiting = self._start(waiting)
          self._show.tick(list(self._active.values()))
        except OSError as e:
          failed = failed or e
          if not self._stopped:
            where = "" if e.filename is None else f"{e.filename}: "
            self._stop(f"{where}{e.strerror or e}")
        time.sleep(POLL_SECONDS)
    if failed is not None:
      raise failed
    return self._stopped

  def _status(self, run: Run) -> str:
    return folder_lib.status(self._folder, run.name, place(run))[0]

  def _start(self, waiting: list[Run]) -> list[Run]:
    """Starts what has room and, of a branch, a finished trunk; the runs that wait on."""
    left = []
    for k, run in enumerate(waiting):
      trunk = self._trunk_status(run, [*left, *waiting[k:]])
      if trunk == folder_lib.FAILED_STATUS:
        self._fail(run, f"its trunk {run.trunk} failed")
        self._ended(run, folder_lib.FAILED_STATUS, f"its trunk {run.trunk} failed", 0.0)
      elif trunk == folder_lib.FINISHED and self._free and not self._stopped:
        devices = self._free.pop(0)
        self._active[devices] = self._starter.start(run, devices, place(run))
        self._show.started(run)
      elif trunk is not None:
        left.append(run)
    return left

  def _trunk_status(self, run: Run, waiting: list[Run]) -> str | None:
    """That of the run that this one starts from; FINISHED where there is none, and None where it is
    not under way here, as when another process makes it.
    """
    if run.trunk is None:
      return folder_lib.FINISHED
    how = folder_lib.status(self._folder, run.trunk, folder_lib.TRUNKS)[0]
    coming = [*waiting, *(process.run for process in self._active.values())]
    if how in _TO_DO and run.trunk not in [other.name for other in coming]:
      return None
    return how

  def _end_finished(self):
    for devices, process in list(self._active.items()):
      if process.popen.poll() is None:
        continue
      del self._active[devices]
      self._free.append(devices)
      how, error = self._status(process.run), None
      if how != folder_lib.FINISHED:
        error = f"ended by {self._stopped}" if self._at_once else process.reason()
        stopped = process.popen.returncode in (0, INTERRUPTED) or IN_USE in error
        if not stopped and not self._stopped:
          how = folder_lib.FAILED_STATUS
          self._fail(process.run, error)
      self._ended(process.run, how, error, time.monotonic() - process.since)

  def _fail(self, run: Run, reason: str):
    file = folder_lib.failed_file(self._folder, run.name)
    file.parent.mkdir(exist_ok=True)
    disk.write_atomic(file, f"{reason}\n".encode())

  def _ended(self, run: Run, how: str, error: str | None, seconds: float):
    results = folder_lib.write_results(self._folder)
    self._show.ended(run, how, error, seconds, results)

  def _stop(self, why: str):
    """Lets the runs save and end; a second time it ends them at once."""
    self._at_once, self._stopped = bool(self._stopped), why
    self._show.stopping(why, self._at_once)
    for process in self._active.values():
      process.popen.send_signal(signal.SIGKILL if self._at_once else signal.SIGTERM)

  @contextlib.contextmanager
  def _signals(self):
    """Passes the first SIGINT, SIGTERM or SIGHUP on to the runs, which save and end; a second one
    ends them at once.
    """

    stop = lambda number, frame: self._stop(signal.Signals(number).name)
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
      numbers.remove(signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
      yield
    finally:
      for number, handler in before.items():
        signal.signal(number, handler)


_TO_DO = (folder_lib.MISSING, folder_lib.UNFINISHED)
