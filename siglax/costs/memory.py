"""Memory of a device: what the compiled program takes on a CPU, an estimate of what it takes on an
accelerator, and what of a chip's memory jax may use.
"""

from __future__ import annotations

import math
import os

from siglax.costs import buffers
from siglax.costs import hlo
from siglax.devices import chips as chips_lib
from siglax.devices import flops
from siglax.models import trainable as trainable_lib
from siglax.training import program as program_lib

# Share of a GPU's memory that jax takes at its start, and the variable that sets another.
GPU_SHARE, VARIABLE = 0.75, "XLA_PYTHON_CLIENT_MEM_FRACTION"


def usable(chip: chips_lib.Chip) -> tuple[float, str]:
  """(share of a chip's memory that jax may use, why, in words). ValueError for a variable that is
  no share.
  """
  if chip.is_tpu:
    return 1.0, "the chip has GiB, and its runtime keeps the difference"
  given = os.environ.get(VARIABLE)
  if not given:
    return GPU_SHARE, f"its default; {VARIABLE} sets another"
  try:
    share = float(given)
  except ValueError:
    share = math.nan
  if not 0 < share <= 1:
    raise ValueError(f"{VARIABLE}={given!r} must be a share of a GPU's memory, above 0 and up to 1")
  return share, VARIABLE


def figures(compiled, program, jaxpr) -> dict[str, int]:
  """Bytes per device: of the state and its parameters, exact; of everything else, the compiled
  program's. jaxpr: of the step.

  batch: what a step reads of one. next_batch: what the loop holds besides while a step runs, the
  next batch and what the step does not read of its own. total is XLA's for the CPU, an upper bound;
  temp_estimate, temp_fused and their totals are estimates at the widths of the program
  (siglax/costs/buffers.py), the latter with attention fused.
  """
  held = program_lib.held
  analysis = compiled.memory_analysis()
  state = held(program.abstract_state)
  frozen = trainable_lib.split(program.abstract_state.params, program.frozen)[1]
  batch, temp = analysis.argument_size_in_bytes - state, analysis.temp_size_in_bytes
  next_batch = 2 * held(program.abstract_batch()) - batch
  total = program_lib.peak_bytes(compiled) + next_batch
  attention = frozenset(_attention(jaxpr, program.mesh.size))
  sizes = buffers.peaks(hlo.Program(compiled.as_text()), attention)
  narrow, fused = (round(temp * sizes[name] / sizes["as_is"]) for name in ("narrow", "fused"))
  return {
    "parameters": held(program.abstract_state.params),
    "state": state,
    "frozen": held(frozen),
    "remembered": held(program.abstract_state.normalisers),
    "batch": batch,
    "next_batch": next_batch,
    "temp": temp,
    "temp_estimate": narrow,
    "temp_fused": fused,
    "total": total,
    "total_estimate": total - temp + narrow,
    "total_fused": total - temp + fused,
  }


def _attention(jaxpr, devices: int) -> set[tuple[int, int]]:
  """(elements on a device, tokens) of the weights [..., heads, tokens, tokens] of each attention:
  what is raised to the power of e in that shape. devices: over which the view is spread, of which
  a shard_map maps over some.
  """
  found = set()
  for eqn in jaxpr.eqns:
    shape = eqn.outvars[0].aval.shape if eqn.primitive.name == "exp" else ()
    if len(shape) > 3 and shape[-1] == shape[-2]:
      found.add((math.prod(shape) // devices, shape[-1]))
    inside = devices // flops.places(eqn) if eqn.primitive.name == "shard_map" else devices
    for inner in (getattr(parameter, "jaxpr", parameter) for parameter in eqn.params.values()):
      if hasattr(inner, "eqns"):
        found |= _attention(inner, inside)
  return found
