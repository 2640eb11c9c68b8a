"""What is checked of several fields together; siglax/config/types.py checks each for itself.

Neither data nor jax is needed: each raises ValueError in one line, given, needed, field.
"""

from __future__ import annotations

import math

from ml_collections import ConfigDict

from siglax.config.durations import UNITS
from siglax.config.fields import DURATIONS
from siglax.config.values import get


def check_durations(config: ConfigDict):
  """Each has at most one unit set, and one that is needed has one."""
  for name, duration in DURATIONS.items():
    given = [f"{name}_{k}" for k in UNITS if get(config, f"{name}_{k}") is not None]
    if len(given) > 1 or duration.needed and not given:
      raise ValueError(
        f"{' and '.join(given) or 'none'} of config.{name}_{{steps,examples,epochs}} set; set "
        "exactly one"
      )


def check_mesh(config: ConfigDict, devices: int, sizes: tuple[str, ...]):
  """The devices divide into the mesh, and the batches over the devices. sizes: the fields of these
  batches.
  """
  mesh = config.mesh
  if mesh.data == "rest" and devices % mesh.fsdp:
    raise ValueError(f"config.mesh.fsdp={mesh.fsdp} does not divide the {devices} devices")
  if mesh.data != "rest" and mesh.data * mesh.fsdp != devices:
    raise ValueError(
      f"config.mesh.data={mesh.data} × config.mesh.fsdp={mesh.fsdp} is {mesh.data * mesh.fsdp}, "
      f"but there are {devices} devices"
    )
  data = devices // mesh.fsdp
  if mesh.slices != "auto" and data % mesh.slices:
    raise ValueError(
      f'config.mesh.slices={mesh.slices} does not divide the {data} devices on mesh axis "data", '
      f"which config.mesh.fsdp={mesh.fsdp} leaves of {devices}"
    )
  for field in sizes:
    size = get(config, field)
    if size % devices:
      below, above = size // devices * devices, -(-size // devices) * devices
      use = f"use {below} or {above}" if below else f"use {above}"
      raise ValueError(
        f'config.{field}={size} is not divisible by the {devices} devices on mesh axes "data" and '
        f'"fsdp"; {use}'
      )


def check_train(config: ConfigDict, devices: int):
  """config.train fits the batch of a device, and its own fields each other."""
  microbatch, size = config.train.microbatch, config.batch_size // devices
  if microbatch is not None and (microbatch < 1 or size % microbatch):
    near = sorted(
      {n for d in range(1, math.isqrt(size) + 1) if size % d == 0 for n in (d, size // d)}
    )
    use = sorted(
      {
        max((n for n in near if n <= microbatch), default=1),
        min((n for n in near if n >= microbatch), default=size),
      }
    )
    raise ValueError(
      f"config.train.microbatch={microbatch} does not divide the {size} examples of a device "
      f"(config.batch_size={config.batch_size} over {devices} devices); use "
      f"{' or '.join(map(str, use))}"
    )
  if not config.train.patch_drop and any(get(config, f"train.unmasked_{k}") for k in UNITS):
    raise ValueError(
      "config.train.unmasked is set, but config.train.patch_drop=0 leaves no patch out; set both "
      "or none"
    )
