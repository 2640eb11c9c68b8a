"""The runs to report on: of a study of `siglax ablate`, or of any folder with runs beneath."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shlex
from typing import Any

from siglax import __version__
from siglax.config import values as values_lib
from siglax.runs import folder as run_folder
from siglax.runs import history
from siglax.runs import records as records_lib
from siglax.studies import folder as folder_lib


@dataclasses.dataclass(frozen=True)
class Found:
  """rows: what came of each run, as of results.json. folders: of each run, by its name. fields:
  that differ between runs, with their values in order. commands: that make the runs again.
  """

  folder: pathlib.Path
  rows: list[dict[str, Any]]
  folders: dict[str, pathlib.Path]
  fields: dict[str, list]
  baseline: dict[str, Any] | None
  equal: str | None
  environment: dict[str, Any]
  commands: list[str]

  def of(self, *status: str) -> list[dict[str, Any]]:
    """The rows with such a status."""
    return [row for row in self.rows if row["status"] in status]


def read(folder) -> Found:
  """What there is to report in a folder; nothing is written. ValueError in one line where no run
  has finished.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise ValueError(f"{folder}: no such folder; give that of a study, or one with runs in it")
  found = _study(folder) if (folder / folder_lib.STUDY).is_file() else _runs(folder)
  if not found.of(folder_lib.FINISHED):
    told = ", ".join(
      f"{n} {status}" for status in _statuses(found.rows) if (n := len(found.of(status)))
    )
    raise ValueError(f"{folder} has no finished run ({told}); there is nothing to report yet")
  return found


def _statuses(rows) -> list[str]:
  return list(dict.fromkeys(row["status"] for row in rows))


def _study(folder: pathlib.Path) -> Found:
  study = folder_lib.read(folder)
  given = [f"--config.{name}={value}" for name, value in study["overrides"].items()]
  again = ["siglax", "ablate", "--config", study["config"], *given, "--workdir", str(folder)]
  rows = folder_lib.results(folder)
  everywhere = lambda field: all(field in row["values"] for row in rows)
  return Found(
    folder=folder,
    rows=rows,
    folders={run["name"]: folder / folder_lib.RUNS / run["name"] for run in study["runs"]},
    fields={
      field: values
      for field, values in study["fields"].items()
      if len(values) > 1 or not everywhere(field)
    },
    baseline=study["baseline"],
    equal=study["equal"],
    environment=study["environment"],
    commands=[shlex.join(again), shlex.join(["siglax", "report", str(folder)])],
  )


def _runs(folder: pathlib.Path) -> Found:
  """Of a folder without study.json: the fields that differ between the configs of its runs."""
  folders = _find(folder)
  if not folders:
    raise ValueError(
      f"{folder} has no {folder_lib.STUDY} and no run folder beneath; give the --workdir of siglax "
      "ablate, or a folder with those of siglax train in it"
    )
  configs, errors = {}, {}
  for name, path in folders.items():
    try:
      configs[name] = run_folder.read_config(path)
    except ValueError as e:
      errors[name] = str(e)
  flat = {name: _flat(config) for name, config in configs.items()}
  differing = [
    field
    for field in dict.fromkeys(field for of_run in flat.values() for field in of_run)
    if len({json.dumps(of_run.get(field), default=str) for of_run in flat.values()}) > 1
  ]
  rows = [
    _row(path, name, flat.get(name), differing, errors.get(name)) for name, path in folders.items()
  ]
  _check_collisions(rows)
  fields = {
    field: _sorted(list({json.dumps(v): v for row in rows for v in _value(row, field)}.values()))
    for field in differing
    if field != "seed"
  }
  commands = [_command(folders[row["name"]], row) for row in rows if row["name"] in flat]
  hosts = {s["host"] for path in folders.values() for s in history.read(path) if "host" in s}
  environment = {"siglax of this report": __version__, "hosts": ", ".join(sorted(hosts))}
  return Found(folder, rows, folders, fields, None, None, environment, commands)


def _command(folder: pathlib.Path, row: dict) -> str:
  """That makes a run again, but for the config file, which no run folder tells."""
  fields = row["values"] | {"seed": row["seed"]}
  given = [f"--config.{field}={value}" for field, value in fields.items()]
  return shlex.join(["siglax", "train", "--config", "FILE.py", "--workdir", str(folder), *given])


def _find(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """The run folders beneath a folder, by their path in it."""
  found, seen = {}, set()
  for parent, folders, files in os.walk(folder, followlinks=True):
    path = pathlib.Path(parent)
    if (real := path.resolve()) in seen:  # a second link to it, or a circle
      folders.clear()
      continue
    seen.add(real)
    if run_folder.CONFIG in files and (records_lib.FILE in files or "checkpoints" in folders):
      found[str(path.relative_to(folder))] = path
      folders.clear()
    folders[:] = sorted(name for name in folders if not name.startswith("."))
  return found


def _flat(config) -> dict[str, Any]:
  """{field: value}; a tuple of dicts is one value, as a field of the command line is."""
  return {field: _plain(value) for field, value in values_lib.leaves(config).items()}


def _plain(value):
  """As JSON would give it back."""
  return json.loads(json.dumps(value, default=str))


def _row(path, name, flat, differing, error) -> dict[str, Any]:
  if flat is None:
    run = {"name": name, "values": {}, "seed": None}
    return folder_lib.result(path, run, folder_lib.FAILED_STATUS, error)
  values = {field: flat.get(field) for field in differing if field != "seed"}
  how, error = _status(path)
  return folder_lib.result(path, {"name": name, "values": values, "seed": flat["seed"]}, how, error)


def _status(path: pathlib.Path) -> tuple[str, str | None]:
  """(status, error) of a run that no study has: by how its last start ended."""
  starts = history.read(path)
  ended = starts[-1]["ended"] if starts else None
  if ended == folder_lib.FINISHED:
    return folder_lib.FINISHED, None
  if ended and ":" in ended:  # the type of an error, and what it says
    return folder_lib.FAILED_STATUS, ended
  return folder_lib.UNFINISHED, None


def _check_collisions(rows):
  seen = {}
  for row in (row for row in rows if row["status"] == folder_lib.FINISHED):
    key = json.dumps([row["values"], row["seed"]], sort_keys=True)
    if key in seen:
      raise ValueError(
        f"the runs {seen[key]} and {row['name']} have the same config and seed={row['seed']}; move "
        "one of them away"
      )
    seen[key] = row["name"]


def _value(row, field) -> list:
  return [row["values"][field]] if field in row["values"] else []


def _sorted(values: list) -> list:
  """Numbers by size, texts by name, others as they come."""
  try:
    return sorted(values)
  except TypeError:
    return values
