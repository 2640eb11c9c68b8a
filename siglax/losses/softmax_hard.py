"""The softmax loss with hard negatives weighted up (Robinson et al., arXiv 2010.04592): maths, no
devices.

A negative j of example i counts exp(β x_ij) over the mean of that over the negatives of i, so that
the mean count is 1; β = 0 is the softmax loss. With P_i the sum over the positives of w_j
exp(x_ij), W_i the weight of the negatives, and sums over the negatives
    A_i = Σ_j w_j exp((1 + β) x_ij),  C_i = Σ_j w_j exp(β x_ij),  N_i = W_i A_i / C_i,
the loss of i is log(P_i + N_i) − Σ_j q_ij x_ij; gradients go through the counts too. The paper's
correction for false negatives, τ⁺, is left at 0. 8·b·B·d FLOPs a device, as the softmax loss: the
first trip finds the sums, each kept as its largest term and the rest divided by that.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from siglax.config.parts import Field
from siglax.losses import pairs
from siglax.losses import softmax
from siglax.losses.loss import Loss


def dense(zimg_Bd, ztxt_Bd, scale, weights_B, labels_B, hardness) -> jax.Array:
  """½ Σ over both directions of (1/Σw) Σ_i w_i [log(P_i + N_i) − Σ_j q_ij x_ij]; see the module.

  q_ij = p_ij w_j / Σ_k p_ik w_k, as in the softmax loss.
  """
  x_BB = scale * pairs.similarity(zimg_Bd, ztxt_Bd)
  weights_B = jnp.ones(len(x_BB), jnp.float32) if weights_B is None else weights_B
  p_BB = pairs.positives(labels_B, len(x_BB))
  total_B = 0
  for x_BB in (x_BB, x_BB.T):
    log_w = pairs.log_weights(weights_B, 0)
    positive_BB = jnp.where(p_BB, x_BB + log_w, pairs.LOWEST)
    negative_BB = jnp.where(p_BB, 0, weights_B)
    over = lambda power: jax.nn.logsumexp(
      jnp.where(p_BB, pairs.LOWEST, power * x_BB + log_w), axis=1
    )
    mass_B = jnp.sum(negative_BB, axis=1)
    log_n_B = jnp.log(jnp.where(mass_B > 0, mass_B, 1)) + over(1 + hardness) - over(hardness)
    q_BB = jnp.where(p_BB, weights_B, 0)
    q_BB = q_BB / jnp.maximum(jnp.sum(q_BB, axis=1, keepdims=True), jnp.finfo(jnp.float32).tiny)
    log_p_B = jax.nn.logsumexp(positive_BB, axis=1)
    both_B = jnp.logaddexp(log_p_B, jnp.where(mass_B > 0, log_n_B, pairs.LOWEST))
    total_B += 0.5 * (both_B - jnp.sum(q_BB * x_BB, axis=1))
  return jnp.sum(jnp.where(weights_B > 0, weights_B * total_B, 0)) / pairs.dense_total(weights_B)


# The sums of the module over the others of an example, by the power of their exponentials.
def _powers(hardness) -> dict:
  return {"P": 1.0, "A": 1.0 + hardness, "C": hardness}


def _per_device(hardness):
  """The same on one device, for `ring.differentiable`; scalars is (scale,)."""
  powers = _powers(hardness)

  def per_device(transport, batch, scalars, grad):
    (scale,) = scalars
    total = pairs.total_weight(transport, batch)
    rows, cols = pairs.sides(batch)
    b = len(batch.zimg)
    zeros_b = jnp.zeros((b,), jnp.float32)
    none = {name: {"m": jnp.full((b,), pairs.LOWEST, jnp.float32), "s": zeros_b} for name in powers}
    none |= {"W": zeros_b, "target": zeros_b, "mass": zeros_b}

    def find(row, col, row_state, col_state):
      x_tt, present_tt = scale * pairs.similarity(row["z"], col["z"]), pairs.present(row, col)
      match_tt = pairs.matches(row, col)
      groups = {"P": match_tt & present_tt, "A": ~match_tt & present_tt}
      groups["C"] = groups["A"]
      return (
        _with_tile(row_state, x_tt, groups, powers, col, 1),
        _with_tile(col_state, x_tt, groups, powers, row, 0),
      )

    row_b, col_b = transport.around(find, rows, cols, none, none, _merge)
    parts = [_finish(side, batch.weights, powers) for side in (row_b, col_b)]
    loss = 0.5 * transport.sum(sum(jnp.sum(loss_b) for loss_b, _ in parts)) / total
    if not grad:
      return loss, None

    def differentiate(row, col, row_state, col_state):
      x_tt, match_tt = scale * pairs.similarity(row["z"], col["z"]), pairs.matches(row, col)
      dx_tt = _derivative(x_tt, match_tt, powers, row, col, 1)
      dx_tt += _derivative(x_tt, match_tt, powers, col, row, 0)
      dx_tt = jnp.where(pairs.present(row, col), dx_tt, 0)
      dimg_td, dtxt_td = pairs.add_gradients(row, col, dx_tt, row_state["dimg"], col_state["dtxt"])
      return {"dimg": dimg_td}, {"dtxt": dtxt_td}

    row_state = {"dimg": jnp.zeros(batch.zimg.shape, jnp.float32)}
    col_state = {"dtxt": jnp.zeros(batch.ztxt.shape, jnp.float32)}
    sides = (rows | parts[0][1], cols | parts[1][1])
    row_b, col_b = transport.around(differentiate, *sides, row_state, col_state, pairs.add)
    dimg_bd, dtxt_bd = row_b["dimg"], col_b["dtxt"]
    dscale = transport.sum(jnp.sum(pairs.inner(batch.zimg, dimg_bd, batch.weights))) / total
    return loss, (dimg_bd * (scale / total), dtxt_bd * (scale / total), (dscale,))

  return per_device


def _with_tile(state, x_tt, groups, powers, others, axis):
  """The sums of the examples of one side with a tile added. axis: that of the others, 1 where the
  examples are the rows.
  """
  new = {}
  log_w = pairs.log_weights(others["w"], 1 - axis)
  for name, power in powers.items():
    y_tt = jnp.where(groups[name], power * x_tt + log_w, pairs.LOWEST)
    m_t = jnp.maximum(state[name]["m"], jnp.max(y_tt, axis=axis))
    e_tt = softmax.weighted_exp(power * x_tt, m_t, others, axis)
    s_t = jnp.sum(jnp.where(groups[name], e_tt, 0), axis=axis)
    new[name] = {"m": m_t, "s": state[name]["s"] * jnp.exp(state[name]["m"] - m_t) + s_t}
  w_tt = jnp.float32(1) if others["w"] is None else jnp.expand_dims(others["w"], 1 - axis)
  positive_tt = jnp.where(groups["P"], w_tt, 0)
  return new | {
    "W": state["W"] + jnp.sum(jnp.where(groups["A"], w_tt, 0), axis=axis),
    "target": state["target"] + jnp.sum(positive_tt * x_tt, axis=axis),
    "mass": state["mass"] + jnp.sum(positive_tt, axis=axis),
  }


def _merge(a, b):
  merged = {name: a[name] + b[name] for name in ("W", "target", "mass")}
  return merged | {name: softmax.merge(a[name], b[name]) for name in a.keys() - merged.keys()}


def _finish(side, weights_b, powers):
  """The losses of the examples of one side [b], times their weights, and what their derivatives
  need.

  By group, dL_i/dx_ij is factor · w_j exp(power · x_ij − m); of the positives q_ij is subtracted.
  """
  p, a, c = side["P"], side["A"], side["C"]
  target_b = side["target"] / side["mass"]
  others = side["W"] > 0
  safe = lambda x_b: jnp.where(others, x_b, 1)
  log_p_b = p["m"] - target_b + jnp.log(p["s"])
  log_n_b = (a["m"] - c["m"] - target_b) + jnp.log(safe(side["W"] * a["s"] / safe(c["s"])))
  log_n_b = jnp.where(others, log_n_b, pairs.LOWEST)
  loss_b = jnp.logaddexp(log_p_b, log_n_b)
  own = 1.0
  if weights_b is not None:
    own, loss_b = weights_b, jnp.where(weights_b > 0, weights_b * loss_b, 0)
  negative_b = jnp.where(others, 0.5 * own * jax.nn.sigmoid(log_n_b - log_p_b), 0)
  factors = {
    "P": 0.5 * own * jax.nn.sigmoid(log_p_b - log_n_b) / p["s"],
    "A": negative_b * powers["A"] / safe(a["s"]),
    "C": -negative_b * powers["C"] / safe(c["s"]),
  }
  sums = {f"m{name}": side[name]["m"] for name in powers}
  return loss_b, sums | factors | {"target": 0.5 * own / side["mass"]}


def _derivative(x_tt, match_tt, powers, own, others, axis):
  """½ w_i dL_i/dx_ij of the examples of one side, see `_finish`."""
  along = lambda x_t: jnp.expand_dims(x_t, axis)
  part = {
    name: along(own[name]) * softmax.weighted_exp(power * x_tt, own[f"m{name}"], others, axis)
    for name, power in powers.items()
  }
  w = 1.0 if others["w"] is None else jnp.expand_dims(others["w"], 1 - axis)
  positive_tt = part["P"] - along(own["target"]) * w
  return jnp.where(match_tt, positive_tt, part["A"] + part["C"])


LOSS = Loss(
  "softmax_hard",
  "The softmax loss with hard negatives weighted up (arXiv 2010.04592).",
  dense,
  _per_device,
  scale_max=100.0,
  rescale=lambda loss, c, hardness: softmax.rescale(loss, c),
  fields={
    "hardness": Field(
      0.25,
      "β: a negative weighs exp(β·logit) over the mean of that; 0 is the softmax loss.",
      least=0,
    ),
  },
)
