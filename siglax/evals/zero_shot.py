"""Zero-shot classification: each image goes to the class whose text is nearest."""

from __future__ import annotations

import numpy as np

from siglax.config.parts import Field
from siglax.evals import kind
from siglax.evals import ranking

# Texts embedded at a time, so that many classes times many templates stay small in memory.
MAX_TEXTS = 2**14
TEMPLATES = ("a photo of a {}.",)


def evaluate(data, embedder, config, loss, *, classnames, templates, examples: int | None) -> dict:
  """acc1, acc5 and mean_per_class_recall, each in 0..1, as CLIP_benchmark defines them.

  acc1, acc5: share of images whose class is the nearest, or among the nearest five (1 below six
  classes).
  mean_per_class_recall: mean over the classes that occur of the share of their images that is
  right. chance/<metric>: what a guess among all classes gets. each/acc1, each/acc5: of each image.
  classnames: names in the order of the labels; templates: texts with {} for the name; None takes
  the data's, and for want of them TEMPLATES.
  examples: evaluates the first so many. Raises ValueError without names and for a label that has
  none.
  """
  del config, loss
  names = _names(data, classnames)
  templates = templates or getattr(data, "templates", None) or TEMPLATES
  zimg, rest = ranking.embed_images(data, ranking.first(data, examples), embedder)
  labels = np.array([_label(example, i, names) for i, example in enumerate(rest)], np.int32)
  rank = ranking.ranks(
    zimg,
    classifier(embedder.texts, names, templates),
    labels,
    np.arange(len(names), dtype=np.int32),
  )
  count, right = (np.bincount(labels, weights=w, minlength=len(names)) for w in (None, rank == 0))
  present = count > 0
  return {
    "acc1": float(np.mean(rank < 1)),
    "acc5": float(np.mean(rank < 5)),
    "mean_per_class_recall": float(np.mean(right[present] / count[present])),
    "each/acc1": rank < 1,
    "each/acc5": rank < 5,
    "chance/acc1": 1 / len(names),
    "chance/acc5": min(5 / len(names), 1.0),
    "chance/mean_per_class_recall": 1 / len(names),
  }


def check(data, config, *, classnames, examples: int | None, **fields):
  """ValueError without class names, or for one of the first labels that has none."""
  del config, fields
  names = _names(data, classnames)
  for i in ranking.first(data, examples)[: ranking.LOOKED_AT]:
    _label(data[i], i, names)


def _names(data, classnames):
  names = data.classnames if classnames is None else classnames
  if not names:
    raise ValueError("the data has no class names; give classnames, one for each label")
  return names


def _label(example, i: int, names) -> int:
  label = example.get("label")
  if label is None or not 0 <= label < len(names):
    raise ValueError(
      f"example {i} has label {label}, but the {len(names)} classnames need 0 to {len(names) - 1}"
    )
  return label


def classifier(embed_texts, classnames, templates) -> np.ndarray:
  """Unit rows [classes, d]: a class is the normalised mean over templates of normalised text
  embeddings. embed_texts: (list of texts) → unit rows [n, d].
  """
  rows, step = [], max(1, MAX_TEXTS // len(templates))
  for start in range(0, len(classnames), step):
    names = classnames[start : start + step]
    ztxt = embed_texts([template.replace("{}", name) for name in names for template in templates])
    mean = ztxt.reshape(len(names), len(templates), -1).mean(axis=1)
    # Texts that cancel out leave a zero row, not a NaN.
    rows.append(mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12))
  return np.concatenate(rows)


def _names_problem(value) -> str | None:
  good = isinstance(value, (tuple, list)) and value and all(isinstance(x, str) for x in value)
  return None if good else "must be a tuple of names, one for each label"


def _templates_problem(value) -> str | None:
  good = _names_problem(value) is None and all(text.count("{}") == 1 for text in value)
  example = '("a photo of a {}.",)'
  return None if good else f"must be a tuple of texts with one {{}} each, such as {example}"


KIND = kind.Kind(
  "zero_shot",
  "each image goes to the class whose text is nearest",
  metrics=("acc1", "acc5", "mean_per_class_recall"),
  evaluate=evaluate,
  check=check,
  fields={
    "classnames": Field(
      None,
      "names in the order of the labels; None takes the data's",
      kind=tuple,
      optional=True,
      check=_names_problem,
    ),
    "templates": Field(
      None,
      f"texts with {{}} for the name of a class; None takes the data's, or else {TEMPLATES!r}",
      kind=tuple,
      optional=True,
      check=_templates_problem,
    ),
    "examples": kind.EXAMPLES,
  },
  clip_benchmark="zeroshot_classification",
)
