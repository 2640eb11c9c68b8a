"""Whether a value is one that a field can have: its type, its size, and what JSON can hold."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from siglax.config.fields import all_fields
from siglax.config.parts import Field
from siglax.config.values import get
from siglax.config.values import leaves
from siglax.config.values import shown
from siglax.config.values import unknown

MAX_INT, MAX_FLOAT = 2**63 - 1, 3.4e38  # what an int64 and a float32 hold


def check_values(config: ConfigDict):
  """ValueError for a field that is missing, unknown, or of a value that its declaration does not
  allow.

  That is another type, None where the field is not optional, a number that is not finite or too
  large, what JSON cannot hold, a name that is unknown, a number out of bounds, or another value
  than that of the field that it follows.
  """
  known = all_fields()
  for name in known.keys() ^ leaves(config).keys():
    raise ValueError(f"config.{name} is missing" if name in known else unknown(config, name))
  for name, field in known.items():
    _check_type(name, field, get(config, name))
  for name, field in known.items():
    value = get(config, name)
    if not field.follows:
      if problem := field.problem(value):
        raise ValueError(f"config.{name}={shown(value)} {problem}")
    elif value != (source := get(config, field.follows)):
      raise ValueError(
        f"config.{name}={shown(value)} is not config.{field.follows}={shown(source)}, which it "
        "follows; set that one"
      )


def check_value(name: str, value: Any):
  """ValueError for what the field of that name can hold in no config."""
  known = all_fields()
  if name not in known:
    inside = [f for f in known if f.startswith(f"{name}.")]
    what = (
      f"a group of fields; set one, such as config.{inside[0]}"
      if inside
      else "no field; siglax config lists them all"
    )
    raise ValueError(f"config.{name}={shown(value)}: config.{name} is {what}")
  _check_type(name, known[name], value)


def _check_type(name: str, field: Field, value: Any):
  if problem := field.type_problem(value):
    raise ValueError(f"config.{name}={shown(value)} {problem}")
  if value is not None:
    _check_plain(name, value)


def _check_plain(field: str, value: Any):
  """ValueError for what config.json cannot hold, or no array."""
  if isinstance(value, (dict, ConfigDict)):
    for key, inner in value.items():
      if not isinstance(key, str):
        raise ValueError(f"config.{field} has the key {shown(key)}; a key must be a name")
      _check_plain(f"{field}.{key}", inner)
  elif isinstance(value, (tuple, list)):
    for i, inner in enumerate(value):
      _check_plain(f"{field}.{i}", inner)
  elif isinstance(value, (int, float)):
    if not abs(value) <= (MAX_INT if isinstance(value, int) else MAX_FLOAT):
      raise ValueError(
        f"config.{field}={shown(value)} is not finite, or too large: at most {MAX_INT} or "
        f"{MAX_FLOAT:g}"
      )
  elif not isinstance(value, str | None):
    raise ValueError(
      f"config.{field}={shown(value)} is of type {type(value).__name__}, which a config cannot hold"
    )
