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
import threading
import time

import jax
import numpy as np
import orbax.checkpoint as ocp

from siglax.config import values
from siglax.devices import distributed
from siglax.devices import errors
from siglax.runs import bucket
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
# Where siglax 0.1 put the metrics of an evaluation.
OLD_METRICS = "metrics/metrics"
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
    self._unreachable = False  # the last save failed because its server did
    # Folders made in the background would leave a failed mkdir waiting for SAVE_SECONDS, and each
    # process of a bucket's run would write as soon as the first of them had made its own.
    options = ocp.options.AsyncOptions(
      timeout_secs=SAVE_SECONDS, create_directories_asynchronously=False
    )
    self._saver = ocp.AsyncCheckpointer(
      self._place.handler(options),
      async_options=options,
      multiprocessing_options=self._place.processes(),
    )

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
      if delay is None or self._unreachable:
        advice = "make room on the disk" if not self._unreachable else self._kept(step)
        raise ValueError(
          f"the checkpoint of step {step} could not be saved; {self.last_good()}; {advice}"
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
        saved = self._place.saved(self._pending)
      # pylint: disable=broad-exception-caught; orbax passes on whatever a disk raises
      except Exception as e:
        self._fail(e)
      else:
        if saved:
          self._committed()
    return self._again

  def last_good(self) -> str:
    """In words, for messages; waits for a save that is under way."""
    if self._pending is not None:
      self.wait()
    try:
      good = [self._last][: self._last] if self._unreachable else self.good
    except OSError as e:
      return f"{self._place.name} cannot be read now: {e.strerror or e}"
    return (
      f"the last good checkpoint is of step {good[-1]}" if good else "there is no good checkpoint"
    )

  def wait(self):
    """Returns when what was saved is on disk, or has failed and that is logged."""
    try:
      self._settle()
    except ValueError as e:
      logger.warning("%s", e)

  def restore(self, abstract_state, before: int | None = None):
    restored = super().restore(abstract_state, before)
    self._place.drop(self._last)  # the training needs the room
    return restored

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
      self._place.prepare()
    except OSError as e:
      raise ValueError(
        f"{self._place.name} cannot be written: {e.strerror or e}; use another --workdir"
      ) from e

  def _start(self, step, state, meta):
    """One attempt of a save. A damaged checkpoint of the same step moves aside first, and back
    where the attempt fails.
    """
    self._again, self._pending = False, step
    try:
      if step in self._damaged and jax.process_index() == 0:
        self._aside = self._move_aside(step)
      if self._config.verify and distributed.of_first(self._place.exists(step)):
        # the attempt before is on the disk but could not be read back: only that is tried again
        return
      pieces = self._place.pieces(state)
      items = {"state": ocp.args.PyTreeSave(state, pieces), "meta": ocp.args.JsonSave(meta)}
      self._saver.save(self._place.staging / str(step), args=ocp.args.Composite(**items))
    # pylint: disable=broad-exception-caught; orbax passes on whatever a disk raises
    except Exception as e:
      self._fail(e)

  def _settle(self):
    """Waits for the save that is under way and notes how it has ended."""
    if self._pending is None:
      return
    try:
      self._saver.wait_until_finished()
      self._place.settle(self._pending)
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
      if self._aside is not None:
        self._place.move_back(self._aside, step)
    self._aside = None
    self._unreachable = isinstance(error, errors.Unreachable)
    self._failed += 1
    self._again = self._failed % 2 == 1
    if jax.process_count() > 1:  # the others wait for this process in the middle of the same save
      raise ValueError(
        f"the checkpoint of step {step} failed: {values.one_line(error)}; {self.last_good()}"
      ) from error
    saves, most = self._failed // 2, self._config.max_failed_saves
    ends = saves > most or self._ending and self._unreachable
    if not ends:
      with contextlib.suppress(OSError):
        self._place.sweep(step)
    logger.warning(
      "the checkpoint of step %d failed, attempt %d in a row: %s; %s%s",
      step,
      self._failed,
      values.one_line(error),
      self.last_good(),
      "" if self._ending else "; training goes on",
    )
    if saves > most and not self._ending:
      raise ValueError(
        f"{saves} saves in a row have failed, each tried twice, more than "
        f"config.checkpoint.max_failed_saves={most}: "
        f"{values.one_line(error)}; {self.last_good()}"
        + (f"; {self._kept(step)}" if self._unreachable else "")
      )

  def _kept(self, step: int) -> str:
    """Where what could not be uploaded stays, in words."""
    bucket.keep(self._place.staging.parent)
    kept = self._place.staging / str(step)
    return f"what was to be uploaded is in {kept}: copy it to {self._place.name}/{step}"

  def _committed(self):
    """Called once a save is on disk: damaged checkpoints move aside, and those that no rule keeps
    are deleted.

    With config.checkpoint.verify the checkpoint is read back first; one that cannot be, or is
    damaged, is a save that failed.
    """
    try:
      if self._config.verify:
        self._verify(self._pending)
        self._place.drop(self._pending)
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
    self._unreachable = False
    damaged, self._damaged = [step for step in self._damaged if step != self._last], []
    if jax.process_index() > 0:
      return
    try:
      for step in damaged:
        self._move_aside(step)
      gone = [self._place.hide(step) for step in self._unneeded()]
    except OSError as e:
      logger.warning("%s: old checkpoints stay: %s", self._place.name, values.one_line(e))
      return
    if self._deleting is not None:
      self._deleting.join()
    self._deleting = threading.Thread(target=lambda: [remove() for remove in gone], daemon=True)
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
      if metrics is None and self._place.exists(step, OLD_METRICS):
        metrics = json.loads(self._place.read(step, OLD_METRICS))
      value = (metrics or {}).get(self._config.keep_best)
      score = -np.inf if value is None else self._sign * float(value)
    except (OSError, ValueError, TypeError, AttributeError, stored.Damaged):
      return None
    return -np.inf if np.isnan(score) else score

  def _move_aside(self, step) -> str:
    names = (f"damaged-{step}{suffix}" for suffix in ("", *(f"-{i}" for i in range(1, 1000))))
    aside = next(name for name in names if not self._place.taken(name))
    path = self._place.move(step, aside)
    logger.warning("the damaged checkpoint of step %d is now %s", step, path)
    return aside

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
