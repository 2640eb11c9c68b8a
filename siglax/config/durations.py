"""Lengths of time in a config: a name and a unit, of which exactly one is set.

`total_steps`, `total_examples` and `total_epochs` are the three units of the duration "total";
setting one on the command line replaces the one that the file sets.
"""

from __future__ import annotations

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from siglax.config.values import get

UNITS = ("steps", "examples", "epochs")
# Durations, and whether one unit must be set.
DURATIONS = {
  "total": True,
  "optim.warmup": False,
  "optim.cooldown": False,
  "train.unmasked": False,
  "log.every": True,
  "eval.every": False,
  "checkpoint.every": False,
}
MAX_STEPS = 2**31 - 1  # a state counts its steps in an int32


def add_duration(group: ConfigDict, name: str, **unit):
  """Adds `{name}_steps`, `{name}_examples`, `{name}_epochs` to a group; at most one keyword gives a
  default.
  """
  for k, kind in zip(UNITS, (int, int, float)):
    group[f"{name}_{k}"] = placeholder(kind)
    group[f"{name}_{k}"] = unit.get(k)


def duration_steps(config: ConfigDict, name: str, epoch_examples: int) -> int | None:
  """Steps of a duration such as "total" or "optim.warmup"; None when no unit is set.

  epoch_examples: examples of one pass over the training data, for durations in epochs.
  """
  for k, size in zip(UNITS, (config.batch_size, 1, 1 / epoch_examples)):
    value = get(config, f"{name}_{k}")
    if value is not None:
      steps = int(round(value)) if k == "steps" else round(value / size / config.batch_size)
      if steps > MAX_STEPS:
        raise ValueError(
          f"config.{name}_{k}={value} comes to {steps:.4g} steps; at most {MAX_STEPS:,} can be "
          "counted"
        )
      return steps
  return None
