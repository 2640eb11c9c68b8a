"""Fields that had other names in earlier versions of config.json: such a file is read, and who
gives an old name is told.
"""

from __future__ import annotations

import re

SIGLAX = "0.1.0"  # of the package; siglax.__version__, which setup.py gives too
VERSION = (
  2  # that a config.json is written with; a change of the names or the meaning of fields raises it
)
# Version 1 stated no version; `size` was the name of three things.
TOWER = {"size": "variant"}  # of model.image and model.text
SPEC = {"size": "examples"}  # of a data spec
TASK = {"size": "examples"}  # of an evaluation task


def upgrade(groups: dict) -> dict:
  """The groups of a config.json with today's names, without the version. ValueError for a version
  that is not known.

  What is damaged is left as it is, for the checks of the fields.
  """
  groups = dict(groups)
  version = groups.pop("version", 1)
  if isinstance(loss := groups.get("loss"), dict):
    groups["loss"] = {"dtype": "float32"} | loss  # as all were before there was the field
  if version == VERSION:
    return groups
  if version != 1:
    raise ValueError(f"it is of version {version!r}; this siglax reads versions 1 to {VERSION}")
  if isinstance(model := groups.get("model"), dict):
    groups["model"] = {
      name: _renamed(of, TOWER) if name in ("image", "text") else of for name, of in model.items()
    }
  groups["data"] = _each(groups.get("data", ()), _spec)
  if isinstance(evaluation := groups.get("eval"), dict):
    groups["eval"] = {**evaluation, "tasks": _each(evaluation.get("tasks", ()), _task)}
  return groups


def new_name(field: str) -> str | None:
  """Today's name of a field of a group that was renamed, None for others: "model.image.variant" of
  "model.image.size".
  """
  found = re.fullmatch(r"(model\.(?:image|text)\.)(\w+)", field)
  return found[1] + TOWER[found[2]] if found and found[2] in TOWER else None


def of_old_key(message: str) -> str | None:
  """What to say in place of a ConfigDict's message that a tower has no such key; None for other
  messages.
  """
  found = re.search(r'Key "(\w+)" does not exist', message)
  new = TOWER.get(found[1]) if found else None
  return (
    f'"{found[1]}" is called "{new}" now' if new and re.search(rf"\b{new}\b", message) else None
  )


def _spec(spec):
  return _renamed(spec, SPEC) if isinstance(spec, dict) and spec.get("source") == "shapes" else spec


def _task(task):
  task = _renamed(task, TASK)
  return (
    {**task, "data": _spec(task["data"])} if isinstance(task, dict) and "data" in task else task
  )


def _each(values, function):
  return [function(value) for value in values] if isinstance(values, (list, tuple)) else values


def _renamed(of, names: dict[str, str]):
  return (
    {names.get(name, name): value for name, value in of.items()} if isinstance(of, dict) else of
  )
