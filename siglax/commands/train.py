"""`siglax train`: trains a config in a run folder, or resumes there."""

from __future__ import annotations

from siglax.commands import shared
from siglax.commands.command import Command


def _add_arguments(parser):
  shared.add_config_flag(parser)
  parser.add_argument(
    "--workdir",
    required=True,
    help="run folder, also in a bucket: config, checkpoints, metrics, curves",
  )
  parser.add_argument(
    "--extend",
    action="store_true",
    help=(
      "make a run longer although its learning rate depends on its length (cosine, linear, a "
      "cooldown that has begun)"
    ),
  )
  shared.add_process_flags(parser)


def _run(arguments):
  shared.setup(arguments)
  from siglax import config as config_lib
  from siglax.devices import signals
  from siglax.runs import bucket
  from siglax.training import loop
  from siglax.training import resume

  try:
    config = config_lib.load(arguments.config, arguments.overrides)
  except ValueError:
    # It says more of a field whose part was not imported.
    resume.check_imports(bucket.stand_in(arguments.workdir))
    raise
  loop.train(config, arguments.workdir, extend=arguments.extend, second_signal=signals.end_now)


COMMAND = Command(
  name="train",
  help="train a config in a run folder, or resume there",
  description="Trains a config in a run folder. The same command resumes where it stopped.",
  epilog=(
    "Fields: --config.optim.lr=3e-4 --config.data.0.path=a.parquet --config.total_epochs=3; "
    "siglax config lists them all."
  ),
  add_arguments=_add_arguments,
  run=_run,
)
