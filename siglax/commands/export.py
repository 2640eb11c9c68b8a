"""`siglax export`: writes the towers in another library's format."""

from __future__ import annotations

from siglax.commands import shared
from siglax.commands.command import Command


def _add_arguments(parser):
  shared.add_from_flag(parser)
  parser.add_argument(
    "--format", required=True, metavar="FORMAT", help="see below, or one that --import registers"
  )
  parser.add_argument(
    "--out",
    required=True,
    metavar="DIR_OR_FILE",
    help="folder, or .npz file, that does not exist yet",
  )
  parser.add_argument(
    "--dtype", default="float32", choices=("float32", "bfloat16"), help="of the parameters"
  )
  # Formats import jax, which only who asks for this help is to wait for.
  format_help = parser.format_help
  parser.format_help = lambda: setattr(parser, "epilog", _formats()) or format_help()


def _formats() -> str:
  from siglax import interop

  forms = (interop.FORMATS[name] for name in interop.written())
  return f"Formats: {'; '.join(f'{form.name}, {form.doc}' for form in forms)}."


def _run(arguments):
  shared.no_overrides(arguments)
  shared.setup(arguments)
  from siglax.tower import export

  print(
    f"wrote {export.export(arguments.source, arguments.format, arguments.out, arguments.dtype)}"
  )


COMMAND = Command(
  name="export",
  help="write the towers in another library's format",
  description=(
    "Writes the towers of a run folder, of a Hugging Face folder or of a big_vision .npz for other "
    "libraries."
  ),
  add_arguments=_add_arguments,
  run=_run,
  urls=("source", "out"),
)
