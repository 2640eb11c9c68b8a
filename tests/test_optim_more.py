"""Muon and StableAdamW against float64 numpy."""

import jax
import numpy as np
import optax
import test_optim

from siglax.training import optim

MATRIX = "image/blocks/mlp/kernel"


def stable_adam(c):
  """Adam, its update divided by max(1, rms(g / √v̂)) in each parameter of each layer."""
  adam = test_optim.adam(c)

  def direction(memory, g, t):
    u, g = np.array(adam(memory, g, t)), np.array(g)
    v = np.array(memory["v"] / (1 - c.b2**t))
    layers = range(len(u)) if u.ndim and len(u) == 2 else [...]  # those of image/blocks are stacked
    for i in layers:
      u[i] = u[i] / max(1.0, np.sqrt(np.mean(g[i] ** 2 / np.maximum(v[i], c.eps**2))))
    return u

  return direction


def test_stable_adamw_equals_float64():
  config = test_optim.make_config(name="stable_adamw", lr=0.01, weight_decay=0.1, b2=0.5, eps=1e-8)
  want = test_optim.reference(config, stable_adam(config.optim))
  got, _, _ = test_optim.train(config)
  test_optim.assert_close(got, want)
  plain = test_optim.reference(config, test_optim.adam(config.optim))
  assert any(np.abs(plain[name] - want[name]).max() > 1e-4 for name in want)  # it has clipped


def newton_schulz(x):
  transpose = x.shape[0] > x.shape[1]
  x = x.T if transpose else x
  x = x / (np.linalg.norm(x) + 1e-8)
  for _ in range(5):
    a = x @ x.T
    x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
  return x.T if transpose else x


def muon(c):
  """Of the stacked kernels of blocks; the rest is Adam's. The bias correction of Nesterov's step is
  optax's; the iterations do not see the length of M.
  """
  adam, mu = test_optim.adam(c), c.muon_momentum

  def direction(memory, g, t):
    if g.shape != (2, 6, 5):
      return adam(memory, g, t)
    memory["M"] = mu * memory.get("M", 0) + (1 - mu) * g
    step = mu * memory["M"] / (1 - mu ** (t + 1)) + (1 - mu) * g / (1 - mu**t)
    return np.stack([newton_schulz(x) for x in step]) * 0.2 * np.sqrt(6)

  return direction


def test_muon_equals_float64_on_matrices_and_adam_elsewhere():
  config = test_optim.make_config(name="muon", lr=0.01, weight_decay=0.1)
  got, state, _ = test_optim.train(config)
  want = test_optim.reference(config, muon(config.optim))
  test_optim.assert_close(got, want, 1e-5)
  kept = [name for name, x in test_optim.flat(state).items() if x.shape == (2, 6, 5)]
  assert len(kept) == 1  # one moment of a matrix, where Adam has two


def test_an_update_of_muon_has_the_size_of_adams_and_no_weak_direction():
  config = test_optim.make_config(name="muon", lr=1.0, weight_decay=0.0, schedule="constant")
  params = {"image": {"blocks": {"mlp": {"kernel": np.zeros((3, 64, 32), np.float32)}}}}
  rng = np.random.default_rng(0)
  grads = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), params)
  tx, _ = optim.make(config, params, 1)
  updates, _ = tx.update(grads, tx.init(params), params)
  for update in np.asarray(updates["image"]["blocks"]["mlp"]["kernel"]):
    values = np.linalg.svd(update, compute_uv=False) / (0.2 * np.sqrt(64))
    assert 0.5 < values.min() and values.max() < 1.3
    assert 0.1 < np.sqrt(np.mean(update**2)) < 0.3
  assert optax.tree.norm(updates) > 0
