"""What a command of the command line is."""

from __future__ import annotations

import argparse
from collections.abc import Callable
import dataclasses


@dataclasses.dataclass(frozen=True)
class Command:
  """`siglax NAME`. A file that declares one imports nothing slow before it runs: `siglax --help`
  reads them all.

  help: a line for the list of commands. description, epilog: what its --help says before and after
  the flags.
  add_arguments: adds the flags to a parser. run: does the work; it is given the flags, and as
  `overrides` the fields of the config that were given. It raises ValueError in one line for what is
  wrong with them.
  urls: those of the arguments workdir, source, out and html that may be in a bucket.
  """

  name: str
  help: str
  description: str
  add_arguments: Callable[[argparse.ArgumentParser], None]
  run: Callable[[argparse.Namespace], None]
  epilog: str | None = None
  urls: tuple[str, ...] = ("workdir", "source")
