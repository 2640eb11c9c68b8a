"""A group of fields, as config.image."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import functools

from siglax.config import lookups
from siglax.config.durations import Duration
from siglax.config.parts import Field

MANY = 2**31 - 1  # the most rows that an array is indexed by


@dataclasses.dataclass(frozen=True)
class Group:
  """Fields that stand together.

  name: dotted, empty for the fields of no group. doc: one sentence. declared: {name in the group:
  its field, or a duration, which is three}.
  parts: the kinds of parts whose own fields stand here too (lookups.REGISTRIES).
  resume, evaluation: of all its fields (see `Field`).
  """

  name: str
  doc: str
  declared: Mapping[str, Field | Duration]
  parts: tuple[str, ...] = ()
  resume: bool = False
  evaluation: bool = False

  @functools.cached_property
  def durations(self) -> dict[str, Duration]:
    """{dotted name: its declaration}."""
    return {
      self._dotted(name): what for name, what in self.declared.items() if isinstance(what, Duration)
    }

  def fields(self) -> dict[str, Field]:
    """{dotted name: field}, with those that parts declare. ValueError where one of these takes a
    name that is there already.
    """
    found = dict(self._own_fields)
    for kind in self.parts:
      registry = lookups.registry(kind)
      for name, field in registry.fields().items():
        if (dotted := self._dotted(name)) in found:
          raise ValueError(
            f"{registry.article} {kind} declares the field {name!r}, which config.{self.name} has "
            "already; "
            "give it another name"
          )
        found[dotted] = field
    return found

  @functools.cached_property
  def _own_fields(self) -> dict[str, Field]:
    found = {}
    for name, what in self.declared.items():
      dotted = self._dotted(name)
      found |= what.fields(dotted) if isinstance(what, Duration) else {dotted: what}
    return {
      name: dataclasses.replace(
        field,
        resume=field.resume or self.resume,
        evaluation=field.evaluation or self.evaluation,
      )
      for name, field in found.items()
    }

  def _dotted(self, name: str) -> str:
    return f"{self.name}.{name}" if self.name else name
