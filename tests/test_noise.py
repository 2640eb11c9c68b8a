"""Noise of a data spec: exact shares, the same in every epoch, and nothing else is touched."""

import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from siglax import config as config_lib
from siglax.data import pipeline
from siglax.data import sources
from siglax.data import text

N = 40
CLEAN = {"source": "shapes", "examples": N, "image_size": 16, "captions": 1}


def opened(**noise):
  return sources.open_source(CLEAN | noise)


def spoilt(examples, clean, part):
  return [i for i in range(N) if not np.array_equal(examples[i][part], clean[i][part])]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.33, 1.0])
def test_shares_are_exact(share):
  clean = sources.open_source(CLEAN)
  for kind, part in (("noise_images", "image"), ("noise_texts", "captions")):
    examples = opened(**{kind: share})
    assert len(examples) == N
    assert len(spoilt(examples, clean, part)) == round(share * N)
    other = {"image": "captions", "captions": "image"}[part]
    assert spoilt(examples, clean, other) == []


def test_pairs_trade_captions_and_none_keeps_its_own():
  clean = sources.open_source(CLEAN)
  examples = opened(noise_pairs=0.5)
  whose = {clean[i]["captions"][0]: i for i in range(N)}
  assert len(whose) == N  # else the test could not tell them apart
  now = [whose[examples[i]["captions"][0]] for i in range(N)]
  assert sorted(now) == list(range(N))  # each caption is still there once
  assert sum(i != other for i, other in enumerate(now)) == N // 2
  assert spoilt(examples, clean, "image") == []
  assert [examples[i]["label"] for i in range(N)] == [clean[i]["label"] for i in range(N)]


def test_noise_is_random_and_its_own_for_each_example():
  examples = opened(noise_images=1.0, noise_texts=1.0)
  pixels = np.stack([examples[i]["image"] for i in range(N)])
  assert pixels.shape == (N, 16, 16, 3) and pixels.dtype == np.uint8
  # 30,720 uniform bytes: the mean within five standard errors, and all values are there.
  assert abs(pixels.mean() - 127.5) < 5 * 73.9 / np.sqrt(pixels.size)
  assert len(np.unique(pixels)) == 256
  assert len({example.tobytes() for example in pixels}) == N
  texts = [examples[i]["captions"][0] for i in range(N)]
  assert len(set(texts)) == N
  clean = sources.open_source(CLEAN)
  words = [len(clean[i]["captions"][0].split()) for i in range(N)]
  assert [len(x.split()) for x in texts] == words
  assert all(set(x) <= set("abcdefghijklmnopqrstuvwxyz ") for x in texts)


def test_a_larger_share_spoils_more_of_the_same_and_a_seed_others():
  clean = sources.open_source(CLEAN)
  few, many, other = (
    set(spoilt(opened(noise_texts=share, noise_seed=seed), clean, "captions"))
    for share, seed in ((0.2, 0), (0.4, 0), (0.2, 1))
  )
  assert few < many and few != other


def test_two_epochs_hold_the_same_noise_for_any_workers():
  """Rows of a batch by the number of their example; a pickled source is the same."""
  c = config_lib.default()
  c.batch_size, c.image.size, c.text.length, c.loader.threads = N, 16, 16, 1
  c.data = (CLEAN | {"noise_images": 0.25, "noise_pairs": 0.5, "noise_texts": 0.1},)
  text_processor = text.TextProcessor("shapes", length=16)
  found = []
  for workers in (0, 1):
    c.loader.workers = workers
    batches = pipeline.train_batches(c, text_processor)
    for _ in range(2):
      batch = next(batches)
      order = np.argsort(batches.last[1])
      assert sorted(batches.last[1]) == list(range(N))
      found.append({name: batch[name][order] for name in ("image", "tokens")})
    batches.close()
  for other in found[1:]:
    for name in ("image", "tokens"):
      np.testing.assert_array_equal(other[name], found[0][name])
  examples = opened(noise_pairs=0.5)
  again = pickle.loads(pickle.dumps(examples))
  assert [again[i]["captions"] for i in range(N)] == [examples[i]["captions"] for i in range(N)]


def test_noise_is_of_what_filters_leave(tmp_path):
  columns = {
    "image": [b"a picture"] * N,
    "caption": [f"picture {i}" for i in range(N)],
    "label": [i % 4 for i in range(N)],
  }
  pq.write_table(pa.table(columns), tmp_path / "a.parquet")
  spec = {"source": "parquet", "path": str(tmp_path / "a.parquet"), "label_in": "0,2"}
  clean, examples = sources.open_source(spec), sources.open_source(spec | {"noise_pairs": 0.5})
  assert len(examples) == len(clean) == N // 2
  traded = [examples[i]["captions"] != clean[i]["captions"] for i in range(N // 2)]
  assert sum(traded) == N // 4
  assert [examples.number(i) for i in range(N // 2)] == [i for i in range(N) if i % 2 == 0]
  assert list(examples.shard_sizes) == list(clean.shard_sizes)


@pytest.mark.parametrize(
  "spec, message",
  [
    ({"noise_pairs": 1.5}, "config.data.0.noise_pairs=1.5 must be at most 1"),
    ({"noise_text": 0.5}, "noise_text is unknown; did you mean noise_texts?"),
    ({"noise_images": -0.1}, "noise_images=-0.1 must be at least 0"),
  ],
)
def test_wrong_noise_is_one_line(spec, message):
  with pytest.raises(ValueError) as e:
    sources.validate_spec(CLEAN | spec, "config.data.0")
  assert message in str(e.value)


def test_embeddings_have_no_pictures_to_spoil():
  with pytest.raises(ValueError, match="noise_images=0.5: source 'embeddings' has no pictures"):
    sources.validate_spec({"source": "embeddings", "path": "x.npz", "noise_images": 0.5})
