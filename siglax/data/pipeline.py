"""From sources to batches: the order of the examples, their augmentation, and what is done about
broken ones.

Element k of the run is fixed by the config alone: which source it comes from (`Mix`), which example
(the source's shuffle, anew each epoch), and its random numbers (a generator seeded by the seed, the
source and k). So the batches are the same, bit for bit, for any number of threads, workers and
processes, and after any resume. A step's state is
its number: step s holds elements s·batch_size to (s + 1)·batch_size. Process p of P has the p-th of
P equal blocks of them, as its devices have of the global batch where the mesh lists devices by
process. (Elsewhere rows are in another order, the batch is the same.)
"""

from __future__ import annotations

import collections
from collections.abc import Iterable
from collections.abc import Iterator
import concurrent.futures
import fractions
import functools
import logging
import math
import multiprocessing
import os
import sys
import threading
import types

from absl import flags
import grain
import numpy as np

from siglax.data import images
from siglax.data import sources as sources_lib

# A broken example is replaced by another one, drawn anew this often at most.
MAX_REPLACEMENTS = 32
# Data whose true share of broken examples is at its limit is stopped with at most this probability,
# ever.
FALSE_STOP = 0.02
# Bets on a share above the limit: the small ones win in the end against any, the large ones soon
# against a large one.
BETS = 0.5 ** np.arange(1, 11)
# Labels of sources with different classes are this far apart.
LABEL_STRIDE = 2**24
NO_LABEL = -1
MAX_WEIGHT = float(np.finfo(np.float32).max)
# Labels of a source that `same_label` reads at most.
LABEL_SAMPLE = 1024
logger = logging.getLogger("siglax")


def open_data(config) -> list:
  """The sources of config.data, in its order.

  Raises ValueError in one line for one that cannot be read, or has no labels while
  config.loss.positives is "label".
  """
  sources = [
    sources_lib.open_source(spec, f"config.data.{i}") for i, spec in enumerate(config.data)
  ]
  if config.loss.positives == "label":
    _check_labels(sources)
  return sources


def num_examples(sources: list) -> int:
  """Examples of one epoch: all of all sources, whatever their weights in the mix."""
  return sum(map(len, sources))


def same_label(config, sources: list) -> float:
  """Share of pairs of training examples with equal labels: Σ_c f_c², f_c the shares of the classes
  in the mix.

  Of a source of more than LABEL_SAMPLE examples as many are drawn, the same each time; the estimate
  has no bias.
  """
  rng, shares = np.random.default_rng(0), _shares(config, sources)
  mixed, chance = collections.Counter(), 0.0
  for source, first_label, share in zip(sources, _first_labels(sources), shares):
    n, share = len(source), share / sum(shares)
    drawn = range(n) if n <= LABEL_SAMPLE else rng.integers(n, size=LABEL_SAMPLE).tolist()
    labels = [label for label in (_label(source, i) for i in drawn) if label is not None]
    counts, m = collections.Counter(labels), len(labels)
    for label, count in counts.items():
      mixed[first_label + label] += share * count / m
    if n > LABEL_SAMPLE and m > 1:  # what pairs of a drawn example with itself add
      chance += share**2 * (1 - sum((count / m) ** 2 for count in counts.values())) / (m - 1)
  if len(mixed) == 1:
    logger.warning(
      'config.loss.positives="label": all labels read are the same, so no pair is a negative and '
      "nothing is learned"
    )
  return max(sum(f**2 for f in mixed.values()) - chance, 0.0)


def train_batches(config, text, **where) -> TrainBatches:
  """Endless batches of this process from a step on; see `TrainBatches`."""
  return TrainBatches(config, text, **where)


def too_many_bad(bad, drawn, limit: float):
  """Whether `bad` of `drawn` examples show a true share of broken ones above the limit. Asked after
  any draw, as often as
  one likes: a share p ≤ limit is stopped with probability ≤ FALSE_STOP over an endless run.
  Numbers, or arrays of them.

  Of a capital of 1, a part λ is bet on each λ of BETS: a broken example multiplies it by 1 + λ, and
  every draw divides it by 1 + λ·limit, which is what it gains on average at a share of the limit.
  So while p ≤ limit the capital

      Σ_λ λ · (1 + λ)^bad / (1 + λ·limit)^drawn

  is a supermartingale, and by Ville's inequality reaches 1 / FALSE_STOP with probability ≤
  FALSE_STOP; above the limit it grows exponentially. Shafer 2021, "Testing by betting";
  Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting". A limit
  of 0 needs no statistics.
  """
  if not limit:
    return bad > 0
  gained, paid = (
    np.multiply.outer(bad, np.log1p(BETS)),
    np.multiply.outer(drawn, np.log1p(BETS * limit)),
  )
  return np.logaddexp.reduce(np.log(BETS) + gained - paid, axis=-1) >= -math.log(FALSE_STOP)


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

  One caption of each example is drawn. label is −1 where there is none; sources with the same
  classnames share their classes, and any others are LABEL_STRIDE apart, so that a label means one
  class. An example that cannot be read or decoded, has no caption, or no label while
  config.loss.positives is "label", is replaced by another one of its source, logged by name the
  first time, and counted.

  bad, drawn: examples by source that were broken, and that were drawn in all, by this process.
  last: (sources, indices) of the examples in the rows of the last batch.

  Raises ValueError at the start for a batch that does not divide and as `open_data`, from
  `__next__` when the examples drawn show that more than a spec's max_bad_fraction are broken; see
  `too_many_bad`.
  """

  def __init__(
    self, config, text, *, start_step=0, process_index=0, process_count=1, sources=None, counts=None
  ):
    if config.batch_size % process_count:
      raise ValueError(
        f"config.batch_size={config.batch_size} is not divisible by the {process_count} processes"
      )
    sources = open_data(config) if sources is None else sources
    _check_memory(config, process_count)
    need_labels = config.loss.positives == "label"
    self._limits = [
      _or(spec.get("max_bad_fraction"), sources_lib.MAX_BAD_FRACTION) for spec in config.data
    ]
    self._loads = [
      Load(k, source, first_label, need_labels, config.image, text)
      for k, (source, first_label) in enumerate(zip(sources, _first_labels(sources)))
    ]
    if process_index == 0:
      _warn_of_repeats(config, sources)
    counts = counts or {"bad": [0] * len(sources), "drawn": [0] * len(sources)}
    self.bad, self.drawn = list(counts["bad"]), list(counts["drawn"])
    self.last = [], []
    self._first_bad = {}  # by source: (example, reason)
    self._named = set()
    self._workers = config.loader.workers
    self._iterator = _elements(config, self._loads, process_index, process_count)
    self._iterator.set_state({"global_next_index": start_step * config.batch_size})

  @property
  def counts(self) -> dict[str, list[int]]:
    """{"bad": by source, "drawn": by source}, which JSON can hold."""
    return {"bad": list(self.bad), "drawn": list(self.drawn)}

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    if self._iterator is None:
      raise StopIteration
    try:
      batch = self._next()
      source, index = batch.pop("source"), batch.pop("index")
      self._count(source, batch.pop("bad"))
      self.last = source.tolist(), index.tolist()
    except BaseException:
      self.close()
      raise
    if self._workers:  # out of the shared memory, which grain then gives back
      batch = {name: np.array(array) for name, array in batch.items()}
    return batch

  def _next(self):
    try:
      return next(self._iterator)
    except RuntimeError as e:
      if not self._workers:
        raise
      raise ValueError(
        f"a worker process that loads data has ended: {str(e).partition('.')[0]}; the same command "
        "resumes, with fewer "
        f"config.loader.workers={self._workers} where memory was short"
      ) from e

  def close(self):
    """Stops threads and workers, for good; a thread ends with the batch it is at, which is not
    waited for.
    """
    if self._iterator is not None:
      self._iterator.close()
      self._iterator = None

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
      reason = self._loads[k].why_bad(example)
      self._first_bad.setdefault(k, (example, reason))
      logger.warning(
        "config.data.%d: example %d is broken and replaced by another: %s", k, example, reason
      )


class Load:
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

  def __setstate__(self, state):
    self.__dict__.update(state)
    _end_with_parent()

  def __call__(self, i: int, rng: np.random.Generator) -> dict:
    """The example, or the first sound one drawn instead: as a row of `TrainBatches`, with "source",
    "index" and "bad".
    """
    bad = np.full(MAX_REPLACEMENTS, -1, np.int64)
    first = i
    for attempt in range(MAX_REPLACEMENTS):
      try:
        return self._example(i, rng) | {
          "source": np.int32(self._index),
          "index": np.int64(i),
          "bad": bad,
        }
      except Exception as e:  # whatever a source, a decoder or a tokenizer raises
        error = e
      bad[attempt] = i
      i = int(rng.integers(len(self.source)))
    raise ValueError(
      f"config.data.{self._index}: {MAX_REPLACEMENTS} examples in a row are broken, first example "
      f"{first}, last "
      f"{bad[-1]}: {_reason(error)}; repair the data (config.data.{self._index}.max_bad_fraction "
      "allows single ones)"
    ) from error

  def why_bad(self, i: int) -> str:
    try:
      self._example(i, np.random.default_rng(0))
    except Exception as e:
      return _reason(e)
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
    return {
      "image": images.augment(
        images.decode(example["image"], self._image_config), rng, self._image_config
      )
    }

  def _label(self, label):
    if label is None or label < 0:
      if self._need_labels:
        raise ValueError("no label")
      return NO_LABEL
    if label >= LABEL_STRIDE:
      raise ValueError(f"label={label} must be below {LABEL_STRIDE}")
    return self._first_label + label


@functools.cache
def _end_with_parent():
  """In a worker process: ends it when its parent is gone, which a SIGKILL keeps from telling it."""
  if (parent := multiprocessing.parent_process()) is not None:

    def watch():
      parent.join()
      os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Mix(grain.transforms.DatasetSelectionMap):
  """Element k of the mix → (source, element of that source), in exact proportion and without a
  random number.

  shares: positive whole numbers. After any multiple of their sum, each source has given exactly its
  share; in between, it is off by less than the number of sources. With the number of examples as
  shares, one epoch holds every example once. (grain's own mix rounds shares to 1 %.)
  """

  def __init__(self, shares: list[int]):
    self._shares = shares

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, k: int) -> tuple[int, int]:
    rest, after = sum(self._shares), k + 1
    for source, share in enumerate(self._shares):
      # Of the first k elements left, those that go to the sources to come: none after the last.
      left, left_after = k * (rest - share) // rest, after * (rest - share) // rest
      if left_after == left:
        return source, k - left
      k, after, rest = left, left_after, rest - share


class Blocks(grain.transforms.DatasetSelectionMap):
  """A mix whose element s·B + r·P + p is element s·B + p·B/P + r of another.

  grain gives process p of P every P-th element from p on; of this one, those are its block of each
  batch of B.
  """

  def __init__(self, mix: Mix, batch_size: int, processes: int):
    self._mix, self._batch_size, self._processes = mix, batch_size, processes

  def __len__(self) -> int:
    return len(self._mix)

  def __getitem__(self, k: int) -> tuple[int, int]:
    step, place = divmod(k, self._batch_size)
    row, process = divmod(place, self._processes)
    return self._mix[
      step * self._batch_size + process * (self._batch_size // self._processes) + row
    ]


def mix_shares(weights: list[float]) -> list[int]:
  """Whole numbers in the exact proportion of the weights as they are written in decimals: 0.3, 2 →
  3, 20.
  """
  exact = [fractions.Fraction(str(weight)) for weight in weights]
  scale = math.lcm(*(x.denominator for x in exact))
  return [int(x * scale) for x in exact]


class EvalExamples:
  """Examples of a source as evaluation sees them: {"image": uint8 [S, S, 3], "captions": [str, …],
  "label"}.

  The image is resized by `images.resize`; captions are all of them, maybe none; label is None where
  there is none.
  Raises ValueError for a broken example: an evaluation that leaves some out is another evaluation.
  """

  def __init__(self, source, config):
    self._source, self._threads = source, config.loader.threads
    self._image_config = types.SimpleNamespace(**config.image.to_dict())
    self.classnames = source.classnames

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, i: int) -> dict:
    c = self._image_config
    try:
      example = self._source[i]
      image = images.resize(images.decode(example["image"], c), c.size, c.resize, c.fit)
    except Exception as e:  # whatever a source or a decoder raises
      raise ValueError(
        f"example {i} of {self._source}: {_reason(e)}; evaluation data must be without broken "
        "images"
      ) from e
    return {"image": image, "captions": example["captions"], "label": example.get("label")}

  def batches(
    self, indices: Iterable[int], batch_size: int, threads: int | None = None
  ) -> Iterator[dict]:
    """The examples in the order of the indices, read ahead by threads (None:
    config.loader.threads).

    Yields {"image": uint8 [b, S, S, 3], "captions": b lists, "label": int32 [b], −1 for none}; b is
    batch_size, or less in the last batch.
    """
    pool = concurrent.futures.ThreadPoolExecutor(
      threads or self._threads, thread_name_prefix="siglax-eval"
    )
    try:
      pending = collections.deque()
      for i in indices:
        pending.append(pool.submit(self.__getitem__, i))
        if len(pending) == 2 * batch_size:
          yield _stack([pending.popleft().result() for _ in range(batch_size)])
      while pending:
        yield _stack([pending.popleft().result() for _ in range(min(batch_size, len(pending)))])
    finally:
      pool.shutdown(cancel_futures=True)


def _embedding(example):
  if not np.isfinite(example["image_embedding"]).all():
    raise ValueError("the image embedding is not finite")
  return {"image_embedding": example["image_embedding"]}


def _stack(examples):
  labels = [NO_LABEL if example["label"] is None else example["label"] for example in examples]
  return {
    "image": np.stack([example["image"] for example in examples]),
    "captions": [example["captions"] for example in examples],
    "label": np.array(labels, np.int32),
  }


def _elements(config, loads, process_index, process_count):
  """grain's iterator over batches of elements; its whole state is the next element's number."""
  parts = []
  for k, load in enumerate(loads):
    # Hashed: grain's shuffle adds the epoch to the seed, so neighbouring seeds would repeat each
    # other's epochs.
    seed = int(np.random.SeedSequence([config.seed % 2**64, k]).generate_state(1)[0])
    part = grain.MapDataset.range(len(load.source)).seed(seed).shuffle().random_map(load)
    parts.append(part.repeat(None))
  shares = _shares(config, [load.source for load in loads])
  loader = config.loader
  if loader.workers and not flags.FLAGS.is_parsed():
    # grain's worker processes read absl flags, which only absl.app parses
    flags.FLAGS.mark_as_parsed()
  return iter(
    grain.experimental.ElasticIterator(
      grain.MapDataset.select_from_datasets(
        parts, Blocks(Mix(shares), config.batch_size, process_count)
      ),
      config.batch_size,
      grain.sharding.ShardOptions(process_index, process_count),
      # A thread makes a whole batch, so a smaller buffer would idle threads.
      read_options=grain.ReadOptions(loader.threads, max(loader.buffer, loader.threads)),
      multiprocessing_options=grain.MultiprocessingOptions(loader.workers)
      if loader.workers
      else None,
    )
  )


def _shares(config, sources) -> list[int]:
  return mix_shares(
    [_or(spec.get("weight"), len(source)) for spec, source in zip(config.data, sources)]
  )


def _check_memory(config, process_count):
  """ValueError for batches that this machine's memory cannot hold; a loader that tries does not
  answer any more.
  """
  pictures = config.batch_size // process_count * config.image.size**2 * 3
  memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  if pictures > memory:
    raise ValueError(
      f"config.batch_size={config.batch_size} of {config.image.size}×{config.image.size} pixels "
      f"are {pictures / 2**30:.0f} GiB in "
      f"each of {process_count} processes, and this machine has {memory / 2**30:.0f} GiB; use a "
      "smaller one"
    )


def _warn_of_repeats(config, sources):
  """One line for each source of which a batch holds more examples than there are."""
  if config.loss.positives == "label":  # a repeated example has its own label: no negative
    return
  shares = _shares(config, sources)
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


def _label(source, i) -> int | None:
  """None for an example that is broken or has none, which training replaces."""
  try:
    label = source[i].get("label")
  except Exception:
    return None
  return None if label is None or label < 0 else label


def _first_labels(sources) -> list[int]:
  """What is added to each source's labels, so that equal labels are equal classes."""
  groups = {}
  for k, source in enumerate(sources):
    groups.setdefault(source.classnames or k, len(groups))
  return [groups[source.classnames or k] * LABEL_STRIDE for k, source in enumerate(sources)]


def _check_labels(sources):
  """One example tells whether a source has labels at all."""
  for k, source in enumerate(sources):
    for i in range(min(len(source), MAX_REPLACEMENTS)):
      try:
        example = source[i]
      except Exception:  # broken; training deals with it
        continue
      if example.get("label") is None:
        raise ValueError(
          f'config.data.{k}.label: example {i} has no label, but config.loss.positives="label" '
          "needs one for each; "
          'name a column of labels, or use config.loss.positives="pair"'
        )
      break


def _reason(error):
  """One line of an exception; its type when it says nothing."""
  text = " ".join(str(error).split())
  return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"


def _or(value, default):
  return default if value is None else value
