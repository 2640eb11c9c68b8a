"""The sigmoid loss of SigLIP (Zhai et al., arXiv 2303.15343): maths, no devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from siglax.losses import pairs


def formula(x, p) -> jax.Array:
  """softplus(x) − p·x: −log σ(x) for a pair that matches, −log σ(−x) for another; no ±1 matrix is
  made.

  The paper prints its formula with the wrong sign of the bias; this is its Algorithm 1.
  """
  return jax.nn.softplus(x) - jnp.where(p, x, 0)


def with_derivative(x_tt, p_tt):
  """Loss of each pair, softplus(x) − p·x, and its derivative, σ(x) − p; both from one
  exponential.
  """
  e_tt = jnp.exp(-jnp.abs(x_tt))
  loss_tt = jnp.maximum(x_tt, 0) + jnp.log1p(e_tt) - jnp.where(p_tt, x_tt, 0)
  sigmoid_tt = jnp.where(x_tt >= 0, 1, e_tt) / (1 + e_tt)
  return loss_tt, sigmoid_tt - p_tt


LOSS = pairs.loss(
  "sigmoid", "SigLIP's: each pair alone is a match or none.", formula, with_derivative
)
