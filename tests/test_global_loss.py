"""The global contrastive loss against float64 numpy over many steps, and its running normalisers in
a run.
"""

import functools
import json

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from siglax import config as config_lib
from siglax import losses
from siglax.devices import flops
from siglax.losses import running
from siglax.losses.layout import Layout

import oracles

EXAMPLES, B, WIDTH, STEPS, TILE = 90, 32, 16, 50, 3


def line(D):
  return Mesh(np.array(jax.devices()[:D]), ("data",), axis_types=(AxisType.Auto,))


def of_config(**fields):
  c = config_lib.default()
  for name, value in {"name": "global", **fields}.items():
    c.loss[name] = value
  return c.loss


@functools.lru_cache(None)
def step(impl, D, temperature, labelled):
  """(table, zimg, ztxt, scale, example, γ, weights, labels) → (loss, gradients, table), jitted."""
  c = of_config(impl=impl, tile=None if impl == "dense" else TILE, temperature=temperature)
  layout = Layout(line(D), "data", impl)
  compute = losses.make(c, line(D), "data")

  def step(table, zimg, ztxt, scale, example, gamma, weights, labels):
    remembered = running.fetch(table, example, gamma, layout)
    loss = lambda *z: compute(
      *z, 0.0, weights=weights, labels=labels if labelled else None, running=remembered
    )
    (value, rows), grads = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(zimg, ztxt, scale)
    return value, grads, running.store(table, rows, layout)

  return jax.jit(step)


def errors(got, want):
  return [
    np.abs(np.asarray(x, np.float64) - y).max() / max(np.abs(y).max(), 1e-30)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want))
  ]


@pytest.mark.parametrize(
  "impl, D, temperature, labelled",
  [
    ("dense", 1, "fixed", False),
    ("ring", 1, "learned", True),
    ("ring", 8, "learned", False),
    ("gather", 8, "unscaled", True),
  ],
)
def test_fifty_steps_equal_float64(impl, D, temperature, labelled):
  """At τ = 0.01, where u lies between exp(−60) and exp(110): every other batch is of texts that
  are close to their images, and of its own examples. Batches hold an example twice, and some of
  weight 0.
  """
  rng, oracle = np.random.default_rng(0), oracles.GlobalContrastive(temperature)
  table = jax.device_put(
    running.empty(running.size(EXAMPLES, B)), NamedSharding(line(D), P("data"))
  )
  worst = np.zeros(4)
  for i in range(STEPS):
    zimg, ztxt, w, labels = oracles.batch(B, WIDTH, rank=3, seed=i)
    if i % 2:
      zimg = oracles.unit(rng.normal(size=zimg.shape))
      ztxt = oracles.unit(zimg + 0.1 * rng.normal(size=zimg.shape) / WIDTH**0.5)
      zimg, ztxt = (np.float64(np.float32(z)) for z in (zimg, ztxt))
    example = rng.integers(0, EXAMPLES // 2, B) * 2 + i % 2
    w[rng.integers(0, B, 3)] = 0
    scale, gamma = (100.0, 14.0)[i // 2 % 2], float(np.float32(1 - 0.8 * i / STEPS))
    value, grads, table = step(impl, D, temperature, labelled)(
      table, *map(jnp.float32, (zimg, ztxt, scale)), jnp.int32(example), jnp.float32(gamma),
      jnp.float32(w), jnp.int32(labels),
    )  # fmt: skip
    want = oracle(zimg, ztxt, scale, example, gamma, w, labels if labelled else None)
    worst = np.maximum(worst, errors((value, *grads), (want[0], *want[1])))
  assert worst.max() <= 1e-5, worst
  for side, of in zip(running.SIDES, oracle.u):
    m, s = (np.asarray(table[side][name], np.float64) for name in "ms")
    seen = np.array(sorted(of))
    assert 80 < len(seen) and set(np.flatnonzero(s)) == set(seen)
    log_u = np.log([of[k] for k in seen])
    assert log_u.max() > 80 and log_u.min() < -5, (log_u.min(), log_u.max())
    assert np.abs(m[seen] + np.log(s[seen]) - log_u).max() <= 2e-5
