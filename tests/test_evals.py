"""siglax.evals against brute force over the full similarity matrix and a stable sort."""

import json
import math
import pathlib
import re
import subprocess
import sys

from conftest import free_port
import cv2
import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from siglax import config as config_lib
from siglax import data
from siglax import evals
from siglax import models
from siglax.devices import mesh
from siglax.evals import ranking
from siglax.training import evaluation

KS = (1, 5, 10)


class Examples:
  """Image i is filled with i."""

  def __init__(self, captions, labels=None, classnames=None):
    self._captions, self._labels, self.classnames = captions, labels, classnames

  def __len__(self):
    return len(self._captions)

  def __getitem__(self, i):
    label = None if self._labels is None else self._labels[i]
    return {"image": np.full((2, 2, 3), i, np.uint8), "captions": self._captions[i], "label": label}

  def captions(self, i):
    return self._captions[i]

  def labels(self):
    return None


class Embedder:
  """Image i is zimg[i], a text is ztxt[text]; keeps the texts it was asked for."""

  scale, bias = 7.0, -1.5

  def __init__(self, zimg, ztxt):
    self.zimg, self.ztxt, self.asked = zimg, ztxt, []

  def images(self, get, count):
    return self.zimg[[int(get(i)[0, 0, 0]) for i in range(count)]]

  def texts(self, texts):
    self.asked += texts
    return np.stack([self.ztxt[text] for text in texts])


def unit(rng, *shape):
  x = rng.normal(size=shape).astype(np.float32)
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def dyadic(rng, *shape):
  """Embeddings whose similarities are exact in float32 and often equal."""
  return rng.integers(-2, 3, size=shape).astype(np.float32)


def make_config(*tasks, batch_size=8, **loss):
  config = config_lib.default()
  config.batch_size = batch_size
  config.eval.tasks = tasks
  config.loss.update(loss)
  return config


def run(task, examples, embedder, loss=None, **config):
  task = {"name": "x", "data": {"source": "shapes"}, **task}
  metrics = evals.run(make_config(task, **config), embedder, lambda spec: examples, loss)
  assert list(metrics) == evals.metric_names(make_config(task))
  return {k.removeprefix("eval/x/"): v for k, v in metrics.items()}


def stable_ranks(queries, items, query_owner, item_owner):
  """All similarities, a stable descending sort, and the place of the first own item."""
  order = np.argsort(
    -(queries.astype(np.float64) @ items.T.astype(np.float64)), axis=1, kind="stable"
  )
  return np.array([np.flatnonzero(item_owner[o] == q)[0] for o, q in zip(order, query_owner)])


@pytest.mark.parametrize("max_similarities", [2**24, 100, 1])
def test_ranks_equal_a_stable_sort_in_chunks_of_any_size(monkeypatch, max_similarities):
  monkeypatch.setattr(ranking, "MAX_SIMILARITIES", max_similarities)
  rng = np.random.default_rng(0)
  for draw in (unit, dyadic):
    queries, items = draw(rng, 23, 6), draw(rng, 31, 6)
    item_owner = np.r_[np.arange(23), rng.integers(0, 23, 8)].astype(np.int32)
    query_owner = rng.permutation(23).astype(np.int32)
    before = (compiled := ranking._programs(mesh.make()).similarity._cache_size)()
    with jax.transfer_guard("disallow"):
      got = ranking.ranks(queries, items, query_owner, item_owner)
    assert compiled() <= before + 1
    np.testing.assert_array_equal(got, stable_ranks(queries, items, query_owner, item_owner))


def brute_retrieval(zimg, ztxt, image_of_text, k):
  similarity = zimg.astype(np.float64) @ ztxt.T.astype(np.float64)
  texts = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
  images = np.argsort(-similarity.T, axis=1, kind="stable")[:, :k]
  return {
    f"text_retrieval_recall@{k}": np.mean([i in image_of_text[t] for i, t in enumerate(texts)]),
    f"image_retrieval_recall@{k}": np.mean([image_of_text[t] in i for t, i in enumerate(images)]),
  }


@pytest.mark.parametrize("draw", [unit, dyadic])
@pytest.mark.parametrize(
  "counts", [[1] * 40, [1, 5, 2, 3] * 10, [1, 2, 1]], ids=["one", "uneven", "fewer than k"]
)
def test_retrieval_equals_brute_force(counts, draw):
  rng = np.random.default_rng(1)
  owner = np.repeat(np.arange(len(counts)), counts)
  zimg, ztxt = draw(rng, len(counts), 5), draw(rng, len(owner), 5)
  ztxt += zimg[owner]
  captions = [[f"{t}" for t in np.flatnonzero(owner == i)] for i in range(len(counts))]
  embedder = Embedder(zimg, {f"{t}": z for t, z in enumerate(ztxt)})
  got = run({"kind": "retrieval"}, Examples(captions), embedder)
  want = {}
  for k in KS:
    want |= brute_retrieval(zimg, ztxt, owner, k)
  assert got == pytest.approx(want, abs=1e-12)


def test_retrieval_examples_distinct_captions_per_image_and_missing_captions():
  captions = [["a", "b"], ["a"], [], ["c", "d"], ["e"], ["f"]]
  rng = np.random.default_rng(2)
  vectors = unit(rng, 6, 4)
  # Image i is the text below its number; only 0, 3, 4 are evaluated.
  texts = {text: vectors[i] for i, text in zip((0, 0, 3, 3, 4, 5), "abcdef")}
  embedder = Embedder(vectors, texts)
  got = run(
    {"kind": "retrieval", "examples": 3, "distinct": True, "captions_per_image": 1},
    Examples(captions),
    embedder,
  )
  assert (
    embedder.asked == ["a", "c", "e"]
    and got["text_retrieval_recall@1"] == got["image_retrieval_recall@1"] == 1
  )
  embedder = Embedder(vectors, texts)
  run({"kind": "retrieval", "examples": 4}, Examples(captions), embedder)
  assert embedder.asked == ["a", "b", "a", "c", "d"]
  with pytest.raises(
    ValueError, match=r"config.eval.tasks.0 \('x'\): none of the 2 examples has a caption"
  ):
    run({"kind": "retrieval"}, Examples([[], []]), embedder)


@pytest.mark.parametrize("value", ["equal", "nan"])
def test_a_collapsed_or_diverged_model_scores_chance(value):
  n = 100
  z = (
    unit(np.random.default_rng(3), 1, 64)[0]
    if value == "equal"
    else np.full(64, np.nan, np.float32)
  )
  examples = Examples(
    [[f"{i}"] for i in range(n)], [i % 20 for i in range(n)], [f"{c}" for c in range(20)]
  )
  embedder = Embedder(np.tile(z, (n, 1)), {f"{i}": z for i in range(n)})
  got = run({"kind": "retrieval"}, examples, embedder)
  assert got == {
    f"{wanted}_retrieval_recall@{k}": pytest.approx(k / n)
    for wanted in ("text", "image")
    for k in KS
  }
  got = run({"kind": "zero_shot", "templates": ("{}",)}, examples, embedder)
  assert got == pytest.approx({"acc1": 1 / 20, "acc5": 5 / 20, "mean_per_class_recall": 1 / 20})


@pytest.mark.parametrize("classes, max_texts", [(12, 2**14), (12, 5), (3, 1)])
def test_zero_shot_equals_brute_force_with_a_class_absent(monkeypatch, classes, max_texts):
  monkeypatch.setattr(evals.zero_shot, "MAX_TEXTS", max_texts)
  rng = np.random.default_rng(4)
  names, templates = [f"class {c}" for c in range(classes)], ("a {}", "the {}.")
  labels = rng.integers(0, classes - 1, 50)  # the last class does not occur
  ztxt = {t.replace("{}", n): unit(rng, 6) for n in names for t in templates}
  weights = np.stack(
    [np.mean([ztxt[t.replace("{}", n)] for t in templates], axis=0) for n in names]
  )
  weights /= np.linalg.norm(weights, axis=1, keepdims=True)
  zimg = unit(rng, 50, 6) * 0.8 + weights[labels]
  task = {"kind": "zero_shot", "templates": templates, "classnames": names}
  got = run(task, Examples([[]] * 50, labels.tolist()), Embedder(zimg, ztxt))
  order = np.argsort(-zimg @ weights.T, axis=1, kind="stable")
  right = order[:, 0] == labels
  assert 0.2 < right.mean() < 0.9
  want = {
    "acc1": right.mean(),
    "acc5": (order[:, :5] == labels[:, None]).any(1).mean(),
    "mean_per_class_recall": np.mean([right[labels == c].mean() for c in np.unique(labels)]),
  }
  assert got == pytest.approx(want, abs=1e-7)


def test_zero_shot_takes_the_class_names_of_the_data_and_checks_labels():
  vectors = np.eye(3, dtype=np.float32)
  embedder = Embedder(vectors, {f"a photo of a {n}.": v for n, v in zip("abc", vectors)})
  task = {"kind": "zero_shot", "examples": 2}
  assert run(task, Examples([[]] * 3, [0, 1, 0], ["a", "b", "c"]), embedder)["acc1"] == 1
  with pytest.raises(ValueError, match="example 1 has label 3, but the 3 classnames need 0 to 2"):
    run(task, Examples([[]] * 3, [0, 3, 1], ["a", "b", "c"]), embedder)
  with pytest.raises(ValueError, match="example 0 has label None"):
    run(task, Examples([[]] * 3, None, ["a", "b", "c"]), embedder)
  with pytest.raises(ValueError, match=r"config.eval.tasks.0 \('x'\): the data has no class names"):
    run(task, Examples([[]] * 3, [0, 1, 1]), embedder)


def sigmoid_loss(zimg, ztxt, scale, bias, *, weights, labels):
  x = scale * zimg.astype(np.float64) @ ztxt.T + bias
  p = np.eye(len(x)) if labels is None else labels[:, None] == labels[None]
  return np.sum(weights[:, None] * weights * (np.logaddexp(0, x) - p * x)) / weights.sum()


@pytest.mark.parametrize("positives", ["pair", "label"])
@pytest.mark.parametrize("count", [16, 19, 5])
def test_loss_is_the_mean_over_blocks_weighted_by_their_examples(count, positives):
  rng = np.random.default_rng(5)
  zimg, ztxt, labels = unit(rng, count, 4), unit(rng, count, 4), rng.integers(0, 3, count)
  captions = [[f"{i}", "not used"] for i in range(count)]
  seen = []

  def loss(zimg, ztxt, scale, bias, *, weights, labels):
    seen.append((zimg.shape, ztxt.shape, weights.shape, weights.dtype))
    return sigmoid_loss(zimg, ztxt, scale, bias, weights=weights, labels=labels)

  embedder = Embedder(zimg, {f"{i}": z for i, z in enumerate(ztxt)})
  got = run(
    {"kind": "loss"}, Examples(captions, labels.tolist()), embedder, loss, positives=positives
  )
  want = 0
  for start in range(0, count, 8):
    part = slice(start, start + 8)
    block_labels = labels[part] if positives == "label" else None
    n = len(zimg[part])
    want += (
      n
      * sigmoid_loss(zimg[part], ztxt[part], 7.0, -1.5, weights=np.ones(n), labels=block_labels)
      / count
    )
  assert got["loss"] == pytest.approx(want, rel=1e-6)
  assert set(seen) == {((8, 4), (8, 4), (8,), np.dtype(np.float32))} and len(seen) == -(-count // 8)


def test_loss_needs_what_it_needs():
  embedder = Embedder(np.eye(2, dtype=np.float32), {"a": np.ones(2, np.float32)})
  with pytest.raises(ValueError, match="needs the training loss"):
    run({"kind": "loss"}, Examples([["a"]] * 2), embedder)
  with pytest.raises(ValueError, match='config.loss.positives="label" needs one for each'):
    run({"kind": "loss"}, Examples([["a"]] * 2), embedder, sigmoid_loss, positives="label")


@pytest.mark.parametrize(
  "task, captions, labels, names, message",
  [
    ({"kind": "zero_shot"}, ["a"], [0, 1, 1], None, "the data has no class names; give classnames"),
    (
      {"kind": "zero_shot"},
      ["a"],
      None,
      ["x", "y"],
      "example 0 has label None, but the 2 classnames need 0 to 1",
    ),
    (
      {"kind": "zero_shot", "classnames": ("x", "y", "z")},
      [],
      [2, 1, 3],
      ["x"],
      "example 2 has label 3, but the 3 classnames need 0 to 2",
    ),
    ({"kind": "zero_shot", "examples": 2}, [], [1, 1, 3], ["x", "y"], None),
    (
      {"kind": "retrieval"},
      [],
      [0, 0, 0],
      None,
      "none of the 3 examples has a caption; check the fields of data",
    ),
    ({"kind": "retrieval", "distinct": True, "captions_per_image": 1}, ["a"], None, None, None),
    ({"kind": "loss"}, [], None, None, "none of the 3 examples has a caption"),
    ({"kind": "loss"}, ["a"], None, None, 'config.loss.positives="label" needs one for each'),
    ({"kind": "loss"}, ["a"], [0, 1, 1], None, None),
  ],
)
def test_a_task_is_checked_on_its_data_before_anything_runs(task, captions, labels, names, message):
  good = {"kind": "retrieval", "name": "good", "data": {"source": "shapes"}}
  config = make_config(
    good, {"name": "x", "data": {"source": "parquet", "path": "p"}, **task}, positives="label"
  )
  there = {"shapes": Examples([["a"]]), "parquet": Examples([captions] * 3, labels, names)}
  check = lambda: evals.check(config, lambda spec: there[spec["source"]])
  if message is None:
    check()
  else:
    with pytest.raises(ValueError) as e:
      check()
    assert (
      str(e.value).startswith("config.eval.tasks.1 ('x'): ")
      and message in str(e.value)
      and "\n" not in str(e.value)
    )


def pictures_file(path, classes=None, **columns):
  image = data.open_source({"source": "shapes", "examples": 1, "image_size": 16})[0]["image"]
  encoded = cv2.imencode(".png", image)[1].tobytes()
  table = pa.table({"image": [encoded] * 4, "caption": list("abcd"), **columns})
  pq.write_table(table.replace_schema_metadata(classes and {"classes": classes}), path)
  return str(path)


def test_the_evaluator_looks_at_every_task_s_data(tmp_path):
  config = config_lib.load("tests/tiny.py")
  config.eval.tasks += (
    {
      "kind": "zero_shot",
      "name": "mine",
      "data": {"source": "parquet", "path": pictures_file(tmp_path / "a.parquet")},
    },
  )
  config.model.text.vocab_size, config.model.text.eos_id = 107, 1
  evaluator = evaluation.Evaluator(config, models.build(config.model), None, mesh.make())
  with pytest.raises(
    ValueError, match=r"^config\.eval\.tasks\.3 \('mine'\): the data has no class names"
  ):
    evaluator.check()
  config.eval.tasks[3]["data"]["path"] = str(tmp_path / "gone.parquet")
  with pytest.raises(
    ValueError, match=r"^config\.eval\.tasks\.3 \('mine'\): path=.*gone\.parquet': no such file"
  ):
    evaluator.check()


@pytest.mark.parametrize(
  "labels, classes, positives, kind",
  [
    (None, None, "pair", "retrieval"),
    ([0, 1, 1, 0], None, "label", "retrieval"),
    ([0, 1, 1, 0], "cat,dog", "label", "zero_shot"),
  ],
)
def test_the_config_for_your_own_pictures_evaluates_what_the_files_hold(
  tmp_path, labels, classes, positives, kind
):
  columns = {} if labels is None else {"label": labels}
  file = pictures_file(tmp_path / "a.parquet", classes, **columns)
  config = config_lib.load(f"configs/cifar10_captions.py:train={file},test={file}")
  assert config.loss.positives == positives and [task["kind"] for task in config.eval.tasks] == [
    kind
  ]
  assert len(data.open_data(config)) == 1
  evals.check(config, lambda spec: data.EvalExamples(data.open_source(spec), config))


def test_the_config_for_cifar_is_what_its_figures_were_made_with():
  config = config_lib.load("configs/cifar10_captions.py")  # and where the files are not there yet
  task = {
    "kind": "zero_shot",
    "name": "test",
    "data": {"source": "parquet", "path": "cifar10_test.parquet"},
    "templates": ("a photo of a {}.", "a photo of an {}."),
  }
  assert config.eval.tasks == (task,) and config.loss.positives == "label"


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
  """{processes: what each of them said} of evaluation_process.py on 2,000 pictures and more."""
  folder, worker = tmp_path_factory.mktemp("reads"), pathlib.Path(__file__).parent
  for name, count, captions in (("even", 2000, 1), ("odd", 101, 3)):
    rng = np.random.default_rng(count)
    pixels = [rng.integers(0, 256, (8, 8, 3), np.uint8) for _ in range(count)]
    colours = ("red", "green", "blue", "yellow")
    table = {
      "image": [cv2.imencode(".png", x)[1].tobytes() for x in pixels],
      "caption": [
        # Some have none, and some say the same.
        [f"a {colours[(i + k) % 4]} ring {i % 37}" for k in range((i + 1) % (captions + 1))]
        if captions > 1
        else [f"a {colours[i % 4]} square {i}"]
        for i in range(count)
      ],
      "label": rng.integers(0, 4, count),
    }
    pq.write_table(pa.table(table), folder / f"{name}.parquet", row_group_size=100)
  pq.write_table(
    pa.table(table | {"image": [*table["image"][:70], b"broken", *table["image"][71:]]}),
    folder / "broken.parquet",
  )
  said = {}
  for count in (1, 2):
    port = str(free_port())
    processes = [
      subprocess.Popen(
        [sys.executable, worker / "evaluation_process.py", str(rank), str(count), port, folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
      for rank in range(count)
    ]
    outputs = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0] * count, outputs
    said[count] = [json.loads(output.splitlines()[-1]) for output, _ in outputs]
  return said


@pytest.mark.slow
def test_each_of_two_processes_reads_and_decodes_its_own_pictures_once(evaluated):
  (alone,), together = evaluated[1], evaluated[2]
  assert alone["even"]["decoded"] == alone["even"]["read"] == 2000
  for process in together:
    assert process["even"]["decoded"] == process["even"]["read"] == 1000
  # The last batch has five of 101: an even share, and each picture once.
  assert alone["odd"]["decoded"] == alone["odd"]["read"] == 9 * 101
  shares = [process["odd"]["decoded"] for process in together]
  assert sum(shares) == 9 * 101 and max(shares) - min(shares) == 9
  assert shares == [process["odd"]["read"] for process in together]


@pytest.mark.slow
def test_two_processes_evaluate_bit_for_bit_as_one(evaluated):
  (alone,), together = evaluated[1], evaluated[2]
  for process in together:
    for task in ("even", "odd"):
      assert process[task]["metrics"] == alone[task]["metrics"]
  assert len(alone["odd"]["metrics"]) == 6 + 3 + 1 + 3 + 3 + 3 + 3
  assert 0 < alone["even"]["metrics"]["eval/even_retrieval/text_retrieval_recall@10"] < 1


@pytest.mark.slow
def test_a_broken_picture_ends_an_evaluation_with_the_same_line_in_all_processes(evaluated):
  (line,) = {process["broken"] for processes in evaluated.values() for process in processes}
  assert re.match(
    r"config.eval.tasks.0 \('broken_retrieval'\): example 70 of .*cannot be decoded", line
  )


def test_clip_benchmark_json():
  config = make_config(
    {"kind": "loss", "name": "val"},
    {"kind": "retrieval", "name": "coco"},
    {"kind": "zero_shot", "name": "in"},
  )
  metrics = {k: float(i) for i, k in enumerate(evals.metric_names(config))}
  val, coco, imagenet = evals.clip_benchmark_json(config, metrics, "S/16", "run/1000")
  assert (val["task"], val["metrics"]) == ("loss", {"loss": metrics["eval/val/loss"]})
  assert coco["metrics"] == {
    f"{w}_retrieval_recall@{k}": metrics[f"eval/coco/{w}_retrieval_recall@{k}"]
    for w in ("text", "image")
    for k in KS
  }
  assert imagenet == {
    "dataset": "in",
    "model": "S/16",
    "pretrained": "run/1000",
    "task": "zeroshot_classification",
    "metrics": {k: metrics[f"eval/in/{k}"] for k in ("acc1", "acc5", "mean_per_class_recall")},
    "language": "en",
  }


GOOD = {"kind": "retrieval", "name": "a", "data": {"source": "shapes"}}


@pytest.mark.parametrize(
  "tasks, message",
  [
    ((GOOD, GOOD), "config.eval.tasks.1.name='a' is also the name of config.eval.tasks.0"),
    (("retrieval",), "config.eval.tasks.0='retrieval' must be a dict"),
    (
      ({**GOOD, "kind": "zeroshot"},),
      "config.eval.tasks.0.kind='zeroshot' is unknown; known are zero_shot, retrieval, loss",
    ),
    (({"kind": "loss", "data": {}},), "config.eval.tasks.0.name=None must be"),
    (({**GOOD, "name": "a/b"},), "config.eval.tasks.0.name='a/b' must be"),
    (({"kind": "loss", "name": "a"},), "config.eval.tasks.0.data is missing"),
    (({**GOOD, "exampels": 3},), "config.eval.tasks.0.exampels is unknown; did you mean examples?"),
    (
      ({**GOOD, "templates": ("{}",)},),
      "config.eval.tasks.0.templates is unknown; retrieval has examples, distinct, "
      "captions_per_image",
    ),
    (({**GOOD, "examples": 0},), "config.eval.tasks.0.examples=0 must be at least 1, or None"),
    (
      ({**GOOD, "distinct": None},),
      "config.eval.tasks.0.distinct=None is of type NoneType; it needs bool",
    ),
    (
      ({**GOOD, "kind": "zero_shot", "templates": 3},),
      "config.eval.tasks.0.templates=3 is of type int; it needs str | tuple",
    ),
    (
      ({**GOOD, "kind": "zero_shot", "templates": ("a photo",)},),
      "config.eval.tasks.0.templates=('a photo',) must be",
    ),
    (
      ({**GOOD, "kind": "zero_shot", "classnames": ()},),
      "config.eval.tasks.0.classnames=() must be",
    ),
    (({**GOOD, "data": "bad"},), "config.eval.tasks.0.data is bad"),
  ],
)
def test_validation_errors(monkeypatch, tasks, message):
  def validate_spec(spec, field):
    if spec == "bad":
      raise ValueError(f"{field} is bad")

  monkeypatch.setattr(data, "validate_spec", validate_spec, raising=False)
  evals.validate_tasks(
    make_config(GOOD, {**GOOD, "kind": "zero_shot", "name": "b", "classnames": None, "examples": 5})
  )
  with pytest.raises(ValueError) as error:
    evals.validate_tasks(make_config(*tasks))
  assert message in str(error.value) and "\n" not in str(error.value)


def test_keep_best_must_be_a_metric(monkeypatch):
  monkeypatch.setattr(data, "validate_spec", lambda spec, field: None, raising=False)
  config = make_config(GOOD)
  config.checkpoint.keep_best = "eval/a/image_retrieval_recall@5"
  evals.validate_tasks(config)
  config.checkpoint.keep_best = "eval/a/image_recall@5"
  with pytest.raises(ValueError, match="did you mean 'eval/a/image_retrieval_recall@5'"):
    evals.validate_tasks(config)


def test_chance_of_retrieval_is_that_of_a_draw_without_replacement():
  """Of three texts two are the first picture's: one draw finds one of its own with 2/3, or 1/3."""
  facts, examples = {}, Examples([["a", "b"], ["c"]])
  texts = dict(zip("abc", np.eye(3, 2, dtype=np.float32)))
  task = {"kind": "retrieval", "name": "r", "data": {"source": "shapes"}}
  embedder = Embedder(np.eye(2, dtype=np.float32), texts)
  evals.run(make_config(task), embedder, lambda spec: examples, facts=facts)
  assert facts["eval/r/chance/text_retrieval_recall@1"] == pytest.approx((2 / 3 + 1 / 3) / 2)
  assert facts["eval/r/chance/image_retrieval_recall@1"] == pytest.approx(1 / 2)
  assert facts["eval/r/chance/text_retrieval_recall@5"] == 1


def test_ranking_a_million_images_and_five_million_texts_takes_flat_memory(monkeypatch):
  """Of the compiled programs, an accelerator's bytes; the bounds do not know of 1M and 5M."""
  assert math.prod(ranking.shape(10**6, 5 * 10**6, 8)) == ranking.CPU_SIMILARITIES
  for name in ("SIMILARITIES", "QUERIES"):
    monkeypatch.setattr(ranking, f"CPU_{name}", getattr(ranking, f"MAX_{name}"))
  run, MiB, d = ranking._programs(mesh.make()), 2**20, 768
  for Q, N in ((10**6, 5 * 10**6), (5 * 10**6, 10**6)):
    q, t = ranking.shape(Q, N, 8)
    assert q * t <= ranking.MAX_SIMILARITIES == 2**24 and t % 8 == 0
    f32, i32 = (lambda *s, of=of: jax.ShapeDtypeStruct(s, of) for of in (np.float32, np.int32))
    tile = f32(8 * q, t), i32(8 * q), i32(t), i32(), i32()
    state = f32(8 * q), i32(8 * q)
    for program, arguments, most in (
      (run.similarity, (f32(8 * q, d), f32(t, d)), (q + 3 * t) * d * 4 + 64 * MiB),
      (run.best, (*tile, *state), 64 * MiB),
      (run.ahead, (*tile, *state, i32(8 * q)), 64 * MiB),
    ):
      memory = program.lower(*arguments).compile().memory_analysis()
      used = memory.argument_size_in_bytes + memory.output_size_in_bytes
      assert used + memory.temp_size_in_bytes <= most + 96 * MiB
