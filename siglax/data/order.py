"""The order of the examples: of which source element k of a run is."""

from __future__ import annotations

import fractions
import functools
import hashlib
import math

import grain
from grain.experimental import index_shuffle
import numpy as np

from siglax.data import filters
from siglax.data.numbering import Numbering
from siglax.data.source import COMMON_FIELDS

FINGERPRINTED = 1000


class Mix:
  """Element k of the mix → (source, element of that source), in exact proportion and without a
  random number.

  shares: positive whole numbers. After any multiple of their sum, each source has given exactly its
  share; in between, it is off by less than the number of sources. With the number of examples as
  shares, one epoch holds every example once. (grain's own mix rounds shares to 1 %.)
  """

  def __init__(self, shares: list[int]):
    self._shares = shares

  def __getitem__(self, k: int) -> tuple[int, int]:
    rest, after = sum(self._shares), k + 1
    for source, share in enumerate(self._shares[:-1]):
      # Of the first k elements left, those that go to the sources to come.
      left, left_after = k * (rest - share) // rest, after * (rest - share) // rest
      if left_after == left:
        return source, k - left
      k, after, rest = left, left_after, rest - share
    return len(self._shares) - 1, k

  def counts(self, k: int) -> list[int]:
    """How many of the elements 0 … k − 1 each source gives."""
    rest, found = sum(self._shares), []
    for share in self._shares:
      left = k * (rest - share) // rest
      found.append(k - left)
      k, rest = left, rest - share
    return found


def of_sources(config, sources) -> list[Shuffle | ShardShuffle]:
  """The order of each source's examples."""
  found = []
  for k, (source, spec) in enumerate(zip(sources, config.data)):
    # Hashed: grain's shuffle adds the epoch to the seed, so neighbouring seeds would repeat each
    # other's epochs.
    seed = int(np.random.SeedSequence([config.seed % 2**64, k]).generate_state(1)[0])
    found.append(shuffled(source, spec, seed, f"config.data.{k}"))
  return found


class Fingerprint:
  """What tells one order of the examples from another: (step) → {"examples": a digest of which come
  from that step on, FINGERPRINTED of them or an epoch, "grain": the version of grain, which makes
  the permutations}. It takes about 10 ms.
  """

  def __init__(self, config, sources):
    self._sources, self._orders = sources, of_sources(config, sources)
    self._mix, self._batch_size = Mix(shares_of(config, sources)), config.batch_size
    self._count = min(FINGERPRINTED, sum(map(len, sources)))

  def __call__(self, step: int) -> dict[str, str]:
    first = step * self._batch_size
    places = map(self._mix.__getitem__, range(first, first + self._count))
    examples = [
      (k, filters.number(self._sources[k], self._orders[k][place])) for k, place in places
    ]
    digest = hashlib.sha256(np.array(examples, "<i8").tobytes()).hexdigest()
    return {"grain": grain.__version__, "examples": digest}


# A group of up to so many examples is permuted in memory: grain's permutation takes 2 ms for an
# example of a few, and microseconds only for one of many.
SMALL = 2**17


def shuffled(source, spec, seed: int, field: str) -> Shuffle | ShardShuffle:
  """The order of a source's examples that its data spec wants.

  field: where the spec stands, such as "config.data.0". ValueError for order="shards" of a source
  that has none, or where more shards would be open than its memory holds.
  """
  if spec.get("order", COMMON_FIELDS["order"].default) == "global":
    if hasattr(source, "prepare_random_access"):
      try:
        source.prepare_random_access()
      except ValueError as e:
        raise ValueError(f"{field}.{e}") from None
    return Shuffle(len(source), seed)
  sizes = getattr(source, "shard_sizes", None)
  if sizes is None:
    raise ValueError(
      f"{field}.order='shards' needs examples in shards, and source={spec['source']!r} has none; "
      "use order='global'"
    )
  open_shards = spec.get("shuffle_shards", COMMON_FIELDS["shuffle_shards"].default)
  if (most := getattr(source, "open_shards", None)) is not None and min(
    open_shards, len(sizes)
  ) > most:
    raise ValueError(
      f"{field}.shuffle_shards={open_shards}: there is room for {most} of the shards of "
      f"source={spec['source']!r} at a time; set it to {most} or less"
    )
  announce = getattr(source, "read_ahead", None)
  return ShardShuffle(sizes, seed, open_shards, announce)


class Shuffle:
  """Element k → the index of an example; each epoch is a permutation of all `size` of them.

  The permutation is grain's, and takes no memory. random_seed: of the random numbers that go with
  the elements (`grain.experimental.RngPool`).
  """

  def __init__(self, size: int, seed: int):
    self._size, self._seed = size, _derived(seed, 1)
    self.random_seed = _derived(seed, 2)

  def __len__(self) -> int:
    return self._size

  def __getitem__(self, k: int) -> int:
    epoch, place = divmod(k, self._size)
    seed = (self._seed + epoch) % 2**32
    return index_shuffle(place, max_index=self._size - 1, seed=seed, rounds=4)


def _derived(seed: int, depth: int) -> int:
  """The seed that grain gives the transformation `depth` behind MapDataset.seed(seed), as in the
  first versions, which left it to grain.
  """
  return int(np.random.SeedSequence([seed, depth]).generate_state(1)[0])


class ShardShuffle:
  """Element k → the index of an example of one source; each epoch is a permutation of all of them.

  sizes: int [S], the examples of each shard. seed: a whole number. open_shards: G, at least 1.
  announce: is told the number of each shard of a group before, and of the next group at the same
  time, so that they can be fetched.

  In an epoch the shards are permuted and cut into groups of G; the examples of a group are permuted
  among themselves, and the groups follow one another. So the example is a formula of (seed, k), and
  only the G shards of one group are read from at a time. Where G ≥ S, it is a permutation of all
  examples. The order of an epoch's shards takes 16 bytes a shard. The permutation of a group takes
  no memory where it is a `Shuffle`, or 8 bytes an example for up to SMALL of them.
  random_seed: as of `Shuffle`.
  """

  def __init__(self, sizes, seed: int, open_shards: int, announce=None):
    self.random_seed = _derived(seed, 1)
    self._announce = announce
    self._sizes, self._seed = np.asarray(sizes, np.int64), seed
    self._open = min(open_shards, len(self._sizes))
    self._starts = Numbering(self._sizes).starts
    self._shards = functools.lru_cache(2)(self._shards_of)
    self._group = functools.lru_cache(4)(self._group_of)

  def __reduce__(self):
    return type(self), (self._sizes, self._seed, self._open, self._announce)

  def __len__(self) -> int:
    return int(self._starts[-1])

  def __getitem__(self, k: int) -> int:
    epoch, place = divmod(k, len(self))
    shards, starts = self._shards(epoch)
    group = (int(np.searchsorted(starts, place, "right")) - 1) // self._open
    first, permutation = self._group(epoch, group)
    place = first + permutation[place - first]
    at = int(np.searchsorted(starts, place, "right")) - 1
    return int(self._starts[shards[at]] + place - starts[at])

  def _shards_of(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """The shards in the order of an epoch, and the place of the first example of each."""
    shards = _permutation(len(self._sizes), [self._seed, epoch, 0])
    return shards, Numbering(self._sizes[shards]).starts

  def _group_of(self, epoch: int, group: int) -> tuple[int, np.ndarray | Shuffle]:
    """The place of a group's first example, and the permutation of the group."""
    shards, starts = self._shards(epoch)
    if self._announce is not None:
      for shard in shards[group * self._open : (group + 2) * self._open].tolist():
        self._announce(shard)
    first = int(starts[group * self._open])
    end = int(starts[min((group + 1) * self._open, len(self._sizes))])
    seed = [self._seed, epoch, group + 1]
    if end - first <= SMALL:
      return first, _permutation(end - first, seed)
    seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return first, Shuffle(end - first, seed)


def _permutation(size: int, seed: list[int]) -> np.ndarray:
  """int64 [size]. Of a generator whose bits no version of NumPy changes."""
  bits = np.random.Philox(np.random.SeedSequence(seed)).random_raw(size)
  return np.argsort(bits, kind="stable")


def mix_shares(weights: list[float]) -> list[int]:
  """Whole numbers in the exact proportion of the weights as they are written in decimals: 0.3, 2 →
  3, 20.
  """
  exact = [fractions.Fraction(str(weight)) for weight in weights]
  scale = math.lcm(*(x.denominator for x in exact))
  return [int(x * scale) for x in exact]


def shares_of(config, sources) -> list[int]:
  """Of each source in the mix: its spec's weight, or its number of examples."""
  weights = [spec.get("weight") for spec in config.data]
  return mix_shares(
    [len(source) if weight is None else weight for weight, source in zip(weights, sources)]
  )
