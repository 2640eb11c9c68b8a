"""Where the wall time of a run goes: the share of each phase, of which only the steps are worth
paying for.
"""

from __future__ import annotations

import contextlib
import time

# init: opening data, making or restoring the state. compile: the first step. step: all else between
# two batches.
PHASES = ("init", "compile", "data_wait", "step", "evaluation", "checkpoint")


class Goodput:
  """One phase at a time; starts in "init"."""

  def __init__(self):
    self._seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
    self._phase, self._since = "init", time.perf_counter()

  def enter(self, phase: str):
    """Ends the phase at hand and begins another."""
    now = time.perf_counter()
    self._seconds[self._phase] += now - self._since
    self._phase, self._since = phase, now

  @contextlib.contextmanager
  def during(self, phase: str):
    """A with block in a phase of its own."""
    outer = self._phase
    self.enter(phase)
    try:
      yield
    finally:
      self.enter(outer)

  def seconds(self, phase: str) -> float:
    """Of what has ended."""
    return self._seconds[phase]

  def totals(self) -> dict[str, float]:
    """Seconds in each phase since the start."""
    self.enter(self._phase)
    return dict(self._seconds)

  def shares(self) -> dict[str, float]:
    """{"goodput/init": …}: shares of the time since the start; they add up to 1."""
    seconds = self.totals()
    return {f"goodput/{phase}": s / sum(seconds.values()) for phase, s in seconds.items()}
