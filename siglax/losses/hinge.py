"""The hinge loss with in-batch negatives of VSE++ (Faghri et al., arXiv 1707.05612): maths, no
devices.

A negative counts when its similarity is above that of the pair, s_ii, less the margin α.
negatives="all" sums over all negatives in one trip of the texts, 6·b·B·d FLOPs a device. "hardest"
takes the most similar text of each image and the most similar image of each text, which a trip of
its own finds: 8·b·B·d. There is neither scale nor bias.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from siglax.config.parts import Field
from siglax.losses import pairs
from siglax.losses import ring
from siglax.losses.loss import Loss


def dense(zimg_Bd, ztxt_Bd, weights_B, labels_B, margin, negatives) -> jax.Array:
  """L = (1/Σw) Σ_i w_i [N_j (α + s_ij − s_ii)₊ + N_j (α + s_ji − s_ii)₊] over j that do not match
  i.

  N is Σ_j w_j for negatives="all", and the largest over w_j > 0 for "hardest".
  """
  s_BB = pairs.similarity(zimg_Bd, ztxt_Bd)
  B = s_BB.shape[0]
  weights_B = jnp.ones((B,), jnp.float32) if weights_B is None else weights_B
  negative_BB = ~pairs.positives(labels_B, B) & (weights_B > 0)[None, :]
  total = 0
  for x_BB in (s_BB, s_BB.T):
    over_BB = jnp.where(negative_BB, jax.nn.relu(margin + x_BB - jnp.diag(s_BB)[:, None]), 0)
    total += (
      jnp.sum(over_BB * weights_B, axis=1) if negatives == "all" else jnp.max(over_BB, axis=1)
    )
  return jnp.sum(weights_B * total) / pairs.dense_total(weights_B)


def _per_device(margin, negatives):
  """The same on one device, for `ring.differentiable`; there are no scalars."""

  def per_device(transport, batch, scalars, grad):
    total = pairs.total_weight(transport, batch)
    own_b = pairs.inner(batch.zimg, batch.ztxt, batch.weights)
    rows, cols = (side | {"own": own_b} for side in pairs.sides(batch))
    run = _all if negatives == "all" else _hardest
    loss, row_b, col_b = run(transport, rows, cols, margin, grad)
    loss = transport.sum(jnp.sum(loss)) / total
    if not grad:
      return loss, None
    # s_ii is in every hinge of i, from both sides.
    own_b1 = (row_b["hinges"] + col_b["hinges"])[:, None]
    dz = row_b["dimg"] - own_b1 * batch.ztxt, col_b["dtxt"] - own_b1 * batch.zimg
    return loss, (*(ring.present_rows(dz_bd, batch.weights) / total for dz_bd in dz), scalars)

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
    ds_tt = row_tt + col_tt
    dimg_td, dtxt_td = pairs.add_gradients(row, col, ds_tt, row_state["dimg"], col_state["dtxt"])
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

  def differentiate(row, col, row_state, col_state):
    from_row_tt = jnp.where(row["at"][:, None] == col["index"], row["hinge"][:, None], 0)
    from_col_tt = jnp.where(col["at"] == row["index"][:, None], col["hinge"], 0)
    ds_tt = jnp.where(pairs.present(row, col), from_row_tt + from_col_tt, 0)
    dimg_td, dtxt_td = pairs.add_gradients(row, col, ds_tt, row_state["dimg"], col_state["dtxt"])
    return {"dimg": dimg_td}, {"dtxt": dtxt_td}

  hinges = [jnp.where(x > 0, w_b, 0) for x in over]
  rows = rows | {"at": row_b["at"], "hinge": hinges[0]}
  cols = cols | {"at": col_b["at"], "hinge": hinges[1]}
  row_state = {"dimg": jnp.zeros(rows["z"].shape, jnp.float32)}
  col_state = {"dtxt": jnp.zeros(cols["z"].shape, jnp.float32)}
  row_b, col_b = transport.around(differentiate, rows, cols, row_state, col_state, pairs.add)
  return loss_b, row_b | {"hinges": hinges[0]}, col_b | {"hinges": hinges[1]}


def _harder(a, b):
  """The more similar of two negatives of each example; of two alike the one with the lower
  index.
  """
  first = (a["s"] > b["s"]) | (a["s"] == b["s"]) & (a["at"] < b["at"])
  return jax.tree.map(lambda x, y: jnp.where(first, x, y), a, b)


def _rescale(loss, c, margin, negatives):
  """Over all negatives the loss is linear in the weights; the hardest one counts alike whatever its
  weight.
  """
  del margin
  return loss * c if negatives == "all" else loss


LOSS = Loss(
  "hinge",
  "VSE++'s: a negative counts where it is not less similar than the pair by a margin.",
  dense,
  _per_device,
  has_scale=False,
  rescale=_rescale,
  needs_float32=lambda **options: "has a derivative that jumps at the margin",
  fields={
    "margin": Field(
      0.2, "A negative counts where its cosine is above the pair's less this.", least=0
    ),
    "negatives": Field(
      "all",
      "all: the sum over all negatives; hardest: the most similar one alone.",
      choices=("all", "hardest"),
    ),
  },
)
