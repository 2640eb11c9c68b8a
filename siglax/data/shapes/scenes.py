"""Scenes of the built-in dataset: which objects stand where, in integers."""

from __future__ import annotations

import hashlib
import math
import struct
from typing import NamedTuple

import numpy as np

from siglax.data.shapes.grammar import PLACE_NAMES

# Geometry, in integers so that every machine draws the same bytes: lengths in 1/UNIT of the image's
# side.
UNIT = 4096
PAD = 80  # least distance of an object to the border
GAP = 160  # least distance between two objects
RADII = {  # circumscribed radius by number of objects; jittered by ±5 %
  1: {"small": 570, "large": 1110},
  2: {"small": 460, "large": 900},
  3: {"small": 420, "large": 800},
}


class Thing(NamedTuple):
  """One object. x, y and radius (circumscribed) are in 1/UNIT of the image; y points down."""

  size: str
  colour: str
  shape: str
  x: int
  y: int
  radius: int


class Scene(NamedTuple):
  """What a picture shows and its captions tell.

  things: one to three objects, no two of the same colour and shape.
  relations: (name, i) for every other object i: things[0] is `name` ("above", …) things[i].
  place: where a lone object stands, else None.
  """

  things: tuple[Thing, ...]
  relations: tuple[tuple[str, int], ...]
  place: str | None


class Draws:
  """Uniform integers, a pure function of a key: SHAKE-128 of it, the same on every machine."""

  def __init__(self, key: str):
    self._key, self._block = key, 0
    self._words = self._next_words()

  def below(self, n: int) -> int:
    """An integer in 0 … n − 1, for n ≤ 2^16."""
    if not self._words:
      self._words = self._next_words()
    return self._words.pop() * n >> 16

  def choice(self, options):
    return options[self.below(len(options))]

  def chance(self, probability: float) -> bool:
    return probability >= 1 or self.below(1 << 16) < probability * (1 << 16)

  def bytes(self, n: int) -> np.ndarray:
    """uint8 [n], of a stream of its own: the same at every call."""
    return np.frombuffer(hashlib.shake_128(f"{self._key}/bytes".encode()).digest(n), np.uint8)

  def _next_words(self):
    self._block += 1
    digest = hashlib.shake_128(f"{self._key}/{self._block}".encode()).digest(128)
    return list(struct.unpack("<64H", digest))


def relations_of(draws, count):
  """Relations of the first object to the others: of three objects one of each direction."""
  vertical, horizontal = draws.choice(("above", "below")), draws.choice(("left", "right"))
  names = (vertical, horizontal) if draws.below(2) else (horizontal, vertical)
  return [(names[other - 1], other) for other in range(1, count)]


def layout(draws, radii, relations, place):
  """(x, y) of each object: none overlap, and across a relation's axis objects are off by 0.4 of it
  at most.
  """
  if place:
    row, column = divmod(PLACE_NAMES.index(place), 3)
    return [(_third(draws, column, radii[0]), _third(draws, row, radii[0]))]
  while True:  # two objects always fit at the first try, three in 19 of 20
    spots = [[None, None]] + [[None, None] for _ in relations]
    for name, other in relations:
      axis = 1 if name in ("above", "below") else 0
      pair = (0, other) if name in ("above", "left") else (other, 0)
      spots[pair[0]][axis], spots[pair[1]][axis] = _apart(draws, radii[pair[0]], radii[pair[1]])
    if len(relations) == 1:
      low = PAD + radii[0]
      spots[0][1 - axis] = low + draws.below(UNIT - 2 * low + 1)
    for name, other in relations:
      axis = 1 if name in ("above", "below") else 0
      reach = abs(spots[other][axis] - spots[0][axis]) * 2 // 5
      low = max(PAD + radii[other], spots[0][1 - axis] - reach)
      high = min(UNIT - PAD - radii[other], spots[0][1 - axis] + reach)
      spots[other][1 - axis] = low + draws.below(high - low + 1)
    if len(radii) == 2 or math.dist(spots[1], spots[2]) >= radii[1] + radii[2] + GAP:
      return spots


def _third(draws, k, radius):
  """Coordinate of a lone object in the first, middle or last third of an axis."""
  jitter = draws.below(200)
  return (PAD + radius + jitter, UNIT // 2 - 100 + jitter, UNIT - PAD - radius - jitter)[k]


def _apart(draws, a, b):
  """Coordinates of two objects of radius a and b on one axis, the first before the second."""
  slack = UNIT - 2 * (PAD + a + b) - GAP
  before = draws.below(slack + 1)
  between = draws.below(slack - before + 1)
  first = PAD + a + before
  return first, first + a + GAP + between + b
