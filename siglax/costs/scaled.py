"""Plans of thousands of devices, from two compiled ones of a few.

At a fixed number of examples a device, with the same mesh.fsdp and the same way to compute the
loss, what a device holds, computes and sends is affine in the number of devices: activations and
state do not depend on it, and a loss meets B = b·D texts, be it in D hops, in one gathered array or
in rows of logits. So the step is compiled for D₁ and D₂ devices, and each figure q is

    q(D) = q(D₁) + (q(D₂) − q(D₁))·(D − D₁) / (D₂ − D₁)

Collectives are taken apart by the groups that they run in (a row of the mesh, a column, all
devices, the ring), and what is sent follows from payload and size of the group. tests/test_plan.py
compares with programs that are compiled for all devices.
"""

from __future__ import annotations

from collections.abc import Callable

import jax

from siglax import config as config_lib
from siglax import losses
from siglax import models
from siglax.costs import COMPILED
from siglax.costs import collectives
from siglax.devices import mesh as mesh_lib

# Sizes of the axis "data" to compile for, as small as can be told from mesh.fsdp.
_SIZES = ((8, 16), (16, 32), (4, 8), (2, 4))


def needed(devices: int, fsdp: int) -> int:
  """Devices that jax must have for a plan of so many."""
  return devices if devices <= COMPILED else _sizes(fsdp)[1] * fsdp


def measure(config, devices: int, examples: int | None, of: Callable) -> tuple[dict, dict]:
  """(report, traffic) of a resolved config for so many devices. of: (config, examples) → the same
  of the devices of its mesh, compiled.

  ValueError for a loss that remembers examples, whose state is divided among all devices.
  """
  fsdp = config.mesh.fsdp
  if config.mesh.slices not in ("auto", 1):
    raise ValueError(
      f"config.mesh.slices={config.mesh.slices} cannot be planned for more than {COMPILED} "
      f"devices; give auto, or up to {COMPILED} --devices"
    )
  if losses.LOSSES.find(config.loss.name, "config.loss.name").gamma is not None:
    raise ValueError(
      f"config.loss.name={config.loss.name!r} keeps numbers of each example on the devices; plan "
      f"it for up to {COMPILED} of them"
    )
  counts = [size * fsdp for size in _sizes(fsdp)]
  (first, traffic), (second, more) = (
    of(_smaller(config, devices, count, examples), examples) for count in counts
  )
  at = _Line(counts[0], counts[1], devices)
  report = at(_without_names(first), _without_names(second))
  report |= {
    "devices": devices,
    "mesh": {"data": devices // fsdp, "fsdp": fsdp},
    "loss": first["loss"] | {"auto": config.loss.impl == "auto"},
    "scaled_from": counts,
  }
  return report, _traffic(traffic, more, at, fsdp)


def _sizes(fsdp: int) -> tuple[int, int]:
  for sizes in _SIZES:
    if fsdp not in sizes and sizes[1] * fsdp <= COMPILED:
      return sizes
  raise ValueError(
    f"config.mesh.fsdp={fsdp} cannot be planned for more than {COMPILED} devices; give up to "
    f"{COMPILED // 4} of mesh.fsdp, or up to {COMPILED} --devices"
  )


def _smaller(config, devices: int, count: int, examples: int | None):
  """The config for fewer devices, with as many examples on each, as many steps and the same way to
  compute the loss.
  """
  steps = {
    name: config_lib.duration_steps(config, name, examples or 1) for name in config_lib.DURATIONS
  }
  fsdp = config.mesh.fsdp
  mesh = jax.sharding.AbstractMesh((devices // fsdp, fsdp), mesh_lib.BATCH_AXES)
  d = models.build(config.model).embed_dim
  impl, tile = losses.plan(
    config.loss.impl, config.loss.tile, config.batch_size, d, mesh, mesh_lib.BATCH_AXES
  )
  changed = {
    "batch_size": config.batch_size // devices * count,
    "mesh.data": count // fsdp,
    "loss.impl": impl,
    "loss.tile": tile,
  }
  for name, number in steps.items():
    changed |= {f"{name}_{unit}": None for unit in ("examples", "epochs")} | {
      f"{name}_steps": number
    }
  config = config.copy_and_resolve_references()
  with config.ignore_type():  # of mesh.data, a name or a number
    for field, value in changed.items():
      config_lib.set_field(config, field, value)
  return config


def _without_names(report: dict) -> dict:
  return {name: value for name, value in report.items() if name not in ("mesh", "loss")}


class _Line:
  """The affine function through two reports, number by number, at a third number of devices."""

  def __init__(self, first: int, second: int, devices: int):
    self.counts, self.devices = (first, second), devices

  def __call__(self, a, b):
    if isinstance(a, dict):
      return {name: self(a[name], b[name]) for name in a}
    if a == b or isinstance(a, (str, bool)) or a is None:
      return a
    first, second = self.counts
    value = a + (b - a) * (self.devices - first) / (second - first)
    return round(value) if isinstance(a, int) else value


def _traffic(first, second, at: _Line, fsdp: int) -> dict[str, collectives.Traffic]:
  """Traffic by kind at the devices of a line through two."""
  found = {}
  for kind in collectives.KINDS:
    total = found[kind] = collectives.Traffic()
    small, large = (
      _by_shape(of[kind], count, fsdp) for of, count in zip((first, second), at.counts)
    )
    for shape in sorted(small.keys() | large.keys()):
      a, b = (of.get(shape, collectives.Traffic()) for of in (small, large))
      group = _group(shape, at.devices, fsdp)
      total.add(collectives.of_group(kind, at(a.count, b.count), at(a.payload, b.payload), group))
  return found


def _by_shape(traffic: collectives.Traffic, devices: int, fsdp: int) -> dict:
  """Of one kind, by what its groups are in the mesh."""
  shapes = {
    tuple(sorted(_group(shape, devices, fsdp))): shape for shape in ("row", "column", "all")
  }
  found = {}
  for group, of in traffic.by_group.items():
    permute = isinstance(group[0], tuple)
    shape = "ring" if permute else shapes.get(tuple(sorted(group)))
    if shape is None:
      raise ValueError(
        f"a collective of the step runs in groups of {len(group)} of {devices} devices, which do "
        f"not scale; plan for up to {COMPILED} devices"
      )
    found.setdefault(shape, collectives.Traffic()).add(of)
  return found


def _group(shape: str, devices: int, fsdp: int) -> tuple:
  """The first group of that shape: a row of the mesh (fsdp), a column (data), all, or the pairs of
  the ring.
  """
  if shape == "ring":
    return tuple((i, (i + 1) % devices) for i in range(devices))
  return tuple(
    {"row": range(fsdp), "column": range(0, devices, fsdp), "all": range(devices)}[shape]
  )
