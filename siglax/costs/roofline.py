"""The least time of a step on a chip; see siglax/costs/plan.py for the formula."""

from __future__ import annotations

from siglax.devices import chips as chips_lib


def roofline(
  chip: chips_lib.Chip, *, compute, state_bytes, sent_bytes, model_flops, between=0.0
) -> dict:
  """What binds a step, its least time and the most MFU; per device.

  compute: seconds of the executed FLOPs at their peaks (`Chip.seconds`). between: seconds of what
  crosses the network between domains.
  """
  seconds = {
    "compute": compute,
    "memory": 2 * state_bytes / chip.bandwidth,
    "network": sent_bytes / chip.link,
    "between": between,
  }
  binds = max(seconds, key=seconds.__getitem__)
  step = seconds[binds]
  return {
    "seconds": seconds,
    "binds": binds,
    "step_seconds": step,
    "mfu_ceiling": model_flops / (chip.flops * step),
  }
