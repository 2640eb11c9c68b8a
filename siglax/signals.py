"""Signals that ask a training to end."""

from __future__ import annotations

import logging
import signal

import jax

from siglax import processes

logger = logging.getLogger("siglax")

GRACE_SECONDS = 3  # of a process that was interrupted twice


class StopSignals:
  """Turns SIGINT, SIGTERM and SIGHUP into `requested`, the signal's name; a second one ends the process at once.

  Among several processes jax itself waits for SIGTERM, and `checkpoint.preempted` tells all of them at which step to end.
  A SIGHUP that is ignored already (nohup) stays ignored.
  """

  def __init__(self):
    self.requested = ""

  def __enter__(self):
    single = jax.process_count() == 1
    handle = self._handle if single else processes.interrupt_all
    handlers = {signal.SIGINT: handle, signal.SIGHUP: handle} | ({signal.SIGTERM: handle} if single else {})
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
      del handlers[signal.SIGHUP]
    self._previous = {sig: signal.signal(sig, handler) for sig, handler in handlers.items()}
    return self

  def __exit__(self, *error):
    for sig, handler in self._previous.items():
      signal.signal(sig, handler)

  def _handle(self, number, frame):
    if self.requested:
      processes.end_within(GRACE_SECONDS, 130)  # where a library swallows the interrupt
      raise KeyboardInterrupt
    self.requested = signal.Signals(number).name
    logger.warning("%s: saving after this step; again to stop at once", self.requested)
