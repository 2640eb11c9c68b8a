"""Names of the leaves of a tree of arrays: their keys joined by "/", such as
"image/encoder/blocks/0/norm1/scale".
"""

from __future__ import annotations

import re

import jax


def name(path) -> str:
  """Of a leaf, whose path jax.tree_util gives."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def is_stacked(name: str) -> bool:
  """Whether a leaf holds all layers of a tower along its first dimension: "…/blocks/mlp/…", not
  "…/blocks/0/mlp/…".
  """
  return re.search(r"(^|/)blocks/(?!\d+/)", name) is not None


def flatten(tree) -> dict:
  """{name: leaf}."""
  return {name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(leaves: dict) -> dict:
  """The nested dict of `flatten`."""
  tree = {}
  for path, leaf in leaves.items():
    *groups, key = path.split("/")
    node = tree
    for group in groups:
      node = node.setdefault(group, {})
    node[key] = leaf
  return tree
