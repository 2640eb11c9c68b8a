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

Two habits of XLA's CPU backend are undone, so that the figures are an accelerator's. It has no
bfloat16 collective and widens the operand to float32: an operand that is nothing but converted from
a 16-bit float counts as 16 bits. It makes no reduce-scatter: an all-reduce of whose result each
device only cuts a slice counts as one.
"""

from __future__ import annotations

import dataclasses
import math
import re

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Instructions that move or lay out what they are given and change no value.
_MOVES = ("bitcast", "copy", "transpose", "reshape")
_SLICES = ("slice", "dynamic-slice")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = (.+?) ([a-z][\w-]*)\(([^)]*)\)(.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_CALLED = re.compile(
  r"\b(?:calls|to_apply|body|condition|branch_computations|true_computation|false_computation)="
  r"(\{[^}]*\}|%?[\w.-]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass
class Traffic:
  """Of one kind of collective, per device and run of the program: how many, their payload and what
  is sent, in bytes.
  """

  count: int = 0
  payload: int = 0
  sent: float = 0.0

  def add(self, other: Traffic, times: int = 1):
    self.count += times * other.count
    self.payload += times * other.payload
    self.sent += times * other.sent


def read(hlo: str, devices: int) -> dict[str, Traffic]:
  """Traffic of each of KINDS in the text of a program compiled for so many devices
  (`compiled.as_text()`).
  """
  return _Program(hlo, devices).traffic()


@dataclasses.dataclass
class _Instruction:
  name: str
  shape: str
  opcode: str
  operands: list[str]
  attributes: str

  def calls(self):
    """(computation, times it runs) of those that it calls; the sum of a collective does
    not matter.
    """
    trips = _TRIPS.search(self.attributes)
    times = int(trips[1]) if trips and self.opcode == "while" else 1
    for names in _CALLED.findall(self.attributes) if self.opcode not in KINDS else ():
      for name in re.findall(r"[\w.-]+", names):
        yield name, times


@dataclasses.dataclass
class _Computation:
  instructions: dict[str, _Instruction] = dataclasses.field(default_factory=dict)
  users: dict[str, list[_Instruction]] = dataclasses.field(default_factory=dict)
  parameters: dict[int, str] = dataclasses.field(default_factory=dict)
  root: str = ""


class _Program:
  """Computations of a module and what they send."""

  def __init__(self, hlo: str, devices: int):
    self._devices, self._computations, self._done = devices, {}, {}
    for line in hlo.splitlines():
      if head := _COMPUTATION.match(line):
        computation = self._computations[head[2]] = _Computation()
        if head[1]:
          self._entry = head[2]
      elif match := _INSTRUCTION.match(line):
        root, name, shape, opcode, operands, attributes = match.groups()
        operands = re.findall(r"[\w.-]+", re.sub(r"/\*.*?\*/", "", operands))
        instruction = computation.instructions[name] = _Instruction(
          name, shape, opcode, operands, attributes
        )
        for operand in operands:
          computation.users.setdefault(operand, []).append(instruction)
        if opcode == "parameter":
          computation.parameters[int(operands[0])] = name
        if root:
          computation.root = name

  def traffic(self, name: str | None = None) -> dict[str, Traffic]:
    """Of a computation with all that it calls; None is the entry."""
    name = name or self._entry
    if name not in self._done:
      computation = self._computations[name]
      sums = self._done[name] = {kind: Traffic() for kind in KINDS}
      for instruction in computation.instructions.values():
        if instruction.opcode in KINDS:
          for kind, traffic in self._collective(instruction, computation):
            sums[kind].add(traffic)
        for called, times in instruction.calls():
          for kind, traffic in self.traffic(called).items():
            sums[kind].add(traffic, times)
    return self._done[name]

  def _collective(self, instruction, computation):
    """(kind, traffic) of a collective; of an all-reduce of several arrays, some may be
    reduce-scatters.
    """
    kind, g = instruction.opcode, _group_size(instruction.attributes, self._devices)
    sizes = [self._bytes(operand, computation) for operand in instruction.operands]
    if kind == "all-reduce":
      scattered = [
        size for k, size in enumerate(sizes) if self._is_cut(instruction, k, computation, g)
      ]
      kept = sum(sizes) - sum(scattered)
      if scattered:
        yield "reduce-scatter", Traffic(1, sum(scattered), sum(scattered) * (g - 1) / g)
      if kept:
        yield kind, Traffic(1, kept, 2 * kept * (g - 1) / g)
    elif kind == "collective-permute":
      yield kind, Traffic(1, sum(sizes), sum(sizes))
    else:
      payload = sum(sizes) * (g if kind == "all-gather" else 1)
      yield kind, Traffic(1, payload, payload * (g - 1) / g)

  def _bytes(self, name, computation) -> int:
    """Bytes of a value, in the 16 bits of the float that it was widened from, where it was."""
    shape = computation.instructions[name].shape
    size = sum(_elements(dims) * bits for bits, dims in _arrays(shape)) // 8
    return size // 2 if shape.startswith("f32") and self._is_widened(name, computation) else size

  def _is_widened(self, name, computation, callers=()) -> bool:
    """Whether a float32 value is a 16-bit float, converted and moved about. callers: the fusions
    around, outer first.
    """
    instruction = computation.instructions[name]
    if instruction.opcode == "convert":
      return computation.instructions[instruction.operands[0]].shape.startswith(("bf16", "f16"))
    if instruction.opcode in _MOVES + _SLICES:
      return self._is_widened(instruction.operands[0], computation, callers)
    if instruction.opcode == "fusion":
      ((called, _),) = instruction.calls()
      inner = self._computations[called]
      return self._is_widened(inner.root, inner, (*callers, (instruction, computation)))
    if instruction.opcode == "parameter" and callers:
      *outer, (fusion, computation) = callers
      return self._is_widened(
        fusion.operands[int(instruction.operands[0])], computation, tuple(outer)
      )
    return False

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
        next(_arrays(computation.instructions[name].shape)),
        next(_arrays(use.shape)),
      )
      return use.operands[0] == name and _elements(whole) == g * _elements(part)
    if use.opcode == "convert" or use.opcode in _MOVES:
      return self._is_only_sliced(use.name, computation, g)
    if use.opcode == "fusion":
      ((called, _),) = use.calls()
      inner = self._computations[called]
      parameter = inner.parameters[use.operands.index(name)]
      root = inner.instructions[inner.root]
      if root.operands == [parameter] and (root.opcode == "convert" or root.opcode in _MOVES):
        return self._is_only_sliced(use.name, computation, g)
      return self._is_only_sliced(parameter, inner, g)
    return False


def _arrays(shape: str):
  """(bits of an element, dimensions) of each array in a shape such as "(f32[8,4]{1,0}, pred[])"."""
  for dtype, dims in re.findall(r"([a-z]\w*)\[([\d,]*)\]", shape):
    yield 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0]), dims


def _elements(dims: str) -> int:
  return math.prod(map(int, filter(None, dims.split(","))))


def _group_size(attributes: str, devices: int) -> int:
  """Devices of a group, in any of XLA's notations; without groups all devices are one."""
  if match := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
    return match[1].count(",") + 1
  if match := re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):
    return int(match[1])
  if match := re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{([^}]*)\}", attributes):
    # Axes by name, or a part of one: 'axis_0':(2)4 is 4 devices of axis_0, after the first 2.
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
    return math.prod(
      int(part or sizes[axis]) for axis, part in re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", match[2])
    )
  return devices
