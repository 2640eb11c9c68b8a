"""`siglax search --index`: rows of `siglax embed` found by what is on their pictures."""

from __future__ import annotations

from collections.abc import Sequence
import logging
import os

import numpy as np

from siglax import tower as tower_lib
from siglax.data import embedding_index
from siglax.data import embeddings
from siglax.data import images as images_lib
from siglax.data import sources as sources_lib
from siglax.devices.streams import shown
from siglax.runs import digest
from siglax.tower import search as search_lib

logger = logging.getLogger("siglax")


def search(
  source, path, queries: search_lib.Queries, data: dict | None = None
) -> list[list[tuple[float, int]]]:
  """(cosine, row) of the rows of an index nearest to each query, best first; tells them.

  path: files of `siglax embed`, as the source `embeddings` takes them. Only the queries are
  embedded; the rows are read block by block. data: the data spec that was embedded, for pictures
  of a page; without it those whose keys are paths are shown. Raises ValueError in one line for
  files that were not made by the image tower at `source`, and for data that were not embedded.
  """
  if data is not None and queries.out is None:
    raise ValueError("--data gives the pictures of a page; give --out too")
  try:
    index = embedding_index.Index(path)
  except ValueError as e:
    raise ValueError(f"--index: {e}") from e
  dataset = None if data is None else _opened(data, index)
  tower = tower_lib.load(source)
  _check(index.description, tower, source, path, bool(queries.pictures))
  z = queries.embed(tower)
  try:
    found = embedding_index.nearest(index, z, queries.top)
    rows = sorted({row for matches in found for _, row in matches})
    told = dict(zip(rows, index.told(rows)))
  except ValueError as e:
    raise ValueError(f"--index: {e}") from e
  pictures = _Pictures(told, len(index), dataset)
  title = f"Nearest of {len(index):,} rows of {shown(path)}, with their cosines"
  named = [[(x, _name(row, told[row]), row) for x, row in matches] for matches in found]
  queries.tell(named, title, pictures)
  return found


def _opened(spec: dict, index):
  """The examples of a data spec, of which the rows are some, in their order."""
  dataset = sources_lib.open_source(spec, "--data")
  if len(dataset) < len(index):
    raise ValueError(
      f"--data has {len(dataset)} examples, but --index has {len(index)} rows; give the data that "
      "siglax embed had"
    )
  return dataset


def _check(made: dict, tower, source, path, pictures: bool):
  """ValueError where queries of this tower have no place among the rows."""
  if made["width"] != tower.model.embed_dim:
    raise ValueError(
      f"--index {path}: its embeddings are {made['width']} wide, those of --from {source} are "
      f"{tower.model.embed_dim}; search with the tower that made them"
    )
  if "image" not in tower.params:
    logger.warning("--from %s has no image tower to compare with that of --index", source)
    return
  mine = digest.image_tower(tower.model, tower.params, tower.mesh)
  if made["digest"] != mine:
    raise ValueError(
      f"--index {path}: its embeddings are of another image tower ({made.get('tower')}, "
      f"{made['digest']}) than that of --from {source} ({mine}); search with that one, or run "
      "siglax embed with this one"
    )
  for name in embeddings.PICTURE_FIELDS if pictures else ():
    if (there := made["image"].get(name)) != (here := embeddings.plain(tower.config.image[name])):
      raise ValueError(
        f"--query-image: --index {path} has pictures with image.{name}={there}, but --from "
        f"{source} has {here}"
      )


def _name(row: int, told: dict) -> str:
  """What is said of a row: its key, where it has one, and its first caption."""
  name = f"row {row}" if told["key"] is None else told["key"]
  return ": ".join([name, *told["captions"][:1]])


class _Pictures:
  """Row → its picture, uint8 [H, W, 3], or None.

  told: {row: its captions and key} of all rows that are asked for. count: rows of the index.
  dataset: examples of which the rows are some, in their order; None where they are not given.
  """

  def __init__(self, told: dict[int, dict], count: int, dataset: Sequence | None):
    self._told, self._count, self._dataset = told, count, dataset

  def __call__(self, row: int) -> np.ndarray | None:
    told = self._told[row]
    try:
      if self._dataset is not None:
        example = self._example(row, told)
        return None if example is None else images_lib.decode(example["image"])
      if told["key"] is not None and os.path.isfile(told["key"]):
        return search_lib.decode(told["key"])
    except (OSError, ValueError) as e:
      logger.warning("row %d has no picture: %s", row, shown(e))
    return None

  def _example(self, row: int, told: dict) -> dict | None:
    """That of a row. Where some examples are no rows, it is told by its key, from the place on
    where it probably is.
    """
    left_out = len(self._dataset) - self._count
    if not left_out:
      example = self._dataset[row]
      if list(example["captions"]) != told["captions"]:
        raise ValueError(f"example {row} of --data has other captions")
      return example
    if told["key"] is None:
      raise ValueError(f"{left_out} examples of --data are no rows of --index, and it has no key")
    guess = row + left_out * row // self._count
    for i in sorted(range(row, row + left_out + 1), key=lambda i: abs(i - guess)):
      try:
        example = self._dataset[i]
      except Exception:  # a broken one, which is no row
        continue
      if example.get("key") == told["key"]:
        return example
    raise ValueError(f"no example of --data has the key {told['key']!r}")
