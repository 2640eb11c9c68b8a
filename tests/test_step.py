"""One update: the same on any mesh, frozen parts untouched; and the counting of FLOPs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siglax import config as config_lib
from siglax import flops, models, optim
from siglax import mesh as mesh_lib
from siglax import state as state_lib
from siglax import step as step_lib
from siglax.data.text import TextProcessor

import tiny


def batch(n=16):
  rng = np.random.default_rng(0)
  return {
      "image": rng.integers(0, 256, (n, 16, 16, 3), np.uint8),
      "tokens": rng.integers(3, 100, (n, 12), np.int32),
      "label": np.arange(n, dtype=np.int32),
      "weight": rng.uniform(0.5, 1.5, n).astype(np.float32),
  }


def two_updates(mesh, **fields):
  c = tiny.get_config()
  for field, value in fields.items():
    config_lib.override(c, field, str(value))
  c = config_lib.resolve(c, TextProcessor())
  model = models.build(c.model)
  params = jax.eval_shape(model.init, jax.random.key(0))
  tx, schedule = optim.make(c, params, 12)
  abstract = state_lib.abstract(model, tx, mesh)
  shardings = jax.tree.map(lambda x: x.sharding, abstract)
  state = first = jax.jit(lambda key: state_lib.create(key, model, tx), out_shardings=shardings)(jax.random.key(0))
  first = jax.device_get(first.params)
  with jax.set_mesh(mesh):
    update = step_lib.jit(step_lib.make(c, model, tx, schedule, mesh, optim.frozen_mask(c, params)), abstract, mesh)
    for _ in range(2):
      state, metrics = update(state, mesh_lib.to_global(mesh, batch()))
  return first, state, jax.device_get(metrics)


def one_device():
  return jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), mesh_lib.BATCH_AXES)


def test_eight_devices_with_fsdp_equal_one(monkeypatch):
  monkeypatch.setattr(mesh_lib, "FSDP_MIN_ELEMENTS", 100)
  _, one, metrics_one = two_updates(one_device())
  _, eight, metrics = two_updates(mesh_lib.make(2, 4))
  kernel = eight.params["image"]["encoder"]["blocks"]["mlp"]["fc1"]["kernel"]
  assert kernel.addressable_shards[0].data.size == kernel.size // 4
  for name, value in metrics_one.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
  # Adam divides by the gradient's own size, so parameters whose gradient is rounding noise may differ by lr.
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2.1e-3), one.params, eight.params)


def test_a_frozen_tower_stays_and_the_scale_keeps_under_its_cap():
  fields = {"optim.lr_multipliers": "(('image/.*', None), ('.*', 1.0))", "loss.scale_init": 10.0, "loss.scale_max": 5.0}
  first, state, _ = two_updates(one_device(), **fields)
  after = jax.device_get(state.params)
  jax.tree.map(np.testing.assert_array_equal, first["image"], after["image"])
  assert np.abs(first["text"]["head"]["kernel"] - after["text"]["head"]["kernel"]).max() > 0
  assert 4.9 < np.exp(after["log_scale"]) <= 5.0001  # at 10 before the first update
  moments = sum(x.size for x in jax.tree.leaves(state.opt_state))
  assert moments < 2 * sum(x.size for x in jax.tree.leaves({k: v for k, v in after.items() if k != "image"})) + 10


def test_logit_means_equal_those_of_the_matrix():
  rng = np.random.default_rng(0)
  zimg, ztxt, w = rng.normal(size=(9, 4)), rng.normal(size=(9, 4)), rng.uniform(size=9)
  x, ww = 7 * zimg @ ztxt.T - 2, np.outer(w, w)
  off = ~np.eye(9, dtype=bool)
  want = (np.average(np.diag(x), weights=w), np.average(x[off], weights=ww[off]))
  np.testing.assert_allclose(step_lib.logit_means(jnp.array(zimg), jnp.array(ztxt), 7.0, -2.0, jnp.array(w)), want, rtol=1e-4)


def test_flops_of_products_convolutions_and_loops():
  a, b = jnp.ones((3, 5)), jnp.ones((5, 7))
  assert flops.count(jnp.dot, a, b) == 2 * 3 * 5 * 7
  assert flops.count(jax.jit(lambda x: jax.lax.scan(lambda c, _: (c @ jnp.ones((5, 5)), None), x, length=4)[0]), a) == 4 * 2 * 3 * 5 * 5
  conv = lambda x, k: jax.lax.conv_general_dilated(x, k, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
  assert flops.count(conv, jnp.ones((2, 8, 8, 3)), jnp.ones((2, 2, 3, 6))) == 2 * (2 * 4 * 4 * 6) * (2 * 2 * 3)
