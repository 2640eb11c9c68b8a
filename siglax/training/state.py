"""The state of training: what a step takes and gives, what a checkpoint holds."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from siglax.devices import mesh as mesh_lib
from siglax.losses import running
from siglax.models import trainable as trainable_lib


@flax.struct.dataclass
class TrainState:
  """step: int32 scalar, updates done. params: nested dict. opt_state: optax's. ema: the average of
  params, or None. normalisers: what the loss remembers of each example of the data
  (siglax/losses/running.py), or None.

  Of a frozen parameter nothing else is kept: it is its own average, so ema has None in its place.
  """

  step: jax.Array
  params: dict
  opt_state: object
  ema: dict | None = None
  normalisers: dict | None = None

  @property
  def evaluated(self) -> dict:
    """The parameters that are evaluated and exported: the average, where there is one."""
    return self.params if self.ema is None else trainable_lib.merge(self.ema, self.params)


def create(params: dict, tx, ema: bool = False, frozen=None, remembered: int = 0) -> TrainState:
  """The state before the first update; traceable, so that under jit nothing is ever whole on one
  device.

  frozen: bools like params (siglax/models/trainable.py); None where all parameters train.
  remembered: entries of the normalisers (`running.size`), 0 for a loss that has none.
  """
  trainable = params if frozen is None else trainable_lib.split(params, frozen)[0]
  average = jax.tree.map(jnp.copy, trainable) if ema else None  # a copy: a step is given both
  return TrainState(
    step=jnp.int32(0),
    params=params,
    opt_state=tx.init(params),
    ema=average,
    normalisers=running.empty(remembered) if remembered else None,
  )


def abstract(
  model, tx, mesh, ema: bool = False, rules=(), frozen=None, remembered: int = 0
) -> TrainState:
  """The state's shapes and shardings on a mesh, without making it. rules: config.mesh.shard;
  frozen, remembered: as for `create`. The normalisers lie over all devices, whatever the rules.
  """
  make = lambda params: create(params, tx, ema, frozen, remembered)
  shapes = jax.eval_shape(make, model.shapes)
  over_all = lambda x: jax.ShapeDtypeStruct(
    x.shape, x.dtype, sharding=mesh_lib.batch_sharding(mesh)
  )
  normalisers = jax.tree.map(over_all, shapes.normalisers)
  state = mesh_lib.abstract(mesh, shapes.replace(normalisers=None), rules)
  return state.replace(normalisers=normalisers)
