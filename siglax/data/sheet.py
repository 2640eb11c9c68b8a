"""A contact sheet: pictures in rows, each with its caption below."""

from __future__ import annotations

from collections.abc import Iterable
import io
import math

import numpy as np
from PIL import Image
from PIL import ImageDraw
from PIL import ImageFont

from siglax.data import images

# Pixels: of a cell without a picture that is larger, of text, and between cells.
CELL, TEXT, GAP = 192, 13, 10
LINES = 6


def draw(cells: Iterable[tuple[np.ndarray, str]]) -> bytes:
  """PNG of (uint8 [H, W, 3], caption) in the order of reading. A picture is shown pixel by pixel, a
  small one with each pixel as a square of several. A long caption ends in "…".
  """
  cells = list(cells)
  side = max([CELL, *(max(picture.shape[:2]) for picture, _ in cells)])
  columns = max(1, math.ceil(math.sqrt(len(cells))))
  rows = -(-len(cells) // columns)
  font = ImageFont.load_default(TEXT)
  texts = [wrap(caption, lambda text: font.getlength(text) <= side) for _, caption in cells]
  line = TEXT + 4
  height = side + GAP + line * max([1, *map(len, texts)])
  sheet = Image.new("RGB", (GAP + columns * (side + GAP), GAP + rows * (height + GAP)), "white")
  pen = ImageDraw.Draw(sheet)
  for k, ((picture, _), text) in enumerate(zip(cells, texts)):
    x, y = GAP + k % columns * (side + GAP), GAP + k // columns * (height + GAP)
    times = max(1, side // max(picture.shape[:2]))
    shown = Image.fromarray(np.repeat(np.repeat(picture, times, 0), times, 1))
    sheet.paste(shown, (x + (side - shown.width) // 2, y + (side - shown.height) // 2))
    for row, words in enumerate(text):
      pen.text((x, y + side + GAP // 2 + row * line), words, "black", font)
  out = io.BytesIO()
  sheet.save(out, "PNG")
  return out.getvalue()


def fitted(picture: np.ndarray, side: int = CELL) -> np.ndarray:
  """A picture whose long side is shrunk to `side`; a smaller one as it is."""
  short, long = sorted(picture.shape[:2])
  return images.shrink(picture, max(1, short * side // long)) if long > side else picture


def wrap(text: str, fits) -> list[str]:
  """Lines of words that fit, at most LINES; a word that fits no line is cut."""
  lines = [""]
  for word in text.split():
    if fits(f"{lines[-1]} {word}".strip()):
      lines[-1] = f"{lines[-1]} {word}".strip()
      continue
    while word and not fits(word):
      length = next(n for n in range(len(word), 0, -1) if n == 1 or fits(word[:n]))
      if lines[-1]:
        lines.append("")
      lines[-1], word = word[:length], word[length:]
    lines.append(word)
  lines = [line for line in lines if line]
  if len(lines) <= LINES:
    return lines
  last = lines[LINES - 1]
  while last and not fits(f"{last} …"):
    last = last[:-1]
  return [*lines[: LINES - 1], f"{last} …"]
