"""`siglax config`: the fields of a config, their values and what they are."""

from __future__ import annotations

import os

from siglax.commands import shared
from siglax.commands.command import Command


def _add_arguments(parser):
  shared.add_config_flag(parser)
  parser.add_argument(
    "pattern",
    nargs="?",
    metavar="PATTERN",
    help="print only fields whose name matches it, such as 'optim.*', or has it inside, such as lr",
  )


def _run(arguments):
  # Before jax is imported: nothing is computed, and a training may hold the accelerator.
  os.environ["JAX_PLATFORMS"] = "cpu"
  with shared.uninterrupted():
    from siglax import config as config_lib
    from siglax.config import document

  shared.import_parts(arguments)
  config = config_lib.load(arguments.config)
  in_file = config_lib.leaves(config)
  for field, text in arguments.overrides.items():
    config_lib.override(config, field, text)
  origins = document.origins(config, in_file, arguments.overrides)
  print(document.listing(config, origins, document.matching(arguments.pattern)))


COMMAND = Command(
  name="config",
  help="the fields of a config: values, where they come from, what they are",
  description=(
    "Prints the fields of a config, the value of each, whether it is the default's, the file's or "
    "the command line's, and a sentence. It reads no data and compiles nothing. docs/config.md has "
    "the defaults."
  ),
  epilog="Fields: siglax config --config configs/x.py --config.optim.lr=3e-4 'optim.*'",
  add_arguments=_add_arguments,
  run=_run,
)
