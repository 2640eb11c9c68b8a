"""CyCLIP (Goel et al., arXiv 2205.14459): the softmax loss and two terms of consistency; maths, no
devices.

With s_jk = zimg_j·ztxt_k, the terms ask that a similarity does not change when image and text of
two examples change places, and that two images are as similar as their texts:
    cross_modal · (1/Σw) Σ_jk w_j w_k (s_jk − s_kj)²
    in_modal · (1/Σw) Σ_jk w_j w_k (zimg_j·zimg_k − ztxt_j·ztxt_k)²
With U = zimg + ztxt and V = zimg − ztxt, the first sum is ½(⟨UᵀWU, VᵀWV⟩ − ⟨R, Rᵀ⟩) and the second
½(⟨UᵀWU, VᵀWV⟩ + ⟨R, Rᵀ⟩), R = UᵀWV: three matrices [d, d], summed over devices, take the place of
[B, B], and no text travels. 6·b·d² FLOPs a device for the value and as many for the gradient.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from siglax.config.parts import Field
from siglax.losses import pairs
from siglax.losses import ring
from siglax.losses import softmax
from siglax.losses.loss import Loss


def dense(zimg_Bd, ztxt_Bd, weights_B, labels_B, cross_modal, in_modal) -> jax.Array:
  """The two terms; see the module. Labels play no part."""
  del labels_B
  s_BB = pairs.similarity(zimg_Bd, ztxt_Bd)
  of_images_BB, of_texts_BB = (pairs.similarity(z_Bd, z_Bd) for z_Bd in (zimg_Bd, ztxt_Bd))
  squares_BB = cross_modal * (s_BB - s_BB.T) ** 2 + in_modal * (of_images_BB - of_texts_BB) ** 2
  return pairs.dense_mean(squares_BB, weights_B)


def _per_device(cross_modal, in_modal):
  """The same on one device, for `ring.differentiable`; there are no scalars."""
  same, turned = (in_modal + cross_modal) / 2, (in_modal - cross_modal) / 2

  def per_device(transport, batch, scalars, grad):
    total = pairs.total_weight(transport, batch)
    zimg_bd, ztxt_bd = (
      ring.present_rows(z_bd, batch.weights).astype(jnp.float32)
      for z_bd in (batch.zimg, batch.ztxt)
    )
    u_bd, v_bd = zimg_bd + ztxt_bd, zimg_bd - ztxt_bd
    w_b1 = 1.0 if batch.weights is None else batch.weights[:, None]
    gram = lambda a_bd, b_bd: pairs.matmul(a_bd, w_b1 * b_bd, ((0,), (0,)))
    u_dd, v_dd, r_dd = transport.sum((gram(u_bd, u_bd), gram(v_bd, v_bd), gram(u_bd, v_bd)))
    loss = (same * jnp.sum(u_dd * v_dd) + turned * jnp.sum(r_dd * r_dd.T)) / total
    if not grad:
      return loss, None
    across = lambda a_bd, b_dd: pairs.matmul(a_bd, b_dd, ((1,), (0,)))
    du_bd = same * across(u_bd, v_dd) + turned * across(v_bd, r_dd)
    dv_bd = same * across(v_bd, u_dd) + turned * across(u_bd, r_dd.T)
    share_b1 = 2 * w_b1 / total
    return loss, (share_b1 * (du_bd + dv_bd), share_b1 * (du_bd - dv_bd), scalars)

  return per_device


CONSISTENCY = Loss(
  "consistency",
  "CyCLIP's terms of consistency, which are added to another loss.",
  dense,
  _per_device,
  has_scale=False,
  fields={
    "cross_modal": Field(
      0.25, "Weight of CyCLIP's (s_jk − s_kj)², summed over all pairs, of cosines.", least=0
    ),
    "in_modal": Field(
      0.25,
      "Weight of CyCLIP's squared difference of the cosines of two images and of their texts.",
      least=0,
    ),
  },
)

LOSS = dataclasses.replace(
  softmax.LOSS,
  name="cyclip",
  doc="CyCLIP's: the softmax loss, and two terms that ask for consistent similarities.",
  fields=CONSISTENCY.fields,
  plus=CONSISTENCY,
)
