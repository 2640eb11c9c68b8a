"""`siglax ablate`: makes the runs of a study."""

from __future__ import annotations

import os
import sys

from siglax.commands import shared
from siglax.commands.command import Command


def _add_arguments(parser):
  parser.add_argument(
    "--config",
    required=True,
    help="study file, with arguments after a colon: configs/ablate/x.py:scale=full",
  )
  parser.add_argument("--workdir", required=True, help="study folder; the same one goes on")
  parser.add_argument("--dry-run", action="store_true", help="print the runs, hours and disk, only")
  parser.add_argument(
    "--devices",
    metavar="SETS",
    help="sets of devices, of CPUs cores, with a run at a time in each: '0,1;2,3' (default: all)",
  )
  parser.add_argument(
    "--only", metavar="I/N", help="part I of N of the runs, from 0: for arrays of jobs"
  )
  parser.add_argument("--retry", action="store_true", help="make runs that failed again")
  parser.add_argument("--chips", help="chips to tell the hours of, as of siglax plan: H100,v5e")


def _run(arguments):
  from siglax.studies import environment as environment_lib

  sets = environment_lib.parse_devices(arguments.devices)
  # The processes that train get the environment as it is.
  variables = dict(os.environ)
  platform = None
  if sets != [()]:
    platform = environment_lib.ask(variables)["platform"]
    environment_lib.check_there(platform, sets, variables)
  environment = environment_lib.ask(variables | environment_lib.variables(platform, sets[0]))
  # Before jax is imported: this process only looks, and has as many devices as a run.
  os.environ["JAX_PLATFORMS"] = "cpu"
  os.environ["JAX_NUM_CPU_DEVICES"] = str(environment["devices"])
  with shared.uninterrupted():
    from siglax.studies import ablate
  shared.log_to_stderr()
  shared.import_parts(arguments)
  words = ablate.Words(
    arguments.config,
    arguments.overrides,
    arguments.workdir,
    arguments.imports,
    ablate.parse_only(arguments.only),
    arguments.chips.split(",") if arguments.chips else (),
    arguments.retry,
  )
  ablation = ablate.Ablation(words, environment, variables, sets)
  if arguments.dry_run:
    ablation.dry_run()
  elif stopped := ablation.run():
    print(f"stopped by {stopped}; the same command goes on", file=sys.stderr)
    sys.exit(1)


COMMAND = Command(
  name="ablate",
  help="make the runs of a study: fields × values × seeds",
  description=(
    "Makes the runs of a study file, each a run folder of siglax train, and results.json of what "
    "came of them. The same command goes on where it stopped: finished runs are left, unfinished "
    "ones resumed, failed ones listed (docs/ablations.md)."
  ),
  epilog=(
    "Fields: --config.base.optim.lr=3e-4 --config.grid.batch_size='(128,256)' "
    "--config.seeds='(0,1)' --config.amount=1000000 --config.baseline=\"{'loss.name': 'softmax'}\""
  ),
  add_arguments=_add_arguments,
  run=_run,
  urls=(),
)
