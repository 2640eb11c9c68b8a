"""`siglax report`: what the runs of a study show."""

from __future__ import annotations

from siglax.commands import shared
from siglax.commands.command import Command


def _add_arguments(parser):
  parser.add_argument(
    "study", metavar="DIR", help="study folder, or any folder with run folders beneath"
  )
  parser.add_argument(
    "--baseline",
    metavar="FIELD=VALUE",
    help="compare with the runs that have this value, such as loss.name=sigmoid; several fields "
    "are separated by commas; the study's own by default",
  )
  parser.add_argument("--out", metavar="FOLDER", help="where the report goes (default: DIR/report)")


def _run(arguments):
  shared.no_overrides(arguments)
  shared.log_to_stderr()
  shared.import_parts(arguments)
  from siglax.studies import report

  report.report(arguments.study, arguments.baseline, arguments.out)


COMMAND = Command(
  name="report",
  help="tables, intervals and plots of a study, as one page",
  description=(
    "Compares the finished runs of a folder: means over seeds, paired intervals of the differences "
    "to a baseline, costs, and plots. Writes DIR/report/, or --out: index.html, tables in Markdown "
    "and LaTeX, results as CSV and JSON, and the plots as PNG and SVG."
  ),
  add_arguments=_add_arguments,
  run=_run,
  urls=(),
)
