"""Standard output and error, which fail where a pipe has lost its reader or a disk is full.

A command that prints ends in one line then (`Stdout`); a training goes on (`say`, `flush`).
"""

from __future__ import annotations

import contextlib
import os
import sys


class Stdout:
  """A stream for sys.stdout whose errors have the filename "stdout"."""

  def __init__(self, stream):
    self._stream = stream

  def write(self, text):
    return self._try(self._stream.write, text)

  def flush(self):
    return self._try(self._stream.flush)

  def _try(self, function, *arguments):
    try:
      return function(*arguments)
    except OSError as e:
      e.filename = "stdout"
      discard(self._stream)
      raise

  def __getattr__(self, name):
    return getattr(self._stream, name)


def say(text: str):
  """Prints to stdout. Where stdout fails, the text is lost and nothing else is."""
  with contextlib.suppress(OSError):
    print(text)
  flush(sys.stdout)


def flush(stream):
  """Flushes a standard stream, or None for one that was closed before the start; one that fails is
  discarded.
  """
  try:
    if stream is not None:
      stream.flush()
  except OSError:
    discard(stream)


def discard(stream):
  """Leads a stream to nowhere, with what it still holds: Python flushes it again as it ends, and
  would fail there.
  """
  nowhere = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nowhere, stream.fileno())
  os.close(nowhere)


def is_terminal(stream) -> bool:
  return stream is not None and stream.isatty()


def shown(value) -> str:
  """A path or a message as text that any terminal or file takes: bytes of a name that are no UTF-8
  are replaced.
  """
  return str(value).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
