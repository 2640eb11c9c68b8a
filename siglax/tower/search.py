"""`siglax search`: pictures found by what is on them, or by another picture."""

from __future__ import annotations

from collections.abc import Callable
import logging
import os
import pathlib
import sys

import jax
import numpy as np

from siglax import config as config_lib
from siglax import tower as tower_lib
from siglax.data import buckets
from siglax.data import images as images_lib
from siglax.data import page as page_lib
from siglax.data import paths as paths_lib
from siglax.data import pipeline
from siglax.data import prepared
from siglax.data import storage
from siglax.data import uploads
from siglax.devices import mesh as mesh_lib
from siglax.devices.streams import shown
from siglax.tower import embedder

logger = logging.getLogger("siglax")

BATCH = 256  # pictures decoded and embedded at a time


class Queries:
  """What is searched for with one tower, and how what was found is told.

  texts, pictures: of which there is at least one; pictures are paths. top: how many are told of
  each. out: a page to write, a path or a URL, or None. Raises ValueError in one line for an `out`
  that exists, a picture that is not there, or a tower without texts.
  """

  def __init__(self, texts: list[str], pictures: list, top: int, out=None):
    self.texts, self.pictures, self.top = texts, pictures, top
    self.out = out
    if not texts and not pictures:
      raise ValueError("there is nothing to search for; give a QUERY or --query-image")
    if top < 1:
      raise ValueError(f"--top {top} must be at least 1")
    if out is not None:
      uploads.check_new(str(out))
      if not buckets.is_url(out) and not pathlib.Path(out).parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {pathlib.Path(out).parent}")
    for picture in pictures:
      if not os.path.isfile(picture):
        raise ValueError(f"--query-image {shown(picture)} is no file")

  def embed(self, tower) -> np.ndarray:
    """Unit rows float32, texts before pictures."""
    parts = [tower.embed_texts(self.texts)] if self.texts else []
    if self.pictures:
      parts.append(tower.embed_images(self.pictures))
    return np.concatenate(parts)

  def tell(self, found: list, title: str, picture: Callable, short: Callable = str):
    """Prints the cosine and the name of what was found for each query; writes them as a page.

    found: [(cosine, name, place), …] of each query. title: of the page. picture: place → uint8
    [H, W, 3], or None. short: name → what the page calls it.
    """
    asked = [*self.texts, *map(str, self.pictures)]
    for query, matches in zip(asked, found):
      print(shown(query))
      for cosine, name, _ in matches:
        print(f"  {cosine:6.3f}  {shown(name)}")
    if self.out is not None:
      decoded = [None] * len(self.texts) + [decode(path) for path in self.pictures]
      queries = list(zip(asked, decoded))
      named = [[(x, short(name), place) for x, name, place in matches] for matches in found]
      with uploads.writing(self.out):
        uploads.write(self.out, _page(title, queries, named, picture).encode())
      print(f"wrote {shown(self.out)}")


def _page(title: str, queries: list, found: list, picture: Callable) -> str:
  """HTML that needs no other file: a heading for each query, and what was found with its cosines.

  queries: what was asked for, with its picture where it is one. found: [(cosine, its name, place)]
  of each query, best first. picture: place → uint8 [H, W, 3]; None where there is none.
  """
  thumbnail = lambda image: None if image is None else page_lib.thumbnail(image)
  thumbnails, sections = {}, []
  for (query, asked), matches in zip(queries, found):
    sections.append(page_lib.heading(query))
    if asked is not None:
      sections.append(page_lib.grid([page_lib.figure(thumbnail(asked), query, "asked for")]))
    figures = []
    for cosine, name, place in matches:
      if place not in thumbnails:
        thumbnails[place] = thumbnail(picture(place))
      figures.append(page_lib.figure(thumbnails[place], name, f"{cosine:.3f}"))
    sections.append(page_lib.grid(figures))
  return page_lib.document(title, "\n".join(sections))


def decode(path) -> np.ndarray:
  """uint8 [H, W, 3] of a picture's file."""
  return images_lib.decode(pathlib.Path(path).read_bytes())


def search(source, folder, queries: Queries) -> list[list[tuple[float, pathlib.Path]]]:
  """(cosine, path) of the pictures in a folder nearest to each query, best first; tells them.

  Of all pictures only embeddings and paths are kept. Broken ones are named in the log, counted and
  left out. Raises ValueError in one line for a folder without pictures.
  """
  paths = find(folder)
  tower = tower_lib.load(source)
  z = queries.embed(tower)
  zimg, readable = embed(tower, paths)
  if not readable:
    raise ValueError(f"--images {folder}: none of its {len(paths)} pictures can be read")
  cosines = z @ zimg.T
  found = [
    [(float(row[i]), readable[i]) for i in np.argsort(-row, kind="stable")[: queries.top]]
    for row in cosines
  ]
  title = f"Nearest of {len(readable):,} pictures in {shown(folder)}, with their cosines"
  named = [[(x, str(path), path) for x, path in matches] for matches in found]
  queries.tell(named, title, decode, lambda name: str(pathlib.Path(name).relative_to(folder)))
  return found


def find(folder) -> list[pathlib.Path]:
  """Every picture in a folder and its subfolders, by name, in order: those that source folder
  has. ValueError when there is none.
  """
  if not os.path.isdir(folder):
    raise ValueError(f"--images {folder} is no folder")
  found = sorted(
    pathlib.Path(folder, below, name)
    for below, names in storage.walk(str(folder))
    for name in names
    if paths_lib.ending(name) in paths_lib.PICTURE_ENDINGS
  )
  if not found:
    raise ValueError(
      f"--images {folder} has no pictures in it ({', '.join(paths_lib.PICTURE_ENDINGS)})"
    )
  return found


def embed(tower, paths: list[pathlib.Path]) -> tuple[np.ndarray, list[pathlib.Path]]:
  """(unit rows float32 [N, d], their N paths) of those pictures that can be read; the others are
  named in the log.
  """
  from rich import console
  from rich import progress

  size = -(-BATCH // tower.mesh.size) * tower.mesh.size
  threads, workers = pipeline.loader_threads(config_lib.default(), [paths])
  read = prepared.Pictures(paths, tower.config.image)
  batches = prepared.batches(read, [range(len(paths))], size, threads=threads, workers=workers)
  run = jax.jit(tower.model.embed_image, out_shardings=mesh_lib.replicated(tower.mesh))
  found = embedder.in_turn(
    lambda images: run(tower.params, images),
    tower.mesh,
    ((rests, images) for images, rests in batches),
  )
  zimg, readable, seen = [], [], iter(paths)
  with progress.Progress(
    console=console.Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
  ) as bar:
    task = bar.add_task("embedding", total=len(paths))
    for rests, z in found:
      good = []
      for row, (rest, path) in enumerate(zip(rests, seen)):
        if isinstance(rest, prepared.LeftOut):
          logger.warning("left out %s", shown(f"{path}: {rest.said}"))
        else:
          good.append(row)
          readable.append(path)
      zimg.append(z[good])
      bar.advance(task, len(rests))
  if len(readable) < len(paths):
    logger.warning("%d of %d pictures were left out", len(paths) - len(readable), len(paths))
  return np.concatenate(zimg), readable
