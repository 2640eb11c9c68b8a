"""`siglax search`: finds pictures by texts, or by other pictures."""

from __future__ import annotations

from siglax.commands import shared
from siglax.commands.command import Command


def _add_arguments(parser):
  shared.add_from_flag(parser)
  among = parser.add_mutually_exclusive_group(required=True)
  among.add_argument("--images", metavar="FOLDER", help="searched with its subfolders")
  among.add_argument("--index", metavar="FILE", help="pictures that siglax embed has embedded")
  parser.add_argument("queries", nargs="*", metavar="QUERY", help="text, such as 'a red car'")
  parser.add_argument(
    "--query-image",
    action="append",
    default=[],
    metavar="FILE",
    help="a picture as a query; several are given one by one",
  )
  parser.add_argument(
    "--top", type=int, default=20, metavar="N", help="pictures for each query (default: 20)"
  )
  parser.add_argument(
    "--out", metavar="FILE.html", help="page to write with the pictures in it, also in a bucket"
  )
  parser.add_argument(
    "--data",
    metavar="DATA",
    help="what siglax embed embedded, for the pictures of --out; without it those of --index are "
    "shown whose keys are paths",
  )


def _run(arguments):
  shared.no_overrides(arguments)
  if arguments.data is not None and arguments.index is None:
    raise ValueError("--data goes with --index; --images has its own pictures")
  shared.setup(arguments)
  from siglax.data import sources
  from siglax.tower import search
  from siglax.tower import search_index

  queries = search.Queries(arguments.queries, arguments.query_image, arguments.top, arguments.out)
  if arguments.index is None:
    search.search(arguments.source, arguments.images, queries)
  else:
    data = None if arguments.data is None else sources.parse_spec(arguments.data)
    search_index.search(arguments.source, arguments.index, queries, data)


COMMAND = Command(
  name="search",
  help="find pictures by what is on them",
  description=(
    "Embeds the pictures of a folder, or reads the embeddings of siglax embed, and prints those "
    "nearest to each query, with the cosine between the two."
  ),
  add_arguments=_add_arguments,
  run=_run,
  urls=("source", "out"),
)
