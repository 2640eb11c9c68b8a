"""The focal contrastive loss of MaMMUT (arXiv 2303.16839) and RO-ViT (arXiv 2305.07011): maths, no
devices.

The sigmoid loss with each pair weighted by (1 − p)^γ, p the probability given to the right answer:
easy pairs, which are most of B², fade.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from siglax.config.parts import Field
from siglax.losses import pairs


def formula(x, p, gamma) -> jax.Array:
  """σ(−u)^γ softplus(−u), with u = x for a pair that matches and −x for another."""
  u = jnp.where(p, x, -x)
  return jax.nn.sigmoid(-u) ** gamma * jax.nn.softplus(-u)


def with_derivative(x_tt, p_tt, gamma):
  """Loss of each pair and its derivative, ∓ q^γ (γ (1 − q) softplus(−u) + q) with q = σ(−u)."""
  u_tt = jnp.where(p_tt, x_tt, -x_tt)
  e_tt = jnp.exp(-jnp.abs(u_tt))
  log1p_tt = jnp.log1p(e_tt)
  below_tt = jnp.maximum(-u_tt, 0) + log1p_tt  # −log σ(u)
  above_tt = jnp.maximum(u_tt, 0) + log1p_tt  # −log σ(−u)
  q_tt = jnp.where(u_tt >= 0, e_tt, 1) / (1 + e_tt)
  right_tt = jnp.where(u_tt >= 0, 1, e_tt) / (1 + e_tt)
  focus_tt = jnp.exp(-gamma * above_tt)
  du_tt = -focus_tt * (gamma * right_tt * below_tt + q_tt)
  return focus_tt * below_tt, jnp.where(p_tt, du_tt, -du_tt)


LOSS = pairs.loss(
  "focal",
  "The sigmoid loss with easy pairs weighted down.",
  formula,
  with_derivative,
  fields={
    "gamma": Field(
      2.0, "A pair weighs (1 − p)^gamma, p the probability of its right answer.", least=0
    ),
  },
)
