"""The state of training: what a step takes and gives, what a checkpoint holds."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from siglax import mesh as mesh_lib


@flax.struct.dataclass
class TrainState:
  """step: int32 scalar, updates done. params: nested dict. opt_state: optax's. ema: the average of params, or None."""

  step: jax.Array
  params: dict
  opt_state: object
  ema: dict | None = None

  @property
  def evaluated(self) -> dict:
    """The parameters that are evaluated and exported: the average, where there is one."""
    return self.params if self.ema is None else self.ema


def create(params: dict, tx, ema: bool = False) -> TrainState:
  """The state before the first update; traceable, so that under jit nothing is ever whole on one device."""
  average = jax.tree.map(jnp.copy, params) if ema else None  # a copy: a step is given both
  return TrainState(step=jnp.int32(0), params=params, opt_state=tx.init(params), ema=average)


def overlay(params: dict, loaded: dict) -> dict:
  """params with the leaves of `loaded` in place of its own."""
  return params | {k: overlay(params[k], v) if isinstance(v, dict) else v for k, v in loaded.items()}


def abstract(model, tx, mesh, ema: bool = False, rules=()) -> TrainState:
  """The state's shapes and shardings on a mesh, without making it. rules: config.mesh.shard."""
  shapes = jax.eval_shape(lambda key: create(model.init(key), tx, ema), jax.random.key(0))
  return mesh_lib.abstract(mesh, shapes, rules)
