"""siglax/training/optim.py against float64 numpy, and what its patterns promise."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from siglax import config as config_lib
from siglax.devices import paths
from siglax.models import trainable as trainable_lib
from siglax.training import adafactor
from siglax.training import optim
from siglax.training import schedules

STEPS = 7


def make_config(**fields):
  config = config_lib.default()
  for name, value in fields.items():
    config.optim[name] = value
  return config


def make_params():
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return {
    "image": {
      "blocks": {"mlp": {"kernel": draw(2, 6, 5), "bias": draw(2, 5)}},
      "norm": {"scale": draw(4)},
    },
    "text": {"head": {"kernel": draw(5, 3)}},
    "log_scale": np.float32(2.3),
    "bias": np.float32(-5),
  }


def gradients(step):
  rng = np.random.default_rng(100 + step)
  return jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32) * 0.3, make_params())


def flat(tree):
  return {paths.name(k): np.asarray(v) for k, v in jax.tree_util.tree_leaves_with_path(tree)}


def train(config, *, steps=STEPS, warmup=2, cooldown=0):
  params = make_params()
  tx, schedule = optim.make(config, params, steps, warmup, cooldown)
  state, update = tx.init(params), jax.jit(tx.update)
  for step in range(steps):
    updates, state = update(gradients(step), state, params)
    params = optax.apply_updates(params, updates)
  return flat(params), state, schedule


def reference(
  config,
  direction,
  *,
  frozen=(),
  decay=lambda name: float("kernel" in name),
  multiplier=lambda name: 1.0,
):
  """Float64: clip, direction(memory, g, t), decoupled weight decay, linear warmup over 2 steps and
  cosine to STEPS.
  """
  c = config.optim
  p = {k: v.astype(np.float64) for k, v in flat(make_params()).items()}
  start = dict(p)
  memory = {k: {} for k in p}
  for t in range(STEPS):
    lr = c.lr * (t / 2 if t < 2 else 0.5 * (1 + np.cos(np.pi * (t - 2) / (STEPS - 2))))
    g = {k: v.astype(np.float64) for k, v in flat(gradients(t)).items() if k not in frozen}
    norm = np.sqrt(sum((v**2).sum() for v in g.values()))
    clip = min(1.0, c.clip_norm / norm) if c.clip_norm else 1.0
    for k, v in g.items():
      u = direction(memory[k], v * clip, t + 1)
      u = u + decay(k) * (c.weight_decay * p[k] + c.start_decay * (p[k] - start[k]))
      p[k] = p[k] - lr * multiplier(k) * u
  return p


def adam(c):
  def direction(memory, g, t):
    memory["m"] = c.b1 * memory.get("m", 0) + (1 - c.b1) * g
    memory["v"] = c.b2 * memory.get("v", 0) + (1 - c.b2) * g**2
    return memory["m"] / (1 - c.b1**t) / (np.sqrt(memory["v"] / (1 - c.b2**t)) + c.eps)

  return direction


def lion(c):
  def direction(memory, g, t):
    m = memory.get("m", 0)
    memory["m"] = c.b2 * m + (1 - c.b2) * g
    return np.sign(c.b1 * m + (1 - c.b1) * g)

  return direction


def assert_close(got, want, tolerance=2e-6):
  assert got.keys() == want.keys()
  for name in want:
    np.testing.assert_allclose(got[name], want[name], rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize("name, direction", [("adamw", adam), ("lion", lion)])
def test_equals_float64_reference(name, direction, clip_norm):
  config = make_config(name=name, lr=0.01, weight_decay=0.1, clip_norm=clip_norm)
  assert_close(train(config)[0], reference(config, direction(config.optim)))


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_decay_towards_the_start(weight_decay):
  """L2-SP: beside weight decay, by its multipliers, on what trains; a copy of that is kept."""
  config = make_config(
    lr=0.05,
    weight_decay=weight_decay,
    start_decay=2.0,
    decay=(("log_scale", 0.5), (".*/kernel", 1.0), (".*", 0.0)),
    lr_multipliers=(("image/blocks/mlp/bias", 3.0), ("image/.*", None), (".*", 1.0)),
  )
  got, state, _ = train(config)
  frozen = [k for k in got if k.startswith("image/") and k != "image/blocks/mlp/bias"]
  want = reference(
    config,
    adam(config.optim),
    frozen=frozen,
    decay=lambda k: 0.5 if k == "log_scale" else float("kernel" in k),
    multiplier=lambda k: 3.0 if k == "image/blocks/mlp/bias" else 1.0,
  )
  assert_close(got, want)
  kept = {k.partition("/params/")[2]: v for k, v in flat(state).items() if "/params/" in k}
  start = flat(make_params())
  assert kept.keys() == {"text/head/kernel", "log_scale"}
  for name, x in kept.items():
    np.testing.assert_array_equal(x, start[name])


def test_scale_and_bias_have_a_multiplier_of_their_own():
  config = make_config(
    lr=0.01, weight_decay=0.1, clip_norm=0.5, lr_multipliers=(("image/.*", 3.0), (".*", 2.0))
  )
  config.loss.lr_multiplier = 10.0
  multiplier = lambda k: (
    20.0 if k in ("log_scale", "bias") else 3.0 if k.startswith("image/") else 2.0
  )
  assert_close(train(config)[0], reference(config, adam(config.optim), multiplier=multiplier))


@pytest.mark.parametrize("scan", [True, False])
def test_layer_decay_by_distance_from_the_head(scan):
  blocks = {"mlp": {"kernel": np.zeros((3, 4, 2))}, "norm1": {"scale": np.zeros((3, 4))}}
  if not scan:
    blocks = {str(i): jax.tree.map(lambda x: x[i], blocks) for i in range(3)}
  image = {
    "stem": {"embedding": {"bias": np.zeros(4)}},
    "pos_embedding": np.zeros((2, 4)),
    "encoder": {"blocks": blocks},
  }
  params = {
    "image": image | {"norm": {"bias": np.zeros(4)}, "pool": {"probe": np.zeros(4)}},
    "text": {"embedding": np.zeros((5, 4))},
  }
  config = make_config(
    name="lion", lr=1.0, schedule="constant", lr_multipliers=(("image/pos.*", 0.5), (".*", 1.0))
  )
  config.optim.layer_decay.image = 0.1
  tx, _ = optim.make(config, params, 1)
  updates, _ = tx.update(jax.tree.map(np.ones_like, params), tx.init(params), params)
  got = flat(updates)
  for i in range(3):
    for name in ("mlp/kernel", "norm1/scale"):
      block = (
        got[f"image/encoder/blocks/{name}"][i] if scan else got[f"image/encoder/blocks/{i}/{name}"]
      )
      np.testing.assert_allclose(block, -(0.1 ** (3 - i)), rtol=1e-6)
  np.testing.assert_allclose(got["image/stem/embedding/bias"], -1e-4, rtol=1e-6)
  np.testing.assert_allclose(got["image/pos_embedding"], -0.5e-4, rtol=1e-6)
  for name, factor in optim.layer_decay(config, params).items():
    shape = paths.flatten(params)[name].shape
    assert np.broadcast_shapes(np.shape(factor), shape) == shape, name
  for name in ("image/norm/bias", "image/pool/probe", "text/embedding"):
    np.testing.assert_allclose(got[name], -1, rtol=1e-6)


def test_multipliers_frozen_and_decay_of_scalars():
  config = make_config(
    lr=0.01,
    weight_decay=0.1,
    clip_norm=0.5,
    decay=(("log_scale", 2.0), ("bias", 0.5), (".*/kernel", 1.0), (".*", 0.0)),
    lr_multipliers=(("image/.*", None), ("log_scale", 10.0), (".*", 0.1)),
  )
  got, state, _ = train(config)
  frozen = [k for k in got if k.startswith("image/")]
  want = reference(
    config,
    adam(config.optim),
    frozen=frozen,
    decay=lambda k: {"log_scale": 2.0, "bias": 0.5}.get(k, float("kernel" in k)),
    multiplier=lambda k: 10.0 if k == "log_scale" else 0.1,
  )
  assert_close(got, want)
  for name in frozen:
    np.testing.assert_array_equal(got[name], flat(make_params())[name])
  # Two moments of the trainable parameters and counters: nothing as large as a frozen leaf's
  # moments.
  trainable = sum(v.size for k, v in got.items() if k not in frozen)
  arrays = [x for x in jax.tree.leaves(state) if x.ndim or x.dtype != jnp.int32]
  assert sum(x.size for x in arrays) == 2 * trainable
  mask = flat(trainable_lib.frozen_mask(config, make_params()))
  assert [k for k, frozen_here in mask.items() if frozen_here] == frozen


def adafactor_reference(c, stacked):
  """Adafactor on one leaf in float64, layer by layer of a stacked leaf."""

  def direction(memory, g, t):
    if stacked:
      return np.stack([direction_one(memory.setdefault(i, {}), x, t) for i, x in enumerate(g)])
    return direction_one(memory, g, t)

  def direction_one(memory, g, t):
    beta, square = min(c.b2, 1 - t**-0.8), g**2 + 1e-30
    mean = lambda key, x: (
      memory.__setitem__(key, beta * memory.get(key, 0) + (1 - beta) * x) or memory[key]
    )
    if g.ndim == 2 and min(g.shape) >= adafactor.MIN_DIM_TO_FACTOR:
      row, column = mean("row", square.mean(1)), mean("column", square.mean(0))
      u = g / np.sqrt(row[:, None] * column / row.mean())
    else:
      u = g / np.sqrt(mean("v", square))
    u = u / max(1.0, np.sqrt((u**2).mean()))
    memory["m"] = c.b1 * memory.get("m", 0) + (1 - c.b1) * u
    return memory["m"]

  return direction


# The momentum is kept in bfloat16, and optax multiplies it in bfloat16: 2⁻⁸ of its size (up to 1)
# each step.
@pytest.mark.parametrize("b1, tolerance", [(0.0, 1e-5), (0.9, 1e-2)])
@pytest.mark.parametrize(
  "path, shape",
  [("text", (130, 140)), ("blocks", (3, 130, 140)), ("text", (7, 140)), ("blocks", (3, 9))],
)
def test_adafactor_equals_float64_reference(path, shape, b1, tolerance):
  config = make_config(name="adafactor", b1=b1, b2=0.5)
  rng = np.random.default_rng(0)
  tx = adafactor.adafactor(b1, 0.5)
  params = {path: {"kernel": np.zeros(shape, np.float32)}}
  state, memory, update = tx.init(params), {}, jax.jit(tx.update)
  want = adafactor_reference(config.optim, path == "blocks")
  for t in range(1, 5):
    # Layers of different sizes of gradient, spikes included, so that the clip acts on some layers
    # only.
    g = rng.normal(size=shape) * np.exp(
      rng.normal(size=(shape[0],) + (1,) * (len(shape) - 1)) + 3 * (t == 3)
    )
    updates, state = update({path: {"kernel": g.astype(np.float32)}}, state, params)
    np.testing.assert_allclose(
      updates[path]["kernel"], want(memory, g, t), rtol=tolerance, atol=tolerance
    )
  if shape == (3, 130, 140):
    sizes = sorted(x.shape for x in jax.tree.leaves(state) if x.size > 1)
    assert sizes == [(3, 130), (3, 130, 140), (3, 140)]
    (momentum,) = (x for x in jax.tree.leaves(state) if x.ndim == 3)
    assert momentum.dtype == jnp.bfloat16


def test_adafactor_trains_every_kind_of_leaf():
  got, _, _ = train(make_config(name="adafactor", lr=0.01, clip_norm=1.0))
  assert all(np.isfinite(v).all() and (v != flat(make_params())[k]).all() for k, v in got.items())


def test_schedules():
  steps, warmup, lr = 100, 10, 0.5
  after = np.arange(warmup, steps + 1, dtype=np.float64) - warmup
  want = {
    "cosine": lr * 0.5 * (1 + np.cos(np.pi * after / 90)),
    "linear": lr * (1 - after / 90),
    "constant": np.full(91, lr),
    "rsqrt": lr * np.sqrt(50 / (50 + after)),
  }
  for name, tail in want.items():
    curve = schedules.make(make_config(schedule=name, lr=lr, rsqrt_timescale=50), steps, warmup)
    got = np.array([curve(jnp.int32(s)) for s in range(steps + 1)])
    np.testing.assert_allclose(
      got, np.r_[lr * np.arange(warmup) / warmup, tail], rtol=1e-5, atol=1e-6
    )
  for name in ("constant", "rsqrt"):
    curve = schedules.make(make_config(schedule=name, lr=lr, rsqrt_timescale=50), steps, warmup, 20)
    got = np.array([curve(s) for s in range(warmup, steps + 1)])
    np.testing.assert_allclose(
      got, want[name] * np.minimum(1, (90 - after) / 20), rtol=1e-5, atol=1e-6
    )
  assert schedules.make(make_config(lr=lr), 1)(0) == lr


@pytest.mark.parametrize(
  "schedule, warmup, cooldown, message",
  [
    (
      "constant",
      60,
      50,
      "config.optim.warmup_\\* is 60 steps and config.optim.cooldown_\\* 50, but the training is "
      "100 steps; shorten them "
      "\\(--config.optim.warmup_steps=10 --config.optim.cooldown_steps=10\\)",
    ),
    ("cosine", 0, 50, "config.optim.schedule='cosine' ends at 0"),
  ],
)
def test_schedule_errors(schedule, warmup, cooldown, message):
  with pytest.raises(ValueError, match=message):
    schedules.make(make_config(schedule=schedule), 100, warmup, cooldown)
  flags = "--config.optim.hold_steps=0 --config.optim.warmup_steps=0"
  with pytest.raises(ValueError, match=f"shorten them \\({flags}\\) or lengthen"):
    schedules.make(make_config(), 4, 5, hold_steps=5)


@pytest.mark.parametrize(
  "field, rules, message",
  [
    (
      "decay",
      ((".*/kernel", 1.0),),
      "no pattern of config.optim.decay matches the parameter 'bias'",
    ),
    (
      "lr_multipliers",
      (("image/.*", 1.0),),
      "no pattern of config.optim.lr_multipliers matches the parameter 'bias'",
    ),
    (
      "decay",
      (("image/block/.*", 1.0), (".*", 0.0)),
      "config.optim.decay.0: the pattern 'image/block/.*' matches no parameter",
    ),
    (
      "decay",
      ((".*", 1.0), ("image/.*", 0.0)),
      "config.optim.decay.1: the pattern 'image/.*' comes after",
    ),
    (
      "decay",
      ((".*", 1.0), (".*", 0.0), ("bias", 1.0)),
      "config.optim.decay.1: the pattern '.*' comes after",
    ),
    ("decay", (("(", 1.0), (".*", 0.0)), "config.optim.decay.0"),
    ("decay", ((".*", 1.0), "kernel"), "config.optim.decay.1='kernel' must be a pair"),
    ("decay", ((".*", -1.0),), "gives -1.0 for 'bias'"),
    ("lr_multipliers", ((".*", 0.0),), "None to freeze"),
    ("lr_multipliers", ((".*", None),), "freezes every parameter"),
  ],
)
def test_pattern_errors(field, rules, message):
  with pytest.raises(ValueError) as error:
    optim.make(make_config(**{field: rules}), make_params(), 10)
  assert message in str(error.value) and "\n" not in str(error.value)


def test_default_rules_allow_parameters_without_kernels():
  optim.make(
    make_config(decay=((".*/kernel", 1.0), ("bias", 0.0), ("x", 0.0), (".*", 0.0))),
    {"x": np.ones(2), "bias": np.ones(())},
    3,
  )


def test_state_is_saved_by_orbax(tmp_path):
  import orbax.checkpoint as ocp

  config = make_config(
    name="adafactor", clip_norm=1.0, lr_multipliers=(("text/.*", None), (".*", 1.0))
  )
  params = make_params()
  tx, _ = optim.make(config, params, 10)
  update = jax.jit(tx.update)
  _, state = update(gradients(0), tx.init(params), params)
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / "state", state)
    checkpointer.wait_until_finished()
    restored = checkpointer.restore(tmp_path / "state", jax.eval_shape(tx.init, params))
  assert jax.tree.structure(restored) == jax.tree.structure(state)
  there, here = (flat(update(gradients(1), s, params)[0]) for s in (restored, state))
  jax.tree.map(np.testing.assert_array_equal, there, here)


def test_a_warmup_and_a_cooldown_may_fill_the_training():
  curve = schedules.make(make_config(schedule="constant", lr=1.0), 10, 4, 6)
  want = [0, 1 / 4, 2 / 4, 3 / 4, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0]
  np.testing.assert_allclose([curve(s) for s in range(11)], want, atol=1e-6)
