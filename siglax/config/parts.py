"""What a part declares of itself, and where parts of one kind are found by their names.

A part is a loss, a tower, a source of data, a kind of evaluation, a format, an optimizer or a
command: one object, in a file of its own, with all that belongs to it. Each room that holds parts
has one Registry. A part of a user's own file is registered in the same way
(siglax/config/imports.py), before a config is made.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import difflib
from typing import Any
from typing import Generic
from typing import TypeVar


@dataclasses.dataclass(frozen=True)
class Field:
  """One field of a config, of a data spec or of an evaluation task, and all that is known of it.

  default: the value where nobody gives one. doc: one sentence, with the unit.
  kind: the type of its values; needed where the default is None only. optional: it may be None.
  choices: the names it may have, or a function that returns them. least, most: inclusive bounds of
  a number; above,
  below: exclusive ones. resume: a run may go on with another value. evaluation: `siglax evaluate`
  may change it.
  """

  default: Any
  doc: str
  kind: type | None = None
  optional: bool = False
  choices: tuple[str, ...] | Callable[[], tuple[str, ...]] | None = None
  least: float | None = None
  most: float | None = None
  above: float | None = None
  below: float | None = None
  resume: bool = False
  evaluation: bool = False

  @property
  def names(self) -> tuple[str, ...] | None:
    """The names it may have, None where it is no choice."""
    return self.choices() if callable(self.choices) else self.choices

  def problem(self, value) -> str | None:
    """What is wrong with a value of the right type, in words that follow "name=value "; None for a
    good one.
    """
    if value is None:
      return None
    if (names := self.names) is not None:
      return None if value in names else f"is unknown; known are {', '.join(names)}"
    or_none = ", or None" if self.optional else ""
    if self.least is not None and value < self.least:
      return f"must be at least {self.least}{or_none}"
    if self.most is not None and value > self.most:
      return f"must be at most {self.most:,}{or_none}"
    if self.above is not None and value <= self.above:
      return ("must be positive" if self.above == 0 else f"must be above {self.above}") + or_none
    if self.below is not None and value >= self.below:
      return f"must be below {self.below}{or_none}"
    return None


Part = TypeVar("Part")

# (kind, name) of the parts that were added to registries after these were made: a user's own, in
# the order they came.
registered: list[tuple[str, str]] = []


class Registry(Mapping, Generic[Part]):
  """{name: part} of one kind, in the order of registration.

  kind: what a message calls the part, such as "loss". parts: objects with a `name`. merged: the
  parts' fields stand side by side in one group of the config, so that a name has one declaration.
  """

  def __init__(self, kind: str, parts: tuple[Part, ...] = (), merged: bool = False):
    self.kind, self._merged = kind, merged
    self._parts: dict[str, Part] = {}
    for part in parts:
      self._add(part)

  def register(self, part: Part) -> Part:
    """Adds a part of a user's own. ValueError where its name is taken, or where `fields` would
    raise.
    """
    self._add(part)
    try:
      if self._merged:
        self.fields()
    except ValueError:
      self.forget(part.name)
      raise
    registered.append((self.kind, part.name))
    return part

  def forget(self, name: str):
    """Takes a part out again."""
    del self._parts[name]

  def _add(self, part: Part):
    if part.name in self._parts:
      raise ValueError(
        f"there is {self.article} {self.kind} {part.name!r} already; give yours another name"
      )
    self._parts[part.name] = part

  def __getitem__(self, name: str) -> Part:
    """The part; KeyError where there is none, for `get` and `in`. `find` has a message for users."""
    return self._parts[name]

  def __iter__(self) -> Iterator[str]:
    return iter(self._parts)

  def __len__(self) -> int:
    return len(self._parts)

  @property
  def article(self) -> str:
    """That of the kind in a sentence."""
    return "an" if self.kind[0] in "aeiou" else "a"

  @property
  def names(self) -> tuple[str, ...]:
    return tuple(self._parts)

  def find(self, name: str, field: str) -> Part:
    """The part of that name; ValueError that names the field and what there is."""
    if name not in self._parts:
      near = difflib.get_close_matches(str(name), self._parts, n=1)
      hint = f"; did you mean {near[0]!r}?" if near else ""
      raise ValueError(
        f"{field}={name!r} is no {self.kind}; known are {', '.join(self._parts)}{hint}"
      )
    return self._parts[name]

  def fields(self) -> dict[str, Field]:
    """The fields of all parts together. ValueError where two declare a name differently."""
    merged: dict[str, Field] = {}
    for part in self._parts.values():
      for name, field in part.fields.items():
        if merged.setdefault(name, field) != field:
          raise ValueError(
            f"{self.kind} {part.name!r} declares the field {name!r} otherwise than another "
            f"{self.kind}"
          )
    return merged
