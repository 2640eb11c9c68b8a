"""A step's metrics on their way from the devices to the writers: read one step late, checked, and
given their times.
"""

from __future__ import annotations

import logging
import time

import jax
import numpy as np

from siglax import models
from siglax.devices import chips
from siglax.runs import checkpoint
from siglax.runs import digest

logger = logging.getLogger("siglax")

NORM_TOLERANCE = 0.01  # of unit embeddings; bfloat16 has 8 bits


class Log:
  """Holds a step's metrics until the next one is under way, then checks and writes them, with the
  times since.

  step_time: mean seconds a step; data_wait: share of it spent waiting for batches; host_time: mean
  CPU seconds a step of this thread, which is all the loop does but wait; mfu: `Program.model_flops`
  over what the devices could do in that time.
  """

  def __init__(self, run, writer, history, start, checkpoints, goodput, skipped, lock):
    self._run, self._writer, self._history = run, writer, history
    self._checkpoints, self._goodput, self._lock = checkpoints, goodput, lock
    self.skipped, self._in_a_row = skipped, 0
    self._pending = None
    self._first = start + 1
    self._flops = {}
    self.pause()

  def push(self, step, metrics, compiled, state):
    """Takes the metrics of the step just dispatched, and flushes those of the step before.

    compiled: whether the time since then went into compilation. state: after the step, where the
    leaf that is not finite is looked for.
    """
    self._state = state
    self.flush()
    self._pending = (step, metrics, compiled)

  def flush(self):
    """Reads, checks and writes what is pending."""
    if self._pending is None:
      return
    (step, metrics, compiled), self._pending = self._pending, None
    values = {k: float(v) for k, v in jax.device_get(metrics).items()}
    self._check_finite(step, values)
    self._steps += 1
    if compiled:
      self.pause()  # compilation is no part of the speed
    if step == self._first or self._run.due("log", step):
      if self._lock is not None:
        self._lock.check()  # after a long stop the files may be another process's
      self._writer.write(step, {**values, **self._speed(step)})
      self._history.update(step)
      self.pause()

  def pause(self):
    """Begins to measure anew: the time since the last record went into an evaluation or a save."""
    self._wait_before, self._steps = self._goodput.seconds("data_wait"), 0
    self._since, self._cpu_since = time.perf_counter(), time.thread_time()

  def _check_finite(self, step, values):
    """Stops the run where its loss or gradient is not finite, unless config.optim.skip_nonfinite
    lets the update pass.
    """
    limit, left_out = self._run.config.optim.skip_nonfinite, bool(values.pop("skipped", 0))
    # There with config.loss.check_embeddings only.
    norm_errors = {tower: values.pop(f"norm_error_{tower}", 0.0) for tower in models.TOWERS}
    self._in_a_row = self._in_a_row + 1 if left_out else 0
    if left_out and self._in_a_row <= limit:
      self.skipped += 1
      logger.warning(
        "the gradient of step %d is not finite; this update is left out, %d in all so far",
        step,
        self.skipped,
      )
    else:
      _check_embeddings(step, norm_errors)
      wrong = next((name for name in ("loss", "grad_norm") if not np.isfinite(values[name])), None)
      if wrong:
        often = (
          f", after {limit} updates left out in a row (config.optim.skip_nonfinite={limit})"
          if left_out
          else ""
        )
        leaf = digest.inspect(self._state)[1]
        where = f"; {leaf} is not finite by now" if leaf else ""
        raise FloatingPointError(
          f"{wrong}={values[wrong]} at step {step}{often}{where}; {self._checkpoints.last_good()}; "
          f"{checkpoint.ADVICE}"
        )
    if limit:
      values["skipped"] = self.skipped

  def _speed(self, step) -> dict:
    if not self._steps:
      return {}
    seconds = time.perf_counter() - self._since
    step_time, rate = seconds / self._steps, self._run.config.batch_size * self._steps / seconds
    speed = {
      "examples_per_sec": rate,
      "examples_per_sec_per_device": rate / jax.device_count(),
      "data_wait": (self._goodput.seconds("data_wait") - self._wait_before) / seconds,
      "step_time": step_time,
      "host_time": (time.thread_time() - self._cpu_since) / self._steps,
    }
    peak = chips.peak_flops(jax.devices()[0])
    if peak is not None:
      speed["mfu"] = self._step_flops(step) / (step_time * peak * jax.device_count())
    return speed

  def _step_flops(self, step) -> int:
    model = self._run.training_model(step - 1)
    if model not in self._flops:
      self._flops[model] = self._run.model_flops(step - 1)
    return self._flops[model]


def _check_embeddings(step: int, norm_errors: dict[str, float]):
  """FloatingPointError for a tower whose embeddings are not of unit length."""
  for tower, error in norm_errors.items():
    if not error < NORM_TOLERANCE:
      raise FloatingPointError(
        f"the {tower} tower's embeddings at step {step} are not finite"
        if not np.isfinite(error)
        else f"the {tower} tower's embeddings at step {step} are not of unit length: off by up to "
        f"{error:.3g}"
      )
