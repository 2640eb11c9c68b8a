"""The softmax loss of CLIP (Radford et al., arXiv 2103.00020), dense: the B×B logits are made.

Shapes: B global batch, d embedding width. Global view.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from siglax.losses import pairs


def dense(zimg_Bd, ztxt_Bd, scale, weights_B, labels_B) -> jax.Array:
  """L = ½ Σ over both directions of (1/Σw) Σ_i w_i [log Σ_j w_j exp(x_ij) − Σ_j q_ij x_ij], x = scale·zimg·ztxtᵀ.

  The target q_ij = p_ij w_j / Σ_k p_ik w_k is uniform over the positives of i, by weight.
  """
  logits_BB = pairs.logits(zimg_Bd, ztxt_Bd, scale)
  B = logits_BB.shape[0]
  weights_B = jnp.ones((B,), jnp.float32) if weights_B is None else weights_B
  p_BB = pairs.positives(labels_B, B)
  both = _one_way(logits_BB, p_BB, weights_B) + _one_way(logits_BB.T, p_BB, weights_B)
  return 0.5 * both / jnp.sum(weights_B)


def _one_way(x_BB, p_BB, weights_B):
  lse_B = jax.nn.logsumexp(x_BB, axis=1, b=weights_B[None, :])
  mass_BB = jnp.where(p_BB, weights_B[None, :], 0)
  # A row of weight 0 has no positives left; its target is never used, so its sum may be anything but 0.
  target_B = jnp.sum(mass_BB * x_BB, axis=1) / jnp.maximum(jnp.sum(mass_BB, axis=1), jnp.finfo(jnp.float32).tiny)
  return jnp.sum(jnp.where(weights_B > 0, weights_B * (lse_B - target_B), 0))
