"""Contrastive losses over a global batch of unit embeddings.

zimg, ztxt: [B, d], rows sharded over `axis` (a name or a tuple of names) of `mesh`; scale is exp(t'); the result is
a float32 scalar, differentiable in zimg, ztxt, scale and bias. Call under jax.jit.
weights: float [B], at least 0, of any size: an example of weight 0 is absent, as row and as column, whatever its
embeddings hold; a batch of which all are absent has no loss: 0, and so are its gradients. labels: int [B], pairs of equal
labels match.
impl: "dense" makes the B×B logits in plain jnp, sharded as XLA decides; "ring" passes the texts from device to device
and keeps memory at O(b·d), b = B / devices; "gather" fetches all texts at once, O(B·d); "auto" is `choose`'s.
tile: examples per tile of ring and gather, None is `default_tile`'s; the dense one has none.
All raise ValueError in one line for shapes that differ, a batch that the devices do not divide, an unknown impl or
axis, a tile below 1, labels that are not integers. docs/losses.md has the maths and the figures.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from siglax.losses import focal
from siglax.losses import hinge
from siglax.losses import pairs
from siglax.losses import ring
from siglax.losses import sigmoid
from siglax.losses import softmax

IMPLS = ("auto", "dense", "ring", "gather")
NEGATIVES = ("all", "hardest")

# The rule of impl="auto".
DENSE_PAIRS = 2**20  # b·B up to which the logits are small: at about 20 bytes a pair 20 MiB
RING_EXAMPLES = 4096  # b from which a hop takes no longer than a device works on its texts (docs/losses.md)
GATHER_SHARE = 1 / 16  # of a device's memory that all texts and their gradients may take
DEVICE_MEMORY = 16 * 2**30  # bytes, where a device does not tell


def sigmoid_loss(
    zimg, ztxt, scale, bias, *, mesh=None, axis="data", impl="auto", tile=None, weights=None, labels=None
) -> jax.Array:
  """SigLIP: (1/Σw) Σ_ij w_i w_j [softplus(x_ij) − p_ij x_ij], x = scale·zimg·ztxtᵀ + bias. Global view.

  See the module for arguments and errors. Source: arXiv 2303.15343, Algorithm 1.
  """
  return _loss(sigmoid.dense, pairs.pairwise(sigmoid.tile), zimg, ztxt, (scale, bias), mesh, axis, impl, tile, weights, labels)


def softmax_loss(
    zimg, ztxt, scale, *, mesh=None, axis="data", impl="auto", tile=None, weights=None, labels=None
) -> jax.Array:
  """CLIP: ½ Σ over both directions of (1/Σw) Σ_i w_i [log Σ_j w_j exp(x_ij) − Σ_j q_ij x_ij], x = scale·zimg·ztxtᵀ.

  q_ij = p_ij w_j / Σ_k p_ik w_k. Global view; see the module for arguments and errors. Source: arXiv 2103.00020, figure 3.
  """
  unscale = lambda loss, c: loss + jnp.log(c)
  return _loss(softmax.dense, softmax.program, zimg, ztxt, (scale,), mesh, axis, impl, tile, weights, labels, unscale)


def focal_loss(
    zimg, ztxt, scale, bias, *, gamma=2.0, mesh=None, axis="data", impl="auto", tile=None, weights=None, labels=None
) -> jax.Array:
  """The sigmoid loss with each pair weighted by (1 − p)^gamma, p the probability of its right answer. Global view.

  See the module for arguments and errors. Source: Lin et al., arXiv 1708.02002; for image-text pairs RO-ViT, arXiv 2305.07011, and MaMMUT, arXiv 2303.16839.
  """
  dense = functools.partial(focal.dense, gamma=gamma)
  return _loss(dense, pairs.pairwise(focal.tile(gamma)), zimg, ztxt, (scale, bias), mesh, axis, impl, tile, weights, labels)


def hinge_loss(
    zimg, ztxt, *, margin=0.2, negatives="all", mesh=None, axis="data", impl="auto", tile=None, weights=None, labels=None
) -> jax.Array:
  """VSE++: (1/Σw) Σ_i w_i [N_j (margin + s_ij − s_ii)₊ + N_j (margin + s_ji − s_ii)₊] over j that do not match i.

  s = zimg·ztxtᵀ, no scale and no bias; N is Σ_j w_j for negatives="all" and the maximum for "hardest". Global view;
  see the module for arguments and errors. Source: arXiv 1707.05612, section 3.
  """
  if negatives not in NEGATIVES:
    raise ValueError(f"negatives={negatives!r} is unknown; known are {', '.join(NEGATIVES)} (config.loss.negatives)")
  dense = functools.partial(hinge.dense, margin=margin, negatives=negatives)
  unscale = jnp.multiply if negatives == "all" else lambda loss, c: loss
  return _loss(dense, hinge.program(margin, negatives), zimg, ztxt, (), mesh, axis, impl, tile, weights, labels, unscale)


def make(config, mesh=None, axis="data"):
  """The loss of `config.loss`: (zimg, ztxt, scale, bias, weights=, labels=) → scalar."""
  shared = dict(mesh=mesh, axis=axis, impl=config.impl, tile=config.tile)
  return {
      "sigmoid": lambda zimg, ztxt, scale, bias, **pair: sigmoid_loss(zimg, ztxt, scale, bias, **shared, **pair),
      "softmax": lambda zimg, ztxt, scale, bias, **pair: softmax_loss(zimg, ztxt, scale, **shared, **pair),
      "focal": lambda zimg, ztxt, scale, bias, **pair: focal_loss(
          zimg, ztxt, scale, bias, gamma=config.gamma, **shared, **pair),
      "hinge": lambda zimg, ztxt, scale, bias, **pair: hinge_loss(
          zimg, ztxt, margin=config.margin, negatives=config.negatives, **shared, **pair),
  }[config.name]


def choose(B: int, d: int, mesh=None, axis="data", memory: int | None = None) -> str:
  """What impl="auto" takes for a global batch of B embeddings of width d.

  dense: the logits of a device are at most DENSE_PAIRS. gather: b < RING_EXAMPLES, where hops would take longer than
  the work on them, and the texts of all devices and two copies of their gradients, 12·B·d bytes, are at most
  GATHER_SHARE of a device's memory (bytes; None asks the device). ring: everything else.
  """
  size = ring.axis_size(mesh, axis)
  b = B // size
  if b * B <= DENSE_PAIRS:
    return "dense"
  if memory is None:
    memory = (jax.devices()[0].memory_stats() or {}).get("bytes_limit", DEVICE_MEMORY)
  return "gather" if 1 < size and b < RING_EXAMPLES and 12 * B * d <= GATHER_SHARE * memory else "ring"


def default_tile(b: int, d: int) -> int:
  """Examples per tile: √(b·d/6), so that what a tile needs hides beside O(b·d), within 256 and 1024, in steps of 128.

  The largest such number that divides b is taken where it is at least half of that, so that no work is done twice.
  """
  most = min(max(int(math.sqrt(b * d / 6)) // 128 * 128, 256), 1024)
  even = [t for t in range(most, most // 2 - 1, -128) if b % t == 0]
  return even[0] if even else most


def plan(impl: str, tile: int | None, B: int, d: int, mesh=None, axis="data") -> tuple[str, int | None]:
  """The impl and the tile that a loss takes, "auto" and None filled in; the dense one has no tile."""
  if impl == "auto":
    impl = choose(B, d, mesh, axis)
  if impl == "dense":
    return impl, None
  b = B // ring.axis_size(mesh, axis)
  return impl, min(b, tile or default_tile(b, d))


def _loss(
    dense, program, zimg, ztxt, scalars, mesh, axis, impl, tile, weights, labels, unscale=jnp.multiply
):
  """unscale: (loss, c) → the loss of c times the weights."""
  pairs.check(zimg, ztxt, mesh, axis, impl, IMPLS, tile, weights, labels)
  impl, tile = plan(impl, tile, *zimg.shape, mesh, axis)
  zimg, ztxt = (z.astype(jnp.float32) if z.dtype == jnp.float64 else z for z in (zimg, ztxt))
  scalars = tuple(jnp.asarray(x, jnp.float32) for x in scalars)
  if weights is not None:
    weights, *largest = pairs.scaled(weights)
  if impl == "dense":
    loss = dense(*(ring.present_rows(z, weights) for z in (zimg, ztxt)), *scalars, weights, labels)
  else:
    loss = ring.differentiable(program, impl, tile, mesh, axis)(zimg, ztxt, scalars, weights, labels)
  return loss if weights is None else jnp.where(largest[0] == 0, 0, functools.reduce(unscale, largest, loss))
