"""Hours and money of a training, at an MFU that somebody has measured.

    hours = model FLOPs of all steps / (devices · bf16 peak · MFU) / 3600

and never less than the roofline's. MFU is a property of a program on a chip, not of the chip: the
table has what others published, and a run of one's own is the better source (its metrics have
`mfu`).
"""

from __future__ import annotations

import dataclasses
import math

from siglax.devices import chips as chips_lib


@dataclasses.dataclass(frozen=True)
class Measured:
  """The MFU of a published training: of `parameters` on a chip. what: in words, with its source."""

  chip: str
  parameters: float
  mfu: float
  what: str


# MFU is model FLOPs a second over the bf16 peak. Of those that published examples a second, they
# are times three forward passes: 44.4 GFLOP (CLIP B/32), 123 (B/16), 526 (L/14).
MEASURED = (
  # 9e9 examples of 115 GFLOP on 32 chips in 5 days
  Measured("v4", 203e6, 0.27, "SigLIP B/16, big_vision: arXiv 2303.15343, table 1"),
  Measured("v4", 22e9, 0.55, "ViT-22B: arXiv 2302.05442"),
  # 790 to 850, 338 to 396, and 71 to 79 examples a second and GPU
  Measured("A100-80", 151e6, 0.117, "CLIP B/32, open_clip, 2022"),
  Measured("A100-80", 150e6, 0.145, "CLIP B/16, open_clip, 2022"),
  Measured("A100-80", 428e6, 0.126, "CLIP L/14, open_clip, 2022"),
  Measured("A100-80", 1.4e9, 0.39, "CLIP g/14, NeMo on DGX A100"),
  Measured("H100", 86e6, 0.16, "ViT-B/16 classification, T5X"),
  Measured("H100", 1.4e9, 0.21, "CLIP g/14, NeMo on DGX H100"),
)


def measured(chip: chips_lib.Chip, parameters: int) -> Measured:
  """That of the model of the nearest size on this chip, or on the chip of its kind, TPU or GPU,
  with the nearest peak of those that have one.
  """
  far = lambda a, b: abs(math.log(a / b))
  of_kind = [
    (far(known.flops, chip.flops), far(found.parameters, parameters), found)
    for found in MEASURED
    if (known := chips_lib.named(found.chip)).is_tpu == chip.is_tpu
  ]
  return min(of_kind, key=lambda one: one[:2])[2]


def hours(report: dict, chip: chips_lib.Chip, mfu: float | None, price: float | None) -> dict:
  """Steps, hours, chip-hours and cost of a plan's training on a chip. mfu: in place of the table's.

  A device of TPU v2, v3 and 7x is half a chip. price: of an hour of a chip.
  """
  found = measured(chip, sum(report["parameters"].values()))
  given = found.mfu if mfu is None else mfu
  ceiling = report["chips"][chip.name]["mfu_ceiling"]
  used = min(given, ceiling)
  seconds = report["flops"]["total"] / (report["devices"] * chip.flops * used)
  chip_hours = seconds / 3600 * report["devices"] / chip.devices_per_chip
  return {
    "mfu": used,
    "mfu_source": "--mfu" if mfu is not None else f"{found.what}, on {found.chip}",
    "mfu_is_ceiling": given > ceiling,
    "steps": report["total_steps"],
    "hours": seconds / 3600,
    "chip_hours": chip_hours,
    "cost": None if price is None else chip_hours * price,
  }
