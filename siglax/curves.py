"""A run's curves as one picture, drawn from its metrics.jsonl."""

from __future__ import annotations

import os
import pathlib

from siglax import metrics

FILE = "curves.png"
# The headline of each evaluation, and how its curve is called; the other metrics are in metrics.jsonl.
HEADLINES = {
    "acc1": "accuracy",
    "text_retrieval_recall@1": "image → text R@1",
    "image_retrieval_recall@1": "text → image R@1",
}
# Okabe and Ito's colours, told apart with every kind of colour vision; black is the training loss.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
TRAIN_COLOUR = "#000000"
# Of the labels, as a share of the panel's height.
LINE_HEIGHT = 0.065


def plot(run_folder: str | os.PathLike) -> pathlib.Path:
  """Draws curves.png into a run folder and returns its path: loss, evaluations, logits over steps.

  Needs matplotlib. A panel without a value in metrics.jsonl is left out.
  Raises ValueError when there is no metrics.jsonl, or nothing to draw in it.
  """
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  folder = pathlib.Path(run_folder)
  records = metrics.read(folder)
  panels = [panel for panel in _panels(records) if panel[2]]
  if not panels:
    raise ValueError(f"{folder / metrics.FILE} holds no loss and no evaluation to draw; train for at least log.every_steps")
  figure = Figure(figsize=(5.2 * len(panels), 3.6), layout="constrained")
  FigureCanvasAgg(figure)
  for axes, (title, limits, curves) in zip(figure.subplots(1, len(panels), sharex=True, squeeze=False)[0], panels):
    _draw(axes, title, limits, curves)
  figure.savefig(folder / FILE, dpi=150)
  return folder / FILE


def _panels(records):
  """(title, y limits, [(label, colour, steps, values)]) of each panel."""
  validation = [k for k in _names(records) if k.startswith("eval/") and k.endswith("/loss")]
  loss = [("training", TRAIN_COLOUR, "loss")] + _coloured({k: k.split("/")[1] for k in validation})
  headlines = {k: f"{k.split('/')[1]} {HEADLINES[k.split('/')[2]]}" for k in _names(records) if k.split("/")[-1] in HEADLINES}
  logits = {"logit_pos": "pairs", "logit_neg": "non-pairs"}
  return [
      ("Loss", (None, None), _curves(records, loss)),
      ("Evaluation, %", (0, 100), _curves(records, _coloured(headlines), percent=True)),
      ("Mean logit", (None, None), _curves(records, _coloured(logits))),
  ]


def _names(records) -> list[str]:
  return list(dict.fromkeys(k for r in records for k in r))


def _coloured(labels: dict[str, str]) -> list[tuple[str, str, str]]:
  return [(label, COLOURS[i % len(COLOURS)], key) for i, (key, label) in enumerate(labels.items())]


def _curves(records, wanted, percent=False):
  curves = []
  for label, colour, key in wanted:
    points = [(r["step"], r[key] * (100 if percent else 1)) for r in records if r.get(key) is not None]
    if points:
      curves.append((label, colour, *zip(*points)))
  return curves


def _draw(axes, title, limits, curves):
  for label, colour, steps, values in curves:
    # Few points are measurements worth seeing one by one.
    marker = {"marker": "o", "markersize": 4} if len(steps) < 20 else {}
    axes.plot(steps, values, color=colour, linewidth=1.5, label=label, **marker)
  axes.set_title(title, loc="left", fontsize=11)
  axes.set_xlabel("step")
  axes.set_ylim(*limits)
  axes.margins(x=0.02)
  axes.grid(axis="y", color="#dddddd", linewidth=0.6)
  axes.set_axisbelow(True)
  for side in ("top", "right"):
    axes.spines[side].set_visible(False)
  _label_ends(axes, curves)


def _label_ends(axes, curves):
  """Names each curve at its right end, in its colour."""
  curves = sorted(curves, key=lambda curve: curve[3][-1])
  for (label, colour, *_), y in zip(curves, _apart([curve[3][-1] for curve in curves], *axes.get_ylim())):
    axes.annotate(
        label, (1, y), xycoords=axes.get_yaxis_transform(), xytext=(4, 0), textcoords="offset points",
        color=colour, fontsize=9, va="center", annotation_clip=False,
    )


def _apart(ys: list[float], low: float, high: float) -> list[float]:
  """Ascending heights moved as little as needed for lines of text not to touch, and kept in view."""
  gap, ys = (high - low) * LINE_HEIGHT, list(ys)
  for _ in range(200):
    for i in range(len(ys) - 1):
      push = max(0.0, gap - (ys[i + 1] - ys[i])) / 2
      ys[i], ys[i + 1] = ys[i] - push, ys[i + 1] + push
    ys = [min(max(y, low), high) for y in ys]
  return ys
