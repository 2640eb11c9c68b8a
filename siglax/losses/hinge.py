"""The hinge loss with in-batch negatives of VSE++ (Faghri et al., arXiv 1707.05612): maths, no devices.

A negative counts when it comes closer than the margin α to the pair's own similarity s_ii. "all" sums over negatives
in one trip, 6·b·B·d FLOPs a device; "hardest" takes the nearest one each way, which a first trip finds: 8·b·B·d.
The similarities are plain cosines; there is no scale and no bias.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from siglax.losses import pairs
from siglax.losses import ring


def dense(zimg_Bd, ztxt_Bd, weights_B, labels_B, margin, negatives) -> jax.Array:
  """L = (1/Σw) Σ_i w_i [N_j (α + s_ij − s_ii)₊ + N_j (α + s_ji − s_ii)₊] over j that do not match i.

  N is Σ_j w_j for negatives="all", and the largest over w_j > 0 for "hardest".
  """
  s_BB = pairs.similarity(zimg_Bd, ztxt_Bd)
  B = s_BB.shape[0]
  weights_B = jnp.ones((B,), jnp.float32) if weights_B is None else weights_B
  negative_BB = ~pairs.positives(labels_B, B) & (weights_B > 0)[None, :]
  total = 0
  for x_BB in (s_BB, s_BB.T):
    over_BB = jnp.where(negative_BB, jax.nn.relu(margin + x_BB - jnp.diag(s_BB)[:, None]), 0)
    total += jnp.sum(over_BB * weights_B, axis=1) if negatives == "all" else jnp.max(over_BB, axis=1)
  return jnp.sum(weights_B * total) / pairs.dense_total(weights_B)


def program(margin, negatives):
  """The same per device, for ring.differentiable; there are no scalars."""

  def per_device(transport, zimg_bd, ztxt_bd, scalars, weights_b, labels_b, grad):
    total = pairs.total_weight(transport, zimg_bd, weights_b)
    own_b = pairs.inner(zimg_bd, ztxt_bd, weights_b)
    rows = pairs.examples(zimg_bd, weights_b, labels_b) | {"own": own_b}
    cols = pairs.examples(ztxt_bd, weights_b, labels_b) | {"own": own_b}
    run = _all if negatives == "all" else _hardest
    loss, row_b, col_b = run(transport, rows, cols, margin, grad)
    loss = transport.sum(jnp.sum(loss)) / total
    if not grad:
      return loss, None
    # s_ii is in every hinge of i, from both sides.
    own_b1 = (row_b["hinges"] + col_b["hinges"])[:, None]
    dz = row_b["dimg"] - own_b1 * ztxt_bd, col_b["dtxt"] - own_b1 * zimg_bd
    return loss, (*(ring.present_rows(dz_bd, weights_b) / total for dz_bd in dz), scalars)

  return per_device


def _all(transport, rows, cols, margin, grad):

  def visit(row, col, row_state, col_state):
    s_tt = pairs.similarity(row["z"], col["z"])
    w_tt = jnp.where(pairs.matches(row, col), 0, pairs.weigh(row, col, jnp.ones_like(s_tt)))
    from_row_tt, from_col_tt = margin + s_tt - row["own"][:, None], margin + s_tt - col["own"]
    loss_tt = w_tt * (jax.nn.relu(from_row_tt) + jax.nn.relu(from_col_tt))
    state = {"loss": row_state["loss"] + jnp.sum(loss_tt, axis=1)}
    if not grad:
      return state, {}
    row_tt, col_tt = jnp.where(from_row_tt > 0, w_tt, 0), jnp.where(from_col_tt > 0, w_tt, 0)
    dimg_td, dtxt_td = pairs.pull_back(row, col, row_tt + col_tt, row_state["dimg"], col_state["dtxt"])
    state |= {"hinges": row_state["hinges"] + jnp.sum(row_tt, axis=1), "dimg": dimg_td}
    return state, {"hinges": col_state["hinges"] + jnp.sum(col_tt, axis=0), "dtxt": dtxt_td}

  zeros_b = jnp.zeros(rows["own"].shape, jnp.float32)
  row_state, col_state = {"loss": zeros_b}, {}
  if grad:
    row_state |= {"hinges": zeros_b, "dimg": jnp.zeros(rows["z"].shape, jnp.float32)}
    col_state |= {"hinges": zeros_b, "dtxt": jnp.zeros(cols["z"].shape, jnp.float32)}
  row_b, col_b = transport.around(visit, rows, cols, row_state, col_state, pairs.add)
  return row_b["loss"], row_b, col_b


def _hardest(transport, rows, cols, margin, grad):

  def find(row, col, row_state, col_state):
    s_tt = pairs.similarity(row["z"], col["z"])
    s_tt = jnp.where(~pairs.matches(row, col) & pairs.present(row, col), s_tt, pairs.LOWEST)
    in_row = {"s": jnp.max(s_tt, axis=1), "at": col["index"][jnp.argmax(s_tt, axis=1)]}
    in_col = {"s": jnp.max(s_tt, axis=0), "at": row["index"][jnp.argmax(s_tt, axis=0)]}
    return _harder(row_state, in_row), _harder(col_state, in_col)

  b = len(rows["z"])
  none = {"s": jnp.full((b,), pairs.LOWEST, jnp.float32), "at": jnp.full((b,), -1, jnp.int32)}
  row_b, col_b = transport.around(find, rows, cols, none, none, _harder)
  w_b = jnp.ones((b,), jnp.float32) if rows["w"] is None else rows["w"]
  over = [jnp.where(w_b > 0, margin + side["s"] - rows["own"], 0) for side in (row_b, col_b)]
  loss_b = w_b * (jax.nn.relu(over[0]) + jax.nn.relu(over[1]))
  if not grad:
    return loss_b, None, None

  def pull_back(row, col, row_state, col_state):
    from_row_tt = jnp.where(row["at"][:, None] == col["index"], row["hinge"][:, None], 0)
    from_col_tt = jnp.where(col["at"] == row["index"][:, None], col["hinge"], 0)
    ds_tt = jnp.where(pairs.present(row, col), from_row_tt + from_col_tt, 0)
    dimg_td, dtxt_td = pairs.pull_back(row, col, ds_tt, row_state["dimg"], col_state["dtxt"])
    return {"dimg": dimg_td}, {"dtxt": dtxt_td}

  hinges = [jnp.where(x > 0, w_b, 0) for x in over]
  rows, cols = rows | {"at": row_b["at"], "hinge": hinges[0]}, cols | {"at": col_b["at"], "hinge": hinges[1]}
  row_state = {"dimg": jnp.zeros(rows["z"].shape, jnp.float32)}
  col_state = {"dtxt": jnp.zeros(cols["z"].shape, jnp.float32)}
  row_b, col_b = transport.around(pull_back, rows, cols, row_state, col_state, pairs.add)
  return loss_b, row_b | {"hinges": hinges[0]}, col_b | {"hinges": hinges[1]}


def _harder(a, b):
  """The nearer of two negatives of each example; of two alike the one with the lower index."""
  first = (a["s"] > b["s"]) | (a["s"] == b["s"]) & (a["at"] < b["at"])
  return jax.tree.map(lambda x, y: jnp.where(first, x, y), a, b)
