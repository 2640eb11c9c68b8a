"""What a run leaves for a report: values of single examples in each.npz, and what it cost."""

import json
import pathlib

import jax
import numpy as np
import pytest
import test_evals

from siglax import config as config_lib
from siglax import evals
from siglax.data.text import TextProcessor
from siglax.evals.kind import Kind
from siglax.runs import each as each_lib
from siglax.training import evaluation
from siglax.training import loop
from siglax.training import program as program_lib

TINY = str(pathlib.Path(__file__).parent / "tiny.py")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """(folder, returned metrics) of two steps; at its end no program compiles."""
  folder, costs, compiled = tmp_path_factory.mktemp("run"), program_lib.Program.costs, []
  config = config_lib.load(f"{TINY}:steps=2", {"log.tensorboard": "False"})
  told = lambda event, duration, **_: compiled.append(event)

  def watched(self):
    jax.monitoring.register_event_duration_secs_listener(told)
    found = costs(self)
    jax.monitoring.unregister_event_duration_listener(told)
    return found

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(program_lib.Program, "costs", watched)
    metrics = loop.train(config, folder)
  assert compiled and not [event for event in compiled if "backend_compile" in event]
  return folder, metrics


def of_retrieval(draw, seed=3):
  """(each, similarities [images, texts], the image of each text)."""
  rng, each = np.random.default_rng(seed), {}
  owner = np.repeat(np.arange(12), [1, 3, 2] * 4)
  zimg, ztxt = draw(rng, 12, 5), draw(rng, len(owner), 5)
  captions = [[f"{t}" for t in np.flatnonzero(owner == i)] for i in range(12)]
  embedder = test_evals.Embedder(zimg, {f"{t}": z for t, z in enumerate(ztxt)})
  config = test_evals.make_config({"kind": "retrieval", "name": "r", "data": {"source": "shapes"}})
  evals.run(config, embedder, lambda spec: test_evals.Examples(captions), each=each)
  return each, zimg.astype(float) @ ztxt.T.astype(float), owner


@pytest.mark.parametrize("draw", [test_evals.unit, test_evals.dyadic])
def test_each_image_and_each_text_has_its_value(draw):
  each, similarity, owner = of_retrieval(draw)
  for k in (1, 5, 10):
    texts = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    images = np.argsort(-similarity.T, axis=1, kind="stable")[:, :k]
    want = [i in owner[t] for i, t in enumerate(texts)]
    np.testing.assert_array_equal(each[f"r/text_retrieval_recall@{k}"], want)
    want = [owner[t] in i for t, i in enumerate(images)]
    np.testing.assert_array_equal(each[f"r/image_retrieval_recall@{k}"], want)


@pytest.mark.parametrize("each", [np.ones((2, 2)), np.zeros(3), 0.5])
def test_values_whose_mean_is_not_the_metric_are_refused(each):
  kind = Kind("mine", "", ("a",), lambda *_: {})
  kind.check_values({"a": 0.5, "each/a": np.array([0, 1])})
  kind.check_values({"a": np.nan, "each/a": np.array([np.nan, 1])})
  with pytest.raises(ValueError, match='kind="mine" gave each/a of shape .*one value an example'):
    kind.check_values({"a": 0.5, "each/a": each})


@pytest.mark.parametrize("spoilt", [b"PK", b"PK\x03\x04\xff\xff"])
def test_a_damaged_file_is_one_line(spoilt, tmp_path):
  """Wherever the damage is: zip's own numbers, the packed bytes, or the header of an array."""
  rng, refused = np.random.default_rng(0), 0
  whole = each_lib.encode({"r/recall": rng.random(40, np.float32)})
  for at in range(0, len(whole) - 8, 3):
    (tmp_path / "each.npz").write_bytes(whole[:at] + spoilt + whole[at + len(spoilt) :])
    try:
      each_lib.read(tmp_path)
    except ValueError as e:
      assert "each.npz cannot be read" in str(e)
      refused += 1
  assert refused > 20
  np.savez(tmp_path / "each.npz", acc=np.array(3.0, np.float32))
  with pytest.raises(ValueError, match=r"each.npz cannot be read: acc is float32\[\], not float32"):
    each_lib.read(tmp_path)


def test_a_run_keeps_the_values_of_its_last_evaluation(run):
  folder, metrics = run
  each = each_lib.read(folder)
  assert {name for name in each if name.startswith("classes/")} == {"classes/acc1", "classes/acc5"}
  assert {x.shape for name, x in each.items() if name.startswith("captions/")} == {(20,)}
  for name, x in each.items():
    assert np.mean(x, dtype=np.float64) == pytest.approx(metrics[f"eval/{name}"], abs=1e-9)


def test_evaluate_writes_them_again_and_only_for_the_run_as_it_is(run, tmp_path):
  folder, _ = run
  before = (folder / each_lib.FILE).read_bytes()
  (folder / each_lib.FILE).unlink()
  evaluation.evaluate(folder)
  assert (folder / each_lib.FILE).read_bytes() == before
  other = "({'kind': 'retrieval', 'name': 'o', 'data': {'source': 'shapes'}, 'examples': 8},)"
  evaluation.evaluate(folder, {"eval.tasks": other}, tmp_path / "other.json")
  evaluation.evaluate(folder, {"eval.tasks.0.examples": "8"})
  assert (folder / each_lib.FILE).read_bytes() == before
  (folder / each_lib.FILE).write_bytes(before[:50])
  with pytest.raises(ValueError, match="each.npz cannot be read.*run siglax evaluate again"):
    each_lib.read(folder)
  (folder / each_lib.FILE).write_bytes(before)


def test_a_finished_run_tells_its_flops_and_its_peak_memory(run):
  last = json.loads((run[0] / "metrics.jsonl").read_text().splitlines()[-1])
  program = program_lib.Program(config_lib.from_json((run[0] / "config.json").read_text()), 64)
  assert last["cost/flops"] == 2 * program.model_flops()
  # tests/test_plan.py has the same figure of a plan: it holds the state, on each device.
  state = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(program.abstract_state))
  assert state < last["cost/peak_bytes"] < 100 * state


def test_flops_know_the_steps_whose_pictures_lack_patches():
  config = config_lib.load(f"{TINY}:steps=8", {"train.unmasked_steps": "3"})
  config.model.image.patch_drop = 0.5
  config = config_lib.resolve(config, TextProcessor())
  program = program_lib.Program(config, 64)
  assert program.model_flops(0) < program.model_flops(7)
  assert program.total_flops() == sum(program.model_flops(step) for step in range(8))
