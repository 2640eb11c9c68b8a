"""Lengths of time in a config: a name and a unit, of which exactly one is set.

`total_steps`, `total_examples` and `total_epochs` are the three units of the duration "total";
setting one on the command line replaces the one that the file sets.
"""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from siglax.config.parts import Field
from siglax.config.values import get

UNITS = ("steps", "examples", "epochs")
MAX_STEPS = 2**31 - 1  # a state counts its steps in an int32


@dataclasses.dataclass(frozen=True)
class Duration:
  """The declaration of a duration, which stands for three fields.

  doc: a sentence without its first word, which is the unit. needed: one unit must be set.
  may_be_zero: 0 is a length.
  steps: the default; None sets no unit.
  """

  doc: str
  needed: bool = False
  may_be_zero: bool = False
  steps: int | None = None

  def fields(self, name: str) -> dict[str, Field]:
    """{name_unit: Field} of the three units."""
    bound = {"least": 0} if self.may_be_zero else {"above": 0}
    return {
      f"{name}_{unit}": Field(
        self.steps if unit == "steps" else None,
        f"{unit.capitalize()} {self.doc}",
        kind=float if unit == "epochs" else int,
        optional=True,
        **bound,
      )
      for unit in UNITS
    }


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
