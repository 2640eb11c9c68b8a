"""`siglax tokenizer`: trains a tokenizer."""

from __future__ import annotations

from typing import Any

from siglax.commands import shared
from siglax.commands.command import Command


def _add_arguments(parser):
  parser.add_argument("--from", dest="data", required=True, metavar="DATA", help=shared.DATA_HELP)
  parser.add_argument(
    "--out",
    required=True,
    metavar="FILE",
    help="file or URL to write: .model, or .json of --kind bpe",
  )
  parser.add_argument(
    "--kind",
    default="sentencepiece",
    help="sentencepiece, as SigLIP's, or bpe, a tokenizer.json as CLIP's (default: sentencepiece)",
  )
  parser.add_argument("--vocab-size", required=True, type=int, help="number of tokens")
  parser.add_argument("--keep-case", action="store_true", help="for config.text.lowercase=False")
  parser.add_argument(
    "--keep-punctuation",
    action="store_true",
    help="for config.text.strip_punctuation=False; bpe keeps it always",
  )


def _run(arguments):
  shared.no_overrides(arguments)
  shared.import_parts(arguments)
  from siglax.data import sources
  from siglax.data import text
  from siglax.data import uploads

  suffix = text.KINDS.find(arguments.kind, "--kind").suffix
  uploads.check_new(arguments.out, suffix)
  spec = sources.parse_spec(arguments.data)
  source = sources.open_source(spec, "--from")
  broken = []
  with uploads.writing(arguments.out), uploads.replacing(arguments.out) as temporary:
    text.train_tokenizer(
      _captions(source, broken),
      temporary,
      arguments.vocab_size,
      kind=arguments.kind,
      lowercase=not arguments.keep_case,
      strip_punctuation=not arguments.keep_punctuation,
    )
  if broken:
    print(f"left out {len(broken):,} broken examples, first example {broken[0][0]}: {broken[0][1]}")
  print(f"wrote {arguments.out}; use it with --config.text.tokenizer={arguments.out}")


def _captions(source, broken: list):
  """The captions of the examples, without the broken ones: (example, reason). Pictures are not read
  where the captions stand apart from them.
  """
  from siglax.data import filters
  from siglax.data.broken import NOT_BROKEN
  from siglax.data.broken import reason

  # The built-in dataset has their number under this name.
  read: Any = getattr(source, "captions", None)
  if isinstance(read, int | None):
    read = lambda i: source[i]["captions"]
  for i in range(len(source)):
    try:
      captions = read(i)
    except NOT_BROKEN:
      raise
    except filters.FilteredOut:
      continue
    except Exception as e:  # whatever a source raises
      broken.append((filters.number(source, i), reason(e)))
      continue
    yield from captions


COMMAND = Command(
  name="tokenizer",
  help="train a tokenizer",
  description=(
    "Trains a tokenizer on the captions of a dataset, preprocessed as in training: a sentencepiece "
    "model, or a byte-level byte-pair encoding."
  ),
  add_arguments=_add_arguments,
  run=_run,
  urls=("out",),
)
