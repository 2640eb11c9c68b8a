"""Evaluation tasks of a command line: `siglax evaluate --tasks`."""

from __future__ import annotations

from collections.abc import Iterable
import re
from typing import Any

from siglax import config as config_lib
from siglax.data import sources
from siglax.evals import KINDS
from siglax.evals import names
from siglax.evals.kind import COMMON_FIELDS
from siglax.evals.kind import Kind


def parse(given: Iterable[str]) -> tuple[dict, ...]:
  """The tasks of the words of a command line, each as of `parse_task`, or a config file with
  arguments behind a colon, whose config.eval.tasks are taken. ValueError in one line.
  """
  found = []
  for text in given:
    if re.match(r"[^=]*\.py(:|$)", text):
      tasks = config_lib.load(text).eval.tasks
      if not tasks:
        raise ValueError(f"--tasks {text}: its config.eval.tasks is empty; name what to evaluate")
      found += tasks
    else:
      found.append(parse_task(text))
  return tuple(found)


def parse_task(text: str) -> dict[str, Any]:
  """The task of `KIND:data=DATA,name=NAME,field=value`, called as its kind where it has no name.

  A data spec is written as on all command lines, `a.parquet:label=fine`; `data.field=value` gives
  another of its fields. Raises ValueError for a kind or a field that is unknown.
  """
  name, _, rest = text.partition(":")
  kind = KINDS.find(name, f"--tasks {text}: kind")
  task: dict[str, Any] = {"kind": name, "name": name}
  specs: dict[str, str] = {}
  for part in filter(None, re.split(r",(?=[A-Za-z_][\w.]*=|$)", rest)):
    field, equals, value = part.partition("=")
    if not equals:
      raise ValueError(f"--tasks {text}: {part!r} must be field=value")
    head, _, inner = field.partition(".")
    if inner and head in specs:
      more = "," if re.search(r":[A-Za-z_]\w*=", specs[head]) else ":"
      specs[head] += f"{more}{inner}={value}"
    elif field in ("data", *kind.specs):
      specs[field] = value
    else:
      task[field] = _value(kind, field, value, text)
  return task | {field: sources.parse_spec(spec) for field, spec in specs.items()}


def _value(kind: Kind, field: str, value: str, text: str):
  if field not in (*kind.fields, *COMMON_FIELDS):
    raise ValueError(
      f"--tasks {text}: {kind.name} has no field {field}, but {', '.join(kind.fields)}; a field of "
      f"its data is written data.{field}={value}, behind data="
    )
  of = kind.fields.get(field)
  return value if of is None or of.kind is str else config_lib.parse(value)


def with_classnames(tasks: tuple, file: str) -> tuple:
  """The tasks, of which those that name classes and give none have the names of a file."""
  lacking = [
    "classnames" in KINDS[task["kind"]].fields and task.get("classnames") is None for task in tasks
  ]
  if not any(lacking):
    raise ValueError(f"--classnames {file}: no task is without classnames of its own; leave it out")
  return tuple(
    {**task, "classnames": names.classnames(str(file), task["name"])} if without else task
    for task, without in zip(tasks, lacking)
  )
