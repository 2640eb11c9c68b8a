"""Running normalisers: what a loss remembers of each example of the data from step to step. Global
view.

The table {"image": {"m", "s"}, "text": {"m", "s"}}, float32 [n] each, is a part of the train state.
A normaliser u is kept as a bound m and a sum s, u = s·exp(m): exp(m) alone overflows at a
temperature of 0.01, and log u alone would lose the digits that a scale of 100 needs. s = 0: the
example has not been seen. Entry k belongs to example k of the data. The entries lie over all
devices in equal parts; those of a batch are fetched before its loss, and stored after it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from siglax.losses import pairs
from siglax.losses import ring
from siglax.losses.layout import Layout

SIDES = ("image", "text")
# Examples are numbered in int32.
MOST = 2**31 - 1


def size(examples: int, batch_size: int) -> int:
  """Entries of the table: the examples, filled up to a multiple of the batch, which any number of
  devices that the run may have divides. ValueError where there are too many to be numbered.
  """
  entries = -(-examples // batch_size) * batch_size
  if entries > MOST:
    raise ValueError(
      f"config.data has {examples:,} examples, and a loss that remembers each of them "
      f"(config.loss.name) numbers at most {MOST:,}; use less data, or another loss"
    )
  return entries


def empty(entries: int) -> dict:
  """The table before the first step."""
  zeros = lambda: jnp.zeros((entries,), jnp.float32)
  return {side: {"m": zeros(), "s": zeros()} for side in SIDES}


def fetch(table, example_B, gamma, layout: Layout) -> dict:
  """What the loss of a batch takes of the table: {"example": int32 [B], "gamma": float32 [B],
  "kept": u times 1 − γ, of both sides [B]}.

  γ is `gamma`, and 1 for an example that has not been seen. layout: impl filled in.
  """

  def per_device(table, example_b, gamma):
    found = ring.transport(layout).fetch(table, example_b)
    seen_b = found["image"]["s"] > 0
    # A bound of what counts nothing must not hide the sums of the batch.
    counts_b = seen_b & (gamma < 1)
    kept = {
      side: {"m": jnp.where(counts_b, u["m"], pairs.LOWEST), "s": (1 - gamma) * u["s"]}
      for side, u in found.items()
    }
    return {"example": example_b, "gamma": jnp.where(seen_b, gamma, 1), "kept": kept}

  return _mapped(per_device, layout, (True, True, False))(table, example_B, gamma)


def store(table, rows, layout: Layout) -> dict:
  """The table with the new normalisers of a batch. rows: {"at": the entry of each, −1 for what is
  not to be stored, no other twice, "new": as the table, [B]}.
  """
  per_device = lambda table, rows: ring.transport(layout).store(table, rows["at"], rows["new"])
  return _mapped(per_device, layout, (True, True))(table, rows)


def _mapped(per_device, layout: Layout, sharded):
  """A function of arrays of one device as one of global arrays. sharded: of each argument, whether
  its rows lie over the devices.
  """
  if layout.mesh is None:
    return per_device
  rows = P(layout.axes)
  specs = tuple(rows if of else P() for of in sharded)
  return jax.shard_map(per_device, mesh=layout.mesh, in_specs=specs, out_specs=rows)
