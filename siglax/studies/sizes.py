"""What a run of a study needs: steps, model FLOPs and room on the disk; and whether it could begin.

All but the compiling of `siglax plan`: the data are opened, the model is made of shapes.
"""

from __future__ import annotations

import dataclasses
import json

import jax
from ml_collections import ConfigDict

from siglax.costs import roofline
from siglax.costs import storage
from siglax.devices import chips as chips_lib
from siglax.training import program as program_lib
from siglax.training import run as run_lib

# A run that has not begun has none.
NO_FOLDER = "/nonexistent"
# The tokenizer, the logs, the values of single examples and the curves of a run.
OTHER_BYTES = 2_000_000


@dataclasses.dataclass(frozen=True)
class Size:
  """steps: of the run; unmasked: those at its end that see all patches. step_flops, unmasked_flops:
  model FLOPs of a step before and in these. parameters: numbers of both towers. state_bytes: on all
  devices; device_state_bytes: of one of them. checkpoints: that are on the disk at a time, at most.
  """

  steps: int
  unmasked: int
  step_flops: int
  unmasked_flops: int
  parameters: int
  state_bytes: int
  device_state_bytes: int
  checkpoints: int
  devices: int

  @property
  def flops(self) -> int:
    """Model FLOPs of the whole run."""
    return (self.steps - self.unmasked) * self.step_flops + self.unmasked * self.unmasked_flops

  @property
  def disk_bytes(self) -> int:
    """Of the checkpoints and the other files of a run."""
    return self.checkpoints * self.state_bytes + OTHER_BYTES

  def steps_of(self, flops: float) -> int:
    """The steps of a run of so many model FLOPs, with the same unmasked steps at its end."""
    masked = (flops - self.unmasked * self.unmasked_flops) / self.step_flops
    return self.unmasked + round(masked)

  def hours(self, chip: chips_lib.Chip) -> float:
    """The least hours on such chips, by the roofline of `siglax plan` of the model FLOPs alone."""
    step = roofline.roofline(
      chip,
      compute=self.flops / self.steps / self.devices / chip.flops,
      state_bytes=self.device_state_bytes,
      sent_bytes=0,
      model_flops=self.flops / self.steps / self.devices,
    )
    return self.steps * step["step_seconds"] / 3600


class Sizes:
  """config → its `Size`, made once for all seeds. ValueError in one line for all that `siglax
  train` finds wrong before it compiles: fields, data, what a task of the evaluation lacks.
  """

  def __init__(self):
    self._known: dict[str, Size] = {}
    self._flops: dict[str, int] = {}

  def __call__(self, config: ConfigDict) -> Size:
    key = {**config.copy_and_resolve_references().to_dict(), "seed": None}
    key = json.dumps(key, sort_keys=True, default=repr)
    if key not in self._known:
      self._known[key] = self._size(config)
    return self._known[key]

  def _size(self, config: ConfigDict) -> Size:
    run = run_lib.Run(config, NO_FOLDER)
    run.evaluate.check()
    leaves = jax.tree.leaves(run.abstract_state)
    return Size(
      steps=run.total_steps,
      unmasked=run.total_steps - run.masked_steps,
      step_flops=self._step_flops(run, 0),
      unmasked_flops=self._step_flops(run, run.masked_steps),
      parameters=sum(x.size for x in jax.tree.leaves(run.abstract_state.params)),
      state_bytes=sum(x.size * x.dtype.itemsize for x in leaves),
      device_state_bytes=program_lib.held(run.abstract_state),
      checkpoints=storage.checkpoints(
        run.config.checkpoint, run.every["checkpoint"], run.total_steps
      ),
      devices=run.mesh.size,
    )

  def _step_flops(self, run: run_lib.Run, step: int) -> int:
    """Of the update after `step` steps; the loss and the optimizer are not in it."""
    config = run.config
    key = repr(
      (
        run.training_model(step).config.to_dict(),
        config.batch_size,
        config.image.size,
        config.text.length,
        config.optim.lr_multipliers,
        run.embedded,
      )
    )
    if key not in self._flops:
      self._flops[key] = run.model_flops(step)
    return self._flops[key]
