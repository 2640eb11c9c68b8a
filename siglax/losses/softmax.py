"""The softmax loss of CLIP (Radford et al., arXiv 2103.00020): maths, no devices.

Two trips of the texts: the first makes the normalisers of rows and columns, the second recomputes the logits once for
the gradient, 2 + 6 = 8·b·B·d FLOPs a device. A normaliser is kept as m, the largest x + log w, and
s = Σ exp(x − m + log w): its logarithm alone would lose the digits that a scale of 100 needs. Each weight is applied on
its own side, so that those of a pair are never multiplied.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from siglax.losses import pairs


def dense(zimg_Bd, ztxt_Bd, scale, weights_B, labels_B) -> jax.Array:
  """L = ½ Σ over both directions of (1/Σw) Σ_i w_i [log Σ_j w_j exp(x_ij) − Σ_j q_ij x_ij], x = scale·zimg·ztxtᵀ.

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
      # A row of weight 0 may have no positives left; its target is never used, so its sum may be anything but 0.
      mass_B = jnp.maximum(jnp.sum(mass_BB, axis=axis), jnp.finfo(jnp.float32).tiny)
      target_B = jnp.sum(mass_BB * x_BB, axis=axis) / mass_B
    excess_B += 0.5 * (lse_B - target_B)
  return jnp.sum(jnp.where(weights_B > 0, weights_B * excess_B, 0)) / pairs.dense_total(weights_B)


def program(transport, zimg_bd, ztxt_bd, scalars, weights_b, labels_b, grad):
  """The same per device, for ring.differentiable; scalars is (scale,).

  With mass_i = Σ_j p_ij w_j, the same for all examples of one label,
  dL/dx_ij = ½ w_i w_j / Σw · [exp(x_ij − m_i) / s_i + exp(x_ij − m'_j) / s'_j − 2 p_ij / mass_i].
  """
  scale, = scalars
  total = pairs.total_weight(transport, zimg_bd, weights_b)
  rows, cols = pairs.examples(zimg_bd, weights_b, labels_b), pairs.examples(ztxt_bd, weights_b, labels_b)
  b = len(zimg_bd)
  zeros_b = jnp.zeros((b,), jnp.float32)
  none = {"m": jnp.full((b,), pairs.LOWEST, jnp.float32), "s": zeros_b}

  def normalise(row, col, row_state, col_state):
    x_tt, present_tt = scale * pairs.similarity(row["z"], col["z"]), pairs.present(row, col)
    w_tt = jnp.where(pairs.matches(row, col) & present_tt, 1.0 if col["w"] is None else col["w"], 0)
    positive = {
        "target": row_state["target"] + jnp.sum(w_tt * x_tt, axis=1),
        "mass": row_state["mass"] + jnp.sum(w_tt, axis=1),
    }
    # One matrix for the largest of each row and of each column; `_add` takes the example's own log w away again.
    both_tt = jnp.where(present_tt, x_tt + pairs.log_weights(row["w"], 1) + pairs.log_weights(col["w"], 0), pairs.LOWEST)
    add = functools.partial(_add, x_tt, both_tt, present_tt)
    return add(row_state, row, col, 1) | positive, add(col_state, col, row, 0)

  row_state = none | {"target": zeros_b, "mass": zeros_b}
  row_b, col_b = transport.around(normalise, rows, cols, row_state, none, _merge)
  target_b = row_b["target"] / row_b["mass"]
  lse_b = 0.5 * (row_b["m"] - target_b + col_b["m"] - target_b + jnp.log(row_b["s"]) + jnp.log(col_b["s"]))
  if weights_b is not None:
    lse_b = jnp.where(weights_b > 0, weights_b * lse_b, 0)
  loss = transport.sum(jnp.sum(lse_b)) / total
  if not grad:
    return loss, None

  def pull_back(row, col, row_state, col_state):
    x_tt = scale * pairs.similarity(row["z"], col["z"])
    dx_tt = _exp(x_tt, row["m"], col, 1) * row["share"][:, None] + _exp(x_tt, col["m"], row, 0) * col["share"]
    target_tt = row["target"][:, None] * (1.0 if col["w"] is None else col["w"])
    dx_tt = dx_tt - jnp.where(pairs.matches(row, col), target_tt, 0)
    dx_tt = jnp.where(pairs.present(row, col), dx_tt, 0)
    dimg_td, dtxt_td = pairs.pull_back(row, col, dx_tt, row_state["dimg"], col_state["dtxt"])
    return {"dimg": dimg_td}, {"dtxt": dtxt_td}

  own = 1.0 if weights_b is None else weights_b
  rows |= {"m": row_b["m"], "share": 0.5 * own / row_b["s"], "target": own / row_b["mass"]}
  cols |= {"m": col_b["m"], "share": 0.5 * own / col_b["s"]}
  row_state = {"dimg": jnp.zeros(zimg_bd.shape, jnp.float32)}
  col_state = {"dtxt": jnp.zeros(ztxt_bd.shape, jnp.float32)}
  row_b, col_b = transport.around(pull_back, rows, cols, row_state, col_state, pairs.add)
  dscale = transport.sum(jnp.sum(pairs.inner(zimg_bd, row_b["dimg"], weights_b))) / total
  return loss, (row_b["dimg"] * (scale / total), col_b["dtxt"] * (scale / total), (dscale,))


def _add(x_tt, both_tt, present_tt, state, own, others, axis):
  """The normalisers of `own` with the logits of one more tile, over `others`: its columns (axis 1) or rows (0)."""
  m_t = jnp.max(both_tt, axis=axis)
  if own["w"] is not None:
    m_t = jnp.where(own["w"] > 0, m_t - jnp.log(own["w"]), pairs.LOWEST)
  m_t = jnp.maximum(state["m"], m_t)
  e_tt = jnp.where(present_tt, _exp(x_tt, m_t, others, axis), 0)
  return {"m": m_t, "s": state["s"] * jnp.exp(state["m"] - m_t) + jnp.sum(e_tt, axis=axis)}


def _exp(x_tt, m_t, others, axis):
  """w exp(x − m), w of the `others`; as x + log w ≤ m and w is a normal float, the exponential is finite."""
  e_tt = jnp.exp(x_tt - jnp.expand_dims(m_t, axis))
  return e_tt if others["w"] is None else jnp.expand_dims(others["w"], 1 - axis) * e_tt


def _merge(a, b):
  """The normalisers of two parts of the examples."""
  m_b = jnp.maximum(a["m"], b["m"])
  return {"m": m_b, "s": a["s"] * jnp.exp(a["m"] - m_b) + b["s"] * jnp.exp(b["m"] - m_b)}
