"""The average of two trainings of the same towers, parameter by parameter (WiSE-FT: Wortsman et
al., arXiv 2109.01903).
"""

from __future__ import annotations

import logging
import pathlib

import jax
import numpy as np

from siglax import config as config_lib
from siglax import interop
from siglax import models
from siglax.devices import disk
from siglax.devices import paths
from siglax.interop import layout
from siglax.runs import checkpoint
from siglax.runs import folder as folder_lib
from siglax.tower import origin as origin_lib
from siglax.tower import tower as tower_lib

logger = logging.getLogger("siglax")


def average(first, second, out, weight: float = 0.5) -> pathlib.Path:
  """Writes the run folder `out` with (1 − weight)·A + weight·B of each parameter; returns its path.

  first, second: A and B, anything that siglax.load takes with both towers. All else is B's: its
  preprocessing, its evaluation tasks, and its tokenizer or, where it has none, A's. The folder is
  loaded, evaluated and exported as any run; it has no optimizer state, so no run resumes in it.
  Running statistics of batch norm are averaged too, as any other number.
  Raises ValueError in one line for towers that are not the same, and for an `out` that exists.
  """
  out = pathlib.Path(out)
  if not 0 <= weight <= 1:
    raise ValueError(f"--weight {weight} must lie in 0 … 1; it is the share of {second}")
  if out.exists():
    raise ValueError(f"--out {out} exists; give a path that does not")
  a, b = (tower_lib.load(path) for path in (first, second))
  _check(a, b, str(first), str(second))
  text = b.text or a.text
  if text is None:
    raise ValueError(f"neither {first} nor {second} has a tokenizer, which a run folder needs")
  between = lambda x, y: ((1 - weight) * x + weight * y).astype(x.dtype)
  params = jax.jit(lambda x, y: jax.tree.map(between, x, y), donate_argnums=1)(
    models.stack_blocks(a.params, b.model.config), b.params
  )
  source = origin_lib.find(second)
  config = source.config.copy_and_resolve_references()
  config.train.ema = None  # the weights are whole
  for name in models.TOWERS:
    config.model[name].lora_rank = 0
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
    with disk.replacing(out) as temporary:
      temporary.mkdir()
      folder_lib.write(temporary, config, text)
      _save(temporary, config, params, {"average": [str(first), str(second), weight]})
  except OSError as e:
    raise ValueError(f"--out {out} cannot be written: {e.strerror or e}") from e
  return out


def _check(a, b, first: str, second: str):
  """ValueError where two towers cannot be averaged; a line in the log where their inputs differ."""
  for path, tower in ((first, a), (second, b)):
    if missing := [name for name in models.TOWERS if name not in tower.params]:
      raise ValueError(f"{path} has no {missing[0]} tower; siglax average needs both")
  different = interop.differences(a.model, b.model, models.TOWERS, "in A", "in B")
  if not different:
    shapes = [
      {name: x.shape for name, x in paths.flatten(params).items()}
      for params in (models.stack_blocks(a.params, b.model.config), b.params)
    ]
    different = [
      f"{name} is {_in_words(shapes[0].get(name))} in A and {_in_words(shapes[1].get(name))} in B"
      for name in sorted(shapes[0].keys() | shapes[1].keys())
      if shapes[0].get(name) != shapes[1].get(name)
    ]
  if different:
    raise ValueError(
      f"the towers of A={first} and B={second} are not the same: {layout.some(different, 4)}"
    )
  if a.text and b.text and a.text.files != b.text.files:
    raise ValueError(
      f"A={first} and B={second} have different tokenizers, so that a token is not the same word "
      "in both"
    )
  changes = interop.changes(
    a.config, b.config, ("image", "text") if a.text and b.text else ("image",), "in A", "in B"
  )
  if changes:
    logger.warning("inputs differ, and are B's from now on: %s", "; ".join(changes))


def _in_words(shape) -> str:
  return "absent" if shape is None else str(list(shape))


def _save(folder, config, params, meta: dict):
  """The checkpoint of step 0, of parameters alone."""
  step = jax.device_put(np.int32(0), jax.tree.leaves(params)[0].sharding)
  checkpoints = checkpoint.Checkpoints(folder, config.checkpoint)
  try:
    checkpoints.save(
      0,
      {"step": step, "params": params},
      {**meta, "config": config_lib.to_json(config)},
      last=True,
    )
  finally:
    checkpoints.close()
