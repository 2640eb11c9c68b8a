"""The study folder: what it is a study of, its runs, and what came of them.

    study.json     {"version", "config", "overrides", "fields", "seeds", "baseline", "equal",
                    "runs", "trunks", "environment"}; a run is {"name", "values", "seed",
                    "config" and "overrides" (its command line), "steps", "flops", "parameters",
                    of a branch "trunk", and "first", the costs of its first stage}
    runs/NAME/     the run folder of each run, as of `siglax train`
    trunks/NAME/   the runs that branches start from
    results.json   [{"name", "values", "seed", "status", "error", "metrics", "learned", "costs"}]
    report/        what siglax report made of it
    failed/        NAME.txt of each run that failed: why, in one line
    logs/          NAME.txt: what each run printed

The rest of the folder tells what results.json holds, so that it can be made anew at any time.
"""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

from siglax.devices import disk
from siglax.runs import folder as run_folder
from siglax.runs import history
from siglax.runs import records as records_lib
from siglax.runs import summary

VERSION = 1
STUDY, RESULTS = "study.json", "results.json"
RUNS, TRUNKS, FAILED, LOGS = "runs", "trunks", "failed", "logs"
REPORT = "report"  # the folder that a report is written to
NAMES = STUDY, RESULTS, RUNS, TRUNKS, FAILED, LOGS, REPORT
STATUSES = "finished", "failed", "unfinished", "missing", "damaged"
FINISHED, FAILED_STATUS, UNFINISHED, MISSING, DAMAGED_STATUS = STATUSES
# Keys of study.json, and of each run in it.
KEYS = "config overrides fields seeds baseline equal runs trunks environment".split()
KEYS_OF_RUN = "name", "values", "seed", "steps", "flops"
# Parameters of a loss, as metrics.jsonl logged them last; one that no step changed is not learned.
LEARNED = ("scale", "bias")
# What another machine, or another day, gives another value of.
MEASURED = ("seconds", "peak_bytes")


class Damaged(ValueError):
  """A file of a study folder cannot be read; `siglax ablate` writes it again."""


def read(folder) -> dict[str, Any]:
  """study.json of a study folder. ValueError in one line where there is none, or of another siglax;
  Damaged where it is not whole.
  """
  file = pathlib.Path(folder) / STUDY
  if not file.is_file():
    raise ValueError(f"{folder} is no study folder: it has no {STUDY}; let siglax ablate make one")
  study = _json(file)
  if not isinstance(study, dict) or study.get("version") != VERSION:
    found = study.get("version") if isinstance(study, dict) else None
    raise ValueError(f"{file} has version {found!r}; this siglax reads version {VERSION}")
  absent = [name for name in KEYS if name not in study]
  if not absent:
    absent = [x for run in [*study["runs"], *study["trunks"]] for x in KEYS_OF_RUN if x not in run]
  if absent:
    raise Damaged(f"{file} is damaged: it has no {absent[0]}; let siglax ablate write it again")
  return study


def write(folder, study: dict[str, Any]):
  """Writes study.json, with the version, unless it holds the same already."""
  file = pathlib.Path(folder) / STUDY
  content = json.dumps({"version": VERSION, **study}, indent=1).encode()
  if not (file.is_file() and file.read_bytes() == content):
    disk.write_atomic(file, content)


def results(folder) -> list[dict[str, Any]]:
  """What came of each run of a study, in the order of study.json; of a run that is not finished
  there are no metrics.
  """
  runs = read(folder)["runs"]
  found = [_result(pathlib.Path(folder), run) for run in runs]
  for result, run in zip(found, runs):
    if result["costs"]["examples"]:  # it has begun, after its first stage
      for name, cost in run.get("first", {}).items():
        result["costs"][name] += cost
  return found


def write_results(folder) -> list[dict[str, Any]]:
  """Writes results.json anew, and returns what it holds."""
  found = results(folder)
  disk.write_atomic(pathlib.Path(folder) / RESULTS, json.dumps(found, indent=1).encode())
  return found


def read_results(folder) -> list[dict[str, Any]]:
  """results.json, as it was written last."""
  file = pathlib.Path(folder) / RESULTS
  if not file.is_file():
    raise ValueError(f"{folder} has no {RESULTS}; let siglax ablate make its runs")
  return _json(file)


def status(folder, name: str, of: str = RUNS) -> tuple[str, str | None]:
  """(status, error) of a run. of: the folder that it lies in, RUNS or TRUNKS."""
  folder = pathlib.Path(folder)
  starts = history.read(folder / of / name)
  if starts and starts[-1]["ended"] == FINISHED:
    return FINISHED, None
  failed = failed_file(folder, name)
  if failed.is_file():
    return FAILED_STATUS, failed.read_text(errors="replace").strip()
  return (UNFINISHED if (folder / of / name).is_dir() else MISSING), None


def failed_file(folder, name: str) -> pathlib.Path:
  """Where it says why a run failed."""
  return pathlib.Path(folder) / FAILED / f"{name}.txt"


def _result(folder: pathlib.Path, run: dict) -> dict[str, Any]:
  return result(folder / RUNS / run["name"], run, *status(folder, run["name"]))


def result(of_run: pathlib.Path, run: dict, how: str, error: str | None) -> dict[str, Any]:
  """What came of a run in its folder. run: of study.json; of a run of no study it has "name",
  "values" and "seed" alone. how: its status; a finished run whose end metrics.jsonl lacks is
  damaged.
  """
  lines = records_lib.read(of_run) if (of_run / records_lib.FILE).is_file() else []
  if how == FINISHED and (problem := _damage(of_run, lines)):
    how, error = DAMAGED_STATUS, problem
  metrics = summary.evaluations(lines) if how == FINISHED else {}
  logged = {name: [line[name] for line in lines if name in line] for name in LEARNED}
  # Without those of a task that the run was resumed without.
  last = {m: points[-1][1] for m, points in metrics.items() if points[-1][0] == lines[-1]["step"]}
  return {
    "name": run["name"],
    "values": run["values"],
    "seed": run["seed"],
    "status": how,
    "error": error,
    "metrics": {metric: x if math.isfinite(x) else None for metric, x in last.items()},
    "learned": {name: x[-1] for name, x in logged.items() if how == FINISHED and len(set(x)) > 1},
    "costs": _costs(of_run, run, lines),
  }


def _damage(of_run: pathlib.Path, lines: list[dict]) -> str | None:
  """What the metrics.jsonl of a finished run lacks of its end: an earlier evaluation would stand in
  for the last one.
  """
  end = history.read(of_run)[-1]["last_step"]
  steps = [line["step"] for line in lines]
  evaluated = [line["step"] for line in lines if any(map(records_lib.is_metric, line))]
  if not steps:
    problem = "is empty or absent"
  elif steps[-1] < end:
    problem = f"ends at step {steps[-1]:,}, and the run at step {end:,}"
  elif evaluated and evaluated[-1] < end and _evaluates(of_run):
    problem = f"has no evaluation of the last step {end:,}"
  else:
    return None
  return f"{records_lib.FILE} {problem}; remove {of_run}, and train it again"


def _evaluates(of_run: pathlib.Path) -> bool:
  """Whether the run's config has tasks: it may have been resumed without."""
  try:
    return bool(json.loads((of_run / run_folder.CONFIG).read_text())["eval"]["tasks"])
  except (OSError, ValueError, KeyError):
    return True


def _costs(of_run: pathlib.Path, run: dict, lines: list[dict]) -> dict[str, Any]:
  """Of what a run has done: model FLOPs in proportion to its steps, seconds without those of steps
  that a stop made it do again, peak bytes by the compiled program of a finished run.
  """
  starts = history.read(of_run)
  _, seconds = history.account(starts)
  seconds.pop(history.LOST)
  told = {key: value for line in lines for key, value in line.items() if key.startswith("cost/")}
  peaks = [start["peak_bytes"] for start in starts if start.get("peak_bytes")]
  step = lines[-1]["step"] if lines else 0
  return {
    "examples": lines[-1].get("examples", 0) if lines else 0,
    "flops": run["flops"] * step // run["steps"] if "flops" in run else told.get("cost/flops"),
    "seconds": round(sum(seconds.values()), 3),
    "peak_bytes": told.get("cost/peak_bytes", max(peaks, default=None)),
  }


def _json(file: pathlib.Path) -> Any:
  try:
    return json.loads(file.read_text())
  except ValueError as e:
    raise Damaged(f"{file} is damaged: {e}; let siglax ablate write it again") from e
