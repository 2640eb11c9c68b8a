"""The softmax loss of CLIP (Radford et al., arXiv 2103.00020): maths, no devices.

The texts make two trips. The first gives the normalisers of rows and columns, the second computes
the logits again for the gradient: 2 + 6 = 8·b·B·d FLOPs a device. The normaliser of a row, Σ_j w_j
exp(x_ij), is kept as two numbers: m, the largest x_ij + log w_j, and s = Σ_j w_j exp(x_ij − m). Its
logarithm, m + log s, alone would lose the digits that a scale of 100 needs. The two weights of a
pair are never multiplied: in a row, only those of the texts count, and in a column only those of
the images.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from siglax.losses import pairs
from siglax.losses.loss import Loss


def dense(zimg_Bd, ztxt_Bd, scale, weights_B, labels_B) -> jax.Array:
  """L = ½ Σ over both directions of (1/Σw) Σ_i w_i [log Σ_j w_j exp(x_ij) − Σ_j q_ij x_ij], x =
  scale·zimg·ztxtᵀ.

  The target q_ij = p_ij w_j / Σ_k p_ik w_k is uniform over the positives of i, by weight.
  """
  x_BB = scale * pairs.similarity(zimg_Bd, ztxt_Bd)
  weights_B = jnp.ones(len(x_BB), jnp.float32) if weights_B is None else weights_B
  p_BB = pairs.positives(labels_B, len(x_BB))
  excess_B = 0
  for axis in (1, 0):
    lse_B = jax.nn.logsumexp(x_BB + pairs.log_weights(weights_B, 1 - axis), axis=axis)
    if labels_B is None:
      target_B = jnp.sum(jnp.where(p_BB, x_BB, 0), axis=axis)
    else:
      mass_BB = jnp.where(p_BB, jnp.expand_dims(weights_B, 1 - axis), 0)
      # A row of weight 0 may have no positives left; its target is never used, so its sum may be
      # anything but 0.
      mass_B = jnp.maximum(jnp.sum(mass_BB, axis=axis), jnp.finfo(jnp.float32).tiny)
      target_B = jnp.sum(mass_BB * x_BB, axis=axis) / mass_B
    excess_B += 0.5 * (lse_B - target_B)
  return jnp.sum(jnp.where(weights_B > 0, weights_B * excess_B, 0)) / pairs.dense_total(weights_B)


def _per_device(transport, batch, scalars, grad):
  """The same on one device, for `ring.differentiable`; scalars is (scale,).

  With m_i, s_i the normaliser of row i, m'_j, s'_j that of column j, and mass_i = Σ_j p_ij w_j,
  which is the same for all examples of a label:
  dL/dx_ij = ½ w_i w_j / Σw · [exp(x_ij − m_i) / s_i + exp(x_ij − m'_j) / s'_j − 2 p_ij / mass_i].
  """
  (scale,) = scalars
  total = pairs.total_weight(transport, batch)
  rows, cols = pairs.sides(batch)
  weights_b, b = batch.weights, len(batch.zimg)
  zeros_b = jnp.zeros((b,), jnp.float32)
  none = {"m": jnp.full((b,), pairs.LOWEST, jnp.float32), "s": zeros_b}

  def normalise(row, col, row_state, col_state):
    x_tt, present_tt = scale * pairs.similarity(row["z"], col["z"]), pairs.present(row, col)
    w_tt = jnp.where(pairs.matches(row, col) & present_tt, 1.0 if col["w"] is None else col["w"], 0)
    positive = {
      "target": row_state["target"] + jnp.sum(w_tt * x_tt, axis=1),
      "mass": row_state["mass"] + jnp.sum(w_tt, axis=1),
    }
    # x + log w_i + log w_j is largest in a row where x + log w_j is, and in a column where x + log
    # w_i is: one matrix serves both, and `add_tile` subtracts the log w that does not belong there.
    both_tt = x_tt + pairs.log_weights(row["w"], 1) + pairs.log_weights(col["w"], 0)
    both_tt = jnp.where(present_tt, both_tt, pairs.LOWEST)
    add = functools.partial(add_tile, x_tt, both_tt, present_tt)
    return add(row_state, row, col, 1) | positive, add(col_state, col, row, 0)

  row_state = none | {"target": zeros_b, "mass": zeros_b}
  row_b, col_b = transport.around(normalise, rows, cols, row_state, none, merge)
  target_b = row_b["target"] / row_b["mass"]
  lse_b = 0.5 * (
    row_b["m"] - target_b + col_b["m"] - target_b + jnp.log(row_b["s"]) + jnp.log(col_b["s"])
  )
  if weights_b is not None:
    lse_b = jnp.where(weights_b > 0, weights_b * lse_b, 0)
  loss = transport.sum(jnp.sum(lse_b)) / total
  if not grad:
    return loss, None

  def differentiate(row, col, row_state, col_state):
    x_tt = scale * pairs.similarity(row["z"], col["z"])
    from_row_tt = weighted_exp(x_tt, row["m"], col, 1) * row["share"][:, None]
    dx_tt = from_row_tt + weighted_exp(x_tt, col["m"], row, 0) * col["share"]
    target_tt = row["target"][:, None] * (1.0 if col["w"] is None else col["w"])
    dx_tt = dx_tt - jnp.where(pairs.matches(row, col), target_tt, 0)
    dx_tt = jnp.where(pairs.present(row, col), dx_tt, 0)
    dimg_td, dtxt_td = pairs.add_gradients(row, col, dx_tt, row_state["dimg"], col_state["dtxt"])
    return {"dimg": dimg_td}, {"dtxt": dtxt_td}

  own = 1.0 if weights_b is None else weights_b
  rows |= {"m": row_b["m"], "share": 0.5 * own / row_b["s"], "target": own / row_b["mass"]}
  cols |= {"m": col_b["m"], "share": 0.5 * own / col_b["s"]}
  row_state = {"dimg": jnp.zeros(batch.zimg.shape, jnp.float32)}
  col_state = {"dtxt": jnp.zeros(batch.ztxt.shape, jnp.float32)}
  row_b, col_b = transport.around(differentiate, rows, cols, row_state, col_state, pairs.add)
  dscale = transport.sum(jnp.sum(pairs.inner(batch.zimg, row_b["dimg"], weights_b))) / total
  return loss, (row_b["dimg"] * (scale / total), col_b["dtxt"] * (scale / total), (dscale,))


def add_tile(x_tt, both_tt, present_tt, state, own, others, axis):
  """The normalisers of the examples `own` with a tile of logits added, over the examples `others`.

  axis: 1 where `own` are the rows of the tile, 0 where they are its columns.
  """
  m_t = jnp.max(both_tt, axis=axis)
  if own["w"] is not None:
    m_t = jnp.where(own["w"] > 0, m_t - jnp.log(own["w"]), pairs.LOWEST)
  m_t = jnp.maximum(state["m"], m_t)
  e_tt = jnp.where(present_tt, weighted_exp(x_tt, m_t, others, axis), 0)
  return {"m": m_t, "s": state["s"] * jnp.exp(state["m"] - m_t) + jnp.sum(e_tt, axis=axis)}


def weighted_exp(x_tt, m_t, others, axis):
  """w exp(x − m) with the weights of the `others`; it is finite, as x + log w ≤ m and w is no
  subnormal float.
  """
  e_tt = jnp.exp(x_tt - jnp.expand_dims(m_t, axis))
  return e_tt if others["w"] is None else jnp.expand_dims(others["w"], 1 - axis) * e_tt


def merge(a, b):
  """The normalisers over all others, of those over two parts of them."""
  m_b = jnp.maximum(a["m"], b["m"])
  return {"m": m_b, "s": a["s"] * jnp.exp(a["m"] - m_b) + b["s"] * jnp.exp(b["m"] - m_b)}


def rescale(loss, c):
  """All normalisers are c times as large."""
  return loss + jnp.log(c)


LOSS = Loss(
  "softmax",
  "CLIP's: the text of an image among all texts, and the image of a text among all images.",
  dense,
  lambda: _per_device,
  scale_max=100.0,
  rescale=rescale,
)
