"""Examples as embedding wants them, prepared by the threads and workers of the loader."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import types

import numpy as np

from siglax.config import imports
from siglax.data import filters
from siglax.data import images as images_lib
from siglax.data import loading
from siglax.data.batching import Batches
from siglax.data.broken import NOT_BROKEN
from siglax.data.broken import reason

# Batches that are made before they are asked for.
BUFFER = 2


@dataclasses.dataclass(frozen=True)
class LeftOut:
  """In place of an example. said: why it is broken; None for one that a filter leaves out."""

  said: str | None = None


class Pictures:
  """Picture i of files, prepared as in evaluation, as (picture, {}). image: config.image."""

  def __init__(self, paths: Sequence, image):
    self._paths, self._image = paths, types.SimpleNamespace(**image.to_dict())

  @property
  def blank(self) -> np.ndarray:
    return images_lib.blank(self._image)

  def __call__(self, i: int) -> tuple[np.ndarray, dict]:
    try:
      data = images_lib.read(self._paths[i], self._image)
    except OSError as e:
      raise ValueError(e.strerror or str(e)) from e
    return images_lib.prepare(data, self._image), {}


class Examples:
  """Example i of a source as (picture or None, what else it has). Picklable.

  image: config.image, by which pictures are prepared as in evaluation; None leaves them out, and
  they are not even read where the source can do without. text: list of str → int32 [n, L], of
  which the captions are "tokens"; None for none.
  """

  def __init__(self, source, image, text):
    self._source, self._text = source, text
    self._image = None if image is None else types.SimpleNamespace(**image.to_dict())
    self._captions = None if image is not None else getattr(source, "captions", None)

  @property
  def blank(self) -> np.ndarray | None:
    return None if self._image is None else images_lib.blank(self._image)

  def __call__(self, i: int) -> tuple[np.ndarray | None, dict]:
    """Raises what a broken example raises, and FilteredOut."""
    example = self._source[i] if self._captions is None else {"captions": self._captions(i)}
    captions = list(example["captions"])
    "".join(captions).encode()  # raises for what no file of text can hold
    kinds = {"label": int, "weight": float, "key": str}
    rest = {"captions": captions} | {
      name: kind(example[name]) for name, kind in kinds.items() if example.get(name) is not None
    }
    if self._text is not None:
      rest["tokens"] = self._text(captions)
    if self._image is None:
      return None, rest
    return images_lib.prepare(example["image"], self._image), rest


class OfExamples:
  """The pictures of some examples, which `siglax.tower.Embedder` asks for by a number, or reads by
  workers; in `rest` {number: what else the example has} of those that this process has read.

  examples: as EvalExamples. indices: of the examples with the numbers 0, 1, ….
  """

  def __init__(self, examples, indices: Sequence[int]):
    self.read, self.rest = _Read(examples, indices), {}

  def __call__(self, k: int) -> np.ndarray:
    picture, self.rest[k] = self.read(k)
    return picture


class _Read:
  def __init__(self, examples, indices):
    self._examples, self._indices = examples, indices

  @property
  def blank(self) -> np.ndarray:
    return self._examples.blank

  def __call__(self, k: int) -> tuple[np.ndarray, dict]:
    example = dict(self._examples[self._indices[k]])
    return example.pop("image"), example


class _Elements:
  """Element k of the loader: row k % size of span k // size, "image" and "rest". Rows beyond the
  end of a span, and −1 in place of an example, are blank.
  """

  def __init__(self, read, blank, spans: Sequence[Sequence[int]], size: int):
    self._read, self._blank, self._spans, self._size = read, blank, spans, size

  def __reduce__(self):
    # The source may be of an imported file, which a worker imports first.
    return loading.in_worker, (type(self), imports.contents()), self.__dict__

  def __getitem__(self, k: int) -> dict:
    span, place = divmod(k, self._size)
    image, rest = self._blank, LeftOut()
    if span < len(self._spans) and place < len(self._spans[span]):
      if (i := int(self._spans[span][place])) >= 0:
        image, rest = self._example(i)
    return {"rest": rest} if self._blank is None else {"image": image, "rest": rest}

  def _example(self, i: int):
    try:
      return self._read(i)
    except NOT_BROKEN:
      raise
    except filters.FilteredOut:
      return self._blank, LeftOut()
    except Exception as e:  # whatever a source, a decoder or a tokenizer raises
      return self._blank, LeftOut(reason(e))


def batches(
  read, spans: Sequence[Sequence[int]], rows: int, *, threads: int, workers: int = 0
) -> Iterator[tuple[np.ndarray | None, list]]:
  """(pictures [rows, …] or None, of each row what else the example has or LeftOut) of the examples
  of each span in turn, −1 for none, `rows` at a time; fewer in the last of a span, whose pictures
  go on with blank ones.

  read: `Examples` or `Pictures`, or what is called so and has `blank`. threads, workers: as of
  `Batches`. Raises what says nothing of the example itself (`broken.NOT_BROKEN`).
  """
  longest = max(map(len, spans), default=0)
  # The same number of batches in each span, so that a row's span is a formula.
  size = -(-longest // rows) * rows
  elements = _Elements(read, read.blank, spans, size)
  made = Batches(elements, 0, rows, rows, threads=threads, workers=workers, buffer=BUFFER)
  try:
    for span in spans:
      for start in range(0, size, rows):
        batch = next(made)
        if start < len(span):
          yield batch.get("image"), batch["rest"][: len(span) - start].tolist()
  finally:
    made.close()
