"""What the losses share: similarities, positives, the program of losses that are a sum over pairs, checks."""

from __future__ import annotations

import functools

import jax
from jax import lax
import jax.numpy as jnp

from siglax.losses import ring

LOWEST = -1e30  # below every logit, and finite, so that differences of two are


def matmul(a, b, contract) -> jax.Array:
  """a·b over one dimension of each, in float32; float32 operands are not rounded on any device."""
  precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
  return lax.dot_general(a, b, (contract, ((), ())), precision=precision, preferred_element_type=jnp.float32)


def similarity(zimg_nd, ztxt_md) -> jax.Array:
  """zimg·ztxtᵀ [n, m]."""
  return matmul(zimg_nd, ztxt_md, ((1,), (1,)))


def positives(labels_B, B: int) -> jax.Array:
  """Which pairs match, [B, B]: the diagonal or, with labels, those of equal labels (UniCL, arXiv 2204.03610)."""
  return jnp.eye(B, dtype=bool) if labels_B is None else labels_B[:, None] == labels_B[None, :]


def scaled(weights_B) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(w / max w, a, b) with max w = a·b: a product of two such weights that underflows is too small to matter.

  Present weights stay above 0. Devices take subnormal floats for 0, so the bits tell what is present, and where all
  weights are small they are lifted by 2⁶⁴ first.
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
  return 0.0 if weights_t is None else jnp.expand_dims(jnp.where(weights_t > 0, jnp.log(weights_t), LOWEST), axis)


def dense_mean(losses_BB, weights_B):
  """(1/Σw) Σ_ij w_i w_j l_ij."""
  if weights_B is None:
    return jnp.sum(losses_BB) / losses_BB.shape[0]
  return jnp.sum(weights_B[:, None] * losses_BB * weights_B) / dense_total(weights_B)


def examples(z_bd, weights_b, labels_b) -> dict:
  """One side of the pairs, as a transport carries it."""
  return {"z": z_bd, "w": weights_b, "label": labels_b}


def matches(row, col) -> jax.Array:
  """p [t, t] of two tiles; without labels none match away from the own pairs, which XLA then leaves out."""
  if row["label"] is None and not row["paired"]:
    return jnp.zeros((len(row["index"]), len(col["index"])), bool)
  a, b = (row["index"], col["index"]) if row["label"] is None else (row["label"], col["label"])
  return a[:, None] == b[None, :]


def _weights(row, col) -> list[jax.Array]:
  """Of two tiles, [t, 1] and [1, t], those that there are."""
  return [jnp.expand_dims(side["w"], axis) for side, axis in ((row, 1), (col, 0)) if side["w"] is not None]


def weigh(row, col, x_tt) -> jax.Array:
  """w_i w_j x_ij."""
  for w_tt in _weights(row, col):
    x_tt = jnp.where(w_tt > 0, w_tt * x_tt, 0)
  return x_tt


def present(row, col) -> jax.Array | bool:
  """Which pairs of two tiles count [t, t]: both weights are above 0."""
  return functools.reduce(jnp.logical_and, (w_tt > 0 for w_tt in _weights(row, col)), True)


def total_weight(transport, zimg_bd, weights_b) -> jax.Array:
  """`dense_total` over all devices."""
  if weights_b is None:
    return jnp.float32(len(zimg_bd) * transport.size)
  return jnp.maximum(transport.sum(jnp.sum(weights_b)), 1)


def pull_back(row, col, g_tt, dimg_td, dtxt_td):
  """Adds the gradients of the embeddings of a tile, given dL/d(similarity) [t, t]."""
  g_tt = g_tt.astype(row["z"].dtype)
  return dimg_td + matmul(g_tt, col["z"], ((1,), (0,))), dtxt_td + matmul(g_tt, row["z"], ((0,), (0,)))


def add(a, b):
  """Merges states that are sums."""
  return jax.tree.map(jnp.add, a, b)


def pairwise(tile):
  """The program of (1/Σw) Σ_ij w_i w_j l(x_ij, p_ij) with x = scale·zimg·ztxtᵀ + bias; tile(x, p) → l, dl/dx.

  One trip. Sums of the loss and of dbias are kept by row, so that they stay exact over millions of columns; dscale,
  Σ_ij dL/dx_ij s_ij, is Σ_i zimg_i·(Σ_j dL/dx_ij ztxt_j), what the images gather.
  """

  def program(transport, zimg_bd, ztxt_bd, scalars, weights_b, labels_b, grad):
    scale, bias = scalars
    total = total_weight(transport, zimg_bd, weights_b)

    def visit(row, col, row_state, col_state):
      s_tt = similarity(row["z"], col["z"])
      loss_tt, dx_tt = tile(scale * s_tt + bias, matches(row, col))
      sums = {"loss": row_state["loss"] + jnp.sum(weigh(row, col, loss_tt), axis=1)}
      if not grad:
        return sums, {}
      dx_tt = weigh(row, col, dx_tt)
      sums["dbias"] = row_state["dbias"] + jnp.sum(dx_tt, axis=1)
      dimg_td, dtxt_td = pull_back(row, col, dx_tt, row_state["dimg"], col_state["dtxt"])
      return sums | {"dimg": dimg_td}, {"dtxt": dtxt_td}

    zeros = lambda x: jnp.zeros(x.shape, jnp.float32)
    row_state, col_state = {"loss": zeros(zimg_bd[:, 0])}, {}
    if grad:
      row_state |= {"dbias": zeros(zimg_bd[:, 0]), "dimg": zeros(zimg_bd)}
      col_state |= {"dtxt": zeros(ztxt_bd)}
    rows, cols = examples(zimg_bd, weights_b, labels_b), examples(ztxt_bd, weights_b, labels_b)
    row_b, col_b = transport.around(visit, rows, cols, row_state, col_state, add)
    loss = transport.sum(jnp.sum(row_b["loss"])) / total
    if not grad:
      return loss, None
    dscale = transport.sum(jnp.sum(inner(zimg_bd, row_b["dimg"], weights_b))) / total
    dbias = transport.sum(jnp.sum(row_b["dbias"])) / total
    return loss, (row_b["dimg"] * (scale / total), col_b["dtxt"] * (scale / total), (dscale, dbias))

  return program


def check(zimg, ztxt, mesh, axis, impl, impls, tile, weights, labels):
  """Raises ValueError in one line for arguments that do not fit together."""
  if zimg.ndim != 2 or zimg.shape != ztxt.shape:
    raise ValueError(f"zimg {zimg.shape} and ztxt {ztxt.shape} must have the same shape [B, d]")
  if impl not in impls:
    raise ValueError(f"impl={impl!r} is unknown; known are {', '.join(impls)} (config.loss.impl)")
  if tile is not None and tile <= 0:
    raise ValueError(f"tile={tile} must be positive")
  if mesh is not None and not set(ring.axes(axis)) <= set(mesh.axis_names):
    raise ValueError(f"axis={axis!r} is not of the mesh, whose axes are {', '.join(mesh.axis_names)}")
  if zimg.shape[0] % ring.axis_size(mesh, axis):
    raise ValueError(f"a batch of {zimg.shape[0]} is not divisible by the {ring.axis_size(mesh, axis)} devices of axis={axis!r}")
  for name, x in (("weights", weights), ("labels", labels)):
    if x is not None and x.shape != zimg.shape[:1]:
      raise ValueError(f"{name} {x.shape} must have the shape {zimg.shape[:1]}, one for each example")
  if labels is not None and not jnp.issubdtype(labels.dtype, jnp.integer):
    raise ValueError(f"labels have dtype {labels.dtype}; they must be integers")
