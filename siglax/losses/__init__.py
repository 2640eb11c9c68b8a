"""Contrastive losses over a global batch of unit embeddings.

zimg, ztxt: [B, d], rows sharded over `axis` (a name or a tuple of names) of `mesh`; scale is exp(t'); the result is
a float32 scalar, differentiable in zimg, ztxt, scale and bias. Call under jax.jit.
weights: float [B], 0 removes an example as row and as column. labels: int [B], pairs of equal labels match.
impl: "dense" makes the B×B logits in plain jnp, sharded as XLA decides; "auto" is "dense", the only one yet.
tile: examples per tile of an impl that has tiles; the dense one has none.
"""

from __future__ import annotations

import jax

from siglax.losses import pairs
from siglax.losses import sigmoid
from siglax.losses import softmax

IMPLS = ("auto", "dense")


def sigmoid_loss(
    zimg, ztxt, scale, bias, *, mesh=None, axis="data", impl="auto", tile=None, weights=None, labels=None
) -> jax.Array:
  """SigLIP: (1/Σw) Σ_ij w_i w_j [softplus(x_ij) − p_ij x_ij], x = scale·zimg·ztxtᵀ + bias. Global view.

  See the module for arguments. Source: arXiv 2303.15343, Algorithm 1. Raises ValueError for shapes that differ,
  an unknown impl or axis, a tile below 1, labels that are not integers.
  """
  pairs.check(zimg, ztxt, mesh, axis, impl, IMPLS, tile, weights, labels)
  return sigmoid.dense(zimg, ztxt, scale, bias, weights, labels)


def softmax_loss(
    zimg, ztxt, scale, *, mesh=None, axis="data", impl="auto", tile=None, weights=None, labels=None
) -> jax.Array:
  """CLIP: ½ Σ over both directions of (1/Σw) Σ_i w_i [log Σ_j w_j exp(x_ij) − Σ_j q_ij x_ij], x = scale·zimg·ztxtᵀ.

  Global view; see the module for arguments. Source: arXiv 2103.00020, figure 3. Raises ValueError as sigmoid_loss.
  """
  pairs.check(zimg, ztxt, mesh, axis, impl, IMPLS, tile, weights, labels)
  return softmax.dense(zimg, ztxt, scale, weights, labels)


def make(config, mesh=None, axis="data"):
  """The loss of `config.loss`: (zimg, ztxt, scale, bias, weights=, labels=) → scalar."""
  shared = dict(mesh=mesh, axis=axis, impl=config.impl)
  if config.name == "softmax":
    return lambda zimg, ztxt, scale, bias, **pair: softmax_loss(zimg, ztxt, scale, **shared, **pair)
  return lambda zimg, ztxt, scale, bias, **pair: sigmoid_loss(zimg, ztxt, scale, bias, **shared, **pair)
