"""The global contrastive loss of SogCLR (arXiv 2202.12387) and FastCLIP (arXiv 2407.01445): maths,
no devices.

With τ = 1 / scale and sums over the j that are no match of i,
    g_i = Σ_j w_j exp((s_ij − s_ii) / τ) / Σ_j w_j,   g'_i the same of s_ji,
the objective is τ · (1/Σw) Σ_i w_i [log(ε + G_i) + log(ε + G'_i)] with G over the whole data. Each
example has running normalisers u ← (1 − γ)·u + γ·g in the place of G (running.py), and the gradient
is (τ/Σw) Σ_i w_i [∇g_i / (ε + u_i) + ∇g'_i / (ε + u'_i)]: as if the negatives were those of all
batches in which the example has been. The own pair is no part of g. Nor are pairs that match by
label, and an example that a batch holds twice is no negative of itself; the first of the two is the
one whose u is kept. An example without negatives counts 0, and its u stays; so does that of one of
weight 0.

The texts make two trips, as for the softmax loss: the first gives g, the second the gradient,
8·b·B·d FLOPs a device.
"""

from __future__ import annotations

import functools
import math

import jax
from jax import lax
import jax.numpy as jnp

from siglax.config.parts import Field
from siglax.losses import pairs
from siglax.losses import running as running_lib
from siglax.losses import softmax
from siglax.losses.loss import Loss

# A sum that leaves 2^±64 is brought back, and its bound changed for it.
FAR, LOG_FAR = 2.0**64, 64 * math.log(2)


def dense(
  zimg_Bd, ztxt_Bd, scale, weights_B, labels_B, running=None, *, temperature, rho, epsilon, **gamma
):
  """See the module. Its gradient is that of g / (ε + u), u constant, with the value of
  log(ε + u).
  """
  del gamma
  scale = lax.stop_gradient(scale) if temperature == "fixed" else scale
  s_BB = pairs.similarity(zimg_Bd, ztxt_Bd)
  B = len(s_BB)
  weights_B = jnp.ones((B,), jnp.float32) if weights_B is None else weights_B
  negative_BB = ~pairs.positives(labels_B, B) & ((weights_B[:, None] > 0) & (weights_B > 0))
  again_B = jnp.zeros((B,), bool)
  if running is not None:
    same_BB = running["example"][:, None] == running["example"]
    negative_BB &= ~same_BB
    again_B = jnp.any(jnp.tril(same_BB, -1) & (weights_B > 0), axis=1)
  mass_B = jnp.sum(jnp.where(negative_BB, weights_B, 0), axis=1)
  logs_B, new = 0, {}
  for side, x_BB in zip(running_lib.SIDES, (s_BB, s_BB.T)):
    x_BB = scale * (x_BB - jnp.diag(s_BB)[:, None])
    above = lambda m_B, x_BB=x_BB: jnp.sum(
      jnp.where(
        negative_BB, weights_B * jnp.exp(jnp.where(negative_BB, x_BB - m_B[:, None], 0)), 0
      ),
      axis=1,
    )
    of_x_BB = lax.stop_gradient(x_BB) + pairs.log_weights(weights_B, 0)
    m_B = jnp.max(jnp.where(negative_BB, of_x_BB, pairs.LOWEST), axis=1)
    sums = {"m": m_B, "s": lax.stop_gradient(above(m_B))}
    new[side] = _updated(sums, mass_B, running, side)
    bound_B, rest_B = _plus_epsilon(new[side], epsilon)
    ratio_B = above(bound_B) / (_above_0(mass_B) * rest_B)
    logs_B += bound_B + jnp.log(rest_B) + ratio_B - lax.stop_gradient(ratio_B)
  counts_B = mass_B > 0
  logs = jnp.sum(jnp.where(counts_B, weights_B * logs_B, 0)) / pairs.dense_total(weights_B)
  loss = _value(logs, scale, temperature, rho)
  if running is None:
    return loss
  return loss, _rows(new, running, counts_B & ~again_B)


def _per_device(temperature, rho, epsilon, **gamma):
  """The same on one device, for `ring.differentiable`; scalars is (scale,)."""
  del gamma

  def per_device(transport, batch, scalars, grad):
    (scale,), running, weights_b = scalars, batch.running, batch.weights
    total = pairs.total_weight(transport, batch)
    own_b = scale * pairs.inner(batch.zimg, batch.ztxt, weights_b)
    example = {} if running is None else {"example": running["example"]}
    rows, cols = (side | example for side in pairs.sides(batch))
    row_b, col_b = _sums(transport, rows, cols, scale)
    mass_b, new = row_b["mass"], {}
    counts_b = mass_b > 0
    logs_b, own_ratio_b, shares = 0, 0, []
    for side, sums in zip(running_lib.SIDES, (row_b, col_b)):
      sums = {"m": sums["m"] - own_b, "s": sums["s"]}
      new[side] = _updated(sums, mass_b, running, side)
      bound_b, rest_b = _plus_epsilon(new[side], epsilon)
      logs_b += bound_b + jnp.log(rest_b)
      share_b = jnp.where(counts_b, 1 / (_above_0(mass_b) * rest_b), 0)
      own_ratio_b += sums["s"] * jnp.exp(jnp.where(counts_b, sums["m"] - bound_b, 0)) * share_b
      shares.append({"m": bound_b + own_b, "share": share_b * _own_weights(weights_b)})
    logs_b = jnp.where(counts_b, _own_weights(weights_b) * logs_b, 0)
    logs = transport.sum(jnp.sum(logs_b)) / total
    loss = _value(logs, scale, temperature, rho)
    if running is not None:
      loss = loss, _rows(new, running, counts_b & ~row_b["again"])
    if not grad:
      return loss, None
    dimg_bd, dtxt_bd = _gradients(transport, rows | shares[0], cols | shares[1], scale)
    own_b1 = jnp.where(counts_b, _own_weights(weights_b) * own_ratio_b, 0)[:, None]
    dimg_bd -= jnp.where(own_b1 > 0, own_b1 * batch.ztxt, 0)
    dtxt_bd -= jnp.where(own_b1 > 0, own_b1 * batch.zimg, 0)
    by_scale = transport.sum(jnp.sum(pairs.inner(batch.zimg, dimg_bd, weights_b))) / total
    outer = _outer(scale, temperature)
    dscale = {
      "fixed": jnp.zeros_like(scale),
      "learned": outer * by_scale - (logs + 2 * rho) * outer**2,
      "unscaled": by_scale,
    }[temperature]
    factor = outer * scale / total
    return loss, (dimg_bd * factor, dtxt_bd * factor, (dscale,))

  return per_device


def _sums(transport, rows, cols, scale):
  """Of each image and each text the sums over its negatives, w exp(scale·s), as m and s: the first
  trip. The images have "mass", their weight, and with numbers of examples "again", whether an
  earlier row is the same one.
  """

  def visit(row, col, row_state, col_state):
    x_tt, negative_tt = scale * pairs.similarity(row["z"], col["z"]), _negatives(row, col)
    both_tt = x_tt + pairs.log_weights(row["w"], 1) + pairs.log_weights(col["w"], 0)
    both_tt = jnp.where(negative_tt, both_tt, pairs.LOWEST)
    add = functools.partial(softmax.add_tile, x_tt, both_tt, negative_tt)
    w_tt = jnp.where(negative_tt, 1.0 if col["w"] is None else col["w"], 0)
    new = add(row_state, row, col, 1) | {"mass": row_state["mass"] + jnp.sum(w_tt, axis=1)}
    if "example" in row:
      earlier_tt = _same(row, col) & (row["index"][:, None] > col["index"])
      again_t = jnp.any(earlier_tt & pairs.present(row, col), axis=1)
      new["again"] = row_state["again"] | again_t
    return new, add(col_state, col, row, 0)

  zeros_b = jnp.zeros((len(rows["z"]),), jnp.float32)
  none = {"m": jnp.full_like(zeros_b, pairs.LOWEST), "s": zeros_b}
  row_state = none | {"mass": zeros_b}
  if "example" in rows:
    row_state["again"] = jnp.zeros(zeros_b.shape, bool)
  return transport.around(visit, rows, cols, row_state, none, softmax.merge)


def _gradients(transport, rows, cols, scale):
  """Σ_j c_ij ztxt_j and Σ_i c_ij zimg_i: the second trip. c_ij is w_i w_j / mass_i · exp(x_ij) /
  (ε + u_i) and the same of the text.
  """

  def visit(row, col, row_state, col_state):
    x_tt = scale * pairs.similarity(row["z"], col["z"])
    c_tt = softmax.weighted_exp(x_tt, row["m"], col, 1) * row["share"][:, None]
    c_tt += softmax.weighted_exp(x_tt, col["m"], row, 0) * col["share"]
    c_tt = jnp.where(_negatives(row, col), c_tt, 0)
    dimg_td, dtxt_td = pairs.add_gradients(row, col, c_tt, row_state["dimg"], col_state["dtxt"])
    return {"dimg": dimg_td}, {"dtxt": dtxt_td}

  row_state = {"dimg": jnp.zeros(rows["z"].shape, jnp.float32)}
  col_state = {"dtxt": jnp.zeros(cols["z"].shape, jnp.float32)}
  row_b, col_b = transport.around(visit, rows, cols, row_state, col_state, pairs.add)
  return row_b["dimg"], col_b["dtxt"]


def _negatives(row, col) -> jax.Array:
  """Of two tiles, the pairs of two present examples that do not match."""
  negative_tt = ~pairs.matches(row, col) & pairs.present(row, col)
  return negative_tt & ~_same(row, col) if "example" in row else negative_tt


def _same(row, col) -> jax.Array:
  return row["example"][:, None] == col["example"]


def _updated(sums, mass_b, running, side) -> dict:
  """u of a batch, from its sums and their weight: g without `running`."""
  light_b = mass_b < 1 / FAR
  g = {
    "m": sums["m"] + jnp.where(light_b, LOG_FAR, 0),
    "s": jnp.where(light_b, sums["s"] / FAR, sums["s"]) / _above_0(mass_b),
  }
  if running is None:
    return g
  u = softmax.merge(running["kept"][side], g | {"s": running["gamma"] * g["s"]})
  # The bound follows where the sum has shrunk over many steps.
  small_b = u["s"] < 1 / FAR
  return {
    "m": u["m"] - jnp.where(small_b, LOG_FAR, 0),
    "s": jnp.where(small_b, u["s"] * FAR, u["s"]),
  }


def _plus_epsilon(u, epsilon) -> tuple[jax.Array, jax.Array]:
  """ε + u as a bound M and a rest, rest·exp(M)."""
  bound_b = jnp.maximum(u["m"], math.log(epsilon))
  return bound_b, u["s"] * jnp.exp(u["m"] - bound_b) + jnp.exp(math.log(epsilon) - bound_b)


def _above_0(mass_b) -> jax.Array:
  return jnp.where(mass_b > 0, mass_b, 1)


def _own_weights(weights_b):
  return 1.0 if weights_b is None else weights_b


def _outer(scale, temperature):
  """What the mean of the logarithms is multiplied by: τ, or 1 in FastCLIP v0."""
  return 1.0 if temperature == "unscaled" else 1 / scale


def _value(logs, scale, temperature, rho):
  added = 2 * rho / scale if temperature == "learned" else 0
  return _outer(scale, temperature) * logs + added


def _rows(new, running, kept_b) -> dict:
  """As `running.store` takes them."""
  return lax.stop_gradient({"at": jnp.where(kept_b, running["example"], -1), "new": new})


def _gamma(steps, gamma_min, gamma_decay, **rest):
  """γ by the step: cosine from 1 to gamma_min over a share gamma_decay of the steps."""
  del rest
  last = gamma_decay * steps

  def gamma(step):
    share = jnp.clip(step / last, 0, 1) if last else 1.0
    return gamma_min + (1 - gamma_min) * 0.5 * (1 + jnp.cos(jnp.pi * share))

  return gamma


LOSS = Loss(
  "global",
  "SogCLR's and FastCLIP's: the softmax of an example over its negatives of the whole data, by a "
  "running normaliser of each example.",
  dense,
  _per_device,
  scale_max=100.0,
  rescale=lambda loss, c, **options: loss,
  gamma=_gamma,
  slower_scale=(1 / 0.03, 1 / 3),
  fields={
    "gamma_min": Field(
      0.2,
      "Share of a batch in the running normalisers after gamma_decay; 1 before.",
      above=0,
      most=1,
    ),
    "gamma_decay": Field(
      0.5,
      "Share of the training in which γ falls from 1 to gamma_min by a cosine.",
      least=0,
      most=1,
    ),
    "temperature": Field(
      "fixed",
      "fixed: the scale stays scale_init (FastCLIP v1); learned: it is trained, with rho (v3); "
      "unscaled: trained, on the objective without its factor τ (v0).",
      choices=("fixed", "learned", "unscaled"),
    ),
    "rho": Field(6.5, "With a learned temperature τ, 2·rho·τ is added to the loss.", least=0),
    "epsilon": Field(1e-14, "Added to the running normalisers.", above=0),
  },
)
