"""All fields of a config together, as siglax/config/declared/ and the parts declare them, and the
config of their defaults.
"""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict
from ml_collections import FieldReference
from ml_collections.config_dict import placeholder

from siglax.config.declared import GROUPS
from siglax.config.parts import Field
from siglax.config.values import get

DURATIONS = {name: duration for group in GROUPS for name, duration in group.durations.items()}


class Inherited(FieldReference):
  """A value that a run takes from the checkpoint that it starts from, unless it `is_set`: somebody
  has given one, be it the default.
  """

  def __init__(self, default, field_type):
    super().__init__(default, field_type)
    self.is_set = False

  def set(self, value, type_safe=True):
    super().set(value, type_safe)
    self.is_set = True

  def __setstate__(self, state):
    super().__setstate__(state)
    self.is_set = state["is_set"]


def unset_inherited(config: ConfigDict) -> list[str]:
  """The names of the inherited fields that nobody has set in a config of `default`."""
  found = []
  for name, field in all_fields().items():
    if field.inherited and not field.follows:
      head, _, key = name.rpartition(".")
      value = dict(get(config, head).items(preserve_field_references=True))[key]
      if isinstance(value, Inherited) and not value.is_set:
        found.append(name)
  return found


def all_fields() -> dict[str, Field]:
  """{dotted name: field}, by group. One that follows another is like that one, but for its
  sentence.
  """
  found = {name: field for group in GROUPS for name, field in group.fields().items()}
  return {
    name: dataclasses.replace(found[field.follows], doc=field.doc, follows=field.follows)
    if field.follows
    else field
    for name, field in found.items()
  }


def at(place: str) -> str | None:
  """The name of the field at or around a place in a config: "data" of "data.0.path"; None where
  there is none.
  """
  known = all_fields()
  while place and place not in known:
    place = place.rpartition(".")[0]
  return place or None


def to_set(name: str) -> str:
  """The name of the field that a user sets for this one: that which it follows, or its own."""
  return all_fields()[name].follows or name


def changeable_in_evaluation() -> list[str]:
  """The names of the fields that `siglax evaluate` may change; "eval.*" where it may change a whole
  group.
  """
  return [
    name
    for group in GROUPS
    for name in (
      [f"{group.name}.*"]
      if group.evaluation
      else [name for name, field in group.fields().items() if field.evaluation]
    )
  ]


def default() -> ConfigDict:
  """The config with every default."""
  c = ConfigDict()
  known = all_fields()
  for name, field in known.items():
    if not field.follows:
      _add(c, name, field)
  for name, field in known.items():
    if field.follows:
      (group, key), (source_group, source_key) = (
        (get(c, head), key) for head, _, key in (x.rpartition(".") for x in (name, field.follows))
      )
      group[key] = source_group.get_oneway_ref(source_key)
  return c.lock()


def _add(c: ConfigDict, name: str, field: Field):
  """Sets a default, in a group that is made where it is the first there."""
  *groups, key = name.split(".")
  for group in groups:
    if group not in c:
      c[group] = ConfigDict()
    c = c[group]
  if field.inherited:
    c[key] = Inherited(field.default, field.kind)
    return
  if field.optional or not isinstance(field.kind, type):
    c[key] = placeholder(field.kind if isinstance(field.kind, type) else object)
  if field.default is not None:
    c[key] = field.default
