"""Adam whose update is clipped where the second moment lags behind the gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from siglax.devices import paths
from siglax.training.optimizer import Optimizer


def stable_adamw(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
  """Adam's direction, divided by max(1, rms) in each parameter of each layer, rms = √mean(g² /
  max(v̂, ε²)).

  v̂ is the second moment with its bias corrected. rms is near 1 while v̂ is up to date, and large
  where a gradient grows faster than v̂ follows, from which the spikes of the loss come.
  Source: Wortsman et al., arXiv 2304.13013, section 3.5.
  """
  adam = optax.scale_by_adam(b1, b2, eps)

  def update(grads, state, params=None):
    updates, state = adam.update(grads, state, params)
    correction = 1 - b2 ** state.count.astype(jnp.float32)

    def clip(path, u, g, v):
      axes = tuple(range(1, u.ndim)) if paths.is_stacked(paths.name(path)) else None
      ratio = jnp.square(g) / jnp.maximum(v / correction, eps**2)
      return u / jnp.maximum(1.0, jnp.sqrt(jnp.mean(ratio, axis=axes, keepdims=True)))

    return jax.tree_util.tree_map_with_path(clip, updates, grads, state.nu), state

  return optax.GradientTransformation(adam.init, update)


OPTIMIZER = Optimizer(
  "stable_adamw",
  "Adam with its update clipped by adafactor's measure (StableAdamW, arXiv 2304.13013)",
  stable_adamw,
  uses=("b1", "b2", "eps"),
)
