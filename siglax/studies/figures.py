"""What the plots of a report show; plots.py draws it."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import Any
from typing import NamedTuple

import numpy as np

from siglax import evals
from siglax.runs import records as records_lib
from siglax.studies import comparison as comparison_lib
from siglax.studies import folder as folder_lib
from siglax.studies import intervals
from siglax.studies import tables

# Of a curve, of all curves of a figure, and panels of a figure; what is more is thinned out.
MAX_POINTS, ALL_POINTS, MAX_PANELS = 100, 5000, 9
# Metrics whose curves are drawn, and different sizes that a power law takes.
MAX_CURVES, MIN_SIZES = 4, 4
TRAINING = {"loss": "training loss", "scale": "scale exp(t')", "bias": "bias"}


@dataclasses.dataclass(frozen=True)
class Line:
  """Points over x with their intervals, where they have one; style: of its colour and marker.

  dots: single values, (x, y). dashed: a fit. marked: each point is a measurement.
  """

  label: str
  style: int
  x: Sequence[float]
  y: Sequence[float]
  low: Sequence[float] | None = None
  high: Sequence[float] | None = None
  dots: Sequence[tuple[float, float]] = ()
  dashed: bool = False
  marked: bool = True


@dataclasses.dataclass(frozen=True)
class Panel:
  title: str
  x: str
  lines: list[Line]
  log_x: bool = False
  log_y: bool = False
  # Names at x = 0, 1, …, where x is no number.
  names: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Figure:
  """name: of its files."""

  name: str
  title: str
  caption: str
  panels: list[Panel]


class Fit(NamedTuple):
  """A power law of a metric, or of 1 − it where more is better, over a field."""

  field: str
  line: str
  metric: str
  law: intervals.PowerLaw


class Figures:
  """The figures of a comparison."""

  def __init__(self, c: comparison_lib.Comparison):
    self._c = c
    self._x = self._main_field(c.settings)
    self._records = functools.cache(lambda name: records_lib.read(c.found.folders[name]))
    self._styles = {}
    for setting in c.settings:
      self._style(self._line(setting, self._x))
    self.fits, panels = self._fits()
    self.all = [*self._metrics(), *self._curves()]
    if panels:
      title = f"Power laws over {self._x}"
      caption = "Least squares of the logarithms over all runs, with the 95% interval of the fit."
      self.all.append(Figure(f"power-law-{self._x}", title, caption, panels))

  def _line(self, setting, x: str | None) -> str:
    """The values of all fields but the one on the x axis."""
    values = setting.values
    parts = [_short(f, values[f]) for f in self._c.found.fields if f != x and f in values]
    return ", ".join(parts) or "all"

  def _style(self, label: str) -> int:
    """Of a line, the same in all figures."""
    return self._styles.setdefault(label, len(self._styles))

  def _compared(self, x: str | None) -> list[str]:
    """The metrics of a figure: over the batch size training losses are of different definitions."""
    other = comparison_lib.makes_a_loss(x)
    return [m for m in self._c.headline if not (other and comparison_lib.is_loss(m))]

  def _metrics(self) -> list[Figure]:
    """Over the x field; then, of the settings that do not set it, over the numbers that they set,
    if there are any.
    """
    found, rest, x = [], self._c.settings, self._x
    caption = "Mean over seeds with its 95% interval; small points are single seeds."
    while True:
      settings = [s for s in rest if x is None or x in s.values]
      panels = [p for m in self._compared(x) if (p := self._metric(m, settings, x)).lines]
      if panels:
        title = f"Metrics over {x}" if x else "Metrics"
        found.append(Figure(f"metrics-by-{x or 'setting'}", title, caption, panels))
      rest = [s for s in rest if s not in settings]
      x = self._main_field(rest)
      if x is None:
        return found

  def _main_field(self, settings: Sequence) -> str | None:
    """The field of the x axis: the batch size, or else the numbers of which the settings have the
    most values.
    """
    numbers = {}
    for field, values in self._c.found.fields.items():
      there = [v for v in values if any(s.values.get(field) == v for s in settings)]
      if len(there) > 1 and all(type(v) in (int, float) and math.isfinite(v) for v in there):
        numbers[field] = len(there)
    most = max(numbers, key=lambda field: numbers[field], default=None)
    return "batch_size" if "batch_size" in numbers else most

  def _metric(self, metric: str, settings: Sequence, x_field: str | None) -> Panel:
    unit = 100 if comparison_lib.in_percent(metric) else 1
    labels = list(dict.fromkeys(self._line(s, x_field) for s in settings))
    lines = []
    for place, label in enumerate(labels):
      points = [
        (s.values[x_field] if x_field else place, found)
        for s in settings
        if self._line(s, x_field) == label and (found := self._c.statistic(s, metric)) is not None
      ]
      if points:
        bounds = [found.interval for _, found in points]
        lines.append(
          Line(
            label,
            self._style(label),
            [x for x, _ in points],
            [unit * i.mean for i in bounds],
            [unit * i.low for i in bounds],
            [unit * i.high for i in bounds],
            [(x, unit * v) for x, found in points for v in found.values],
          )
        )
    return Panel(
      tables.label(metric),
      x_field or "",
      lines,
      log_x=x_field is not None and _is_wide([s.values[x_field] for s in settings]),
      names=[] if x_field else labels,
    )

  def _curves(self) -> list[Figure]:
    c = self._c
    several = [m for m in c.headline if any(len(self._points(s, m)[0]) > 1 for s in c.settings)]
    shares = [m for m in several if comparison_lib.in_percent(m)]
    names = {m: tables.label(m) for m in (shares or several)[:MAX_CURVES]} | TRAINING
    caption = "Mean over seeds with its 95% interval."
    return [
      Figure(
        f"curves-{_file_name(m)}", f"{name[0].upper()}{name[1:]} over training", caption, panels
      )
      for m, name in names.items()
      if (panels := self._panels(m))
    ]

  def _panels(self, key: str) -> list[Panel]:
    """Curves over examples, a panel for each value of the x field, and one of the settings that do
    not set it.
    """
    values = _thinned(self._c.found.fields[self._x], MAX_PANELS) if self._x else []
    if not all(self._x in s.values for s in self._c.settings):
      values.append(None)
    panels = []
    for value in values:
      lines = []
      for setting in self._c.settings:
        of_panel = self._x is None or setting.values.get(self._x) == value
        # A loss that learns no scale, or no bias, has no curve of it.
        is_its_own = key not in folder_lib.LEARNED or self._c.learned(setting, key) is not None
        if of_panel and is_its_own:
          x, y = self._points(setting, key)
          if len(x) > 1:
            mean, low, high = np.array([intervals.of_values(column) for column in y.T]).T
            label = self._line(setting, self._x)
            band = (low, high) if len(y) > 1 else (None, None)
            lines.append(Line(label, self._style(label), x, mean, *band, marked=len(x) < 20))
      if lines:
        title = tables.label(key) if "/" in key else key
        if self._x:
          title = f"no {self._x}" if value is None else _short(self._x, value)
        panels.append(Panel(title, "examples", lines, log_y=key == "scale"))
    return panels

  def _points(self, setting, key: str) -> tuple[np.ndarray, np.ndarray]:
    """(examples [n], values [seeds, n]) where all seeds of a setting have a value."""
    of_runs = []
    for row in setting.runs.values():
      records = self._records(row["name"])
      of_runs.append(
        {r["examples"]: r[key] for r in records if r.get(key) is not None and "examples" in r}
      )
    common = sorted(set.intersection(*map(set, of_runs)))
    most = max(10, min(MAX_POINTS, ALL_POINTS // len(self._c.settings)))
    x = _thinned(common, most)
    unit = 100 if "/" in key and comparison_lib.in_percent(key) else 1
    return np.array(x), unit * np.array([[of_run[k] for k in x] for of_run in of_runs])

  def _fits(self) -> tuple[list[Fit], list[Panel]]:
    """Power laws over the x field, where a line has runs of enough sizes."""
    fits, panels = [], []
    if self._x is None:
      return fits, panels
    for metric in self._compared(self._x):
      lines = []
      for label, style in self._styles.items():
        x, y = self._errors(label, metric)
        if len(set(x)) < MIN_SIZES or min(x) <= 0 or min(y) <= 0:
          continue
        law = intervals.power_law(x, y)
        fits.append(Fit(self._x, label, metric, law))
        at = np.geomspace(min(x), max(x), 25)
        points = [(a, float(np.mean([b for k, b in zip(x, y) if k == a]))) for a in sorted(set(x))]
        lines.append(Line(label, style, at, *law.at(at), dots=points, dashed=True, marked=False))
      if lines:
        panels.append(Panel(error_label(metric), self._x, lines, log_x=True, log_y=True))
    return fits, panels

  def _errors(self, label: str, metric: str) -> tuple[list[float], list[float]]:
    """(x, what is to fall as a power of it) of each run of a line; nothing where more is better and
    the metric is no share.
    """
    lower = evals.lower_is_better(metric)
    if not lower and not comparison_lib.in_percent(metric):
      return [], []
    points = [
      (s.values[self._x], v if lower else 1 - v)
      for s in self._c.settings
      if self._line(s, self._x) == label and self._x in s.values
      for found in [self._c.statistic(s, metric)]
      if found is not None
      for v in found.values
    ]
    return [x for x, _ in points], [y for _, y in points]


def _is_wide(values: Sequence[float]) -> bool:
  """Whether an axis is better logarithmic: of a batch size from 64 to 256, but not of a share from
  0.1 to 0.5.
  """
  least = 4 if all(type(x) is int for x in values) else 8
  return min(values) > 0 and max(values) >= least * min(values)


def error_label(metric: str) -> str:
  if evals.lower_is_better(metric):
    return tables.label(metric).rstrip(" ↓")
  return "1 − " + tables.label(metric).removesuffix(" ↑ %")


def _file_name(metric: str) -> str:
  return metric.removeprefix("eval/").replace("/", "-").replace("@", "-at-")


def _short(field: str, value: Any) -> str:
  """A text as it is, and another value with the last word of its field."""
  text = comparison_lib.shown(value)
  return text if isinstance(value, str) else f"{field.rpartition('.')[2]} {text}"


def _thinned(values: Sequence, most: int) -> list:
  """At most so many of them, evenly, with the first and the last."""
  if len(values) <= most:
    return list(values)
  return [values[round(i)] for i in np.linspace(0, len(values) - 1, most)]
