"""The fields in words: what `siglax config` prints, and docs/config.md, which docs/generate.py
writes.
"""

from __future__ import annotations

from collections.abc import Iterable
import fnmatch
import html
import textwrap

from ml_collections import ConfigDict

from siglax.config import fields
from siglax.config.declared import GROUPS
from siglax.config.parts import Field
from siglax.config.parts import did_you_mean
from siglax.config.values import get
from siglax.config.values import leaves

WIDTH = 100  # columns of what is printed
START = """# The fields of a config

`python docs/generate.py` makes this file of their declarations in `siglax/config/declared/`.

A config file sets a field in Python, `c.optim.lr = 3e-4`, and a command line by
`--config.optim.lr=3e-4`. The fields of one config, their values and where each comes from (the
default, the file, the command line):

```
siglax config --config configs/quickstart.py 'optim.*'
```

One unit of a duration is set (`total_steps`, `total_examples` or `total_epochs`); another one on
the command line replaces the file's. A field that follows another has its value, and that one is
the one to set. A run may be resumed with other values of the fields with a "yes" under resume, and
`siglax evaluate` may change those with one under evaluation; no other.
"""


def matching(pattern: str | None) -> list[str]:
  """The names of the fields that match: a glob, or a part of the name; all for None. ValueError
  where there is none.
  """
  names = list(fields.all_fields())
  if pattern is None:
    return names
  wanted = pattern.removeprefix("config.")
  if any(sign in wanted for sign in "*?["):
    found = fnmatch.filter(names, wanted)
  else:
    found = [name for name in names if wanted in name]
  if not found:
    raise ValueError(f"no field matches {pattern!r}{did_you_mean(wanted, names)}")
  return found


def origins(config: ConfigDict, in_file: dict, given: Iterable[str]) -> dict[str, str]:
  """{field: where its value comes from}.

  in_file: the values before those of the command line, as of `leaves`. given: the places that the
  command line set.
  """
  defaults, values = leaves(fields.default()), leaves(config)
  set_there = {fields.at(place) for place in given}
  found = {}
  for name, field in fields.all_fields().items():
    if field.follows:
      found[name] = f"follows {field.follows}"
    elif name in set_there or values[name] != in_file[name]:  # the unit that another one replaced
      found[name] = "command line"
    else:
      found[name] = "default" if values[name] == defaults[name] else "file"
  return found


def listing(config: ConfigDict, origin: dict[str, str], names: list[str]) -> str:
  """The fields of these names, with values, where they come from, and their sentences; by group."""
  known = fields.all_fields()
  left, right = (max(map(len, column)) for column in (names, [origin[name] for name in names]))
  blocks = []
  for group in GROUPS:
    shown = [name for name in names if name in group.fields()]
    if shown:
      title = f"{group.name}: {group.doc}" if group.name else group.doc
      blocks.append("\n".join(textwrap.wrap(title, WIDTH)))
    for name in shown:
      middle = WIDTH - left - right - 4
      values = textwrap.wrap(repr(get(config, name)), middle, break_on_hyphens=False)
      lines = [f"{name:{left}}  {values[0]:{middle}}  {origin[name]}"]
      lines += [" " * (left + 2) + value for value in values[1:]]
      lines += textwrap.wrap(
        _sentence(known[name]),
        WIDTH,
        initial_indent=" " * (left + 2),
        subsequent_indent=" " * (left + 2),
        break_on_hyphens=False,
      )
      blocks.append("\n".join(lines))
  return "\n\n".join(blocks)


def markdown() -> str:
  """docs/config.md: a table for each group."""
  known = fields.all_fields()
  parts = [START]
  for group in GROUPS:
    parts += [f"## {group.name or 'Without a group'}", html.escape(group.doc, quote=False)]
    rows = ["| field | default | what it is | values | resume | evaluation |", "|" + "---|" * 6]
    for name in group.fields():
      field = known[name]
      default = f"follows `{field.follows}`" if field.follows else f"`{field.default!r}`"
      cells = (
        f"`{name}`",
        default,
        html.escape(field.doc, quote=False),
        "" if field.follows else field.allowed,
        "yes" if field.resume else "",
        "yes" if field.evaluation else "",
      )
      rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    parts.append("\n".join(rows))
  return "\n\n".join(part.strip("\n") for part in parts)


def _sentence(field: Field) -> str:
  return field.doc if field.follows else f"{field.doc} ({field.allowed})"
