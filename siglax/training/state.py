"""The state of training: what a step takes and gives, what a checkpoint holds."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from siglax.devices import mesh as mesh_lib


@flax.struct.dataclass
class TrainState:
  """step: int32 scalar, updates done. params: nested dict. opt_state: optax's. ema: the average of
  params, or None.

  Of a frozen parameter nothing else is kept: it is its own average, so ema has None in its place.
  """

  step: jax.Array
  params: dict
  opt_state: object
  ema: dict | None = None

  @property
  def evaluated(self) -> dict:
    """The parameters that are evaluated and exported: the average, where there is one."""
    return self.params if self.ema is None else merge(self.ema, self.params)


def create(params: dict, tx, ema: bool = False, frozen=None) -> TrainState:
  """The state before the first update; traceable, so that under jit nothing is ever whole on one
  device.

  frozen: bools like params (siglax/training/optim.py); None where all parameters train.
  """
  trainable = params if frozen is None else split(params, frozen)[0]
  average = jax.tree.map(jnp.copy, trainable) if ema else None  # a copy: a step is given both
  return TrainState(step=jnp.int32(0), params=params, opt_state=tx.init(params), ema=average)


def overlay(params: dict, loaded: dict) -> dict:
  """params with the leaves of `loaded`, a nested dict of some of its paths, in place of its own."""
  return params | {
    k: overlay(params[k], v) if isinstance(v, dict) else v for k, v in loaded.items()
  }


def split(params: dict, frozen) -> tuple[dict, dict]:
  """(trainable, frozen) parts of params, each with None where the other has a leaf."""
  trainable = jax.tree.map(lambda p, f: None if f else p, params, frozen)
  fixed = jax.tree.map(lambda p, f: p if f else None, params, frozen)
  return trainable, fixed


def merge(first: dict, second: dict) -> dict:
  """The leaves of first, and of second where first has None."""
  return jax.tree.map(
    lambda a, b: b if a is None else a, first, second, is_leaf=lambda x: x is None
  )


def abstract(model, tx, mesh, ema: bool = False, rules=(), frozen=None) -> TrainState:
  """The state's shapes and shardings on a mesh, without making it. rules: config.mesh.shard;
  frozen: as for `create`.
  """
  shapes = jax.eval_shape(lambda key: create(model.init(key), tx, ema, frozen), jax.random.key(0))
  return mesh_lib.abstract(mesh, shapes, rules)
