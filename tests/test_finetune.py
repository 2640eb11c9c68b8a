"""Fine-tuning: a LoRA on one tower of a run, patches dropped but for the end, resumed at any step;
what is loaded is what was trained.
"""

import shutil

import jax
import numpy as np
import pytest

import siglax
from siglax import config as config_lib
from siglax.devices import paths
from siglax.runs import checkpoint
from siglax.runs import folder as folder_lib
from siglax.runs import places
from siglax.runs import records
from siglax.training import loop
from siglax.training import run as run_lib

import oracles
from tiny import get_config

ONLY_LORA = ((".*/lora/.*", 1.0), ("text/.*", None), ("image/.*", None), (".*", 1.0))


def adapted(base):
  c = get_config(steps=6)
  c.eval.tasks = ()
  c.model.init_from = str(base)
  c.model.text.lora_rank = 2
  c.optim.lr_multipliers = ONLY_LORA
  c.optim.lr = 0.1
  c.train.patch_drop = 0.5
  c.train.ema = 0.9  # of what trains; the patterns of one tower match nothing of the other
  config_lib.set_duration(c, "train.unmasked", steps=3)
  config_lib.set_duration(c, "checkpoint.every", steps=2)
  c.checkpoint.keep_latest = 3  # all of them
  return c


@pytest.fixture(scope="module")
def states():
  """By run folder: its last state, as the loop gave it to be saved."""
  return {}


def trained(config, workdir, states):
  save = checkpoint.Checkpoints.save

  def keep(self, step, state, *rest, **more):
    states[workdir] = jax.device_get(state)
    return save(self, step, state, *rest, **more)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(checkpoint.Checkpoints, "save", keep)
    loop.train(config, workdir)
  return workdir


@pytest.fixture(scope="module")
def base(tmp_path_factory, states):
  c = get_config(steps=1)
  c.eval.tasks = ()
  return trained(c, tmp_path_factory.mktemp("base"), states)


@pytest.fixture(scope="module")
def run(base, tmp_path_factory, states):
  return trained(adapted(base), tmp_path_factory.mktemp("adapted"), states)


def averaged(state):
  """What is evaluated and loaded: the average of what trains, and what does not."""
  return jax.tree.map(
    lambda p, a: np.asarray(p if a is None else a, np.float64), state.params, state.ema
  )


def test_only_the_adapters_and_the_scale_are_trained(base, run, states):
  before, after = states[base].params, states[run].params
  changed = set()
  for path, x in jax.tree_util.tree_leaves_with_path(after):
    name = paths.name(path)
    old = before
    for key in name.split("/"):
      old = old.get(key, {})
    if isinstance(old, dict) or (np.asarray(x) != np.asarray(old)).any():
      changed.add(name)
  assert changed == {n for n in changed if "/lora/" in n} | {"log_scale", "bias"}
  assert sum("/lora/" in n for n in changed) == 8 and all(
    n.startswith("text/") for n in changed if "/lora/" in n
  )
  assert all(
    np.abs(x).max() > 0
    for path, x in jax.tree_util.tree_leaves_with_path(after["text"])
    if path[-1].key == "lora_b"
  )


def test_no_optimizer_state_but_for_the_adapters(base, run, tmp_path):
  made = run_lib.Run(adapted(base), tmp_path)
  moments = [x for x in jax.tree.leaves(made.abstract_state.opt_state) if x.ndim]
  adapters = [
    x
    for path, x in jax.tree_util.tree_leaves_with_path(made.abstract_state.params)
    if "lora" in paths.name(path)
  ]
  assert sorted(x.shape for x in moments) == sorted(2 * [x.shape for x in adapters])


def test_what_is_loaded_is_what_was_trained(run, states):
  loaded = siglax.load(run)
  texts = ["a small red circle", "a large blue square above a disc"]
  want = averaged(states[run])
  raw = states[run].params["text"]["encoder"]["blocks"]["attention"]["query"]["lora"]["lora_b"]
  attention = want["text"]["encoder"]["blocks"]["attention"]
  # So that the average is told from the last
  assert np.abs(attention["query"]["lora"]["lora_b"] - raw).max() > 1e-3
  for part in attention.values():
    lora = part.pop("lora")
    part["kernel"] = part["kernel"] + np.einsum("ldr,lre->lde", lora["lora_a"], lora["lora_b"])
  assert loaded.config.model.text.lora_rank == 0
  for name, part in {
    "": want,
    ":img": {"image": want["image"]},
    ":txt": {"text": want["text"]},
  }.items():
    got = siglax.load(f"{run}{name}").params
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), got, part)
  p, tokens = want["text"], loaded.text(texts)
  last = oracles.encoder(p["embedding"][tokens] + p["pos_embedding"], p, 2)[:, -1]
  np.testing.assert_allclose(
    loaded.embed_texts(texts), oracles.unit(oracles.linear(last, p["head"])), atol=2e-6
  )


def test_resumed_within_the_unmasked_end_and_before_it(run, tmp_path):
  lines = [r for r in records.read(run) if "loss" in r]
  for steps in (2, 4):
    workdir = tmp_path / str(steps)
    shutil.copytree(run, workdir)
    for later in (workdir / places.FOLDER).iterdir():
      if later.name.isdigit() and int(later.name) > steps:
        shutil.rmtree(later)
    loop.train(folder_lib.read_config(run), workdir)
    again = [r for r in records.read(workdir) if "loss" in r][-(6 - steps) :]
    assert [(r["step"], r["loss"], r["grad_norm"]) for r in again] == [
      (r["step"], r["loss"], r["grad_norm"]) for r in lines[steps:]
    ]


def test_the_end_sees_all_patches(base, tmp_path):
  made = run_lib.Run(adapted(base), tmp_path)
  assert [made.training_model(step).config.image.patch_drop for step in range(6)] == [0.5] * 3 + [
    0.0
  ] * 3
  assert made.update(0) is made.update(2) and made.update(2) is not made.update(3)
  masked, whole = (made.model_flops(step) for step in (0, 5))
  d, hidden = 16, 32  # of tests/tiny.py: one block, then an attention head of one probe
  of = lambda n: n * (8 * d * d + 4 * d * hidden + 4 * n * d) + n * (4 * d * d + 4 * d)
  # Of a frozen tower, one forward pass
  assert whole - masked == made.config.batch_size * (of(4) - of(2))


def test_an_end_longer_than_the_training(base, tmp_path):
  c = adapted(base)
  config_lib.set_duration(c, "train.unmasked", steps=7)
  with pytest.raises(
    ValueError, match="config.train.unmasked is 7 steps, but the training is 6 steps"
  ):
    run_lib.Run(c, tmp_path)
