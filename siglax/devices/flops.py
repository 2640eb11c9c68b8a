"""Floating-point operations of a traced function, counted over its jaxpr.

XLA's cost_analysis counts the body of a loop once; here it is multiplied by its trip count.
"""

from __future__ import annotations

import collections
import math

import jax

# How a product is computed: of 16-bit floats; of float32 at jax's default precision; of float32 at
# Precision.HIGHEST, which losses in float32 ask for. siglax/devices/chips.py has a peak for each.
KINDS = ("bfloat16", "float32", "highest")


def count(function, *args) -> int:
  """Multiply-adds × 2 of all matrix products and convolutions of function(*args); args may be
  shapes.

  Global view, except inside shard_map, whose body is that of one place of the axes that it maps
  over. A while loop of unknown length counts once.
  """
  return sum(_count(jax.make_jaxpr(function)(*args).jaxpr, whole_mesh=False).values())


def count_all_devices(jaxpr) -> dict[str, int]:
  """The same of a jaxpr, by KINDS, with the body of shard_map times the places of the axes that it
  maps over: all of it in global view.
  """
  found = _count(jaxpr, whole_mesh=True)
  return {kind: found[kind] for kind in KINDS}


def places(eqn) -> int:
  """Of the mesh, in each of which a shard_map runs its body."""
  # "newly_manual_axes" in jax 0.10, "manual_axes" before.
  (axes,) = (value for key, value in eqn.params.items() if key.endswith("manual_axes"))
  return math.prod(eqn.params["mesh"].shape[axis] for axis in axes)


def _count(jaxpr, whole_mesh) -> collections.Counter:
  return sum((_equation(eqn, whole_mesh) for eqn in jaxpr.eqns), collections.Counter())


def _equation(eqn, whole_mesh) -> collections.Counter:
  name = eqn.primitive.name
  if name == "dot_general":
    (contract, _), _ = eqn.params["dimension_numbers"]
    lhs = eqn.invars[0].aval.shape
    work = 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(lhs[i] for i in contract)
    return collections.Counter({_kind(eqn): work})
  if name == "conv_general_dilated":
    kernel = eqn.invars[1].aval.shape
    out_features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
    work = 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) // out_features
    return collections.Counter({_kind(eqn): work})
  if name == "cond":
    branches = (_count(branch.jaxpr, whole_mesh) for branch in eqn.params["branches"])
    return max(branches, key=lambda found: sum(found.values()))
  bodies = [getattr(p, "jaxpr", p) for p in eqn.params.values()]
  inner = sum(
    (_count(body, whole_mesh) for body in bodies if hasattr(body, "eqns")), collections.Counter()
  )
  if name == "shard_map" and whole_mesh:
    return _times(inner, places(eqn))
  return _times(inner, eqn.params["length"]) if name == "scan" else inner


def _kind(eqn) -> str:
  """Of KINDS, of a product or a convolution."""
  if min(x.aval.dtype.itemsize for x in eqn.invars) <= 2:
    return "bfloat16"
  precision = eqn.params["precision"]
  both = precision if isinstance(precision, tuple) else (precision,)
  return "highest" if jax.lax.Precision.HIGHEST in both else "float32"


def _times(counter, times: int) -> collections.Counter:
  return collections.Counter({kind: times * work for kind, work in counter.items()})
