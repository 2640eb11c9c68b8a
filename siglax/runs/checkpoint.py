"""Saving the checkpoints of a run: state, data position, config and digest, written by orbax.

A save runs in the background and appears whole or not at all. Two rules keep what is good:

- A state that is not finite is never saved.
- A damaged checkpoint is never deleted. It is moved aside, to damaged-<step>, once a later save has
  succeeded.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pathlib
import shutil
import threading
import time

import jax
import numpy as np
import orbax.checkpoint as ocp

from siglax.config import values
from siglax.devices import distributed
from siglax.devices import errors
from siglax.runs import digest as digest_lib
from siglax.runs import stored

logger = logging.getLogger("siglax")
# A save that takes longer than this has failed.
SAVE_SECONDS = 1200
POLL_SECONDS = 0.5
# Seconds that the end of a run waits for a save after one that failed.
CLOSE_SECONDS = 15
# Bytes of the state that `config.checkpoint.verify` reads back at a time.
VERIFY_BYTES = 2**28
# What a message about a state that is not finite advises.
ADVICE = (
  "set config.optim.skip_nonfinite to leave such updates out and start again, or lower "
  "config.optim.lr or set config.optim.clip_norm in a new --workdir"
)


class Checkpoints(stored.Stored):
  """The checkpoints of one run folder, to read and to write. Global view: all processes call every
  method together.

  folder: the run folder. config: `config.checkpoint`, which says what is kept. every: steps between
  two saves, or None. lower_is_better: whether the best checkpoint is the one with the lowest value
  of the metric config.checkpoint.keep_best. Only one process group may write into a folder at a
  time (siglax/runs/lock.py).
  """

  def __init__(self, folder, config, every: int | None = None, lower_is_better: bool = False):
    super().__init__(folder)  # whose _last is also the step of the last save that succeeded
    self._config, self._every, self._sign = config, every, -1 if lower_is_better else 1
    self._aside = None  # where a damaged checkpoint of the step that is being saved has gone
    self._pending: int | None = None  # step of the save that is under way
    self._saved = None  # the shapes of its state
    self._again = False  # the last save failed and has not been tried again
    self._failed = 0  # saves in a row that failed, their second attempts included
    self._ending = False  # the save that is under way is the run's last
    self._deleting, self._next_poll = None, 0.0
    distributed.on_first(self._prepare)
    handler = ocp.CompositeCheckpointHandler(
      state=ocp.PyTreeCheckpointHandler(), meta=ocp.JsonCheckpointHandler()
    )
    # Folders made in the background would leave a failed mkdir waiting for SAVE_SECONDS.
    options = ocp.options.AsyncOptions(
      timeout_secs=SAVE_SECONDS, create_directories_asynchronously=False
    )
    self._saver = ocp.AsyncCheckpointer(handler, async_options=options)

  @property
  def newest(self) -> int:
    """The step that was saved or restored last, 0 for none; its save may still be under way. The
    same on all processes.
    """
    return self._pending or self._last

  @property
  def on_disk(self) -> int:
    """The step of the last save that succeeded, or of what was restored; 0 for none."""
    return self._last

  def save(self, step: int, state, meta: dict, metrics: dict | None = None, *, last: bool = False):
    """Saves in the background. meta: what JSON can hold. metrics: of an evaluation of this state,
    for keep_best.

    last: returns when the checkpoint is on disk, after a few attempts. Without it a save that fails
    is logged, and `poll` asks for it again. Raises FloatingPointError for a state that is not
    finite, and ValueError when more than config.checkpoint.max_failed_saves saves in a row have
    failed, or the last one.
    """
    self._settle()
    self._ending = last
    self._saved = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    sums, bad = digest_lib.inspect(state)
    if bad is not None:
      raise FloatingPointError(
        f"{bad} is not finite after step {step}; {self.last_good()}; {ADVICE}"
      )
    meta = {**meta, "step": step, "digest": sums, "metrics": metrics}
    meta["sha256"] = stored.sha256_of(meta)
    for delay in (*errors.RETRY_SECONDS[1:], None) if last else (None,):
      self._start(step, state, meta)
      if last or self._config.verify:
        self._settle()
      if not last or self._last == step:
        return
      if delay is None:
        raise ValueError(
          f"the checkpoint of step {step} could not be saved; {self.last_good()}; make room on the "
          "disk"
        )
      time.sleep(delay)

  def poll(self) -> bool:
    """Notes how the save in the background has ended; whether it failed and is to be made again.
    Ask at every step.
    """
    if self._pending is not None and time.monotonic() >= self._next_poll:
      self._next_poll = time.monotonic() + POLL_SECONDS
      try:
        self._saver.check_for_errors()
      # pylint: disable=broad-exception-caught; orbax passes on whatever a disk raises
      except Exception as e:
        self._fail(e)
      else:
        # False also where the disk does not answer now.
        if os.path.exists(self._path / str(self._pending)):
          self._committed()
    return self._again

  def last_good(self) -> str:
    """In words, for messages; waits for a save that is under way."""
    if self._pending is not None:
      self.wait()
    try:
      good = self.good
    except OSError as e:
      return f"{self._path} cannot be read now: {e.strerror}"
    return (
      f"the last good checkpoint is of step {good[-1]}" if good else "there is no good checkpoint"
    )

  def wait(self):
    """Returns when what was saved is on disk, or has failed and that is logged."""
    try:
      self._settle()
    except ValueError as e:
      logger.warning("%s", e)

  def close(self):
    """Waits for what runs in the background: a save at most SAVE_SECONDS, after one that failed at
    most CLOSE_SECONDS.
    """
    closing = threading.Thread(target=self._close, daemon=True)
    closing.start()
    closing.join(CLOSE_SECONDS if self._failed else SAVE_SECONDS)

  def _close(self):
    self.wait()
    try:
      self._saver.close()
    # pylint: disable=broad-exception-caught; a run that ends has been told of it
    except Exception as e:
      logger.warning("closing the checkpoints: %s", values.one_line(e))
    if self._deleting is not None:
      self._deleting.join()

  def _prepare(self):
    """Makes the folder, and removes what a killed process left unfinished."""
    try:
      self._path.mkdir(parents=True, exist_ok=True)
      self._sweep()
    except OSError as e:
      raise ValueError(
        f"{self._path} cannot be written: {e.strerror}; use another --workdir"
      ) from e

  def _sweep(self, step: int | None = None):
    """Removes what was left unfinished: of a step's save, or all, where no other process may be at
    work.
    """
    for p in self._path.iterdir():
      unfinished = p.name.partition(".orbax-checkpoint-tmp")
      if (
        unfinished[1]
        and step in (None, int(unfinished[0]))
        or step is None
        and p.name.startswith(".deleting-")
      ):
        shutil.rmtree(p, ignore_errors=True)

  def _start(self, step, state, meta):
    """One attempt of a save. A damaged checkpoint of the same step moves aside first, and back
    where the attempt fails.
    """
    self._again, self._pending = False, step
    try:
      if step in self._damaged and jax.process_index() == 0:
        self._aside = self._move_aside(step)
      if self._config.verify and distributed.of_first((self._path / str(step)).exists()):
        # the attempt before is on the disk but could not be read back: only that is tried again
        return
      items = {"state": ocp.args.PyTreeSave(state), "meta": ocp.args.JsonSave(meta)}
      self._saver.save(self._path / str(step), args=ocp.args.Composite(**items))
    # pylint: disable=broad-exception-caught; orbax passes on whatever a disk raises
    except Exception as e:
      self._fail(e)

  def _settle(self):
    """Waits for the save that is under way and notes how it has ended."""
    if self._pending is None:
      return
    try:
      self._saver.wait_until_finished()
    # pylint: disable=broad-exception-caught; orbax passes on whatever a disk raises
    except Exception as e:
      self._fail(e)
    else:
      self._committed()

  def _fail(self, error):
    """Counts a save that failed. `poll` asks for it again at the next step; the save after that is
    the next one due.
    """
    step, self._pending = self._pending, None
    with contextlib.suppress(OSError):
      if self._aside is not None and not (self._path / str(step)).exists():
        self._aside.rename(self._path / str(step))
    self._aside = None
    self._failed += 1
    self._again = self._failed % 2 == 1
    if jax.process_count() > 1:  # the others wait for this process in the middle of the same save
      raise ValueError(
        f"the checkpoint of step {step} failed: {values.one_line(error)}; {self.last_good()}"
      ) from error
    with contextlib.suppress(OSError):
      self._sweep(step)
    logger.warning(
      "the checkpoint of step %d failed, attempt %d in a row: %s; %s%s",
      step,
      self._failed,
      values.one_line(error),
      self.last_good(),
      "" if self._ending else "; training goes on",
    )
    saves, most = self._failed // 2, self._config.max_failed_saves
    if saves > most and not self._ending:
      raise ValueError(
        f"{saves} saves in a row have failed, each tried twice, more than "
        f"config.checkpoint.max_failed_saves={most}: "
        f"{values.one_line(error)}; {self.last_good()}"
      )

  def _committed(self):
    """Called once a save is on disk: damaged checkpoints move aside, and those that no rule keeps
    are deleted.

    With config.checkpoint.verify the checkpoint is read back first; one that cannot be, or is
    damaged, is a save that failed.
    """
    try:
      if self._config.verify:
        self._verify(self._pending)
    except (stored.Damaged, ValueError) as e:
      if isinstance(e, stored.Damaged):
        try:
          distributed.on_first(lambda: self._move_aside(self._pending))
        except (OSError, ValueError):
          self._damaged.append(self._pending)  # the next save that succeeds moves it
      self._fail(e)
      return
    self._last, self._pending, self._aside, self._again, self._failed = (
      self._pending,
      None,
      None,
      False,
      0,
    )
    damaged, self._damaged = [step for step in self._damaged if step != self._last], []
    if jax.process_index() > 0:
      return
    try:
      for step in damaged:
        self._move_aside(step)
      gone = [self._hide(step) for step in self._unneeded()]
    except OSError as e:
      logger.warning("%s: old checkpoints stay: %s", self._path, values.one_line(e))
      return
    if self._deleting is not None:
      self._deleting.join()
    self._deleting = threading.Thread(
      target=lambda: [shutil.rmtree(p, ignore_errors=True) for p in gone], daemon=True
    )
    self._deleting.start()

  def _unneeded(self) -> list[int]:
    """Steps that no rule of config.checkpoint keeps."""
    c, steps = self._config, self.steps
    kept = set(steps[-c.keep_latest :])
    spans = [c.keep_every_steps, c.keep_one_in and self._every and c.keep_one_in * self._every]
    kept |= {step for step in steps for span in spans if span and step % span == 0}
    if c.keep_best is not None:
      scores = {step: self._score(step) for step in steps}
      kept |= {step for step, score in scores.items() if score is None}  # could not be read
      known = {step: score for step, score in scores.items() if score is not None}
      kept.add(max(known, key=known.__getitem__, default=steps[-1]))
    return [step for step in steps if step not in kept]

  def _score(self, step) -> float | None:
    """The metric of config.checkpoint.keep_best, or its negative where lower is better. −inf for a
    step that was not evaluated, None for one that cannot be read.
    """
    try:
      metrics = self.meta(step).get("metrics")
      # Where siglax 0.1 put them.
      if metrics is None and (old := self._path / str(step) / "metrics" / "metrics").exists():
        metrics = json.loads(old.read_bytes())
      value = (metrics or {}).get(self._config.keep_best)
      score = -np.inf if value is None else self._sign * float(value)
    except (OSError, ValueError, TypeError, AttributeError, stored.Damaged):
      return None
    return -np.inf if np.isnan(score) else score

  def _move_aside(self, step) -> pathlib.Path:
    names = (f"damaged-{step}{suffix}" for suffix in ("", *(f"-{i}" for i in range(1, 1000))))
    aside = next(p for p in map(self._path.joinpath, names) if not p.exists())
    (self._path / str(step)).rename(aside)
    logger.warning("the damaged checkpoint of step %d is now %s", step, aside)
    return aside

  def _hide(self, step) -> pathlib.Path:
    """Renames a checkpoint for its deletion, so that none is ever there in part."""
    hidden = self._path / f".deleting-{step}"
    (self._path / str(step)).rename(hidden)
    return hidden

  def _verify(self, step):
    """Reads a checkpoint back, some leaves at a time. Raises as `_read` does."""
    leaves, tree = jax.tree.flatten(self._saved)
    groups, size = [[]], 0
    for i, leaf in enumerate(leaves):
      size += leaf.size * leaf.dtype.itemsize
      if size > VERIFY_BYTES and groups[-1]:
        groups, size = [*groups, []], leaf.size * leaf.dtype.itemsize
      groups[-1].append(i)
    for group in groups:
      self._read(
        step,
        jax.tree.unflatten(
          tree, [leaf if i in group else ocp.PLACEHOLDER for i, leaf in enumerate(leaves)]
        ),
      )
