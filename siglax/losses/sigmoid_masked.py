"""The sigmoid loss over the pairs that match and a chosen few of the others (SigLIP, arXiv
2303.15343, section 4.8): maths, no devices.

Of the B² − B others, negatives_per_pair for each pair that matches are kept:
- hardest, easiest: those of the highest or the lowest similarity in the whole batch. Their number
  is exact but for ties, which are all kept. The least similarity that is kept is found four bits a
  trip of the texts, 2·b·B·d FLOPs each; 8·2 + 6 = 22·b·B·d in all.
- random: each by a hash of its place in the batch, so that the number is exact on average; examples
  come to other places in each batch. 6·b·B·d.
A weight of 0 takes an example's pairs out of the choice; other weights do not change it. The sum is
divided by Σw, as that of the sigmoid loss is, so the loss falls with the number of its pairs.
"""

from __future__ import annotations

import jax
from jax import lax
import jax.numpy as jnp

from siglax.config.parts import Field
from siglax.losses import pairs
from siglax.losses import sigmoid
from siglax.losses.loss import Loss
from siglax.losses.loss import matched_prior

LARGEST = 2**16 - 1  # examples of a batch whose pairs can be counted in 32 bits
BITS = 4  # of the threshold that a trip finds, of 32


def dense(
  zimg_Bd, ztxt_Bd, scale, bias, weights_B, labels_B, kept_negatives, negatives_per_pair
) -> jax.Array:
  """(1/Σw) Σ_ij w_i w_j k_ij [softplus(x_ij) − p_ij x_ij]; k_ij is 1 for what is kept; see the
  module.
  """
  s_BB = pairs.similarity(zimg_Bd, ztxt_Bd)
  B = _check(len(s_BB))
  p_BB = pairs.positives(labels_B, B)
  present_B = jnp.ones(B, bool) if weights_B is None else weights_B > 0
  present_BB = present_B[:, None] & present_B
  if kept_negatives == "random":
    index_B = jnp.arange(B, dtype=jnp.int32)
    kept_BB = _random(index_B, index_B, negatives_per_pair / max(B - 1, 1))
  else:
    negative_BB = present_BB & ~p_BB
    key_BB = jnp.where(negative_BB, _key(s_BB, kept_negatives), 0)
    count = _count(
      jnp.sum(present_BB & p_BB, dtype=jnp.uint32),
      jnp.sum(negative_BB, dtype=jnp.uint32),
      negatives_per_pair,
    )
    ordered = jnp.sort(key_BB.ravel(), descending=True)
    least = jnp.where(count > 0, ordered[jnp.maximum(count, 1) - 1], jnp.uint32(2**32 - 1))
    kept_BB = key_BB >= least
  loss_BB = sigmoid.formula(scale * s_BB + bias, p_BB)
  return pairs.dense_mean(jnp.where(p_BB | kept_BB, loss_BB, 0), weights_B)


def _per_device(kept_negatives, negatives_per_pair):
  """The same on one device, for `ring.differentiable`."""

  def choose(transport, batch):
    B = _check(len(batch.zimg) * transport.size)
    if kept_negatives == "random":
      share = negatives_per_pair / max(B - 1, 1)
      keep = lambda row, col, s_tt: _random(row["index"], col["index"], share)
    else:
      least = _least(transport, batch, kept_negatives, negatives_per_pair)
      keep = lambda row, col, s_tt: _key(s_tt, kept_negatives) >= least
    return lambda row, col, s_tt: pairs.matches(row, col) | keep(row, col, s_tt)

  return pairs.in_one_trip(sigmoid.with_derivative, choose)


def _check(B: int) -> int:
  if B > LARGEST:
    raise ValueError(
      f'config.loss.name="sigmoid_masked" counts the pairs of a batch in 32 bits; batch_size={B} '
      f"must be at most {LARGEST:,}"
    )
  return B


def _random(index_row, index_col, share: float) -> jax.Array:
  """Which pairs of two tiles are kept [t, t]: `share` of all, by a hash of both indices."""
  h_tt = index_row.astype(jnp.uint32)[:, None] * jnp.uint32(2**16) + index_col.astype(jnp.uint32)
  for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
    h_tt = (h_tt ^ (h_tt >> shift)) * jnp.uint32(factor)
  return (h_tt ^ (h_tt >> 16)) < jnp.uint32(min(int(share * 2**32), 2**32 - 1))


def _key(s_tt, kept_negatives) -> jax.Array:
  """uint32, above 0, in the order of the similarities, of "easiest" in the reverse order."""
  s_tt = (-s_tt if kept_negatives == "easiest" else s_tt) + 0.0  # −0 becomes 0
  bits_tt = lax.bitcast_convert_type(s_tt, jnp.int32)
  ordered_tt = bits_tt ^ ((bits_tt >> 31) & 0x7FFFFFFF)
  return lax.bitcast_convert_type(ordered_tt, jnp.uint32) ^ jnp.uint32(2**31)


def _count(positives, negatives, negatives_per_pair) -> jax.Array:
  """How many negatives are kept."""
  wanted = jnp.round(negatives_per_pair * positives.astype(jnp.float32))
  return jnp.where(
    wanted >= negatives.astype(jnp.float32),
    negatives,
    jnp.minimum(wanted, 2.0**31).astype("uint32"),
  )


def _least(transport, batch, kept_negatives, negatives_per_pair) -> jax.Array:
  """The key of the last negative that is kept, uint32; above all keys where none is."""
  rows, cols = pairs.sides(batch)
  b = len(batch.zimg)
  per_row = lambda x_tt: jnp.sum(x_tt, axis=1, dtype=jnp.uint32)

  def count_kinds(row, col, row_state, col_state):
    match_tt = pairs.matches(row, col)
    ones_tt = jnp.ones(match_tt.shape, bool) & pairs.present(row, col)
    found = {"positives": per_row(match_tt & ones_tt), "negatives": per_row(~match_tt & ones_tt)}
    return pairs.add(row_state, found), {}

  zeros_b = jnp.zeros((b,), jnp.uint32)
  kinds, _ = transport.around(
    count_kinds, rows, cols, {"positives": zeros_b, "negatives": zeros_b}, {}, pairs.add
  )
  kinds = transport.sum(jax.tree.map(lambda x_b: jnp.sum(x_b, dtype=jnp.uint32), kinds))
  wanted = _count(kinds["positives"], kinds["negatives"], negatives_per_pair)

  def find_digit(trip, least):
    steps_c = least + (jnp.arange(2**BITS, dtype=jnp.uint32) << (32 - BITS * (trip + 1)))

    def count_above(row, col, row_state, col_state):
      s_tt = pairs.similarity(row["z"], col["z"])
      negative_tt = ~pairs.matches(row, col) & pairs.present(row, col)
      key_tt = jnp.where(negative_tt, _key(s_tt, kept_negatives), 0)
      above_ttc = key_tt[:, :, None] >= jnp.maximum(steps_c, 1)
      return {"above": row_state["above"] + per_row(above_ttc)}, {}

    state = {"above": jnp.zeros((b, 2**BITS), jnp.uint32)}
    above, _ = transport.around(count_above, rows, cols, state, {}, pairs.add)
    above_c = transport.sum(per_row(above["above"].T))
    # The counts fall with the step, and that of the first is enough.
    return steps_c[jnp.maximum(jnp.sum(above_c >= wanted) - 1, 0)]

  least = lax.fori_loop(0, 32 // BITS, find_digit, jnp.uint32(0))
  return jnp.where(wanted > 0, least, jnp.uint32(2**32 - 1))


def _needs_float32(kept_negatives, negatives_per_pair):
  """Near the last pair that is kept, others would be."""
  del negatives_per_pair
  return None if kept_negatives == "random" else f"keeps the {kept_negatives} pairs by similarity"


LOSS = Loss(
  "sigmoid_masked",
  "The sigmoid loss over a chosen few of the pairs that do not match (SigLIP, section 4.8).",
  dense,
  _per_device,
  bias_init=matched_prior,
  needs_float32=_needs_float32,
  fields={
    "kept_negatives": Field(
      "random",
      "Which pairs that do not match are kept, of the whole batch.",
      choices=("random", "hardest", "easiest"),
    ),
    "negatives_per_pair": Field(
      16.0, "How many of them for each pair that matches; all, where there are fewer.", least=0
    ),
  },
)
