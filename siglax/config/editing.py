"""Making, changing and comparing configs: config files, fields on a command line, config.json."""

from __future__ import annotations

import ast
import inspect
import json
import pathlib
import re
from typing import Any

from ml_collections import ConfigDict

from siglax.config import fields
from siglax.config import imports
from siglax.config import types
from siglax.config import values
from siglax.config import versions
from siglax.config.declared import FREE_IN_SPECS
from siglax.config.durations import UNITS
from siglax.config.fields import DURATIONS
from siglax.config.fields import default
from siglax.config.values import flatten
from siglax.config.values import get
from siglax.config.values import index
from siglax.config.values import shown
from siglax.config.values import unknown


def set_duration(config: ConfigDict, name: str, **unit):
  """Sets one unit of a duration and clears the others, as `set_duration(c, "total", epochs=1)`."""
  ((chosen, value),) = unit.items()
  for k in UNITS:
    _set(config, f"{name}_{k}", value if k == chosen else None)


def set_field(config: ConfigDict, field: str, value: Any):
  """Sets the field of a dotted name; ValueError for an unknown name or a wrong type."""
  _set(config, field, _tuples(value))


def replaced(config: ConfigDict, values_of: dict[str, Any]) -> ConfigDict:
  """A copy with these values, {field: value}, also in the fields that follow them. Like any copy
  without references it takes nothing from a checkpoint any more.
  """
  copy = config.copy_and_resolve_references()
  for name, field in fields.all_fields().items():
    if (source := field.follows or name) in values_of:
      set_field(copy, name, values_of[source])
  return copy


def load(path: str, overrides: dict[str, str] | None = None) -> ConfigDict:
  """The config of `get_config(**arguments)` in a Python file, with overrides.

  path: `configs/x.py` or `configs/x.py:name=value,name=value`, the arguments of get_config.
  overrides: field → text as given on a command line, e.g. {"optim.lr": "3e-4", "data.0.path":
  "a.parquet"}. Raises ValueError in one line for a missing file, an unknown argument or field, or a
  value of the wrong type.
  """
  config = made_by(path, "get_config", ConfigDict)
  for field, text in (overrides or {}).items():
    override(config, field, text)
  return config


def made_by(path: str, function: str, kind: type) -> Any:
  """What a function of a Python file returns, an object of `kind`.

  path: the file, with the arguments of the function after a colon. Raises ValueError in one line.
  """
  filename, _, arguments = path.partition(":")
  file = pathlib.Path(filename)
  if not file.is_file():
    known = sorted(str(p) for p in pathlib.Path("configs").glob("*.py"))
    raise ValueError(
      f"--config {filename}: no such file" + (f"; here are {', '.join(known)}" if known else "")
    )
  if file.suffix != ".py":
    raise ValueError(f"--config {filename}: not a Python file")
  module = imports.execute(filename, "--config")
  if not callable(make := getattr(module, function, None)):
    raise ValueError(f"--config {filename}: the file defines no {function}()")
  arguments = _arguments(arguments, make, filename)
  with imports.in_one_line("--config", filename):
    made = make(**arguments)
  if not isinstance(made, kind):
    what = "the config" if kind is ConfigDict else f"a {kind.__name__}"
    raise ValueError(
      f"--config {filename}: {function}() returns {shown(made)}; it must return {what}"
    )
  return made


def override(config: ConfigDict, field: str, text: str):
  """Sets a field from its text on the command line; of a duration, the other units are cleared.

  "none" is None, but for a field that takes no None: there it is a word, as of train.remat.
  """
  for name in DURATIONS:
    if field in [f"{name}_{k}" for k in UNITS]:
      set_duration(config, name, **{field.rpartition("_")[2]: parse(text)})
      return
  old, (head, _, key) = get(config, field, default=None), field.rpartition(".")
  parent = get(config, head, default=None) if head else config
  kind = parent.get_type(key) if isinstance(parent, ConfigDict) and key in parent else type(old)
  declared = fields.all_fields().get(field)
  may_be_none = declared is None or declared.optional
  is_text = kind is str and not (may_be_none and text.lower() == "none")
  _set(config, field, text if is_text else parse(text))


def to_json(config: ConfigDict) -> str:
  """The resolved config as JSON, with the version of its names; `from_json` reads it back."""
  return json.dumps(
    {"version": versions.VERSION} | config.copy_and_resolve_references().to_dict(), indent=1
  )


def from_json(text: str) -> ConfigDict:
  """The config that `to_json` wrote, of this version or an earlier one.

  Raises ValueError in one line for what is no such JSON, or has fields that are not known.
  """
  try:
    groups = json.loads(text)
  except (ValueError, RecursionError) as e:
    raise ValueError(f"no JSON, or cut short: {values.one_line(e)}") from e
  if not isinstance(groups, dict):
    raise ValueError(f"holds {shown(groups)}; it must be a JSON object")
  if "batch_size" not in groups and {"model_type", "architectures"} & groups.keys():
    raise ValueError("it describes a model of Hugging Face; give a run folder of siglax train")
  config = default()
  for group, value in versions.upgrade(groups).items():
    _update(config, group, value)
  return config


def read(file) -> ConfigDict:
  """The config of a run folder's config.json; ValueError that names the file for one that is
  damaged, or of a newer siglax.
  """
  try:
    return from_json(pathlib.Path(file).read_text())
  except (OSError, ValueError) as e:
    raise ValueError(
      f"{file} is no config of this siglax: {e.strerror if isinstance(e, OSError) else e}"
    ) from e


def differences(
  first: ConfigDict, second: ConfigDict, where="there", and_where="here"
) -> list[str]:
  """Fields that keep two configs from being the same run, each as "field is A there and B here"."""
  a, b = (flatten(c.copy_and_resolve_references()) for c in (first, second))
  free = {name for name, field in fields.all_fields().items() if field.resume or field.follows}
  return [
    f"{k} is {a.get(k)!r} {where} and {b.get(k)!r} {and_where}"
    for k in sorted(a.keys() | b.keys())
    if a.get(k) != b.get(k) and not k.endswith(FREE_IN_SPECS) and fields.at(k) not in free
  ]


def _arguments(text: str, function, filename: str) -> dict[str, Any]:
  """{"smoke": True} of "smoke=True"; unknown names are errors, unless the function takes any, or a
  field of a data spec stands before them: train=a.csv:caption=title,weight=2 is one argument.
  """
  parameters = inspect.signature(function).parameters.values()
  known = [p.name for p in parameters if p.kind != p.VAR_KEYWORD]
  any_name, arguments = len(known) < len(parameters), {}
  parts: list[str] = []
  for part in values.arguments(text):
    if parts and re.search(r":[A-Za-z_]\w*=", parts[-1]) and part.partition("=")[0] not in known:
      parts[-1] += f",{part}"
    else:
      parts.append(part)
  for part in parts:
    name, equals, value = part.partition("=")
    if not (name in known or any_name) or not equals:
      raise ValueError(
        f"--config {filename}:{part}: arguments are {', '.join(f'{k}=…' for k in known) or 'none'}"
      )
    arguments[name] = parse(value)
  return arguments


def parse(text: str) -> Any:
  """The value that a text on a command line is: a literal of Python, or else the text itself."""
  lowered = {"true": True, "false": False, "none": None}
  if text.lower() in lowered:
    return lowered[text.lower()]
  try:
    return _tuples(ast.literal_eval(text))
  except (
    ValueError,
    SyntaxError,
    TypeError,
    MemoryError,
    RecursionError,
  ):  # also what is too deeply nested for Python
    return text


def _set(config: ConfigDict, field: str, value: Any):
  """Sets a dotted path; tuples of specs are rebuilt around the changed entry."""
  head, _, key = field.rpartition(".")
  parent = get(config, head) if head else config
  if isinstance(parent, ConfigDict):
    if key not in parent:
      raise ValueError(unknown(config, field))
    types.check_value(field, value)
    parent[key] = value
  elif isinstance(parent, dict):
    _set(config, head, {**parent, key: value})
  elif isinstance(parent, tuple):
    get(config, field)
    _set(config, head, tuple(value if i == index(key) else x for i, x in enumerate(parent)))
  else:
    raise ValueError(unknown(config, field))


def _update(config: ConfigDict, field: str, value: Any):
  if isinstance(value, dict) and isinstance(get(config, field), ConfigDict):
    for k, v in value.items():
      _update(config, f"{field}.{k}", v)
  else:
    _set(config, field, _tuples(value))


def _tuples(value):
  if isinstance(value, dict):
    return {k: _tuples(v) for k, v in value.items()}
  return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value
