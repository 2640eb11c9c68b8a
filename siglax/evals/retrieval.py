"""Retrieval: find a text by its image, and an image by its text, among all of the evaluation's."""

from __future__ import annotations

import numpy as np

from siglax.config.parts import Field
from siglax.evals import kind
from siglax.evals import ranking
from siglax.evals import showing

RECALL_AT = (1, 5, 10)


def evaluate(
  data,
  embedder,
  config,
  loss,
  *,
  examples: int | None,
  distinct: bool,
  captions_per_image: int | None,
) -> dict:
  """{text,image}_retrieval_recall@{1,5,10}, each in 0..1, as CLIP_benchmark defines them.

  text_retrieval_recall@k: share of images with at least one of their captions among the k nearest
  texts. image_retrieval_recall@k: share of texts whose image is among the k nearest images.
  chance/<metric>: what rankings at random get. each/<metric>: one value an image, or a text.
  examples: evaluates the first so many; distinct: skips an example whose first caption was already
  taken, since no model can tell the two apart; captions_per_image: uses the first so many. Images
  without captions are left out.
  """
  del config, loss
  indices = _distinct(data, examples) if distinct else ranking.first(data, examples)
  zimg, rest = ranking.embed_captioned_images(data, indices, embedder)
  captions = [example["captions"][:captions_per_image] for example in rest]
  ztxt = embedder.texts([text for texts in captions for text in texts])
  images = np.arange(len(captions), dtype=np.int32)
  image_of_text = np.repeat(images, [len(texts) for texts in captions])
  rank = {
    "text": ranking.ranks(zimg, ztxt, images, image_of_text),
    "image": ranking.ranks(ztxt, zimg, image_of_text, images),
  }
  found = {f"{wanted}_retrieval_recall@{k}": rank[wanted] < k for wanted in rank for k in RECALL_AT}
  counts = np.bincount(image_of_text)
  return kind.means(found) | {
    f"chance/{wanted}_retrieval_recall@{k}": chance(k, own, total)
    for wanted, own, total in (("text", counts, len(ztxt)), ("image", np.ones(1), len(zimg)))
    for k in RECALL_AT
  }


def show(
  data, embedder, config, name, *, examples: int | None, distinct: bool, captions_per_image
) -> str:
  """What some of the texts and of the pictures find."""
  del config
  indices = _distinct(data, examples) if distinct else ranking.first(data, examples)
  indices = [i for i in indices if data.captions(i)]
  zimg, rest = ranking.embed_images(data, indices, embedder)
  captions = [example["captions"][:captions_per_image] for example in rest]
  texts = [text for of_image in captions for text in of_image]
  image_of_text = np.repeat(np.arange(len(captions)), [len(of_image) for of_image in captions])
  return showing.retrieval(
    zimg, embedder.texts(texts), image_of_text, texts, lambda i: data[indices[i]]["image"], name
  )


def chance(k: int, own: np.ndarray, total: int) -> float:
  """Mean share of queries with one of their `own` items among k of `total` drawn without
  replacement.
  """
  drawn = np.arange(min(k, total))[:, None]
  missed = np.prod(np.maximum(total - own - drawn, 0) / (total - drawn), axis=0)
  return float(np.mean(1 - missed))


def check(data, config, *, examples: int | None, **fields):
  """ValueError when no example has a caption."""
  del config, fields
  ranking.check_captions(data, examples)


def _distinct(data, examples) -> list[int]:
  """Indices of the first `examples` examples that each have a new first caption."""
  taken, indices = set(), []
  for i in range(len(data)):
    if len(indices) == examples:
      break
    captions = data.captions(i)
    if captions and captions[0] not in taken:
      taken.add(captions[0])
      indices.append(i)
  return indices


KIND = kind.Kind(
  "retrieval",
  "find a text by its image, and an image by its text",
  metrics=tuple(
    f"{wanted}_retrieval_recall@{k}" for wanted in ("text", "image") for k in RECALL_AT
  ),
  evaluate=evaluate,
  check=check,
  show=show,
  fields={
    "examples": kind.EXAMPLES,
    "distinct": Field(False, "skips an example whose first caption was already taken"),
    "captions_per_image": Field(
      None,
      "uses the first so many captions of an image; None all",
      kind=int,
      optional=True,
      least=1,
    ),
  },
  clip_benchmark="zeroshot_retrieval",
)
