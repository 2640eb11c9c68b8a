"""Plans of thousands of devices, from two or four compiled ones of a few.

At a fixed number of examples a device, with the same mesh.fsdp and the same way to compute the
loss, what a device holds, computes and sends is affine in the number of devices: activations and
state do not depend on it, and a loss meets B = b·D texts, be it in D hops, in one gathered array or
in rows of logits. The ring between slices makes as many rounds as there are slices, of as many hops
as a slice has devices: with slices all is affine in their number, and in the size of one. So the
step is compiled for two sizes n of a slice, for two numbers of slices, or for both, and each figure
q follows from

    q(n) = q(n₁) + (q(n₂) − q(n₁))·(n − n₁) / (n₂ − n₁)

first of the size, then of the number. Collectives are taken apart by the groups that they run in (a
row of the mesh, a column, all devices, the ring in a slice, the ring through all), and what is sent
follows from payload and size of the group. tests/test_plan.py compares with programs that are
compiled for all devices.
"""

from __future__ import annotations

from collections.abc import Callable
import itertools
from typing import Any
from typing import NamedTuple

import jax

from siglax import config as config_lib
from siglax import losses
from siglax import models
from siglax.costs import COMPILED
from siglax.costs import VIRTUAL
from siglax.costs import collectives
from siglax.devices import mesh as mesh_lib
from siglax.losses import running

# Places on the axis "data" in a slice to compile for, as few as can be told from mesh.fsdp.
_PLACES = ((8, 16), (16, 32), (4, 8), (2, 4), (2, 3), (1, 2))
# Devices of a slice from which on each half of its round is a loop.
_ROUND = 7
# Numbers of slices to compile for: from 5 on the rounds abroad are a loop.
_SLICES = ((8, 16), (5, 6))


class Mesh(NamedTuple):
  """Numbers of slices, of places on the axis "data" in each of them, and of places on "fsdp"."""

  slices: int
  places: int
  fsdp: int

  @property
  def data(self) -> int:
    return self.slices * self.places

  @property
  def devices(self) -> int:
    return self.data * self.fsdp


def meshes(config, devices: int) -> list[Mesh]:
  """What to compile for a plan of so many devices: their own mesh up to COMPILED, else those that
  tell of it, in the order of their slices.

  ValueError in one line where none do.
  """
  whole = _mesh(config, devices)
  if found := _enough(whole):
    return found
  of_slice = whole.places * whole.fsdp
  smaller = next(
    (
      f"config.mesh.fsdp={fsdp}, or "
      for fsdp in range(whole.fsdp - 1, 0, -1)
      if of_slice % fsdp == 0 and _enough(Mesh(whole.slices, of_slice // fsdp, fsdp))
    ),
    "",
  )
  between = f" with config.mesh.slices={whole.slices}" if whole.slices > 1 else ""
  raise ValueError(
    f"config.mesh.fsdp={whole.fsdp}{between} cannot be planned for {devices} devices; give "
    f"{smaller}up to {COMPILED} --devices"
  )


def measure(config, devices: int, examples: int | None, of: Callable) -> tuple[dict, dict]:
  """(report, traffic) of a resolved config for so many devices. of: (config, examples) → the same
  of the devices of its mesh, compiled.

  What a loss remembers of the examples lies on all devices in equal parts. Fewer devices are
  compiled for fewer examples, so that each of them has a part of the same size.
  """
  remembers = losses.LOSSES.find(config.loss.name, "config.loss.name").gamma is not None
  part = running.size(examples, config.batch_size) // devices if remembers else 0
  whole, compiled = _mesh(config, devices), {}
  for mesh in meshes(config, devices):
    report, traffic = of(_smaller(config, whole, mesh, examples), part * mesh.devices or examples)
    compiled[mesh] = {"report": report, "shapes": _by_shape(traffic, mesh)}
  found = _at(whole, compiled)
  report = found["report"] | {
    "devices": devices,
    "mesh": {"data": whole.data, "fsdp": whole.fsdp},
    "scaled_from": [mesh.devices for mesh in compiled],
  }
  report["loss"] |= {"auto": config.loss.impl == "auto"}
  return report, _traffic(found["shapes"], whole)


def _mesh(config, devices: int) -> Mesh:
  slices, fsdp = mesh_lib.count_slices(config.mesh.slices), config.mesh.fsdp
  return Mesh(slices, devices // fsdp // slices, fsdp)


def _enough(whole: Mesh) -> list[Mesh]:
  """The meshes to compile for, the whole where it is small; none where they would be too large."""
  # Halves of a round depend on whether its devices are even.
  odd = whole.places % 2 if whole.fsdp % 2 else 0
  places = [(whole.places,), *((small + odd, large + odd) for small, large in _PLACES)]
  for most, slices in ((COMPILED, [(whole.slices,), *_SLICES]), (VIRTUAL, [(whole.slices,)])):
    for of_slices, of_places in itertools.product(slices, places):
      found = [Mesh(number, n, whole.fsdp) for number in of_slices for n in of_places]
      if found[-1].devices <= most and (found == [whole] or _tell(found, whole)):
        return found
  return []


def _tell(found: list[Mesh], whole: Mesh) -> bool:
  """Whether the programs of these meshes are like that of the whole, and differ in size alone."""
  rounds = {mesh.places * mesh.fsdp for mesh in found}
  return (
    # Of a row, a column and the whole of a mesh each is told by its size.
    all(1 < mesh.data != mesh.fsdp for mesh in found)
    and (len(rounds) == 1 or min(rounds) >= _ROUND and len({n % 2 for n in rounds}) == 1)
    and found[-1].slices <= whole.slices
    and found[-1].places <= whole.places
  )


def _smaller(config, whole: Mesh, mesh: Mesh, examples: int | None):
  """The config for fewer devices, with as many examples on each, as many steps and the same way to
  compute the loss.
  """
  steps = {
    name: config_lib.duration_steps(config, name, examples or 1) for name in config_lib.DURATIONS
  }
  abstract = jax.sharding.AbstractMesh((whole.data, whole.fsdp), mesh_lib.BATCH_AXES)
  d = models.build(config.model).embed_dim
  impl, tile = losses.plan(
    config.loss.impl, config.loss.tile, config.batch_size, d, abstract, mesh_lib.BATCH_AXES
  )
  changed = {
    "batch_size": config.batch_size // whole.devices * mesh.devices,
    "mesh.data": mesh.data,
    "mesh.slices": mesh.slices,
    "loss.impl": impl,
    "loss.tile": tile,
  }
  for name, number in steps.items():
    changed |= {f"{name}_{unit}": None for unit in ("examples", "epochs")} | {
      f"{name}_steps": number
    }
  config = config.copy_and_resolve_references()
  with config.ignore_type():  # of mesh.data and mesh.slices, a name or a number
    for field, value in changed.items():
      config_lib.set_field(config, field, value)
  return config


def _at(whole: Mesh, compiled: dict[Mesh, dict]) -> dict:
  """Of figures by their mesh, those of the whole: first of each number of slices, then of its
  own.
  """
  by_slices = {}
  for mesh, figures in compiled.items():
    by_slices.setdefault(mesh.slices, []).append((mesh.places, figures))
  return _on_line(
    [(slices, _on_line(points, whole.places)) for slices, points in by_slices.items()],
    whole.slices,
  )


def _on_line(points: list[tuple], at: int) -> Any:
  """Of one or two (n, figures) those at n = at, number by number, on the line through them."""
  (first, a), (last, b) = points[0], points[-1]
  if isinstance(a, dict):
    return {name: _on_line([(n, of[name]) for n, of in points], at) for name in a}
  if a == b or isinstance(a, (str, bool)) or a is None:
    return a
  value = a + (b - a) * (at - first) / (last - first)
  return round(value) if isinstance(a, int) else value


def _by_shape(traffic: dict[str, collectives.Traffic], mesh: Mesh) -> dict:
  """{kind: {shape: count and payload}}, the shape being what the groups are in the mesh."""
  shapes = _groups(mesh)
  names = {group: name for name, group in shapes.items()}
  found = {
    kind: {name: {"count": 0, "payload": 0} for name in shapes} for kind in collectives.KINDS
  }
  for kind, of in traffic.items():
    for group, of_group in of.by_group.items():
      if group not in names:
        raise ValueError(
          f"a collective of the step, {kind}, runs in groups that are no row, column or ring of "
          f"the {mesh.devices} devices, and do not scale; give up to {COMPILED} --devices"
        )
      sums = found[kind][names[group]]
      sums["count"] += of_group.count
      sums["payload"] += of_group.payload
  return found


def _traffic(shapes: dict, mesh: Mesh) -> dict[str, collectives.Traffic]:
  """Traffic by kind, of its count and payload by shape of group."""
  found, groups = {}, _groups(mesh)
  for kind, by_shape in shapes.items():
    found[kind] = collectives.Traffic()
    for name, of in by_shape.items():
      if of["count"]:
        found[kind].add(collectives.of_group(kind, of["count"], of["payload"], groups[name]))
  return found


def _groups(mesh: Mesh) -> dict[str, collectives.Group]:
  """The groups of each shape. Where two are one, it has the name of the last."""
  n = mesh.devices
  return {
    "row": range(mesh.fsdp),
    "column": range(0, n, mesh.fsdp),
    "all": range(n),
    "round": collectives.Ring(n, n // mesh.slices),
    "ring": collectives.Ring(n, n),
  }
