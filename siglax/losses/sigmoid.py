"""The sigmoid loss of SigLIP (Zhai et al., arXiv 2303.15343), dense: the B×B logits are made.

Shapes: B global batch, d embedding width. Global view.
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
  logits_BB = pairs.logits(zimg_Bd, ztxt_Bd, scale) + bias
  losses_BB = jax.nn.softplus(logits_BB) - jnp.where(pairs.positives(labels_B, logits_BB.shape[0]), logits_BB, 0)
  if weights_B is None:
    return jnp.sum(losses_BB) / logits_BB.shape[0]
  return jnp.einsum("i,ij,j->", weights_B, losses_BB, weights_B) / jnp.sum(weights_B)
