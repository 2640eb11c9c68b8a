"""The compiled part of a run, made of its config; nothing is allocated. `train` runs it, `siglax plan` only compiles it."""

from __future__ import annotations

import jax
import numpy as np

from siglax import config as config_lib
from siglax import mesh as mesh_lib
from siglax import models
from siglax import optim
from siglax import state as state_lib
from siglax import step as step_lib


class Program:
  """Mesh, model, optimizer, abstract state and update of a resolved config, over all devices.

  epoch_examples: examples of one pass over the training data, for durations in epochs.
  Raises ValueError in one line for a training of 0 steps, for an optimizer that does not fit the parameters, and for
  micro-batches of batch norm.
  """

  def __init__(self, config, epoch_examples: int):
    self.config = config
    durations = {name: config_lib.duration_steps(config, name, epoch_examples) for name in config_lib.DURATIONS}
    self.total_steps = durations["total"]
    if not self.total_steps:
      raise ValueError(f"the total of config comes to 0 steps of config.batch_size={config.batch_size}; raise it")
    self.every = {name: durations[f"{name}.every"] for name in ("log", "eval", "checkpoint")}
    self.mesh = mesh_lib.make(config.mesh.data, config.mesh.fsdp)
    self.model = models.build(config.model)
    params = jax.eval_shape(self.model.init, jax.random.key(0))
    self.tx, self.schedule = optim.make(
        config, params, self.total_steps, durations["optim.warmup"] or 0, durations["optim.cooldown"] or 0
    )
    self.frozen = optim.frozen_mask(config, params)
    self._step = step_lib.make(config, self.model, self.tx, self.schedule, self.mesh, self.frozen)
    self._ema = config.train.ema is not None
    self.abstract_state = state_lib.abstract(self.model, self.tx, self.mesh, self._ema, config.mesh.shard)

  def create(self, params: dict) -> state_lib.TrainState:
    """The state before the first update; traceable."""
    return state_lib.create(params, self.tx, self._ema)

  def update(self):
    """The jitted update (state, batch) → (state, metrics); call it with the mesh set."""
    return step_lib.jit(self._step, self.abstract_state, self.mesh)

  def abstract_batch(self) -> dict:
    """Shapes and shardings of a global batch."""
    B, S, L = self.config.batch_size, self.config.image.size, self.config.text.length
    shapes = {
        "image": ((B, S, S, 3), np.uint8), "tokens": ((B, L), np.int32),
        "label": ((B,), np.int32), "weight": ((B,), np.float32),
    }
    rows = mesh_lib.batch_sharding(self.mesh)
    return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=rows) for name, (shape, dtype) in shapes.items()}
