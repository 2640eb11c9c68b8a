"""Composed queries: a picture plus or minus words finds others (ALIGN, arXiv 2102.05918)."""

from __future__ import annotations

import collections
import hashlib

import numpy as np

from siglax.config.parts import Field
from siglax.evals import kind
from siglax.evals import ranking
from siglax.evals import retrieval

RECALL_AT = retrieval.RECALL_AT


def evaluate(
  data, embedder, config, loss, *, queries, text_scale: float, examples: int | None
) -> dict:
  """composed_recall@{1,5,10}: share of queries with a wanted picture among the k nearest of data.

  A query is an example of queries: its picture, its captions as words, and its label. It is
  zimg + text_scale · Σ ±ztxt, minus for words behind "-", plus for others, of unit embeddings; "+"
  may stand before these. Wanted are the pictures of data with the query's label. The query's own
  picture, by its pixels, is passed over. chance/<metric>: what rankings at random get.
  Raises ValueError for a query without words or without a picture that it wants.
  """
  del config, loss
  zimg, gallery = ranking.embed_images(_Named(data), ranking.first(data, examples), embedder)
  zquery, rest = ranking.embed_images(_Named(queries), range(len(queries)), embedder)
  words = [_words(example["captions"], i) for i, example in enumerate(rest)]
  ztxt = embedder.texts([text for of_query in words for _, text in of_query])
  sign = np.array([sign for of_query in words for sign, _ in of_query], np.float32)
  query = np.repeat(np.arange(len(words)), [len(of_query) for of_query in words])
  np.add.at(zquery, query, text_scale * sign[:, None] * ztxt)
  labels = np.array([_label(example, i, "data") for i, example in enumerate(gallery)])
  wanted = np.array([_label(example, i, "queries") for i, example in enumerate(rest)])
  _, picture = np.unique([example["picture"] for example in [*gallery, *rest]], return_inverse=True)
  pictures, own = picture[: len(gallery)], picture[len(gallery) :]
  others = _others(labels, wanted, pictures, own)
  most = max(RECALL_AT) + np.bincount(pictures).max()
  near = ranking.nearest(zquery, zimg, min(most, len(zimg)))
  passed_over = pictures[near] == own[:, None]
  place = np.cumsum(~passed_over, axis=1) - 1
  right = (labels[near] == wanted[:, None]) & ~passed_over
  found = {f"composed_recall@{k}": np.any(right & (place < k), axis=1) for k in RECALL_AT}
  chance = lambda k: np.mean([retrieval.chance(k, np.array([n]), of) for n, of in others])
  return kind.means(found) | {f"chance/composed_recall@{k}": float(chance(k)) for k in RECALL_AT}


class _Named:
  """Examples with "picture", the same for those of equal pixels."""

  def __init__(self, data):
    self._data = data

  @property
  def blank(self):
    return self._data.blank

  def __getitem__(self, i: int) -> dict:
    example = self._data[i]
    digest = hashlib.blake2b(np.ascontiguousarray(example["image"]).tobytes(), digest_size=16)
    return {**example, "picture": digest.hexdigest()}


def _others(labels, wanted, pictures, own) -> list[tuple[int, int]]:
  """(wanted pictures, all pictures) of data that are not the query's own, of each query."""
  copies, by_label = collections.Counter(pictures.tolist()), collections.Counter(labels.tolist())
  both = collections.Counter(zip(pictures.tolist(), labels.tolist()))
  found = [
    (by_label[label] - both[picture, label], len(labels) - copies[picture])
    for picture, label in zip(own.tolist(), wanted.tolist())
  ]
  for i, (right, _) in enumerate(found):
    if not right:
      _refuse(i, wanted[i])
  return found


def _refuse(i: int, label: int):
  raise ValueError(f"example {i} of queries has label {label}, which no other picture of data has")


def check(data, config, *, queries, examples, **fields):
  """ValueError for one of the first queries without words, where labels are missing, and, where all
  labels can be read alone, for one that no picture of data has.
  """
  del config, fields
  for i in range(len(queries))[: ranking.LOOKED_AT]:
    _words(queries.captions(i), i)
    _label(queries[i], i, "queries")
  first = ranking.first(data, examples)
  for i in first[: ranking.LOOKED_AT]:
    _label(data[i], i, "data")
  wanted, labels = queries.labels(), data.labels()
  if wanted is not None and labels is not None:
    there = {_label({"label": labels[i]}, i, "data") for i in first}
    for i, label in enumerate(wanted):
      if _label({"label": label}, i, "queries") not in there:
        _refuse(i, label)


def _words(captions: list[str], i: int) -> list[tuple[int, str]]:
  """(+1 or −1, words) of each caption of a query."""
  found = [(-1 if text.startswith("-") else 1, text.lstrip("+-").strip()) for text in captions]
  if not found or not all(words for _, words in found):
    raise ValueError(
      f"example {i} of queries has the captions {captions}; it needs words to add, or to take away "
      'behind a "-", such as "-a dog"'
    )
  return found


def _label(example, i: int, what: str) -> int:
  if (label := example.get("label")) is None:
    raise ValueError(
      f"example {i} of {what} has no label; a query has that of the pictures it wants: name a "
      f"column of labels in {what}.label"
    )
  return int(label)


KIND = kind.Kind(
  "composed",
  "a picture plus or minus words finds other pictures (ALIGN, arXiv 2102.05918)",
  metrics=tuple(f"composed_recall@{k}" for k in RECALL_AT),
  evaluate=evaluate,
  check=check,
  fields={
    "queries": Field(
      None,
      'a data spec: pictures with words to add, or behind "-" to take away, as captions, and the '
      "label of the pictures of data that are wanted",
      kind=dict,
    ),
    "text_scale": Field(2.0, "weight of the words against the picture's 1; ALIGN's is 2", above=0),
    "examples": kind.EXAMPLES,
  },
  specs=("queries",),
)
