"""Where the checkpoints of a run lie: on a disk, or in a bucket.

Orbax writes to disks only (its version 0.12 builds no store for s3://, and merges what several
processes wrote by moving files). For a bucket each process has it write to the run's stand-in
(siglax/runs/bucket.py), as files of its own, and uploads them. The metadata are the commit: process
0 puts them last, once all processes have uploaded, and removes them first. So a checkpoint of a
bucket is there whole or not at all, and has the files of one on a disk: each can be copied to the
other's place.
"""

from __future__ import annotations

from collections.abc import Callable
import os
import pathlib
import shutil
import threading

import jax
import orbax.checkpoint as ocp

from siglax.data import buckets
from siglax.data import listing
from siglax.data import remote
from siglax.data import uploads
from siglax.runs import bucket

FOLDER = "checkpoints"
META = "meta/metadata"
# Bytes of a file of a checkpoint in a bucket: each is put by one request.
PIECE = 2**26
# A request of a save is not made again after so many seconds. A run that ends may wait for two
# saves.
WITHIN = 10.0


def at(folder: str | os.PathLike) -> Disk | Bucket:
  """The place of the checkpoints of a run folder."""
  folder = pathlib.Path(folder).absolute()
  return Disk(folder / FOLDER) if bucket.url_of(folder) is None else Bucket(folder)


def _steps(names) -> list[int]:
  """The steps among the names of folders, oldest first."""
  return sorted(
    int(name) for name in names if name.isdecimal() and len(name) < 11 and name == str(int(name))
  )


class Disk:
  """Checkpoints in a folder. staging: where orbax writes; name: for messages."""

  def __init__(self, path: pathlib.Path):
    self.staging, self.name = path, str(path)

  def steps(self) -> list[int]:
    """Those that are there, oldest first; none where the folder does not exist. OSError where it
    cannot be read.
    """
    try:
      return _steps(os.listdir(self.staging))
    except (FileNotFoundError, NotADirectoryError):
      return []

  def exists(self, step: int, name: str = "") -> bool:
    """Whether a checkpoint is there, or a file of it."""
    return (self.staging / str(step) / name).exists()

  def read(self, step: int, name: str = META) -> bytes:
    """A small file of a checkpoint."""
    return (self.staging / str(step) / name).read_bytes()

  def local(self, step: int) -> pathlib.Path:
    """The checkpoint on this machine."""
    return self.staging / str(step)

  def drop(self, step: int):
    """Forgets what `local` fetched."""

  def handler(self, options: ocp.options.AsyncOptions) -> ocp.CompositeCheckpointHandler:
    """Orbax's writer of a checkpoint."""
    return ocp.CompositeCheckpointHandler(
      composite_options=ocp.CompositeOptions(async_options=options),
      state=ocp.PyTreeCheckpointHandler(),
      meta=ocp.JsonCheckpointHandler(),
    )

  def processes(self) -> ocp.options.MultiprocessingOptions:
    """How the processes share in writing."""
    return ocp.options.MultiprocessingOptions()

  def pieces(self, state):
    """Orbax's arguments of each leaf; None for its own."""
    del state

  def saved(self, step: int) -> bool:
    """Whether a save has succeeded; it raises what made it fail. False also where the disk does not
    answer now.
    """
    return os.path.exists(self.staging / str(step))

  def settle(self, step: int):
    """Returns when a save that orbax has finished is there; raises what made it fail."""

  def prepare(self):
    """Removes what a killed process left unfinished."""
    self.staging.mkdir(parents=True, exist_ok=True)
    self.sweep()

  def sweep(self, step: int | None = None):
    """Removes what was left unfinished: of a step's save, or all, where no other process may be at
    work.
    """
    for p in self.staging.iterdir():
      unfinished = p.name.partition(".orbax-checkpoint-tmp")
      if (
        unfinished[1]
        and step in (None, int(unfinished[0]))
        or step is None
        and p.name.startswith(".deleting-")
      ):
        shutil.rmtree(p, ignore_errors=True)

  def move(self, step: int, name: str) -> str:
    """Gives a checkpoint a name that is no step. Its path, for messages."""
    (self.staging / str(step)).rename(self.staging / name)
    return str(self.staging / name)

  def taken(self, name: str) -> bool:
    return (self.staging / name).exists()

  def move_back(self, name: str, step: int):
    if not self.exists(step):
      (self.staging / name).rename(self.staging / str(step))

  def hide(self, step: int) -> Callable[[], None]:
    """Removes a checkpoint at once; what is returned removes its files, which takes longer."""
    hidden = self.staging / f".deleting-{step}"
    (self.staging / str(step)).rename(hidden)
    return lambda: shutil.rmtree(hidden, ignore_errors=True)


class Bucket:
  """Checkpoints in a bucket, by way of the run's stand-in; methods as of `Disk`."""

  def __init__(self, folder: pathlib.Path):
    self._folder = folder
    self.staging, self.name = folder / FOLDER, f"{bucket.url_of(folder)}/{FOLDER}"
    self._thread: threading.Thread | None = None
    self._error: BaseException | None = None
    self._uploads = 0
    self.staging.mkdir(parents=True, exist_ok=True)

  def steps(self) -> list[int]:
    steps = _steps(name for name, is_folder in listing.names_in(self.name).items() if is_folder)
    there = listing.in_threads(self.exists, steps)
    return [step for step, is_there in zip(steps, there) if is_there]

  def exists(self, step: int, name: str = META) -> bool:
    return buckets.look(f"{self.name}/{step}/{name}") is not None

  def read(self, step: int, name: str = META) -> bytes:
    return buckets.read(f"{self.name}/{step}/{name}")

  def local(self, step: int) -> pathlib.Path:
    place, url = self._fetched(step), f"{self.name}/{step}"
    if not place.exists():
      files = listing.files_in(url, hidden=True)
      remote.download({file: place / file[len(url) + 1 :] for file in files})
    return place

  def drop(self, step: int):
    shutil.rmtree(self._fetched(step), ignore_errors=True)

  def _fetched(self, step: int) -> pathlib.Path:
    return self.staging / f"fetched-{step}"

  def handler(self, options: ocp.options.AsyncOptions) -> ocp.CompositeCheckpointHandler:
    """Each process writes the chunks of arrays that it has, as files that no other process has."""
    arrays = ocp.type_handlers.ArrayHandler(
      primary_host=None, replica_id=0, use_replica_parallel=False
    )
    processes = self.processes()
    return ocp.CompositeCheckpointHandler(
      composite_options=ocp.CompositeOptions(
        multiprocessing_options=processes, async_options=options
      ),
      state=ocp.PyTreeCheckpointHandler(
        use_ocdbt=False,
        multiprocessing_options=processes,
        type_handler_registry=ocp.type_handlers.create_type_handler_registry((jax.Array, arrays)),
      ),
      meta=ocp.JsonCheckpointHandler(multiprocessing_options=processes),
    )

  def processes(self) -> ocp.options.MultiprocessingOptions:
    """Each writes to a folder of its own."""
    return ocp.options.MultiprocessingOptions(primary_host=None)

  def pieces(self, state):
    return jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=PIECE), state)

  def saved(self, step: int) -> bool:
    if self._thread is None:
      if not os.path.exists(self.staging / str(step)):
        return False
      self._thread = threading.Thread(target=self._upload, args=(step,), daemon=True)
      self._thread.start()
    if self._thread.is_alive():
      return False
    self._thread, error = None, self._error
    if error is not None:
      raise error
    return True

  def settle(self, step: int):
    while self._thread is not None or (self.staging / str(step)).exists():
      if self.saved(step):
        return
      self._thread.join()

  def _upload(self, step: int):
    try:
      self._error = None
      self._put(step)
    # pylint: disable=broad-exception-caught; it is raised again where the save is waited for
    except BaseException as e:
      self._error = e

  def _put(self, step: int):
    """Uploads what this process wrote of a checkpoint, and commits it once all have."""
    folder, url, first = self.staging / str(step), f"{self.name}/{step}", jax.process_index() == 0
    self._uploads += 1
    files = {
      f"{url}/{name}": folder / name
      for name in (str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
      if name != META and (first or _is_chunk(name))
    }
    uploads.put_files(files, WITHIN)
    self._barrier(f"siglax-uploaded-{step}-{self._uploads}")
    if first:
      # The log up to this step, which a resume goes on from.
      bucket.mirror(self._folder).sync()
      uploads.put_file(f"{url}/{META}", folder / META, WITHIN)
    self._barrier(f"siglax-committed-{step}-{self._uploads}")
    shutil.rmtree(folder, ignore_errors=True)

  def _barrier(self, name: str):
    if jax.process_count() > 1:
      ocp.multihost.get_barrier_sync_fn()(key=name, timeout_ms=1000 * 1200)

  def prepare(self):
    committed = self.steps()
    for name in _steps(listing.names_in(self.name)):
      if name not in committed:
        uploads.delete_folder(f"{self.name}/{name}")

  def sweep(self, step: int | None = None):
    for p in self.staging.iterdir():
      if step is None or p.name.partition(".")[0] == str(step):
        shutil.rmtree(p, ignore_errors=True)

  def move(self, step: int, name: str) -> str:
    uploads.copy_folder(f"{self.name}/{step}", f"{self.name}/{name}")
    self.hide(step)()
    return f"{self.name}/{name}"

  def taken(self, name: str) -> bool:
    return buckets.look(f"{self.name}/{name}") is not None

  def move_back(self, name: str, step: int):
    """A damaged checkpoint stays aside: its step has its name free."""

  def hide(self, step: int) -> Callable[[], None]:
    uploads.delete(f"{self.name}/{step}/{META}")
    return lambda: uploads.delete_folder(f"{self.name}/{step}")


def _is_chunk(name: str) -> bool:
  """Whether a file of a checkpoint holds part of an array, and not what all processes write."""
  parts = name.split("/")
  return parts[0] == "state" and len(parts) > 2 and not parts[-1].startswith(".")
