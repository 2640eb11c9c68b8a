"""`siglax replay`: makes one step of a run again."""

from __future__ import annotations

import json

from siglax.commands import shared
from siglax.commands.command import Command


def _add_arguments(parser):
  parser.add_argument(
    "--run", dest="source", required=True, metavar="DIR", help="run folder, with its data in place"
  )
  parser.add_argument(
    "--step", required=True, type=int, metavar="N", help="step as in metrics.jsonl, from 1"
  )
  parser.add_argument("--json", action="store_true", help="print one JSON object")


def _run(arguments):
  shared.no_overrides(arguments)
  shared.setup(arguments)
  from siglax.training import replay

  report = replay.replay(arguments.source, arguments.step)
  if arguments.json:
    print(json.dumps(report))
  else:
    replay.show(report, f"siglax replay {arguments.source} step {arguments.step}")


COMMAND = Command(
  name="replay",
  help="make one step of a run again",
  description=(
    "Makes one step of a run again, from the newest good checkpoint before it: prints its loss and "
    "gradient norm, "
    "and the examples of its batch. On the same kind and number of devices the loss is that of "
    "metrics.jsonl, bit for bit. "
    "Nothing is written."
  ),
  add_arguments=_add_arguments,
  run=_run,
)
