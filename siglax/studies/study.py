"""What a study declares: which fields take which values, and what is equal in all runs."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import itertools
import math
from typing import Any

from siglax.config import editing
from siglax.config import fields
from siglax.config.parts import did_you_mean

EQUAL = ("examples", "flops", "seconds")
# What a command line gives of a study as a whole: --config.seeds="(0,1)".
GIVEN = ("base", "seeds", "amount", "baseline")
EXAMPLES = {
  "set": "{'log.tensorboard': False}",
  "grid": "{'batch_size': (64, 256)}",
  "paired": "{'batch_size': (64, 256), 'optim.lr': (1e-3, 4e-3)}",
  "baseline": "{'loss.name': 'sigmoid'}",
}
# Before the fields of the run whose parameters a setting starts from, and the share of its length.
FIRST = "first."
SHARE = f"{FIRST}share"


@dataclasses.dataclass(frozen=True)
class Branches:
  """Runs of several lengths that share their beginning: one run of constant rate (or rsqrt), the
  trunk, from whose checkpoints each of them starts with full state, to cool down to 0.

  totals: examples of each run, with its part of the trunk. cooldown: the share of a run's examples
  in which its learning rate falls.
  """

  totals: Sequence[int]
  cooldown: float = 0.2

  def __post_init__(self):
    totals = tuple(self.totals) if isinstance(self.totals, Sequence) else ()
    if not totals or len(set(totals)) < len(totals) or not all(_is_count(x) for x in totals):
      raise ValueError(f"branches.totals={self.totals!r} must be different numbers of examples")
    if not 0 < self.cooldown < 1:
      raise ValueError(f"branches.cooldown={self.cooldown!r} must lie in (0, 1), a share of a run")


@dataclasses.dataclass(frozen=True)
class Study:
  """Runs of a base config that differ in the values of a few fields, each with several seeds.

  base: the config file, with its arguments: "configs/quickstart.py:steps=500".
  set: {field: value} of every run, on top of the base.
  grid: {field: values}; every combination is a setting. paired: {field: values}, lists of equal
  length, of which the first go together, then the second, and so on. settings: a list of
  {field: value}. Where several of the three are given, each of one meets each of the others.
  seeds: of every setting.
  equal: what all runs have the same of: "examples" seen, model "flops", or "seconds" of training
  steps on this machine, measured by a short run of each setting. amount: how much of it; None takes
  the base's own length (of seconds, it must be given). A setting that sets total_* keeps its own.
  baseline: {field: value} of the runs that the others are compared with; the value None also
  matches runs that do not set the field.
  branches: makes each setting at several lengths; see `Branches`.

  A setting may have a first stage: "first.image.size": 32 and "first.share": 0.75 train with that
  field for three quarters of the length, and then the setting itself from the parameters of that.
  """

  base: str
  set: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  grid: Mapping[str, Sequence] = dataclasses.field(default_factory=dict)
  paired: Mapping[str, Sequence] = dataclasses.field(default_factory=dict)
  settings: Sequence[Mapping[str, Any]] = ()
  seeds: Sequence[int] = (0, 1, 2)
  equal: str = "examples"
  amount: float | None = None
  baseline: Mapping[str, Any] | None = None
  branches: Branches | None = None

  def __post_init__(self):
    if not isinstance(self.base, str):
      raise ValueError(f"base={self.base!r} must be a text, the path of a config file")
    for name in ("set", "grid", "paired", "baseline"):
      given = getattr(self, name) or {}
      if not isinstance(given, Mapping) or not all(isinstance(field, str) for field in given):
        raise ValueError(
          f"{name}={given!r} must be a dict, of the names of fields, such as {EXAMPLES[name]}"
        )
    self._check_lists()
    self._check_seeds()
    if self.equal not in EQUAL:
      raise ValueError(
        f"equal={self.equal!r} is unknown; known are {', '.join(EQUAL)}"
        f"{did_you_mean(self.equal, EQUAL)}"
      )
    if self.amount is not None and not (_is_number(self.amount) and 0 < self.amount < math.inf):
      raise ValueError(f"amount={self.amount!r} must be a positive number of {self.equal}")
    if self.equal == "seconds" and self.amount is None:
      raise ValueError('equal="seconds" needs amount, the seconds of a run')
    if self.branches and (self.equal != "examples" or self.amount is not None):
      raise ValueError(
        f"branches.totals say how many examples the runs see; leave equal={self.equal!r} and "
        f"amount={self.amount!r} out"
      )
    self._check_baseline()

  def _check_lists(self):
    for name in ("grid", "paired"):
      for field, values in getattr(self, name).items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
          raise ValueError(f"{name}[{field!r}]={values!r} must be a list of values")
    lengths = {field: len(values) for field, values in self.paired.items()}
    if len(set(lengths.values())) > 1:
      told = ", ".join(f"{field} has {n}" for field, n in lengths.items())
      raise ValueError(f"paired: its lists must be of equal length, and {told}")
    if not all(isinstance(x, Mapping) and x for x in self.settings):
      raise ValueError(f"settings={self.settings!r} must be a list of dicts {{field: value}}")
    named = [*self.grid, *self.paired, *dict.fromkeys(f for x in self.settings for f in x)]
    for field in named:
      if named.count(field) > 1:
        raise ValueError(f"{field} stands in two of grid, paired and settings; leave it in one")
      if field in self.set:
        raise ValueError(f"{field} stands in set, and has values of its own; leave it in one")
    if "seed" in named or "seed" in self.set:
      raise ValueError("seed is no field of a setting; give seeds")
    for setting in self.combinations:
      self._check_first(setting)

  def _check_first(self, setting: Mapping[str, Any]):
    """A setting with a first stage says how long it is."""
    if not any(field.startswith(FIRST) for field in setting):
      return
    share = setting.get(SHARE)
    if share is None or not (_is_number(share) and 0 < share < 1):
      raise ValueError(f"{SHARE}={share!r} must lie in (0, 1), the share of the first stage")
    if self.branches:
      raise ValueError(f"{SHARE}={share!r}: a study with branches has no first stages")

  def _check_seeds(self):
    seeds = tuple(self.seeds) if isinstance(self.seeds, Sequence) else ()
    if not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
      raise ValueError(
        f"seeds={self.seeds!r} must be a list of whole numbers from 0, such as (0, 1, 2)"
      )
    for seed in seeds:
      if seeds.count(seed) > 1:
        raise ValueError(f"seeds={seeds!r}: {seed} is there twice; each is a run of its own")

  def _check_baseline(self):
    known = self.fields
    for field, value in (self.baseline or {}).items():
      if field not in known:
        # A field of the config may be right, and that of the grid misspelt.
        meant = "" if field in fields.all_fields() else did_you_mean(field, known)
        raise ValueError(
          f"baseline: {field} is none of the study's fields {', '.join(known)}{meant}"
        )
      absent = any(field not in setting for setting in self.combinations)
      values = [*known[field], *([None] if absent else [])]
      if value not in values:
        raise ValueError(
          f"baseline: {field}={value!r} is none of its values {values!r}; on the command line "
          f'--config.baseline="{{{field!r}: {values[0]!r}}}" names another one, and None compares '
          "with none"
        )

  @property
  def combinations(self) -> list[dict[str, Any]]:
    """The settings: {field: value} of each."""
    parts = [[dict(x) for x in self.settings] or [{}]]
    pairs = [dict(zip(self.paired, values)) for values in zip(*self.paired.values())]
    parts.append(pairs or [{}])
    parts += [[{field: value} for value in values] for field, values in self.grid.items()]
    merged = [
      dict(x for part in chosen for x in part.items()) for chosen in itertools.product(*parts)
    ]
    if self.branches:
      return [x | {"total_examples": n} for x in merged for n in self.branches.totals]
    return merged

  @property
  def fields(self) -> dict[str, list]:
    """{field: its different values, in their order}."""
    found: dict[str, list] = {}
    for setting in self.combinations:
      for field, value in setting.items():
        if value not in found.setdefault(field, []):
          found[field].append(value)
    return found


def load(path: str, overrides: Mapping[str, str]) -> Study:
  """The study of `get_study(**arguments)` in a Python file.

  overrides: what the command line gives as --config.NAME=VALUE: "base.optim.lr" changes the base,
  "grid.batch_size" the values of a field of the grid, and one of GIVEN what the study declares.
  ValueError in one line.
  """
  study = editing.made_by(path, "get_study", Study)
  changes: dict[str, Any] = {"set": dict(study.set), "grid": dict(study.grid)}
  for name, text in overrides.items():
    if name.startswith("base."):
      field = name.removeprefix("base.")
      if field in study.fields:
        raise ValueError(
          f"--config.{name}: {field} is one of the study's fields {', '.join(study.fields)}"
        )
      changes["set"][field] = Text(text)
    elif name.startswith("grid."):
      field = name.removeprefix("grid.")
      if field not in study.grid:
        raise ValueError(
          f"--config.{name}: {field} is no field of the study's grid, which has "
          f"{', '.join(study.grid) or 'none'}{did_you_mean(field, study.grid)}"
        )
      changes["grid"][field] = editing.parse(text)
    elif name in GIVEN:
      changes[name] = editing.parse(text)
    else:
      raise ValueError(
        f"--config.{name}: a study has base.FIELD, grid.FIELD, {', '.join(GIVEN)} to set"
        f"{did_you_mean(name, GIVEN)}"
      )
  return dataclasses.replace(study, **changes)


class Text(str):
  """A value as it was given on the command line: `editing.override` finds its type."""


def _is_number(x) -> bool:
  return isinstance(x, (int, float)) and not isinstance(x, bool)


def _is_count(x) -> bool:
  return type(x) is int and x > 0
