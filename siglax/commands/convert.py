"""`siglax convert`: a dataset as shards of ArrayRecord or tar."""

from __future__ import annotations

from siglax.commands import shared
from siglax.commands.command import Command


def _add_arguments(parser):
  parser.add_argument("data", metavar="SRC", help=shared.DATA_HELP)
  parser.add_argument(
    "folder", metavar="DST", help="folder to write, or URL of one, new or of the same command"
  )
  parser.add_argument(
    "--format",
    default="array_record",
    choices=("array_record", "tar"),
    help="of the shards; tar is WebDataset's layout (default: array_record)",
  )
  parser.add_argument(
    "--examples-per-shard", type=int, default=10_000, metavar="N", help="default: 10000"
  )
  parser.add_argument(
    "--short-side", type=int, metavar="PIXELS", help="shrinks larger pictures to it"
  )
  parser.add_argument(
    "--quality", type=int, default=92, metavar="Q", help="of the JPEGs that it writes (default: 92)"
  )
  parser.add_argument(
    "--shuffle", type=int, metavar="SEED", help="permutes all examples; else the order stays"
  )
  parser.add_argument(
    "--shard", default="0/1", metavar="I/N", help="job I of N, from 0, each with its own shards"
  )
  parser.add_argument("--threads", type=int, metavar="N", help="one for each core by default")


def _run(arguments):
  job = shared.job(arguments.shard)
  for flag, least, most in (
    ("examples_per_shard", 1, 2**31),
    ("short_side", 1, 2**14),
    ("quality", 1, 100),
    ("shuffle", 0, 2**32 - 1),
    ("threads", 1, 2**12),
  ):
    value = getattr(arguments, flag)
    if value is not None and not least <= value <= most:
      raise ValueError(f"--{flag.replace('_', '-')} {value} must lie in {least} … {most}")
  shared.log_to_stderr()
  shared.import_parts(arguments)
  from siglax import config as config_lib
  from siglax.data import conversion
  from siglax.data import sources

  config_lib.check_path("DST", arguments.folder)
  config = config_lib.default()
  for field, text in arguments.overrides.items():
    if field not in ("image.max_pixels", "image.max_bytes"):
      raise ValueError(
        f"--config.{field} has no use here; --config.image.max_pixels and "
        "--config.image.max_bytes have"
      )
    config_lib.override(config, field, text)
  manifest = conversion.convert(
    sources.parse_spec(arguments.data),
    arguments.folder,
    format=arguments.format,
    examples_per_shard=arguments.examples_per_shard,
    short_side=arguments.short_side,
    quality=arguments.quality,
    shuffle=arguments.shuffle,
    job=job,
    threads=arguments.threads,
    image=config.image,
  )
  if manifest is None:
    print(f"wrote the shards of --shard {arguments.shard}; those of other jobs are missing yet")
    return
  skipped = manifest["skipped"]["examples"]
  print(
    f"wrote {arguments.folder}: {manifest['examples']:,} examples in "
    f"{len(manifest['shards']):,} shards, {manifest['resized']:,} of them shrunk, "
    f"{skipped:,} broken ones left out"
    + (f", {manifest['filtered']:,} filtered out" if manifest["filtered"] else "")
  )


COMMAND = Command(
  name="convert",
  help="write a dataset as shards of ArrayRecord or tar",
  description=(
    "Writes the examples of a dataset as shards that any siglax command reads, with their "
    "checksums and what was left out in manifest.json. Started again, it goes on; the same "
    "command makes the same bytes, whatever the number of jobs and threads."
  ),
  epilog="Fields: --config.image.max_pixels=N and --config.image.max_bytes=N, of what is read",
  add_arguments=_add_arguments,
  run=_run,
)
