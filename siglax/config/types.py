"""Whether a value is one that a field can have: its type, its size, and what JSON can hold."""

from __future__ import annotations

import functools
from typing import Any

from ml_collections import ConfigDict

from siglax.config import parts
from siglax.config.durations import DURATIONS
from siglax.config.durations import UNITS
from siglax.config.fields import FOLLOWS
from siglax.config.fields import default
from siglax.config.values import get
from siglax.config.values import leaves
from siglax.config.values import shown
from siglax.config.values import unknown

MAX_INT, MAX_FLOAT = 2**63 - 1, 3.4e38  # what an int64 and a float32 hold


def check_values(config: ConfigDict):
  """ValueError for a field that is missing, unknown, or of a value that a field of its type cannot
  have.

  That is another type, None where the default is not, a number that is not finite or too large, or
  what JSON cannot hold.
  """
  kinds = _kinds()
  for field in kinds.keys() ^ leaves(config).keys():
    raise ValueError(f"config.{field} is missing" if field in kinds else unknown(config, field))
  for field in kinds:
    check_value(field, get(config, field))
  for field, source in FOLLOWS.items():
    if (value := get(config, field)) != get(config, source):
      followed = f"config.{source}={shown(get(config, source))}"
      raise ValueError(
        f"config.{field}={shown(value)} is not {followed}, which it follows; set that one"
      )


def check_value(field: str, value: Any):
  if field not in (kinds := _kinds()):
    inside = [f for f in kinds if f.startswith(f"{field}.")]
    what = (
      f"a group of fields; set one, such as config.{inside[0]}"
      if inside
      else "no field of siglax/config/fields.py"
    )
    raise ValueError(f"config.{field}={shown(value)}: config.{field} is {what}")
  kind, optional = kinds[field]
  if value is None and optional:
    return
  kinds_too = {float: (int, float), tuple: (tuple, list)}.get(kind, kind)
  if not isinstance(value, kinds_too) or isinstance(value, bool) and kind in (int, float):
    needed = f"{kind.__name__}{', or None' if optional else ''}"
    raise ValueError(
      f"config.{field}={shown(value)} is of type {type(value).__name__}; it needs {needed}"
    )
  _check_plain(field, value)


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


def _kinds() -> dict[str, tuple[type, bool]]:
  """{field: (its type, whether it may be None)} of the fields that are no groups."""
  return _kinds_with(tuple(parts.registered))


@functools.lru_cache(maxsize=1)
def _kinds_with(registered: tuple):
  """registered: the parts that users have added, each of which may have fields of its own."""
  del registered
  config = default()
  durations = {f"{name}_{k}" for name in DURATIONS for k in UNITS}
  kinds = {}
  for field, value in leaves(config).items():
    head, _, key = field.rpartition(".")
    kinds[field] = (
      (get(config, head) if head else config).get_type(key),
      value is None or field in durations,
    )
  return kinds
