"""The built-in dataset: pictures of one to three objects and captions that say what stands where.

Every example is a pure function of (seed, split, index), so the dataset needs no download, has any
size and can be read in any order, from any thread, on any machine:

    >>> Shapes("train", examples=1000)[0]["captions"]
    ['a little purple star is to the left of a small amber cross', 'a little amber cross right of a
    tiny purple star']

An object has a shape, a colour and a size, and stands somewhere: a lone object in one of nine
places, two and three objects in relation to each other. A caption tells all of it in one of many
wordings, so a
word alone says little about the picture: its partners are as likely in other arrangements.
Eight of the 48 colour-shape pairs (UNSEEN) never occur in training, which makes composition
testable.

`python -m siglax.data.shapes OUT.model` remakes the tokenizer that ships with it.
"""

from __future__ import annotations

import functools
import hashlib
import math
import operator
import pathlib
import struct
import sys
from typing import NamedTuple

import cv2
import numpy as np

# Grammar. The first word of each tuple names the attribute, the others mean exactly the same.
SIZES = {"small": ("small", "tiny", "little"), "large": ("large", "big", "huge")}
COLOURS = {
  "red": ("red", "crimson"),
  "orange": ("orange", "amber"),
  "yellow": ("yellow", "golden"),
  "green": ("green", "emerald"),
  "cyan": ("cyan", "turquoise"),
  "blue": ("blue", "cobalt"),
  "purple": ("purple", "violet"),
  "pink": ("pink", "rose"),
}
SHAPES = {
  "circle": ("circle", "disc"),
  "square": ("square", "box"),
  "triangle": ("triangle", "wedge"),
  "star": ("star",),
  "cross": ("cross", "plus"),
  "ring": ("ring", "hoop"),
}
ANY_SHAPE = ("thing", "object", "shape")
RELATIONS = {
  "above": ("above", "over"),
  "below": ("below", "under"),
  "left": ("left of", "to the left of"),
  "right": ("right of", "to the right of"),
}
OPPOSITE = {"above": "below", "below": "above", "left": "right", "right": "left"}
PLACES = {
  "top left": ("in the top left corner", "in the upper left corner"),
  "top": ("at the top",),
  "top right": ("in the top right corner", "in the upper right corner"),
  "left": ("on the left",),
  "middle": ("in the middle", "in the center"),
  "right": ("on the right",),
  "bottom left": ("in the bottom left corner", "in the lower left corner"),
  "bottom": ("at the bottom",),
  "bottom right": ("in the bottom right corner", "in the lower right corner"),
}
PLACE_NAMES = tuple(PLACES)  # row by row
OPENINGS = ("", "there is ", "a picture of ", "we see ")
VERBS = (
  "is",
  "there is",
  "sits",
  "we see",
  "lies",
)  # after a place: "in the middle sits a red circle"
FRAMES = len(OPENINGS) + 1  # the last is a sentence: "a red circle is above a blue square"

CLASSNAMES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
# A Latin rule: every colour misses one shape, every shape one or two colours.
UNSEEN = tuple(f"{colour} {list(SHAPES)[i % len(SHAPES)]}" for i, colour in enumerate(COLOURS))
SEEN = tuple(name for name in CLASSNAMES if name not in UNSEEN)

TELLABLE = ("size", "colour", "shape", "where")  # what a caption may leave out
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
TURNS = 32  # rotations of each shape that are drawn
SHIFT = 6  # cv2's fractional bits of a pixel
RGB = {
  "red": (214, 34, 38),
  "orange": (246, 132, 18),
  "yellow": (248, 220, 40),
  "green": (34, 158, 58),
  "cyan": (44, 204, 218),
  "blue": (38, 76, 222),
  "purple": (130, 44, 186),
  "pink": (250, 132, 194),
}


class Thing(NamedTuple):
  """One object. x, y and radius (circumscribed) are in 1/UNIT of the image's side; y points down."""

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


class Shapes:
  """Captioned pictures of coloured shapes: {"image": uint8 [S,S,3] RGB, "captions": [str, …],
  "label": int}.

  split: "train" or "test"; they share no draw.
  examples: how many; the first n of a larger dataset are the dataset of n examples.
  image_size: S in pixels; the same scene at any S.
  objects: numbers of objects a picture may hold, from 1 to 3, equally likely; one given twice is
  twice as likely.
  pairs: colour-shape pairs a picture may hold. "seen": those of training only. "unseen": the first
  object's
    pair never occurs in training, the others' may. None: "seen" in train, all pairs alike in test.
  captions: paraphrases per picture, 1 to 5, no two alike. Neighbours tell the scene from opposite
  ends:
    "a red circle above a blue square", "a blue square under a crimson disc".
  detail: probability that a caption mentions a size, a colour, a shape, and where things are; or a
  dict of these
    four, {"size": …, "colour": …, "shape": …, "where": …}, 1 for what is left out. Below 1,
    captions are as incomplete as people's (who name things more often than their colours), still
    true, but may be the same twice.
  arrangements: examples in a row that say the same of the same objects, otherwise arranged, for
  tests that a
    bag of words fails. 2: relations reversed. 4: also the first two objects' colours exchanged.
  seed: of the whole dataset.

  label is the index in `classnames` (colour and shape) of the scene's first object, which with two
  or three objects a caption need not mention first. Raises ValueError, beginning with the argument,
  if one does not fit.
  """

  classnames = CLASSNAMES

  def __init__(
    self,
    split="train",
    examples=100_000,
    image_size=64,
    objects=(1, 2, 3),
    pairs=None,
    seed=0,
    *,
    captions=2,
    detail=1.0,
    arrangements=1,
  ):
    if split not in ("train", "test"):
      raise ValueError(f"split={split!r} is unknown; known are train, test")
    for name, value, least, most in (
      ("examples", examples, 1, 2**31 - 1),
      ("image_size", image_size, 16, 2**14),
      ("seed", seed, 0, 2**63 - 1),
    ):
      if type(value) is not int or value < least:
        raise ValueError(f"{name}={value!r} must be a whole number from {least} up")
      if value > most:
        raise ValueError(f"{name}={value} must be at most {most:,}")
    if (
      not isinstance(objects, (tuple, list))
      or not objects
      or not all(type(x) is int and 1 <= x <= 3 for x in objects)
    ):
      raise ValueError(
        f"objects={objects!r} must be a tuple of numbers from 1 to 3, such as (1, 2, 3)"
      )
    if pairs not in (None, "seen", "unseen"):
      raise ValueError(f"pairs={pairs!r} is unknown; known are None, seen, unseen")
    if pairs == "unseen" and split == "train":
      raise ValueError('pairs="unseen" is not for training: use split="test", or pairs=None')
    if type(captions) is not int or not 1 <= captions <= FRAMES:
      raise ValueError(f"captions={captions!r} must be from 1 to {FRAMES}")
    told = (
      dict.fromkeys(TELLABLE, detail)
      if not hasattr(detail, "items")
      else dict.fromkeys(TELLABLE, 1.0) | dict(detail)
    )
    if set(told) != set(TELLABLE) or not all(
      isinstance(p, (int, float)) and 0 <= p <= 1 for p in told.values()
    ):
      raise ValueError(
        f"detail={detail} must lie in [0, 1], a probability, or be a dict of such for "
        f"{', '.join(TELLABLE)}"
      )
    if arrangements not in (1, 2, 4):
      raise ValueError(f"arrangements={arrangements} must be 1, 2 or 4")
    if arrangements > 1 and 1 in objects:
      raise ValueError(
        f"arrangements={arrangements} needs two objects or more; objects={tuple(objects)} allows "
        "one"
      )
    if arrangements == 4 and pairs == "unseen":
      raise ValueError(
        'arrangements=4 exchanges colours, which pairs="unseen" does not allow; use arrangements=2'
      )
    self.split, self.examples, self.image_size, self.objects = (
      split,
      examples,
      image_size,
      tuple(objects),
    )
    self.pairs, self.seed, self.captions, self.detail = pairs, seed, captions, told
    self.arrangements = arrangements
    self._classes = SEEN if pairs == "seen" or split == "train" else CLASSNAMES
    self._first_classes = UNSEEN if pairs == "unseen" else self._classes

  def __len__(self) -> int:
    return self.examples

  def __getitem__(self, i: int) -> dict:
    scene = self.scene(i)
    first = scene.things[0]
    return {
      "image": self._image(i, scene),
      "captions": self._captions(i, scene),
      "label": CLASSNAMES.index(f"{first.colour} {first.shape}"),
    }

  def scene(self, i: int) -> Scene:
    """What example i shows. IndexError outside 0 ≤ i < examples."""
    i = operator.index(i)
    if not 0 <= i < self.examples:
      raise IndexError(f"example {i} of a dataset of {self.examples}")
    group, variant = divmod(i, self.arrangements)
    draws = self._draws("scene", group)
    count = draws.choice(self.objects)
    kinds = self._kinds(draws, count)  # (colour, shape) by object
    sizes = [draws.choice(("small", "large")) for _ in range(count)]
    radii = [RADII[count][size] * (973 + draws.below(103)) >> 10 for size in sizes]
    place, relations = None, ()
    if count == 1:
      place = draws.choice(PLACE_NAMES)
    else:
      relations = tuple(_relations(draws, count))
    if variant & 1:
      relations = tuple((OPPOSITE[name], other) for name, other in relations)
    if variant & 2:
      (a, shape_a), (b, shape_b) = kinds[:2]
      kinds[:2] = (b, shape_a), (a, shape_b)
    spots = _layout(draws, radii, relations, place)
    things = (
      Thing(s, *kind, *spot, radius) for s, kind, spot, radius in zip(sizes, kinds, spots, radii)
    )
    return Scene(tuple(things), relations, place)

  def _kinds(self, draws, count):
    """Distinct (colour, shape) for each object; with arrangements=4, still allowed after the
    exchange of colours.
    """
    while True:
      names = [draws.choice(self._first_classes)] + [
        draws.choice(self._classes) for _ in range(count - 1)
      ]
      kinds = [tuple(name.split()) for name in names]
      if self.arrangements == 4:
        (a, shape_a), (b, shape_b) = kinds[:2]
        exchanged = [f"{a} {shape_b}", f"{b} {shape_a}"]
        names = names + exchanged
        if not set(exchanged) <= set(self._classes):
          continue
      if len(set(names)) == len(names):
        return kinds

  def _draws(self, what, i):
    return Draws(f"siglax.shapes/{self.seed}/{self.split}/{what}/{i}")

  def _image(self, i, scene):
    draws = self._draws("image", i)
    image = _background(draws, self.image_size)
    scale = self.image_size << SHIFT
    for thing in scene.things:
      centre = np.array((thing.x * scale // UNIT, thing.y * scale // UNIT), np.int32) - (
        1 << SHIFT - 1
      )
      radius = thing.radius * scale // UNIT
      light = 222 + draws.below(52)  # brightness × 0.87 … 1.07
      rgb = [min(max((c * light >> 8) + draws.below(25) - 12, 0), 255) for c in RGB[thing.colour]]
      outline = [
        (points * radius >> 12) + centre for points in _outlines(thing.shape)[draws.below(TURNS)]
      ]
      cv2.fillPoly(image, outline, rgb, cv2.LINE_AA, SHIFT)
    return image

  def _captions(self, i, scene):
    draws = self._draws("captions", i)
    order, frame = draws.below(4), draws.below(FRAMES)
    return [
      _caption(draws, scene, order + k, (frame + k) % FRAMES, self.detail)
      for k in range(self.captions)
    ]


class Draws:
  """Uniform integers that are a pure function of a key: SHAKE-128 of it, the same on every machine."""

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


def make_tokenizer(path, vocab_size: int = 107):
  """Trains shapes.model: 67 words, 26 letters, 10 digits, the space, and pad, end and unknown.

  Every word of the grammar is one token; other English falls back to letters.
  """
  from siglax.data import (
    text,  # late: text does not know the datasets, and only this function needs it
  )

  dataset = Shapes("train", examples=5000, captions=1, detail=0.7)
  captions = (
    caption for i in range(len(dataset)) for caption in dataset._captions(i, dataset.scene(i))
  )
  text.train_tokenizer(captions, path, vocab_size)


def _relations(draws, count):
  """Relations of the first object to the others: for three objects one vertical and one horizontal."""
  vertical, horizontal = draws.choice(("above", "below")), draws.choice(("left", "right"))
  names = (vertical, horizontal) if draws.below(2) else (horizontal, vertical)
  return [(names[other - 1], other) for other in range(1, count)]


def _layout(draws, radii, relations, place):
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


def _background(draws, size):
  """uint8 [size, size, 3]: a muted gradient or soft clouds."""
  n = 2 + draws.below(5)  # 2 × 2 knots are a gradient
  grey, contrast, tint = 50 + draws.below(156), 8 + draws.below(64), 4 + draws.below(16)
  base = [grey + draws.below(41) - 20 for _ in range(3)]
  noise = draws.bytes(n * n * 4).reshape(n, n, 4).astype(np.int32) - 128
  knots = noise[..., :1] * contrast
  knots = (knots + noise[..., 1:] * tint >> 7) + np.array(base, np.int32)
  # The exact resize is integer arithmetic: no machine rounds otherwise.
  return cv2.resize(
    knots.clip(0, 255).astype(np.uint8), (size, size), interpolation=cv2.INTER_LINEAR_EXACT
  )


@functools.cache
def _outlines(shape):
  """TURNS rotations of a shape, each a list of contours: int32 [points, 2] within a circle of
  radius 4096.
  """
  circle = [math.tau * k / 24 for k in range(24)]
  contours = {  # (angle, radius) of each point; 0 points up
    "circle": [[(t, 0.9) for t in circle]],
    "square": [[(math.tau * (k + 0.5) / 4, 1) for k in range(4)]],
    "triangle": [[(math.tau * k / 3, 1) for k in range(3)]],
    "star": [[(math.tau * k / 10, 0.4 if k % 2 else 1) for k in range(10)]],
    "cross": [
      [
        (math.tau * q / 4 + math.atan2(x, y), math.hypot(x, y))
        for q in range(4)
        for x, y in ((-0.3, 0.3), (-0.3, 0.94), (0.3, 0.94))
      ]
    ],
    "ring": [
      [(t, 0.96) for t in circle],
      [(t, 0.54) for t in circle],
    ],  # even-odd: the inner one is a hole
  }[shape]
  most = math.pi / 9  # 20°: a square turned further is a diamond
  turned = []
  for turn in range(TURNS):
    angle = most * (2 * turn / (TURNS - 1) - 1)
    turned.append(
      [
        np.array(
          [
            [round(4096 * r * math.sin(t + angle)), -round(4096 * r * math.cos(t + angle))]
            for t, r in contour
          ],
          np.int32,
        )
        for contour in contours
      ]
    )
  return turned


def _caption(draws, scene, order, frame, detail):
  """One wording. order: which object and which relation comes first; frame: how the sentence opens."""
  phrases = [_phrase(draws, thing, detail) for thing in scene.things]
  opening, verb = (OPENINGS[frame], " ") if frame < len(OPENINGS) else ("", " is ")
  if not draws.chance(detail["where"]):  # nothing said of where
    if frame == len(OPENINGS):
      opening = "here is "
    return opening + " and ".join(phrases if order & 1 else phrases[::-1])
  if scene.place:
    place = draws.choice(PLACES[scene.place])
    return (
      f"{place} {VERBS[frame]} {phrases[0]}" if order & 1 else f"{opening}{phrases[0]}{verb}{place}"
    )
  told = scene.relations[::-1] if order & 2 else scene.relations
  if order & 1:  # from the other end
    name, other = told[0]
    first, links = phrases[other], [(OPPOSITE[name], phrases[0])]
    joint = " which is "
  else:
    first, links = phrases[0], [(told[0][0], phrases[told[0][1]])]
    joint = " and "
  links += [(name, phrases[other]) for name, other in told[1:]]
  return f"{opening}{first}{verb}" + joint.join(
    f"{draws.choice(RELATIONS[name])} {phrase}" for name, phrase in links
  )


def _phrase(draws, thing, detail):
  """ "a tiny red circle" with some of its words; its colour or its shape is always told."""
  words = []
  if draws.chance(detail["size"]):
    words.append(draws.choice(SIZES[thing.size]))
  shape, colour = draws.chance(detail["shape"]), draws.chance(detail["colour"])
  if colour or not shape:
    words.append(draws.choice(COLOURS[thing.colour]))
  words.append(draws.choice(SHAPES[thing.shape] if shape else ANY_SHAPE))
  return f"{'an' if words[0][0] in 'aeiou' else 'a'} {' '.join(words)}"


if __name__ == "__main__":
  if len(sys.argv) != 2:
    sys.exit("usage: python -m siglax.data.shapes OUT.model")
  make_tokenizer(pathlib.Path(sys.argv[1]))
