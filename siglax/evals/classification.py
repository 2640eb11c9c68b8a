"""What the kinds of evaluation share that put pictures into classes: labels, and the metrics of the
place that each picture gives its own class.
"""

from __future__ import annotations

import numpy as np

from siglax.config.parts import Field
from siglax.evals import kind
from siglax.evals import ranking

NAMES = ("acc1", "acc5", "mean_per_class_recall")
TRAIN = Field(None, "a data spec: the pictures with labels that it learns from", kind=dict)
TRAIN_EXAMPLES = Field(
  None, "learns from the first so many of them; None all", kind=int, optional=True, least=1
)


def metrics(rank: np.ndarray, labels: np.ndarray, classes: int, prefix: str = "") -> dict:
  """NAMES, each with the prefix, in 0..1, as CLIP_benchmark defines them.

  rank [n]: the place of a picture's own class, from 0; labels [n]; classes: how many there are to
  choose from. acc1, acc5: share of pictures whose class is the first, or among the first five (1
  below six classes). mean_per_class_recall: mean over the classes that occur of the share of their
  pictures that is right. Of the first two also each/; of all chance/, what a guess among all gets.
  """
  _, place, count = np.unique(labels, return_inverse=True, return_counts=True)
  right = np.bincount(place, weights=rank < 1)
  chance = dict(zip(NAMES, (1 / classes, min(5 / classes, 1.0), 1 / classes)))
  return {
    **kind.means({f"{prefix}acc1": rank < 1, f"{prefix}acc5": rank < 5}),
    f"{prefix}mean_per_class_recall": float(np.mean(right / count)),
    **{f"chance/{prefix}{name}": value for name, value in chance.items()},
  }


def places(scores: np.ndarray, own: np.ndarray) -> np.ndarray:
  """The place of the own class, from 0, of pictures with scores [n, classes]; of equal scores the
  lower class comes first.
  """
  mine = np.take_along_axis(scores, own[:, None], axis=1)
  equal = (scores == mine) & (np.arange(scores.shape[1]) < own[:, None])
  return np.sum((scores > mine) | equal, axis=1)


def embed(data, examples: int | None, embedder, what: str) -> tuple[np.ndarray, np.ndarray]:
  """(unit rows [n, d], labels int64 [n]) of the first pictures. what: the field of the task that
  names the data. ValueError for a picture without a label. Global view.
  """
  z, rest = ranking.embed_images(data, ranking.first(data, examples), embedder)
  return z, np.array([_label(example, i, what) for i, example in enumerate(rest)], np.int64)


def check(data, examples, train, train_examples) -> list[int] | None:
  """ValueError for a picture without a label, and for a class of data that train lacks: of all
  pictures where their labels can be read alone, else of a few. The labels of train, where all were
  read.
  """
  found = {
    what: _labels(of, ranking.first(of, count), what)
    for what, of, count in (("data", data, examples), ("train", train, train_examples))
  }
  if None not in found.values():
    refuse_absent(found["data"], found["train"])
  return found["train"]


def refuse_absent(labels, train_labels):
  """ValueError for a class that has no picture to learn from."""
  if absent := sorted(set(labels) - set(train_labels)):
    raise ValueError(
      f"class {absent[0]} of data has no example in train, which has "
      f"{len(set(train_labels))} classes; give train that has all {len(set(labels))} classes of "
      "data"
    )


def _labels(data, indices: range, what: str) -> list[int] | None:
  """Those of all these pictures; None where only a few were looked at."""
  if (labels := data.labels()) is not None:
    return [_label({"label": labels[i]}, i, what) for i in indices]
  for i in indices[: ranking.LOOKED_AT]:
    _label(data[i], i, what)
  return None


def _label(example, i: int, what: str) -> int:
  label = example.get("label")
  if label is None or label < 0:
    raise ValueError(f"example {i} of {what} has no label; name a column of labels in {what}.label")
  return int(label)
