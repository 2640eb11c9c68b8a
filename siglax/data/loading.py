"""One example of a training batch: read, augmented, tokenized, and replaced where it is broken."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
import types

import numpy as np

from siglax.config import imports
from siglax.data import files
from siglax.data import filters
from siglax.data import images
from siglax.data import storage
from siglax.data.broken import MAX_REPLACEMENTS
from siglax.data.broken import reason
from siglax.data.labels import LABEL_STRIDE
from siglax.data.labels import NO_LABEL

# Examples that may be drawn in place of one: of filters that keep a hundredth, more would be needed
# once in 10^43 times.
MAX_FILTERED = 10_000
MAX_WEIGHT = float(np.finfo(np.float32).max)


class ExampleLoader:
  """Example i of one source, augmented and tokenized: a pure function of i and its random numbers.

  Runs in the threads, or is pickled to the workers. index: of the source in config.data;
  first_label: added to its labels; need_labels: an example without one is broken. first_example:
  the number of its first example among those of all sources. captions: so many are drawn of an
  example; of more than one its tokens are [captions, L].
  """

  def __init__(
    self,
    index,
    source,
    first_label,
    need_labels,
    image_config,
    text,
    first_example=0,
    captions=1,
  ):
    self.source, self._first_example = source, first_example
    self._index, self._first_label, self._need_labels = index, first_label, need_labels
    self._image_config = types.SimpleNamespace(
      **image_config.to_dict()
    )  # a ConfigDict is slow to read
    self._text, self._captions = text, captions

  def __reduce__(self):
    # The arguments come before the state, whose source or tokenizer may be of an imported file.
    return in_worker, (type(self), imports.contents()), self.__dict__

  def __call__(self, i: int, rng: np.random.Generator) -> dict:
    """The example, or the first sound one drawn instead: as a row of `TrainBatches`, with "source",
    "index", "bad" and "filtered"; "example" is its number among all that filters have left.
    """
    bad, broken = np.full(MAX_REPLACEMENTS, -1, np.int64), 0
    for filtered in range(MAX_FILTERED):
      try:
        return self._example(i, rng) | {
          "source": np.int32(self._index),
          "index": np.int64(filters.number(self.source, i)),
          "example": np.int64(self._first_example + i),
          "bad": bad,
          "filtered": np.int32(filtered - broken),
        }
      except (storage.Unreachable, MemoryError):
        # The example is sound; another in its place would depend on the day.
        raise
      except files.DamagedGroup as e:
        # Thousands of rows are lost, and no spec has allowed that.
        raise files.DamagedGroup(f"config.data.{self._index}.{e}") from None
      except filters.FilteredOut as e:
        error = e
      except Exception as e:  # whatever a source, a decoder or a tokenizer raises
        bad[broken] = filters.number(self.source, i)
        broken += 1
        if broken == MAX_REPLACEMENTS:
          raise self._all_broken(bad, e) from e
      i = int(rng.integers(len(self.source)))
    raise ValueError(
      f"config.data.{self._index}: {MAX_FILTERED:,} examples in a row are filtered out, the last "
      f"because {error}; loosen the filters, or let siglax convert write what they leave"
    )

  def _all_broken(self, bad, error) -> ValueError:
    return ValueError(
      f"config.data.{self._index}: {MAX_REPLACEMENTS} examples in a row are broken, first example "
      f"{bad[0]}, last "
      f"{bad[-1]}: {reason(error)}; repair the data (config.data.{self._index}.max_bad_fraction "
      "allows single ones)"
    )

  @property
  def reads_rows(self) -> bool:
    """Whether several examples are read at once: of a source of embeddings."""
    return hasattr(self.source, "rows") and self._captions == 1

  def rows(self, numbers: Sequence[int], draw: Callable[[int], float]) -> dict[str, np.ndarray]:
    """Several examples at once, each as from a call. Raises where one of them is broken.

    draw: row → the first random number of its generator.
    """
    found, count = self.source.rows(numbers), len(numbers)
    texts = []
    for row, listed in enumerate(found["captions"]):
      captions = [caption for caption in listed if caption.strip()]
      # None of them is an IndexError.
      texts.append(captions[int(draw(row) * len(captions)) if len(captions) > 1 else 0])
    embedding, label, weight = found["image_embedding"], found["label"], found["weight"]
    sound = np.isfinite(embedding).all() and ((0 <= weight) & (weight <= MAX_WEIGHT)).all()
    if not sound or label.max() >= LABEL_STRIDE or self._need_labels and label.min() < 0:
      raise ValueError("one of the examples is broken")
    return {
      "image_embedding": embedding,
      "tokens": self._text(texts),
      "label": np.where(label < 0, NO_LABEL, self._first_label + label).astype(np.int32),
      "weight": weight.astype(np.float32),
      "source": np.full(count, self._index, np.int32),
      "index": np.array(numbers, np.int64),
      "example": self._first_example + np.array(numbers, np.int64),
      "bad": np.full((count, MAX_REPLACEMENTS), -1, np.int64),
      "filtered": np.zeros(count, np.int32),
    }

  def why_bad(self, number: int) -> str:
    """Of an example by its number in the source, before any is filtered out."""
    try:
      self._loaded(filters.innermost(self.source)[number], np.random.default_rng(0))
    except Exception as e:
      return reason(e)
    return "it could not be read the first time"

  def _example(self, i, rng):
    return self._loaded(self.source[i], rng)

  def _loaded(self, example, rng):
    captions = _drawn(example, rng, self._captions)
    picture = _embedding(example) if "image_embedding" in example else self._augmented(example, rng)
    weight = example.get("weight", 1.0)
    if not 0 <= weight <= MAX_WEIGHT:
      raise ValueError(
        f"weight={weight} is not a number from 0 to {MAX_WEIGHT:.3g}, float32's largest"
      )
    return {
      **picture,
      "tokens": self._text(captions) if self._captions > 1 else self._text(captions)[0],
      "label": np.int32(self._label(example.get("label"))),
      "weight": np.float32(weight),
    }

  def _augmented(self, example, rng):
    return {"image": images.augment(example["image"], rng, self._image_config)}

  def _label(self, label):
    label = label if label is None else int(label)  # NumPy's small integers would overflow
    if label is None or label < 0:
      if self._need_labels:
        raise ValueError("no label")
      return NO_LABEL
    if label >= LABEL_STRIDE:
      raise ValueError(f"label={label} must be below {LABEL_STRIDE}")
    return self._first_label + label


def in_worker(kind: type, imported):
  """An object without its state, in a process that has imported what its parent had."""
  imports.import_again(imported)
  return object.__new__(kind)


def _drawn(example: dict, rng: np.random.Generator, count: int) -> list[str]:
  """So many of the captions: each is as likely, or by "caption_weights". None comes again before
  all have come.
  """
  weights = example.get("caption_weights") or [1.0] * len(example["captions"])
  found = [(c, w) for c, w in zip(example["captions"], weights, strict=True) if c.strip()]
  if not found:
    raise ValueError("no caption")
  drawn, left = [], []
  for _ in range(count):
    left = left or list(found)
    drawn.append(left.pop(_place(left, rng.random(), "caption_weights" in example))[0])
  return drawn


def _place(found: list[tuple[str, float]], number: float, weighted: bool) -> int:
  """Of the caption that a number in [0, 1) stands for."""
  if not weighted:
    return int(number * len(found))
  number *= sum(weight for _, weight in found)
  for place, (_, weight) in enumerate(found):
    number -= weight
    if number < 0:
      break
  return place


def _embedding(example):
  if not np.isfinite(example["image_embedding"]).all():
    raise ValueError("the image embedding is not finite")
  return {"image_embedding": example["image_embedding"]}
