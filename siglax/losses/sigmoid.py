"""The sigmoid loss of SigLIP (Zhai et al., arXiv 2303.15343): maths, no devices.

Each pair of image and text adds to the loss on its own, so the gradient is emitted in the pass that makes the loss:
one trip of the texts, 6·b·B·d FLOPs a device.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from siglax.losses import pairs


def dense(zimg_Bd, ztxt_Bd, scale, bias, weights_B, labels_B) -> jax.Array:
  """L = (1/Σw) Σ_ij w_i w_j [softplus(x_ij) − p_ij x_ij] with x = scale·zimg·ztxtᵀ + bias.

  softplus(x) − p·x is −log σ(z·x) for p = 1 (z = +1) and p = 0 (z = −1); no ±1 matrix is made.
  The paper prints its formula with the wrong sign of the bias; this is its Algorithm 1.
  """
  logits_BB = scale * pairs.similarity(zimg_Bd, ztxt_Bd) + bias
  losses_BB = jax.nn.softplus(logits_BB) - jnp.where(pairs.positives(labels_B, logits_BB.shape[0]), logits_BB, 0)
  return pairs.dense_mean(losses_BB, weights_B)


def tile(x_tt, p_tt):
  """Loss of each pair, softplus(x) − p·x, and its derivative, σ(x) − p; both from one exponential."""
  e_tt = jnp.exp(-jnp.abs(x_tt))
  loss_tt = jnp.maximum(x_tt, 0) + jnp.log1p(e_tt) - jnp.where(p_tt, x_tt, 0)
  sigmoid_tt = jnp.where(x_tt >= 0, 1, e_tt) / (1 + e_tt)
  return loss_tt, sigmoid_tt - p_tt
