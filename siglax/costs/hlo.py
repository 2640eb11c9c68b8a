"""The text of an optimized HLO module (`compiled.as_text()`), read for its costs."""

from __future__ import annotations

import dataclasses
import math
import re

# Instructions that move or lay out what they are given and change no value.
MOVES = ("bitcast", "copy", "transpose", "reshape")
_SLICES = ("slice", "dynamic-slice")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = (.+?) ([a-z][\w-]*)\(([^)]*)\)(.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_CALLED = re.compile(
  r"\b(?:calls|to_apply|body|condition|branch_computations|true_computation|false_computation)="
  r"(\{[^}]*\}|%?[\w.-]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass
class Instruction:
  """NAME = SHAPE OPCODE(OPERANDS), ATTRIBUTES."""

  name: str
  shape: str
  opcode: str
  operands: list[str]
  attributes: str

  def calls(self):
    """(computation, times it runs) of those that it calls."""
    trips = _TRIPS.search(self.attributes)
    times = int(trips[1]) if trips and self.opcode == "while" else 1
    for names in _CALLED.findall(self.attributes):
      for name in re.findall(r"[\w.-]+", names):
        yield name, times


@dataclasses.dataclass
class Computation:
  """Instructions by name in the order they run in, and what uses each; parameters by number."""

  instructions: dict[str, Instruction] = dataclasses.field(default_factory=dict)
  users: dict[str, list[Instruction]] = dataclasses.field(default_factory=dict)
  parameters: dict[int, str] = dataclasses.field(default_factory=dict)
  root: str = ""


class Program:
  """The computations of a module by name; entry: the name of the first."""

  def __init__(self, text: str):
    self.computations: dict[str, Computation] = {}
    for line in text.splitlines():
      if head := _COMPUTATION.match(line):
        computation = self.computations[head[2]] = Computation()
        if head[1]:
          self.entry = head[2]
      elif match := _INSTRUCTION.match(line):
        root, name, shape, opcode, operands, attributes = match.groups()
        operands = re.findall(r"[\w.-]+", re.sub(r"/\*.*?\*/", "", operands))
        instruction = computation.instructions[name] = Instruction(
          name, shape, opcode, operands, attributes
        )
        for operand in operands:
          computation.users.setdefault(operand, []).append(instruction)
        if opcode == "parameter":
          computation.parameters[int(operands[0])] = name
        if root:
          computation.root = name

  def is_widened(self, name, computation, callers=()) -> bool:
    """Whether a float32 value is a 16-bit float, converted and moved about. callers: the fusions
    around, outer first.
    """
    instruction = computation.instructions[name]
    if not instruction.shape.startswith("f32"):
      return False
    if instruction.opcode == "convert":
      return computation.instructions[instruction.operands[0]].shape.startswith(("bf16", "f16"))
    if instruction.opcode in MOVES + _SLICES:
      return self.is_widened(instruction.operands[0], computation, callers)
    if instruction.opcode == "fusion":
      ((called, _),) = instruction.calls()
      inner = self.computations[called]
      return self.is_widened(inner.root, inner, (*callers, (instruction, computation)))
    if instruction.opcode == "parameter" and callers:
      *outer, (fusion, computation) = callers
      return self.is_widened(
        fusion.operands[int(instruction.operands[0])], computation, tuple(outer)
      )
    return False


def nbytes(shape: str) -> int:
  """Of all arrays in a shape."""
  return sum(elements(dims) * bits for bits, dims in arrays(shape)) // 8


def arrays(shape: str):
  """(bits of an element, dimensions) of each array in a shape such as "(f32[8,4]{1,0}, pred[])"."""
  for dtype, dims in re.findall(r"([a-z]\w*)\[([\d,]*)\]", shape):
    yield 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0]), dims


def elements(dims: str) -> int:
  return math.prod(map(int, filter(None, dims.split(","))))
