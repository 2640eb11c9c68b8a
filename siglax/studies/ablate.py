"""`siglax ablate`: the runs of a study, made one after another."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import hashlib
import json
import pathlib
import shutil
import statistics
from typing import Any

from siglax import config as config_lib
from siglax.config import values as values_lib
from siglax.costs import table
from siglax.devices import chips as chips_lib
from siglax.runs import folder as run_folder
from siglax.runs import records as records_lib
from siglax.studies import folder as folder_lib
from siglax.studies import grid
from siglax.studies import lengths as lengths_lib
from siglax.studies import running
from siglax.studies import show
from siglax.studies import sizes as sizes_lib
from siglax.studies import study as study_lib
from siglax.training import run as run_lib

# A setting whose step is timed is trained for so many steps; the first lines of its log tell of
# steps that a device is not yet warm for.
TIMED_STEPS, TIMED_EVERY, WARM = 40, 10, 1
MEASURED = "measured"


@dataclasses.dataclass(frozen=True)
class Words:
  """What the command line gives. config, overrides: of the study; imports: files of --import;
  only: (i, n), the i-th of n parts of the runs; chips: names; retry: makes failed runs again.
  """

  config: str
  overrides: Mapping[str, str]
  workdir: str
  imports: Sequence[str] = ()
  only: tuple[int, int] | None = None
  chips: Sequence[str] = ()
  retry: bool = False


class Ablation:
  """A study in its folder. sets: of devices (`environment.parse_devices`); environment: of
  `environment.ask`; variables: of the processes that train.

  Raises ValueError in one line for all that can be found wrong before a run starts.
  """

  def __init__(self, words: Words, environment: dict[str, Any], variables, sets):
    self._words, self._environment, self._sets = words, environment, sets
    self.folder = pathlib.Path(words.workdir)
    self._study = study_lib.load(words.config, words.overrides)
    chips = words.chips or [name for name, chip in chips_lib.NAMED.items() if self._is(chip)]
    self._chips = [chips_lib.named(name) for name in chips]
    self._starter = running.Starter(self.folder, variables, environment, words.imports)
    self._sizes = sizes_lib.Sizes()
    self._load(measure=False)

  def _is(self, chip: chips_lib.Chip) -> bool:
    found = chips_lib.find(self._environment["device"])
    return found is not None and found.name == chip.name

  def _load(self, measure: bool):
    """The runs, checked. measure: whether steps may be timed."""
    timed = self._seconds_per_step if measure else self._timed_before
    lengths = lengths_lib.Lengths(self._sizes, timed)
    self.runs = grid.runs_of(self._study, lengths)
    self.size_of = {run.name: self._size(run) for run in self.runs}
    self._check_folder()

  def _size(self, run: grid.Run) -> sizes_lib.Size:
    try:
      return self._sizes(run.config())
    except ValueError as e:
      raise ValueError(f"run {run.name}: {e}") from e

  def dry_run(self):
    """Prints the runs, the hours and the disk that they take."""
    runs = [
      (run, self.size_of[run.name], folder_lib.status(self.folder, run.name, running.place(run))[0])
      for run in self._mine()
    ]
    title = (
      f"siglax ablate {self._words.config}: equal {self._study.equal}, seeds "
      f"{', '.join(map(str, self._study.seeds))}, on {self._environment['devices']} "
      f"{self._environment['device']} device(s)"
    )
    if self._study.equal == "seconds":
      title += "; a run whose step is not timed yet has the steps of the base here"
    if not self._chips:
      title += "; hours need --chips, such as --chips H100"
    show.dry_run(title, runs, self._chips, len(self._sets))

  def run(self) -> str:
    """Makes what is not finished; returns the name of the signal that stopped it, or nothing."""
    self.folder.mkdir(parents=True, exist_ok=True)
    if self._study.equal == "seconds":
      self._load(measure=True)
    self._check_disk()
    folder_lib.write(self.folder, self._record())
    mine = self._mine()
    if self._words.retry:
      for run in mine:
        folder_lib.failed_file(self.folder, run.name).unlink(missing_ok=True)
    following = show.follow(self.folder, len(mine))
    try:
      scheduler = running.Scheduler(self.folder, mine, self._starter, self._sets, following)
      stopped = scheduler.until_the_end()
    finally:
      following.close()
    show.summary(folder_lib.write_results(self.folder), str(self.folder))
    return stopped

  def _mine(self) -> list[grid.Run]:
    """The runs of this part. A trunk and its branches are in the same one."""
    if self._words.only is None:
      return self.runs
    part, parts = self._words.only
    groups = list(dict.fromkeys(run.trunk or run.name for run in self.runs))
    mine = set(groups[part::parts])
    return [run for run in self.runs if (run.trunk or run.name) in mine]

  def _record(self) -> dict[str, Any]:
    """study.json."""
    study = self._study
    runs = {
      kind: [
        {
          **run.record(),
          "steps": self.size_of[run.name].steps,
          "flops": self.size_of[run.name].flops,
          "parameters": self.size_of[run.name].parameters,
          **self._costs_of_first(run),
          "sha256": self._digest(run),
        }
        for run in self.runs
        if run.is_trunk == (kind == "trunks")
      ]
      for kind in ("runs", "trunks")
    }
    return {
      "config": self._words.config,
      "overrides": dict(self._words.overrides),
      "imports": list(self._words.imports),
      "fields": grid.json_value(study.fields),
      "seeds": list(study.seeds),
      "baseline": None if study.baseline is None else grid.json_value(study.baseline),
      "equal": study.equal,
      **runs,
      "environment": self._environment,
    }

  def _costs_of_first(self, run: grid.Run) -> dict[str, Any]:
    """{"first": examples and model FLOPs} of a run that has a first stage."""
    if run.trunk is None or run.branch_step is not None:
      return {}
    first = next(other for other in self.runs if other.name == run.trunk)
    size = self.size_of[first.name]
    return {"first": {"examples": size.steps * first.config().batch_size, "flops": size.flops}}

  def _check_folder(self):
    """ValueError where the folder holds another study. One that has more runs by now goes on, and
    one that has lost its study.json.
    """
    if not self.folder.is_dir():
      if self.folder.exists():
        raise ValueError(f"--workdir {self.folder} is a file; name a folder, new or of this study")
      return
    try:
      whole = (self.folder / folder_lib.STUDY).is_file() and folder_lib.read(self.folder)
    except folder_lib.Damaged:
      whole = None
    if whole:
      self._check_study(whole)
    else:
      self._check_runs()

  def _check_study(self, there: dict[str, Any]):
    """there: study.json."""
    now = {run.name: run for run in self.runs}
    given = [f"--config.{field}={text}" for field, text in there["overrides"].items()]
    for run in [*there["trunks"], *there["runs"]]:
      if run["name"] not in now:
        as_before = f"give what it was made with ({' '.join(given)}), or " if given else ""
        what = f"which this one has not; {as_before}use another --workdir"
      elif run.get("sha256") != self._digest(here := now[run["name"]]):
        different = _first_difference(run, here, self._study.equal)
        what = f"whose config is another one here{different}; use another --workdir"
      else:
        continue
      raise ValueError(
        f"--workdir {self.folder} holds another study, {there['config']}: it has the run "
        f"{run['name']}, {what}"
      )

  def _digest(self, run: grid.Run) -> str:
    """Of the config of a run and of what it starts from; of equal seconds without its length."""
    config = json.loads(config_lib.to_json(run.config()))
    if self._study.equal == "seconds":
      config = {key: value for key, value in config.items() if not key.startswith("total_")}
    text = json.dumps([config, run.trunk, run.branch_step], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

  def _check_runs(self):
    """ValueError where a folder without a whole study.json has more than runs of this study."""
    for path in self.folder.iterdir():
      if path.name not in (MEASURED, *folder_lib.NAMES) and not path.name.startswith("."):
        raise ValueError(
          f"--workdir {self.folder} is not empty and holds no study; use another one"
        )
    own = {(running.place(run), run.name): run for run in self.runs}
    for of in (folder_lib.RUNS, folder_lib.TRUNKS):
      for path in (self.folder / of).glob("*/"):
        run = own.get((of, path.name))
        different = ["this one has not"] if run is None else _differences(path, run)
        if different:
          raise ValueError(
            f"--workdir {self.folder} has no whole {folder_lib.STUDY}, and holds a run of another "
            f"study, {path.name}: {different[0]}; use another --workdir"
          )

  def _check_disk(self):
    """ValueError where the checkpoints of the runs to come find no room."""
    to_do = [run for run in self._mine() if not self._is_finished(run)]
    need = sum(self.size_of[run.name].disk_bytes for run in to_do)
    free = shutil.disk_usage(self.folder).free
    if need > free:
      raise ValueError(
        f"--workdir {self.folder} has {table.gb(free)} free, and the checkpoints of {len(to_do)} "
        f"runs take up to {table.gb(need)}; make room, or keep fewer of them "
        "(config.base.checkpoint.keep_latest, keep_one_in)"
      )

  def _is_finished(self, run: grid.Run) -> bool:
    found = folder_lib.status(self.folder, run.name, running.place(run))
    return found[0] == folder_lib.FINISHED

  def _timed_run(self, overrides: Mapping[str, str]) -> grid.Run:
    """The short run that times the steps of a setting."""
    free = [f"{name}_{unit}" for name in config_lib.DURATIONS for unit in config_lib.UNITS]
    kept = {field: text for field, text in overrides.items() if field not in free}
    zero = {f"{name}_steps": "0" for name in ("optim.warmup", "optim.cooldown", "optim.hold")}
    run = {
      **kept,
      **zero,
      "train.unmasked_steps": "0",
      "total_steps": str(TIMED_STEPS),
      "log.every_steps": str(TIMED_EVERY),
      "eval.tasks": "()",
    }
    key = hashlib.sha256(json.dumps([self._study.base, run], sort_keys=True).encode())
    return grid.Run(f"timed-{key.hexdigest()[:16]}", {}, 0, self._study.base, run)

  def _timed_before(self, overrides: Mapping[str, str]) -> float | None:
    """The median seconds of a step of a setting; None where it has not been timed."""
    of_run = self.folder / MEASURED / self._timed_run(overrides).name
    if not (of_run / records_lib.FILE).is_file():
      return None
    lines = [x["step_time"] for x in records_lib.read(of_run) if x.get("step_time")]
    return statistics.median(lines[WARM:]) if len(lines) * TIMED_EVERY >= TIMED_STEPS else None

  def _seconds_per_step(self, overrides: Mapping[str, str]) -> float:
    """As `_timed_before`, timed now where it has not been before; ValueError where that fails."""
    if (seconds := self._timed_before(overrides)) is None:
      process = self._starter.start(self._timed_run(overrides), self._sets[0], MEASURED)
      process.popen.wait()
      seconds = self._timed_before(overrides)
      if seconds is None:
        raise ValueError(f"the steps of {dict(overrides)} cannot be timed: {process.reason()}")
    return seconds


def _differences(folder: pathlib.Path, run: grid.Run) -> list[str]:
  """Between the configs of a run folder and of a run, but for what is None in the latter."""
  if not (folder / run_folder.CONFIG).is_file():
    return []
  here = run_lib.Run(run.config(), sizes_lib.NO_FOLDER).config
  set_here = {field for field, x in values_lib.flatten(here).items() if x is not None}
  different = config_lib.differences(run_folder.read_config(folder), here)
  return [line for line in different if line.split()[0] in set_here]


def _first_difference(there: dict[str, Any], here: grid.Run, equal: str) -> str:
  """Words such as ": optim.lr is 0.1 there and 0.2 here" of a run in study.json, if its config can
  be made again. Runs of equal seconds may differ in their length.
  """
  try:
    before = config_lib.load(there["config"], there["overrides"])
  except (KeyError, ValueError):
    return ""
  different = config_lib.differences(before, here.config())
  if equal == "seconds":
    different = [line for line in different if not line.startswith("total_")]
  return f": {different[0]}" if different else ""


def parse_only(text: str | None) -> tuple[int, int] | None:
  """(i, n) of "i/n", the parts numbered from 0 as by $SLURM_ARRAY_TASK_ID."""
  if text is None:
    return None
  part, slash, parts = text.partition("/")
  if not (slash and part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
    raise ValueError(f"--only {text!r} must be i/n with i from 0 to n − 1, such as 0/4")
  return int(part), int(parts)
