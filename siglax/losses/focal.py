"""The focal contrastive loss of MaMMUT (arXiv 2303.16839) and RO-ViT (arXiv 2305.07011): maths, no devices.

The sigmoid loss with each pair weighted by (1 − p)^γ, p the probability given to the right answer: easy pairs, which
are most of B², fade. One trip, 6·b·B·d FLOPs a device.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from siglax.losses import pairs


def dense(zimg_Bd, ztxt_Bd, scale, bias, weights_B, labels_B, gamma) -> jax.Array:
  """L = (1/Σw) Σ_ij w_i w_j σ(−u_ij)^γ softplus(−u_ij), u = x for a match and −x otherwise, x = scale·zimg·ztxtᵀ + bias."""
  x_BB = scale * pairs.similarity(zimg_Bd, ztxt_Bd) + bias
  u_BB = jnp.where(pairs.positives(labels_B, x_BB.shape[0]), x_BB, -x_BB)
  return pairs.dense_mean(jax.nn.sigmoid(-u_BB) ** gamma * jax.nn.softplus(-u_BB), weights_B)


def tile(gamma):
  """(x, p) → loss of each pair and its derivative, ∓ q^γ (γ (1 − q) softplus(−u) + q) with q = σ(−u)."""

  def pair_loss(x_tt, p_tt):
    u_tt = jnp.where(p_tt, x_tt, -x_tt)
    e_tt = jnp.exp(-jnp.abs(u_tt))
    log1p_tt = jnp.log1p(e_tt)
    below_tt, above_tt = jnp.maximum(-u_tt, 0) + log1p_tt, jnp.maximum(u_tt, 0) + log1p_tt  # −log σ(u), −log σ(−u)
    q_tt = jnp.where(u_tt >= 0, e_tt, 1) / (1 + e_tt)
    right_tt = jnp.where(u_tt >= 0, 1, e_tt) / (1 + e_tt)
    focus_tt = jnp.exp(-gamma * above_tt)
    du_tt = -focus_tt * (gamma * right_tt * below_tt + q_tt)
    return focus_tt * below_tt, jnp.where(p_tt, du_tt, -du_tt)

  return pair_loss
