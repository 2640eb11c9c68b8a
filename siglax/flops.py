"""Floating-point operations of a traced function, counted over its jaxpr.

XLA's cost_analysis counts the body of a loop once; here it is multiplied by its trip count.
"""

from __future__ import annotations

import math

import jax


def count(function, *args) -> int:
  """Multiply-adds × 2 of all matrix products and convolutions of function(*args); args may be shapes.

  Global view, except inside shard_map, whose body is per device. A while loop of unknown length counts once.
  """
  return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr) -> int:
  return sum(_equation(eqn) for eqn in jaxpr.eqns)


def _equation(eqn) -> int:
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
    return max(_count(branch.jaxpr) for branch in eqn.params["branches"])
  inner = sum(_count(getattr(p, "jaxpr", p)) for p in eqn.params.values() if hasattr(getattr(p, "jaxpr", p), "eqns"))
  return inner * eqn.params["length"] if name == "scan" else inner
