"""`siglax search`: finds pictures of a folder by texts."""

from __future__ import annotations

from siglax.commands import shared
from siglax.commands.command import Command


def _add_arguments(parser):
  shared.add_from_flag(parser)
  parser.add_argument(
    "--images", required=True, metavar="FOLDER", help="searched with its subfolders"
  )
  parser.add_argument("queries", nargs="+", metavar="QUERY", help="text, such as 'a red car'")
  parser.add_argument(
    "--top", type=int, default=20, metavar="N", help="pictures for each query (default: 20)"
  )
  parser.add_argument(
    "--out", metavar="FILE.html", help="page to write with the pictures in it, also in a bucket"
  )


def _run(arguments):
  shared.no_overrides(arguments)
  shared.setup(arguments)
  from siglax.tower import search

  search.search(arguments.source, arguments.images, arguments.queries, arguments.top, arguments.out)


COMMAND = Command(
  name="search",
  help="find pictures by what is on them",
  description=(
    "Embeds the pictures of a folder and prints those whose embeddings are nearest to each query, "
    "with the "
    "cosine between the two."
  ),
  add_arguments=_add_arguments,
  run=_run,
  urls=("source", "out"),
)
