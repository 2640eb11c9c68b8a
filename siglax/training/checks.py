"""All that can be checked of a config before data is read or anything compiles: its fields, and
what the rooms that use them need. Each raises ValueError in one line, given, needed, field.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from siglax import config as config_lib
from siglax import data
from siglax import evals
from siglax import losses
from siglax import models
from siglax.config import checks
from siglax.config import fields
from siglax.models import attention
from siglax.models import trainable as trainable_lib
from siglax.models import transformer


def validate(config: ConfigDict, devices: int):
  """All checks of a training. devices: number of devices over all processes."""
  _validate_fields(config)
  checks.check_durations(config)
  evaluated = ("eval.batch_size",) if config.eval.tasks else ()
  checks.check_mesh(config, devices, ("batch_size", *evaluated))
  checks.check_train(config, devices)
  if not config.data:
    raise ValueError("config.data is empty; give at least one spec, e.g. ({'source': 'shapes'},)")
  for i, spec in enumerate(config.data):
    data.validate_spec(spec, f"config.data.{i}")
  data.embeddings.validate(config)
  evals.validate_tasks(config)


def validate_evaluation(config: ConfigDict, devices: int):
  """The checks of an evaluation alone, which needs no training data, and its batch for the tasks
  that compute the training loss only.
  """
  _validate_fields(config)
  evals.validate_tasks(config)
  in_batches = evals.in_training_batches(config)
  checks.check_mesh(
    config, devices, ("eval.batch_size", "batch_size") if in_batches else ("eval.batch_size",)
  )
  if not config.eval.tasks:
    raise ValueError("config.eval.tasks is empty; name in it, or by --tasks, what to evaluate")


def _validate_fields(config):
  config_lib.check_values(config)
  for i, rule in enumerate(config.mesh.shard):
    trainable_lib.compile_rule(rule, field := f"config.mesh.shard.{i}")
    if rule[1] is not None and not (isinstance(rule[1], int) and rule[1] >= 0):
      raise ValueError(
        f"{field}={config_lib.shown(rule)} must end in a dimension from 0 up, or in None"
      )
  _validate_captions(config)
  _validate_towers(config)


def _validate_captions(config):
  loss = losses.LOSSES.find(config.loss.name, "config.loss.name")
  if config.text.captions > 1 and loss.gamma is not None:
    raise ValueError(
      f"config.text.captions={config.text.captions} has no place in config.loss.name="
      f'"{loss.name}", which remembers one text of each picture; set it to 1'
    )


def _validate_towers(config):
  shapes = {}
  for kind, tower in models.declared(config.model).items():
    of = config.model[kind]
    _validate_unused(kind, tower, of)
    tower.check(of)
    try:
      shapes[kind] = tower.shape(of)
    except ValueError as e:
      raise ValueError(f"config.model.{kind}: {e}") from None
  widths = {
    kind: shape.width // shape.heads
    for kind, shape in shapes.items()
    if isinstance(shape, transformer.Shape)
  }
  attention.check(config.train.attention, config.train.dtype, widths)


def _validate_unused(kind, tower, of):
  """ValueError for a field that this tower does not have and that is not left as it is."""
  initial = config_lib.default().model[kind]
  for name in tower.unused(kind, of):
    if of[name] != initial[name]:
      field = fields.to_set(f"model.{kind}.{name}")
      raise ValueError(
        f"config.{field}={of[name]!r} has no place in "
        f"config.model.{kind}.variant={of.variant!r}; leave it {initial[name]!r}"
      )
