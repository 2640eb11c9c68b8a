"""Files that appear whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import glob
import os
import pathlib
import secrets
import shutil
import time

# What a killed process left unfinished is removed after so long without a change.
STALE_SECONDS = 24 * 3600


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Gives a path beside `path`, with its suffix, for a file or a folder that is to be made there.

  What was made takes the place of `path` in one move at the end; after an error it is removed, and
  `path` is as it was.
  """
  path = pathlib.Path(path)
  _remove_stale(path)
  # The name is no other process's, on whatever host.
  temporary = path.with_name(f".{path.stem}.{secrets.token_hex(8)}{path.suffix}")
  try:
    yield temporary
    os.replace(temporary, path)
  except BaseException:
    _remove(temporary)
    raise


def _remove_stale(path: pathlib.Path):
  name = f".{glob.escape(path.stem)}.{'[0-9a-f]' * 16}{glob.escape(path.suffix)}"
  with contextlib.suppress(OSError):
    for left in path.parent.glob(name):
      if time.time() - left.stat().st_mtime > STALE_SECONDS:
        _remove(left)


def _remove(path: pathlib.Path):
  with contextlib.suppress(OSError):
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def write_atomic(path: str | os.PathLike, content: bytes):
  """Replaces a file in one move; it is on disk when this returns. A failure leaves the old file and
  no other; its OSError names `path`.
  """
  try:
    with replacing(path) as temporary, temporary.open("wb") as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
  except OSError as e:
    e.filename = str(path)  # a full disk names no file, and others the temporary one
    raise
  with contextlib.suppress(OSError):  # not every file system can sync a folder
    folder = os.open(pathlib.Path(path).parent, os.O_RDONLY)
    try:
      os.fsync(folder)
    finally:
      os.close(folder)
