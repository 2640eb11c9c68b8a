"""Which parameters train: patterns over their paths, and the two parts that they split a
tree into.
"""

from __future__ import annotations

import re

import jax
from ml_collections import ConfigDict

from siglax.devices import paths
from siglax.models.two_towers import is_statistic


def frozen_mask(config: ConfigDict, params):
  """A tree of bools like params: True for running statistics and where
  `config.optim.lr_multipliers` gives None.
  """
  multiplier = first_match(params, config.optim.lr_multipliers, "config.optim.lr_multipliers")
  return jax.tree_util.tree_map_with_path(
    lambda path, _: multiplier.get(paths.name(path)) is None, params
  )


def count(params) -> int:
  """Numbers in a tree of arrays or shapes that a gradient could train: all but running
  statistics.
  """
  return sum(
    x.size
    for path, x in jax.tree_util.tree_leaves_with_path(params)
    if not is_statistic(f"/{paths.name(path)}")
  )


def first_match(params, rules, field: str) -> dict:
  """{path: value of the first (pattern, value) whose pattern matches the whole path}; ValueError
  names what is left over.

  Running statistics are no part of it.
  """
  patterns = [compile_rule(rule, f"{field}.{i}") for i, rule in enumerate(rules)]
  names = [
    name
    for path, _ in jax.tree_util.tree_leaves_with_path(params)
    if not is_statistic(name := paths.name(path))
  ]
  first = {n: next((i for i, p in enumerate(patterns) if p.fullmatch(n)), None) for n in names}
  for name, i in first.items():
    if i is None:
      raise ValueError(
        f'no pattern of {field} matches the parameter {name!r}; end the list with (".*", value)'
      )
  # Two patterns may decide nothing: a catch-all at the end, and the default rule for kernels.
  for i in set(range(len(patterns))) - set(first.values()):
    text = patterns[i].pattern
    if text == ".*/kernel" or text == ".*" and i == len(patterns) - 1:
      continue
    shadowed = any(patterns[i].fullmatch(n) for n in names)
    why = (
      "comes after patterns that match all of its parameters"
      if shadowed
      else "matches no parameter"
    )
    raise ValueError(f"{field}.{i}: the pattern {text!r} {why}; paths are such as {names[0]!r}")
  return {name: rules[i][1] for name, i in first.items()}


def compile_rule(rule, field: str) -> re.Pattern:
  """The pattern of a pair (pattern, value)."""
  try:
    if not isinstance(rule, (tuple, list)):
      raise TypeError("it is no pair")
    pattern, _ = rule
    return re.compile(pattern)
  except (TypeError, ValueError, OverflowError, RecursionError, re.error) as e:
    raise ValueError(f'{field}={rule!r} must be a pair such as (".*/kernel", 1.0): {e}') from e


def overlay(params: dict, loaded: dict) -> dict:
  """params with the leaves of `loaded`, a nested dict of some of its paths, in place of its own."""
  return params | {
    k: overlay(params[k], v) if isinstance(v, dict) else v for k, v in loaded.items()
  }


def split(params: dict, frozen) -> tuple[dict, dict]:
  """(trainable, frozen) parts of params, each with None where the other has a leaf."""
  trainable = jax.tree.map(lambda p, f: None if f else p, params, frozen)
  fixed = jax.tree.map(lambda p, f: p if f else None, params, frozen)
  return trainable, fixed


def merge(first: dict, second: dict) -> dict:
  """The leaves of first, and of second where first has None."""
  return jax.tree.map(
    lambda a, b: b if a is None else a, first, second, is_leaf=lambda x: x is None
  )
