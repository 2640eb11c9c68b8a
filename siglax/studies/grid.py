"""The runs of a study: their names, and the command line that makes each."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import hashlib
import json
import math
import re
from typing import Any

from ml_collections import ConfigDict

from siglax import config as config_lib
from siglax.studies.study import FIRST
from siglax.studies.study import SHARE
from siglax.studies.study import Study
from siglax.studies.study import Text
from siglax.training import schedules

# A folder's name may have 255 bytes, and files beside it add their ending.
LONGEST_NAME = 200
# What a value of a name is cut to.
LONGEST_VALUE = 60
TOTALS = tuple(f"total_{unit}" for unit in config_lib.UNITS)


@dataclasses.dataclass(frozen=True)
class Run:
  """One run of a study: `siglax train --config BASE --workdir NAME`, with `overrides`, {field:
  text}.

  values: of the study's fields. trunk: the run that this one starts from: of a branch, from its
  checkpoint of branch_step with full state, else from its parameters. is_trunk: others start from
  it.
  """

  name: str
  values: dict[str, Any]
  seed: int
  base: str
  overrides: dict[str, str]
  trunk: str | None = None
  branch_step: int | None = None
  is_trunk: bool = False

  def config(self) -> ConfigDict:
    """That of the run."""
    return config_lib.load(self.base, self.overrides)

  def record(self) -> dict[str, Any]:
    """As study.json holds it."""
    return {
      "name": self.name,
      "values": json_value(self.values),
      "seed": self.seed,
      "config": self.base,
      "overrides": self.overrides,
      **({} if self.trunk is None else {"trunk": self.trunk, "branch_step": self.branch_step}),
    }


def runs_of(
  study: Study, lengths: Callable[[Study, Mapping[str, str], float], dict[str, str]]
) -> list[Run]:
  """All runs of a study, the first seed of each setting before the second; a trunk stands before
  its branches, a first stage before what follows it.

  lengths: (study, {field: text} of a setting, share) → the overrides that make it of that share of
  the length that the study says. ValueError in one line for a field that is unknown, a value that
  does not fit it, and runs that collide.
  """
  found: dict[str, Run] = {}
  check_texts(config_lib.load(study.base, texts(study.set)), study.set)
  settings = [_Setting(study, values, lengths) for values in study.combinations]
  for seed in study.seeds:
    for setting in settings:
      for run in setting.runs(seed):
        if (other := found.get(run.name)) is None or other.is_trunk and run == other:
          found[run.name] = run
        else:
          raise ValueError(
            f"two runs collide in the name {run.name}: of {shown(other.values)} and of "
            f"{shown(run.values)}; change a value"
          )
  runs = list(found.values())
  _check_different(runs)
  return runs


class _Setting:
  """The runs of one setting, which differ in their seed. values: {field: value}."""

  def __init__(self, study: Study, values: Mapping[str, Any], lengths):
    self._study, self._values = study, dict(values)
    own = {k: v for k, v in values.items() if not k.startswith(FIRST)}
    share = values.get(SHARE, 0.0)
    self._overrides = self._lengthened(own, lengths, 1 - share)
    self._first = None
    if share:
      first = {k.removeprefix(FIRST): v for k, v in values.items() if k.startswith(FIRST)}
      del first["share"]
      self._first = self._lengthened(own | first, lengths, share)

  def _lengthened(self, values: Mapping[str, Any], lengths, share: float) -> dict[str, str]:
    """The overrides of a run with these values, for a share of the length of the study's runs."""
    overrides = texts(self._study.set) | texts(values)
    check_texts(config_lib.load(self._study.base, overrides), values)
    return overrides | lengths(self._study, overrides, share)

  def runs(self, seed: int) -> list[Run]:
    base, name = self._study.base, name_of(self._values, seed)
    overrides = {**self._overrides, "seed": str(seed)}
    if self._study.branches is not None:
      return self._with_trunk(seed, overrides)
    if self._first is None:
      return [Run(name, self._values, seed, base, overrides)]
    of_first = {**self._first, "seed": str(seed)}
    first = Run(f"first,{name}", self._values, seed, base, of_first, is_trunk=True)
    return [first, Run(name, self._values, seed, base, overrides, trunk=first.name)]

  def _with_trunk(self, seed: int, overrides: dict[str, str]) -> list[Run]:
    """The trunk, which is the same for all lengths of a setting, and the branch of this length."""
    branches, base = self._study.branches, self._study.base
    config = config_lib.load(base, overrides)
    size = config.batch_size
    values = {k: v for k, v in self._values.items() if k != "total_examples"}
    overrides = {k: v for k, v in overrides.items() if k not in TOTALS}
    starts = {total: branch_step(total, branches.cooldown, size) for total in branches.totals}
    _check_schedule(config.optim.schedule)
    every = math.gcd(*(start for start, _ in starts.values()))
    trunk = Run(
      f"trunk,{name_of(values, seed)}",
      values,
      seed,
      base,
      {
        **overrides,
        "total_steps": str(max(start for start, _ in starts.values())),
        "optim.cooldown_steps": "0",
        # The checkpoints that branches start from, and one in their place after a stop.
        "checkpoint.every_steps": str(every),
        "checkpoint.keep_every_steps": str(every),
      },
      is_trunk=True,
    )
    start, steps = starts[self._values["total_examples"]]
    branch = Run(
      name_of(self._values, seed),
      self._values,
      seed,
      base,
      {**overrides, "total_steps": str(steps), "optim.cooldown_steps": str(steps - start)},
      trunk=trunk.name,
      branch_step=start,
    )
    return [trunk, branch]


def _check_schedule(name: str):
  """ValueError for a schedule that cannot be a trunk's."""
  if schedules.SCHEDULES.find(name, "config.optim.schedule").name not in schedules.flat():
    raise ValueError(
      "branches cool down from a rate that does not end at 0, and that of config.optim.schedule="
      f"{name!r} does; put {{'optim.schedule': 'constant'}} into set, or give --config.base.optim."
      f"schedule=constant; the schedules that do not are {', '.join(schedules.flat())}"
    )


def branch_step(total: int, cooldown: float, batch_size: int) -> tuple[int, int]:
  """(step at which a branch of so many examples starts, its steps)."""
  steps = round(total / batch_size)
  start = steps - max(1, round(cooldown * steps))
  if start < 1:
    raise ValueError(
      f"branches.totals: {total} examples are {steps} steps of batch_size={batch_size}, too few "
      "for a trunk and a cooldown; give more"
    )
  return start, steps


def texts(values: Mapping[str, Any]) -> dict[str, str]:
  """{field: text} as on a command line."""
  return {field: str(x) if isinstance(x, str) else repr(x) for field, x in values.items()}


def check_texts(config: ConfigDict, values: Mapping[str, Any]):
  """ValueError for a value that its text on a command line, of which a config was made, does not
  give back.
  """
  for field, value in values.items():
    got = config_lib.get(config, field)
    if not isinstance(value, Text) and json_value(got) != json_value(value):
      raise ValueError(
        f"config.{field}={config_lib.shown(value)} would be {config_lib.shown(got)} as the text of "
        "a command line; a value is a number, a text, True, False, None, or a tuple or dict of them"
      )


def name_of(values: Mapping[str, Any], seed: int) -> str:
  """Such as "loss.name=sigmoid,batch_size=64,seed=0", of characters that any path can hold."""
  words = [f"{field}={_in_name(value)}" for field, value in values.items()]
  name = re.sub(r"[^\w.=,+-]", "_", ",".join([*words, f"seed={seed}"]), flags=re.ASCII)
  return name if len(name) <= LONGEST_NAME else _cut(name, name, LONGEST_NAME)


def _in_name(value) -> str:
  text = re.sub(r"\s", "", value if isinstance(value, str) else repr(value))
  return text if len(text) <= LONGEST_VALUE else _cut(text, text, LONGEST_VALUE)


def _cut(name: str, whole: str, length: int) -> str:
  """The beginning of a name that is too long, with a digest of all of it."""
  return f"{name[: length - 9]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def _check_different(runs: list[Run]):
  """ValueError where two runs have the same config."""
  seen: dict[str, Run] = {}
  for run in runs:
    if run.is_trunk:
      continue
    config = run.config()
    if run.trunk is not None:
      config.model.init_from = f"{run.trunk}@{run.branch_step}"
    # Of a duration two units may say the same.
    key = json.dumps(json_value(config.copy_and_resolve_references().to_dict()), sort_keys=True)
    if (other := seen.setdefault(key, run)) is not run:
      raise ValueError(
        f"the runs {other.name} and {run.name} have the same config; leave one of them out"
      )


def json_value(value: Any) -> Any:
  """As JSON gives it back: tuples are lists."""
  if isinstance(value, (Mapping, ConfigDict)):
    return {key: json_value(x) for key, x in value.items()}
  return [json_value(x) for x in value] if isinstance(value, (tuple, list)) else value


def shown(values: Mapping[str, Any]) -> str:
  """{field: value} in words."""
  return ", ".join(f"{field}={config_lib.shown(x)}" for field, x in values.items()) or "nothing"
