"""Keeps the tracebacks of orbax's threads off the terminal."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading

# Seconds that a loop which closes waits for its tasks.
CLOSE_SECONDS = 15


class _Loop(asyncio.SelectorEventLoop):
  """Waits for what is left of its tasks before it closes. Orbax closes a loop as soon as one of its
  many reads or writes fails; the others would then find it closed, one traceback each.
  """

  def close(self):
    if not (self.is_closed() or self.is_running()) and (left := asyncio.all_tasks(self)):
      with contextlib.suppress(Exception):
        self.run_until_complete(
          asyncio.wait_for(asyncio.gather(*left, return_exceptions=True), CLOSE_SECONDS)
        )
    super().close()


class _Policy(asyncio.DefaultEventLoopPolicy):
  def new_event_loop(self):
    return _Loop()


@functools.cache
def quiet_orbax():
  """Leaves out the tracebacks of orbax's threads and loops: what they raise reaches `Checkpoints`,
  which says it in one line.

  For the command line: it changes the whole process.
  """
  asyncio.set_event_loop_policy(_Policy())
  show = threading.excepthook
  threading.excepthook = lambda args: (
    None if type(args.thread).__module__.startswith("orbax.") else show(args)
  )
