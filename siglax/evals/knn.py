"""k nearest neighbours: each picture goes to the class that most of its nearest labelled pictures
have.
"""

from __future__ import annotations

import numpy as np

from siglax.config.parts import Field
from siglax.evals import classification
from siglax.evals import kind
from siglax.evals import ranking

# A cosine distance up to this is that of equal pictures, but for float32's rounding.
SAME = 1e-6


def evaluate(
  data,
  embedder,
  config,
  loss,
  *,
  train,
  k: int,
  weights: str,
  examples: int | None,
  train_examples: int | None,
) -> dict:
  """knn_acc1, knn_acc5 and knn_mean_per_class_recall: see `classification.metrics`.

  A class gets the weights of those of a picture's k nearest neighbours in train that have it, by
  cosine: 1 each, or 1 / (1 − cosine); where neighbours are equal to the picture, these alone count.
  Of neighbours equally near those come first that are first in train, of classes with equal weights
  the lower label: what scikit-learn's KNeighborsClassifier(k, metric="cosine", weights=weights)
  predicts, which leaves the former open.
  """
  del config, loss
  train_z, train_labels = classification.embed(train, train_examples, embedder, "train")
  z, labels = classification.embed(data, examples, embedder, "data")
  _check_k(k, len(train_z))
  classification.refuse_absent(labels, train_labels)
  classes, place = np.unique(train_labels, return_inverse=True)
  near = ranking.nearest(z, train_z, k)
  own, rank = np.searchsorted(classes, labels), np.empty(len(z), np.int64)
  for start in range(
    0, len(z), step := max(1, kind.MAX_NUMBERS // (k * z.shape[1] + len(classes)))
  ):
    block = slice(start, start + step)
    weight = _weights(z[block], train_z[near[block]], weights)
    votes = np.zeros((len(weight), len(classes)))
    np.add.at(votes, (np.arange(len(weight))[:, None], place[near[block]]), weight)
    rank[block] = classification.places(votes, own[block])
  return classification.metrics(rank, labels, len(classes), "knn_")


def _weights(z: np.ndarray, neighbours: np.ndarray, weights: str) -> np.ndarray:
  """[n, k] of z [n, d] and neighbours [n, k, d]."""
  if weights == "uniform":
    return np.ones(neighbours.shape[:2])
  distance = 1 - np.einsum("nd,nkd->nk", z, neighbours, dtype=np.float64)
  same = distance <= SAME
  inverse = 1 / np.where(same, 1, distance)
  return np.where(same.any(axis=1, keepdims=True), same, inverse)


def check(data, config, *, train, k, examples, train_examples, **fields):
  """ValueError for a picture without a label, a class of data that train lacks, and k above the
  pictures of train.
  """
  del config, fields
  _check_k(k, len(ranking.first(train, train_examples)))
  classification.check(data, examples, train, train_examples)


def _check_k(k: int, count: int):
  if k > count:
    raise ValueError(f"k={k} is more than the {count} examples of train; give {count} or fewer")


KIND = kind.Kind(
  "knn",
  "each picture goes to the class of its nearest labelled pictures",
  metrics=tuple(f"knn_{name}" for name in classification.NAMES),
  evaluate=evaluate,
  check=check,
  fields={
    "train": classification.TRAIN,
    "k": Field(20, "neighbours that are asked", least=1),
    "weights": Field(
      "distance",
      "uniform: neighbours count alike; distance: by 1 / (1 − cosine)",
      choices=("uniform", "distance"),
    ),
    "examples": kind.EXAMPLES,
    "train_examples": classification.TRAIN_EXAMPLES,
  },
  specs=("train",),
  needs_texts=False,
)
