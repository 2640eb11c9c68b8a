"""The order of examples that lie in shards: a formula, exact in every epoch."""

import hashlib
import pickle
import tracemalloc
import types

import grain
import numpy as np
import pytest

from siglax import config as config_lib
from siglax import data
from siglax.data import order
from siglax.training import resume

SIZES = [3, 0, 5, 1, 7, 0, 0, 4, 2, 6, 1, 1]
COUNT = sum(SIZES)
SHARD_OF = np.repeat(np.arange(len(SIZES)), SIZES)


def epochs(shuffle, number: int) -> np.ndarray:
  return np.array([shuffle[k] for k in range(number * len(shuffle))]).reshape(number, -1)


@pytest.mark.parametrize("open_shards", [1, 3, 5, 100])
def test_every_epoch_is_a_permutation_and_goes_through_a_few_shards_at_a_time(open_shards):
  shuffle = order.ShardShuffle(SIZES, 7, open_shards)
  drawn = epochs(shuffle, 30)
  assert len(shuffle) == COUNT and (np.sort(drawn) == np.arange(COUNT)).all()
  assert len({tuple(epoch) for epoch in drawn}) == 30
  filled = np.flatnonzero(SIZES)
  for epoch in SHARD_OF[drawn]:
    # A shard is opened once: from its first to its last example no more than G are under way.
    first = {shard: np.flatnonzero(epoch == shard)[0] for shard in filled}
    last = {shard: np.flatnonzero(epoch == shard)[-1] for shard in filled}
    under_way = [sum(first[s] <= k <= last[s] for s in filled) for k in range(COUNT)]
    assert max(under_way) <= open_shards


@pytest.mark.parametrize("size, seed", [(1, 0), (2, 5), (1000, 2**32 - 1)])
def test_a_shuffle_and_its_random_numbers_are_those_of_a_pipeline_of_grain(size, seed):
  shuffle = order.Shuffle(size, seed)
  pool = grain.experimental.RngPool(shuffle.random_seed)
  pipeline = grain.MapDataset.range(size).seed(seed).shuffle()
  pipeline = pipeline.random_map(lambda i, rng: (int(i), rng.random())).repeat(None)
  for k in (*range(2 * size), 10**12):
    assert (shuffle[k], pool.acquire_rng(k).random()) == pipeline[k]
  assert (np.sort(epochs(shuffle, 3)) == np.arange(size)).all()


def test_shards_and_examples_come_at_any_place_alike():
  """Of 4 shards of 3, two open at a time: each example is at each of the 12 places as often."""
  drawn = epochs(order.ShardShuffle([3] * 4, 0, 2), 6000)
  counts = np.array([np.bincount(place, minlength=12) for place in drawn.T])
  # Each is binomial(6000, 1/12): 500 ± 21.4; 144 of them stay within five deviations.
  assert np.abs(counts - 500).max() < 107
  # Two examples of one shard are in the same group, so each pair of them starts an epoch as often.
  neighbours = drawn[:, 0] * 12 + drawn[:, 1]
  within = [a * 12 + b for a in range(12) for b in range(12) if a != b and a // 3 == b // 3]
  found = np.bincount(neighbours, minlength=144)[within]
  # Probability 1/12 · 1/5: 100 ± 9.9 of 6000.
  assert np.abs(found - 100).max() < 50


def test_an_example_is_a_formula_of_its_place():
  shuffle = order.ShardShuffle(SIZES, 3, 4)
  want = epochs(shuffle, 5).ravel()
  again = pickle.loads(pickle.dumps(shuffle))
  for k in np.random.default_rng(0).permutation(len(want)):
    assert again[int(k)] == want[k]
  assert (epochs(order.ShardShuffle(SIZES, 4, 4), 5).ravel() != want).mean() > 0.8


@pytest.mark.parametrize(
  "sizes, want",
  [
    (SIZES, [21, 24, 25, 23, 1, 27, 10]),
    ([100_000] * 20, [1_900_751, 1_903_639, 817_187, 35_653, 74_302, 1_973_942, 1_179_168]),
  ],
)
def test_the_order_stays_what_it_is(sizes, want):
  """These are what the first version of this order gave: a run goes on with the same examples."""
  shuffle = order.ShardShuffle(sizes, 0, 3)
  assert [shuffle[k] for k in (*range(6), 10**12)] == want


def test_a_billion_examples_take_no_more_than_their_shards():
  tracemalloc.start()
  try:
    shuffle = order.ShardShuffle(np.full(100_000, 10_000), 0, 64)
    drawn = {shuffle[k] for k in range(10**9 - 500, 10**9 + 500)}
    # Sizes, starts, and of two epochs the shards and their starts, at 8 bytes: 4.8 MB; more while
    # they are made.
    assert tracemalloc.get_traced_memory()[1] < 12 * 2**20
  finally:
    tracemalloc.stop()
  assert len(drawn) > 998 and max(drawn) < 10**9  # two epochs, which may share an example


def test_more_examples_than_32_bits_count_are_permuted():
  """The global order is grain's, whose sources speak of 32 bits. Of 300,000 random draws some would
  be the same but for 1 in 30,000 times.
  """
  size = 2**32 + 5
  shuffled = order.shuffled(range(size), {"source": "shapes"}, 7, "config.data.0")
  seen = {shuffled[k] for k in range(300_000)}
  assert len(seen) == 300_000 and 0 <= min(seen) and 2**32 - 2**20 < max(seen) < size


@pytest.mark.parametrize("way", ["global", "shards"])
def test_a_hundred_epochs_are_a_hundred_permutations_in_exact_shares(way):
  """Of two sources of 1,000 examples, three of the one come with one of the other."""
  made = config_lib.default()
  spec = {"source": "shapes", "order": way, "shuffle_shards": 3}
  made.data = ({**spec, "weight": 3}, {**spec, "weight": 1})
  sources = [Shards(np.full(10, 100)) for _ in made.data]
  parts = order.of_sources(made, sources)
  drawn = np.array([parts[0][k] % 1000 for k in range(100_000)]).reshape(100, 1000)
  assert (np.sort(drawn) == np.arange(1000)).all()
  assert len({tuple(epoch) for epoch in drawn}) == 100
  mix = order.Mix(order.shares_of(made, sources))
  second = np.concatenate([[0], np.cumsum([mix[k][0] for k in range(12_000)])])
  # Of any 4,000 in a row.
  assert (second[4000:] - second[:-4000] == 1000).all()


@pytest.mark.parametrize("way", ["global", "shards"])
def test_a_billion_examples_take_the_memory_of_a_million(way):
  """From sources to the first batch. A process has 200 MiB before it begins; 5 % are 10 MiB."""
  peaks = []
  for shards in (100, 100_000):
    source = Shards(np.full(shards, 10_000))
    text = lambda texts: np.zeros((len(texts), 4), np.int32)
    tracemalloc.start()
    try:
      batches = data.train_batches(config(order=way), text, sources=[source], start_step=123)
      next(batches)
      batches.close()
      peaks.append(tracemalloc.get_traced_memory()[1])
    finally:
      tracemalloc.stop()
  assert peaks[1] - peaks[0] < 10 * 2**20


class Shards:
  """Examples whose only content is their number."""

  def __init__(self, sizes=SIZES):
    self.shard_sizes = np.array(sizes)

  def __len__(self):
    return int(self.shard_sizes.sum())

  def __getitem__(self, i):
    return {"image": np.full((8, 8, 3), i % 256, np.uint8), "captions": ["x"]}


def config(**spec):
  made = config_lib.default()
  made.data = ({"source": "shapes", "order": "shards", "shuffle_shards": 3, **spec},)
  made.batch_size, made.image.size = 6, 8
  return made


def drawn(steps, **where) -> np.ndarray:
  """The numbers of the examples in each batch."""
  text = lambda texts: np.zeros((len(texts), 4), np.int32)
  batches = data.train_batches(config(), text, sources=[Shards()], **where)
  try:
    return np.array([next(batches)["image"][:, 0, 0, 0] for _ in range(steps)])
  finally:
    batches.close()


def test_batches_follow_it_on_any_number_of_processes_and_after_a_resume():
  seed = int(np.random.SeedSequence([0, 0]).generate_state(1)[0])
  want = epochs(order.ShardShuffle(SIZES, seed, 3), 2).ravel()[:48].reshape(8, 6)
  np.testing.assert_array_equal(drawn(8), want)
  np.testing.assert_array_equal(drawn(3, start_step=5), want[5:])
  parts = [drawn(3, start_step=5, process_index=p, process_count=2) for p in (0, 1)]
  np.testing.assert_array_equal(np.concatenate(parts, axis=1), want[5:])


def test_a_source_without_shards_says_so():
  with pytest.raises(ValueError) as e:
    data.train_batches(config(), None, sources=[range(10)])
  assert str(e.value) == (
    "config.data.0.order='shards' needs examples in shards, and source='shapes' has none; use "
    "order='global'"
  )


def test_the_fingerprint_is_of_the_next_examples():
  source = Shards()
  made = config()
  fingerprint = order.Fingerprint(made, [source])
  first = fingerprint(0)
  assert first == order.Fingerprint(made, [Shards()])(0)
  seed = int(np.random.SeedSequence([0, 0]).generate_state(1)[0])
  shuffle = order.ShardShuffle(SIZES, seed, 3)
  for step in (0, 2):
    numbers = np.array([(0, shuffle[6 * step + k]) for k in range(COUNT)], "<i8")
    assert fingerprint(step) == {
      "grain": grain.__version__,
      "examples": hashlib.sha256(numbers.tobytes()).hexdigest(),
    }
  for other in (config(shuffle_shards=4), config(order="global")):
    assert order.Fingerprint(other, [source])(0)["examples"] != first["examples"]


def test_a_run_does_not_go_on_with_other_examples(tmp_path):
  run = types.SimpleNamespace(config=config(), sources=[Shards()], workdir=tmp_path, shown=tmp_path)
  then = order.Fingerprint(run.config, run.sources)(5)
  for known in (then, None):  # None: a checkpoint of before
    resume._check_order(run, 5, known, f"--workdir {tmp_path}")
  with pytest.raises(ValueError) as e:
    resume._check_order(run, 6, then | {"grain": "0.1"}, f"--workdir {tmp_path}")
  assert str(e.value) == (
    f"the examples after step 6 would be others than when the run in --workdir {tmp_path} was "
    f"trained (grain 0.1 then, {grain.__version__} now); give the same data and versions, or go on "
    "with new ones by --config.loader.allow_new_order=True"
  )
