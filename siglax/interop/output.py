"""What the writers of several formats share."""

from __future__ import annotations

import json
import pathlib

import ml_dtypes
import numpy as np

from siglax.interop import layout

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}  # of the parameters in a file


def arrays(tower, table: layout.Table, towers: tuple[str, ...], dtype: str):
  """Yields (name, function that makes it) of each array, so that one is on the host at a time."""
  for name, make in layout.arrays(table, tower.model, tower.params, towers):
    yield name, lambda make=make: make().astype(DTYPES[dtype], copy=False)


def write_json(file: pathlib.Path, value: dict):
  file.write_text(json.dumps(value, indent=2) + "\n")


def head_problem(tower) -> str | None:
  """Why a format whose image tower is a transformer without a head cannot hold this one."""
  if "head" not in tower.params["image"]:
    return None
  width = tower.model.declared["image"].shape(tower.model.config.image).width
  return (
    f"config.model.embed_dim={tower.model.embed_dim} with a head on an image tower of width "
    f"{width}; it needs the two to be the same, and no head"
  )
