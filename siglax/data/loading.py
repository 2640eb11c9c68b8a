"""One example of a training batch: read, augmented, tokenized, and replaced where it is broken."""

from __future__ import annotations

import types

import numpy as np

from siglax.config import imports
from siglax.data import files
from siglax.data import images
from siglax.data import storage
from siglax.data.broken import MAX_REPLACEMENTS
from siglax.data.broken import reason
from siglax.data.labels import LABEL_STRIDE
from siglax.data.labels import NO_LABEL

MAX_WEIGHT = float(np.finfo(np.float32).max)


class ExampleLoader:
  """Example i of one source, augmented and tokenized: a pure function of i and its random numbers.

  Runs in the threads, or is pickled to the workers. index: of the source in config.data;
  first_label: added to its labels; need_labels: an example without one is broken.
  """

  def __init__(self, index, source, first_label, need_labels, image_config, text):
    self.source = source
    self._index, self._first_label, self._need_labels = index, first_label, need_labels
    self._image_config = types.SimpleNamespace(
      **image_config.to_dict()
    )  # a ConfigDict is slow to read
    self._text = text

  def __reduce__(self):
    # The arguments come before the state, whose source or tokenizer may be of an imported file.
    return _in_worker, (type(self), imports.contents()), self.__dict__

  def __call__(self, i: int, rng: np.random.Generator) -> dict:
    """The example, or the first sound one drawn instead: as a row of `TrainBatches`, with "source",
    "index" and "bad".
    """
    bad = np.full(MAX_REPLACEMENTS, -1, np.int64)
    first, error = i, None
    for attempt in range(MAX_REPLACEMENTS):
      try:
        return self._example(i, rng) | {
          "source": np.int32(self._index),
          "index": np.int64(i),
          "bad": bad,
        }
      except storage.Unreachable:
        # The example is sound; another in its place would depend on the day.
        raise
      except files.DamagedGroup as e:
        # Thousands of rows are lost, and no spec has allowed that.
        raise files.DamagedGroup(f"config.data.{self._index}.{e}") from None
      except Exception as e:  # whatever a source, a decoder or a tokenizer raises
        error = e
      bad[attempt] = i
      i = int(rng.integers(len(self.source)))
    raise ValueError(
      f"config.data.{self._index}: {MAX_REPLACEMENTS} examples in a row are broken, first example "
      f"{first}, last "
      f"{bad[-1]}: {reason(error)}; repair the data (config.data.{self._index}.max_bad_fraction "
      "allows single ones)"
    ) from error

  def why_bad(self, i: int) -> str:
    try:
      self._example(i, np.random.default_rng(0))
    except Exception as e:
      return reason(e)
    return "it could not be read the first time"

  def _example(self, i, rng):
    example = self.source[i]
    captions = [caption for caption in example["captions"] if caption.strip()]
    if not captions:
      raise ValueError("no caption")
    caption = captions[int(rng.random() * len(captions))]
    picture = _embedding(example) if "image_embedding" in example else self._augmented(example, rng)
    weight = example.get("weight", 1.0)
    if not 0 <= weight <= MAX_WEIGHT:
      raise ValueError(
        f"weight={weight} is not a number from 0 to {MAX_WEIGHT:.3g}, float32's largest"
      )
    return {
      **picture,
      "tokens": self._text([caption])[0],
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


def _in_worker(kind: type, imported):
  """An object without its state, in a process that has imported what its parent had."""
  imports.import_again(imported)
  return object.__new__(kind)


def _embedding(example):
  if not np.isfinite(example["image_embedding"]).all():
    raise ValueError("the image embedding is not finite")
  return {"image_embedding": example["image_embedding"]}
