"""Bytes that a compiled program sends between devices, read from its optimized HLO text.

A collective counts as often as it runs: times the trip counts of the while loops around it (XLA
writes known_trip_count on each; a loop without one counts once). Of a conditional all branches
count. Per device, with g the devices of a group and n the payload, the whole of what a group
shares, by the algorithms that send least:

    all-gather          n: the result      sent: n·(g − 1)/g
    reduce-scatter      n: the operand     sent: n·(g − 1)/g
    all-reduce          n: the operand     sent: 2·n·(g − 1)/g
    all-to-all          n: the operand     sent: n·(g − 1)/g
    collective-permute  n: the operand     sent: n

(An all-reduce is a reduce-scatter, then an all-gather.)

Of that, what leaves a domain of links (siglax/devices/chips.py), with m devices of a group in each,
where the group is larger than that: what the devices of a domain fetch from others is shared by
their m ways out.

    all-gather, reduce-scatter, all-reduce   sent·(g − m)/((g − 1)·m)
    all-to-all                               sent·(g − m)/(g − 1)
    collective-permute                       sent, of the devices at the edges of a domain

A group is kept as what it is in a mesh, so that one of ten million devices takes no more than one
of eight: a range of device ids, or a `Ring`; of what is neither, all ids or pairs.

Two habits of XLA's CPU backend are undone, so that the figures are an accelerator's. It has no
bfloat16 collective and widens the operand to float32: an operand that is nothing but converted from
a 16-bit float counts as 16 bits. It makes no reduce-scatter: an all-reduce of whose result each
device only cuts a slice counts as one.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re

import numpy as np

from siglax.costs import hlo

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Ring:
  """Of a collective-permute of so many devices, which lie in blocks of `block`: each sends to the
  device some places further in its block, and the last ones to the first.
  """

  devices: int
  block: int


# Of device ids, of pairs of them, or a ring.
Group = range | tuple | Ring


@dataclasses.dataclass
class Traffic:
  """Of one kind of collective, per device and run of the program: how many, their payload and what
  is sent, in bytes.

  by_group: of each group of devices, a range of their ids or all of them; of a permute, a `Ring` or
  all of its pairs.
  """

  count: int = 0
  payload: int = 0
  sent: float = 0.0
  by_group: dict[Group, Traffic] = dataclasses.field(default_factory=dict, compare=False)

  def add(self, other: Traffic, times: int = 1):
    self.count += times * other.count
    self.payload += times * other.payload
    self.sent += times * other.sent
    for group, of in other.by_group.items():
      self.by_group.setdefault(group, Traffic()).add(of, times)


def read(text: str, devices: int) -> dict[str, Traffic]:
  """Traffic of each of KINDS in the text of a program compiled for so many devices
  (`compiled.as_text()`).
  """
  return _Counter(hlo.Program(text), devices).traffic()


def crossing(traffic: dict[str, Traffic], domain: int) -> float:
  """Bytes of `sent` that leave a domain of so many devices, of the device that has most of them."""
  return sum(
    of_group.sent * _share_crossing(kind, group, domain)
    for kind, of in traffic.items()
    for group, of_group in of.by_group.items()
  )


def _share_crossing(kind: str, group: Group, domain: int) -> float:
  if isinstance(group, Ring):
    # A block that is not in one domain has a device whose target is in another.
    return float(domain < group.devices and domain % group.block > 0)
  if kind == "collective-permute" and isinstance(group, tuple):
    return float(any(source // domain != target // domain for source, target in group))
  g, m = len(group), _most_in_a_domain(group, domain)
  if m == g:
    return 0.0
  return (g - m) / (g - 1) / (1 if kind == "all-to-all" else m)


def _most_in_a_domain(group: range | tuple, domain: int) -> int:
  if isinstance(group, range):  # from 0, so that the first domain has the most
    return min(len(group), -(-domain // group.step))
  return max(collections.Counter(i // domain for i in group).values())


class _Counter:
  """What the computations of a program send."""

  def __init__(self, program: hlo.Program, devices: int):
    self._program, self._devices, self._done = program, devices, {}

  def traffic(self, name: str | None = None) -> dict[str, Traffic]:
    """Of a computation with all that it calls; None is the entry."""
    name = name or self._program.entry
    if name not in self._done:
      computation = self._program.computations[name]
      sums = self._done[name] = {kind: Traffic() for kind in KINDS}
      for instruction in computation.instructions.values():
        if instruction.opcode in KINDS:
          for kind, traffic in self._collective(instruction, computation):
            sums[kind].add(traffic)
        for called, times in instruction.calls() if instruction.opcode not in KINDS else ():
          for kind, traffic in self.traffic(called).items():
            sums[kind].add(traffic, times)
    return self._done[name]

  def _collective(self, instruction, computation):
    """(kind, traffic) of a collective; of an all-reduce of several arrays, some may be
    reduce-scatters.
    """
    kind, group = instruction.opcode, _compact(_group(instruction.attributes, self._devices))
    g = len(group)
    sizes = [self._bytes(operand, computation) for operand in instruction.operands]
    if kind == "all-reduce":
      scattered = [
        size for k, size in enumerate(sizes) if self._is_cut(instruction, k, computation, g)
      ]
      kept = sum(sizes) - sum(scattered)
      if scattered:
        yield "reduce-scatter", of_group("reduce-scatter", 1, sum(scattered), group)
      if kept:
        yield kind, of_group(kind, 1, kept, group)
    elif kind == "collective-permute":
      ring = _ring(_pairs(instruction.attributes), self._devices)
      yield kind, of_group(kind, 1, sum(sizes), ring)
    else:
      payload = sum(sizes) * (g if kind == "all-gather" else 1)
      yield kind, of_group(kind, 1, payload, group)

  def _bytes(self, name, computation) -> int:
    """Bytes of a value, in the 16 bits of the float that it was widened from, where it was."""
    size = hlo.nbytes(computation.instructions[name].shape)
    return size // 2 if self._program.is_widened(name, computation) else size

  def _is_cut(self, reduce, k, computation, g) -> bool:
    """Whether all that is used of result k of an all-reduce over g devices is a slice of
    1/g of it.
    """
    uses = computation.users.get(reduce.name, [])
    if reduce.shape.startswith("("):
      uses = [use for use in uses if re.match(rf", index={k}\b", use.attributes)]
      return bool(uses) and all(self._is_only_sliced(use.name, computation, g) for use in uses)
    return self._is_only_sliced(reduce.name, computation, g)

  def _is_only_sliced(self, name, computation, g) -> bool:
    uses = computation.users.get(name, [])
    return (
      name != computation.root
      and bool(uses)
      and all(self._slices(use, name, computation, g) for use in uses)
    )

  def _slices(self, use, name, computation, g) -> bool:
    """Whether an instruction cuts a slice of 1/g of an operand, or hands the operand on to what
    does.
    """
    if use.opcode == "dynamic-slice":
      (_, whole), (_, part) = (
        next(hlo.arrays(computation.instructions[name].shape)),
        next(hlo.arrays(use.shape)),
      )
      return use.operands[0] == name and hlo.elements(whole) == g * hlo.elements(part)
    if use.opcode == "convert" or use.opcode in hlo.MOVES:
      return self._is_only_sliced(use.name, computation, g)
    if use.opcode == "fusion":
      ((called, _),) = use.calls()
      inner = self._program.computations[called]
      parameter = inner.parameters[use.operands.index(name)]
      root = inner.instructions[inner.root]
      if root.operands == [parameter] and (root.opcode == "convert" or root.opcode in hlo.MOVES):
        return self._is_only_sliced(use.name, computation, g)
      return self._is_only_sliced(parameter, inner, g)
    return False


def of_group(kind: str, count: int, payload: int, group: Group) -> Traffic:
  """Of `count` collectives in one group that together have that payload."""
  sent = payload * _share_sent(kind, group)
  return Traffic(count, payload, sent, {group: Traffic(count, payload, sent)})


def _share_sent(kind: str, group: Group) -> float:
  if kind == "collective-permute":
    return 1
  g = len(group)
  return (2 if kind == "all-reduce" else 1) * (g - 1) / g


def _ring(pairs: tuple[tuple[int, int], ...], devices: int) -> Ring | tuple:
  """The `Ring` that the pairs of a permute are, or the pairs."""
  targets = dict(pairs)
  if not (hops := targets.get(0)):
    return pairs
  # The first device that does not send so many places on is as many from the end of its block.
  block = hops + next((i for i in range(devices) if targets.get(i) != i + hops), devices)
  around = [i // block * block + (i + hops) % block for i in range(devices)]
  return Ring(devices, block) if around == [targets.get(i) for i in range(devices)] else pairs


def _compact(group: tuple[int, ...]) -> range | tuple[int, ...]:
  """The devices of a group in their order, as a range where they are one from 0."""
  ids = sorted(group)
  even = range(0, ids[-1] + 1, ids[1] if len(ids) > 1 else 1)
  return even if list(even) == ids else tuple(ids)


def _pairs(attributes: str) -> tuple[tuple[int, int], ...]:
  """(source, target) of a collective-permute."""
  found = re.search(r"source_target_pairs=\{([{}\d,]*)\}", attributes)
  return tuple((int(a), int(b)) for a, b in re.findall(r"\{(\d+),(\d+)\}", found[1]))


def _group(attributes: str, devices: int) -> tuple[int, ...]:
  """The devices of the first group, in any of XLA's notations; without groups all devices are
  one.
  """
  if match := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
    return tuple(map(int, match[1].split(",")))
  if match := re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\S*?\](?:T\([\d,]+\))?)", attributes):
    return tuple(_iota(match[3]).reshape(int(match[1]), int(match[2]))[0].tolist())
  if match := re.search(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((\S*)\))?.*?\{([^}]*)\}", attributes
  ):
    sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", match[1])}
    named = {
      axis: (int(before or 1), int(part or sizes[axis]))
      for axis, before, part in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", match[3])
    }
    # Axes by name, or a part of one: 'axis_0':(2)4 is 4 devices of axis_0, after the first 2.
    steps = {axis: sizes[axis] // math.prod(named.get(axis, (1, 1))) for axis in sizes}
    taken = [[k * steps[axis] for k in range(named.get(axis, (1, 1))[1])] for axis in sizes]
    ids = _iota(match[2]) if match[2] else np.arange(math.prod(sizes.values()))
    return tuple(ids.reshape(*sizes.values())[np.ix_(*taken)].ravel().tolist())
  return tuple(range(devices))


def _iota(text: str) -> np.ndarray:
  """The numbers of "[16,2]T(1,0)": 0 … 31 in that shape, transposed."""
  shape, order = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text).groups()
  sizes = list(map(int, shape.split(",")))
  ids = np.arange(math.prod(sizes)).reshape(sizes)
  return ids.transpose(list(map(int, order.split(",")))) if order else ids
