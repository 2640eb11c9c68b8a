"""`siglax classify`: names pictures by labels."""

from __future__ import annotations

import json

from siglax.commands import shared
from siglax.commands.command import Command


def _add_arguments(parser):
  shared.add_from_flag(parser)
  parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="image file")
  parser.add_argument("--labels", required=True, metavar="A,B,…", help="names, separated by commas")
  parser.add_argument(
    "--template",
    action="append",
    metavar="TEXT",
    help="caption with a {} for the label; several are averaged (default: 'a photo of a {}.')",
  )
  parser.add_argument("--json", action="store_true", help="print one JSON object")


def _run(arguments):
  shared.no_overrides(arguments)
  shared.setup(arguments)
  from siglax.tower import classify

  templates = {} if arguments.template is None else {"templates": tuple(arguments.template)}
  labels = [label.strip() for label in arguments.labels.split(",")]
  report = classify.classify(arguments.source, arguments.pictures, labels, **templates)
  if arguments.json:
    print(json.dumps(report))
  else:
    classify.show(report)


COMMAND = Command(
  name="classify",
  help="sort pictures by labels it was never trained on",
  description=(
    "Compares pictures with labels, each put into the templates, and prints how probable each "
    "label is."
  ),
  add_arguments=_add_arguments,
  run=_run,
)
