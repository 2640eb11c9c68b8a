"""What accelerators can do, as their makers publish it: one table for a run's MFU and for `siglax
plan`.

Per JAX device, which is a chip, except that of TPU v2, v3 and 7x it is half of one. FLOP/s are
dense bf16 (V100 and T4 have none: their fp16 tensor cores); figures published with 2:4 sparsity are
halved. GB are 10⁹ bytes. Links are counted one way, over all links of a chip: ICI of TPUs, NVLink
of GPUs; published figures for both ways are halved.
"""

from __future__ import annotations

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Chip:
  """pattern: of jax.Device.device_kind. flops: FLOP/s. For plans only: name, memory (bytes),
  bandwidth, link (bytes/s).
  """

  pattern: str
  flops: float
  name: str | None = None
  memory: float | None = None
  bandwidth: float | None = None
  link: float | None = None


def _chip(pattern, tflops, name=None, memory_gb=0, hbm_gb_s=0, link_gb_s=0) -> Chip:
  return Chip(
    pattern,
    tflops * 1e12,
    name,
    *((memory_gb * 1e9, hbm_gb_s * 1e9, link_gb_s * 1e9) if name else ()),
  )


# First match. The source of a TPU is its page at docs.cloud.google.com/tpu/docs/, of a GPU NVIDIA's
# datasheet.
TABLE = (
  _chip(r"TPU v2", 22.5),  # v2: 45 a chip
  _chip(r"TPU v3", 61.5),  # v3: 123 a chip
  # Jouppi et al., Ten Lessons From Three Generations, ISCA 2021: TPU v4i
  _chip(r"TPU v4 lite", 138),
  _chip(r"TPU v4", 275),  # v4
  # v5e: 16 GB, 819 GBps; bidirectional ICI 400 GBps
  _chip(r"TPU v5 ?(lite|e)", 197, "v5e", 16, 819, 200),
  # v5p: 95 GB, 2765 GBps; bidirectional ICI 1200 GBps
  _chip(r"TPU v5p?$", 459, "v5p", 95, 2765, 600),
  # v6e: 32 GB, 1600 GBps; bidirectional ICI 800 GBps
  _chip(r"TPU v6 ?(lite|e)", 918, "v6e", 32, 1600, 400),
  _chip(r"TPU ?7x", 1153.5),  # tpu7x: 2307 a chip
  # A100: SXM 80GB, 2,039 GB/s; NVLink 600 GB/s
  _chip(r"\bA100.*80GB", 312, "A100-80", 80, 2039, 300),
  _chip(r"\bA[18]00\b", 312),  # A100; A800: A100 with fewer links
  _chip(r"\bH[12]00 NVL\b", 835.5),  # H100 and H200: NVL, 1,671 sparse
  _chip(r"\bH100 PCIe\b", 756.5),  # H100: PCIe, 1,513 sparse
  # H100: SXM, 1,979 sparse; 80 GB, 3.35 TB/s; NVLink 900 GB/s
  _chip(r"\bH100\b", 989.5, "H100", 80, 3350, 450),
  # H200: SXM, 1,979 sparse; 141 GB, 4.8 TB/s; NVLink 900 GB/s
  _chip(r"\bH200\b", 989.5, "H200", 141, 4800, 450),
  _chip(r"\bG?H[128]00\b", 989.5),  # GH200: 1,979 sparse; H800: H100 with fewer links
  # DGX B200, of 8: 1,440 GB, 64 TB/s; NVLink 1.8 TB/s a GPU
  _chip(r"\bB200\b", 2250, "B200", 180, 8000, 900),
  _chip(r"\bGB200\b", 2500),  # Blackwell: GB200 NVL72, 360 PFLOPS sparse of 72
  _chip(r"\bA40\b", 149.7),  # A40
  _chip(r"\bA10\b", 125),  # A10
  _chip(r"\bL40S\b", 362),  # L40S: 733 sparse
  _chip(r"\bL40\b", 181),  # L40
  _chip(r"\bL4\b", 121),  # L4: 242 sparse
  _chip(r"\bV100S\b", 130),  # V100: V100S PCIe
  _chip(r"\bV100-PCIE\b", 112),  # V100: PCIe
  _chip(r"\bV100\b", 125),  # V100: SXM2
  _chip(r"\bT4\b", 65),  # T4
)
# Those that `siglax plan` knows, by name.
NAMED = {chip.name: chip for chip in TABLE if chip.name}


def find(device_kind: str) -> Chip | None:
  """The chip of a jax.Device.device_kind; None for an unknown one and for a slice of a GPU."""
  if "MIG" in device_kind:
    return None
  return next((chip for chip in TABLE if re.search(chip.pattern, device_kind)), None)


def named(name: str) -> Chip:
  """A chip of NAMED; ValueError in one line for another name."""
  if name not in NAMED:
    raise ValueError(f"--chips: {name!r} is unknown; known are {', '.join(NAMED)}")
  return NAMED[name]


def peak_flops(device) -> float | None:
  """Peak dense bf16 FLOP/s of one jax.Device; None where it is not known, as on CPUs and slices of
  a GPU.
  """
  chip = None if device.platform == "cpu" else find(device.device_kind)
  return chip and chip.flops
