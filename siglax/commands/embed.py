"""`siglax embed`: writes the embeddings of a dataset's pictures and texts."""

from __future__ import annotations

from siglax.commands import shared
from siglax.commands.command import Command


def _add_arguments(parser):
  shared.add_from_flag(parser)
  parser.add_argument("--data", required=True, metavar="DATA", help=shared.DATA_HELP)
  parser.add_argument(
    "--out",
    required=True,
    metavar="FILE",
    help=".npz, .parquet or .array_record that does not exist, also in a bucket",
  )
  parser.add_argument("--texts", action="store_true", help="also the embeddings of the captions")
  parser.add_argument(
    "--texts-only",
    action="store_true",
    help="the embeddings of the captions alone; no picture is decoded",
  )
  parser.add_argument(
    "--tokens", action="store_true", help="also the image tokens, one for each patch"
  )
  parser.add_argument(
    "--batch-size",
    type=int,
    metavar="N",
    help="examples at a time in each process; config.eval.batch_size by default",
  )
  parser.add_argument(
    "--dtype",
    default="float32",
    choices=("float32", "float16", "bfloat16"),
    help="of what is stored",
  )
  parser.add_argument(
    "--shard",
    default="0/1",
    metavar="I/N",
    help="job I of N, from 0: the I-th of N equal parts of the data, FILE-I-of-N",
  )
  shared.add_process_flags(parser)


def _run(arguments):
  shared.no_overrides(arguments)
  shard = shared.job(arguments.shard)
  shared.setup(arguments)
  import jax

  from siglax.data import sources
  from siglax.tower import embed

  made = embed.embed(
    arguments.source,
    sources.parse_spec(arguments.data),
    arguments.out,
    pictures=not arguments.texts_only,
    texts=arguments.texts,
    tokens=arguments.tokens,
    batch_size=arguments.batch_size,
    dtype=arguments.dtype,
    shard=shard,
  )
  if jax.process_index() > 0:
    return
  others = "".join(
    f", {made[key]:,} {said}"
    for key, said in (("skipped", "skipped"), ("filtered", "filtered out"))
    if made[key]
  )
  what = "examples with text embeddings" if arguments.texts_only else "embeddings"
  print(f"wrote {made['file']}: {made['examples']:,} {what} of width {made['width']}{others}")


COMMAND = Command(
  name="embed",
  help="write the embeddings of a dataset's pictures and texts",
  description=(
    "Embeds every picture of a dataset and writes the embeddings with the captions, to train a "
    'text tower on them (data source "embeddings") or for other programs. The same command, '
    "started again, goes on where it was stopped. docs/towers.md tells how to read each format."
  ),
  add_arguments=_add_arguments,
  run=_run,
  urls=("source", "out"),
)
