"""One writer at a time in a run folder.

The file lock.json in the run folder names its holder: host, process, and the time it started. The holder touches the file
every HEARTBEAT_SECONDS. A lock is taken over when its holder is dead: on this host the process table tells; of another
host, or of another container, the lock's age does, once it is above STALE_SECONDS. A holder that was stopped for so long
(SIGSTOP, a suspended machine) finds the lock in other hands and saves nothing more.
"""

from __future__ import annotations

import datetime
import fcntl
import json
import logging
import os
import pathlib
import secrets
import socket
import threading
import time

FILE = "lock.json"
HEARTBEAT_SECONDS = 10
STALE_SECONDS = 60
logger = logging.getLogger("siglax")


class Lock:
  """The lock on a run folder; a context manager.

  Raises ValueError in one line when another process holds it and lives, and OSError when the folder cannot be written.
  """

  def __init__(self, folder: str | os.PathLike):
    self._file = pathlib.Path(folder) / FILE
    self._me = {
        "host": socket.gethostname(), "process": os.getpid(), "process_started": _process_started(os.getpid()),
        "processes_of": _process_table(), "time": datetime.datetime.now().isoformat(timespec="seconds"),
        "key": secrets.token_hex(8),
    }
    self._released = threading.Event()
    self._take()
    threading.Thread(target=self._beat, daemon=True).start()

  def held(self) -> bool:
    """Whether it is still this process's."""
    return (self._read() or {}).get("key") == self._me["key"]

  def check(self):
    """Raises ValueError when another process has taken the folder over."""
    if not self.held():
      other = self._read() or {}
      raise ValueError(
          f"{self._file} is no longer this process's: process {other.get('process')} on {other.get('host')} has taken the run "
          "folder over; this process saves nothing more"
      )

  def release(self):
    self._released.set()
    if self.held():
      self._file.unlink(missing_ok=True)

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.release()

  def _take(self):
    announced, deadline = False, time.monotonic() + 2 * STALE_SECONDS
    first_age = None
    while True:
      with _guard(self._file.parent):
        holder = self._read()
        if holder is None or _dead(holder, self._age()):
          if holder is not None:
            logger.warning("%s: its holder, process %s on %s, is dead; taking it over", self._file, holder.get("process"), holder.get("host"))
          self._write()
          return
        age = self._age()
      # Of a holder that cannot be seen, a touch tells that it lives.
      touched = first_age is not None and age < first_age
      if _same_processes(holder) or touched or time.monotonic() > deadline:
        raise ValueError(
            f"--workdir {self._file.parent} is in use: process {holder.get('process')} on {holder.get('host')} trains there "
            f"since {holder.get('time')}; end it, or use another --workdir"
        )
      if not announced:
        announced = True
        logger.warning(
            "%s: process %s on %s held the run folder %.0f s ago; waiting up to %d s for a sign of it",
            self._file, holder.get("process"), holder.get("host"), age, STALE_SECONDS,
        )
      first_age = age if first_age is None else max(age, first_age)
      time.sleep(1)

  def _write(self):
    temporary = self._file.with_name(f".{FILE}.{self._me['key']}")
    try:
      temporary.write_text(json.dumps(self._me))
      os.replace(temporary, self._file)
    finally:
      temporary.unlink(missing_ok=True)

  def _read(self) -> dict | None:
    try:
      holder = json.loads(self._file.read_bytes())
    except FileNotFoundError:
      return None
    except ValueError:
      return {}
    return holder if isinstance(holder, dict) else {}

  def _age(self) -> float:
    """Seconds since the holder last touched the lock."""
    try:
      return max(0.0, time.time() - self._file.stat().st_mtime)
    except FileNotFoundError:
      return float("inf")

  def _beat(self):
    while not self._released.wait(HEARTBEAT_SECONDS):
      try:
        if self.held():
          os.utime(self._file)
      except OSError:
        pass  # a disk that fails for a while; `check` tells who has the lock


def _dead(holder: dict, age: float) -> bool:
  if _same_processes(holder):
    return _process_started(holder.get("process")) != holder.get("process_started")
  return age > STALE_SECONDS


def _same_processes(holder: dict) -> bool:
  """Whether the holder's process would be in this machine's, or this container's, process table."""
  table = _process_table()
  return table is not None and holder.get("host") == socket.gethostname() and holder.get("processes_of") == table


def _process_started(process) -> str | None:
  """When a process started, in ticks since boot; None when there is none."""
  try:
    # The name, in parentheses, may hold spaces.
    return pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
  except (OSError, IndexError):
    return None


def _process_table() -> str | None:
  """Names this boot of this machine and its process namespace; None where that is unknown."""
  try:
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"
  except OSError:
    return None


class _guard:
  """Lets one starter at a time of this machine look at the lock, where the file system can lock a folder."""

  def __init__(self, folder):
    self._folder = folder

  def __enter__(self):
    self._descriptor = os.open(self._folder, os.O_RDONLY)
    try:
      fcntl.flock(self._descriptor, fcntl.LOCK_EX)
    except OSError:
      pass  # some network file systems cannot

  def __exit__(self, *error):
    os.close(self._descriptor)
