"""siglax.data.pipeline: the same batches however they are made, every example once, and what broken
ones do.
"""

import gc
import json
import logging
import math
import multiprocessing
from multiprocessing import reduction
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import types
import weakref

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from siglax import config as config_lib
from siglax import data
from siglax.data import broken
from siglax.data import images
from siglax.data import labels as label_lib
from siglax.data import layout
from siglax.data import order
from siglax.data import pipeline
from siglax.data import workers as workers_lib
from siglax.data.batching import Batches
from siglax.data.labels import LABEL_STRIDE
from siglax.data.text import TextProcessor
from siglax.devices import cores
from siglax.devices import host

SIZE, LENGTH = 8, 6


class Text:
  """The number in "example 12, caption 1" → [12, 1, 0, 0, 0, 0]."""

  def __call__(self, texts):
    tokens = np.zeros((len(texts), LENGTH), np.int32)
    for row, text in zip(tokens, texts):
      row[:2] = [int(word) for word in text.replace(",", "").split() if word.isdigit()]
    return tokens


class Source:
  """Image i is filled with i mod 256, its caption j is f"example {i}, caption {j}"; change edits an
  example.
  """

  def __init__(
    self, size, captions=2, labels=None, classnames=None, change=lambda i, example: example
  ):
    self.size, self.captions, self.labels, self.classnames, self.change = (
      size,
      captions,
      labels,
      classnames,
      change,
    )

  def __len__(self):
    return self.size

  def __getitem__(self, i):
    example = {
      "image": np.full((SIZE, SIZE, 3), i % 256, np.uint8),
      "captions": [f"example {i}, caption {j}" for j in range(self.captions)],
    }
    if self.labels is not None:
      example["label"] = self.labels[i]
    return self.change(i, example)


def make_config(*specs, batch_size=8, seed=0, positives="pair", **groups):
  config = config_lib.default()
  config.data = tuple({"source": "shapes", **spec} for spec in specs or ({},))
  config.batch_size, config.seed, config.loss.positives = batch_size, seed, positives
  config.image.size = SIZE
  for group, fields in groups.items():
    config[group].update(fields)
  return config


def read(config, sources, steps, text=Text(), **where):
  batches = data.train_batches(config, text, sources=sources, **where)
  try:
    return [next(batches) for _ in range(steps)]
  finally:
    batches.close()


def examples_of(batches):
  return np.concatenate([batch["tokens"][:, 0] for batch in batches]).tolist()


def assert_same(got, want):
  assert len(got) == len(want)
  for a, b in zip(got, want):
    assert a.keys() == b.keys() == {"image", "tokens", "label", "weight"}
    for name in a:
      assert a[name].dtype == b[name].dtype
      np.testing.assert_array_equal(a[name], b[name], err_msg=name)


# Everything random at once: two sources, crops, shifts, flips, captions, and every seventh example
# broken.
RANDOM = {"crop_min_area": 0.3, "pad": 2, "flip": True}


def random_sources():
  def change(i, example):
    picture = np.random.default_rng(i).integers(0, 256, (12, 10, 3), np.uint8)
    return example | {"image": b"broken" if i % 7 == 0 else picture, "weight": 0.5 + i}

  return [Source(30, 3, labels=range(30), change=change), Source(12, 1, change=change)]


def random_config(**loader):
  spec = {"max_bad_fraction": 1}
  return make_config(spec, spec | {"weight": 25}, image=RANDOM, loader=loader)


def test_batches_have_the_stated_form():
  (batch,) = read(random_config(), random_sources(), 1)
  form = {name: (array.dtype.name, array.shape) for name, array in batch.items()}
  assert form == {
    "image": ("uint8", (8, SIZE, SIZE, 3)),
    "tokens": ("int32", (8, LENGTH)),
    "label": ("int32", (8,)),
    "weight": ("float32", (8,)),
  }


@pytest.mark.parametrize("threads, buffer", [(2, 7), (3, 1), (4, 2)])
def test_threads_do_not_change_the_batches(threads, buffer):
  want = read(random_config(threads=1, buffer=1), random_sources(), 15)
  assert_same(read(random_config(threads=threads, buffer=buffer), random_sources(), 15), want)


def together(parts):
  """The batch of one process from the blocks of several."""
  return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_processes_share_the_batch_of_one(processes):
  want = read(random_config(), random_sources(), 6)
  parts = [
    read(random_config(), random_sources(), 6, process_index=p, process_count=processes)
    for p in range(processes)
  ]
  assert_same([together(step) for step in zip(*parts)], want)


def test_a_run_resumed_at_any_step_goes_on_the_same():
  want = read(random_config(), random_sources(), 14)
  for step in (1, 5, 13):
    assert_same(read(random_config(), random_sources(), 14 - step, start_step=step), want[step:])
  resumed = [
    read(random_config(), random_sources(), 2, start_step=9, process_index=p, process_count=2)
    for p in (0, 1)
  ]
  assert_same([together(step) for step in zip(*resumed)], want[9:11])


def test_worker_processes_do_not_change_the_batches(tmp_path):
  rng = np.random.default_rng(0)
  encode = lambda: cv2.imencode(".png", rng.integers(0, 256, (9, 9, 3), np.uint8))[1].tobytes()
  encoded = [b"broken" if i % 7 == 3 else encode() for i in range(20)]
  table = pa.table({"image": encoded, "captions": [[f"red {i}", "blue"] for i in range(20)]})
  pq.write_table(table, tmp_path / "a.parquet")
  spec = {"source": "parquet", "path": str(tmp_path / "a.parquet"), "max_bad_fraction": 1}
  shapes = {"source": "shapes", "examples": 20, "image_size": 16}
  text = TextProcessor(length=LENGTH)
  runs = []
  for workers in (0, 2):
    config = make_config(spec, shapes, image=RANDOM, loader={"workers": workers})
    batches = data.train_batches(config, text, start_step=3)
    runs.append(([next(batches) for _ in range(7)], batches.bad, batches.drawn))
    batches.close()
  assert_same(runs[1][0], runs[0][0])
  assert runs[1][1:] == runs[0][1:] and runs[0][1][0] > 0
  assert all(type(array) is np.ndarray for array in runs[1][0][-1].values())  # not shared memory


def test_an_epoch_holds_every_example_once():
  config = make_config({}, {}, batch_size=7)
  order = examples_of(read(config, [Source(31, 1), Source(11, 1)], 18))
  epochs = [order[k : k + 42] for k in (0, 42, 84)]
  for epoch in epochs:
    assert sorted(epoch) == sorted([*range(31), *range(11)])
  assert epochs[0] != epochs[1] != epochs[2]


def test_image_and_caption_belong_together_and_captions_vary():
  batches = read(make_config(batch_size=100), [Source(100, captions=3)], 12)
  seen = set()
  for batch in batches:
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["tokens"][:, 0])
    seen |= set(map(tuple, batch["tokens"][:, :2].tolist()))
  assert len(seen) > 295  # of 300; a caption is missed with probability 0.8 %
  captions = np.concatenate([batch["tokens"][:, 1] for batch in batches])
  assert np.bincount(captions).min() > 330  # of 400


def test_the_seed_and_the_place_in_data_choose_the_order():
  order = lambda seed: examples_of(read(make_config(seed=seed), [Source(100)], 5))
  assert order(0) == order(0) != order(1)
  batches = read(make_config({}, {}, batch_size=40), [Source(100, 1), Source(100, 1)], 5)
  twice = np.array(examples_of(batches)).reshape(-1, 2).T
  assert (
    sorted(twice[0]) == sorted(twice[1]) == list(range(100)) and (twice[0] != twice[1]).mean() > 0.9
  )


def test_weights_are_shares_of_the_mix():
  named = lambda k: Source(
    10, 1, change=lambda i, example: example | {"image": np.full((SIZE, SIZE, 3), k, np.uint8)}
  )
  config = make_config({"weight": 0.3}, {"weight": 0.1}, {}, batch_size=104)
  (batch,) = read(config, [named(0), named(1), named(2)], 1)  # the third's weight is its size, 10
  assert np.bincount(batch["image"][:, 0, 0, 0]).tolist() == [3, 1, 100]


def test_shares_are_exact():
  assert order.mix_shares([25, 700]) == [25, 700]
  assert order.mix_shares([0.3, 2]) == [3, 20]
  assert order.mix_shares([1e-7, 1.5]) == [1, 15_000_000]


@pytest.mark.parametrize("shares", [[1], [1, 1], [3, 1, 4, 1, 5], [25_000, 700, 1]])
def test_mix_hands_out_every_element_in_order(shares):
  mix, period = order.Mix(shares), sum(shares)
  for start in (0, 10**15 * period):
    drawn = [mix[start + k] for k in range(period)]
    for source, share in enumerate(shares):
      first = start // period * share
      assert [element for s, element in drawn if s == source] == list(range(first, first + share))
  prefix = np.cumsum([[s == source for s, _ in drawn] for source in range(len(shares))], axis=1)
  want = np.outer(shares, np.arange(1, period + 1)) / period
  assert np.abs(prefix - want).max() < len(shares)


def test_labels_of_different_classes_never_meet():
  stride = LABEL_STRIDE
  labels = [i % 3 for i in range(6)]
  named = lambda: Source(6, labels=labels, classnames=("cat", "dog", "cow"))
  sources = [named(), Source(6), Source(6, labels=labels), named()]
  (batch,) = read(make_config({}, {}, {}, {}, batch_size=24), sources, 1)
  values, counts = np.unique(batch["label"], return_counts=True)
  assert values.tolist() == [-1, 0, 1, 2, 2 * stride, 2 * stride + 1, 2 * stride + 2]
  assert counts.tolist() == [6, 4, 4, 4, 2, 2, 2]


def test_positives_by_label_need_labels(tmp_path):
  pq.write_table(pa.table({"image": [b"x"] * 4, "caption": ["y"] * 4}), tmp_path / "a.parquet")
  config = make_config({}, {"source": "parquet", "path": str(tmp_path / "a.parquet")})
  assert len(data.open_data(config)) == 2
  config.loss.positives = "label"
  with pytest.raises(ValueError, match=r"^config\.data\.1\.label: example 0 has no label") as e:
    data.train_batches(config, Text())
  assert "\n" not in str(e.value)
  some = Source(20, labels=[None if i == 5 else -1 if i == 6 else i for i in range(20)])
  batches = read(make_config({"max_bad_fraction": 1}, positives="label", batch_size=20), [some], 3)
  assert set(examples_of(batches)) == set(range(20)) - {5, 6}


def test_the_share_of_pairs_with_equal_labels():
  first, second = Source(6, labels=[0, 0, 1, None, -1, 2]), Source(3, labels=[0, 0, 5])
  config = make_config({"weight": 3}, {"weight": 1}, positives="label")
  # Labels of two sources differ: 3/4 of (1/2, 1/4, 1/4) and 1/4 of (2/3, 1/3).
  assert data.same_label(config, [first, second]) == pytest.approx(
    (36 + 9 + 9) / 256 + (16 + 4) / 576
  )
  config = make_config({}, positives="label")
  large = Source(20_000, labels=[i % 10 for i in range(20_000)])
  assert (
    data.same_label(config, [large])
    == data.same_label(config, [large])
    == pytest.approx(0.1, rel=0.02)
  )
  small = [Source(2, labels=np.uint8([0, 1]), classnames=names) for names in (("a", "b"), ("c",))]
  config_of_two = make_config({}, {}, positives="label")
  assert data.same_label(config_of_two, small) == pytest.approx(1 / 4)
  batch = next(data.train_batches(config_of_two, Text(), start_step=0, sources=small))
  assert set(batch["label"].tolist()) == {0, 1, LABEL_STRIDE, LABEL_STRIDE + 1}
  own = Source(20_000, labels=list(range(20_000)))
  assert data.same_label(config, [own]) < 2e-4  # Σ f² of 1,024 of them is 1e-3


BROKEN = {
  "undecodable": lambda i, example: example | {"image": b"\xff\xd8\xff junk"},
  "no image": lambda i, example: example | {"image": None},
  "no captions": lambda i, example: example | {"captions": []},
  "empty captions": lambda i, example: example | {"captions": ["", "  "]},
  "not a caption": lambda i, example: example | {"captions": [7]},
  "negative weight": lambda i, example: example | {"weight": -1.0},
  "nan weight": lambda i, example: example | {"weight": float("nan")},
  "weight above float32": lambda i, example: example | {"weight": 1e300},
  "many pixels": lambda i, example: (
    example | {"image": cv2.imencode(".png", np.zeros((9, 12, 3), np.uint8))[1].tobytes()}
  ),
  "many bytes": lambda i, example: (
    example
    | {"image": cv2.imencode(".png", np.zeros((5, 6, 3), np.uint8))[1].tobytes() + bytes(999)}
  ),
  "huge label": lambda i, example: example | {"label": 2**24},
  "unreadable": lambda i, example: 1 / 0,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_examples_are_replaced_counted_and_named_once(kind, caplog):
  def change(i, example):
    return BROKEN[kind](i, example) if i in (3, 11) else example

  config = make_config({}, batch_size=60, image={"max_pixels": 100, "max_bytes": 900})
  with caplog.at_level(logging.WARNING, "siglax"):
    batches = data.train_batches(config, Text(), sources=[Source(60, change=change)])
    drawn = [next(batches) for _ in range(4)]  # four epochs
    batches.close()
  assert batches.bad[0] >= 8 and batches.drawn[0] == 240 + batches.bad[0]
  named = [record.getMessage() for record in caplog.records]
  names = sorted(message.split(" is broken")[0] for message in named)
  assert names == ["config.data.0: example 11", "config.data.0: example 3"]
  whole = read(config, [Source(60)], 4)  # the others are where they were
  for got, want in zip(drawn, whole):
    broken = np.isin(want["tokens"][:, 0], (3, 11))
    assert not np.isin(got["tokens"][:, 0], (3, 11)).any()
    np.testing.assert_array_equal(got["tokens"][~broken], want["tokens"][~broken])
  assert_same(read(config, [Source(60, change=change)], 4), drawn)


def test_empty_captions_beside_others_are_left_out():
  change = lambda i, example: example | {"captions": ["", *example["captions"]]}
  assert {
    batch["tokens"][0, 1]
    for batch in read(make_config(batch_size=1), [Source(5, change=change)], 20)
  } == {0, 1}


def fails(config, sources, steps=400):
  batches = data.train_batches(config, Text(), sources=sources)
  with pytest.raises(ValueError) as e:
    for _ in range(steps):
      next(batches)
  assert "\n" not in str(e.value)
  with pytest.raises(ValueError) as again:  # and it is closed
    next(batches)
  assert again.value is e.value
  return str(e.value), batches


def some_bad(share):
  return lambda i, example: example | {"captions": []} if i % 1000 < 1000 * share else example


def test_too_many_broken_examples_stop_the_run():
  config = make_config({}, {}, batch_size=50)
  message, batches = fails(config, [Source(1000), Source(1000, change=some_bad(0.05))])
  assert message.startswith(
    f"config.data.1: {batches.bad[1]} of {batches.drawn[1]} examples drawn are broken, first"
  )
  assert ": no caption; " in message and "raise config.data.1.max_bad_fraction=0.01" in message
  assert 10 <= batches.bad[1] < 40 and batches.bad[0] == 0
  allowed = make_config({}, {"max_bad_fraction": 0.1}, batch_size=50)
  assert len(read(allowed, [Source(1000), Source(1000, change=some_bad(0.05))], 60)) == 60
  assert len(read(config, [Source(1000), Source(1000, change=some_bad(0.001))], 120)) == 120


def stops_at(share, limit, draws, runs):
  """The draw at which each of many simulated runs stops, 0 where it does not."""
  rng, stops = np.random.default_rng(0), []
  for _ in range(runs):
    # Only a broken example can stop a run
    drawn = np.flatnonzero(rng.random(draws, np.float32) < share) + 1
    stops += [*drawn[broken.too_many_bad(np.arange(1, len(drawn) + 1), drawn, limit)], 0][:1]
  return np.array(stops)


def test_healthy_data_are_not_stopped_by_chance():
  assert (stops_at(0.009, 0.01, draws=200_000, runs=1000) > 0).mean() < 0.01


def test_bad_data_are_stopped_soon():
  assert (stops_at(0.02, 0.01, draws=4000, runs=1000) > 0).mean() > 0.99
  assert (
    stops_at(0.012, 0.01, draws=400_000, runs=20) > 0
  ).all()  # and a little above the limit, late
  assert 1 < stops_at(1, 0.01, draws=100, runs=1)[0] < 15
  assert stops_at(1, 0.5, draws=100, runs=1)[0] < 30


def test_the_capital_is_what_the_bets_hold():
  # Bets of 1/2, 1/4, … 1/1024 of the capital, as the formula says and without logarithms.
  bets = [1 / 2**k for k in range(1, 11)]
  for drawn in (30, 500, 3000):
    first = next(
      n for n in range(drawn) if sum(b * (1 + b) ** n / (1 + b * 0.01) ** drawn for b in bets) >= 50
    )
    assert [broken.too_many_bad(bad, drawn, 0.01) for bad in (first - 1, first)] == [False, True]
  assert not broken.too_many_bad(10**6, 10**6, 1) and broken.too_many_bad(1, 10**9, 0)


def test_counts_survive_a_resume():
  config = make_config({}, {}, batch_size=50)
  sources = lambda: [Source(1000), Source(1000, change=some_bad(0.05))]
  message, whole = fails(config, sources())
  first = data.train_batches(config, Text(), sources=sources())
  for _ in range(4):
    next(first)
  first.close()
  counts = json.loads(json.dumps(first.counts))
  assert counts == {"bad": first.bad, "drawn": first.drawn, "filtered": [0, 0]}
  assert sum(counts["drawn"]) == 200 + sum(counts["bad"])
  resumed = data.train_batches(config, Text(), sources=sources(), start_step=4, counts=counts)
  with pytest.raises(ValueError) as e:
    for _ in range(400):
      next(resumed)
  assert resumed.counts == whole.counts
  assert str(e.value).partition(", first")[0] == message.partition(", first")[0]


def test_max_bad_fraction_zero_stops_at_the_first():
  message, batches = fails(
    make_config({"max_bad_fraction": 0}), [Source(100, change=some_bad(0.001))]
  )
  assert batches.bad == [1] and "first example 0: no caption" in message


def test_a_source_without_a_sound_example_stops_at_once():
  message, _ = fails(
    make_config({"max_bad_fraction": 1}), [Source(50, change=BROKEN["unreadable"])], steps=1
  )
  assert message.startswith(
    f"config.data.0: {broken.MAX_REPLACEMENTS} examples in a row are broken, first example"
  )
  assert (
    "ZeroDivisionError: division by zero" in message and "config.data.0.max_bad_fraction" in message
  )


def test_a_batch_with_more_examples_than_there_are_is_warned_of(caplog):
  start = lambda config, sizes, **where: data.train_batches(
    config, Text(), sources=[Source(n, labels=range(n)) for n in sizes], **where
  ).close()
  with caplog.at_level(logging.WARNING, "siglax"):
    start(make_config({}, batch_size=700), [700])
    start(make_config({}, {"weight": 100}, batch_size=200), [100, 100])
    start(make_config({}, batch_size=1024, positives="label"), [700])
    # The first says it
    start(make_config({}, batch_size=1024), [700], process_index=1, process_count=2)
  assert not caplog.records
  with caplog.at_level(logging.WARNING, "siglax"):
    start(make_config({}, batch_size=1024), [700])
    start(make_config({"weight": 300}, {"weight": 100}, batch_size=80), [900, 12])
  first, second = (record.getMessage() for record in caplog.records)
  assert first.startswith(
    "config.data.0 has 700 distinct examples, but config.batch_size=1024 takes 1,024 of them a "
    "batch"
  )
  assert "count as negatives" in first and "set config.batch_size to 700 or less" in first
  assert second.startswith(
    "config.data.1 has 12 distinct examples, but config.batch_size=80 takes 20 of them"
  )
  assert "set config.batch_size to 48 or less" in second


def test_a_batch_must_divide_over_the_processes():
  with pytest.raises(ValueError, match="config.batch_size=8 is not divisible by the 3 processes"):
    data.train_batches(make_config(), Text(), sources=[Source(4)], process_count=3)


def loader_threads():
  return [thread for thread in threading.enumerate() if thread.name.startswith("siglax-data")]


def no_loader_threads() -> bool:
  """Whether the threads of this test, and of those before, have ended within 10 seconds."""
  until = time.monotonic() + 10
  while loader_threads() and time.monotonic() < until:
    time.sleep(0.01)
  return not loader_threads()


def test_no_thread_outlives_the_iterator():
  assert no_loader_threads()
  batches = data.train_batches(make_config(loader={"threads": 3}), Text(), sources=[Source(40)])
  next(batches)
  assert loader_threads()
  batches.close()
  batches.close()
  assert no_loader_threads()
  with pytest.raises(StopIteration):
    next(batches)


def test_open_data_names_the_spec():
  config = make_config({"examples": 30}, {"source": "parquet", "path": "/nowhere/x.parquet"})
  with pytest.raises(
    ValueError, match=r"^config\.data\.1\.path='/nowhere/x\.parquet': no such file"
  ):
    data.open_data(config)
  sources = data.open_data(make_config({"examples": 30}, {"examples": 12}))
  assert data.num_examples(sources) == 42


def pictures(i, example):
  picture = np.random.default_rng(i).integers(0, 256, (20 + i, 15, 3), np.uint8)
  return example | {"image": cv2.imencode(".png", picture[..., ::-1])[1].tobytes()}


def test_evaluation_resizes_and_keeps_every_caption():
  source = Source(11, captions=3, labels=range(11), classnames=("a",) * 11, change=pictures)
  examples = data.EvalExamples(source, make_config(image={"resize": "bicubic", "flip": True}))
  assert len(examples) == 11 and examples.classnames == source.classnames
  picture = np.random.default_rng(4).integers(0, 256, (24, 15, 3), np.uint8)
  np.testing.assert_array_equal(examples[4]["image"], images.resize(picture, SIZE, "bicubic"))
  assert examples[4]["captions"] == source[4]["captions"] and examples[4]["label"] == 4
  unlabelled = data.EvalExamples(Source(3, captions=0), make_config())
  assert unlabelled[0]["label"] is None and unlabelled[0]["captions"] == []


def test_evaluation_names_a_broken_image():
  def change(i, example):
    return BROKEN["undecodable"](i, example) if i == 6 else example

  examples = data.EvalExamples(Source(9, change=change), make_config())
  with pytest.raises(
    ValueError, match="^example 6 of .*cannot be decoded.*evaluation data must be"
  ):
    examples[6]
  assert examples[5]["captions"]


def test_labels_have_24_bits():
  largest = Source(4, labels=[2**24 - 1] * 4)
  (batch,) = read(
    make_config({}, {}, batch_size=8),
    [largest, Source(4, labels=[5] * 4, classnames=("a",) * 6)],
    1,
  )
  assert sorted(set(batch["label"].tolist())) == [2**24 - 1, 2**24 + 5]
  with pytest.raises(ValueError, match="label=16777216 must be below 16777216"):
    read(make_config({}, batch_size=4), [Source(4, labels=[2**24] * 4)], 1)


def test_one_label_in_all_of_the_data_is_named(caplog):
  config = make_config({}, positives="label")
  data.same_label(config, [Source(4, labels=[0, 1, 1, 0])])
  assert not caplog.text
  data.same_label(config, [Source(4, labels=[1, 1, 1, 1])])
  assert "all labels read are the same" in caplog.text


def test_a_batch_that_no_memory_holds_is_refused(monkeypatch):
  monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 2**18, "SC_PAGE_SIZE": 2**12}.get)
  config = make_config({}, batch_size=2**23, image={"size": 16})  # 6 GiB of a machine's 1
  with pytest.raises(ValueError, match="are 6 GiB in each of 1 processes, and this machine has 1 "):
    data.train_batches(config, Text(), start_step=0, sources=[Source(4)])


def test_a_broken_source_stops_beside_a_good_one():
  """Although no row of it in the batch was good at the first draw."""

  def spoil(i, example):
    return {**example, "image": b"broken"}

  config = make_config({"weight": 1}, {"weight": 1})
  batches = data.train_batches(
    config, Text(), start_step=0, sources=[Source(40, change=spoil), Source(40)]
  )
  bad = np.full((8, 32), -1, np.int64)
  bad[:4] = np.arange(4 * 32).reshape(4, 32) % 40
  with pytest.raises(ValueError, match="config.data.0: 128 of 132 examples drawn are broken"):
    batches._count(np.repeat(np.int32([0, 1]), 4), bad)
  batches.close()


def allocations(monkeypatch, config, steps):
  """Batches alive at most, of those allocated, while a slow consumer takes some."""
  alive, most = set(), []

  def counted(layout, memory=None, original=layout.Layout.arrays):
    arrays = original(layout, memory)
    key = len(most)
    alive.add(key)
    most.append(len(alive))
    weakref.finalize(arrays["image"], alive.discard, key)
    return arrays

  monkeypatch.setattr(layout.Layout, "arrays", counted)
  batches = data.train_batches(config, Text(), sources=[Source(400)])
  for _ in range(steps):
    batch = None
    batch = next(batches)
    full = time.monotonic() + 10  # as during a step: as many as there may be
    while len(batches._iterator._schedule._batches) < config.loader.buffer:
      assert time.monotonic() < full
      time.sleep(0.001)
  batches.close()
  assert batch is not None
  return max(most), len(most)


@pytest.mark.parametrize("threads, buffer", [(1, 1), (1, 3), (16, 1), (16, 2)])
def test_batches_in_memory_do_not_depend_on_threads(threads, buffer, monkeypatch):
  config = make_config(batch_size=32, loader={"threads": threads, "buffer": buffer})
  most, all_of_them = allocations(monkeypatch, config, 6)
  assert most == buffer + 1 and all_of_them == 6 + buffer


class Numbers:
  """Element k is {"x": k}, unless k is in errors."""

  def __init__(self, *errors):
    self.errors = errors

  def __getitem__(self, k):
    if k in self.errors:
      raise KeyError(k)
    return {"x": np.int64(k)}


def test_an_error_comes_after_the_batches_before_it_and_the_first_row_s_is_told():
  for _ in range(20):
    batches = Batches(Numbers(47, 44, 81), 0, 20, 20, threads=4, buffer=3)
    for step in (0, 1):
      np.testing.assert_array_equal(next(batches)["x"], step * 20 + np.arange(20))
    for _ in range(2):
      with pytest.raises(KeyError, match="44"):
        next(batches)
    batches.close()


class Odd(Numbers):
  def __getitem__(self, k):
    return {"x": np.zeros(3 if k == 5 else 1)}


def test_a_row_of_another_shape_is_an_error_not_broadcast():
  batches = Batches(Odd(), 0, 8, 8, threads=2, buffer=1)
  with pytest.raises(ValueError, match=r"x is float64\[3\], the first one's was float64\[1\]"):
    next(batches)
  batches.close()


def test_iterators_that_are_forgotten_leave_no_thread():
  for end in ("forgotten", "closed", "failed"):
    batches = Batches(Numbers(*[70] * (end == "failed")), 0, 10, 10, threads=3, buffer=2)
    next(batches)
    assert loader_threads()
    if end == "closed":
      batches.close()
      with pytest.raises(StopIteration):
        next(batches)
    del batches
    gc.collect()
    assert no_loader_threads()


class Slow(Numbers):
  """Waits at element 5 until it is let go."""

  def __init__(self):
    super().__init__()
    self.go, self.there = threading.Event(), threading.Event()

  def __getitem__(self, k):
    if k >= 5:
      self.there.set()
      self.go.wait()
    return {"x": np.int64(k)}


def test_closing_wakes_who_waits_for_a_batch():
  elements, ended = Slow(), []
  batches = Batches(elements, 0, 8, 8, threads=2, buffer=1)

  def consume():
    try:
      next(batches)
    except StopIteration:
      ended.append(True)

  consumer = threading.Thread(target=consume)
  consumer.start()
  elements.there.wait()
  threading.Timer(0.1, elements.go.set).start()
  batches.close()
  consumer.join(10)
  assert ended == [True] and no_loader_threads()


def descriptors():
  return {os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")}


def test_a_killed_worker_is_named_and_nothing_is_left():
  shm = set(os.listdir("/dev/shm"))
  batches = Batches(Numbers(), 0, 6, 6, threads=2, workers=2, buffer=2)
  np.testing.assert_array_equal(next(batches)["x"], np.arange(6))
  assert set(os.listdir("/dev/shm")) == shm
  victim = multiprocessing.active_children()[0]
  os.kill(victim.pid, signal.SIGKILL)
  message = rf"the worker process {victim.pid}, which loads data, was ended by SIGKILL; .*workers=2"
  with pytest.raises(ValueError, match=message):
    for _ in range(1000):
      next(batches)
  batches.close()
  assert not multiprocessing.active_children() and no_loader_threads()
  assert not any("siglax-batch" in file for file in descriptors())


class Makers(Numbers):
  """Which process made each element."""

  def __getitem__(self, k):
    return {"x": np.int64(os.getpid())}


def test_the_process_itself_makes_rows_until_its_workers_have_started():
  batches = Batches(Makers(), 0, 4, 4, threads=2, workers=1, buffer=1)
  assert set(next(batches)["x"].tolist()) == {os.getpid()}
  (worker,) = multiprocessing.active_children()
  until = time.monotonic() + 60
  while set(next(batches)["x"].tolist()) != {worker.pid} and time.monotonic() < until:
    pass
  assert set(next(batches)["x"].tolist()) == {worker.pid}
  batches.close()


def test_a_worker_whose_work_is_more_than_a_pipe_holds_is_not_waited_for():
  elements = Makers()
  elements.more = bytes(2**20)
  began = time.monotonic()
  batches = Batches(elements, 0, 4, 4, threads=1, workers=1, buffer=1)
  next(batches)
  first, until = time.monotonic() - began, time.monotonic() + 60
  (worker,) = multiprocessing.active_children()
  while set(next(batches)["x"].tolist()) != {worker.pid} and time.monotonic() < until:
    pass
  assert set(next(batches)["x"].tolist()) == {worker.pid}
  assert first < (time.monotonic() - began) / 2
  batches.close()


def test_a_worker_without_memory_for_a_batch_says_so():
  here, there = multiprocessing.Pipe()
  of = layout.Layout.of({"x": np.int64(0)}, 6)
  thread = threading.Thread(target=workers_lib._serve, args=(there, Numbers(), of, None))
  thread.start()
  assert here.recv() == workers_lib.STARTED
  here.send((0, 0, 3))
  empty = os.memfd_create("empty")  # which cannot be mapped
  reduction.send_handle(here, empty, os.getpid())
  os.close(empty)
  assert here.poll(30)
  (row, error), objects = here.recv()
  assert row == 0 and isinstance(error, ValueError) and objects == {}
  here.close()
  thread.join(30)
  assert not thread.is_alive() and there.closed


def test_an_error_in_a_worker_comes_as_it_is():
  batches = Batches(Numbers(13), 0, 6, 6, threads=1, workers=2, buffer=2)
  next(batches), next(batches)
  with pytest.raises(KeyError, match="13"):
    next(batches)
  batches.close()
  assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("how", ["raise ZeroDivisionError", "os.kill(os.getpid(), signal.SIGINT)"])
def test_an_exception_in_the_step_ends_the_process(workers, how, tmp_path):
  program = tmp_path / "trainer.py"
  program.write_text(f"""
import os, signal, time
import numpy as np
from siglax.data.batching import Batches

class Numbers:
  def __getitem__(self, k):
    return {{"x": np.int64(k)}}

if __name__ == "__main__":
  batches = Batches(Numbers(), 0, 64, 64, threads=2, workers={workers}, buffer=2)
  for batch in batches:
    {how}
    time.sleep(60)
""")
  done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=50)
  error = "ZeroDivisionError" if "Zero" in how else "KeyboardInterrupt"
  assert done.stderr.rstrip().endswith(error) and done.stderr.count("Traceback") == 1
  assert done.returncode == (1 if "Zero" in how else -signal.SIGINT)


def test_cores_are_those_of_the_affinity_and_the_cgroups(tmp_path, monkeypatch):
  monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
  assert 1 <= cores.usable() <= 8
  (tmp_path / "proc/self").mkdir(parents=True)
  group = tmp_path / "proc/self/cgroup"
  assert cores.quota(tmp_path) == math.inf
  group.write_text("0::/pod/trainer\n")
  inner = tmp_path / "sys/fs/cgroup/pod/trainer"
  inner.mkdir(parents=True)
  (inner / "cpu.max").write_text("max 100000\n")
  assert cores.quota(tmp_path) == math.inf
  (inner.parent / "cpu.max").write_text("250000 100000\n")
  assert cores.quota(tmp_path) == 2.5
  monkeypatch.setattr(cores, "quota", lambda: 2.5)
  assert cores.usable() == 3
  monkeypatch.undo()
  group.write_text("3:cpu,cpuacct:/docker/of-the-host\n2:memory:/x\n")
  folder = tmp_path / "sys/fs/cgroup/cpu"
  folder.mkdir()
  (folder / "cpu.cfs_quota_us").write_text("150000\n")
  (folder / "cpu.cfs_period_us").write_text("100000\n")
  assert cores.quota(tmp_path) == 1.5
  (folder / "cpu.cfs_quota_us").write_text("-1\n")
  assert cores.quota(tmp_path) == math.inf


def test_threads_and_workers_suit_the_cores_unless_they_are_given(monkeypatch):
  count = 5
  monkeypatch.setattr(cores, "usable", lambda: count)
  sources = [Source(10)]
  found = lambda **loader: pipeline.loader_threads(make_config(loader=loader), sources)
  assert found() == (5, 0) and found(threads=3) == (3, 0) and found(workers=0) == (5, 0)
  assert found(workers=2) == (2, 2) and found(workers=9) == (1, 9)
  assert found(workers=2, threads=4) == (4, 2)
  command = types.SimpleNamespace(__spec__=None, __file__="/usr/bin/siglax")
  monkeypatch.setitem(sys.modules, "__main__", command)
  assert found() == (2, 2) and found(threads=3) == (3, 0) and found(workers=0) == (5, 0)
  count = 16
  assert found() == (2, 8)
  sources[0].held_bytes = 2**30
  monkeypatch.setattr(host, "memory", lambda: 32 * 2**30)
  assert found() == (5, 3)
  sources[0].held_bytes = 2**33
  assert found() == (16, 0)
  sources, count = [Source(10)], 4
  assert found() == (4, 0)


def test_loader_processes_end_with_a_trainer_that_is_killed(tmp_path):
  """SIGKILL gives it no time to tell them."""
  program = tmp_path / "trainer.py"
  program.write_text(
    """
import glob, os, pathlib, signal
from siglax import config as config_lib, data
from siglax.data.text import TextProcessor
from siglax.devices import cores

if __name__ == "__main__":
  c = config_lib.default()
  c.data = ({"source": "shapes", "examples": 64, "image_size": 16},)
  c.batch_size, c.image.size, c.loader.workers = 8, 16, 1
  next(data.train_batches(c, TextProcessor(), start_step=0, sources=data.open_data(c)))
  started_by = glob.glob(f"/proc/{os.getpid()}/task/*/children")
  print(*(pathlib.Path(thread).read_text() for thread in started_by), flush=True)
  os.kill(os.getpid(), signal.SIGKILL)
"""
  )
  done = subprocess.run([sys.executable, program], capture_output=True, text=True)
  assert done.returncode == -signal.SIGKILL, done.stderr
  workers = [int(pid) for pid in done.stdout.split()]
  assert workers
  until = time.monotonic() + 30
  while any(map(_runs, workers)) and time.monotonic() < until:
    time.sleep(0.1)
  assert not any(map(_runs, workers))


def _runs(pid: int) -> bool:
  try:
    return " Z " not in pathlib.Path(f"/proc/{pid}/stat").read_text()
  except FileNotFoundError:
    return False


def test_the_share_of_pairs_with_equal_labels_of_a_sample_has_no_bias(monkeypatch):
  """Σ_c n_c(n_c − 1) / m(m − 1), the share of pairs of two different draws."""
  monkeypatch.setattr(label_lib, "LABEL_SAMPLE", 6)
  labels = [0, 0, 1, 1, 1, 2, 2, 2]
  drawn = np.random.default_rng(0).integers(len(labels), size=6)
  counts = np.bincount(np.array(labels)[drawn])
  want = (counts * (counts - 1)).sum() / (6 * 5)
  config = make_config({}, positives="label")
  assert data.same_label(config, [Source(len(labels), labels=labels)]) == pytest.approx(want)


def test_batches_that_ended_with_an_error_tell_it_again():
  """A StopIteration would look as if the data were over."""
  batches = data.train_batches(make_config({}), Text(), sources=[Unreadable()])
  for _ in range(2):
    with pytest.raises(ValueError, match="examples in a row are broken"):
      next(batches)


class Unreadable:
  def __len__(self):
    return 8

  def __getitem__(self, i):
    raise OSError("unreadable")
