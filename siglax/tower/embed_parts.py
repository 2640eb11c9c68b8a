"""The parts of a file of embeddings that a process makes: read, embedded and written at once."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import concurrent.futures
import contextlib
import dataclasses
import logging
import pathlib
from typing import Any

import jax
import numpy as np

from siglax import config as config_lib
from siglax.data import embedding_files
from siglax.data import filters
from siglax.data import parts as parts_lib
from siglax.data import pipeline
from siglax.data import prepared
from siglax.data import reading
from siglax.data.broken import Skipped
from siglax.devices import mesh as mesh_lib
from siglax.tower import embedder

logger = logging.getLogger("siglax")


@dataclasses.dataclass(frozen=True)
class Wanted:
  """pictures, texts, tokens: whether these are embedded. dtype: of what is stored. batch: examples
  at a time over the devices of a process. limit: the share of broken ones that is allowed.
  """

  pictures: bool
  texts: bool
  tokens: bool
  dtype: str
  batch: int
  limit: float


def make(
  tower,
  source,
  wanted: Wanted,
  parts: parts_lib.Parts,
  spans: dict[int, range],
  go_on: Callable[[], None],
):
  """Makes the parts of these numbers that are not there yet.

  spans: the examples of each. go_on: called now and then; may raise. The record of a part has
  "examples", "skipped" as `Skipped.listed`, "filtered", "width" and "tokens". Raises ValueError
  for more broken examples than are allowed of these parts.
  """
  bad = _Bad(source, wanted.limit, sum(map(len, spans.values())))
  todo = {}
  for number, record in zip(spans, parts.records(spans)):
    if record is None:
      todo[number] = spans[number]
    else:
      bad.add_record(record["skipped"], len(spans[number]))
  if len(todo) < len(spans):
    logger.info("going on: %s of %s parts are there", len(spans) - len(todo), len(spans))
  progress = reading.Progress(sum(map(len, todo.values())))
  # While a part is written, and sent to its bucket, the next one is embedded.
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    writing = None
    for number, rows, record in _embedded(tower, source, wanted, todo, bad):
      go_on()
      progress.add(len(todo[number]))
      if writing is not None:
        writing.result()
      writing = pool.submit(parts.make, number, lambda file, x=rows, r=record: _write(file, x, r))
    if writing is not None:
      writing.result()


def _write(file: pathlib.Path, rows: list[dict], record: dict) -> dict:
  writer = embedding_files.ArrayRecordWriter(file)
  writer.write(rows)
  writer.close({})
  return record


class _Bad:
  """Counts the broken examples of a process, and judges them."""

  def __init__(self, source, limit: float, count: int):
    self._source, self._limit, self._count = source, limit, count
    self._total = self._seen = 0

  def add_record(self, skipped: list[dict], examples: int):
    self._total += sum(found["count"] for found in skipped)
    self._seen += examples

  def seen(self, i: int, said: str | None) -> int:
    """Example i was read; said: why it is broken. Its number before any is filtered out."""
    self._seen += 1
    number = filters.number(self._source, i)
    if said is None:
      return number
    self._total += 1
    logger.warning("--data: example %d is broken and skipped: %s", number, said)
    if self._total > self._limit * self._count:
      raise ValueError(
        f"--data: {self._total} of the first {self._seen} examples are broken, the last, example "
        f"{number}: {said}; repair the data, or raise max_bad_fraction={self._limit} (of "
        f"{self._count}) in --data DATA:max_bad_fraction=0.1"
      )
    return number


def _embedded(
  tower, source, wanted: Wanted, spans: dict[int, range], bad: _Bad
) -> Iterator[tuple[int, list[dict], dict]]:
  """(number, rows, record) of each part."""
  compute = _program(tower, wanted)
  rows, width, patches = [], None, None
  for (number, examples, counted), found in embedder.in_turn(
    compute, tower.mesh, _batches(tower, source, wanted, spans, bad)
  ):
    made = _in_rows(examples, found)
    for row in made[:1]:
      name = "image_embedding" if wanted.pictures else "text_embeddings"
      width = row[name].shape[-1]
      patches = list(row["image_tokens"].shape) if wanted.tokens else None
    rows += made
    if counted is not None:
      yield number, rows, counted | {"examples": len(rows), "width": width, "tokens": patches}
      rows = []


def _program(tower, wanted: Wanted):
  """{"image": pictures, "tokens": [tokens, …]} → {name: embeddings}, dispatched."""
  model, whole = tower.model, mesh_lib.replicated(tower.mesh)
  dtype = embedding_files.DTYPES[wanted.dtype]

  def of_images(params, images):
    found = {"image_embedding": model.embed_image(params, images)}
    if wanted.tokens:
      found["image_tokens"] = model.image_tokens(params, images)
    return jax.tree.map(lambda x: x.astype(dtype), found)

  images = jax.jit(of_images, out_shardings=whole)
  texts = jax.jit(lambda p, x: model.embed_text(p, x).astype(dtype), out_shardings=whole)

  def compute(batch):
    found = {}
    if "image" in batch:
      found |= images(tower.params, batch["image"])
    if "tokens" in batch:
      found["texts"] = [texts(tower.params, tokens) for tokens in batch["tokens"]]
    return found

  return compute


def _batches(tower, source, wanted: Wanted, spans: dict[int, range], bad: _Bad):
  """((part, its examples in this batch, what was left out of it with its last batch and None
  before), {"image": …, "tokens": […]}) of each batch.

  A batch is full but for the last of a part, whatever was left out, and holds examples of one part,
  so that a part is the same bytes whoever makes it.
  """
  image = tower.config.image if wanted.pictures else None
  read = prepared.Examples(source, image, tower.text if wanted.texts else None)
  threads, workers = pipeline.loader_threads(config_lib.default(), [source])
  batches = prepared.batches(
    read, list(spans.values()), wanted.batch, threads=threads, workers=workers
  )
  with contextlib.closing(batches):
    for number, span in spans.items():
      yield from _of_part(number, span, wanted.batch, batches, bad)


def _of_part(number: int, span: range, size: int, batches, bad: _Bad):
  """What `_batches` says, of one part."""
  skipped, filtered, held = Skipped(), 0, _Held(size)
  for start in range(0, len(span), size):
    images, rests = next(batches)
    good = []
    for row, rest in enumerate(rests):
      said = rest.said if isinstance(rest, prepared.LeftOut) else None
      i = bad.seen(span[start + row], said)
      if said is not None:
        skipped.add(i, said)
      elif isinstance(rest, prepared.LeftOut):
        filtered += 1
      else:
        good.append(row)
    held.add(images, rests, good)
    while held.full:
      examples, batch = held.take()
      ended = start + size >= len(span) and not held.examples
      counted = {"skipped": skipped.listed(), "filtered": filtered} if ended else None
      yield (number, examples, counted), batch
      if ended:
        return
  counted = {"skipped": skipped.listed(), "filtered": filtered}
  examples, batch = held.take() if held.examples else ([], {})
  yield (number, examples, counted), batch


class _Held:
  """Examples that wait until they fill a batch."""

  def __init__(self, size: int):
    self._size, self.examples = size, []
    self._images: Any = None

  @property
  def full(self) -> bool:
    return len(self.examples) >= self._size

  def add(self, images: np.ndarray | None, rests: list, good: Sequence[int]):
    """good: the rows that are kept."""
    if images is not None:
      kept = images if len(good) == len(images) else images[good]
      self._images = np.concatenate([self._images, kept]) if self.examples else kept
    self.examples += [rests[row] for row in good]

  def take(self) -> tuple[list[dict], dict]:
    """(examples, their batch), whose last row is repeated up to its size."""
    examples, batch = self.examples[: self._size], {}
    if self._images is not None:
      batch["image"] = self._padded(self._images[: self._size])
      self._images = self._images[self._size :]
    if "tokens" in examples[0]:
      tokens = np.concatenate([example["tokens"] for example in examples])
      # One at least: their width is asked for where none has a caption.
      starts = range(0, max(1, len(tokens)), self._size)
      batch["tokens"] = [self._padded(tokens[start : start + self._size]) for start in starts]
    self.examples = self.examples[self._size :]
    return examples, batch

  def _padded(self, x: np.ndarray) -> np.ndarray:
    if len(x) == self._size:
      return x
    mode = "edge" if len(x) else "constant"
    return np.pad(x, [(0, self._size - len(x))] + [(0, 0)] * (x.ndim - 1), mode=mode)


def _in_rows(examples: list[dict], found: dict) -> list[dict]:
  """The rows of a file of embeddings."""
  rows = [{k: v for k, v in example.items() if k != "tokens"} for example in examples]
  texts = found.pop("texts", None)
  for name, x in found.items():
    for row, value in zip(rows, x):
      row[name] = value
  if texts is not None:
    ends = np.cumsum([len(row["captions"]) for row in rows])
    for row, part in zip(rows, np.split(np.concatenate(texts), ends)):
      row["text_embeddings"] = part
  return rows
