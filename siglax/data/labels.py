"""Labels of several sources in one batch: which are of one class, and how often two are equal."""

from __future__ import annotations

import collections
import logging

import numpy as np

from siglax.data.broken import MAX_REPLACEMENTS
from siglax.data.broken import NOT_BROKEN
from siglax.data.order import shares_of
from siglax.data.sources import classnames

# Labels of sources with different classes are this far apart.
LABEL_STRIDE = 2**24
NO_LABEL = -1
# Labels of a source that `same_label` reads at most.
LABEL_SAMPLE = 1024
logger = logging.getLogger("siglax")


def same_label(config, sources: list) -> float:
  """Share of pairs of training examples with equal labels: Σ_c f_c², f_c the shares of the classes
  in the mix.

  Of a source of more than LABEL_SAMPLE examples as many are drawn, the same each time; the estimate
  has no bias.
  """
  rng, shares = np.random.default_rng(0), shares_of(config, sources)
  mixed, chance = collections.Counter(), 0.0
  for source, first_label, share in zip(sources, first_labels(sources), shares):
    n, share = len(source), share / sum(shares)
    drawn = range(n) if n <= LABEL_SAMPLE else rng.integers(n, size=LABEL_SAMPLE).tolist()
    labels = [label for label in (_label(source, i) for i in drawn) if label is not None]
    counts, m = collections.Counter(labels), len(labels)
    for label, count in counts.items():
      mixed[first_label + label] += share * count / m
    if n > LABEL_SAMPLE and m > 1:  # what pairs of a drawn example with itself add
      chance += share**2 * (1 - sum((count / m) ** 2 for count in counts.values())) / (m - 1)
  if len(mixed) == 1:
    logger.warning(
      'config.loss.positives="label": all labels read are the same, so no pair is a negative and '
      "nothing is learned"
    )
  return max(sum(f**2 for f in mixed.values()) - chance, 0.0)


def _label(source, i) -> int | None:
  """None for an example that is broken or has none, which training replaces."""
  try:
    label = source[i].get("label")
    label = label if label is None else int(label)  # NumPy's small integers would overflow
  except NOT_BROKEN:
    raise
  except Exception:
    return None
  return None if label is None or label < 0 else label


def first_labels(sources) -> list[int]:
  """What is added to each source's labels, so that equal labels are equal classes."""
  groups = {}
  for k, source in enumerate(sources):
    groups.setdefault(classnames(source) or k, len(groups))
  return [groups[classnames(source) or k] * LABEL_STRIDE for k, source in enumerate(sources)]


def check_labels(sources):
  """One example tells whether a source has labels at all."""
  for k, source in enumerate(sources):
    for i in range(min(len(source), MAX_REPLACEMENTS)):
      try:
        example = source[i]
      except NOT_BROKEN:
        raise
      except Exception:  # broken; training deals with it
        continue
      if example.get("label") is None:
        raise ValueError(
          f'config.data.{k}.label: example {i} has no label, but config.loss.positives="label" '
          "needs one for each; "
          'name a column of labels, or use config.loss.positives="pair"'
        )
      break
