"""One run of six steps whose every logged and saved value is worked out again in numpy.

It averages its parameters, drops out, clips and warms up, evaluates every second step and saves
after each, so that what is logged, evaluated or saved of another step, or of other parameters, is
another number. What the towers make of an example (tests/test_models.py) and which examples a step
gets (tests/test_pipeline.py) is taken from them.
"""

import inspect
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from siglax import config as config_lib
from siglax import data as data_lib
from siglax import models
from siglax.data.text import TextProcessor
from siglax.runs import checkpoint
from siglax.runs import stored
from siglax.training import loop

import oracles
import tiny

STEPS, EVERY, BATCH = 6, 2, 16
LR, WARMUP, EMA, CLIP, DECAY, B1, B2, EPS, SEED = 0.02, 2, 0.75, 0.5, 0.1, 0.9, 0.95, 1e-3, 5
LOSS = "eval/test/loss"
BEST = "eval/captions/image_retrieval_recall@5"  # its highest is the first one


def configured():
  c = tiny.get_config(steps=STEPS)
  c.seed = SEED
  c.model.image.dropout, c.model.text.dropout = 0.3, 0.2
  c.train.ema = EMA
  c.optim.lr, c.optim.clip_norm, c.optim.weight_decay, c.optim.eps = LR, CLIP, DECAY, EPS
  config_lib.set_duration(c, "optim.warmup", steps=WARMUP)
  config_lib.set_duration(c, "eval.every", steps=EVERY)
  config_lib.set_duration(c, "checkpoint.every", steps=1)
  c.checkpoint.keep_latest, c.checkpoint.keep_best = 2, BEST
  return c


def main(folder):
  """The run, in a process of its own with one device, where it compiles in a third of the time of
  eight.

  Next to it goes what it returned, and of each save the state, the metrics for keep_best and
  metrics.jsonl so far.
  """
  saves, save = {}, checkpoint.Checkpoints.save

  def spy(*args, **kw):
    given = inspect.signature(save).bind(*args, **kw).arguments
    state = jax.tree.map(np.array, jax.device_get(given["state"]))
    saves[given["step"]] = state, given.get("metrics"), records(folder)
    return save(*args, **kw)

  checkpoint.Checkpoints.save = spy
  returned = loop.train(configured(), folder)
  folder.with_suffix(".pickle").write_bytes(pickle.dumps((returned, saves)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp("six") / "run"
  environment = {
    **os.environ,
    "JAX_NUM_CPU_DEVICES": "1",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "PYTHONPATH": os.pathsep.join(sys.path),
  }
  done = subprocess.run(
    [sys.executable, __file__, folder], env=environment, capture_output=True, text=True, timeout=240
  )
  assert done.returncode == 0, done.stderr
  returned, saves = pickle.loads(folder.with_suffix(".pickle").read_bytes())
  return types.SimpleNamespace(
    folder=folder, returned=returned, saves=saves, records=records(folder)
  )


def records(folder):
  return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def quick(function):
  """Compiled with little care, in half the time."""
  return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def objective(params, batch, model, keys):
  """The dense loss in plain jnp, with all it is made of."""
  z = (
    model.embed_image(params, batch["image"], keys["image"]),
    model.embed_text(params, batch["tokens"], keys["text"]),
  )
  x = jnp.exp(params["log_scale"]) * jnp.dot(z[0], z[1].T, precision="highest") + params["bias"]
  return jnp.sum(jnp.logaddexp(0, x) - jnp.eye(BATCH) * x) / BATCH, z


def keys_of(step):
  """A key for each tower and example, by the seed and the number of updates before."""
  image, text = jax.random.split(jax.random.fold_in(jax.random.key(SEED), step))
  of_examples = lambda key: jnp.stack([jax.random.fold_in(key, i) for i in range(BATCH)])
  return {"image": of_examples(image), "text": of_examples(text)}


@pytest.fixture(scope="module")
def worked_out(run):
  """By step: the values to log, the parameters, moments and average after it; from the parameters
  saved before it.
  """
  text = TextProcessor(length=12)
  config = config_lib.resolve(configured(), text)
  model = models.build(config.model)
  gradient = quick(jax.value_and_grad(lambda p, b, k: objective(p, b, model, k), has_aux=True))
  exact = lambda tree: jax.tree.map(lambda x: np.asarray(x, np.float64), jax.device_get(tree))
  params = run.saves[1][0].params  # those before the first step too, whose rate is 0
  average, mu, nu = (
    exact(params),
    *(jax.tree.map(lambda x: np.zeros(x.shape), params) for _ in range(2)),
  )
  batches, steps = data_lib.train_batches(config, text), {}
  for step in range(1, STEPS + 1):
    batch = next(batches)
    (_, z), grads = gradient(params, batch, keys_of(step - 1))
    (zimg, ztxt), grads, p = exact(z), exact(grads), exact(params)
    scale, bias = np.exp(p["log_scale"]), p["bias"]
    x = scale * zimg @ ztxt.T + bias
    norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(grads)))
    s = step - 1 - WARMUP
    lr = LR * (step - 1) / WARMUP if s < 0 else LR / 2 * (1 + np.cos(np.pi * s / (STEPS - WARMUP)))
    values = {
      "step": step,
      "examples": BATCH * step,
      "loss": oracles.sigmoid(zimg, ztxt, scale, bias)[0],
      "scale": scale,
      "bias": bias,
      "logit_pos": np.diag(x).mean(),
      "logit_neg": x[~np.eye(BATCH, dtype=bool)].mean(),
      "grad_norm": norm,
      "lr": lr,
      "local_accuracy": np.mean(x.argmax(axis=1) == np.arange(BATCH)),
    }
    assert norm > CLIP
    grads = jax.tree.map(lambda g: g * CLIP / norm, grads)
    mu = jax.tree.map(lambda m, g: B1 * m + (1 - B1) * g, mu, grads)
    nu = jax.tree.map(lambda v, g: B2 * v + (1 - B2) * g**2, nu, grads)

    def updated(path, p, m, v):
      decay = DECAY if path[-1].key == "kernel" else 0
      return p - lr * (m / (1 - B1**step) / (np.sqrt(v / (1 - B2**step)) + EPS) + decay * p)

    after = jax.tree_util.tree_map_with_path(updated, p, mu, nu)
    average = jax.tree.map(lambda a, p: EMA * a + (1 - EMA) * p, average, after)
    steps[step] = types.SimpleNamespace(values=values, params=after, mu=mu, nu=nu, ema=average)
    params = run.saves[step][0].params
  batches.close()
  return types.SimpleNamespace(
    steps=steps,
    config=config,
    text=text,
    embed_image=quick(model.embed_image),
    embed_text=quick(model.embed_text),
  )


def close(got, want, rtol=1e-5, atol=1e-5):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for (path, g), w in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want)):
    np.testing.assert_allclose(g, w, rtol=rtol, atol=atol, err_msg=jax.tree_util.keystr(path))


def test_every_logged_value_of_a_step(run, worked_out):
  logged = [r for r in run.records if "loss" in r]
  assert [r["step"] for r in logged] == list(range(1, STEPS + 1))
  for r in logged:
    want = worked_out.steps[r["step"]].values
    np.testing.assert_allclose(
      [r[k] for k in want], list(want.values()), rtol=2e-5, err_msg=f"{list(want)} of {r['step']}"
    )
    speed = {
      "examples_per_sec",
      "examples_per_sec_per_device",
      "step_time",
      "host_time",
      "data_wait",
    }
    assert r.keys() - want.keys() == (speed if r["step"] > 1 else set())  # the first one compiles
    if r["step"] > 1:
      assert r["examples_per_sec"] == pytest.approx(BATCH / r["step_time"])
      assert r["examples_per_sec_per_device"] == r["examples_per_sec"]  # of one
      assert r["host_time"] > 0 and 0 <= r["data_wait"] < 1
  *before, last = run.records
  assert (
    sum(v for k, v in last.items() if k.startswith("goodput/")) == pytest.approx(1)
    and last["step"] == STEPS
  )
  assert not any("goodput/step" in r for r in before)


def test_the_numbers_tell_one_step_from_the_next(worked_out):
  """Or the comparisons above would pass for values of the wrong step."""
  for name in ("loss", "scale", "bias", "logit_pos", "logit_neg", "grad_norm", "lr"):
    values = [worked_out.steps[s].values[name] for s in range(2, STEPS + 1)]
    assert (np.abs(np.diff(values)) > 1e-4 * np.abs(values[1:])).all(), name


def test_every_state_is_that_of_its_step(run, worked_out):
  for step, (state, _, _) in run.saves.items():
    want = worked_out.steps[step]
    assert state.step == step
    close(state.params, want.params)
    close(state.ema, want.ema)
    for name in ("mu", "nu"):
      moments = optax.tree.get(state.opt_state, name)
      close(jax.tree.leaves(moments), jax.tree.leaves(getattr(want, name)), atol=1e-6)


def test_a_save_comes_after_the_log_of_its_step_and_takes_its_own_evaluation_only(run):
  assert list(run.saves) == list(range(1, STEPS + 1))
  for step, (_, metrics, logged) in run.saves.items():
    assert [r["step"] for r in logged if "loss" in r] == list(range(1, step + 1))
    evaluations = [r for r in logged if BEST in r]
    assert [r["step"] for r in evaluations] == list(range(EVERY, step + 1, EVERY))
    if step % EVERY:
      assert not metrics, step
    else:
      assert metrics.items() <= evaluations[-1].items() and BEST in metrics
  best = best_step(run)
  assert best < STEPS - 1  # or it would be kept as one of the latest
  assert stored.Stored(run.folder).steps == [best, STEPS - 1, STEPS]


def best_step(run) -> int:
  return max((r for r in run.records if BEST in r), key=lambda r: r[BEST])["step"]


def test_every_evaluation_is_of_the_average(run, worked_out):
  logged = [r for r in run.records if BEST in r]
  assert [r["step"] for r in logged] == [2, 4, 6]
  assert {k: v for k, v in logged[-1].items() if k.startswith("eval/")} == run.returned
  for r in logged:
    # What is known of the metrics whatever the model stands in the first evaluation only;
    # tests/test_evals.py has its values.
    facts = {k for k in r if "/chance/" in k or "/batch/" in k}
    assert bool(facts) == (r is logged[0])
    r = {k: v for k, v in r.items() if k not in facts}
    want = evaluated(worked_out.steps[r["step"]].ema, worked_out)
    assert r == {
      "step": r["step"],
      "examples": BATCH * r["step"],
      **{k: pytest.approx(v, rel=1e-4) for k, v in want.items()},
    }
    raw = evaluated(run.saves[r["step"]][0].params, worked_out)
    assert abs(raw[LOSS] - want[LOSS]) > 1e-3 * want[LOSS]


def evaluated(params, known):
  """The tasks of tests/tiny.py from their definitions."""
  params = jax.tree.map(np.float32, params)
  found = {}
  for task in known.config.eval.tasks:
    examples = data_lib.EvalExamples(data_lib.open_source(task["data"]), known.config)
    rows = [examples[i] for i in range(task["examples"])]
    images = np.float64(known.embed_image(params, np.stack([row["image"] for row in rows])))
    texts = lambda words: np.float64(known.embed_text(params, known.text(words)))
    name = f"eval/{task['name']}"
    if task["kind"] == "zero_shot":
      s = images @ texts([f"a photo of a {name}." for name in examples.classnames]).T
      labels = np.array([row["label"] for row in rows])
      place = (s > s[np.arange(len(s)), labels][:, None]).sum(1)
      found |= {f"{name}/acc1": (place == 0).mean(), f"{name}/acc5": (place < 5).mean()}
      found[f"{name}/mean_per_class_recall"] = np.mean(
        [(place[labels == k] == 0).mean() for k in set(labels)]
      )
      continue
    s = images @ texts([row["captions"][0] for row in rows]).T
    if task["kind"] == "retrieval":
      for wanted, x in (("text", s), ("image", s.T)):
        place = (x > np.diag(x)[:, None]).sum(1)
        found |= {f"{name}/{wanted}_retrieval_recall@{k}": (place < k).mean() for k in (1, 5, 10)}
    else:
      x, total = np.exp(params["log_scale"]) * s + params["bias"], 0.0
      for block in (slice(0, BATCH), slice(BATCH, len(s))):
        y = x[block, block]
        total += (np.logaddexp(0, y) - np.eye(len(y)) * y).sum()
      found[f"{name}/loss"] = total / len(s)
  return found


def test_what_is_on_the_disk_is_what_was_given(run, tmp_path):
  shutil.copytree(run.folder / "checkpoints", tmp_path / "checkpoints")
  for step in (STEPS, STEPS - 1, best_step(run)):
    state = run.saves[step][0]
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=one), state)
    restored, meta = stored.Stored(tmp_path).restore(like)
    assert meta["step"] == step
    close(jax.device_get(restored), state, rtol=0, atol=0)
    shutil.rmtree(tmp_path / "checkpoints" / str(step))


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))
