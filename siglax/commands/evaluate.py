"""`siglax evaluate`: runs evaluation tasks on a run, or on any other towers."""

from __future__ import annotations

from siglax.commands import shared
from siglax.commands.command import Command


def _add_arguments(parser):
  shared.add_from_flag(parser)
  parser.add_argument(
    "--tasks",
    nargs="+",
    default=[],
    metavar="TASK",
    help="KIND:data=DATA,name=NAME,field=value, or a config file, whose config.eval.tasks are "
    "taken; the run's own by default",
  )
  parser.add_argument(
    "--classnames",
    metavar="FILE",
    help="names of the classes for tasks that give none: one a line, or CLIP_benchmark's JSON",
  )
  parser.add_argument(
    "--out", help="file to write; DIR/eval.json by default where a run's own tasks are evaluated"
  )
  parser.add_argument(
    "--html",
    metavar="FILE.html",
    help="page to write: metrics, confused classes, what queries find, cosines of pairs",
  )
  shared.add_process_flags(parser)


def _run(arguments):
  shared.setup(arguments)
  from siglax.training import evaluation

  evaluation.evaluate(
    arguments.source,
    arguments.overrides,
    arguments.out,
    arguments.tasks,
    arguments.classnames,
    arguments.html,
  )


COMMAND = Command(
  name="evaluate",
  help="evaluate a run or any other towers",
  description=(
    "Runs the evaluation tasks of a run, or those of --tasks, on its newest good checkpoint or on "
    "another library's, and writes eval.json, in CLIP_benchmark's format. docs/evaluation.md lists "
    "the kinds."
  ),
  epilog="Fields: --config.eval.tasks.0.data.path=b.parquet --config.eval.batch_size=512",
  add_arguments=_add_arguments,
  run=_run,
  urls=("source", "out", "html"),
)
