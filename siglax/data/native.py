"""A picture at its own aspect ratio, cut into patches: the input of siglax/models/naflex.py, which
says what a row of it holds.
"""

from __future__ import annotations

import math

import numpy as np

# As transformers' Siglip2ImageProcessor searches for the largest scale that fits.
LARGEST, PRECISION = 100.0, 1e-5
# As in siglax/models/naflex.py; the threads that read pictures import no jax.
PLACE, ABSENT = 4, 2**16 - 1


def grid(height: int, width: int, patch: int, most: int) -> tuple[int, int]:
  """(rows, columns) of patches, `most` of them at most, of a picture that is scaled up or down
  until as many as possible fit; each side is rounded up to whole patches.

  Source: arXiv 2502.14786, section 2.4, in the arithmetic of transformers' Siglip2ImageProcessor.
  """
  count = lambda side, scale: max(1, math.ceil(side * scale / patch))
  least, largest = PRECISION / 10, LARGEST
  while largest - least >= PRECISION:
    scale = (least + largest) / 2
    if count(height, scale) * count(width, scale) <= most:
      least = scale
    else:
      largest = scale
  return count(height, least), count(width, least)


def pack(image: np.ndarray, patch: int, most: int) -> np.ndarray:
  """uint8 or float [H, W, 3], whose sides are whole patches → [most, 3·patch² + 4], a row a patch:
  its pixels, row by row and channels last, and its row and column, two bytes each, the lower first.
  """
  rows, columns = image.shape[0] // patch, image.shape[1] // patch
  count = rows * columns
  packed = np.zeros((most, 3 * patch**2 + PLACE), image.dtype)
  patches = image.reshape(rows, patch, columns, patch, 3).transpose(0, 2, 1, 3, 4)
  packed[:count, :-PLACE] = patches.reshape(count, -1)
  places = np.full((most, 2), ABSENT, "<u2")
  places[:count] = np.mgrid[:rows, :columns].reshape(2, -1).T
  packed[:, -PLACE:] = places.view(np.uint8)
  return packed
