"""The imported files that a run needs: their names and digests in imports.json, and a copy of each
to read.

The copies are for people: siglax executes no file of a run folder unless its user names it with
--import.
"""

from __future__ import annotations

import json
import logging
import pathlib

from siglax.config import imports
from siglax.config import parts
from siglax.config import values
from siglax.devices import disk
from siglax.devices import errors

logger = logging.getLogger("siglax")

FILE, FOLDER = "imports.json", "imports"
_ADVICE = (
  f"bring it back from a copy, or remove it and give --import the files in {FOLDER}/ beside it"
)


def write(folder: pathlib.Path):
  """Records in a run folder what this process has imported. OSError where the disk fails."""
  # The name that the file was given by, not that of its copy.
  given = {record["sha256"]: record["name"] for record in _read(folder / FILE)}
  records, names = [], set()
  for file in imports.imported():
    name = pathlib.Path(file.module.__file__).name
    name = f"{len(names)}_{name}" if name in names else name  # of two files of one name
    names.add(name)
    (folder / FOLDER).mkdir(exist_ok=True)
    disk.write_atomic(folder / FOLDER / name, file.content)
    records.append(
      {
        "name": given.get(file.digest, file.name),
        "sha256": file.digest,
        "copy": f"{FOLDER}/{name}",
        "parts": file.parts,
      }
    )
  if records or (folder / FILE).exists():  # of an earlier start, without checkpoints
    disk.write_atomic(folder / FILE, json.dumps(records, indent=1).encode())


def check(folder, same: bool = False):
  """ValueError in one line where a run folder needs a file that was not imported; it says where the
  copy lies.

  same: the file must have the content that the run began with, as the steps before were made with
  that. Otherwise another one that registers the same parts gives a warning.
  """
  folder = pathlib.Path(folder)
  here = {file.digest for file in imports.imported()}
  for record in _read(folder / FILE):
    if record["sha256"] in here:
      continue
    name, copy = record["name"], folder / record["copy"]
    there = [tuple(part) for part in record["parts"]]
    if not there or not set(there) <= set(parts.registered):
      adds = (
        ", ".join(f"the {kind} {part!r}" for kind, part in there) or "what the run was made with"
      )
      raise ValueError(
        f"{folder} needs {name}, which adds {adds}: give --import {name} (in Python: "
        f"siglax.config.import_parts); its copy is {copy}"
      )
    changed = (
      f"{name} is not the file that the run in {folder} was made with, of which {copy} is a copy"
    )
    if same:
      raise ValueError(
        f"{changed}; its steps would follow other rules: give --import {copy}, or use another "
        "--workdir"
      )
    logger.warning("%s; what it registers now is used", changed)


def _read(file: pathlib.Path) -> list[dict]:
  """The records; none where there is no file. ValueError that names a damaged one, and, after
  several attempts, one that the disk does not give.
  """
  try:
    content = errors.attempt(file.read_bytes, f"{file} cannot be read")
  except FileNotFoundError:
    return []
  except OSError as e:
    raise ValueError(f"{file} cannot be read: {values.one_line(e)}; {_ADVICE}") from e
  try:
    records = json.loads(content)
  except (ValueError, RecursionError) as e:
    raise ValueError(f"{file} is damaged: {values.one_line(e)}; {_ADVICE}") from e
  if not isinstance(records, list) or not all(map(_whole, records)):
    raise ValueError(
      f"{file} is damaged: it must hold name, sha256, copy and parts of each import; {_ADVICE}"
    )
  return records


def _whole(record) -> bool:
  if not isinstance(record, dict):
    return False
  text = all(isinstance(record.get(key), str) for key in ("name", "sha256", "copy"))
  pair = lambda part: isinstance(part, list) and list(map(type, part)) == [str, str]
  return text and isinstance(record.get("parts"), list) and all(map(pair, record["parts"]))
