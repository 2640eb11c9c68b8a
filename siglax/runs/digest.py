"""Digests: of a state, which tell whether a checkpoint holds what was saved and is finite, and of
a tower.
"""

from __future__ import annotations

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np

from siglax.devices import mesh as mesh_lib
from siglax.devices import paths


def digest(state) -> dict[str, int]:
  """{path: Σ_k bits_k·(2k + 1) mod 2³² over the elements of the leaf}, whatever its sharding.

  The weights are odd, so a change of any single element changes the sum.
  """
  return inspect(state)[0]


def inspect(state) -> tuple[dict[str, int], str | None]:
  """(`digest` of a state, path of its first leaf with an element that is not finite or None), in
  one pass on the devices.
  """
  leaves = jax.tree_util.tree_leaves_with_path(state)
  sums, finite = jax.device_get(_inspect([leaf for _, leaf in leaves]))
  names = [paths.name(path) for path, _ in leaves]
  return dict(zip(names, sums.tolist())), next(
    (name for name, good in zip(names, finite) if not good), None
  )


@jax.jit
def _inspect(leaves):
  finite = lambda x: (
    jnp.all(jnp.isfinite(x)) if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.bool_(True)
  )
  # Two arrays: a transfer for each of hundreds of leaves takes longer than the work on them.
  return jnp.stack([leaf_digest(x) for x in leaves]), jnp.stack([finite(x) for x in leaves])


def leaf_digest(x: jax.Array) -> jax.Array:
  """uint32, of one leaf; see `digest`. Traceable."""
  unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
  bits = jax.lax.bitcast_convert_type(x, unsigned) if x.dtype != jnp.bool_ else x
  index, stride = jnp.zeros(x.shape, jnp.uint32), 1
  for axis in reversed(range(x.ndim)):
    index += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * np.uint32(stride % 2**32)
    stride *= x.shape[axis]
  return jnp.sum(bits.astype(jnp.uint32) * (2 * index + 1), dtype=jnp.uint32)


def image_tower(model, params, mesh) -> str:
  """Names an image tower: its parameters, to the bit, and what it makes of them; preprocessing is
  no part of it.

  Global view: all processes call together. The same whether layers are stacked
  (config.model.image.scan) or not.
  """
  own = model.declared["image"].fields
  return _tower(model, params, mesh, "image", ("activation", "norm_eps", "pool", "position", *own))


def text_tower(model, params, mesh) -> str:
  """As `image_tower`; the tokenizer is no part of it."""
  own = model.declared["text"].fields
  return _tower(model, params, mesh, "text", ("activation", "norm_eps", "pool", "causal", *own))


def _tower(model, params, mesh, name: str, fields: tuple[str, ...]) -> str:
  """fields: those of its config that change what it makes of its parameters."""
  leaves = paths.flatten(params[name])
  stacked = set(filter(paths.is_stacked, leaves))
  of_layers = jax.vmap(leaf_digest)
  digests = lambda leaves: {
    k: of_layers(x) if k in stacked else leaf_digest(x) for k, x in leaves.items()
  }
  sums = {}
  for leaf, value in jax.device_get(
    jax.jit(digests, out_shardings=mesh_lib.replicated(mesh))(leaves)
  ).items():
    if leaf in stacked:
      sums |= {leaf.replace("blocks/", f"blocks/{i}/"): int(x) for i, x in enumerate(value)}
    else:
      sums[leaf] = int(value)
  options = {field: model.config[name][field] for field in fields}
  return hashlib.sha256(json.dumps([options, sums], sort_keys=True).encode()).hexdigest()[:16]
