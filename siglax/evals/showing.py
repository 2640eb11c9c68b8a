"""What a page shows of an evaluation, as HTML: which classes are taken for which, what queries
find, and how well cosines tell pairs from non-pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from siglax.data import page
from siglax.data import plot

# Classes of a whole confusion matrix; of more, the most frequent confusions are listed.
MATRIX = 60
# Classes at each end of a ranking, confusions in a list, queries each way, answers of a query.
CLASSES, CONFUSIONS, QUERIES, ANSWERS = 10, 30, 6, 5
THUMBNAIL = 160  # pixels
# Non-pairs whose cosines are drawn.
NON_PAIRS = 100_000
BINS = 60


def classes(labels: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> str:
  """Confusions, and the best and the worst classes, of pictures with these labels."""
  parts = [page.heading("Confusion matrix", 3)]
  parts.append(_matrix(labels, predicted, names) if len(names) <= MATRIX else "")
  parts.append(_confusions(labels, predicted, names))
  present, count = np.unique(labels, return_counts=True)
  right = np.array([np.sum(predicted[labels == k] == k) for k in present])
  order = np.argsort(-right / count, kind="stable")
  rows = [
    [page.escaped(names[int(present[i])]), f"{100 * right[i] / count[i]:.1f}", f"{count[i]:,}"]
    for i in order
  ]
  head = ["class", "recall %", "pictures"]
  if len(rows) <= 2 * CLASSES:
    ends = {"Classes, the best first": rows}
  else:
    ends = {"Best classes": rows[:CLASSES], "Worst classes": rows[: -CLASSES - 1 : -1]}
  for title, some in ends.items():
    parts += [page.heading(title, 3), page.table(head, some, 1)]
  return "\n".join(parts)


def _matrix(labels, predicted, names) -> str:
  counts = np.zeros((len(names), len(names)), np.int64)
  np.add.at(counts, (labels, predicted), 1)
  share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
  rows = [
    [page.escaped(name), *(page.shaded(f"{n:,}" if n else "", s) for n, s in zip(row, of_row))]
    for name, row, of_row in zip(names, counts, share)
  ]
  caption = "Pictures of a class (row) that were taken for a class (column)."
  return page.table(["", *names], rows, 1, caption, matrix=True)


def _confusions(labels, predicted, names) -> str:
  wrong = labels != predicted
  pairs, count = np.unique(
    np.stack([labels[wrong], predicted[wrong]], axis=1), axis=0, return_counts=True
  )
  rows = [
    [
      page.escaped(names[pairs[i][0]]),
      page.escaped(names[pairs[i][1]]),
      f"{count[i]:,}",
      f"{100 * count[i] / np.sum(labels == pairs[i][0]):.1f}",
    ]
    for i in np.argsort(-count, kind="stable")[:CONFUSIONS]
  ]
  head = ["class", "taken for", "pictures", "% of the class"]
  table = page.table(head, rows, 2)
  return page.folded("Most frequent confusions", table) if len(names) <= MATRIX else table


def retrieval(zimg, ztxt, image_of_text, captions: Sequence[str], picture, title: str) -> str:
  """Galleries of queries and what they find, and the cosines of pairs and of non-pairs.

  zimg [N, d], ztxt [M, d]: unit rows; image_of_text [M]: the image of each text; picture: i → uint8
  [H, W, 3]; title: that no other plot of the page has.
  """
  cache = {}

  def thumbnail(i: int) -> str:
    if i not in cache:
      cache[i] = page.thumbnail(picture(i), THUMBNAIL)
    return cache[i]

  parts = [page.heading("Pictures found by a text", 3)]
  for t in spread(len(ztxt)):
    found, place = nearest(ztxt[t], zimg, image_of_text[t] == np.arange(len(zimg)))
    cells = [
      page.figure(thumbnail(i), f"picture {i}", f"{cosine:.3f}", true=bool(i == image_of_text[t]))
      for i, cosine in found
    ]
    parts += [page.paragraph(captions[t]), page.paragraph(_of_place(place), quiet=True)]
    parts.append(page.grid(cells, "7rem"))
  parts.append(page.heading("Texts found by a picture", 3))
  cells = []
  for i in spread(len(zimg)):
    found, place = nearest(zimg[i], ztxt, image_of_text == i)
    lines = [(f"{cosine:.3f} {captions[t]}", bool(image_of_text[t] == i)) for t, cosine in found]
    cells.append(page.listed(thumbnail(i), f"picture {i}: {_of_place(place)}", lines))
  parts.append(page.grid(cells, "17rem"))
  return "\n".join([*parts, _histogram(zimg, ztxt, image_of_text, title)])


def spread(count: int) -> list[int]:
  """QUERIES of them, evenly."""
  return sorted({round(i) for i in np.linspace(0, count - 1, QUERIES)})


def nearest(query, items, own) -> tuple[list[tuple[int, float]], int]:
  """(index, cosine) of the ANSWERS items nearest to a query, and the place, from 1, of the first of
  its own, as `ranking.ranks` orders them.
  """
  cosines = np.nan_to_num(items @ query, nan=-np.inf)
  order = np.argsort(-cosines, kind="stable")
  place = int(np.flatnonzero(own[order])[0]) + 1
  return [(int(i), float(cosines[i])) for i in order[:ANSWERS]], place


def _of_place(place: int) -> str:
  return f"the true one is at place {place:,}"


def _histogram(zimg, ztxt, image_of_text, title: str) -> str:
  pairs = np.sum(zimg[image_of_text] * ztxt, axis=1)
  random = np.random.default_rng(0)
  text, image = random.integers(0, len(ztxt), NON_PAIRS), random.integers(0, len(zimg), NON_PAIRS)
  text, image = (x[image_of_text[text] != image] for x in (text, image))
  others = np.sum(zimg[image] * ztxt[text], axis=1)
  parts = [page.heading("Cosines of pairs and of non-pairs", 3)]
  if not (np.isfinite(pairs).all() and np.isfinite(others).all()):
    return "\n".join([*parts, page.paragraph("They are not finite.")])
  context, canvas = plot.canvas((6.4, 3.2))
  with context:
    axes = canvas.subplots()
    bins = np.histogram_bin_edges(np.concatenate([pairs, others]), BINS)
    for values, name, colour in ((pairs, "pairs", 0), (others, "non-pairs", 1)):
      weights = np.full(len(values), 100 / max(len(values), 1))
      axes.hist(values, bins, weights=weights, color=plot.COLOURS[colour], alpha=0.7, label=name)
    axes.set_xlabel("cosine")
    axes.set_ylabel("% of each")
    axes.legend(frameon=False)
    plot.tidy(axes)
    parts.append(
      page.grid([plot.in_page(canvas, title, "Cosines of pairs and non-pairs")], "30rem")
    )
  told = f"Mean cosine of {len(pairs):,} pairs {pairs.mean():.3f}"
  if len(others):
    told += f", of {len(others):,} non-pairs {others.mean():.3f}"
  parts.append(page.paragraph(f"{told}.", quiet=True))
  return "\n".join(parts)
