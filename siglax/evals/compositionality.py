"""Compositionality: a picture against its caption and captions with words swapped (ARO, arXiv
2210.01936; SugarCrepe, arXiv 2306.14610).
"""

from __future__ import annotations

import numpy as np

from siglax.evals import kind
from siglax.evals import ranking


def evaluate(data, embedder, config, loss, *, examples: int | None) -> dict:
  """acc: share of pictures that are nearer to the first of their captions, the true one, than to
  each of the others. A tie is wrong, as in SugarCrepe, so a model whose embeddings are all equal
  scores 0. chance/acc: mean of 1 / the captions of a picture.

  Raises ValueError for a picture with fewer than two captions.
  """
  del config, loss
  zimg, rest = ranking.embed_images(data, ranking.first(data, examples), embedder)
  captions = [_captions(example["captions"], i) for i, example in enumerate(rest)]
  ztxt = embedder.texts([text for texts in captions for text in texts])
  counts = np.array([len(texts) for texts in captions])
  image = np.repeat(np.arange(len(counts)), counts)
  first = np.cumsum(counts) - counts
  similarity = np.empty(len(image))
  for start in range(0, len(image), step := max(1, kind.MAX_NUMBERS // zimg.shape[1])):
    block = slice(start, start + step)
    z = zimg[image[block]].astype(np.float64)
    similarity[block] = np.einsum("nd,nd->n", z, ztxt[block])
  true = similarity[first].copy()
  similarity[first] = -np.inf
  # A comparison with NaN is false: what a diverged model says is wrong.
  right = true > np.maximum.reduceat(similarity, first)
  return kind.means({"acc": right}) | {"chance/acc": float(np.mean(1 / counts))}


def check(data, config, *, examples: int | None):
  """ValueError for one of the first pictures that has fewer than two captions."""
  del config
  for i in ranking.first(data, examples)[: ranking.LOOKED_AT]:
    _captions(data.captions(i), i)
  data[0]


def _captions(captions: list[str], i: int) -> list[str]:
  if len(captions) < 2:
    raise ValueError(
      f"example {i} of data has {len(captions)} captions; it needs the true one, then those with "
      "swapped words: name the columns of both in data.caption, such as 'caption,negative_caption'"
    )
  return captions


KIND = kind.Kind(
  "compositionality",
  "a picture goes to its caption or to one with words swapped (ARO, SugarCrepe)",
  metrics=("acc",),
  evaluate=evaluate,
  check=check,
  fields={"examples": kind.EXAMPLES},
  clip_benchmark="image_caption_selection",
)
