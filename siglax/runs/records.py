"""The records of a run's metrics.jsonl: one JSON object a line; siglax/runs/metrics.py says what it
holds.
"""

from __future__ import annotations

import os
import pathlib

from siglax.devices import disk
from siglax.runs import files

FILE = "metrics.jsonl"


def read(folder: str | os.PathLike) -> list[dict]:
  """The records of a run folder's metrics.jsonl in order; a torn line is left out. ValueError when
  there is no file.
  """
  path = pathlib.Path(folder) / FILE
  if not path.is_file():
    raise ValueError(f"{path}: no such file; give the folder of a run (--workdir of siglax train)")
  return [record for record in files.read_records(path, "step") if _are_numbers(record)]


def _are_numbers(record: dict) -> bool:
  return all(value is None or isinstance(value, (int, float)) for value in record.values())


def drop_after(path: pathlib.Path, step: int):
  """Drops torn lines and lines of later steps from a metrics.jsonl; the new file replaces the old
  in one move.
  """
  if path.is_file():
    kept = b"".join(
      files.encode(record) for record in files.read_records(path, "step") if record["step"] <= step
    )
    if kept != path.read_bytes():
      disk.write_atomic(path, kept)


def is_metric(key: str) -> bool:
  """Of an evaluation: eval/<name>/<metric>."""
  return key.startswith("eval/") and not is_fact(key)


def is_fact(key: str) -> bool:
  """Known of an evaluation's metric, whatever the model: eval/<name>/<fact>/<metric>."""
  return key.startswith("eval/") and key.count("/") == 3
