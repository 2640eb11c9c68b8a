"""`siglax search`: pictures of a folder found by what is on them."""

from __future__ import annotations

import logging
import os
import pathlib
import sys

import numpy as np

from siglax import tower as tower_lib
from siglax.data import images as images_lib
from siglax.data import page as page_lib
from siglax.data import reading
from siglax.devices import disk
from siglax.devices.streams import shown

logger = logging.getLogger("siglax")

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
BATCH = 256  # pictures decoded and embedded at a time


def search(
  source, folder, queries: list[str], top: int = 20, out=None
) -> list[list[tuple[float, pathlib.Path]]]:
  """(cosine, path) of the `top` pictures in a folder nearest to each query; prints them, and writes
  them as a page to `out`.

  Of all pictures only embeddings and paths are kept. Broken ones are named in the log, counted and
  left out. Raises ValueError in one line for a folder without pictures, an `out` that exists, or a
  tower without texts.
  """
  if top < 1:
    raise ValueError(f"--top {top} must be at least 1")
  if out is not None and os.path.lexists(out):
    raise ValueError(f"--out {out} exists; give a path that does not")
  if out is not None and not pathlib.Path(out).parent.is_dir():
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
    _write(pathlib.Path(out), page(pathlib.Path(folder), len(readable), queries, found))
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

  zimg, readable, batch = [], [], []
  read = reading.read_ahead(lambda i: tower.pixels(paths[i]), range(len(paths)), 2 * BATCH)
  for i, pixels in progress.track(
    read,
    "embedding",
    total=len(paths),
    console=console.Console(stderr=True),
    transient=True,
    disable=not sys.stderr.isatty(),
  ):
    if isinstance(pixels, ValueError):
      logger.warning("left out %s", shown(pixels))
    elif isinstance(pixels, Exception):
      raise pixels
    else:
      batch.append(pixels)
      readable.append(paths[i])
    if len(batch) == BATCH or batch and i == len(paths) - 1:
      zimg.append(tower.embed_images(batch, BATCH))
      batch = []
  if len(readable) < len(paths):
    logger.warning("%d of %d pictures were left out", len(paths) - len(readable), len(paths))
  return np.concatenate(zimg) if zimg else np.zeros((0, 0), np.float32), readable


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


def _write(file: pathlib.Path, text: str):
  try:
    disk.write_atomic(file, text.encode())
  except OSError as e:
    raise ValueError(f"--out {file} cannot be written: {e.strerror or e}") from e
