"""Writing to buckets: objects are put whole, and again where the server fails."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import os
import pathlib
import tempfile

from siglax.data import buckets
from siglax.data import listing
from siglax.devices import disk

# A file above SMALL bytes goes to the server in parts, by its library, within so many seconds.
SMALL, LARGE_TIMEOUT = 2**27, 3600.0
# The file of a folder that is put last: without it nothing takes the folder for whole.
LAST = "config.json"


def put(path: str, content: bytes, within: float | None = None):
  """Makes `content` the object at a URL. within: as of `buckets.request`."""
  ask = lambda filesystem, name: buckets.call(filesystem, "pipe_file", name, content)
  _request(path, ask, within=within)
  buckets.forget(path)


def put_new(path: str, content: bytes) -> bool:
  """`put` where there is no object yet, which the server decides; whether there was none."""
  ask = lambda f, name: buckets.call(f, "pipe_file", name, content, mode="create")
  try:
    _request(path, ask)
  except buckets.Exists:
    # An earlier try may have succeeded, and only its answer was lost.
    return buckets.read(path) == content
  return True


def put_file(path: str, file: pathlib.Path, within: float | None = None):
  """Makes a local file the object at a URL."""
  if file.stat().st_size <= SMALL:
    put(path, file.read_bytes(), within)
    return
  ask = lambda filesystem, name: buckets.call(filesystem, "put_file", str(file), name)
  _request(path, ask, timeout=LARGE_TIMEOUT, listing=True, within=within)
  buckets.forget(path)


def _request(path: str, ask, **options):
  """`buckets.request` of what writes: an object may be missing then, and its bucket may not."""
  try:
    buckets.request(path, ask, **options)
  except buckets.Missing:
    raise buckets.Unreachable(f"{path!r} cannot be written: there is no such bucket") from None


def put_files(files: dict[str, pathlib.Path], within: float | None = None):
  """`put_file` of {URL: file}, many at a time. The first error is raised."""
  listing.in_threads(lambda path: put_file(path, files[path], within), list(files))


def delete(path: str, within: float | None = None):
  """Removes the object at a URL, if there is one."""
  with contextlib.suppress(buckets.Missing):
    buckets.request(path, lambda f, name: buckets.call(f, "rm_file", name), within=within)
  buckets.forget(path)


def delete_folder(path: str):
  listing.in_threads(delete, listing.files_in(path, hidden=True))


def copy_folder(path: str, to: str):
  """Copies the objects of a folder within their bucket."""

  def copy(file: str):
    name = to.partition("://")[2] + file[len(path) :]
    buckets.request(file, lambda f, source: buckets.call(f, "cp_file", source, name))

  listing.in_threads(copy, listing.files_in(path, hidden=True))


def exists(path: str | os.PathLike) -> bool:
  """Whether something stands at a URL or a local path now."""
  if buckets.is_url(path):
    return buckets.look(path) is not None
  return os.path.lexists(path)


def write(path: str | os.PathLike, content: bytes):
  """Replaces a file of any path."""
  if buckets.is_url(path):
    put(path, content)
  else:
    disk.write_atomic(path, content)


def check_new(out: str, *endings: str):
  """ValueError for a path of --out with another ending, or where something stands already."""
  if exists(out):
    raise ValueError(f"--out {out} exists; give a path that does not")
  if endings and not out.endswith(endings):
    raise ValueError(f"--out {out} must end in {', '.join(endings)}")


@contextlib.contextmanager
def writing(out: str):
  """Says of what --out names that it cannot be written, in one line, where that fails."""
  try:
    yield
  except OSError as e:
    raise ValueError(f"--out {out} cannot be written: {e.strerror or e}") from e


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """`disk.replacing` for any path: of a URL what is made on this machine's disk is put there at the
  end, a folder's config.json last; after an error nothing is there.
  """
  if not buckets.is_url(path):
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    with disk.replacing(path) as temporary:
      yield temporary
    return
  path = path.rstrip("/")
  with tempfile.TemporaryDirectory(prefix="siglax-") as folder:
    made = pathlib.Path(folder, path.rpartition("/")[2])
    yield made
    if made.is_file():
      put_file(path, made)
      return
    files = {f"{path}/{f.relative_to(made)}": f for f in made.rglob("*") if f.is_file()}
    last = {url: files.pop(url) for url in [f"{path}/{LAST}"] if url in files}
    try:
      put_files(files)
      put_files(last)
    except BaseException:
      with contextlib.suppress(OSError):
        delete_folder(path)
      raise
