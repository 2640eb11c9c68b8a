"""Filters of a data spec: examples that are of no use, though they are sound.

What a source knows of its examples without their pictures (`texts`) is filtered when it is opened:
the order, an epoch and the mix are then those of the examples that are left. What only an example
itself tells is filtered when it is read: training takes another one, as for a broken example, but
counts it apart.
"""

from __future__ import annotations

import array
from collections.abc import Mapping
import dataclasses
import logging

import numpy as np

from siglax.config.parts import Field
from siglax.data import images
from siglax.data import names
from siglax.data.numbering import Numbering

logger = logging.getLogger("siglax")


def labels(value: int | str | tuple) -> tuple[int, ...]:
  """The numbers of `label_in`."""
  if isinstance(value, int):
    return (value,)
  found = tuple(map(int, names.split(value))) if isinstance(value, str) else tuple(value)
  if not found or not all(isinstance(label, int) and label >= 0 for label in found):
    raise ValueError
  return found


def _labels_problem(value) -> str | None:
  try:
    labels(value)
  except ValueError:
    return "must be whole numbers, such as '0,3'"
  return None


# Of every data spec.
FIELDS = {
  "min_caption_words": Field(
    None,
    "leaves out captions of fewer words, and examples that have no other",
    kind=int,
    optional=True,
    least=1,
  ),
  "max_pixels": Field(
    None,
    "leaves out pictures of more pixels, by their header, before they are decoded",
    kind=int,
    optional=True,
    least=1,
  ),
  "label_in": Field(
    None,
    "leaves out examples whose label is none of these: a number, a tuple, or with commas between",
    kind=int | str | tuple,
    optional=True,
    check=_labels_problem,
  ),
}


class FilteredOut(ValueError):
  """An example that a filter leaves out; it is not broken."""


@dataclasses.dataclass(frozen=True)
class Rule:
  """The filters of one data spec, None where one is off."""

  min_caption_words: int | None = None
  max_pixels: int | None = None
  label_in: frozenset[int] | None = None

  @classmethod
  def of(cls, spec: Mapping) -> Rule | None:
    """Of a data spec that has been checked; None without filters."""
    given = {field: spec[field] for field in FIELDS if spec.get(field) is not None}
    if "label_in" in given:
      given["label_in"] = frozenset(labels(given["label_in"]))
    return cls(**given) if given else None

  @property
  def fields(self) -> list[str]:
    """Those that are on."""
    return [field for field in FIELDS if getattr(self, field) is not None]

  def kept(self, example: dict) -> dict:
    """The example, with the captions that are kept; FilteredOut for one that is not kept. What the
    example does not hold is not asked for.
    """
    label = example.get("label")
    if self.label_in is not None and (label is None or int(label) not in self.label_in):
      raise FilteredOut(f"its label {label} is not in label_in")
    if self.min_caption_words is not None:
      example = self._with_words(example)
    if self.max_pixels is not None and "image" in example:
      self._check_pixels(example["image"])
    return example

  def _with_words(self, example: dict) -> dict:
    captions = example["captions"]
    long = [k for k, text in enumerate(captions) if len(text.split()) >= self.min_caption_words]
    if not long:
      raise FilteredOut(f"no caption has min_caption_words={self.min_caption_words} words")
    parts = [part for part in ("captions", "caption_weights") if part in example]
    return example | {part: [example[part][k] for k in long] for part in parts}

  def _check_pixels(self, image):
    if isinstance(image, np.ndarray):
      height, width = image.shape[:2]
    elif isinstance(image, bytes) and image:
      width, height = images.read_header(image).size
    else:  # broken; who decodes it says why
      return
    if width * height > self.max_pixels:
      raise FilteredOut(f"it has {width} × {height} pixels, max_pixels={self.max_pixels}")


class Wrapped:
  """Examples made of those of another source, `source`: one for one, where nothing else is said."""

  # Of a source, beside len and [i].
  FORWARDED = (
    "classnames",
    "templates",
    "description",
    "held_bytes",
    "open_shards",
    "read_ahead",
    "prepare_random_access",
    "filtered",
    "at_reading",
  )

  def __init__(self, source):
    self.source = source

  def number(self, i: int) -> int:
    """That of example i in the innermost source."""
    return number(self.source, i)

  def __getattr__(self, name: str):
    if name not in Wrapped.FORWARDED:
      raise AttributeError(f"{type(self).__name__} has no {name}")
    return getattr(self.source, name)

  def __repr__(self):
    return repr(self.source)


class Filtered(Wrapped):
  """The examples of a source that a rule keeps, so far as `source.texts()` tells; [i] raises
  FilteredOut for others.

  rule: what it is filtered by. at_reading: the fields that only an example tells.
  filtered: how many examples are left out already. An example that is left costs 8 bytes.
  """

  def __init__(self, source, rule: Rule, numbers: np.ndarray | None = None):
    super().__init__(source)
    self.rule = rule
    if numbers is None:
      numbers = _kept(source, rule)
    self._numbers = numbers
    self.filtered = 0 if numbers is None else len(source) - len(numbers)
    self.at_reading = [f for f in rule.fields if f == "max_pixels" or numbers is None]
    if getattr(source, "shard_sizes", None) is not None:
      self.shard_sizes = source.shard_sizes
      if numbers is not None:
        starts = np.searchsorted(numbers, Numbering(source.shard_sizes).starts)
        self.shard_sizes = np.diff(starts).astype(np.int64)

  def __len__(self) -> int:
    return len(self.source) if self._numbers is None else len(self._numbers)

  def __getitem__(self, i: int) -> dict:
    return self.rule.kept(self.source[self.number(i)])

  def number(self, i: int) -> int:
    """That of example i in the source."""
    if not 0 <= i < len(self):
      raise IndexError(f"example {i} of {len(self)}")
    return i if self._numbers is None else int(self._numbers[i])

  def __reduce__(self):
    return Filtered, (self.source, self.rule, self._numbers)


def number(source, i: int) -> int:
  """What example i of a source is called in messages: its number before any is filtered out."""
  return source.number(i) if isinstance(source, Wrapped) else i


def innermost(source):
  """The source that filters and noise have been laid around."""
  return innermost(source.source) if isinstance(source, Wrapped) else source


def _kept(source, rule: Rule) -> np.ndarray | None:
  """int64, the numbers of the examples whose texts the rule keeps, and of those that are broken.
  None where the source does not know the texts.
  """
  texts = source.texts() if hasattr(source, "texts") else None
  if texts is None:
    return None
  found = array.array("q")
  for i, example in enumerate(texts):
    try:
      if example is not None:
        rule.kept(example)
      found.append(i)
    except FilteredOut:
      pass
  return np.array(found, np.int64)


def opened(source, spec: Mapping, where: str):
  """The source, filtered where its spec says so; the log tells what is left.

  where: what stands before the name of a field in the log. ValueError where nothing is left.
  """
  if (rule := Rule.of(spec)) is None:
    return source
  found = Filtered(source, rule)
  fields = ", ".join(f"{field}={spec[field]!r}" for field in rule.fields)
  if not len(found):
    raise ValueError(f"{fields}: none of the {len(source):,} examples is left")
  logger.info(
    "%s%s: %s of %s examples are filtered out%s",
    where,
    fields,
    f"{found.filtered:,}",
    f"{len(source):,}",
    f"; {', '.join(found.at_reading)} when an example is read" if found.at_reading else "",
  )
  return found


def refuse_at_reading(source, what: str):
  """ValueError where filters would leave out examples that are read. what: their use."""
  if getattr(source, "at_reading", ()):
    raise ValueError(
      f"{source!r}: {', '.join(source.at_reading)} can only be told of an example that is read, "
      f"and {what} reads all that there are; siglax convert writes those that are left"
    )
