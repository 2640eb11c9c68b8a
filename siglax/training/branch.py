"""A run that starts from a checkpoint of another one with its full state: config.train.branch_from.

The other run, the trunk, has the same config but for its length and the end of its schedule. Until
the step of the checkpoint the learning rates of the two are the same, and so are all steps. So the
branch is, bit for bit, the run that had been trained with its own schedule from the start.
"""

from __future__ import annotations

import logging
import pathlib
from typing import Any

import jax
import numpy as np

from siglax import config as config_lib
from siglax.runs import bucket
from siglax.runs import folder as folder_lib
from siglax.runs import stored
from siglax.training import program as program_lib

logger = logging.getLogger("siglax")
# Fields in which a branch may differ from its trunk: what they do to the steps before is checked.
FREE = ("total_", "optim.schedule", "optim.cooldown_", "train.unmasked_")


def _parts(run) -> tuple[str, int]:
  """(run folder, step) of config.train.branch_from."""
  folder, _, step = run.config.train.branch_from.rpartition("@")
  return folder, int(step)


def check(run) -> tuple[dict, pathlib.Path]:
  """(metadata of the checkpoint, the trunk's folder). ValueError in one line where there is no such
  checkpoint, or where the steps before it are not those of `run`.
  """
  given, step = _parts(run)
  field, folder = f"config.train.branch_from={run.config.train.branch_from}", bucket.opened(given)
  checkpoints = stored.Stored(folder)
  there, steps = folder_lib.trained_config(folder), checkpoints.found()
  if there is None or step not in steps:
    has = f"has those of steps {', '.join(map(str, steps))}" if steps else "has none"
    raise ValueError(f"{field}: there is no checkpoint of step {step}; {given} {has}")
  try:
    meta = checkpoints.meta(step)
  except stored.Damaged as e:
    raise ValueError(f"{field}: the checkpoint of step {step} is damaged: {e}") from e
  different = [
    line for line in config_lib.differences(there, run.config) if not line.startswith(FREE)
  ]
  if different:
    raise ValueError(f"{field} is a run of another config: {'; '.join(different)}")
  _check_steps(run, program_lib.Program(there, run.epoch_examples), step, field)
  return meta, folder


def _check_steps(run, trunk: program_lib.Program, step: int, field: str):
  """ValueError where one of the first `step` steps of the two runs is not the same."""
  if step >= run.total_steps:
    raise ValueError(
      f"{field}: step {step} is not before the end of this run of {run.total_steps} steps; raise "
      "config.total_*"
    )
  if min(trunk.masked_steps, step) != min(run.masked_steps, step):
    raise ValueError(
      f"{field}: its steps from {trunk.masked_steps + 1} on saw all patches, this run's from "
      f"{run.masked_steps + 1} on; start from an earlier step, or set config.train.unmasked_*"
    )
  numbers = np.arange(step)
  then, now = (np.asarray(jax.vmap(made.schedule)(numbers)) for made in (trunk, run))
  if (other := np.flatnonzero(then != now)).size:
    k = int(other[0])
    raise ValueError(
      f"{field}: the learning rate of step {k + 1} was {then[k]:.4g} there and is {now[k]:.4g} "
      f"here; start from step {k} or before, or set config.optim.schedule and "
      "config.optim.cooldown_* so that they are the same until then"
    )
  if run.gamma is not None:
    then, now = (np.asarray(jax.vmap(made.gamma)(numbers)) for made in (trunk, run))
    if (then != now).any():
      raise ValueError(
        f"{field}: γ fell there over config.loss.gamma_decay of {trunk.total_steps} steps, and "
        f"here of {run.total_steps}; set config.loss.gamma_decay=0, or start without a branch"
      )


def restore(run) -> tuple[Any, dict[str, Any]]:
  """(state, metadata) of the checkpoint that `run` starts from. Global view: all processes call it
  together.
  """
  given, step = _parts(run)
  found = stored.Stored(bucket.opened(given)).restore(run.abstract_state, before=step + 1)
  state, meta = found or (None, {"step": None})
  if meta["step"] != step:
    raise ValueError(
      f"config.train.branch_from={run.config.train.branch_from}: the checkpoint of step {step} is "
      f"damaged; the one before it is of step {meta['step']}"
    )
  logger.info("starts from step %d of %s, with its full state", step, given)
  return state, meta
