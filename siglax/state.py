"""The state of training: what a step takes and gives, what a checkpoint holds."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from siglax import mesh as mesh_lib


@flax.struct.dataclass
class TrainState:
  """step: int32 scalar, updates done. params: nested dict. opt_state: optax's."""

  step: jax.Array
  params: dict
  opt_state: object


def create(key: jax.Array, model, tx) -> TrainState:
  """A fresh state; traceable, so that under jit with out_shardings nothing is ever whole on one device."""
  params = model.init(key)
  return TrainState(step=jnp.int32(0), params=params, opt_state=tx.init(params))


def abstract(model, tx, mesh) -> TrainState:
  """The state's shapes and shardings on a mesh, without making it."""
  return mesh_lib.abstract(mesh, jax.eval_shape(lambda key: create(key, model, tx), jax.random.key(0)))
