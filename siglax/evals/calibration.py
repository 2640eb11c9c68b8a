"""Calibration of the sigmoid's probabilities that a picture and a text match."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from siglax import losses
from siglax.config.parts import Field
from siglax.evals import kind
from siglax.evals import ranking

# As in Guo et al., arXiv 1706.04599.
BINS = 15


def evaluate(data, embedder, config, loss, *, block: int | None, examples: int | None) -> dict:
  """How far p = σ(scale·zimg·ztxt + bias) is from the share of pairs that match, y.

  The pairs are those of a training batch: each picture with the first captions of all pictures of
  its block, of which its own alone matches. block: examples in one, config.batch_size when None;
  the probabilities mean something for blocks of that size alone, since of n texts one matches.
  brier: mean of (p − y)². nll: mean of −log of the probability of y. ece: mean of |mean p − mean y|
  over BINS bins of p of equal width, by their pairs. Each picture counts alike, its pairs share
  that. batch/<metric>: the examples in the largest block.
  """
  del loss
  _check_loss(config)
  zimg, rest = ranking.embed_captioned_images(data, ranking.first(data, examples), embedder)
  ztxt = embedder.texts([example["captions"][0] for example in rest])
  size, own = min(block or config.batch_size, len(zimg)), np.arange(len(zimg), dtype=np.int32)
  brier, nll, bins = np.empty(len(zimg)), np.empty(len(zimg)), np.zeros((2, BINS))
  for first in range(0, len(zimg), size):
    part = slice(first, first + size)
    count = len(zimg[part])
    queries = zimg[part], ztxt[part], own[part], own[part]
    scalars = embedder.scale, embedder.bias
    for start, state in ranking.reduced(_pairs, _zeros, *queries, *scalars):
      of_each = [x.astype(np.float64) / count for x in state]
      here = slice(first + start, first + start + len(of_each[0]))
      brier[here], nll[here] = of_each[:2]
      bins += [x.sum(axis=0) for x in of_each[2:]]
  probability, share = bins / len(zimg)
  return {
    **kind.means({"brier": brier, "nll": nll}),
    "ece": float(np.abs(probability - share).sum()),
    **{f"batch/{metric}": size for metric in KIND.metrics},
  }


def _zeros(Q: int):
  return *np.zeros((2, Q), np.float32), *np.zeros((2, Q, BINS), np.float32)


def _pairs(similarity_qt, own_qt, index_t, there_t, numbers, brier_q, nll_q, p_qb, y_qb):
  """The sums over the pairs of each query, with those of this tile; the last two by bin of p."""
  del index_t
  x_qt = numbers[0] * similarity_qt + numbers[1]
  p_qt, there_qt = jax.nn.sigmoid(x_qt), jnp.broadcast_to(there_t, x_qt.shape)
  total = lambda values, where=there_qt: jnp.sum(values, axis=1, where=where)
  bin_qt = jnp.minimum((p_qt * BINS).astype(jnp.int32), BINS - 1)
  in_bins = [there_qt & (bin_qt == b) for b in range(BINS)]
  of_bins = lambda values: jnp.stack([total(values, where) for where in in_bins], axis=1)
  return (
    brier_q + total((p_qt - own_qt) ** 2),
    nll_q + total(jax.nn.softplus(x_qt) - own_qt * x_qt),
    p_qb + of_bins(p_qt),
    y_qb + of_bins(own_qt.astype(jnp.float32)),
  )


def check(data, config, *, block, examples):
  """ValueError for a loss without probabilities, or when no example has a caption."""
  del block
  _check_loss(config)
  ranking.check_captions(data, examples)


def _check_loss(config):
  """The probability of a pair alone is that of a loss with a bias, as in `siglax classify`."""
  if losses.LOSSES[config.loss.name].bias_init is None:
    raise ValueError(
      f"config.loss.name={config.loss.name!r} gives a pair alone no probability; calibration needs "
      "a loss with a bias, such as sigmoid"
    )


KIND = kind.Kind(
  "calibration",
  "how far the sigmoid's probabilities are from the share of pairs that match",
  metrics=("ece", "brier", "nll"),
  evaluate=evaluate,
  check=check,
  fields={
    "block": Field(
      None,
      "pictures, and as many captions, whose pairs are asked; None takes config.batch_size",
      kind=int,
      optional=True,
      least=1,
    ),
    "examples": kind.EXAMPLES,
  },
  lower_is_better=("ece", "brier", "nll"),
)
