"""`siglax classify`: pictures named by labels that the model was never trained on."""

from __future__ import annotations

import collections
import os
import sys

import numpy as np

from siglax import tower as tower_lib
from siglax.devices.streams import shown


def classify(
  source, pictures: list, labels: list[str], templates: tuple[str, ...] = ("a photo of a {}.",)
) -> dict:
  """{"probability", "templates", "pictures": [{"path", "labels": {label: probability, best
  first}}]} of pictures.

  probability: "sigmoid", where the loss has a bias: each label alone matches or does not; else
  "softmax" over the labels.
  source: what siglax.load takes. Raises ValueError in one line for what cannot be read, or labels
  that are no list of names.
  """
  _check_labels(labels, templates)
  missing = [picture for picture in pictures if not os.path.isfile(picture)]
  if missing:
    raise ValueError(
      f"{shown(missing[0])}: "
      f"{'is a folder; name its pictures' if os.path.isdir(missing[0]) else 'no such file'}"
    )
  tower = tower_lib.load(source)
  logits = tower.zero_shot(pictures, labels, templates).astype(np.float64)
  kind = "sigmoid" if "bias" in tower.params else "softmax"
  log_total = (
    np.logaddexp(0, logits)
    if kind == "sigmoid"
    else np.logaddexp.reduce(logits, axis=1, keepdims=True)
  )
  probabilities = np.exp(logits - log_total)
  rows = [
    {
      "path": shown(path),
      "labels": {labels[i]: float(row[i]) for i in np.argsort(-row, kind="stable")},
    }
    for path, row in zip(pictures, probabilities)
  ]
  return {"probability": kind, "templates": list(templates), "pictures": rows}


def _check_labels(labels, templates):
  if "" in labels:
    raise ValueError(
      f"--labels {','.join(labels)} has an empty label; write names with commas between them: "
      "cat,dog"
    )
  if twice := [label for label, count in collections.Counter(labels).items() if count > 1]:
    raise ValueError(f"--labels names {twice[0]} twice")
  for template in templates:
    if template.count("{}") != 1 or template.count("{") != 1 or template.count("}") != 1:
      raise ValueError(f"--template {template!r} must have one {{}}, where the label goes")


def show(report: dict):
  """Prints what `classify` found: a table with the labels of each picture, best first."""
  from rich import box
  from rich import console
  from rich import table
  from rich import text

  kind = {"sigmoid": "sigmoid, each label alone", "softmax": "softmax over these labels"}[
    report["probability"]
  ]
  grid = table.Table(box=box.SIMPLE, header_style="bold")
  grid.add_column("picture", overflow="fold")
  grid.add_column("label", overflow="fold")
  grid.add_column(f"probability ({kind})", justify="right")
  for picture in report["pictures"]:
    for i, (label, probability) in enumerate(picture["labels"].items()):
      # As Text, because a path with brackets would be markup.
      style = "bold" if i == 0 else ""
      grid.add_row(
        text.Text("" if i else picture["path"]), text.Text(label, style), f"{probability:.3g}"
      )
    grid.add_section()
  console.Console(width=None if sys.stdout.isatty() else 1000).print(grid)
