"""The training loss on held-out examples."""

from __future__ import annotations

import jax
import numpy as np

from siglax.evals import kind
from siglax.evals import ranking


def evaluate(data, embedder, config, loss, *, examples: int | None) -> dict[str, float]:
  """The loss over blocks of config.batch_size examples, averaged with the examples in each block as
  weights.

  Each block is one training batch: an image, its first caption, and all others of the block as
  negatives. The last block is padded with examples of weight 0; it and data smaller than a block
  have fewer negatives, so a lower loss: losses compare between equal `batch/loss` only, the
  examples of the largest block, which is returned too.
  loss: (zimg, ztxt, scale, bias, weights=, labels=) → scalar on numpy arrays of batch_size rows;
  labels are None unless config.loss.positives is "label". examples: the first so many; those
  without a caption are left out.
  """
  zimg, rest = ranking.embed_captioned_images(data, ranking.first(data, examples), embedder)
  ztxt = embedder.texts([example["captions"][0] for example in rest])
  labels = _labels(rest) if config.loss.positives == "label" else None
  total = 0.0
  for start in range(0, len(zimg), config.batch_size):
    block = slice(start, start + config.batch_size)
    count = len(zimg[block])
    pad = lambda x: np.pad(x[block], [(0, config.batch_size - count)] + [(0, 0)] * (x.ndim - 1))
    weights = pad(np.ones(len(zimg), np.float32))
    value = loss(
      pad(zimg),
      pad(ztxt),
      embedder.scale,
      embedder.bias,
      weights=weights,
      labels=None if labels is None else pad(labels),
    )
    total += count * float(jax.device_get(value))
  return {"loss": total / len(zimg), "batch/loss": min(len(zimg), config.batch_size)}


def check(data, config, *, examples: int | None):
  """ValueError when no example has a caption, or one of the first has no label while
  config.loss.positives is "label".
  """
  ranking.check_captions(data, examples)
  if config.loss.positives == "label":
    looked_at = (data[i] for i in ranking.first(data, examples)[: ranking.LOOKED_AT])
    _labels([example for example in looked_at if example["captions"]])


def _labels(rest) -> np.ndarray:
  labels = [example.get("label") for example in rest]
  if None in labels:
    raise ValueError('an example has no label; config.loss.positives="label" needs one for each')
  return np.asarray(labels, np.int32)


KIND = kind.Kind(
  "loss",
  "the training loss on held-out examples",
  metrics=("loss",),
  evaluate=evaluate,
  check=check,
  fields={"examples": kind.EXAMPLES},
  lower_is_better=("loss",),
  needs_loss=True,
)
