"""One writer at a time in a run folder.

The file lock.json in the run folder names its holder: host, process, and the time it started. The
holder touches the file every HEARTBEAT_SECONDS. A lock is taken over when its holder is dead: on
this host the process table tells; of another host, or of another container, the lock's age does,
once it is above STALE_SECONDS. A holder that was stopped for so long (SIGSTOP, a suspended machine)
finds the lock in other hands and saves nothing more. Ages are told by the clock of the file system,
so the hosts' clocks may differ.
"""

from __future__ import annotations

import contextlib
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

from siglax.devices import disk

FILE = "lock.json"
HEARTBEAT_SECONDS = 10
STALE_SECONDS = 60
GUARD_SECONDS = 10
logger = logging.getLogger("siglax")


class Lost(ValueError):
  """Another process has taken the run folder over; this one is to write nothing more there."""


class Lock:
  """The lock on a run folder; a context manager. name: of the lock in messages.

  Raises ValueError in one line when another process holds it and lives, and OSError when the folder
  cannot be written.
  """

  def __init__(self, folder: str | os.PathLike, name: str | None = None):
    self._file = pathlib.Path(folder) / FILE
    self._name = name or str(self._file)
    self._me = {
      "host": socket.gethostname(),
      "process": os.getpid(),
      "process_started": _process_started(os.getpid()),
      "processes_of": _process_table(),
      "time": datetime.datetime.now().isoformat(timespec="seconds"),
      "key": secrets.token_hex(8),
    }
    self._released = threading.Event()
    self._take()
    threading.Thread(target=self._beat, daemon=True).start()

  @property
  def key(self) -> str:
    """Names this lock."""
    return self._me["key"]

  def held(self) -> bool:
    """Whether this process still holds the lock."""
    return self._is_mine(self._read())

  def _is_mine(self, holder: dict | None) -> bool:
    return (holder or {}).get("key") == self.key

  def check(self):
    """Raises Lost when another process has taken the folder over.

    A lock that somebody deleted is taken again. One that cannot be read now proves nothing, and the
    save that follows will tell.
    """
    try:
      with self._guard():
        other = self._read()
        if other is None:
          self._write(other)
          return
    except OSError as e:
      logger.warning("%s cannot be read now: %s", self._name, e.strerror or e)
      return
    if not self._is_mine(other):
      raise self._lost(other)

  def _lost(self, other: dict) -> Lost:
    return Lost(
      f"{self._name} is no longer this process's: process {other.get('process')} on "
      f"{other.get('host')} has taken the run folder over; this process saves nothing more"
    )

  def release(self):
    """Lets the next one in. On a disk that fails now the lock stays, and is taken over as that of a
    dead holder.
    """
    self._released.set()
    with contextlib.suppress(OSError), self._guard():
      if self.held():
        self._remove()

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.release()

  def _take(self):
    """Takes the lock. A holder that is not in this process table is waited for: a touch of the lock
    tells that it lives, and none for STALE_SECONDS that it is dead.
    """
    touched, since = None, time.monotonic()
    while True:
      with self._guard():
        holder = self._read()
        age = 0.0 if holder is None or _same_processes(holder) else self._age()
        # By this process's clock, whatever the clock of the disk says.
        silent = 0.0 if touched is None else time.monotonic() - since
        if holder is None or _dead(holder, max(age, silent)):
          if holder is not None:
            logger.warning(
              "%s: its holder, process %s on %s, is dead; taking it over",
              self._name,
              holder.get("process"),
              holder.get("host"),
            )
          if self._write(holder):
            return
          continue
        last = self._touched()
      if _same_processes(holder) or touched is not None and last != touched:
        raise ValueError(
          f"--workdir {self._name.removesuffix('/' + FILE)} is in use: process "
          f"{holder.get('process')} on {holder.get('host')} trains there since "
          f"{holder.get('time')}; end it, or use another --workdir"
        )
      if touched is None:
        logger.warning(
          "%s: process %s on %s may hold the run folder; waiting up to %d s for a sign of it",
          self._name,
          holder.get("process"),
          holder.get("host"),
          STALE_SECONDS,
        )
        touched, since = last, time.monotonic()
      time.sleep(1)

  def _beat(self):
    while not self._released.wait(HEARTBEAT_SECONDS):
      # A disk may fail for a while; `check` tells who has the lock.
      with contextlib.suppress(OSError):
        if self.held():
          self._touch()

  # What follows is of a disk; siglax/runs/bucket_lock.py has that of a bucket.

  def _guard(self):
    """A with block in which no other starter of this machine looks at the lock."""
    return _guard(self._file.parent)

  def _read(self) -> dict | None:
    """The holder; {} of a damaged lock, None of none."""
    try:
      return parse(self._file.read_bytes())
    except FileNotFoundError:
      return None

  def _write(self, before: dict | None) -> bool:
    """Takes the lock from a holder, None for nobody; whether that succeeded."""
    del before
    disk.write_atomic(self._file, json.dumps(self._me).encode())
    return True

  def _touched(self):
    """What changes when the holder touches the lock."""
    return self._file.stat().st_mtime_ns

  def _touch(self):
    os.utime(self._file)

  def _remove(self):
    self._file.unlink()

  def _age(self) -> float:
    """Seconds since the holder last touched the lock, by the clock that touches a file now."""
    now = self._file.with_name(f".{FILE}.{self._me['key']}")
    try:
      now.touch()
      return now.stat().st_mtime - self._file.stat().st_mtime
    except FileNotFoundError:
      return float("inf")
    finally:
      now.unlink(missing_ok=True)


def parse(content: bytes) -> dict:
  try:
    holder = json.loads(content)
  except ValueError:
    return {}
  return holder if isinstance(holder, dict) else {}


def sees(folder, key: str, seconds: float = 10) -> bool:
  """Whether the lock with this key is in the folder, for a process on another machine; network file
  systems are late.
  """
  deadline = time.monotonic() + seconds
  while True:
    with contextlib.suppress(OSError, ValueError):
      if key in (pathlib.Path(folder) / FILE).read_text():
        return True
    if time.monotonic() > deadline:
      return False
    time.sleep(0.1)


def _dead(holder: dict, age: float) -> bool:
  if _same_processes(holder):
    started = _process_started(holder.get("process"))
    return started is None or started != holder.get("process_started")
  return age > STALE_SECONDS


def _same_processes(holder: dict) -> bool:
  """Whether the holder's process would be in this machine's, or this container's, process table."""
  table = _process_table()
  return (
    table is not None
    and holder.get("host") == socket.gethostname()
    and holder.get("processes_of") == table
  )


def _process_started(process) -> str | None:
  """When a process started, in ticks since boot; None when there is none, or only its exit code is
  left (a zombie).
  """
  try:
    # The name, in parentheses, may hold spaces.
    state, *fields = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return None if state in ("Z", "X") else fields[18]
  except (OSError, ValueError, IndexError):
    return None


def _process_table() -> str | None:
  """Names this boot of this machine and its process namespace; None where that is unknown."""
  try:
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"
  except OSError:
    return None


@contextlib.contextmanager
def _guard(folder):
  """Lets one starter at a time of this machine look at the lock, where the file system can lock a
  folder.

  One that was stopped in here (SIGSTOP) is waited for no longer than GUARD_SECONDS.
  """
  descriptor, deadline = os.open(folder, os.O_RDONLY), time.monotonic() + GUARD_SECONDS
  try:
    while time.monotonic() < deadline:
      try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        break
      except BlockingIOError:
        time.sleep(0.05)
      except OSError:  # some network file systems cannot
        break
    yield
  finally:
    os.close(descriptor)
