"""`siglax average`: the weights between two trainings of the same towers."""

from __future__ import annotations

from siglax.commands import shared
from siglax.commands.command import Command


def _add_arguments(parser):
  parser.add_argument("first", metavar="A", help="run folder, or what siglax.load takes")
  parser.add_argument("second", metavar="B", help="the same towers, trained otherwise")
  parser.add_argument(
    "--weight", type=float, default=0.5, metavar="W", help="of B; A has 1 − W (default: 0.5)"
  )
  parser.add_argument("--out", required=True, metavar="DIR", help="folder that does not exist yet")


def _run(arguments):
  shared.no_overrides(arguments)
  shared.setup(arguments)
  from siglax.tower import average

  print(
    f"wrote {average.average(arguments.first, arguments.second, arguments.out, arguments.weight)}"
  )


COMMAND = Command(
  name="average",
  help="average the weights of two runs or exports",
  description=(
    "Writes a run folder with the weights (1 − W)·A + W·B of two trainings that began with the "
    "same weights, such as a released model and its fine-tuning (WiSE-FT). What loads, evaluates "
    "or exports a run takes it; it cannot be trained on but by config.model.init_from."
  ),
  add_arguments=_add_arguments,
  run=_run,
)
