"""Traces of a few steps, for TensorBoard or Perfetto."""

from __future__ import annotations

import logging

import jax

from siglax import config as config_lib

logger = logging.getLogger("siglax")


class Profiler:
  """Traces the steps of config.profile.steps into the run folder's profile/, on process 0."""

  def __init__(self, run, start: int):
    given = run.config.profile.steps if jax.process_index() == 0 else None
    steps = None if given is None else config_lib.step_range(given)
    if steps and steps[0] > run.total_steps:
      raise ValueError(
        f"config.profile.steps={given!r} begins after the last of {run.total_steps} steps"
      )
    # A run that resumes inside of the window traces what is left of it.
    self._first, self._last = (max(steps[0], start + 1), steps[1]) if steps else (None, None)
    self._folder, self._running = str(run.workdir / "profile"), False

  def before(self, step: int):
    """Of the step about to be dispatched."""
    if step == self._first and step <= self._last:
      jax.profiler.start_trace(self._folder)
      self._running = True

  def after(self, step: int, metrics):
    """Of the step just dispatched."""
    if self._running and step == self._last:
      jax.block_until_ready(metrics)
      self.close()

  def close(self):
    if self._running:
      self._running = False
      jax.profiler.stop_trace()
      logger.info("profile: %s", self._folder)
