"""Disk and host memory of a training."""

from __future__ import annotations

import math

import jax

from siglax.data import blocks

# Of a JPEG that `siglax convert --short-side` writes: 20 kB at 256×256 (docs/data.md), at the usual
# ratio of sides.
BYTES_A_PIXEL, RATIO = 20_000 / 256**2, 4 / 3
# The index of a large file: where each example begins.
INDEX_BYTES = 8
# Devices of one machine, whose loader is told of.
HOST_DEVICES = 8


def checkpoints(keep, every: int | None, total_steps: int) -> int:
  """How many a run has at most at a time: those that are kept, and one that is being saved. keep:
  config.checkpoint. every: steps between two.
  """
  due = total_steps // every if every else 1
  for_good = (due // keep.keep_one_in if keep.keep_one_in else 0) + (
    total_steps // keep.keep_every_steps if keep.keep_every_steps else 0
  )
  return min(due, keep.keep_latest + for_good + bool(keep.keep_best)) + 1


def disk(config, program) -> dict:
  """Bytes of checkpoints on disks."""
  kept = checkpoints(config.checkpoint, program.every["checkpoint"], program.total_steps)
  leaves = jax.tree.leaves(program.abstract_state)
  state_bytes = sum(x.size * x.dtype.itemsize for x in leaves)
  return {
    "checkpoints": kept,
    "checkpoint_bytes": kept * state_bytes,
    "one_checkpoint_bytes": state_bytes,
  }


def data(config, examples: int | None) -> dict:
  """Bytes of the data on disks. examples: their number, None where nobody knows.

  cache: at most what blocks of data in a bucket take on each machine, and the index. converted: of
  the pictures at config.image.size as their short side, an estimate.
  """
  pixels = config.image.size**2 * RATIO
  known = examples is not None
  return {
    "cache_bytes_at_most": blocks.MOST_BYTES,
    "index_bytes": examples * INDEX_BYTES if known else None,
    "converted_bytes": round(examples * pixels * BYTES_A_PIXEL) if known else None,
    "examples": examples,
  }


def host(config, program) -> dict:
  """Bytes of the batches that the loader of one machine holds: config.loader.buffer of them, the
  one that was handed out, and the one that is on its way to the devices.
  """
  devices = min(HOST_DEVICES, program.mesh.size)
  rows = config.batch_size // program.mesh.size * devices
  row = sum(math.prod(x.shape[1:]) * x.dtype.itemsize for x in program.abstract_batch().values())
  batches = config.loader.buffer + 2
  return {"devices": devices, "batches": batches, "bytes": batches * rows * row}
