"""Floating-point operations of a traced function, counted over its jaxpr.

XLA's cost_analysis counts the body of a loop once; here it is multiplied by its trip count.
"""

from __future__ import annotations

import math

import jax


def count(function, *args) -> int:
  """Multiply-adds × 2 of all matrix products and convolutions of function(*args); args may be
  shapes.

  Global view, except inside shard_map, whose body is that of one place of the axes that it maps
  over. A while loop of unknown length counts once.
  """
  return _count(jax.make_jaxpr(function)(*args).jaxpr, whole_mesh=False)


def count_all_devices(jaxpr) -> int:
  """The same of a jaxpr, with the body of shard_map times the places of the axes that it maps over:
  all of it in global view.
  """
  return _count(jaxpr, whole_mesh=True)


def _count(jaxpr, whole_mesh) -> int:
  return sum(_equation(eqn, whole_mesh) for eqn in jaxpr.eqns)


def _equation(eqn, whole_mesh) -> int:
  name = eqn.primitive.name
  if name == "dot_general":
    (contract, _), _ = eqn.params["dimension_numbers"]
    lhs = eqn.invars[0].aval.shape
    return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(lhs[i] for i in contract)
  if name == "conv_general_dilated":
    kernel = eqn.invars[1].aval.shape
    out_features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
    return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) // out_features
  if name == "cond":
    return max(_count(branch.jaxpr, whole_mesh) for branch in eqn.params["branches"])
  bodies = [getattr(p, "jaxpr", p) for p in eqn.params.values()]
  inner = sum(_count(body, whole_mesh) for body in bodies if hasattr(body, "eqns"))
  if name == "shard_map" and whole_mesh:
    # "newly_manual_axes" in jax 0.10, "manual_axes" before.
    (axes,) = (value for key, value in eqn.params.items() if key.endswith("manual_axes"))
    return inner * math.prod(eqn.params["mesh"].shape[axis] for axis in axes)
  return inner * eqn.params["length"] if name == "scan" else inner
