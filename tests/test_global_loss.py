"""The global contrastive loss against float64 numpy over many steps, and its running normalisers in
a run.
"""

import functools
import shutil

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from siglax import config as config_lib
from siglax import data as data_lib
from siglax import losses
from siglax.costs import plan
from siglax.data import filters
from siglax.data.text import TextProcessor
from siglax.devices import flops
from siglax.devices import mesh as mesh_lib
from siglax.losses import running
from siglax.losses.layout import Layout
from siglax.runs import records
from siglax.runs import stored
from siglax.training import loop
from siglax.training import run as run_lib

import oracles
import tiny

EXAMPLES, B, WIDTH, STEPS, TILE = 90, 32, 16, 50, 3


def line(D):
  return Mesh(np.array(jax.devices()[:D]), ("data",), axis_types=(AxisType.Auto,))


def of_config(**fields):
  c = config_lib.default()
  for name, value in {"name": "global", **fields}.items():
    c.loss[name] = value
  return c.loss


@functools.lru_cache(None)
def step(impl, D, temperature, labelled, slices=1):
  """(table, zimg, ztxt, scale, example, γ, weights, labels) → (loss, gradients, table), jitted."""
  c = of_config(impl=impl, tile=None if impl == "dense" else TILE, temperature=temperature)
  return jax.jit(whole_step(c, line(D), labelled, slices))


def whole_step(c, mesh, labelled=False, slices=1):
  layout = Layout(mesh, "data", c.impl, slices=slices)
  compute = losses.make(c, mesh, "data", slices)

  def step(table, zimg, ztxt, scale, example, gamma, weights, labels):
    remembered = running.fetch(table, example, gamma, layout)
    loss = lambda *z: compute(
      *z, 0.0, weights=weights, labels=labels if labelled else None, running=remembered
    )
    (value, rows), grads = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(zimg, ztxt, scale)
    return value, grads, running.store(table, rows, layout)

  return step


def errors(got, want):
  """Largest of each array, relative to its largest element."""
  return [
    np.abs(np.asarray(x, np.float64) - y).max() / max(np.abs(y).max(), 1e-30)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want))
  ]


@pytest.mark.parametrize(
  "impl, D, slices, temperature, labelled, scale, most",
  [
    ("dense", 1, 1, "fixed", False, 30.0, 1e-5),
    ("ring", 8, 1, "learned", False, 30.0, 1e-5),
    ("ring", 8, 2, "fixed", True, 30.0, 1e-5),
    # exp(100·s) has 100 times the error of a float32 product s, which is 10⁻⁷.
    ("gather", 8, 1, "unscaled", True, 100.0, 2.5e-5),
  ],
)
def test_fifty_steps_equal_float64(impl, D, slices, temperature, labelled, scale, most):
  """Every other batch is of texts that are close to their images, and of its own examples, so that
  at τ = 0.01 u lies between exp(−50) and exp(85). Batches hold an example twice, and some of
  weight 0.
  """
  rng, oracle = np.random.default_rng(0), oracles.GlobalContrastive(temperature)
  table = jax.device_put(
    running.empty(running.size(EXAMPLES, B)), NamedSharding(line(D), P("data"))
  )
  for i in range(STEPS):
    zimg, ztxt, w, labels = oracles.batch(B, WIDTH, rank=3, seed=i)
    if i % 2:
      zimg = oracles.unit(rng.normal(size=zimg.shape))
      ztxt = oracles.unit(zimg + 0.1 * rng.normal(size=zimg.shape) / WIDTH**0.5)
      zimg, ztxt = (np.float64(np.float32(z)) for z in (zimg, ztxt))
    example = rng.integers(0, EXAMPLES // 2, B) * 2 + i % 2
    w[rng.integers(0, B, 3)] = 0
    gamma = float(np.float32(1 - 0.8 * i / STEPS))
    value, grads, table = step(impl, D, temperature, labelled, slices)(
      table, *map(jnp.float32, (zimg, ztxt, scale)), jnp.int32(example), jnp.float32(gamma),
      jnp.float32(w), jnp.int32(labels),
    )  # fmt: skip
    want = oracle(zimg, ztxt, scale, example, gamma, w, labels if labelled else None)
    *found, of_scale = errors((value, *grads), (want[0], *want[1]))
    # A difference of terms as large as that of ρ.
    of_scale *= min(1, abs(want[1][2]) / (2 * oracle.rho / scale**2))
    assert max(*found, of_scale) <= most, (i, found, of_scale)
  for side, of in zip(running.SIDES, oracle.u):
    m, s = (np.asarray(table[side][name], np.float64) for name in "ms")
    seen = np.array(sorted(of))
    assert 80 < len(seen) and set(np.flatnonzero(s)) == set(seen)
    log_u = np.log([of[k] for k in seen])
    assert log_u.max() > 0.7 * scale and log_u.min() < -0.4 * scale
    assert np.abs(m[seen] + np.log(s[seen]) - log_u).max() <= 2 * most


def test_of_one_batch_it_is_the_gradient_of_the_logarithm():
  """γ = 1: that of τ·mean log(ε + g), as autodiff has it, τ's included."""

  def objective(zimg, ztxt, scale):
    s = jnp.matmul(zimg, ztxt.T, precision="highest")
    own, total = jnp.diag(s)[:, None], 2 * 6.5 / scale
    for y in (s, s.T):
      e = jnp.where(jnp.eye(len(s)), 0, jnp.exp(scale * (y - own)))
      total += jnp.mean(jnp.log(1e-14 + jnp.sum(e, axis=1) / (len(s) - 1))) / scale
    return total

  zimg, ztxt, _, _ = oracles.batch(64, WIDTH)
  z = tuple(jnp.float32(x) for x in (zimg, ztxt, 30.0))
  loss = functools.partial(
    losses.global_loss, temperature="learned", mesh=line(2), impl="ring", tile=TILE
  )
  want, got = (jax.jit(jax.value_and_grad(f, (0, 1, 2)))(*z) for f in (objective, loss))
  assert max(errors(got, want)) <= 1e-5


def test_weights_of_any_size_and_absent_examples_of_any_content():
  zimg, ztxt, w, labels = oracles.batch(50, WIDTH)
  w[::3] *= 1e-38
  w[[3, 30]] = 0
  w = np.float64(np.float32(w))
  want = oracles.GlobalContrastive("learned")(zimg, ztxt, 100.0, np.arange(50), 1.0, w, labels)
  zimg[3], ztxt[3], ztxt[30] = np.nan, np.inf, 5 * ztxt[30]
  loss = functools.partial(
    losses.global_loss, temperature="learned", mesh=line(2), impl="ring", tile=10
  )
  got = jax.jit(
    jax.value_and_grad(
      lambda *z: loss(*z, weights=jnp.float32(w), labels=jnp.int32(labels)), (0, 1, 2)
    )
  )(*(jnp.float32(x) for x in (zimg, ztxt, 100.0)))
  assert max(errors(got, want)) <= 1e-5 and not got[1][0][3].any() and not got[1][1][30].any()


def abstract(D, b, d):
  """The arguments of `step` over D devices, b examples of width d and 4·b entries on each."""
  rows, whole = (NamedSharding(line(D), spec) for spec in (P("data"), P()))
  shape = lambda dims, dtype=jnp.float32, where=rows: jax.ShapeDtypeStruct(
    dims, dtype, sharding=where
  )
  table = jax.tree.map(lambda x: shape(x.shape), jax.eval_shape(lambda: running.empty(4 * b * D)))
  z, numbers = shape((b * D, d)), shape((b * D,), jnp.int32)
  return table, z, z, shape((), where=whole), numbers, shape((), where=whole), shape(
    (b * D,)
  ), numbers  # fmt: skip


def test_memory_is_flat_in_devices_and_products_are_at_the_floor():
  b, d, temp = 2048, 768, {}
  for D in (4, 8):
    c = of_config(impl="ring", tile=512, temperature="learned")
    function = whole_step(c, line(D))
    arguments = abstract(D, b, d)
    analysis = jax.jit(function, donate_argnums=0).lower(*arguments).compile().memory_analysis()
    temp[D] = analysis.temp_size_in_bytes
  assert max(temp.values()) <= 5 * b * d * 4 and abs(temp[8] / temp[4] - 1) <= 0.005, temp
  assert flops.count(function, *arguments) <= 8.01 * b * (b * 8) * d


# What follows trains: 60 examples of two sources, of which a batch has 16.


def configured(**fields):
  c = tiny.get_config(steps=12)
  c.data = tuple({"source": "shapes", "image_size": 16, "examples": n, "seed": n} for n in (40, 20))
  c.loss.name, c.loss.temperature, c.loss.scale_init = "global", "learned", 30.0
  c.loss.lr_multiplier, c.optim.lr, c.optim.schedule = 10.0, 1e-2, "constant"
  c.eval.tasks, c.log.tensorboard = (), False
  c.checkpoint.keep_latest = 3
  for name, value in fields.items():
    config_lib.override(c, name.replace("__", "."), str(value))
  return c


def on_one_device(monkeypatch):
  mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), mesh_lib.BATCH_AXES)
  monkeypatch.setattr(mesh_lib, "make", lambda *args: mesh)


def test_batches_number_the_examples_of_all_sources_and_epochs():
  c = configured(batch_size=20)
  sources = data_lib.open_data(c)
  # As where filters leave a third when a source is opened
  sources[0] = filters.Filtered(sources[0], filters.Rule(), np.arange(0, 40, 3))
  first = len(sources[0])
  batches = data_lib.train_batches(c, TextProcessor(), sources=sources, numbered=True)
  found = {}
  for _ in range(4):
    numbers = next(batches)["example"]
    assert numbers.dtype == np.int32
    for number, place in zip(numbers.tolist(), zip(*batches.last)):
      assert found.setdefault(number, place) == place
  batches.close()
  assert sorted(found) == list(range(first + 20))
  assert [found[first + i] for i in range(20)] == [(1, i) for i in range(20)]
  unnumbered = data_lib.train_batches(c, TextProcessor(), sources=sources)
  assert "example" not in next(unnumbered)
  unnumbered.close()


def test_a_step_stores_what_the_batch_has_of_it_and_no_step_that_is_skipped(monkeypatch, tmp_path):
  on_one_device(monkeypatch)
  fields = {"optim__skip_nonfinite": 1, "train__microbatch": 2, "loss__impl": "ring"}
  run = run_lib.Run(configured(**fields), tmp_path)
  batches = run.batches(0)
  batch = next(batches)
  batches.close()
  batch["weight"][3] = 0
  update = lambda state: run.update()(state, mesh_lib.to_global(run.mesh, batch))
  with jax.set_mesh(run.mesh):
    state, metrics = update(run.initial_state())
    table = jax.device_get(state.normalisers)
    broken = jax.tree.map(lambda x: x * jnp.nan, state.params)
    state, skipped = update(state.replace(params=broken))
  assert metrics["skipped"] == 0 and skipped["skipped"] == 1
  for side in running.SIDES:
    assert set(np.flatnonzero(table[side]["s"])) == set(np.delete(batch["example"], 3))
    for name in "ms":
      np.testing.assert_array_equal(state.normalisers[side][name], table[side][name])


def test_more_examples_than_can_be_numbered_are_one_line():
  assert running.size(1000, 48) == 1008
  with pytest.raises(ValueError, match=r"config.data has 2,147,483,640 examples, and a loss that"):
    running.size(2**31 - 8, 48)


@pytest.mark.slow
def test_a_plan_counts_the_normalisers():
  used, less = (
    plan.plan(configured(loss__name=name), 8, ("v5e",))["bytes_per_device"]
    for name in ("global", "softmax")
  )
  assert used["remembered"] == used["state"] - less["state"] == 64 * 16 / 8


def test_a_plan_without_the_data_is_one_line():
  c = configured()
  c.data = ({"source": "parquet", "path": "nothing.parquet"},)
  with pytest.raises(ValueError, match="config.loss.name='global' keeps 16 bytes for each example"):
    plan.plan(c, 8)


def trained(workdir, **fields):
  """(losses by step, the state at the end, the run) of a run, or of one that goes on."""
  loop.train(c := configured(**fields), workdir)
  run = run_lib.Run(c, workdir)
  state, meta = stored.Stored(workdir).restore(run.abstract_state)
  assert meta["step"] == 12
  return [r["loss"] for r in records.read(workdir) if "loss" in r], state, run


@pytest.mark.slow
def test_a_resume_goes_on_with_the_same_normalisers_on_any_mesh(tmp_path, monkeypatch):
  losses_of, state, run = trained(tmp_path / "whole")
  for side in running.SIDES:
    s = np.asarray(state.normalisers[side]["s"])
    # 192 examples are three epochs and some; 4 entries fill the batch up
    assert s.shape == (64,) and (s[:60] > 0).all() and not s[60:].any()
    assert state.normalisers[side]["m"].sharding.shard_shape((64,)) == (8,)
  assert run.gamma(0) == 1 and run.gamma(6) == run.gamma(11) == np.float32(0.2)
  assert len(losses_of) == 12 and float(jnp.exp(state.params["log_scale"])) != 30.0
  # Its folder as it was after step 8
  at_8 = shutil.copytree(tmp_path / "whole", tmp_path / "one")
  shutil.rmtree(at_8 / "checkpoints/12")
  lines = (at_8 / records.FILE).read_text().splitlines(keepends=True)
  (at_8 / records.FILE).write_text("".join(lines[:8]))
  again, after, _ = trained(shutil.copytree(at_8, tmp_path / "split"), mesh__fsdp=4)
  assert again == losses_of
  jax.tree.map(np.testing.assert_array_equal, after.normalisers, state.normalisers)
  on_one_device(monkeypatch)
  again, after, _ = trained(at_8, train__microbatch=2, mesh__fsdp=8)
  np.testing.assert_allclose(again, losses_of, rtol=2e-5)
  u_of = lambda u: np.log(u["s"][:60]) + u["m"][:60]
  for side in running.SIDES:
    new, old = u_of(after.normalisers[side]), u_of(state.normalisers[side])
    np.testing.assert_allclose(new, old, atol=1e-4)
  with pytest.raises(
    ValueError, match="γ of the steps before it fell over config.loss.gamma_decay"
  ):
    loop.train(configured(total_steps=20), at_8)
