"""config.train.remat="auto": the backward pass computes again as little as memory allows.

The training's own step is compiled with none, dots, attn_mlp and full, in this order, until it
fits. Both towers take the same, where both are automatic. What was compiled last is what runs.
"""

from __future__ import annotations

import logging

import jax

from siglax.devices import distributed
from siglax.devices import host
from siglax.models import transformer
from siglax.training import program as program_lib

logger = logging.getLogger("siglax")

# Of the memory that jax may use, what a step may take: evaluations and fragments need the rest.
SHARE = 0.9


def choose(program: program_lib.Program):
  """Sets program.remat where a tower is automatic; call it with the mesh set, on all processes.

  The least memory of any device decides, so that all processes compute the same. Where no choice
  fits, it is full, with a warning.
  """
  if not program.automatic:
    return
  limit = _limit()
  towers = " and ".join(f"train.remat.{name}" for name in program.automatic)
  for remat in transformer.REMAT:
    program.remat = remat
    needed = _needed(program)
    if not distributed.any_has(needed is None or needed > SHARE * limit)[0]:
      logger.info("%s: auto takes %s; a step needs %s", towers, remat, _of(needed, limit))
      return
  logger.warning(
    "%s: auto takes %s, and a step needs %s; `siglax plan` tells what else saves memory",
    *(towers, program.remat, _of(needed, limit)),
  )


def _needed(program) -> int | None:
  """Bytes of a device during a step, with the next batch, which waits; None where the compiler
  finds that they are more than there are.
  """
  try:
    compiled = program.compile_last()
  except jax.errors.JaxRuntimeError as e:
    if "RESOURCE_EXHAUSTED" not in str(e):
      raise
    return None
  return program_lib.peak_bytes(compiled) + program_lib.held(program.abstract_batch())


def _limit() -> int:
  """Bytes that jax may use on a device of this process; CPU devices share the machine's memory."""
  devices = jax.local_devices()
  told = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
  return min(told) if all(told) else host.memory() // len(devices)


def _of(needed: int | None, limit: int) -> str:
  """For example "12.3 of the 64.2 GB of a device"."""
  share = "more than all" if needed is None else f"{needed / 1e9:.3g}"
  return f"{share} of the {limit / 1e9:.3g} GB of a device"
