"""From sources to batches: the order of the examples, their augmentation, and what is done about
broken ones.

Element k of the run is fixed by the config alone: which source it comes from (`Mix`), which example
(the source's shuffle, anew each epoch), and its random numbers (a generator seeded by the seed, the
source and k). So the batches are the same, bit for bit, for any number of threads, workers and
processes, and after any resume. A step's state is its number: step s holds elements s·batch_size to
(s + 1)·batch_size. Process p of P has the p-th of P equal blocks of them, as its devices have of
the global batch where the mesh lists devices by process. (Elsewhere rows are in another order, the
batch is the same.)
"""

from __future__ import annotations

from collections.abc import Iterator
import itertools
import logging
import pathlib
import sys

import numpy as np

from siglax.data import order
from siglax.data import sources as sources_lib
from siglax.data.batching import Batches
from siglax.data.broken import too_many_bad
from siglax.data.elements import Elements
from siglax.data.labels import check_labels
from siglax.data.labels import first_labels
from siglax.data.loading import ExampleLoader
from siglax.devices import cores
from siglax.devices import host

logger = logging.getLogger("siglax")

# Up to so many cores the threads of one process keep busy; see `loader_threads`.
FEW_CORES = 4
WORKER_THREADS = 2
# What all workers may hold of the sources, as a share of the machine's memory, and what each holds
# of a source that does not say: bytes an example.
WORKERS_MEMORY, INDEX_BYTES = 0.1, 32


def open_data(config) -> list:
  """The sources of config.data, in its order.

  Raises ValueError in one line for one that cannot be read, or has no labels while
  config.loss.positives is "label".
  """
  sources = [
    sources_lib.open_source(spec, f"config.data.{i}") for i, spec in enumerate(config.data)
  ]
  if config.loss.positives == "label":
    check_labels(sources)
  return sources


def num_examples(sources: list) -> int:
  """Examples of one epoch: all of all sources, whatever their weights in the mix."""
  return sum(map(len, sources))


def train_batches(config, text, **where) -> TrainBatches:
  """Endless batches of this process from a step on; see `TrainBatches`."""
  return TrainBatches(config, text, **where)


class TrainBatches:
  """Endless iterator of this process's rows of the training batches, b = batch_size / process_count
  a step.

  {"image": uint8 [b, S, S, 3], "tokens": int32 [b, L], "label": int32 [b], "weight": float32 [b]}

  Of precomputed embeddings "image_embedding": float32 [b, d] takes the place of "image".

  config: data, loader, image, batch_size, seed and loss.positives are read.
  text: list of str → int32 [N, L].
  start_step: the first batch is that of this step, as if all before had been drawn.
  sources: of `open_data(config)`, when already open.
  counts: the `counts` of a run that stopped, from which bad and drawn go on.
  numbered: batches have "example": int32 [b], the number of each among the examples of all sources
  in their order, without those that a filter left out when a source was opened.

  One caption of each example is drawn. label is −1 where there is none; sources with the same
  classnames share their classes, and any others are LABEL_STRIDE apart, so that a label means one
  class. An example that cannot be read or decoded, has no caption, or no label while
  config.loss.positives is "label", is replaced by another one of its source, logged by name the
  first time, and counted.

  bad, drawn, filtered: by source the examples that were broken, those drawn in all without the
  filtered, and those that filters left out when they were read (siglax/data/filters.py), by this
  process.
  last: (sources, indices) of the examples in the rows of the last batch; these are their numbers
  before any is filtered out.

  Raises ValueError at the start for a batch that does not divide and as `open_data`, from
  `__next__` when the examples drawn show that more than a spec's max_bad_fraction are broken; see
  `too_many_bad`.
  """

  def __init__(
    self,
    config,
    text,
    *,
    start_step=0,
    process_index=0,
    process_count=1,
    sources=None,
    counts=None,
    numbered=False,
  ):
    if config.batch_size % process_count:
      raise ValueError(
        f"config.batch_size={config.batch_size} is not divisible by the {process_count} processes"
      )
    sources = open_data(config) if sources is None else sources
    _check_memory(config, process_count)
    self._limits = [
      sources_lib.MAX_BAD_FRACTION if limit is None else limit
      for limit in (spec.get("max_bad_fraction") for spec in config.data)
    ]
    self._loaders = _loaders(config, text, sources)
    self._numbered = numbered
    if process_index == 0:
      _warn_of_repeats(config, sources)
    counts = counts or {}
    self.bad, self.drawn, self.filtered = (
      list(counts.get(name) or [0] * len(sources)) for name in ("bad", "drawn", "filtered")
    )
    self.last = [], []
    self._first_bad = {}  # by source: (example, reason)
    self._named = set()
    self._error = None  # that ended the batches
    rows = config.batch_size // process_count
    threads, workers = loader_threads(config, sources)
    self._iterator = Batches(
      Elements(config, self._loaders),
      start_step * config.batch_size + process_index * rows,
      rows,
      config.batch_size,
      threads=threads,
      workers=workers,
      buffer=config.loader.buffer,
    )

  @property
  def counts(self) -> dict[str, list[int]]:
    """{"bad", "drawn", "filtered"}, each by source, which JSON can hold."""
    return {"bad": list(self.bad), "drawn": list(self.drawn), "filtered": list(self.filtered)}

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    if self._error is not None:  # never StopIteration, as if endless data were over
      raise self._error
    if self._iterator is None:
      raise StopIteration
    try:
      batch = next(self._iterator)
      source, index = batch.pop("source"), batch.pop("index")
      self._count_filtered(source, batch.pop("filtered"))
      self._count(source, batch.pop("bad"))
      self.last = source.tolist(), index.tolist()
      example = batch.pop("example")
      if self._numbered:
        batch["example"] = example.astype(np.int32)
    except BaseException as e:
      self._error = e
      self.close()
      raise self._error
    return batch

  def close(self):
    """Stops workers, and threads with the example that each is at, for good."""
    if self._iterator is not None:
      self._iterator.close()
      self._iterator = None

  def _count_filtered(self, source, filtered):
    """filtered: int32 [b], the examples that were filtered out in place of each row."""
    counts = np.bincount(source, filtered, len(self.filtered)).astype(int).tolist()
    for k, count in enumerate(counts):
      if count and not self.filtered[k]:
        logger.info(
          "config.data.%d: examples that its filters leave out when they are read are replaced by "
          "others, and counted: siglax inspect --run tells how many",
          k,
        )
    self.filtered = [before + count for before, count in zip(self.filtered, counts)]

  def _count(self, source, bad):
    """source: int32 [b]; bad: int64 [b, MAX_REPLACEMENTS], the broken examples each row replaces,
    then −1.
    """
    counts = np.bincount(source, minlength=len(self.bad))
    self.drawn = [drawn + int(n) for drawn, n in zip(self.drawn, counts)]
    for row in np.flatnonzero(bad[:, 0] >= 0):
      for example in bad[row][bad[row] >= 0].tolist():
        self._count_bad(int(source[row]), example)
    for k in sorted(set(source[bad[:, 0] >= 0].tolist())):
      if too_many_bad(self.bad[k], self.drawn[k], limit := self._limits[k]):
        example, reason = self._first_bad[k]
        raise ValueError(
          f"config.data.{k}: {self.bad[k]} of {self.drawn[k]} examples drawn are broken, first "
          f"example {example}: "
          f"{reason}; repair the data, or raise config.data.{k}.max_bad_fraction={limit}"
        )

  def _count_bad(self, k, example):
    self.bad[k] += 1
    self.drawn[k] += 1
    if (k, example) not in self._named:
      self._named.add((k, example))
      reason = self._loaders[k].why_bad(example)
      self._first_bad.setdefault(k, (example, reason))
      logger.warning(
        "config.data.%d: example %d is broken and replaced by another: %s", k, example, reason
      )


def loader_threads(config, sources) -> tuple[int, int]:
  """(threads, workers) of this process: those of config.loader, or, where they are None, what suits
  its cores.

  Threads of one process take turns at Python's lock. Of JPEGs of 500×375 four threads made 2,400 a
  second, eight 1,900, and eight workers of one thread each 4,700, with eight cores beside an H200
  (benchmarks/data.py). So many cores are shared by workers of a few threads each, where there is
  memory for what each worker holds of the sources. A worker starts from the program that its parent
  runs, so only a `siglax` command, which does nothing when it is imported, starts some by itself.
  """
  loader, count = config.loader, cores.usable()
  workers = loader.workers
  if workers is None:
    workers = 0
    if loader.threads is None and count > FEW_CORES and _is_command():
      held = sum(getattr(source, "held_bytes", INDEX_BYTES * len(source)) for source in sources)
      allowed = int(WORKERS_MEMORY * host.memory() // max(held, 1))
      workers = min(count // WORKER_THREADS, allowed)
  return loader.threads or max(1, count // max(1, workers)), workers


def _is_command() -> bool:
  main = sys.modules["__main__"]
  spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None) or ""
  return (spec.name if spec else pathlib.Path(file).name).partition(".")[0] == "siglax"


def _check_memory(config, process_count):
  """ValueError for batches that this machine's memory cannot hold; a loader that tries does not
  answer any more.
  """
  pictures = config.batch_size // process_count * config.image.size**2 * 3
  memory = host.memory()
  if pictures > memory:
    raise ValueError(
      f"config.batch_size={config.batch_size} of {config.image.size}×{config.image.size} pixels "
      f"are {pictures / 2**30:.0f} GiB in "
      f"each of {process_count} processes, and this machine has {memory / 2**30:.0f} GiB; use a "
      "smaller one"
    )


def _loaders(config, text, sources) -> list[ExampleLoader]:
  """What loads the examples of each source."""
  need_labels = config.loss.positives == "label"
  first_examples = itertools.accumulate(map(len, sources), initial=0)
  return [
    ExampleLoader(
      k, source, first_label, need_labels, config.image, text, first_example, config.text.captions
    )
    for k, (source, first_label, first_example) in enumerate(
      zip(sources, first_labels(sources), first_examples)
    )
  ]


def _warn_of_repeats(config, sources):
  """One line for each source of which a batch holds more examples than there are."""
  if config.loss.positives == "label":  # a repeated example has its own label: no negative
    return
  shares = order.shares_of(config, sources)
  for k, (source, share) in enumerate(zip(sources, shares)):
    drawn, largest = config.batch_size * share // sum(shares), len(source) * sum(shares) // share
    if drawn > len(source):
      logger.warning(
        "config.data.%d has %s distinct examples, but config.batch_size=%d takes %s of them a "
        "batch: pictures and captions "
        "that are there twice count as negatives of each other; set config.batch_size to %s or "
        "less",
        k,
        f"{len(source):,}",
        config.batch_size,
        f"{drawn:,}",
        f"{largest:,}",
      )
