"""`siglax evaluate`: runs the evaluation tasks of a run."""

from __future__ import annotations

from siglax.commands import shared
from siglax.commands.command import Command


def _add_arguments(parser):
  parser.add_argument("--from", dest="source", required=True, metavar="DIR", help="run folder")
  parser.add_argument("--out", help="file to write; DIR/eval.json by default")
  shared.add_process_flags(parser)


def _run(arguments):
  shared.setup(arguments)
  from siglax.training import evaluation

  evaluation.evaluate(arguments.source, arguments.overrides, arguments.out)


COMMAND = Command(
  name="evaluate",
  help="evaluate a run folder",
  description=(
    "Runs the evaluation tasks of a run on its newest good checkpoint and writes eval.json, in "
    "CLIP_benchmark's format."
  ),
  epilog="Fields: --config.eval.tasks.0.data.path=b.parquet --config.eval.batch_size=512",
  add_arguments=_add_arguments,
  run=_run,
  urls=("source", "out"),
)
