"""Whether a training may begin, or go on, in its run folder."""

from __future__ import annotations

import logging
import os

import jax
import numpy as np

from siglax import config as config_lib
from siglax import data as data_lib
from siglax.devices import distributed
from siglax.runs import bucket
from siglax.runs import bucket_lock
from siglax.runs import folder as folder_lib
from siglax.runs import history as history_lib
from siglax.runs import imports
from siglax.runs import lock as lock_lib
from siglax.runs import stored
from siglax.training import branch
from siglax.training import program as program_lib

logger = logging.getLogger("siglax")


def check_imports(workdir):
  """ValueError when the run folder holds checkpoints made with files that were not imported, or
  that are others now.
  """
  if stored.Stored(workdir).found():
    if bucket.url_of(workdir) is not None:
      bucket.mirror(workdir).pull()
    imports.check(workdir, same=True)


def check_folder(run, extend: bool = False):
  """ValueError when the run folder holds checkpoints of another config.

  A longer total is no other config where it changes nothing of the steps that the newest checkpoint
  has behind it: with a constant or rsqrt schedule, before its cooldown and before the steps that
  see all patches. extend: allows a longer total in any case.
  """
  checkpoints = stored.Stored(run.workdir)
  meta = checkpoints.newest_meta()
  steps = checkpoints.found()
  if not steps:
    if saved := max(
      (start.get("saved") or 0 for start in history_lib.read(run.workdir)), default=0
    ):
      raise ValueError(
        f"--workdir {run.shown}: the run there saved step {saved}, but checkpoints/ is empty "
        "now; bring it back (is it "
        f"mounted?), use another --workdir, or remove {history_lib.FILE} to begin again"
      )
    if run.config.train.branch_from is not None:
      meta, trunk = branch.check(run)
      _check_data(run, meta, trunk, f"config.train.branch_from={run.config.train.branch_from}")
    return
  if meta and "average" in meta:
    raise ValueError(
      f"--workdir {run.workdir} holds an average of other runs, which has no optimizer state to go "
      f"on with; use another --workdir, and config.model.init_from={run.workdir}"
    )
  there = folder_lib.trained_config(run.workdir)
  different = config_lib.differences(there, run.config)
  other = [line for line in different if not line.startswith("total_")]
  if other:
    raise ValueError(
      f"--workdir {run.shown} holds a run of another config: {'; '.join(other)}; "
      "use another --workdir, or the same values to resume"
    )
  _check_data(run, meta or {}, run.workdir, f"--workdir {run.shown}")
  if different:
    _check_longer(run, program_lib.Program(there, run.epoch_examples), max(steps), extend)


def _check_data(run, meta: dict, folder, shown: str):
  """ValueError for data, a tokenizer or an order of the examples that the steps so far were not
  trained with. meta: of their checkpoint, or {}; folder: of the run; shown: it, in messages.
  """
  data = meta.get("data", {})
  for k, (then, now) in enumerate(zip(data.get("examples") or (), map(len, run.sources))):
    if then != now:
      raise ValueError(
        f"config.data.{k} has {now:,} examples, and had {then:,} when the run in {shown} was "
        "trained: its "
        "batches would be others; give the same data, or use another --workdir"
      )
  kept = folder_lib.other_tokenizer(folder, run.text)
  if kept is not None:
    raise ValueError(
      f"config.text.tokenizer={run.config.text.tokenizer!r} is another model than {kept}, which "
      "the run was trained with; "
      "give that one, or use another --workdir"
    )
  if meta and not run.config.loader.allow_new_order:
    _check_order(run, meta["step"], data.get("order"), shown)


def _check_order(run, step: int, then: dict[str, str] | None, shown: str):
  """ValueError where the examples after the checkpoint of `step` are not those that would have come
  then. then: `data.Fingerprint` of that time; None in a checkpoint of before there was one.
  """
  now = data_lib.Fingerprint(run.config, run.sources)(step)
  if then is not None and then["examples"] != now["examples"]:
    versions = f" (grain {then['grain']} then, {now['grain']} now)"
    raise ValueError(
      f"the examples after step {step} would be others than when the run in {shown} was "
      f"trained{versions * (then['grain'] != now['grain'])}; give the same data "
      "and versions, or go on with new ones by --config.loader.allow_new_order=True"
    )


def _check_longer(run, there: program_lib.Program, step: int, extend: bool):
  """there: the program of the run in the folder, whose newest checkpoint is of `step`."""
  lengths = (
    f"the run in --workdir {run.shown} is of {there.total_steps} steps, this one of "
    f"{run.total_steps}"
  )
  if run.total_steps < max(step, there.total_steps):
    raise ValueError(
      f"{lengths}; a run can only be made longer: raise config.total_steps, or use another "
      "--workdir"
    )
  rates = [float(made.schedule(step)) for made in (there, run)]
  if rates[0] != rates[1] or there.schedule_end < step:
    changes = (
      f"at step {step} the learning rate goes from {rates[0]:.3g} to {rates[1]:.3g}, and the steps "
      "before it followed the "
      f"shorter schedule (config.optim.schedule={run.config.optim.schedule!r})"
    )
  elif there.gamma is not None and any(
    there.gamma(s) != run.gamma(s) for s in np.linspace(0, step, 9)
  ):
    changes = "γ of the steps before it fell over config.loss.gamma_decay of the shorter length"
  elif there.masked_steps < step:
    changes = (
      f"the steps from {there.masked_steps + 1} on saw all patches (config.train.unmasked_*)"
    )
  else:
    changes = None
  if changes and not extend:
    raise ValueError(
      f"{lengths}: {changes}; give --extend to go on all the same, or use another --workdir"
    )
  logger.warning(
    "%s; it goes on from step %d, where the learning rate goes from %.3g to %.3g",
    lengths,
    step,
    *rates,
  )


def _unwritable(run, error: OSError) -> ValueError:
  of = f"{error.filename}: " if error.filename and str(error.filename) != str(run.workdir) else ""
  return ValueError(
    f"--workdir {run.shown} cannot be written: {of}{error.strerror or error}; use another folder"
  )


def check_shared(run, lock):
  """ValueError on all processes where one of them sees another folder than process 0: its part of
  each save would be missing.
  """
  if jax.process_count() > 1:
    key = distributed.of_first(lock and lock.key)
    if distributed.any_has(not bucket_lock.sees(run.workdir, key))[0]:
      raise ValueError(
        f"--workdir {run.shown} is not the same folder in all processes; give one on a file system "
        "that they share"
      )


def write_files(run):
  """config.json and the tokenizer of the run folder; ValueError where it cannot be written."""
  try:
    folder_lib.write(run.workdir, run.config, run.text)
  except OSError as e:
    raise _unwritable(run, e) from e


def take(run, extend: bool) -> lock_lib.Lock:
  """Takes the lock of the run folder, checks what is there, and writes what tells of the run;
  process 0 does it.
  """
  try:
    str(run.workdir).encode()
  except UnicodeError as e:  # orbax takes no other name, and would say so at the first save
    raise ValueError(
      f"--workdir {os.fsencode(run.workdir)!r} is not UTF-8, or the locale is not; use another "
      "name, or LC_ALL=C.UTF-8"
    ) from e
  try:
    run.workdir.mkdir(parents=True, exist_ok=True)
    lock = bucket_lock.take(run.workdir)
  except OSError as e:
    raise _unwritable(run, e) from e
  try:
    if bucket.url_of(run.workdir) is not None:
      bucket.mirror(run.workdir).pull()
    check_folder(run, extend)
    write_files(run)
  except BaseException:
    lock.release()
    raise
  return lock
