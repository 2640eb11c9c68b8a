"""Linear probe: a linear classifier of frozen image embeddings, learned from labelled pictures."""

from __future__ import annotations

from collections.abc import Callable
import logging

import numpy as np

from siglax.config.parts import Field
from siglax.evals import classification
from siglax.evals import kind
from siglax.evals import linear

logger = logging.getLogger("siglax")

# CLIP_benchmark's, of which it tries every 16th first.
DECAYS, FIRST_STEP = np.logspace(-6, 2, 97), 16
SOLVERS = {"logistic": linear.Logistic, "ridge": linear.Ridge}


def evaluate(
  data,
  embedder,
  config,
  loss,
  *,
  train,
  solver: str,
  weight_decay: float | None,
  held_out: float,
  shots: int | None,
  seed: int,
  examples: int | None,
  train_examples: int | None,
) -> dict:
  """lp_acc1, lp_acc5 and lp_mean_per_class_recall: see `classification.metrics`.

  The classifier W z + b minimises, over the pictures of train (siglax/evals/linear.py),
  logistic: mean cross-entropy + weight_decay/2 · ‖W‖²; ridge: mean ‖W z + b − y‖² + weight_decay ·
  ‖W‖², y 1 for the own class and −1 for others.
  weight_decay: None takes that of DECAYS with the best acc1 on the held-out share of each class of
  train, searched as CLIP_benchmark does: every 16th, then the best's neighbours 8, 4, 2 and 1 away.
  The classifier is then learned from all of train. shots: it is learned from so many pictures a
  class, drawn by seed from those that are not held out, and the decay is chosen on the latter.
  """
  del config, loss
  z, labels = classification.embed(train, train_examples, embedder, "train")
  test_z, test_labels = classification.embed(data, examples, embedder, "data")
  classification.refuse_absent(test_labels, labels)
  classes, y = np.unique(labels, return_inverse=True)
  rng, fit = np.random.default_rng(seed), SOLVERS[solver]
  learned, held = _split(y, held_out, weight_decay, shots, rng)
  classifier = fit(z[learned], y[learned], len(classes))
  if weight_decay is None:
    weight_decay = best_decay(lambda decay: linear.accuracy(classifier(decay), z[held], y[held]))
    logger.info("weight decay %.3g, the best on %s held-out examples", weight_decay, len(held))
    if shots is None:
      classifier = fit(z, y, len(classes))
  rank = linear.places(classifier(weight_decay), test_z, np.searchsorted(classes, test_labels))
  return classification.metrics(rank, test_labels, len(classes), "lp_")


def best_decay(accuracy: Callable[[float], float]) -> float:
  """The best of DECAYS, of which about 15 are tried; of equally good ones the smallest tried in
  its round.
  """
  found = {}

  def best(indices):
    for i in indices:
      if i not in found:
        found[i] = accuracy(float(DECAYS[i]))
    return max(indices, key=lambda i: found[i])

  peak, step = best(range(0, len(DECAYS), FIRST_STEP)), FIRST_STEP // 2
  while step:
    peak = best([max(peak - step, 0), peak, min(peak + step, len(DECAYS) - 1)])
    step //= 2
  return float(DECAYS[peak])


def _split(y, held_out, weight_decay, shots, rng) -> tuple[np.ndarray, np.ndarray]:
  """(examples that are learned from, examples that are held out), of each class its share; with a
  weight decay none are held out. ValueError where there are too few.
  """
  held_out = held_out if weight_decay is None else 0.0
  learned, held = [], []
  for label, members in enumerate(_by_class(y, rng)):
    count = round(held_out * len(members))
    if shots is not None and len(members) - count < shots:
      raise ValueError(
        f"shots={shots}: class {label} of train has {len(members)} examples, of which {count} are "
        "held out; give fewer shots"
      )
    held.append(members[:count])
    learned.append(members[count:][:shots])
  learned, held = (np.sort(np.concatenate(part)) for part in (learned, held))
  if held_out and not len(held):
    raise ValueError(
      f"held_out={held_out} leaves none of the {len(y)} examples of train to choose the weight "
      "decay on; give weight_decay, or more examples"
    )
  return learned, held


def _by_class(y: np.ndarray, rng) -> list[np.ndarray]:
  """The examples of each class, shuffled."""
  order = rng.permutation(len(y))
  order = order[np.argsort(y[order], kind="stable")]
  return np.split(order, np.cumsum(np.bincount(y))[:-1])


def check(
  data, config, *, train, examples, train_examples, held_out, weight_decay, shots, seed, **fields
):
  """ValueError for a picture without a label, a class of data that train lacks, and, where all
  labels of train can be read alone, too few examples of a class.
  """
  del config, fields
  labels = classification.check(data, examples, train, train_examples)
  if labels is not None:
    y = np.unique(labels, return_inverse=True)[1]
    _split(y, held_out, weight_decay, shots, np.random.default_rng(seed))


KIND = kind.Kind(
  "linear_probe",
  "a linear classifier of the frozen image embeddings, learned from labelled pictures",
  metrics=tuple(f"lp_{name}" for name in classification.NAMES),
  evaluate=evaluate,
  check=check,
  fields={
    "train": classification.TRAIN,
    "solver": Field(
      "logistic",
      "logistic: cross-entropy, by L-BFGS; ridge: squared errors, in closed form",
      choices=tuple(SOLVERS),
    ),
    "weight_decay": Field(
      None,
      "weight of ‖W‖²; None takes the best of 97 from 1e-6 to 100 on the held-out examples",
      kind=float,
      optional=True,
      above=0,
    ),
    "held_out": Field(
      0.1, "share of each class that the weight decay is chosen on", above=0, below=1
    ),
    "shots": Field(
      None, "learns from so many pictures of each class; None all", kind=int, optional=True, least=1
    ),
    "seed": Field(0, "of what is held out, and of the shots", least=0),
    "examples": kind.EXAMPLES,
    "train_examples": classification.TRAIN_EXAMPLES,
  },
  specs=("train",),
  needs_texts=False,
  clip_benchmark="linear_probe",
)
