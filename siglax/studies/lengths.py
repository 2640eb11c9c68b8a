"""How long each run of a study is: as many examples, model FLOPs or seconds as the others."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping

from ml_collections import ConfigDict

from siglax import config as config_lib
from siglax.config.durations import UNITS
from siglax.studies import sizes as sizes_lib
from siglax.studies.grid import TOTALS
from siglax.studies.study import Study


class Lengths:
  """(study, {field: text} of a setting, share) → {field: text} that make it of that share of the
  length that the study says.

  What the base has in steps, such as its warmup, is as many examples in a run of another batch
  size, and at least a step; but for the lines of the log.
  sizes: config → `sizes.Size`. seconds_per_step: {field: text} → the seconds of a step of such a
  run, or None where they have not been measured yet, as before a dry run.
  """

  def __init__(
    self,
    sizes: Callable[[ConfigDict], sizes_lib.Size],
    seconds_per_step: Callable[[dict[str, str]], float | None],
  ):
    self._sizes, self._seconds_per_step = sizes, seconds_per_step

  def __call__(
    self, study: Study, overrides: Mapping[str, str], share: float = 1.0
  ) -> dict[str, str]:
    base = config_lib.load(study.base, _texts_of_set(study, overrides))
    config = config_lib.load(study.base, dict(overrides))
    found = {}
    for name in config_lib.DURATIONS:
      steps, of_setting = config_lib.get(base, f"{name}_steps"), overrides.keys() - study.set.keys()
      given = any(f"{name}_{unit}" in of_setting for unit in UNITS)
      if steps and not given and config.batch_size != base.batch_size and name != "log.every":
        examples = max(steps * base.batch_size, config.batch_size)
        found[f"{name}_examples"] = str(examples)
    if not any(total in overrides and total not in study.set for total in TOTALS):
      found |= self._total(study, base, dict(overrides) | found, share)
    return found

  def _total(
    self, study: Study, base: ConfigDict, overrides: dict[str, str], share: float
  ) -> dict[str, str]:
    config = config_lib.load(study.base, overrides)
    if study.equal == "examples":
      return _examples(study, config, share)
    if study.equal == "flops":
      amount = self._sizes(base).flops if study.amount is None else study.amount
      steps = self._sizes(config).steps_of(amount * share)
    else:
      given = {k: v for k, v in overrides.items() if k not in TOTALS}
      seconds = self._seconds_per_step(given)
      if seconds is None:
        return {}
      steps = round((study.amount or 0) * share / seconds)
    if steps < 1:
      raise ValueError(
        f"amount={study.amount:g} {study.equal} is less than a step of batch_size="
        f"{config.batch_size}; raise it"
      )
    return {"total_steps": str(steps)}


def _examples(study: Study, config: ConfigDict, share: float) -> dict[str, str]:
  """A share of the examples of the study, or of the length that a config has."""
  if study.amount is not None:
    return {"total_examples": str(int(study.amount * share))}
  if share == 1:
    return {}
  totals = {total: config_lib.get(config, total) for total in TOTALS}
  return {
    total: str(value * share if total == "total_epochs" else max(round(value * share), 1))
    for total, value in totals.items()
    if value is not None
  }


def _texts_of_set(study: Study, overrides: Mapping[str, str]) -> dict[str, str]:
  return {field: overrides[field] for field in study.set}
