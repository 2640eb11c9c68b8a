"""Signals that ask a training to end."""

from __future__ import annotations

import logging
import os
import signal
import sys

import jax

from siglax.devices import distributed

logger = logging.getLogger("siglax")


def interrupt():
  """Raises KeyboardInterrupt, as Python itself does for a SIGINT."""
  raise KeyboardInterrupt


def end_now():
  """Ends the process, for programs: an exception can be lost in a callback of a library, and
  threads keep a process.
  """
  # A terminal is told to show its cursor again.
  message = (
    "siglax: interrupted\n" if not sys.stderr.isatty() else "\x1b[?25h\nsiglax: interrupted\n"
  )
  os.write(2, message.encode())
  os._exit(130)


class StopSignals:
  """Turns SIGINT, SIGTERM and SIGHUP into `requested`, the signal's name; a second one calls
  `again`.

  Among several processes jax itself waits for SIGTERM, and `distributed.preempted` tells all of
  them at which step to end. A SIGHUP that is ignored already (nohup) stays ignored.
  """

  def __init__(self, again=interrupt):
    self.requested, self._again = "", again

  def __enter__(self):
    single = jax.process_count() == 1
    handle = self._handle if single else distributed.interrupt_all
    handlers = {signal.SIGINT: handle, signal.SIGHUP: handle} | (
      {signal.SIGTERM: handle} if single else {}
    )
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
      del handlers[signal.SIGHUP]
    self._previous = {sig: signal.signal(sig, handler) for sig, handler in handlers.items()}
    return self

  def __exit__(self, *error):
    for sig, handler in self._previous.items():
      signal.signal(sig, handler)

  def _handle(self, number, frame):
    if self.requested:
      self._again()
    self.requested = signal.Signals(number).name
    logger.warning("%s: saving after this step; again to stop at once", self.requested)
