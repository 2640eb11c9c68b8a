"""The command line: `siglax COMMAND`. siglax/commands/__init__.py lists the commands; each has
--help.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import os
import sys

from siglax import __version__
from siglax.commands import COMMANDS
from siglax.devices import streams

END_SECONDS = 20  # of a command that failed
# Flags that take a path, and the folder of siglax report, which has no flag; and the names of their
# arguments.
PATHS = {
  "--workdir": "workdir",
  "--from": "source",
  "--out": "out",
  "--html": "html",
  "DIR": "study",
}
INTERRUPTED = 130  # exit code


def main(arguments: list[str] | None = None) -> int:
  """Runs a command; a wrong input, or a file or pipe that fails, prints one line and returns 1."""
  # Closed by whoever started this: the next file to be opened would take its place.
  if sys.stdout is None:
    sys.stdout = open(os.devnull, "w")
  with contextlib.redirect_stdout(streams.Stdout(sys.stdout)) as stdout:
    try:
      try:
        return _main(arguments)
      finally:
        stdout.flush()
    except SystemExit:
      if stdout.error is None:
        raise
      return _failed("siglax", stdout.error)  # argparse catches it when it prints
    except OSError as e:
      return _failed("siglax", e)


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
  """The `command`, what is given of its own flags, and the other words."""
  parser = argparse.ArgumentParser(
    prog="siglax", description="Contrastive image-text training (SigLIP, CLIP) in JAX."
  )
  parser.add_argument("--version", action="version", version=f"siglax {__version__}")
  commands = parser.add_subparsers(required=True, metavar="command")
  for command in COMMANDS:
    of_command = commands.add_parser(
      command.name, help=command.help, description=command.description, epilog=command.epilog
    )
    command.add_arguments(of_command)
    of_command.add_argument(
      "--import",
      dest="imports",
      action="append",
      default=[],
      metavar="FILE.py",
      help="file, or module, that registers parts of your own, such as a loss; may be repeated",
    )
    of_command.set_defaults(command=command)
  return parser.parse_known_args(arguments)


def _main(arguments):
  known, rest = parse(arguments)
  try:
    known.overrides = overrides(rest)
    _check_paths(known)
    known.command.run(known)
  except KeyboardInterrupt:
    print(f"siglax {known.command.name}: interrupted", file=sys.stderr)
    return INTERRUPTED
  except (ValueError, FloatingPointError) as e:
    return _say(known.command.name, " ".join(str(e).splitlines()))
  except OSError as e:
    return _failed(f"siglax {known.command.name}", e)
  except MemoryError as e:
    return _without_memory(known.command.name, e)
  except RuntimeError as e:
    from siglax.config import values
    from siglax.devices import errors

    if str(e) == "can't start new thread":
      return _without_memory(known.command.name, e)
    if not errors.is_lost_process(e):
      raise
    return _say(
      known.command.name,
      "another process of this group has ended or cannot be reached; look at its output: "
      f"{values.one_line(e)}",
    )
  return 0


def _say(command: str, error: str) -> int:
  print(f"siglax {command}: {error}", file=sys.stderr)
  return 1


def _without_memory(command: str, error: Exception) -> int:
  said = " ".join(str(error).splitlines()) or "no memory is left"
  return _say(
    command,
    f"{said}; give this process more memory or threads (ulimit -v and -u, or the container's "
    "limits), or let it take fewer: smaller batches, fewer threads and workers",
  )


def _failed(name: str, error: OSError) -> int:
  """Prints one line, but where the reader of what is printed has left, as `| head` does."""
  if not (isinstance(error, BrokenPipeError) and error.filename == "stdout"):
    where = "" if error.filename is None else f"{error.filename}: "
    print(f"{name}: {where}{error.strerror or error}", file=sys.stderr)
  return 1


def _check_paths(arguments):
  """ValueError for a path that is empty, or a URL where the command takes none."""
  from siglax import config

  for flag, name in PATHS.items():
    if (path := getattr(arguments, name, None)) is not None:
      check = config.check_path if name in arguments.command.urls else config.check_local
      check(flag, path)


def entry() -> int:
  """`main` as a program: one that fails ends within END_SECONDS, whatever its threads still wait
  for.
  """
  code = 1  # of an error that nobody foresaw, whose traceback Python prints
  try:
    code = main()
  finally:
    if code == INTERRUPTED:
      sys.stderr.flush()
      os._exit(code)  # a program that XLA compiles in a thread would crash with the interpreter
    if code:
      _end_within(END_SECONDS)
  return code


def _end_within(seconds: float):
  """Ends this process with code 1 after so many seconds, unless it has ended before."""
  # Not by a thread of Python's: it needs memory, and Python's lock.
  with contextlib.suppress(RuntimeError, OSError):
    faulthandler.dump_traceback_later(seconds, exit=True, file=open(os.devnull, "w"))


def overrides(rest: list[str]) -> dict[str, str]:
  """{"optim.lr": "3e-4"} of ["--config.optim.lr=3e-4"] or of its two halves as two words."""
  given, words = {}, iter(rest)
  for word in words:
    name, equals, value = word.partition("=")
    if not name.startswith("--config."):
      raise ValueError(f"{word} is unknown; fields are set as --config.optim.lr=3e-4")
    if not equals and (value := next(words, None)) is None:
      raise ValueError(f"{word} has no value; write {word}=value")
    given[name.removeprefix("--config.")] = value
  return given


if __name__ == "__main__":
  sys.exit(entry())
