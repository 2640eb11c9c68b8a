"""`siglax inspect`: what a dataset holds, and how far a run has come in it."""

from __future__ import annotations

import json
import os

from siglax.commands import shared
from siglax.commands.command import Command


def _add_arguments(parser):
  parser.add_argument("data", nargs="?", metavar="DATA", help=shared.DATA_HELP)
  parser.add_argument(
    "--examples", type=int, metavar="N", help="reads so many, evenly spaced; all by default"
  )
  parser.add_argument(
    "--run", dest="source", metavar="DIR", help="run folder, in place of DATA: how far it has come"
  )
  parser.add_argument(
    "--step", type=int, metavar="N", help="with --run and --out: draws the batch of this step"
  )
  parser.add_argument("--out", metavar="SHEET.png", help="contact sheet to write, also in a bucket")
  parser.add_argument(
    "--pictures", type=int, default=36, metavar="N", help="on the sheet (default: 36)"
  )
  parser.add_argument(
    "--config", help="with DATA: draws pictures and captions as training with this config sees them"
  )
  parser.add_argument("--json", action="store_true", help="print one JSON object")


def _run(arguments):
  # Before jax is imported: nothing is computed, and a training may hold the accelerator.
  os.environ["JAX_PLATFORMS"] = "cpu"
  _check(arguments)
  shared.setup(arguments)
  if arguments.source is None:
    _inspect_data(arguments)
  elif arguments.step is None:
    _inspect_run(arguments)
  else:
    from siglax.training import inspection

    _draw(arguments, inspection.batch_cells(arguments.source, arguments.step, arguments.pictures))


def _check(arguments):
  """ValueError for flags that do not fit each other."""
  if (arguments.data is None) == (arguments.source is None):
    raise ValueError("give DATA or --run DIR, one of them")
  if arguments.config is None:
    shared.no_overrides(arguments)
  elif arguments.data is None:
    raise ValueError("--config has no use with --run, which has its own")
  if arguments.step is not None and arguments.data is not None:
    raise ValueError("--step has no use without --run")
  if arguments.source is not None and (arguments.step is None) != (arguments.out is None):
    raise ValueError("--run takes --step N and --out SHEET.png together, or none of them")
  for flag, most in (("examples", 2**62), ("pictures", 1024)):
    value = getattr(arguments, flag)
    if value is not None and not 1 <= value <= most:
      raise ValueError(f"--{flag} {value} must lie in 1 … {most}")
  if arguments.out is not None:
    from siglax.data import uploads

    uploads.check_new(arguments.out, ".png")


def _inspect_data(arguments):
  from siglax import config as config_lib
  from siglax.data import sources
  from siglax.data import survey
  from siglax.training import inspection

  spec = sources.parse_spec(arguments.data)
  sources.validate_spec(spec, "DATA")
  if not sources.SOURCES[spec["source"]].pictures:
    raise ValueError(f'DATA: source "{spec["source"]}" has no pictures to look at')
  config = (
    config_lib.default()
    if arguments.config is None
    else config_lib.load(arguments.config, arguments.overrides)
  )
  source = sources.open_source(spec, "DATA")
  report = survey.survey(source, config.image, arguments.examples)
  if arguments.json:
    print(json.dumps(report))
  else:
    print(f"siglax inspect {arguments.data}")
    print("\n".join(f"  {line}" for line in survey.lines(report)))
  if arguments.out is None:
    return
  if arguments.config is None:
    _draw(arguments, inspection.cells(source, config.image, arguments.pictures))
  else:
    _draw(arguments, inspection.augmented_cells(source, config, arguments.pictures))


def _inspect_run(arguments):
  from siglax.devices import streams
  from siglax.training import inspection

  report = inspection.position(arguments.source)
  if arguments.json:
    print(json.dumps(report))
    return
  rows = [("step", f"{report['step']:,}, of {report['batch_size']:,} examples each")]
  for k, data in enumerate(report["data"]):
    epochs, place = divmod(data["elements"], data["examples"])
    rows += [
      (f"config.data.{k}", ", ".join(f"{name} {value}" for name, value in data["source"].items())),
      ("", f"epoch {epochs + 1}, example {place:,} of {data['examples']:,}"),
      ("", f"{data['drawn']:,} drawn, {data['broken']:,} of them broken"),
      ("", f"{data['filtered']:,} more filtered out when they were read"),
    ]
  streams.print_table(f"siglax inspect {arguments.source}", rows)


def _draw(arguments, cells):
  from siglax.data import sheet
  from siglax.data import uploads

  found = list(cells)
  if not found:
    raise ValueError("all pictures that the sheet would show are broken")
  with uploads.writing(arguments.out):
    uploads.write(arguments.out, sheet.draw(found))
  if not arguments.json:
    print(f"wrote {arguments.out}: {len(found)} pictures")


COMMAND = Command(
  name="inspect",
  help="what a dataset holds, and how far a run has come in it",
  description=(
    "Reads and decodes the examples of a dataset, and tells of captions, pictures, copies and "
    "broken ones; of a run, how far it has come in each source. --out draws a contact sheet. No "
    "device is used."
  ),
  epilog="Fields, with --config: --config.image.size=384",
  add_arguments=_add_arguments,
  run=_run,
  urls=("source", "out"),
)
