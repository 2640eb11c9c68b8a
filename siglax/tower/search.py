"""`siglax search`: pictures of a folder found by what is on them."""

from __future__ import annotations

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
from siglax.data import pipeline
from siglax.data import prepared
from siglax.data import uploads
from siglax.devices import mesh as mesh_lib
from siglax.devices.streams import shown
from siglax.tower import embedder

logger = logging.getLogger("siglax")

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
BATCH = 256  # pictures decoded and embedded at a time


def search(
  source, folder, queries: list[str], top: int = 20, out=None
) -> list[list[tuple[float, pathlib.Path]]]:
  """(cosine, path) of the `top` pictures in a folder nearest to each query; prints them, and writes
  them as a page to `out`, a path or a URL.

  Of all pictures only embeddings and paths are kept. Broken ones are named in the log, counted and
  left out. Raises ValueError in one line for a folder without pictures, an `out` that exists, or a
  tower without texts.
  """
  if top < 1:
    raise ValueError(f"--top {top} must be at least 1")
  if out is not None:
    uploads.check_new(str(out))
    if not buckets.is_url(out) and not pathlib.Path(out).parent.is_dir():
      raise ValueError(f"--out {out}: there is no folder {pathlib.Path(out).parent}")
  paths = find(folder)
  tower = tower_lib.load(source)
  ztxt = tower.embed_texts(queries)
  zimg, readable = embed(tower, paths)
  if not readable:
    raise ValueError(f"--images {folder}: none of its {len(paths)} pictures can be read")
  cosines = zimg @ ztxt.T
  found = [
    [(float(row[i]), readable[i]) for i in np.argsort(-row, kind="stable")[:top]]
    for row in cosines.T
  ]
  for query, matches in zip(queries, found):
    print(shown(query))
    for cosine, path in matches:
      print(f"  {cosine:6.3f}  {shown(path)}")
  if out is not None:
    with uploads.writing(out):
      made = page(pathlib.Path(folder), len(readable), queries, found)
      uploads.write(out, made.encode())
    print(f"wrote {shown(out)}")
  return found


def find(folder) -> list[pathlib.Path]:
  """Every picture in a folder and its subfolders, by name, in order. ValueError when there
  is none.
  """
  if not os.path.isdir(folder):
    raise ValueError(f"--images {folder} is no folder")
  paths = sorted(
    pathlib.Path(parent, name)
    for parent, _, names in os.walk(folder)
    for name in names
    if name.lower().endswith(SUFFIXES)
  )
  if not paths:
    raise ValueError(
      f"--images {folder} has no pictures in it ({', '.join(s[1:] for s in SUFFIXES)})"
    )
  return paths


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


def page(folder: pathlib.Path, count: int, queries: list[str], found: list) -> str:
  """HTML that needs no other file: a heading for each query, and its pictures with their cosines.

  count: of all pictures in the folder. found: as `search` returns it.
  """
  thumbnails, sections = {}, []
  for query, matches in zip(queries, found):
    figures = []
    for cosine, path in matches:
      if path not in thumbnails:
        thumbnails[path] = page_lib.thumbnail(images_lib.decode(path.read_bytes()))
      name = str(path.relative_to(folder))
      figures.append(page_lib.figure(thumbnails[path], name, f"{cosine:.3f}"))
    sections.append(page_lib.heading(query) + "\n" + page_lib.grid(figures))
  title = f"Nearest of {count:,} pictures in {shown(folder)}, with their cosines"
  return page_lib.document(title, "\n".join(sections))
