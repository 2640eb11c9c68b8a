"""Zero-shot classification: each image goes to the class whose text is nearest."""

from __future__ import annotations

import numpy as np

from siglax.config.parts import Field
from siglax.evals import classification
from siglax.evals import kind
from siglax.evals import names
from siglax.evals import ranking
from siglax.evals import showing

# Texts embedded at a time, so that many classes times many templates stay small in memory.
MAX_TEXTS = 2**14
SHOWN_AT_ONCE = 2**12  # pictures
DEFAULT = ("a photo of a {}.",)


def evaluate(data, embedder, config, loss, *, classnames, templates, examples: int | None) -> dict:
  """acc1, acc5 and mean_per_class_recall: see `classification.metrics`.

  classnames: names in the order of the labels, or a file of them; templates: texts with {} for the
  name, a file of them, or the name of a set; None takes the data's, and for want of them DEFAULT.
  examples: evaluates the first so many. Raises ValueError without names and for a label that has
  none.
  """
  del config, loss
  classes, templates = _names(data, classnames), _templates(data, templates)
  zimg, rest = ranking.embed_images(data, ranking.first(data, examples), embedder)
  labels = np.array([_label(example, i, classes) for i, example in enumerate(rest)], np.int32)
  rank = ranking.ranks(
    zimg,
    classifier(embedder.texts, classes, templates),
    labels,
    np.arange(len(classes), dtype=np.int32),
  )
  return classification.metrics(rank, labels, len(classes))


def show(data, embedder, config, name, *, classnames, templates, examples: int | None) -> str:
  """What each picture was taken for."""
  del config, name
  classes = _names(data, classnames)
  zimg, rest = ranking.embed_images(data, ranking.first(data, examples), embedder)
  zcls = classifier(embedder.texts, classes, _templates(data, templates))
  labels = np.array([_label(example, i, classes) for i, example in enumerate(rest)])
  # A few pictures at a time, as there may be many classes. Of equal scores the first class counts.
  blocks = (zimg[i : i + SHOWN_AT_ONCE] @ zcls.T for i in range(0, len(zimg), SHOWN_AT_ONCE))
  predicted = np.concatenate([np.nan_to_num(x, nan=-np.inf).argmax(axis=1) for x in blocks])
  return showing.classes(labels, predicted, classes)


def check(data, config, *, classnames, templates, examples: int | None):
  """ValueError without class names, for templates without classes to put into them, and for a label
  that has no name: of a few pictures, and of all where their labels can be read alone.
  """
  del config
  classes = _names(data, classnames)
  _templates(data, templates)
  first, labels = ranking.first(data, examples), data.labels()
  for i in first[: ranking.LOOKED_AT]:
    _label(data[i], i, classes)
  for i in first if labels is not None else ():
    _label({"label": labels[i]}, i, classes)


def _names(data, classnames) -> tuple[str, ...]:
  classes = data.classnames if classnames is None else names.classnames(classnames)
  if not classes:
    raise ValueError("the data has no class names; give classnames, one for each label")
  return classes


def _templates(data, templates) -> tuple[str, ...]:
  if templates is not None:
    return names.templates(templates)
  return getattr(data, "templates", None) or DEFAULT


def _label(example, i: int, classes) -> int:
  label = example.get("label")
  if label is None or not 0 <= label < len(classes):
    raise ValueError(
      f"example {i} has label {label}, but the {len(classes)} classnames need 0 to "
      f"{len(classes) - 1}"
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


KIND = kind.Kind(
  "zero_shot",
  "each image goes to the class whose text is nearest",
  metrics=classification.NAMES,
  evaluate=evaluate,
  check=check,
  show=show,
  fields={
    "classnames": Field(
      None,
      "names in the order of the labels, or a file of them: one a line, or JSON; None takes the "
      "data's",
      kind=str | tuple,
      optional=True,
      check=names.classnames_problem,
    ),
    "templates": Field(
      None,
      "a text with {} for the name of a class, several, a file with one a line, or imagenet80 for "
      f"CLIP's of ImageNet; None takes the data's, or else {DEFAULT!r}",
      kind=str | tuple,
      optional=True,
      check=names.templates_problem,
    ),
    "examples": kind.EXAMPLES,
  },
  clip_benchmark="zeroshot_classification",
)
