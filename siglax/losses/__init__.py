"""Contrastive losses over a global batch of unit embeddings.

zimg, ztxt: [B, d], rows sharded over `axis` (a name or a tuple of names) of `mesh`; scale is
exp(t'); the result is a float32 scalar, differentiable in zimg, ztxt, scale and bias. Call under
jax.jit.
weights: float [B], at least 0, of any size: an example of weight 0 is absent, as row and as column,
whatever its embeddings hold; a batch of which all are absent has no loss: 0, and so are its
gradients. labels: int [B], pairs of equal labels match.
impl: "dense" makes the B×B logits in plain jnp, sharded as XLA decides; "ring" passes the texts
from device to device and keeps memory at O(b·d), b = B / devices; "gather" fetches all texts at
once, O(B·d); "auto" is `choose`'s.
tile: examples per tile of ring and gather, None is `default_tile`'s; the dense one has none.
dtype: "float32" or "bfloat16", of the embeddings that travel and of the operands of products; None
takes the embeddings as they are. Products of bfloat16 accumulate in float32, and logits,
exponentials, sums and gradients are float32.
All raise ValueError in one line for shapes that differ, a batch that the devices do not divide, an
unknown impl, dtype or axis, a tile below 1, labels that are not integers, bfloat16 for a loss that
needs float32. docs/losses.md has the maths and the figures.

A loss is a file with a `LOSS` (loss.py says what that declares) and its line in LOSSES. `pairwise`
registers a loss of one's own from outside the package.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from siglax.config.parts import Registry
from siglax.losses import cyclip
from siglax.losses import focal
from siglax.losses import global_contrastive
from siglax.losses import hinge
from siglax.losses import pairs
from siglax.losses import ring
from siglax.losses import sigmoid
from siglax.losses import sigmoid_masked
from siglax.losses import softmax
from siglax.losses import softmax_hard
from siglax.losses.layout import IMPLS
from siglax.losses.layout import Batch
from siglax.losses.layout import Layout
from siglax.losses.layout import choose
from siglax.losses.layout import default_tile
from siglax.losses.layout import plan
from siglax.losses.loss import Loss

LOSSES: Registry[Loss] = Registry(
  "loss",
  (
    sigmoid.LOSS,
    softmax.LOSS,
    focal.LOSS,
    hinge.LOSS,
    global_contrastive.LOSS,
    sigmoid_masked.LOSS,
    softmax_hard.LOSS,
    cyclip.LOSS,
  ),
  merged=True,
)


def sigmoid_loss(
  zimg,
  ztxt,
  scale,
  bias,
  *,
  mesh=None,
  axis="data",
  impl="auto",
  tile=None,
  dtype=None,
  weights=None,
  labels=None,
) -> jax.Array:
  """SigLIP: (1/Σw) Σ_ij w_i w_j [softplus(x_ij) − p_ij x_ij], x = scale·zimg·ztxtᵀ + bias. Global
  view.

  See the module for arguments and errors. Source: arXiv 2303.15343, Algorithm 1.
  """
  batch, layout = Batch(zimg, ztxt, weights, labels), Layout(mesh, axis, impl, tile, dtype)
  return _compute(sigmoid.LOSS, batch, (scale, bias), layout)


def softmax_loss(
  zimg,
  ztxt,
  scale,
  *,
  mesh=None,
  axis="data",
  impl="auto",
  tile=None,
  dtype=None,
  weights=None,
  labels=None,
) -> jax.Array:
  """CLIP: ½ Σ over both directions of (1/Σw) Σ_i w_i [log Σ_j w_j exp(x_ij) − Σ_j q_ij x_ij], x =
  scale·zimg·ztxtᵀ.

  q_ij = p_ij w_j / Σ_k p_ik w_k. Global view; see the module for arguments and errors.
  Source: arXiv 2103.00020, figure 3.
  """
  batch, layout = Batch(zimg, ztxt, weights, labels), Layout(mesh, axis, impl, tile, dtype)
  return _compute(softmax.LOSS, batch, (scale,), layout)


def focal_loss(
  zimg,
  ztxt,
  scale,
  bias,
  *,
  gamma=2.0,
  mesh=None,
  axis="data",
  impl="auto",
  tile=None,
  dtype=None,
  weights=None,
  labels=None,
) -> jax.Array:
  """The sigmoid loss with each pair weighted by (1 − p)^gamma, p the probability of its right
  answer. Global view.

  See the module for arguments and errors. Source: Lin et al., arXiv 1708.02002; for image-text
  pairs RO-ViT, arXiv 2305.07011, and MaMMUT, arXiv 2303.16839.
  """
  batch, layout = Batch(zimg, ztxt, weights, labels), Layout(mesh, axis, impl, tile, dtype)
  return _compute(focal.LOSS, batch, (scale, bias), layout, gamma=gamma)


def hinge_loss(
  zimg,
  ztxt,
  *,
  margin=0.2,
  negatives="all",
  mesh=None,
  axis="data",
  impl="auto",
  tile=None,
  dtype=None,
  weights=None,
  labels=None,
) -> jax.Array:
  """VSE++: (1/Σw) Σ_i w_i [N_j (margin + s_ij − s_ii)₊ + N_j (margin + s_ji − s_ii)₊] over j that
  do not match i.

  s = zimg·ztxtᵀ, no scale and no bias; N is Σ_j w_j for negatives="all" and the maximum for
  "hardest". Global view; see the module for arguments and errors. Source: arXiv 1707.05612, section
  3.
  """
  batch, layout = Batch(zimg, ztxt, weights, labels), Layout(mesh, axis, impl, tile, dtype)
  return _compute(hinge.LOSS, batch, (), layout, margin=margin, negatives=negatives)


def global_loss(
  zimg,
  ztxt,
  scale,
  *,
  temperature="fixed",
  rho=6.5,
  epsilon=1e-14,
  mesh=None,
  axis="data",
  impl="auto",
  tile=None,
  dtype=None,
  weights=None,
  labels=None,
) -> jax.Array:
  """SogCLR and FastCLIP of a batch alone, γ = 1: τ·(1/Σw) Σ_i w_i [log(ε + g_i) + log(ε + g'_i)],
  τ = 1 / scale.

  g_i = Σ_j w_j exp((s_ij − s_ii) / τ) / Σ_j w_j over j that do not match i; temperature="learned"
  adds 2·rho·τ. In a training u of running.py is in the place of g. Global view; see the module for
  arguments and errors. Source: arXiv 2202.12387 and 2407.01445.
  """
  batch, layout = Batch(zimg, ztxt, weights, labels), Layout(mesh, axis, impl, tile, dtype)
  options = {"temperature": temperature, "rho": rho, "epsilon": epsilon}
  return _compute(global_contrastive.LOSS, batch, (scale,), layout, **options)


def pairwise(name: str, formula, doc: str = "A loss of one's own.", fields=None) -> Loss:
  """Makes and registers a loss of one's own, (1/Σw) Σ_ij w_i w_j l(x_ij, p_ij) with x =
  scale·zimg·ztxtᵀ + bias.

  formula: (x, p) → l, element by element, of arrays of one shape: x float32, p bool, whether a pair
  matches. It is written in jax.numpy; its derivative is jax's, taken a tile at a time, so that
  memory stays at O(b·d).
  fields: {name: siglax.config.parts.Field}: config.loss gets them, and the formula their values as
  keywords.

      losses.pairwise("square", lambda x, p: jnp.square(x - p))      # --config.loss.name=square

  The bias starts at the log-odds of a match, as that of the sigmoid loss does. Raises ValueError in
  one line for a name or a field that is taken, and for a formula that does not give one loss of
  each pair from its own logit alone.
  """
  loss = pairs.loss(name, doc, formula, fields=fields)
  pairs.check_elementwise(loss, formula)
  return LOSSES.register(loss)


def layout(config, mesh=None, axis="data", slices: int = 1) -> Layout:
  """How `config.loss` is computed on a mesh; a dtype of "auto" that is not resolved takes the
  embeddings as they are. slices: as of `Layout`.
  """
  dtype = None if config.dtype == "auto" else config.dtype
  return Layout(mesh, axis, config.impl, config.tile, dtype, slices)


def make(config, mesh=None, axis="data", slices: int = 1):
  """The loss of `config.loss`: (zimg, ztxt, scale, bias, weights=, labels=) → scalar.

  slices: as of `Layout`. With running=, of a loss that remembers examples (running.py), (scalar,
  rows to store).
  """
  loss = LOSSES.find(config.name, "config.loss.name")
  options, where = loss.options(config), layout(config, mesh, axis, slices)

  def compute(zimg, ztxt, scale, bias, weights=None, labels=None, running=None):
    batch = Batch(zimg, ztxt, weights, labels, running)
    return _compute(loss, batch, loss.scalars(scale, bias), where, **options)

  return compute


def _compute(loss: Loss, batch: Batch, scalars: tuple, layout: Layout, **options) -> Any:
  """The loss of a batch in the global view, a scalar; (scalar, rows to store) of a batch with
  `running`. options: values of the loss's own fields.
  """
  batch.check()
  layout.check(len(batch.zimg))
  loss.check_dtype(layout.dtype, options)
  for name, value in options.items():
    if isinstance(value, (int, float, str)) and (problem := loss.fields[name].problem(value)):
      raise ValueError(f"{name}={value!r} {problem} (config.loss.{name})")
  if loss.plus is not None:
    added = {name: options.pop(name) for name in loss.plus.fields}
    # Differences of large sums; no embedding travels for it.
    exact = dataclasses.replace(layout, dtype=None)
    return _value(loss, batch, scalars, layout, **options) + _value(
      loss.plus, batch, (), exact, **added
    )
  return _value(loss, batch, scalars, layout, **options)


def _value(loss: Loss, batch: Batch, scalars: tuple, layout: Layout, **options):
  """Of a loss alone, without what is added to it; with running, (value, rows to store)."""
  layout = layout.chosen(*batch.zimg.shape)
  zimg, ztxt = (
    z.astype(jnp.float32) if z.dtype == jnp.float64 else z for z in (batch.zimg, batch.ztxt)
  )
  scalars = tuple(jnp.asarray(x, jnp.float32) for x in scalars)
  weights, factors, running = batch.weights, [], batch.running
  if weights is not None:
    weights, *factors = pairs.scaled(weights)
  if layout.impl == "dense":
    present = (ring.present_rows(layout.operand(z), weights) for z in (zimg, ztxt))
    remembered = {} if running is None else {"running": running}
    value = loss.dense(*present, *scalars, weights, batch.labels, **remembered, **options)
  else:
    value = ring.differentiable(loss.per_device(**options), layout)(
      zimg, ztxt, scalars, weights, batch.labels, running
    )
  value, rows = (value, None) if running is None else value
  if weights is not None:
    rescale = functools.partial(loss.rescale, **options)
    value = jnp.where(factors[0] == 0, 0, functools.reduce(rescale, factors, value))
  return value if running is None else (value, rows)
