"""A run's curves as one picture, drawn from its metrics.jsonl."""

from __future__ import annotations

import io
import math
import os
import pathlib
from typing import NamedTuple

from siglax.data import plot as plot_lib
from siglax.devices import disk
from siglax.runs import records as records_lib
from siglax.runs import summary

FILE = "curves.png"
# The headlines of the evaluations by panel, and how their curves are called; the other metrics are
# in metrics.jsonl.
HEADLINES = {
  "Zero-shot accuracy, %": {"acc1": ""},
  "Retrieval R@1, %": {
    "text_retrieval_recall@1": " image → text",
    "image_retrieval_recall@1": " text → image",
  },
}
TRAIN_COLOUR = "#000000"  # the training loss
# Of the labels, as a share of the panel's height.
LINE_HEIGHT = 0.065
# Of an axis beyond its data, as a share of their range; and how far off chance may lie to be shown
# too.
MARGIN, CHANCE_REACH = 0.05, 1.0


class Curve(NamedTuple):
  """chance: what guessing gets. best: the (step, value) to mark, of evaluations."""

  label: str
  colour: str
  steps: tuple[int, ...]
  values: tuple[float, ...]
  chance: float | None = None
  best: tuple[int, float] | None = None


def plot(run_folder: str | os.PathLike) -> pathlib.Path:
  """Draws curves.png into a run folder and returns its path: loss, evaluations, logits over steps.

  A ring marks the best value of an evaluation, a dashed line what chance gets, where that is near.
  Needs matplotlib. A panel without a value in metrics.jsonl is left out.
  Raises ValueError when there is no metrics.jsonl, or nothing to draw in it, and OSError where it
  cannot be written.
  """
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  folder = pathlib.Path(run_folder)
  panels = [(title, curves) for title, curves in _panels(records_lib.read(folder)) if curves]
  if not panels:
    raise ValueError(
      f"{folder / records_lib.FILE} holds no loss and no evaluation to draw; train for at least "
      "log.every_steps"
    )
  columns = 2 if len(panels) == 4 else len(panels)
  rows = len(panels) // columns
  figure = Figure(figsize=(5.2 * columns, 3.6 * rows), layout="constrained")
  FigureCanvasAgg(figure)
  for axes, (title, curves) in zip(
    figure.subplots(rows, columns, sharex=True, squeeze=False).flat, panels
  ):
    _draw(axes, title, curves)
  picture = io.BytesIO()
  figure.savefig(picture, dpi=150)
  disk.write_atomic(folder / FILE, picture.getvalue())
  return folder / FILE


def _panels(records) -> list[tuple[str, list[Curve]]]:
  """Titles and curves."""
  facts = {k: v for r in records for k, v in r.items() if records_lib.is_fact(k)}
  evaluations = summary.evaluations(records)
  losses = {k: k.split("/")[1] for k in evaluations if k.endswith("/loss")}
  panels = [
    (
      "Loss",
      _curves(records, {"loss": "training"}, [TRAIN_COLOUR])
      + _evaluated(evaluations, losses, facts),
    )
  ]
  for title, names in HEADLINES.items():
    labels = {
      k: k.split("/")[1] + names[k.split("/")[2]] for k in evaluations if k.split("/")[2] in names
    }
    panels.append((title, _evaluated(evaluations, labels, facts, 100)))
  return [
    *panels,
    (
      "Mean logit",
      _curves(records, {"logit_pos": "pairs", "logit_neg": "non-pairs"}, plot_lib.COLOURS),
    ),
  ]


def _curves(records, labels: dict[str, str], colours) -> list[Curve]:
  points = {k: [(r["step"], r[k]) for r in records if r.get(k) is not None] for k in labels}
  curves = []
  for k, colour in zip(labels, colours):
    if points[k]:
      steps, values = zip(*points[k])
      curves.append(Curve(labels[k], colour, steps, values))
  return curves


def _evaluated(evaluations, labels: dict[str, str], facts, unit: float = 1) -> list[Curve]:
  curves = []
  for i, (k, label) in enumerate(labels.items()):
    if best := summary.best(k, evaluations[k]):
      task, _, metric = k.rpartition("/")
      chance = facts.get(f"{task}/chance/{metric}")
      points = [(step, unit * value) for step, value in evaluations[k] if not math.isnan(value)]
      steps, values = zip(*points)
      curves.append(
        Curve(
          label,
          plot_lib.COLOURS[i % len(plot_lib.COLOURS)],
          steps,
          values,
          chance and unit * chance,
          (best[0][0], unit * best[0][1]),
        )
      )
  return curves


def _limits(curves: list[Curve]) -> tuple[float, float]:
  """Of an axis: what holds all values, and each chance level within reach of them, with a
  margin.
  """
  values = [value for curve in curves for value in curve.values]
  low, high = min(values), max(values)
  reach = CHANCE_REACH * (high - low)
  near = [
    curve.chance
    for curve in curves
    if curve.chance is not None and low - reach <= curve.chance <= high + reach
  ]
  low, high = min([low, *near]), max([high, *near])
  margin = MARGIN * ((high - low) or abs(high) or 1.0)
  return low - margin, high + margin


def _draw(axes, title, curves):
  for curve in curves:
    # Few points are measurements worth seeing one by one.
    marker = {"marker": "o", "markersize": 4} if len(curve.steps) < 20 else {}
    axes.plot(
      curve.steps, curve.values, color=curve.colour, linewidth=1.5, label=curve.label, **marker
    )
    if curve.chance is not None:
      axes.axhline(curve.chance, color=curve.colour, linewidth=1, linestyle="--", alpha=0.7)
    if curve.best is not None:
      axes.plot(
        *curve.best,
        "o",
        markersize=9,
        markerfacecolor="none",
        markeredgecolor=curve.colour,
        clip_on=False,
      )
  axes.set_title(title, loc="left", fontsize=11)
  low, high = _limits(curves)
  seen = any(curve.chance is not None and low <= curve.chance <= high for curve in curves)
  marks = ["○ best"] * any(curve.best for curve in curves) + ["– – chance"] * seen
  axes.set_title("   ".join(marks), loc="right", fontsize=9, color="#555555")
  axes.set_xlabel("step")
  axes.set_ylim(low, high)
  axes.margins(x=0.02)
  plot_lib.tidy(axes)
  _label_ends(axes, curves)


def _label_ends(axes, curves):
  """Names each curve at its right end, in its colour."""
  curves = sorted(curves, key=lambda curve: curve.values[-1])
  for curve, y in zip(curves, _apart([curve.values[-1] for curve in curves], *axes.get_ylim())):
    axes.annotate(
      curve.label,
      (1, y),
      xycoords=axes.get_yaxis_transform(),
      xytext=(4, 0),
      textcoords="offset points",
      color=curve.colour,
      fontsize=9,
      va="center",
      annotation_clip=False,
    )


def _apart(ys: list[float], low: float, high: float) -> list[float]:
  """Ascending heights moved as little as needed for lines of text not to touch, and kept
  in view.
  """
  gap, ys = (high - low) * LINE_HEIGHT, list(ys)
  for _ in range(200):
    for i in range(len(ys) - 1):
      push = max(0.0, gap - (ys[i + 1] - ys[i])) / 2
      ys[i], ys[i + 1] = ys[i] - push, ys[i + 1] + push
    ys = [min(max(y, low), high) for y in ys]
  return ys
