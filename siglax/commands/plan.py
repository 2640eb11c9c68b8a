"""`siglax plan`: what a config needs, without its devices."""

from __future__ import annotations

import json
import os

from siglax.commands import shared
from siglax.commands.command import Command
from siglax.costs import VIRTUAL

LIST = "list"  # of --chips
ALL = "all"


def _add_arguments(parser):
  shared.add_config_flag(parser, required=False)
  parser.add_argument("--devices", type=int, metavar="N", help="devices over all processes")
  parser.add_argument("--batch", type=int, metavar="B", help="config.batch_size, over all devices")
  parser.add_argument(
    "--chips", help=f"names, separated by commas; {ALL} for all, {LIST} prints the table of them"
  )
  parser.add_argument(
    "--examples", type=int, metavar="N", help="of the data, where they are not there"
  )
  parser.add_argument(
    "--between",
    type=float,
    metavar="GB/s",
    help="one way, of a device, between NVLink domains or TPU pods; by default the chip's",
  )
  parser.add_argument(
    "--hours", action="store_true", help="steps, hours and chip-hours at a measured MFU"
  )
  parser.add_argument(
    "--mfu", type=float, metavar="SHARE", help="in place of the measured one, such as 0.4"
  )
  parser.add_argument("--price", type=float, help="of an hour of a chip, for the cost")
  parser.add_argument(
    "--compare",
    nargs="+",
    metavar="NAME=VALUE,VALUE",
    help="settings to plan and to sort by the time of a step, on the first of --chips: "
    "fsdp=1,4,16 microbatch=None,256",
  )
  parser.add_argument("--json", action="store_true", help="print one JSON object")


def _run(arguments):
  if arguments.chips and arguments.chips.lower() == LIST:
    _print_chips(arguments.json)
    return
  _check(arguments)
  # Before jax is imported: the plan's devices, whatever this machine has.
  os.environ["JAX_PLATFORMS"] = "cpu"
  os.environ["JAX_NUM_CPU_DEVICES"] = str(min(arguments.devices, VIRTUAL))
  with shared.uninterrupted():
    from siglax.costs import table

  shared.import_parts(arguments)
  if arguments.compare:
    _compare(arguments)
    return
  report = _plan(arguments, _chips(arguments.chips), {})
  if arguments.json:
    print(json.dumps(report))
  else:
    table.show(report, f"siglax plan {arguments.config}")


def _check(arguments):
  """ValueError for a flag that is missing or out of its range."""
  for name in ("config", "devices"):
    if getattr(arguments, name) is None:
      raise ValueError(f"--{name} is missing; only --chips {LIST} goes without it")
  for name in ("between", "price"):
    value = getattr(arguments, name)
    if value is not None and not 0 < value < float("inf"):
      raise ValueError(f"--{name} {value:g} must be above 0")
  if arguments.mfu is not None and not 0 < arguments.mfu <= 1:
    raise ValueError(f"--mfu {arguments.mfu:g} must be a share of the peak, above 0 and up to 1")


def _chips(words: str | None) -> list[str]:
  from siglax.devices import chips

  if words is None:
    return list(chips.USUAL)
  return list(chips.NAMED) if words.lower() == ALL else words.split(",")


def _plan(arguments, names: list[str], fields: dict[str, str]) -> dict:
  from siglax import config as config_lib
  from siglax.costs import budget
  from siglax.costs import plan
  from siglax.devices import chips

  batch = {} if arguments.batch is None else {"batch_size": str(arguments.batch)}
  config = config_lib.load(arguments.config, arguments.overrides | batch | fields)
  between = None if arguments.between is None else arguments.between * 1e9
  report = plan.plan(config, arguments.devices, names, examples=arguments.examples, between=between)
  if arguments.hours or arguments.mfu is not None or arguments.price is not None:
    report["hours"] = {
      chip.name: budget.hours(report, chip, arguments.mfu, arguments.price)
      for chip in map(chips.named, names)
    }
  return report


def _compare(arguments):
  from siglax.costs import compare
  from siglax.costs import table
  from siglax.devices import chips
  from siglax.devices import streams

  chip, *_ = (chips.named(name).name for name in _chips(arguments.chips))
  chosen = compare.settings(arguments.compare)
  rows = compare.compare(lambda fields: _plan(arguments, [chip], fields), chosen, chip)
  if arguments.json:
    print(json.dumps({"chip": chip, "compare": rows}))
  else:
    streams.print_table(f"siglax plan {arguments.config} on {chip}", table.compared(rows, chip))


def _print_chips(as_json: bool):
  import dataclasses

  from siglax.devices import chips
  from siglax.devices import streams

  if as_json:
    print(json.dumps({name: dataclasses.asdict(chip) for name, chip in chips.NAMED.items()}))
  else:
    streams.print_table("chips, per jax device", chips.rows())


COMMAND = Command(
  name="plan",
  help="memory, FLOPs, traffic, hours and the fastest step of a config, without its devices",
  description=(
    "Compiles the training step for N virtual CPU devices, allocates nothing, and tells what it "
    "needs and "
    "how fast it can be on known chips (docs/plan.md)."
  ),
  epilog="Fields: --config.mesh.fsdp=16 --config.train.remat.image=full",
  add_arguments=_add_arguments,
  run=_run,
)
