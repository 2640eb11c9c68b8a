"""Work in parts, which any number of jobs share without a word to each other, and which goes on
where it was stopped.

A folder, on a disk or in a bucket, holds a JSON file that says what is made, the parts, and in the
folder `shards` a record of each. A part appears whole, and its record after it; one that has both
is not made again.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil
import tempfile

from siglax.config import values
from siglax.data import buckets
from siglax.data import listing
from siglax.data import remote
from siglax.data import uploads

RECORDS = "shards"


class Parts:
  """Parts in a folder.

  folder: a path or a URL. about: the name of the file that says what is made. file: number of a
  part → its name.
  """

  def __init__(self, folder: str | os.PathLike, about: str, file: Callable[[int], str]):
    self.folder, self.about, self._file = os.fspath(folder).rstrip("/"), about, file

  def path(self, name: str) -> str:
    return f"{self.folder}/{name}"

  def part(self, number: int) -> str:
    """The path of a part."""
    return self.path(self._file(number))

  def names(self) -> list[str]:
    """What is in the folder, sorted, without what begins with a dot; [] where there is none."""
    if buckets.is_url(self.folder):
      found = listing.names_in(self.folder)
    else:
      found = os.listdir(self.folder) if os.path.isdir(self.folder) else []
    return sorted(name for name in found if not name.startswith("."))

  def read(self, name: str) -> dict | None:
    """A JSON file of the folder, None where it is not there."""
    path = self.path(name)
    try:
      content = buckets.read(path) if buckets.is_url(path) else pathlib.Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError, buckets.Missing):
      return None
    return json.loads(content)

  def write(self, name: str, value):
    """A JSON file of the folder."""
    content = (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
    if not buckets.is_url(self.folder):
      os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
    uploads.write(self.path(name), content)

  def begin(self, about: dict) -> str | None:
    """Says what is made here, where nothing says so yet. Returns what was made here differently, in
    words: "format='tar' and not 'array_record'".
    """
    if (found := self.read(self.about)) is None:
      self.write(self.about, about)
      # Another job may have begun since.
      found = self.read(self.about) or {}
    # As JSON gives it back: a tuple is a list.
    for name, value in json.loads(json.dumps(about)).items():
      if found.get(name) != value:
        return f"{name}={values.shown(found.get(name))} and not {values.shown(value)}"
    return None

  def make(self, number: int, write: Callable[[pathlib.Path], dict]) -> dict:
    """Makes a part and its record: what `write`, which is given a path to write to, returns, with
    "file", "bytes" and "sha256".
    """
    path = self.part(number)
    with uploads.replacing(path) as temporary:
      made = write(temporary)
      with temporary.open("rb+") as written:
        digest = hashlib.file_digest(written, "sha256").hexdigest()
        size = written.tell()
        os.fsync(written.fileno())
    record = made | {"file": path.rpartition("/")[2], "bytes": size, "sha256": digest}
    self.write(f"{RECORDS}/{number:05}.json", record)
    return record

  @contextlib.contextmanager
  def local(self, number: int) -> Iterator[pathlib.Path]:
    """A part as a file of this machine, of a bucket a copy that is removed again."""
    path = self.part(number)
    if not buckets.is_url(path):
      yield pathlib.Path(path)
      return
    with tempfile.TemporaryDirectory(prefix="siglax-") as folder:
      copy = pathlib.Path(folder, path.rpartition("/")[2])
      remote.download({path: copy})
      yield copy

  def records(self, numbers: Iterable[int]) -> list[dict | None]:
    """The record of each of these parts, None for one that is not whole."""
    if buckets.is_url(self.folder):
      return listing.in_threads(self._record, list(numbers))
    return list(map(self._record, numbers))

  def _record(self, number: int) -> dict | None:
    record, path = self.read(f"{RECORDS}/{number:05}.json"), self.part(number)
    if record is None:
      return None
    if buckets.is_url(path):
      found = buckets.look(path)
      return record if found and found.size == record["bytes"] else None
    try:
      return record if os.path.getsize(path) == record["bytes"] else None
    except FileNotFoundError:
      return None

  def tidy(self):
    """Removes what jobs that were killed left on a disk."""
    if buckets.is_url(self.folder):
      return
    folder = pathlib.Path(self.folder)
    for left in [*folder.iterdir(), *(folder / RECORDS).iterdir()]:
      if re.fullmatch(r"\.\w+\.[0-9a-f]{16}\.\w+", left.name):
        left.unlink(missing_ok=True)

  def remove(self):
    """Removes the folder with all that is in it."""
    if buckets.is_url(self.folder):
      uploads.delete_folder(self.folder)
    else:
      shutil.rmtree(self.folder)
