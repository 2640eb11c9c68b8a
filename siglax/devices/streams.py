"""Standard output and error, which fail where a pipe has lost its reader or a disk is full.

A command that prints ends in one line then (`Stdout`); a training goes on (`say`, `flush`).
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sys


class Stdout:
  """A stream for sys.stdout whose errors have the filename "stdout"."""

  def __init__(self, stream):
    self._stream = stream
    self.error = None  # the last one, for callers of code that catches it

  def write(self, text):
    return self._try(self._stream.write, text)

  def flush(self):
    return self._try(self._stream.flush)

  def _try(self, function, *arguments):
    try:
      return function(*arguments)
    except OSError as e:
      e.filename = "stdout"
      self.error = e
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


def print_table(title: str, rows):
  """Prints rows (name, value): by rich in a terminal, as plain text elsewhere."""
  print(table(title, rows))


def table(title: str, rows) -> str:
  """Rows (name, value) with a title: by rich in a terminal, as plain text elsewhere."""
  if not is_terminal(sys.stdout):
    width = max(len(name) for name, _ in rows)
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in rows)])
  from rich import box
  from rich import console
  from rich import table as table_lib

  grid = table_lib.Table(title=title, box=box.SIMPLE, show_header=False, title_justify="left")
  for row in rows:
    grid.add_row(*row)
  terminal = console.Console()
  with terminal.capture() as printed:
    terminal.print(grid)
  return printed.get().rstrip("\n")


def clock(seconds: float) -> str:
  """For example "0:01:16"."""
  return str(datetime.timedelta(seconds=round(seconds)))
