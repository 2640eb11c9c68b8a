"""Names of classes and templates that a task gives: as they are, in a file, or as a named set."""

from __future__ import annotations

import json
import pathlib

# Files with a template a line that come with siglax: {name: file}.
SETS = {path.stem: path for path in (pathlib.Path(__file__).parent / "templates").glob("*.txt")}


def classnames(value: str | tuple[str, ...], task: str | None = None) -> tuple[str, ...]:
  """The names themselves, or those of a file: one a line, or in JSON a list or CLIP_benchmark's
  {data set: list}. Of several data sets it takes the one that is called as the task.

  Raises ValueError for a file without names.
  """
  if not isinstance(value, str):
    return tuple(value)
  if not value.endswith(".json"):
    return _lines(value, "classnames")
  try:
    found = json.loads(_text(value, "classnames"))
  except (ValueError, RecursionError) as e:
    raise ValueError(f"classnames={value!r} is no JSON: {e}") from None
  if isinstance(found, dict):
    if len(found) > 1 and task not in found:
      raise ValueError(
        f"classnames={value!r} has those of {', '.join(found)}; call the task as one of them, and "
        "give --classnames"
      )
    found = next(iter(found.values()), None) if len(found) < 2 else found[task]
  if problem := classnames_problem(tuple(found) if isinstance(found, list) else ()):
    raise ValueError(f"classnames={value!r} {problem}")
  return tuple(found)


def templates(value: str | tuple[str, ...]) -> tuple[str, ...]:
  """The templates themselves, those of a set or of a file; ValueError for one without {}."""
  if not isinstance(value, str):
    return tuple(value)
  if "{}" in value:
    return (value,)
  found = _lines(str(SETS.get(value, value)), "templates")
  found = tuple(text.replace("{c}", "{}") for text in found)
  if wrong := [text for text in found if text.count("{}") != 1]:
    raise ValueError(f"templates={value!r}: {wrong[0]!r} must have one {{}} for the name")
  return found


def classnames_problem(value) -> str | None:
  good = value and (isinstance(value, str) or all(isinstance(x, str) for x in value))
  return None if good else "must be names, one for each label, or a file of them"


def templates_problem(value) -> str | None:
  texts = (value,) if isinstance(value, str) and "{" in value else value
  good = value and (isinstance(texts, str) or all(_is_template(text) for text in texts))
  return (
    None
    if good
    else (
      'must be texts with one {} each, such as ("a photo of a {}.",), a file of them, or '
      f"{' or '.join(SETS)}"
    )
  )


def _is_template(value) -> bool:
  return isinstance(value, str) and value.count("{}") == 1


def _lines(path: str, field: str) -> tuple[str, ...]:
  found = tuple(line.strip() for line in _text(path, field).splitlines() if line.strip())
  if not found:
    raise ValueError(f"{field}={path!r} has no line")
  return found


def _text(path: str, field: str) -> str:
  try:
    return pathlib.Path(path).read_text(encoding="utf-8-sig")
  except (OSError, UnicodeDecodeError) as e:
    raise ValueError(
      f"{field}={path!r} cannot be read: {getattr(e, 'strerror', None) or e}"
    ) from None
