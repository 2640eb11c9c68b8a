"""What a part declares of itself, and where parts of one kind are found by their names.

A part is a loss, a tower, a source of data, a kind of evaluation, a format, an optimizer or a
command: one object, in a file of its own, with all that belongs to it. Each room that holds parts
has one Registry. A part of a user's own file is registered in the same way
(siglax/config/imports.py), before a config is made.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import difflib
import math
import types
import typing
from typing import Any
from typing import Generic
from typing import TypeVar

from ml_collections import ConfigDict

# Types whose values a field of another type takes too.
TAKEN_TOO = {float: (int,), tuple: (list,), dict: (ConfigDict,)}


@dataclasses.dataclass(frozen=True)
class Field:
  """One field of a config, of a data spec or of an evaluation task, and all that is known of it.

  default: the value where nobody gives one. doc: what it is, in a sentence, with the unit.
  kind: the type of its values; that of the default where it is left out.
  optional: it may be None.
  choices: the names it may have, or a function that returns them.
  least, most: inclusive bounds of a number; above, below: exclusive ones.
  check: value → what else is wrong with it, in words that follow "name=value "; None for a good
  one. It is asked after the type, the choices and the bounds.
  follows: the field whose value it takes, and which is the one to set. All but the sentence is that
  one's.
  resume: a run may go on with another value. evaluation: `siglax evaluate` may change it.
  inherited: a run that starts from a checkpoint takes its value, where nobody sets another.
  """

  default: Any
  doc: str
  kind: type | types.UnionType | None = None
  optional: bool = False
  choices: tuple[str, ...] | Callable[[], tuple[str, ...]] | None = None
  least: float | None = None
  most: float | None = None
  above: float | None = None
  below: float | None = None
  check: Callable[[Any], str | None] | None = None
  follows: str | None = None
  resume: bool = False
  evaluation: bool = False
  inherited: bool = False

  def __post_init__(self):
    if self.kind is None and self.default is not None:
      object.__setattr__(self, "kind", type(self.default))
    if self.kind is None and self.follows is None:
      raise ValueError(
        f"Field(None, {self.doc!r}) tells no type; give a default that is not None, or kind=, such "
        "as kind=int"
      )

  @property
  def names(self) -> tuple[str, ...] | None:
    """The names it may have, None where it is no choice."""
    return self.choices() if callable(self.choices) else self.choices

  @property
  def type_in_words(self) -> str:
    """Such as "float, or None"."""
    return self._kind_name + self._or_none

  @property
  def allowed(self) -> str:
    """The values it may have, in words: "bilinear, crop", or "int, at least 1, or None"."""
    if (names := self.names) is not None:
      return ", ".join(names) + self._or_none
    if self._low is None and self._high is None:
      return self.type_in_words
    if self._interval is not None:
      bounds = f"in {self._interval}"
    elif self._low is not None and self._high is not None:
      bounds = f"from {self._low:,} to {self._high:,}"
    else:
      bounds = self._bound(low=self._low is not None)
    return f"{self._kind_name}, {bounds}{self._or_none}"

  def problem(self, value) -> str | None:
    """What is wrong with a value, in words that follow "name=value "; None for a good one."""
    if value is None and self.optional:
      return None
    if problem := self.type_problem(value):
      return problem
    if isinstance(value, float) and not math.isfinite(value):
      return "must be finite"
    if (names := self.names) is not None and value not in names:
      return f"is unknown; known are {', '.join(names)}{did_you_mean(value, names)}"
    if problem := self._bounds_problem(value):
      return problem
    return None if self.check is None else self.check(value)

  def type_problem(self, value) -> str | None:
    """What is wrong with the type of a value, as `problem` says it."""
    if value is None and self.optional:
      return None
    kinds = typing.get_args(self.kind) or (self.kind,)
    kinds_too = {kind for of in kinds for kind in TAKEN_TOO.get(of, ())}
    bad_bool = isinstance(value, bool) and not {bool, object} & set(kinds)
    if not isinstance(value, (*kinds, *kinds_too)) or bad_bool:
      return f"is of type {type(value).__name__}; it needs {self.type_in_words}"
    return None

  def _bounds_problem(self, value) -> str | None:
    """Bounds are those of a number: of a type such as `int | str`, a text has none."""
    if not isinstance(value, (int, float)):
      return None
    open_low, open_high = self.above is not None, self.below is not None
    low = self._low is not None and (value <= self._low if open_low else value < self._low)
    high = self._high is not None and (value >= self._high if open_high else value > self._high)
    if not low and not high:
      return None
    must = f"lie in {self._interval}" if self._interval else f"be {self._bound(low)}"
    return f"must {must}{self._or_none}"

  @property
  def _kind_name(self) -> str:
    return getattr(self.kind, "__name__", str(self.kind))

  @property
  def _or_none(self) -> str:
    return ", or None" if self.optional else ""

  @property
  def _low(self) -> float | None:
    return self.least if self.above is None else self.above

  @property
  def _high(self) -> float | None:
    return self.most if self.below is None else self.below

  @property
  def _interval(self) -> str | None:
    """[0, 1) of two bounds of which one at least is exclusive."""
    if self._low is None or self._high is None or self.above is None and self.below is None:
      return None
    start, end = "[" if self.above is None else "(", "]" if self.below is None else ")"
    return f"{start}{self._low}, {self._high}{end}"

  def _bound(self, low: bool) -> str:
    """The lower or the upper bound in words."""
    if low and self.above == 0:
      return "positive"
    if low:
      return f"at least {self.least}" if self.above is None else f"above {self.above}"
    return f"at most {self.most:,}" if self.below is None else f"below {self.below:,}"


def did_you_mean(name, names) -> str:
  """The words "; did you mean 'x'?" of the name that comes nearest, or nothing."""
  near = difflib.get_close_matches(str(name), list(names), n=1)
  return f"; did you mean {near[0]!r}?" if near else ""


Part = TypeVar("Part")

# (kind, name) of the parts that were added to registries after these were made: a user's own, in
# the order they came.
registered: list[tuple[str, str]] = []
_registries: list[Registry] = []  # of each of them


def withdraw(added: Iterable[tuple[str, str]]):
  """Takes parts out of their registries again, which `registered` lists."""
  for part in added:
    i = registered.index(part)
    registered.pop(i)
    _registries.pop(i).forget(part[1])


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
    _registries.append(self)
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
    """The part; KeyError where there is none, for `get` and `in`. `find` says it to users."""
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
      raise ValueError(
        f"{field}={name!r} is no {self.kind}; known are {', '.join(self._parts)}"
        f"{did_you_mean(name, self._parts)}"
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
