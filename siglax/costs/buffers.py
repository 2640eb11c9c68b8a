"""How much less the temporaries of a program would be at the widths that it asks for: an estimate.

XLA's CPU backend computes 16-bit floats in float32, and widens all that a loop reads before the
loop: a bfloat16 run takes as much as a float32 one. Here the schedule of the compiled program is
gone through, and what is alive at each instruction is added up, once as it is and once with

- half for a float32 value that is only a widened 16-bit float, or only made into 16-bit floats;
- nothing for the logits and weights of attention, which a fused kernel keeps in its registers.

The quotient of the two peaks, times XLA's own figure of the temporaries, is the estimate. A while
loop's carry, a tuple and an update in place take no room of their own.
"""

from __future__ import annotations

import re

import numpy as np

from siglax.costs import hlo

# Of the sizes of a value: as it is; at the program's widths; at these with fused attention.
SIZES = ("as_is", "narrow", "fused")
_NO_BUFFER = ("parameter", "constant", "iota", "after-all", "partition-id", "replica-id")
_ALIASES = ("bitcast", "while", "opt-barrier", "dynamic-update-slice", "get-tuple-element")


def peaks(program: hlo.Program, attention: frozenset[tuple[int, int]]) -> dict[str, int]:
  """Bytes of temporaries alive at once, at most, by SIZES.

  attention: (elements of all heads and examples, tokens) of the logits of each attention.
  """
  walk = _Walk(program, attention)
  return dict(zip(SIZES, walk.peak(program.entry).tolist()))


class _Walk:
  def __init__(self, program, attention):
    self._program, self._attention, self._done = program, attention, {}

  def peak(self, name: str) -> np.ndarray:
    """[3] of a computation, with what it calls at the same time."""
    if name not in self._done:
      computation = self._program.computations[name]
      holds, sizes, last = self._buffers(computation)
      alive, most, ends = np.zeros(3, np.int64), np.zeros(3, np.int64), {}
      for buffer, position in last.items():
        ends.setdefault(position, []).append(buffer)
      for position, instruction in enumerate(computation.instructions.values()):
        alive = alive + sizes.get(instruction.name, 0)
        inner = [self.peak(called) for called, _ in self._runs(instruction)]
        most = np.maximum(most, alive + (np.max(inner, axis=0) if inner else 0))
        for buffer in ends.get(position, ()):
          alive = alive - sizes[buffer]
      self._done[name] = most
    return self._done[name]

  def _runs(self, instruction):
    """What an instruction calls that has buffers of its own."""
    return instruction.calls() if instruction.opcode in ("while", "call", "conditional") else ()

  def _buffers(self, computation):
    """({value: the buffers that each of its parts is in}, {buffer: sizes}, {buffer: position of its
    last use}). Results take the place of arguments, or of what the caller keeps.
    """
    holds, sizes, last = {}, {}, {}
    for position, (name, instruction) in enumerate(computation.instructions.items()):
      for buffer in {b for x in instruction.operands for part in holds.get(x, ()) for b in part}:
        last[buffer] = position
      holds[name] = self._parts(instruction, computation, holds)
      if holds[name] == ((name,),):
        sizes[name] = self._sizes(instruction, computation)
        last[name] = position
    kept = {buffer for part in holds[computation.root] for buffer in part}
    for buffer in kept & sizes.keys():
      del sizes[buffer], last[buffer]
    return holds, sizes, last

  def _parts(self, instruction, computation, holds) -> tuple:
    """Of a tuple the buffers of each element; of an array those of its only part."""
    operands = instruction.operands
    if instruction.opcode in _NO_BUFFER:
      return ()
    if instruction.opcode == "tuple":
      return tuple(tuple(b for part in holds.get(x, ()) for b in part) for x in operands)
    if instruction.opcode == "get-tuple-element":
      parts = holds.get(operands[0], ())
      index = int(re.search(r"index=(\d+)", instruction.attributes)[1])
      return (parts[index],) if len(parts) > index else parts
    if instruction.opcode in _ALIASES:
      return holds.get(operands[0], ())
    if (base := self._updated(instruction)) is not None:
      return holds.get(operands[base], ())
    return ((instruction.name,),)

  def _updated(self, instruction) -> int | None:
    """The operand of a fusion that it updates in place."""
    if instruction.opcode != "fusion":
      return None
    ((called, _),) = instruction.calls()
    inner = self._program.computations[called]
    root = inner.instructions[inner.root]
    while root.opcode == "bitcast":
      root = inner.instructions[root.operands[0]]
    if root.opcode != "dynamic-update-slice":
      return None
    base = inner.instructions[root.operands[0]]
    while base.opcode in ("bitcast", "convert"):
      base = inner.instructions[base.operands[0]]
    return int(base.operands[0]) if base.opcode == "parameter" else None

  def _sizes(self, instruction, computation) -> np.ndarray:
    size = hlo.nbytes(instruction.shape)
    widened = self._program.is_widened(instruction.name, computation)
    narrow = size // 2 if widened or self._is_narrowed(instruction, computation) else size
    return np.array([size, narrow, 0 if self._is_attention(instruction.shape) else narrow])

  def _is_narrowed(self, instruction, computation) -> bool:
    """Whether a float32 value is used for 16-bit floats alone."""
    uses = computation.users.get(instruction.name, [])
    return (
      instruction.shape.startswith("f32")
      and bool(uses)
      and all(use.shape.startswith(("bf16", "f16")) for use in uses)
    )

  def _is_attention(self, shape: str) -> bool:
    found = list(hlo.arrays(shape))
    if len(found) != 1:
      return False
    dims = [int(size) for size in found[0][1].split(",") if size]
    return len(dims) > 2 and any(
      dims[-1] == dims[-2] == tokens and hlo.elements(found[0][1]) % elements == 0
      for elements, tokens in self._attention
    )
