"""Flags that commands share, and how they set the process up."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal

DATA_HELP = (
  "files, a folder or a source such as shapes, and fields of the spec: file.parquet:caption=text"
)


def add_from_flag(parser):
  parser.add_argument(
    "--from",
    dest="source",
    required=True,
    metavar="DIR",
    help="run folder, or what siglax.load takes",
  )


def add_config_flag(parser, required: bool = True):
  parser.add_argument(
    "--config",
    required=required,
    help="config file, with arguments after a colon: configs/x.py:name=value",
  )


def add_process_flags(parser):
  group = parser.add_argument_group(
    "several processes", "each with its own devices; found by itself under srun and on TPU"
  )
  group.add_argument(
    "--coordinator", metavar="HOST:PORT", help="where process 0 listens, the same for all"
  )
  group.add_argument("--processes", type=int, metavar="N", help="number of processes")
  group.add_argument("--process-id", type=int, metavar="I", help="of this one, from 0")
  group.add_argument(
    "--wait",
    type=int,
    default=300,
    metavar="SECONDS",
    help="for the others at the start (default: 300)",
  )


def job(text: str) -> tuple[int, int]:
  """(I, N) of the flag --shard I/N."""
  found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
  if not found or not int(found[1]) < int(found[2]):
    raise ValueError(f"--shard {text} must be I/N, job I of N counted from 0, such as 0/8")
  return int(found[1]), int(found[2])


def no_overrides(arguments):
  if arguments.overrides:
    raise ValueError(f"--config.{next(iter(arguments.overrides))} has no use here")


@contextlib.contextmanager
def uninterrupted():
  """Holds a SIGINT back while C++ libraries are imported: in the middle of that it crashes them, or
  is lost.
  """
  old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, old)


def import_parts(arguments):
  """Executes the files of --import: before a config is made, and, as they may compute, after jax
  knows its devices.
  """
  from siglax import config

  for name in arguments.imports:
    config.import_parts(name)


def log_to_stderr():
  """Warnings of all, and what siglax tells of its progress."""
  logging.basicConfig(format="%(message)s", level=logging.WARNING, force=True)
  logging.getLogger("siglax").setLevel(logging.INFO)


def setup(arguments):
  """Logging to stderr, memory kept between steps, compiled programs kept between runs; the
  processes joined, where there are several; and the files of --import.
  """
  with uninterrupted():
    from siglax.devices import host
    from siglax.runs import quiet
    from siglax.training import loop  # all that the commands import

    del loop

  for number in (1, 2):
    try:
      os.fstat(number)
    except OSError:
      # It takes the number of the closed stream, which a file of the run would get.
      os.open(os.devnull, os.O_WRONLY)
  log_to_stderr()
  # Orbax logs what it raises too, and siglax says that in one line.
  logging.getLogger("absl").setLevel(logging.CRITICAL)
  # Where several writes of one save fail, only the first is told.
  logging.getLogger("asyncio").setLevel(logging.CRITICAL)
  quiet.quiet_orbax()
  host.keep_freed_memory()
  host.keep_compiled_programs()
  if hasattr(arguments, "coordinator"):
    _join(arguments)
  import_parts(arguments)


def _join(arguments):
  """As one of several processes, of which the first alone reports."""
  from siglax.devices import distributed

  distributed.start(
    arguments.coordinator, arguments.processes, arguments.process_id, arguments.wait
  )
  import jax

  if jax.process_index() > 0:
    logging.getLogger("siglax").setLevel(logging.WARNING)
