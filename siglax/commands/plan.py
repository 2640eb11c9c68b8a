"""`siglax plan`: what a config needs, without its devices."""

from __future__ import annotations

import json
import os

from siglax.commands import shared
from siglax.commands.command import Command


def _add_arguments(parser):
  shared.add_config_flag(parser)
  parser.add_argument(
    "--devices", required=True, type=int, metavar="N", help="devices over all processes"
  )
  parser.add_argument("--batch", type=int, metavar="B", help="config.batch_size, over all devices")
  parser.add_argument("--chips", help="names, separated by commas; all that are known by default")
  parser.add_argument("--json", action="store_true", help="print one JSON object")


def _run(arguments):
  # Before jax is imported: the plan's devices, whatever this machine has.
  os.environ["JAX_PLATFORMS"] = "cpu"
  os.environ["JAX_NUM_CPU_DEVICES"] = str(arguments.devices)
  with shared.uninterrupted():
    from siglax import config as config_lib
    from siglax.costs import plan
    from siglax.costs import table

  shared.import_parts(arguments)
  batch = {} if arguments.batch is None else {"batch_size": str(arguments.batch)}
  config = config_lib.load(arguments.config, arguments.overrides | batch)
  chips = {"chips": arguments.chips.split(",")} if arguments.chips else {}
  report = plan.plan(config, arguments.devices, **chips)
  if arguments.json:
    print(json.dumps(report))
  else:
    table.show(report, f"siglax plan {arguments.config}")


COMMAND = Command(
  name="plan",
  help="memory, FLOPs, traffic and the fastest step of a config, without its devices",
  description=(
    "Compiles the training step for N virtual CPU devices, allocates nothing, and tells what it "
    "needs and "
    "how fast it can be on known chips (docs/plan.md)."
  ),
  epilog="Fields: --config.mesh.fsdp=16 --config.train.remat.image=full",
  add_arguments=_add_arguments,
  run=_run,
)
