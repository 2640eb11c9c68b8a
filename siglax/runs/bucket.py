"""A run folder in a bucket, and the folder of this machine that stands for it.

What reads and writes a run folder works on a local one. For a URL that is a new folder in the cache
folder, which knows its URL; it ends with its process. Process 0 of a training puts its small files
into the bucket, each as a whole, as objects cannot grow: with each checkpoint, and in between those
that have changed in the last seconds. Checkpoints have rules of their own: siglax/runs/places.py.
"""

from __future__ import annotations

import atexit
from collections.abc import Iterator
import contextlib
import fcntl
import functools
import hashlib
import logging
import os
import pathlib
import shutil
import tempfile
import threading
import time

import jax

from siglax.config import values
from siglax.data import buckets
from siglax.data import listing
from siglax.data import remote
from siglax.data import storage
from siglax.data import uploads
from siglax.runs import lock as lock_lib

logger = logging.getLogger("siglax")
# Beside a folder that stands for a URL: the URL, the lock of the process that uses it, and what
# says that it holds a checkpoint which could not be uploaded.
URL, ALIVE, KEPT = "url", "alive", "kept"
# Seconds between two puts of a file that changes, and more of them for each MiB of it.
SECONDS, SECONDS_A_MIB = 10.0, 1.0
# A request of the small files is not made again after so many seconds; the second is of a run that
# ends in an error, which may be that of the bucket.
WITHIN, ERROR_WITHIN = 15.0, 1.0
# What is not put into the bucket with the small files, or not read from it.
NOT_PUT = ("checkpoints", "wandb", lock_lib.FILE)
NOT_READ = (*NOT_PUT, "profile")
EVENTS = "events"  # of TensorBoard, whose files begin so; each start makes a new one


def url_of(folder: str | os.PathLike) -> str | None:
  """The URL of the run that a local folder stands for; None for a folder that is a run itself."""
  try:
    return (pathlib.Path(folder).absolute().parent / URL).read_text()
  except OSError:
    return None


def shown(folder: str | os.PathLike) -> str:
  """A run folder as its user names it."""
  return url_of(folder) or str(folder)


def is_run(url: str) -> bool:
  """Whether a run folder stands at a URL."""
  found = buckets.look(f"{url.rstrip('/')}/checkpoints")
  return found is not None and found.folder


def holds_run(folder: pathlib.Path) -> bool:
  """Whether a run folder stands at a local path."""
  return (folder / "checkpoints").is_dir()


def opened(path: str | os.PathLike) -> pathlib.Path:
  """A run folder to read: of a URL, a local folder with its small files, whose checkpoints
  `places.at` fetches.
  """
  if not buckets.is_url(path):
    return pathlib.Path(path)
  if buckets.look(path.rstrip("/")) is None:
    raise ValueError(f"{path}: no such file or folder")
  folder = stand_in(path)
  mirror(folder).pull()
  return folder


def stand_in(path: str | os.PathLike) -> pathlib.Path:
  """The path itself, or an empty local folder that stands for a URL until this process ends."""
  if not buckets.is_url(path):
    return pathlib.Path(path)
  url = path.rstrip("/")
  if (cache := storage.cache_folder()) is None:
    raise ValueError(f"{path!r} needs a cache folder, and there is no home; set XDG_CACHE_HOME")
  runs = cache.absolute() / "runs"
  runs.mkdir(parents=True, exist_ok=True)
  name = hashlib.sha256(url.encode()).hexdigest()[:16]
  _sweep(runs, name)
  place = pathlib.Path(tempfile.mkdtemp(prefix=f"{name}-", dir=runs))
  (place / URL).write_text(url)
  # Held until the process ends, however it ends.
  alive = (place / ALIVE).open("w")
  fcntl.flock(alive, fcntl.LOCK_EX)
  atexit.register(_end, place, alive)
  folder = place / url.rpartition("/")[2]
  folder.mkdir()
  return folder


def keep(folder: pathlib.Path) -> bool:
  """Has the stand-in stay after its process. Whether it is one."""
  if url_of(folder) is None:
    return False
  (folder.parent / KEPT).touch()
  return True


def _end(place: pathlib.Path, alive):
  alive.close()
  if not (place / KEPT).exists():
    shutil.rmtree(place, ignore_errors=True)


def _sweep(runs: pathlib.Path, name: str):
  """Removes what killed processes left."""
  for place in runs.glob(f"{name}-*"):
    with contextlib.suppress(OSError), (place / ALIVE).open() as alive:
      fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
      if not (place / KEPT).exists():
        shutil.rmtree(place, ignore_errors=True)


@functools.cache
def mirror(folder: pathlib.Path) -> Mirror:
  """The one of a stand-in."""
  return Mirror(folder)


class Mirror:
  """The small files of a stand-in, and their objects in the bucket. Safe from many threads."""

  def __init__(self, folder: pathlib.Path):
    self._folder, self._url = folder, url_of(folder)
    self._lock: lock_lib.Lock | None = None
    self._busy = threading.Lock()
    # Of each file: (mark of what was put, when).
    self._put: dict[str, tuple[tuple[int, int], float]] = {}
    self._failing, self._ended = False, threading.Event()

  def pull(self):
    """Fetches the small files of the run, but those that nothing reads."""
    files = {}
    for name, is_folder in listing.names_in(self._url).items():
      if name in NOT_READ or name.startswith((".", EVENTS)):
        continue
      urls = listing.files_in(f"{self._url}/{name}") if is_folder else [f"{self._url}/{name}"]
      files |= {url: self._folder / url[len(self._url) + 1 :] for url in urls}
    remote.download(files)
    for name, (mark, _) in self._changed().items():
      self._put[name] = mark, time.monotonic()

  @contextlib.contextmanager
  def kept_up(self, lock: lock_lib.Lock) -> Iterator[None]:
    """A with block in which the bucket follows the folder, until another process takes the run."""
    self._lock = lock
    thread = threading.Thread(target=self._follow, daemon=True)
    thread.start()
    within = ERROR_WITHIN
    try:
      yield
      within = WITHIN
    finally:
      self._ended.set()
      thread.join(within)
      # One that is still at it waits for a server which does not answer.
      if not thread.is_alive():
        self._try(all_of_them=True, within=within)

  def sync(self):
    """Puts all files that have changed. OSError where the server fails."""
    with self._busy:
      self._put_changed(all_of_them=True, within=WITHIN)

  def _follow(self):
    while not self._ended.wait(1.0):
      self._try(all_of_them=False, within=WITHIN)

  def _try(self, all_of_them: bool, within: float):
    try:
      with self._busy:
        self._put_changed(all_of_them, within)
    except lock_lib.Lost:
      self._ended.set()
    except OSError as e:
      if not self._failing or all_of_them:
        what = "its files lack their end" if all_of_them else "its files wait on this machine"
        logger.warning("%s cannot be written, %s: %s", self._url, what, values.one_line(e))
      self._failing = True
    else:
      if self._failing:
        logger.warning("%s is written again", self._url)
      self._failing = False

  def _put_changed(self, all_of_them: bool, within: float):
    now = time.monotonic()
    changed = {
      name: (mark, size)
      for name, (mark, size) in self._changed().items()
      if all_of_them or now - self._put.get(name, (mark, -1e9))[1] > SECONDS + size * SECONDS_A_MIB
    }
    if not changed:
      return
    if self._lock is not None:
      self._lock.check()
    uploads.put_files({f"{self._url}/{name}": self._folder / name for name in changed}, within)
    self._put |= {name: (mark, now) for name, (mark, _) in changed.items()}

  def _changed(self) -> dict[str, tuple[tuple[int, int], float]]:
    """{name: (its mark, MiB)} of the small files that are not in the bucket as they are."""
    found = {}
    for parent, folders, files in os.walk(self._folder):
      below = pathlib.Path(parent).relative_to(self._folder)
      # What another thread is about to move into its place has a name with a dot.
      folders[:] = (name for name in folders if name not in NOT_PUT and not name.startswith("."))
      for name in (str(below / file) for file in files if not file.startswith(".")):
        with contextlib.suppress(FileNotFoundError):
          facts = (self._folder / name).stat()
          mark = facts.st_size, facts.st_mtime_ns
          if name not in NOT_PUT and self._put.get(name, (None,))[0] != mark:
            found[name] = mark, facts.st_size / 2**20
    return found


@contextlib.contextmanager
def following(folder: pathlib.Path, lock: lock_lib.Lock | None) -> Iterator[None]:
  """A with block in which the bucket follows a stand-in; on process 0, and for no other folder."""
  if lock is None or jax.process_index() > 0 or url_of(folder) is None:
    yield
    return
  with mirror(folder).kept_up(lock):
    yield
