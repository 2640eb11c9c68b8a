"""The fields of a part that a dict gives: those of a data spec, or of an evaluation task."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping
import difflib
from typing import Any

from siglax.config.parts import Field


def filled(
  given: Mapping[str, Any],
  fields: Mapping[str, Field],
  owner: str,
  where: str = "",
  renamed: Mapping[str, str] | None = None,
) -> dict[str, Any]:
  """{field: what is given, or its default}, in the order of the declarations.

  owner: whose fields they are, for the messages. where: what stands before the name of a field in
  them, such as "config.data.0.". renamed: {name of an earlier version: today's}. A field whose
  default is None must be given unless it is optional. Raises ValueError in one line for a name that
  is unknown, a field that is missing, and a value that its declaration does not allow.
  """
  for name in given:
    if name not in fields:
      raise ValueError(f"{where}{_unknown(name, fields, owner, renamed or {})}")
  for name, field in fields.items():
    if name not in given:
      if required(field):
        raise ValueError(f"{where}{name} is missing; {owner} needs it")
    elif problem := field.problem(given[name]):
      raise ValueError(f"{where}{name}={given[name]!r} {problem}")
  return {name: given.get(name, field.default) for name, field in fields.items()}


def refuse_taken(owner: str, fields: Mapping[str, Field], taken: Iterable[str], what: str):
  """ValueError where a part declares a field that every data spec, or task, has already.

  owner, what: for the message.
  """
  if both := set(fields) & set(taken):
    raise ValueError(
      f"{owner} declares the field {min(both)!r}, which every {what} has; give it another name"
    )


def required(field: Field) -> bool:
  """Whether a field must be given."""
  return field.default is None and not field.optional


def table(fields: Mapping[str, Field]) -> str:
  """The fields as a table in Markdown."""
  lines = ["| field | default | values | what it is |", "|---|---|---|---|"]
  for name, field in fields.items():
    default = "must be given" if required(field) else f"`{field.default!r}`"
    cells = f"`{name}`", default, field.allowed, field.doc
    lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
  return "\n".join(lines)


def _unknown(name, fields, owner: str, renamed: Mapping[str, str]) -> str:
  near = difflib.get_close_matches(str(name), fields, n=1, cutoff=0.75)
  hint = f"did you mean {near[0]}? " if near else ""
  if (new := renamed.get(name)) in fields:
    hint = f"it is called {new} now; "
  shown = name if str(name).isidentifier() else repr(name)
  return f"{shown} is unknown; {hint}{owner} has {', '.join(fields)}"
