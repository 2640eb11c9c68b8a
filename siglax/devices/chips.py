"""What accelerators can do, as their makers publish it: one table for a run's MFU and for `siglax
plan`.

Per JAX device, which is a chip, except that of TPU v2, v3 and 7x it is half of one. FLOP/s are
dense bf16 (V100 and T4 have none: their fp16 tensor cores); figures published with 2:4 sparsity are
halved. GB are 10⁹ bytes. Memory is as many of them as its maker writes, though Google's are GiB,
and 80 GB of an A100 are 80 GiB: up to 7% less than there is, a little more than what the runtime of
a TPU keeps for itself (1.25 of 32 GiB on a v4).
Links are counted one way, over all links of a chip: ICI of TPUs, NVLink of GPUs, PCIe of GPUs that
have none; published figures for both ways are halved.

A domain is the set of devices that these links join: a TPU pod, the GPUs of a machine, or of a
rack. Between domains the network is slower: figures are for one device, one way, of Google's pages
for TPUs and of NVIDIA's DGX machines for GPUs, with one network adapter a GPU.
"""

from __future__ import annotations

import dataclasses
import re

# Products of float32 on a TPU: one bfloat16 pass, or six of them at Precision.HIGHEST.
HIGHEST_PASSES = 6
# Chips of which a jax.Device is half.
HALVES = ("v2", "v3", "tpu7x")


@dataclasses.dataclass(frozen=True)
class Chip:
  """pattern: of jax.Device.device_kind. flops: FLOP/s of bf16. For plans only: name; memory
  (bytes); bandwidth, link, between (bytes/s), of which between is None where nothing is published;
  domain (devices); flops_f32 and flops_highest, FLOP/s of products of float32 at jax's default
  precision (TF32 on GPUs, one bf16 pass on TPUs) and at Precision.HIGHEST (FP32, six passes).
  """

  pattern: str
  flops: float
  name: str | None = None
  memory: float | None = None
  bandwidth: float | None = None
  link: float | None = None
  domain: int = 1
  between: float | None = None
  flops_f32: float | None = None
  flops_highest: float | None = None

  @property
  def is_tpu(self) -> bool:
    return self.pattern.startswith("TPU")

  @property
  def devices_per_chip(self) -> int:
    return 2 if self.name in HALVES else 1

  def seconds(self, work: dict[str, float]) -> float:
    """Of FLOPs by kind (siglax/devices/flops.py), each at its peak."""
    peaks = {"bfloat16": self.flops, "float32": self.flops_f32, "highest": self.flops_highest}
    return sum(count / peaks[kind] for kind, count in work.items())


def _chip(pattern, tflops) -> Chip:
  return Chip(pattern, tflops * 1e12)


def _tpu(pattern, tflops, name, memory_gb, hbm_gb_s, link_gb_s, domain, between_gb_s) -> Chip:
  of = (memory_gb * 1e9, hbm_gb_s * 1e9, link_gb_s * 1e9, domain, between_gb_s * 1e9 or None)
  peak = tflops * 1e12
  return Chip(pattern, peak, name, *of, flops_f32=peak, flops_highest=peak / HIGHEST_PASSES)


def _gpu(
  pattern, tflops, name, memory_gb, hbm_gb_s, link_gb_s, domain, between_gb_s, tf32, fp32
) -> Chip:
  of = (memory_gb * 1e9, hbm_gb_s * 1e9, link_gb_s * 1e9, domain, between_gb_s * 1e9 or None)
  return Chip(pattern, tflops * 1e12, name, *of, flops_f32=tf32 * 1e12, flops_highest=fp32 * 1e12)


# First match. The source of a TPU is its page at docs.cloud.google.com/tpu/docs/, of a GPU NVIDIA's
# datasheet. A named one: bf16 TFLOP/s, name, GB, HBM GB/s, link GB/s, domain, GB/s between domains
# (0: not published); of a GPU TF32 and FP32 TFLOP/s too.
TABLE = (
  # v2 and v3, of which a device is half a chip: 45 and 123; 16 and 32 GB, 700 and 900 GBps; four
  # links of 496 and 656 Gbps (Norrie et al., IEEE Micro 41(2), 2021; v3: 340 TB/s of all-reduce for
  # 1024 chips are 332 GB/s each); pods of 256 and 1024 chips
  _tpu(r"TPU v2", 22.5, "v2", 8, 350, 124, 512, 0),
  _tpu(r"TPU v3", 61.5, "v3", 16, 450, 164, 2048, 0),
  # Jouppi et al., Ten Lessons From Three Generations, ISCA 2021: TPU v4i
  _chip(r"TPU v4 lite", 138),
  # v4: 32 GB, 1200 GBps; six links of 50 GBps (Jouppi et al., ISCA 2023; by v4's 1.1 PB/s of
  # all-reduce a pod it is 269 GB/s a chip that are used); pod of 4096
  _tpu(r"TPU v4", 275, "v4", 32, 1200, 300, 4096, 0),
  # v5e: 16 GB, 819 GBps; bidirectional ICI 400 GBps; 6.4 Tbps between pods, of 256
  _tpu(r"TPU v5 ?(lite|e)", 197, "v5e", 16, 819, 200, 256, 3.125),
  # v5p: 95 GB, 2765 GBps; bidirectional ICI 1200 GBps; DCN 50 Gbps a chip; pod of 8960
  _tpu(r"TPU v5p?$", 459, "v5p", 95, 2765, 600, 8960, 6.25),
  # v6e: 32 GB; bidirectional ICI 800 GBps; 25.6 Tbps between pods, of 256; tpu7x has its 1638 GBps
  _tpu(r"TPU v6 ?(lite|e)", 918, "v6e", 32, 1638, 400, 256, 12.5),
  # tpu7x, of which a device is half a chip: 2307; 192 GB, 7380 GBps; bidirectional ICI 1200 GBps;
  # DCN 100 Gbps; pod of 9216 chips
  _tpu(r"TPU ?7x", 1153.5, "tpu7x", 96, 3690, 300, 18432, 6.25),
  # A100: SXM, 2,039 GB/s (80 GB), 1,555 GB/s (40 GB); NVLink 600 GB/s; DGX A100: 200 Gb/s a GPU
  _gpu(r"\bA100.*80GB", 312, "A100-80", 80, 2039, 300, 8, 25, 156, 19.5),
  _gpu(r"\bA100.*40GB", 312, "A100-40", 40, 1555, 300, 8, 25, 156, 19.5),
  _chip(r"\bA[18]00\b", 312),  # A100; A800: A100 with fewer links
  _chip(r"\bH[12]00 NVL\b", 835.5),  # H100 and H200: NVL, 1,671 sparse
  _chip(r"\bH100 PCIe\b", 756.5),  # H100: PCIe, 1,513 sparse
  # H100: SXM, 1,979 sparse, TF32 989 sparse; 80 GB, 3.35 TB/s; NVLink 900 GB/s; DGX H100: 400 Gb/s
  _gpu(r"\bH100\b", 989.5, "H100", 80, 3350, 450, 8, 50, 494.5, 67),
  # H200: SXM, as H100; 141 GB, 4.8 TB/s
  _gpu(r"\bH200\b", 989.5, "H200", 141, 4800, 450, 8, 50, 494.5, 67),
  _chip(r"\bG?H[128]00\b", 989.5),  # GH200: 1,979 sparse; H800: H100 with fewer links
  # DGX B200, of 8: 1,440 GB, 64 TB/s; NVLink 1.8 TB/s a GPU, 400 Gb/s; HGX B200, of 8: TF32 18
  # PFLOPS sparse, FP32 600 TFLOPS
  _gpu(r"\bB200\b", 2250, "B200", 180, 8000, 900, 8, 50, 1125, 75),
  # Blackwell: GB200 NVL72, of 72: 360 PFLOPS sparse, TF32 180 PFLOPS sparse, FP32 5,760 TFLOPS;
  # 13.4 TB, 576 TB/s; NVLink 130 TB/s; 400 Gb/s a GPU
  _gpu(r"\bGB200\b", 2500, "GB200", 186, 8000, 900, 72, 50, 1250, 80),
  _chip(r"\bA40\b", 149.7),  # A40
  # A10: 24 GB, 600 GB/s; PCIe 64 GB/s
  _gpu(r"\bA10\b", 125, "A10", 24, 600, 32, 8, 0, 62.5, 31.2),
  # L40S: 733 sparse, TF32 366 sparse; 48 GB, 864 GB/s; PCIe 64 GB/s
  _gpu(r"\bL40S\b", 362, "L40S", 48, 864, 32, 8, 0, 183, 91.6),
  _chip(r"\bL40\b", 181),  # L40
  # L4: 242 sparse, TF32 120 sparse; 24 GB, 300 GB/s; PCIe 64 GB/s
  _gpu(r"\bL4\b", 121, "L4", 24, 300, 32, 8, 0, 60, 30.3),
  _chip(r"\bV100S\b", 130),  # V100: V100S PCIe
  _chip(r"\bV100-PCIE\b", 112),  # V100: PCIe
  _chip(r"\bV100\b", 125),  # V100: SXM2
  _chip(r"\bT4\b", 65),  # T4
)
# Those that `siglax plan` knows, by name, and those that it tells of where none is named.
NAMED = {chip.name: chip for chip in TABLE if chip.name}
USUAL = ("v4", "v5e", "v5p", "v6e", "A100-80", "H100", "H200", "B200")


def find(device_kind: str) -> Chip | None:
  """The chip of a jax.Device.device_kind; None for an unknown one and for a slice of a GPU."""
  if "MIG" in device_kind:
    return None
  return next((chip for chip in TABLE if re.search(chip.pattern, device_kind)), None)


def named(name: str) -> Chip:
  """A chip of NAMED, in any case; ValueError in one line for another name."""
  chip = {known.lower(): chip for known, chip in NAMED.items()}.get(name.strip().lower())
  if chip is None:
    raise ValueError(f"--chips: {name!r} is unknown; known are {', '.join(NAMED)}")
  return chip


def rows() -> list[tuple[str, str]]:
  """(name, figures in words) of each of NAMED: what `siglax plan --chips list` prints."""
  return [(name, _in_words(chip)) for name, chip in NAMED.items()]


def _in_words(chip: Chip) -> str:
  tera, giga = (lambda x: f"{x / 1e12:.4g}"), (lambda x: f"{x / 1e9:.4g}")
  between = f"{giga(chip.between)} GB/s between" if chip.between else "--between needed beyond"
  return (
    f"TFLOP/s {tera(chip.flops)} bf16, {tera(chip.flops_f32)} float32, "
    f"{tera(chip.flops_highest)} float32 at highest precision; {giga(chip.memory)} GB at "
    f"{giga(chip.bandwidth)} GB/s; links {giga(chip.link)} GB/s among {chip.domain:,}, {between}"
  )


def peak_flops(device) -> float | None:
  """Peak dense bf16 FLOP/s of one jax.Device; None where it is not known, as on CPUs and slices of
  a GPU.
  """
  chip = None if device.platform == "cpu" else find(device.device_kind)
  return chip and chip.flops
