"""Alignment and uniformity (Wang and Isola, arXiv 2005.10242): how near pictures are to their
captions, and how evenly pictures, and captions, are spread over the sphere.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from siglax.config.parts import Field
from siglax.evals import kind
from siglax.evals import ranking


def evaluate(data, embedder, config, loss, *, alpha: float, t: float, examples: int | None) -> dict:
  """alignment: mean over pictures of ‖zimg − ztxt‖^alpha, with the first caption of each.

  uniformity_image: log of the mean of exp(−t ‖z − z'‖²) over all pairs of two different pictures;
  uniformity_text: of two captions. Pictures without captions are left out.
  """
  del config, loss
  zimg, rest = ranking.embed_captioned_images(data, ranking.first(data, examples), embedder)
  _check_count(len(zimg))
  ztxt = embedder.texts([example["captions"][0] for example in rest])
  apart = np.linalg.norm(zimg.astype(np.float64) - ztxt, axis=1)
  return {
    **kind.means({"alignment": apart**alpha}),
    "uniformity_image": _uniformity(zimg, t),
    "uniformity_text": _uniformity(ztxt, t),
  }


def _uniformity(z: np.ndarray, t: float) -> float:
  n = np.arange(len(z), dtype=np.int32)
  zeros = lambda Q: (np.zeros(Q, np.float32),)
  total = sum(s.sum(dtype=np.float64) for _, (s,) in ranking.reduced(_near, zeros, z, z, n, n, t))
  return float(np.log(total / (len(z) * (len(z) - 1))))


def _near(similarity_qt, own_qt, index_t, there_t, numbers, total_q):
  """The sum of exp(−t ‖z − z'‖²) over the others, with those of this tile; ‖z − z'‖² is
  2 − 2·cosine.
  """
  del index_t
  near_qt = jnp.exp(2 * numbers[0] * (similarity_qt - 1))
  return (total_q + jnp.sum(near_qt, axis=1, where=~own_qt & there_t),)


def check(data, config, *, examples, **fields):
  """ValueError for fewer than two examples, or without captions."""
  del config, fields
  _check_count(len(ranking.first(data, examples)))
  ranking.check_captions(data, examples)


def _check_count(count: int):
  if count < 2:
    raise ValueError(f"uniformity needs two examples with captions, there is {count}")


KIND = kind.Kind(
  "alignment",
  "how near pictures are to their captions, and how evenly both are spread (Wang and Isola, arXiv "
  "2005.10242)",
  metrics=("alignment", "uniformity_image", "uniformity_text"),
  evaluate=evaluate,
  check=check,
  fields={
    "alpha": Field(2.0, "the power of the distance in the alignment", above=0),
    "t": Field(2.0, "the t of the uniformity", above=0),
    "examples": kind.EXAMPLES,
  },
  lower_is_better=("alignment", "uniformity_image", "uniformity_text"),
)
