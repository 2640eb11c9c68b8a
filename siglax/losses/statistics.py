"""What a run logs about its logits at O(b·d) a device: nothing here makes or needs the B×B
matrix.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from siglax.losses import pairs
from siglax.losses import ring

BLOCK = 64  # examples that are told apart by local_accuracy


def logit_means(zimg_Bd, ztxt_Bd, scale, bias, weights_B) -> tuple[jax.Array, jax.Array]:
  """Weighted means of the logits of an example's own pair and of all others.

  Σ_ij w_i w_j zimg_i·ztxt_j = (Σ_i w_i zimg_i)·(Σ_j w_j ztxt_j), from which the pairs are taken
  away.
  """
  weights_B, *_ = pairs.scaled(weights_B)
  zimg_Bd, ztxt_Bd = (
    ring.present_rows(z_Bd, weights_B).astype(jnp.float32) for z_Bd in (zimg_Bd, ztxt_Bd)
  )
  pair_B = jnp.sum(zimg_Bd * ztxt_Bd, axis=1)
  mean_img_d, mean_txt_d = (
    pairs.matmul(weights_B, z_Bd, ((0,), (0,))) for z_Bd in (zimg_Bd, ztxt_Bd)
  )
  all_pairs = jnp.sum(mean_img_d * mean_txt_d)
  total, squares = pairs.dense_total(weights_B), jnp.sum(weights_B**2)
  pos = jnp.sum(weights_B * pair_B) / total
  neg = (all_pairs - jnp.sum(weights_B**2 * pair_B)) / jnp.maximum(total**2 - squares, 1e-9)
  return scale * pos + bias, scale * neg + bias


def local_accuracy(zimg_Bd, ztxt_Bd, weights_B, labels_B=None, devices: int = 1) -> jax.Array:
  """Weighted share of images whose nearest text, of the BLOCK around their own, is their own or one
  of its label.

  A device's b = B / devices examples are cut into blocks of k = min(b, BLOCK), those that fill no
  block left out: 2·k·b·d FLOPs a device and no communication. Examples of weight 0 are no
  candidates. Chance is 1/k.
  """
  weights_B, *_ = pairs.scaled(weights_B)
  b = len(zimg_Bd) // devices
  k = min(b, BLOCK)

  def blocks(x):
    x = x.reshape(devices, b, *x.shape[1:])[:, : b // k * k]
    return x.reshape(devices * (b // k), k, *x.shape[2:])

  zimg, ztxt, w = blocks(zimg_Bd), blocks(ztxt_Bd), blocks(weights_B)
  similarity = jnp.einsum("nid,njd->nij", zimg, ztxt, preferred_element_type=jnp.float32)
  best = jnp.argmax(jnp.where(w[:, None, :] > 0, similarity, -jnp.inf), axis=2)
  own = jnp.broadcast_to(jnp.arange(k), best.shape) if labels_B is None else blocks(labels_B)
  right = jnp.take_along_axis(own, best, axis=1) == own
  return jnp.sum(jnp.where(w > 0, w * right, 0)) / jnp.maximum(jnp.sum(w), 1e-9)


def norm_error(z_Bd, weights_B) -> jax.Array:
  """max_i |‖z_i‖ − 1| over weights above 0, NaN where an element is; a loss takes unit
  embeddings.
  """
  error_B = jnp.abs(jnp.linalg.norm(z_Bd.astype(jnp.float32), axis=1) - 1)
  return jnp.max(jnp.where(weights_B > 0, error_B, 0))
