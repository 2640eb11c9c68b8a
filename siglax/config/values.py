"""Reading a config, and showing its values in messages."""

from __future__ import annotations

import difflib
import functools
import re
from typing import Any

from ml_collections import ConfigDict

from siglax.config import versions


def get(config: ConfigDict, field: str, **default) -> Any:
  """The value at a dotted path; ValueError names the nearest field when there is none."""
  node = config
  for i, key in enumerate(field.split(".")):
    try:
      node = node[index(key)] if isinstance(node, (tuple, list)) else node[key]
    except (KeyError, ValueError, IndexError, TypeError):
      if "default" in default and isinstance(node, dict):
        return default["default"]
      raise ValueError(unknown(config, field)) from None
  return node


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
  """{dotted path: value} of a config or of its dict."""
  if isinstance(node, (ConfigDict, dict)):
    items = node.items()
  elif isinstance(node, (tuple, list)) and any(isinstance(x, dict) for x in node):
    items = ((str(i), x) for i, x in enumerate(node))
  else:
    return {prefix: node}
  flat = {}
  for k, v in items:
    flat.update(flatten(v, f"{prefix}.{k}" if prefix else str(k)))
  return flat


def leaves(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
  """{field: value}; unlike in `flatten`, a tuple of specs is one value."""
  found = {}
  for key, value in config.items():
    found |= (
      leaves(value, f"{prefix}{key}.")
      if isinstance(value, ConfigDict)
      else {f"{prefix}{key}": value}
    )
  return found


def check_local(name: str, path):
  """ValueError for a path that is empty or a URL. name: of the flag or the field."""
  if problem := local_problem(path):
    raise ValueError(f"{name}={shown(str(path))} {problem}")


def check_path(name: str, path):
  """As `check_local`, for a path that may be a URL."""
  if problem := readable_problem(path):
    raise ValueError(f"{name}={shown(str(path))} {problem}")


def local_problem(path) -> str | None:
  """What keeps a path from being a local one, in words that follow "name=path "."""
  if not str(path):
    return "is empty; name a local folder or file"
  if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", str(path)):
    return "is a URL, which siglax does not open; name a local folder or file"
  return None


def readable_problem(path) -> str | None:
  """What keeps a path from being one that is read, local or a URL; as `local_problem`."""
  if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://.", str(path)):
    return None
  return local_problem(path)


def arguments(text: str) -> list[str]:
  """The parts of "name=value,name=value"; a comma that no name= follows is part of a value."""
  return list(filter(None, re.split(r",(?=[A-Za-z_]\w*=|$)", text)))


def step_range(text: str) -> tuple[int, int] | None:
  """(first, last) of "10:15", None for what is no range of steps from 1 up."""
  steps = re.fullmatch("([0-9]{1,10}):([0-9]{1,10})", text)
  first, last = map(int, steps.groups()) if steps else (0, 0)
  return (first, last) if 1 <= first <= last else None


def shown(value: Any) -> str:
  """repr(value), cut to about 80 characters."""
  try:
    text = repr(value)
  except ValueError:  # Python prints no integers of more than 4300 digits
    return "a number of more than 4300 digits"
  return text if len(text) <= 80 else f"{text[:60]} … {text[-15:]}"


def unknown(config: ConfigDict, field: str) -> str:
  if (new := versions.new_name(field)) is not None:
    return f"config.{field} is called config.{new} now"
  fields = list(flatten(config))
  same_name = [f for f in fields if f.rpartition(".")[2] == field.rpartition(".")[2]]
  nearest = functools.partial(difflib.get_close_matches, field, n=1)
  near = nearest(same_name, cutoff=0.0) or nearest(fields, cutoff=0.5)
  hint = f"did you mean config.{near[0]}?" if near else "siglax config lists every field"
  return f"config.{shown(field)[1:-1]} is unknown; {hint}"


def index(key: str) -> int:
  """Of an entry of a tuple, from 0; KeyError for another word."""
  if not re.fullmatch("0|[1-9][0-9]{0,8}", key):
    raise KeyError(key)
  return int(key)


def one_line(error: BaseException) -> str:
  """The text of an exception in one line, its type where it says nothing. A long one is cut in its
  middle: C++ libraries put the cause at the end.
  """
  text = " ".join(str(error).replace("\\n", " ").split())
  return (text if len(text) <= 300 else f"{text[:120]} … {text[-150:]}") or type(error).__name__
