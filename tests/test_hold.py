"""Steps that leave the weights as they are and collect the moments (config.optim.hold)."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from siglax import config as config_lib
from siglax.data.text import TextProcessor
from siglax.devices import mesh as mesh_lib
from siglax.devices import paths
from siglax.runs import folder as folder_lib
from siglax.runs import places
from siglax.runs import records
from siglax.runs import stored
from siglax.training import loop
from siglax.training import optim
from siglax.training import program
from siglax.training import run as run_lib
from siglax.training import schedules
from siglax.training import step as step_lib
from siglax.training.optimizers import OPTIMIZERS

from tiny import get_config

HOLD, TOTAL = 4, 6


def bits(tree):
  return {name: np.asarray(x).tobytes() for name, x in paths.flatten(tree).items()}


def held_config():
  c = get_config(steps=TOTAL)
  c.eval.tasks = ()
  config_lib.set_duration(c, "optim.hold", examples=HOLD * c.batch_size)
  config_lib.set_duration(c, "optim.warmup", steps=1)
  config_lib.set_duration(c, "checkpoint.every", steps=2)
  c.checkpoint.keep_latest = 3
  c.train.microbatch, c.train.ema = 1, 0.9
  c.optim.start_decay = 0.5
  return c


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("held")
  loop.train(held_config(), workdir)
  return run_lib.Run(held_config(), workdir)


def states(run, workdir):
  """{step: the state in its checkpoint}."""
  checkpoints = stored.Stored(workdir)
  return {step: checkpoints.restore(run.abstract_state, before=step + 1)[0] for step in (2, 4, 6)}


def test_weights_stay_bit_for_bit_and_moments_are_adams(run):
  start, found = run.initial_state(), states(run, run.workdir)
  for step in (2, HOLD):
    assert bits(found[step].params) == bits(start.params)
    assert bits(found[step].ema) == bits(start.ema)
  assert bits(found[TOTAL].params) != bits(start.params)
  assert bits(found[TOTAL].ema) != bits(start.ema)

  gradient = jax.jit(step_lib.make_value_and_grad(run.config, run.model, run.mesh, run.frozen))
  m, v = ({name: 0.0 for name in paths.flatten(start.params)} for _ in range(2))
  batches, c = run.batches(0), run.config.optim
  with jax.set_mesh(run.mesh):
    for step in range(HOLD):
      batch = mesh_lib.to_global(run.mesh, next(batches))
      _, grads = gradient(start.params, batch, jnp.int32(step))
      for name, g in paths.flatten(grads).items():
        g = np.asarray(g, np.float64)
        m[name] = c.b1 * m[name] + (1 - c.b1) * g
        v[name] = c.b2 * v[name] + (1 - c.b2) * g**2
  batches.close()
  adam = optax.tree.get(found[HOLD].opt_state, "ScaleByAdamState")
  assert int(adam.count) == HOLD
  for got, want in ((adam.mu, m), (adam.nu, v)):
    largest = max(np.abs(x).max() for x in want.values())
    for name, x in paths.flatten(got).items():
      # The bias of the keys moves no attention weight: all of its gradient is rounding.
      scale = largest if name.endswith("key/bias") else np.abs(want[name]).max()
      np.testing.assert_allclose(x, want[name], rtol=1e-4, atol=1e-5 * scale, err_msg=name)


def test_resumed_while_the_weights_are_held(run, tmp_path):
  lines = [r for r in records.read(run.workdir) if "loss" in r]
  assert [r["lr"] for r in lines] == [0.0] * (HOLD + 1) + [pytest.approx(run.config.optim.lr)]
  shutil.copytree(run.workdir, tmp_path / "again")
  for later in (4, 6):
    shutil.rmtree(tmp_path / "again" / places.FOLDER / str(later))
  loop.train(folder_lib.read_config(run.workdir), tmp_path / "again")
  again = [r for r in records.read(tmp_path / "again") if "loss" in r][-4:]
  assert [(r["step"], r["loss"], r["grad_norm"]) for r in again] == [
    (r["step"], r["loss"], r["grad_norm"]) for r in lines[2:]
  ]
  # The copy of the start among it, which start_decay needs from then on.
  ends = [states(run, folder)[TOTAL] for folder in (run.workdir, tmp_path / "again")]
  assert bits(ends[0]) == bits(ends[1])


def test_the_copy_of_the_start_is_sharded_as_the_weights(monkeypatch):
  monkeypatch.setattr(mesh_lib, "FSDP_MIN_ELEMENTS", 100)
  state = made(**{"optim.start_decay": 0.5, "mesh.fsdp": 4}).abstract_state
  params, copies = paths.flatten(state.params), paths.flatten(state.opt_state)
  copies = {n.partition("/params/")[2]: x for n, x in copies.items() if "/params/" in n}
  assert copies.keys() == {name for name in params if name.endswith("/kernel")}
  assert any(x.sharding.spec != jax.P() for x in copies.values())
  for name, x in copies.items():
    like = params[name]
    assert (x.shape, x.dtype, x.sharding) == (like.shape, like.dtype, like.sharding)


def made(**fields):
  c = get_config(steps=TOTAL)
  for field, value in fields.items():
    config_lib.override(c, field, str(value))
  return program.Program(config_lib.resolve(c, TextProcessor()), 64)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_holds_what_a_step_would_change_otherwise(name):
  """The cap of the scale, and a zero whose sign an update of 0 would lose."""
  fields = {"optim.name": name, "optim.hold_steps": 2, "loss.scale_max": 3.0}
  p = made(**fields, **{"optim.start_decay": 0.1})
  shardings = jax.tree.map(lambda x: x.sharding, p.abstract_state)
  init = lambda key: jax.tree.map(lambda x: jnp.where(x == 0, -0.0, x), p.model.init(key))
  state = jax.jit(lambda key: p.create(init(key)), out_shardings=shardings)(jax.random.key(0))
  start, moments = bits(state.params), [bits(state.opt_state)]
  assert np.float32(-0.0).tobytes() in start["text/norm/bias"]
  rng = np.random.default_rng(0)
  batch = {
    "image": rng.integers(0, 256, (16, 16, 16, 3), np.uint8),
    "tokens": rng.integers(3, 100, (16, 12), np.int32),
    "label": np.arange(16, dtype=np.int32),
    "weight": np.ones(16, np.float32),
  }
  batch = mesh_lib.to_global(p.mesh, batch)
  with jax.set_mesh(p.mesh):
    for step in range(4):
      state, metrics = p.update()(state, batch)
      moments.append(bits(state.opt_state))
      assert (bits(state.params) == start) == (step < 2), step
      assert (float(metrics["lr"]) == 0) == (step < 2)
  assert all(a != b for a, b in zip(moments, moments[1:]))
  np.testing.assert_allclose(jnp.exp(state.params["log_scale"]), 3, rtol=0.05)


def test_a_step_that_holds_nothing_is_the_step_it_was():
  def text(**fields):
    p = made(**fields)
    with jax.set_mesh(p.mesh):
      return p.update().lower(p.abstract_state, p.abstract_batch()).as_text()

  plain = text()
  assert text(**{"optim.hold_steps": None}) == plain
  assert text(**{"optim.hold_epochs": 0.0}) == plain
  assert text(**{"optim.hold_steps": 1}) != plain


def test_the_learning_rate_begins_after_the_hold():
  c = config_lib.default()
  c.optim.schedule = "constant"
  for cooldown in (0, 20):
    plain = schedules.make(c, 100, 10, cooldown)
    held = schedules.make(c, 130, 10, cooldown, 30)
    assert [float(held(s)) for s in range(30)] == [0.0] * 30
    np.testing.assert_allclose([held(30 + s) for s in range(100)], [plain(s) for s in range(100)])


@pytest.mark.parametrize("hold, warmup", [(91, 10), (100, 0)])
def test_a_hold_that_leaves_nothing_to_train(hold, warmup):
  c = config_lib.default()
  with pytest.raises(ValueError, match=f"config.optim.hold_\\* is {hold} steps, .* is 100 steps"):
    optim.make(c, {"a": {"kernel": np.ones(3)}}, 100, warmup, 0, hold)
