"""What the losses share: scaled similarities, positives, and the checks of their arguments."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def logits(zimg_nd, ztxt_md, scale) -> jax.Array:
  """scale·zimg·ztxtᵀ [n, m]; products of any dtype are summed in float32."""
  return scale * jnp.matmul(zimg_nd, ztxt_md.T, preferred_element_type=jnp.float32)


def positives(labels_B, B: int) -> jax.Array:
  """Which pairs match, [B, B]: the diagonal or, with labels, those of equal labels (UniCL, arXiv 2204.03610)."""
  return jnp.eye(B, dtype=bool) if labels_B is None else labels_B[:, None] == labels_B[None, :]


def check(zimg, ztxt, mesh, axis, impl, impls, tile, weights, labels):
  """Raises ValueError in one line for arguments that do not fit together."""
  if zimg.ndim != 2 or zimg.shape != ztxt.shape:
    raise ValueError(f"zimg {zimg.shape} and ztxt {ztxt.shape} must have the same shape [B, d]")
  if impl not in impls:
    raise ValueError(f"impl={impl!r} is unknown; known are {', '.join(impls)} (config.loss.impl)")
  if tile is not None and tile <= 0:
    raise ValueError(f"tile={tile} must be positive")
  axes = (axis,) if isinstance(axis, str) else axis
  if mesh is not None and not set(axes) <= set(mesh.axis_names):
    raise ValueError(f"axis={axis!r} is not of the mesh, whose axes are {', '.join(mesh.axis_names)}")
  for name, x in (("weights", weights), ("labels", labels)):
    if x is not None and x.shape != zimg.shape[:1]:
      raise ValueError(f"{name} {x.shape} must have the shape {zimg.shape[:1]}, one for each example")
  if labels is not None and not jnp.issubdtype(labels.dtype, jnp.integer):
    raise ValueError(f"labels have dtype {labels.dtype}; they must be integers")
