"""What the losses share: similarities, positives, weights, and losses that are a sum over pairs."""

from __future__ import annotations

import functools

import jax
from jax import lax
import jax.numpy as jnp

from siglax.losses.loss import Loss
from siglax.losses.loss import matched_prior

LOWEST = -1e30  # below every logit, and finite, so that differences of two are


def matmul(a, b, contract) -> jax.Array:
  """a·b over one dimension of each, in float32; float32 operands are not rounded on any device."""
  if a.dtype == jnp.float32:
    return _product(a, b, contract, lax.Precision.HIGHEST)
  return _rounded_product(a, b, contract)


def _product(a, b, contract, precision=None):
  return lax.dot_general(
    a, b, (contract, ((), ())), precision=precision, preferred_element_type=jnp.float32
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rounded_product(a, b, contract):
  """The product of matrices of a 16-bit float.

  jax's own derivative is a product of a float32 and a 16-bit matrix, which devices compute in
  float32. This one rounds the float32 one, as `add_gradients` does.
  """
  return _product(a, b, contract)


def _pull_back_product(contract, operands, g):
  a, b = operands
  ((of_a,), (of_b,)), g = contract, g.astype(a.dtype)
  da, db = _product(g, b, ((1,), (1 - of_b,))), _product(a, g, ((1 - of_a,), (0,)))
  return (da.T if of_a == 0 else da).astype(a.dtype), (db if of_b == 0 else db.T).astype(b.dtype)


_rounded_product.defvjp(
  lambda a, b, contract: (_product(a, b, contract), (a, b)), _pull_back_product
)


def similarity(zimg_nd, ztxt_md) -> jax.Array:
  """zimg·ztxtᵀ [n, m]."""
  return matmul(zimg_nd, ztxt_md, ((1,), (1,)))


def positives(labels_B, B: int) -> jax.Array:
  """Which pairs match, [B, B]: the diagonal or, with labels, those of equal labels (UniCL, arXiv
  2204.03610).
  """
  return jnp.eye(B, dtype=bool) if labels_B is None else labels_B[:, None] == labels_B[None, :]


def scaled(weights_B) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Weights divided by the largest: (w / max w, a, b), where a·b = max w.

  The largest is then 1, so that a product of two weights underflows only where it is too small to
  matter. A weight above 0 stays above 0. Devices treat subnormal floats as 0, so a weight is
  compared with 0 by its bits, and weights that are all below 2⁻⁶⁰ are multiplied by 2⁶⁴ before the
  division; b = 2⁻⁶⁴ undoes that.
  """
  weights_B = weights_B.astype(jnp.float32)
  bits_B = lax.bitcast_convert_type(weights_B, jnp.int32)
  small = jnp.max(weights_B) < 2.0**-60
  lifted_B = jnp.where(bits_B < 2**23, bits_B.astype(jnp.float32) * 2.0**-85, weights_B * 2.0**64)
  weights_B = jnp.where(bits_B > 0, jnp.where(small, lifted_B, weights_B), 0)
  largest = jnp.max(weights_B)
  ratio_B = weights_B / jnp.where(largest == 0, 1, largest)
  present_B = jnp.where(bits_B > 0, jnp.maximum(ratio_B, jnp.finfo(jnp.float32).tiny), 0)
  return present_B, largest, jnp.where(small, jnp.float32(2.0**-64), 1)


def dense_total(weights_B) -> jax.Array:
  """Σw of weights as of `scaled`, whose largest is 1; 1 where all are absent."""
  return jnp.maximum(jnp.sum(weights_B), 1)


def inner(a_bd, b_bd, weights_b) -> jax.Array:
  """a_i·b_i [b] in float32, 0 for those of weight 0."""
  own_b = jnp.sum(a_bd.astype(jnp.float32) * b_bd.astype(jnp.float32), axis=1)
  return own_b if weights_b is None else jnp.where(weights_b > 0, own_b, 0)


def log_weights(weights_t, axis) -> jax.Array | float:
  """log w, LOWEST for 0, as a column (axis 1) or a row (0) of a tile."""
  if weights_t is None:
    return 0.0
  return jnp.expand_dims(jnp.where(weights_t > 0, jnp.log(weights_t), LOWEST), axis)


def dense_mean(losses_BB, weights_B):
  """(1/Σw) Σ_ij w_i w_j l_ij."""
  if weights_B is None:
    return jnp.sum(losses_BB) / losses_BB.shape[0]
  return jnp.sum(weights_B[:, None] * losses_BB * weights_B) / dense_total(weights_B)


def sides(batch) -> tuple[dict, dict]:
  """The images and the texts with their weights and labels, as a transport carries them."""
  shared = {"w": batch.weights, "label": batch.labels}
  return {"z": batch.zimg} | shared, {"z": batch.ztxt} | shared


def matches(row, col) -> jax.Array:
  """p [t, t] of two tiles; without labels none match away from the own pairs, which XLA then leaves
  out.
  """
  if row["label"] is None and not row["paired"]:
    return jnp.zeros((len(row["index"]), len(col["index"])), bool)
  a, b = (row["index"], col["index"]) if row["label"] is None else (row["label"], col["label"])
  return a[:, None] == b[None, :]


def _weights(row, col) -> list[jax.Array]:
  """Of two tiles, [t, 1] and [1, t], those that there are."""
  return [
    jnp.expand_dims(side["w"], axis) for side, axis in ((row, 1), (col, 0)) if side["w"] is not None
  ]


def weigh(row, col, x_tt) -> jax.Array:
  """w_i w_j x_ij."""
  for w_tt in _weights(row, col):
    x_tt = jnp.where(w_tt > 0, w_tt * x_tt, 0)
  return x_tt


def present(row, col) -> jax.Array | bool:
  """Which pairs of two tiles count [t, t]: both weights are above 0."""
  return functools.reduce(jnp.logical_and, (w_tt > 0 for w_tt in _weights(row, col)), True)


def total_weight(transport, batch) -> jax.Array:
  """`dense_total` over all devices."""
  if batch.weights is None:
    return jnp.float32(len(batch.zimg) * transport.size)
  return jnp.maximum(transport.sum(jnp.sum(batch.weights)), 1)


def add_gradients(row, col, g_tt, dimg_td, dtxt_td):
  """(dimg, dtxt) with those of a tile's embeddings added; g_tt is dL/d(similarity) [t, t]."""
  g_tt = g_tt.astype(row["z"].dtype)
  return dimg_td + matmul(g_tt, col["z"], ((1,), (0,))), dtxt_td + matmul(
    g_tt, row["z"], ((0,), (0,))
  )


def add(a, b):
  """Merges states that are sums."""
  return jax.tree.map(jnp.add, a, b)


def loss(name: str, doc: str, formula, with_derivative=None, fields=None) -> Loss:
  """A loss that is a sum over pairs: (1/Σw) Σ_ij w_i w_j l(x_ij, p_ij) with x = scale·zimg·ztxtᵀ +
  bias.

  formula: (x, p, **options) → l, of arrays of one shape, element by element; p bool.
  with_derivative: the same function with dl/dx beside l; None derives the formula by autodiff, a
  tile at a time.
  """
  with_derivative = with_derivative or functools.partial(_with_derivative, formula)

  def dense(zimg_Bd, ztxt_Bd, scale, bias, weights_B, labels_B, **options):
    x_BB = scale * similarity(zimg_Bd, ztxt_Bd) + bias
    return dense_mean(formula(x_BB, positives(labels_B, len(x_BB)), **options), weights_B)

  def per_device(**options):
    return in_one_trip(functools.partial(with_derivative, **options))

  return Loss(name, doc, dense, per_device, fields=dict(fields or {}), bias_init=matched_prior)


def check_elementwise(loss: Loss, formula):
  """ValueError in one line for a formula of which a loss depends on more than its own pair.

  On a tile of 2×3 it must give what it gives on each of the six pairs as a tile of its own.
  Options: the fields' defaults.
  """
  given = f"the formula of the loss {loss.name!r}"
  if not loss.name.isidentifier():
    raise ValueError(f"the loss {loss.name!r} needs a name of letters, digits and underscores")
  options = {name: field.default for name, field in loss.fields.items()}
  x_23 = jnp.linspace(-3.0, 3.0, 6, dtype=jnp.float32).reshape(2, 3)
  p_23 = jnp.arange(6).reshape(2, 3) % 4 == 0
  tile = jax.eval_shape(lambda x, p: formula(x, p, **options), x_23, p_23)
  shape, dtype = getattr(tile, "shape", None), getattr(tile, "dtype", None)
  if shape != x_23.shape or dtype != jnp.float32:
    raise ValueError(
      f"{given} gives {dtype or type(tile).__name__} {'' if shape is None else shape} of logits "
      f"float32 {x_23.shape}; it "
      "must give the loss of each pair, in the same shape and type"
    )
  whole = formula(x_23, p_23, **options)
  single = jax.vmap(jax.vmap(lambda x, p: formula(x[None, None], p[None, None], **options)[0, 0]))
  if not jnp.allclose(whole, single(x_23, p_23), rtol=1e-4, atol=1e-6, equal_nan=True):
    raise ValueError(f"{given} mixes pairs; the loss of a pair may depend on its own x and p alone")


def _with_derivative(formula, x_tt, p_tt, **options):
  """formula(x, p) and its derivative, of which each element depends on its own x alone."""
  loss_tt, transpose = jax.vjp(lambda x_tt: formula(x_tt, p_tt, **options), x_tt)
  (dx_tt,) = transpose(jnp.ones_like(loss_tt))
  return loss_tt, dx_tt


def in_one_trip(with_derivative, choose=None):
  """The program of a sum over pairs, for `ring.differentiable`: one trip of the texts, 6·b·B·d
  FLOPs a device.

  choose: (transport, batch) → (row, col, similarity [t, t]) → bool [t, t], the pairs that the sum
  is over; None takes all. It may send trips of its own before.

  Each pair adds to the loss on its own, so the gradient is made in the pass that makes the loss.
  Sums of the loss and of dbias are kept by row, so that they stay exact over millions of columns;
  dscale, Σ_ij dL/dx_ij s_ij, is Σ_i zimg_i·(Σ_j dL/dx_ij ztxt_j), from the gradients of the images.
  """

  def per_device(transport, batch, scalars, grad):
    scale, bias = scalars
    zimg_bd, weights_b = batch.zimg, batch.weights
    total = total_weight(transport, batch)
    chosen = None if choose is None else choose(transport, batch)

    def visit(row, col, row_state, col_state):
      s_tt = similarity(row["z"], col["z"])
      loss_tt, dx_tt = with_derivative(scale * s_tt + bias, matches(row, col))
      if chosen is not None:
        chosen_tt = chosen(row, col, s_tt)
        loss_tt, dx_tt = (jnp.where(chosen_tt, x_tt, 0) for x_tt in (loss_tt, dx_tt))
      sums = {"loss": row_state["loss"] + jnp.sum(weigh(row, col, loss_tt), axis=1)}
      if not grad:
        return sums, {}
      dx_tt = weigh(row, col, dx_tt)
      sums["dbias"] = row_state["dbias"] + jnp.sum(dx_tt, axis=1)
      dimg_td, dtxt_td = add_gradients(row, col, dx_tt, row_state["dimg"], col_state["dtxt"])
      return sums | {"dimg": dimg_td}, {"dtxt": dtxt_td}

    zeros = lambda x: jnp.zeros(x.shape, jnp.float32)
    row_state, col_state = {"loss": zeros(zimg_bd[:, 0])}, {}
    if grad:
      row_state |= {"dbias": zeros(zimg_bd[:, 0]), "dimg": zeros(zimg_bd)}
      col_state |= {"dtxt": zeros(batch.ztxt)}
    row_b, col_b = transport.around(visit, *sides(batch), row_state, col_state, add)
    loss = transport.sum(jnp.sum(row_b["loss"])) / total
    if not grad:
      return loss, None
    dscale = transport.sum(jnp.sum(inner(zimg_bd, row_b["dimg"], weights_b))) / total
    dbias = transport.sum(jnp.sum(row_b["dbias"])) / total
    dimg_bd, dtxt_bd = row_b["dimg"] * (scale / total), col_b["dtxt"] * (scale / total)
    return loss, (dimg_bd, dtxt_bd, (dscale, dbias))

  return per_device
