"""The compiled part of a run, made of its config; nothing is allocated. `train` runs it, `siglax
plan` only compiles it.
"""

from __future__ import annotations

import functools
import math

import jax
import numpy as np

from siglax import config as config_lib
from siglax import losses
from siglax import models
from siglax.data import embeddings
from siglax.devices import flops
from siglax.devices import mesh as mesh_lib
from siglax.losses import running
from siglax.models import trainable as trainable_lib
from siglax.models import transformer
from siglax.training import optim
from siglax.training import schedules
from siglax.training import state as state_lib
from siglax.training import step as step_lib


class Program:
  """Mesh, model, optimizer, abstract state and update of a resolved config, over all devices.

  epoch_examples: examples of one pass over the training data, for durations in epochs and for a
  loss that remembers each of them. gamma: its γ by the step; None for another loss.
  Raises ValueError in one line for a training of 0 steps, for an optimizer that does not fit the
  parameters, for an image tower that is to train on embeddings of it, and for micro-batches of
  batch norm.
  """

  def __init__(self, config, epoch_examples: int):
    self.config = config
    durations = {
      name: config_lib.duration_steps(config, name, epoch_examples) for name in config_lib.DURATIONS
    }
    total_steps = durations["total"]
    if not total_steps:
      raise ValueError(
        f"the total of config comes to 0 steps of config.batch_size={config.batch_size}; raise it"
      )
    self.total_steps: int = total_steps
    self.every = {name: durations[f"{name}.every"] for name in ("log", "eval", "checkpoint")}
    # The first steps, whose pictures lack config.train.patch_drop of their patches.
    self.masked_steps = self.total_steps - (durations["train.unmasked"] or 0)
    if self.masked_steps < 0:
      raise ValueError(
        f"config.train.unmasked is {durations['train.unmasked']} steps, but the training is "
        f"{self.total_steps} steps; shorten it"
      )
    # The steps whose learning rate would be the same in a longer training.
    cooldown = durations["optim.cooldown"] or 0
    schedule = schedules.SCHEDULES.find(config.optim.schedule, "config.optim.schedule")
    self.schedule_end = 0 if schedule.ends_at_zero else self.total_steps - cooldown
    self.mesh = mesh_lib.make(config.mesh.data, config.mesh.fsdp, config.mesh.slices)
    self.model = models.build(config.model)
    params = self.model.shapes
    # The first steps, which leave the parameters as they are.
    self.hold_steps = durations["optim.hold"] or 0
    self.tx, self.schedule = optim.make(
      config,
      params,
      self.total_steps,
      durations["optim.warmup"] or 0,
      cooldown,
      self.hold_steps,
    )
    self.frozen = trainable_lib.frozen_mask(config, params)
    # Towers whose config.train.remat is "auto", and what it stands for (siglax/training/remat.py).
    self.automatic = tuple(
      name for name in models.TOWERS if config.train.remat[name] == transformer.AUTO
    )
    self.remat = "none"
    self._updates, self._models = {}, {}
    self._ema = config.train.ema is not None
    self.embedded = embeddings.given(config)
    if self.embedded and not all(jax.tree.leaves(self.frozen["image"])):
      raise ValueError(
        "config.optim.lr_multipliers trains the image tower, which config.data with source "
        '"embeddings" never runs; '
        'freeze it with ("image/.*", None) before what matches it now'
      )
    self._remember(epoch_examples)
    self.abstract_state = state_lib.abstract(
      self.model, self.tx, self.mesh, self._ema, config.mesh.shard, self.frozen, self._remembered
    )
    self.update()  # raises what is wrong with it

  def _remember(self, examples: int):
    """γ and the entries of the state of a loss that remembers examples."""
    of = self.config.loss
    loss = losses.LOSSES.find(of.name, "config.loss.name")
    self.gamma, self._remembered = None, 0
    if loss.gamma is not None:
      self.gamma = loss.gamma(self.total_steps, **loss.options(of))
      self._remembered = running.size(examples, self.config.batch_size)

  def create(self, params: dict) -> state_lib.TrainState:
    """The state before the first update; traceable."""
    return state_lib.create(params, self.tx, self._ema, self.frozen, self._remembered)

  def training_model(self, step: int) -> models.TwoTowers:
    """What is trained after `step` steps: `model`, or one like it that sees all patches at the end,
    and whose automatic towers compute again what `remat` says.
    """
    masked = step < self.masked_steps
    if masked and not self.automatic:
      return self.model
    if (masked, self.remat) not in self._models:
      config = self.config.model.copy_and_resolve_references()
      if not masked:
        config.image.patch_drop = 0.0
      for name in self.automatic:
        config[name].remat = self.remat
      self._models[masked, self.remat] = models.build(config)
    return self._models[masked, self.remat]

  def update(self, step: int = 0):
    """The jitted update (state, batch) → (state, metrics) after `step` steps; call it with the mesh
    set.
    """
    model = self.training_model(step)
    if model not in self._updates:
      update = step_lib.make(
        self.config,
        model,
        self.tx,
        self.schedule,
        self.mesh,
        self.frozen,
        self.hold_steps,
        self.gamma,
      )
      self._updates[model] = step_lib.jit(update, self.abstract_state, self.mesh)
    return self._updates[model]

  def abstract_batch(self) -> dict:
    """Shapes and shardings of a global batch."""
    B, S, L = self.config.batch_size, self.config.image.size, self.config.text.length
    captions = (self.config.text.captions,) if self.config.text.captions > 1 else ()
    shapes = {
      "tokens": ((B, *captions, L), np.int32),
      "label": ((B,), np.int32),
      "weight": ((B,), np.float32),
    }
    if self.gamma is not None:
      shapes["example"] = (B,), np.int32
    if self.embedded:
      shapes["image_embedding"] = (B, self.model.embed_dim), np.float32
    else:
      shapes["image"] = (B, S, S, 3), np.uint8
    rows = mesh_lib.batch_sharding(self.mesh)
    return {
      name: jax.ShapeDtypeStruct(shape, dtype, sharding=rows)
      for name, (shape, dtype) in shapes.items()
    }

  def costs(self) -> dict[str, int]:
    """What the whole training took: cost/flops, model FLOPs, and cost/peak_bytes, on a device, by
    the compiled program. Called after the last step, it compiles nothing.
    """
    return {"cost/flops": self.total_flops(), "cost/peak_bytes": peak_bytes(self.compile_last())}

  def compile_last(self):
    """The compiled update of the last step, which takes the most: it sees all patches."""
    last = self.update(self.total_steps - 1)
    return last.trace(self.abstract_state, self.abstract_batch()).lower().compile()

  def total_flops(self) -> int:
    """Model FLOPs of all steps."""
    masked, last = self.masked_steps, self.total_steps - 1
    of_last = self.model_flops(last)
    return (
      masked * (self.model_flops() if masked <= last else of_last) + (last + 1 - masked) * of_last
    )

  def model_flops(self, step: int = 0) -> int:
    """Model FLOPs of an update after `step` of them: each tower forward on what it then sees, times
    three for the backward pass where any of it trains.

    Rematerialisation is not counted, and an image tower whose embeddings are precomputed does not
    run.
    """
    params, batch, model = (
      self.abstract_state.params,
      self.abstract_batch(),
      self.training_model(step),
    )
    passes = {name: 1 if all(jax.tree.leaves(self.frozen[name])) else 3 for name in models.TOWERS}
    keys = jax.ShapeDtypeStruct((self.config.batch_size,), jax.eval_shape(jax.random.key, 0).dtype)
    embed_texts = functools.partial(step_lib.embed_texts, model)
    work = passes["text"] * flops.count(embed_texts, params, batch["tokens"], keys)
    return (
      work
      if self.embedded
      else work + passes["image"] * flops.count(model.embed_image, params, batch["image"], keys)
    )


def held(tree) -> int:
  """Bytes on a device of abstract arrays with their shardings."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
  )


def peak_bytes(compiled) -> int:
  """Of a device: arguments, results that do not take the place of arguments, and temporaries."""
  of = compiled.memory_analysis()
  results = of.output_size_in_bytes - of.alias_size_in_bytes
  return of.argument_size_in_bytes + results + of.temp_size_in_bytes
