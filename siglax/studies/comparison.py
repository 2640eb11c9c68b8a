"""Settings of a study compared: means over seeds, and paired differences to a baseline. Only
finished runs count.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from typing import Any

import numpy as np

from siglax import evals
from siglax.config import editing
from siglax.config.parts import did_you_mean
from siglax.runs import each as each_lib
from siglax.studies import folder as folder_lib
from siglax.studies import found as found_lib
from siglax.studies import intervals

# Metrics that have a better known one beside them stand in the table of all metrics only.
MINOR = re.compile(r"acc5$|mean_per_class_recall$|@(?!1$)\d+$")
# Shares of examples, shown in percent.
SHARES = re.compile(r"acc|recall")
# Fields of the loss that change its value, but not what it is a value of.
SAME_LOSS = tuple(
  f"loss.{name}"
  for name in (
    "impl",
    "dtype",
    "tile",
    "scale_init",
    "bias_init",
    "scale_max",
    "lr_multiplier",
    "check_embeddings",
  )
)
# Of a metric and the mean of its each.npz, which has float32.
SAME = 1e-4


@dataclasses.dataclass(frozen=True)
class Setting:
  """Runs that differ by their seed alone. runs: {seed: row} of those that have finished."""

  values: dict[str, Any]
  runs: dict[int, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Statistic:
  """Of a metric over seeds; sd is NaN of one. values: of each seed."""

  interval: intervals.Interval
  sd: float
  values: tuple[float, ...]

  @property
  def mean(self) -> float:
    return self.interval.mean


@dataclasses.dataclass(frozen=True)
class Difference:
  """Of a metric to the baseline. seeds: that both have. examples: paired too, None where seeds are
  compared alone. better: by the metric's direction, None where the interval holds 0.
  """

  interval: intervals.Interval
  seeds: int
  examples: int | None
  better: bool | None

  @property
  def verdict(self) -> str:
    if np.isnan(self.interval.low):
      return "one seed"
    return {True: "better", False: "worse", None: "not resolved"}[self.better]


class Comparison:
  """What a report shows of the runs that were found.

  baseline: {field: value} of the settings that the others are compared with, each with the one that
  has the same values in all other fields; the value None also matches settings that do not set the
  field. Without a baseline nothing is compared.
  """

  def __init__(self, found: found_lib.Found, baseline: dict[str, Any] | None):
    self.found, self.baseline = found, baseline
    settings: dict[str, Setting] = {}
    for row in found.of(folder_lib.FINISHED):
      setting = settings.setdefault(_key(row["values"]), Setting(row["values"], {}))
      setting.runs[row["seed"]] = row
    order = list(found.fields)
    at = lambda s: [_place(found.fields[f], s.values.get(f)) for f in order]
    self.settings = sorted(settings.values(), key=at)
    self.metrics = list(
      dict.fromkeys(m for s in self.settings for row in s.runs.values() for m in row["metrics"])
    )
    self.headline = [m for m in self.metrics if not MINOR.search(m)] or self.metrics
    self._each = functools.cache(self._read_each)
    # {name of a run: why its each.npz could not be read}, of those that were looked at.
    self.unread: dict[str, str] = {}

  def name(self, setting: Setting) -> str:
    """Its values of the fields that differ."""
    values = {f: setting.values[f] for f in self.found.fields if f in setting.values}
    return ", ".join(f"{field}={shown(value)}" for field, value in values.items())

  def statistic(self, setting: Setting, metric: str) -> Statistic | None:
    """None where a finished run has no such value, or one that is not finite."""
    values = [row["metrics"].get(metric) for row in setting.runs.values()]
    return statistic(values)

  def cost(self, setting: Setting, name: str) -> Statistic | None:
    """Of examples, flops, seconds or peak_bytes."""
    return statistic([row["costs"].get(name) for row in setting.runs.values()])

  def learned(self, setting: Setting, name: str) -> Statistic | None:
    """Of the loss's scale or bias, as they were logged last; None where the loss learns none."""
    return statistic([row["learned"].get(name) for row in setting.runs.values()])

  def baseline_of(self, setting: Setting) -> Setting | None:
    """The setting that it is compared with; None for the baseline itself. Fields that no run of the
    baseline sets, such as those of one loss alone, are not compared.
    """
    if self.baseline is None:
      return None
    of_baseline = self.baseline
    chosen = [
      s for s in self.settings if all(s.values.get(f) == of_baseline[f] for f in of_baseline)
    ]
    fields = {field for s in chosen for field in s.values}
    wanted = _key({f: v for f, v in (setting.values | of_baseline).items() if f in fields})
    if wanted == _key(setting.values):
      return None
    return next((other for other in chosen if _key(other.values) == wanted), None)

  def difference(self, setting: Setting, metric: str) -> Difference | None:
    """To the setting's baseline, by the runs with the same seed and, where each.npz tells of them,
    the same examples; None where no seed has both, and for the training loss of another loss.
    """
    other = self.baseline_of(setting)
    if (
      other is None
      or is_loss(metric)
      and any(
        setting.values.get(f) != other.values.get(f) for f in self.found.fields if makes_a_loss(f)
      )
    ):
      return None
    pairs = [
      (row, other.runs[seed])
      for seed, row in sorted(setting.runs.items())
      if seed in other.runs and _known(row, metric) and _known(other.runs[seed], metric)
    ]
    if not pairs:
      return None
    single = [[self._each(row["name"]).get(metric) for row in pair] for pair in pairs]
    shapes = {np.shape(x) for pair in single for x in pair if x is not None}
    examples = None
    if all(x is not None for pair in single for x in pair) and len(shapes) == 1:
      interval = intervals.of_pairs([a.astype(np.float64) - b for a, b in single])
      examples = shapes.pop()[0]
    else:
      interval = intervals.of_values(
        [a["metrics"][metric] - b["metrics"][metric] for a, b in pairs]
      )
    better = None
    if interval.resolved:
      better = (interval.mean < 0) == evals.lower_is_better(metric)
    return Difference(interval, len(pairs), examples, better)

  def _read_each(self, name: str) -> dict[str, np.ndarray]:
    """{metric: values of single examples} of a run, of those whose mean is what the run reports:
    another evaluation may have taken the place of the last one. Nothing where the file is damaged.
    """
    row = next(row for row in self.found.rows if row["name"] == name)
    try:
      each = each_lib.read(self.found.folders[name])
    except ValueError as e:
      self.unread[name] = str(e)
      return {}
    return {
      metric: x
      for metric, x in ((f"eval/{k}", x) for k, x in each.items())
      if _known(row, metric)
      and len(x) > 1
      and abs(np.mean(x, dtype=np.float64) - row["metrics"][metric]) <= SAME
    }


def statistic(values) -> Statistic | None:
  """Of a value a seed; None where one is not there."""
  if not values or any(x is None for x in values):
    return None
  sd = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
  return Statistic(intervals.of_values(values), sd, tuple(values))


def baseline(found: found_lib.Found, given: str | None) -> dict[str, Any] | None:
  """Of --baseline "field=value,field=value", or the study's own. ValueError in one line for a field
  or a value that the runs do not have.
  """
  if given is None:
    return found.baseline
  chosen = {}
  for part in re.split(r",(?=[A-Za-z_][\w.]*=|$)", given):
    field, equals, text = part.partition("=")
    if not equals or field not in found.fields:
      fields = list(found.fields)
      raise ValueError(
        f"--baseline {part}: give FIELD=VALUE; the runs differ in {', '.join(fields) or 'no field'}"
        f"{did_you_mean(field, fields)}"
      )
    values = found.fields[field]
    if not all(field in row["values"] for row in found.rows):
      values = [*values, None]
    matching = [x for x in values if shown(x) == text or _key(x) == _key(editing.parse(text))]
    if not matching:
      raise ValueError(
        f"--baseline {part}: the values of {field} are {', '.join(map(shown, values))}"
      )
    chosen[field] = matching[0]
  return chosen


def is_loss(metric: str) -> bool:
  """Whether it is the training loss, on other examples: one of another definition says nothing."""
  name = metric.rpartition("/")[2]
  return any(kind.needs_loss and name in kind.metrics for kind in evals.KINDS.values())


def makes_a_loss(field: str | None) -> bool:
  """Whether training losses are of another definition where it differs."""
  of_loss = field is not None and field.startswith("loss.") and field not in SAME_LOSS
  return of_loss or field == "batch_size"


def in_percent(metric: str) -> bool:
  return bool(SHARES.search(metric.rpartition("/")[2]))


def shown(value) -> str:
  """A value of a field as a table shows it: a number with six digits."""
  return exact(float(f"{value:.6g}") if isinstance(value, float) else value)


def exact(value) -> str:
  """A value of a field, whole."""
  return value if isinstance(value, str) else json.dumps(value)


def _known(row: dict, metric: str) -> bool:
  return row["metrics"].get(metric) is not None


def _key(values) -> str:
  return json.dumps(values, sort_keys=True)


def _place(values: list, value) -> int:
  """Of a value among those of its field; one that a setting does not have comes last."""
  return values.index(value) if value in values else len(values)
