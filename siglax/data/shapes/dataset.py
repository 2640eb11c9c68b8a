"""The examples of the built-in dataset, and its declaration as a source."""

from __future__ import annotations

import operator

from siglax.config.parts import Field
from siglax.data import text
from siglax.data.shapes import captions
from siglax.data.shapes import pictures
from siglax.data.shapes import scenes
from siglax.data.shapes.grammar import CLASSNAMES
from siglax.data.shapes.grammar import FRAMES
from siglax.data.shapes.grammar import OPPOSITE
from siglax.data.shapes.grammar import PLACE_NAMES
from siglax.data.shapes.grammar import SEEN
from siglax.data.shapes.grammar import TELLABLE
from siglax.data.shapes.grammar import UNSEEN
from siglax.data.shapes.scenes import Draws
from siglax.data.shapes.scenes import Scene
from siglax.data.shapes.scenes import Thing
from siglax.data.source import Source


def _objects_problem(value) -> str | None:
  good = isinstance(value, (tuple, list)) and value and all(_is_count(x) and x <= 3 for x in value)
  return None if good else "must be a tuple of numbers from 1 to 3, such as (1, 2, 3)"


def _is_count(x) -> bool:
  return type(x) is int and x >= 1


def _detail_problem(value) -> str | None:
  is_share = lambda p: isinstance(p, (int, float)) and 0 <= p <= 1
  shares = _told(value)
  if set(shares) == set(TELLABLE) and all(map(is_share, shares.values())):
    return None
  names = ", ".join(TELLABLE)
  return f"must lie in [0, 1], a probability, or be a dict of such for {names}"


def _told(detail) -> dict[str, float]:
  """The probability of each of TELLABLE."""
  if hasattr(detail, "items"):
    return dict.fromkeys(TELLABLE, 1.0) | dict(detail)
  return dict.fromkeys(TELLABLE, detail)


FIELDS = {
  "split": Field("train", "the two share no draw", choices=("train", "test")),
  "examples": Field(
    100_000,
    "how many; the first n of a larger dataset are the dataset of n examples",
    least=1,
    most=2**31 - 1,
  ),
  "image_size": Field(
    64, "height and width in pixels; the same scene at any size", least=16, most=2**14
  ),
  "objects": Field(
    (1, 2, 3),
    "numbers of objects a picture may hold, from 1 to 3, equally likely; one given twice is twice "
    "as likely",
    check=_objects_problem,
  ),
  "pairs": Field(
    None,
    "colour-shape pairs a picture may hold. seen: those of training only. unseen: the first "
    "object's never occurs in training, the others' may. None: seen in train, all alike in test",
    kind=str,
    optional=True,
    choices=("seen", "unseen"),
  ),
  "seed": Field(0, "of the whole dataset", least=0, most=2**63 - 1),
  "captions": Field(
    2,
    "paraphrases a picture, no two alike. Neighbours tell the scene from opposite ends: a red "
    "circle above a blue square, a blue square under a crimson disc",
    least=1,
    most=FRAMES,
  ),
  "detail": Field(
    1.0,
    "probability that a caption mentions a size, a colour, a shape, and where things are; or a "
    "dict of these four, size, colour, shape and where, 1 for what is left out. Below 1, captions "
    "are as incomplete as people's (who name things more often than their colours), still true, "
    "but may be the same twice",
    kind=float | dict,
    check=_detail_problem,
  ),
  "arrangements": Field(
    1,
    "examples in a row that say the same of the same objects, otherwise arranged, for tests that a "
    "bag of words fails. 2: relations reversed. 4: also the first two objects' colours exchanged",
    check=lambda value: None if value in (1, 2, 4) else "must be 1, 2 or 4",
  ),
}


def _check(*, split, pairs, objects, arrangements, **fields):
  """ValueError for values that do not fit each other."""
  del fields
  if pairs == "unseen" and split == "train":
    raise ValueError('pairs="unseen" is not for training: use split="test", or pairs=None')
  if arrangements > 1 and 1 in objects:
    raise ValueError(
      f"arrangements={arrangements} needs two objects or more; objects={tuple(objects)} allows one"
    )
  if arrangements == 4 and pairs == "unseen":
    raise ValueError(
      'arrangements=4 exchanges colours, which pairs="unseen" does not allow; use arrangements=2'
    )


class Shapes:
  """Captioned pictures of coloured shapes: {"image": uint8 [S,S,3] RGB, "captions": [str, …],
  "label": int}.

  Its arguments are the fields of SOURCE.

  label is the index in `classnames` (colour and shape) of the scene's first object, which with two
  or three objects a caption need not mention first. Raises ValueError, beginning with the argument,
  if one does not fit.
  """

  classnames = CLASSNAMES

  def __init__(
    self,
    split: str = FIELDS["split"].default,
    examples: int = FIELDS["examples"].default,
    image_size: int = FIELDS["image_size"].default,
    **options,
  ):
    given = {"split": split, "examples": examples, "image_size": image_size, **options}
    options = SOURCE.values(given)
    self.split, self.examples, self.image_size = split, examples, image_size
    self.pairs, self.seed = options["pairs"], options["seed"]
    self.objects, self._per_picture = tuple(options["objects"]), options["captions"]
    self.detail, self.arrangements = _told(options["detail"]), options["arrangements"]
    self._classes = SEEN if self.pairs == "seen" or split == "train" else CLASSNAMES
    self._first_classes = UNSEEN if self.pairs == "unseen" else self._classes

  def __len__(self) -> int:
    return self.examples

  def __getitem__(self, i: int) -> dict:
    scene = self.scene(i)
    first = scene.things[0]
    return {
      "image": pictures.draw(self._draws("image", i), scene, self.image_size),
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
    radii = [scenes.RADII[count][size] * (973 + draws.below(103)) >> 10 for size in sizes]
    place, relations = None, ()
    if count == 1:
      place = draws.choice(PLACE_NAMES)
    else:
      relations = tuple(scenes.relations_of(draws, count))
    if variant & 1:
      relations = tuple((OPPOSITE[name], other) for name, other in relations)
    if variant & 2:
      (a, shape_a), (b, shape_b) = kinds[:2]
      kinds[:2] = (b, shape_a), (a, shape_b)
    spots = scenes.layout(draws, radii, relations, place)
    things = (
      Thing(size, colour, shape, x, y, radius)
      for size, (colour, shape), (x, y), radius in zip(sizes, kinds, spots, radii)
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

  def _captions(self, i, scene):
    draws = self._draws("captions", i)
    order, frame = draws.below(4), draws.below(FRAMES)
    return [
      captions.caption(draws, scene, order + k, (frame + k) % FRAMES, self.detail)
      for k in range(self._per_picture)
    ]


def make_tokenizer(path, vocab_size: int = 107):
  """Trains shapes.model: 67 words, 26 letters, 10 digits, the space, and pad, end and unknown.

  Every word of the grammar is one token; other English falls back to letters.
  """
  dataset = Shapes("train", examples=5000, captions=1, detail=0.7)
  captions = (
    caption for i in range(len(dataset)) for caption in dataset._captions(i, dataset.scene(i))
  )
  text.train_tokenizer(captions, path, vocab_size)


SOURCE = Source(
  "shapes",
  "built-in pictures of one to three objects and captions that say what stands where",
  Shapes,
  fields=FIELDS,
  check=_check,
)
