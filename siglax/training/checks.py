"""All that can be checked of a config before data is read or anything compiles: its fields, and
what the rooms that use them need. Each raises ValueError in one line, given, needed, field.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from siglax import config as config_lib
from siglax import data
from siglax import evals
from siglax.config import checks
from siglax.config import fields
from siglax.models import resnet
from siglax.models import transformer
from siglax.training import optim

# Those of config.model.image that a ResNet has.
RESNET_FIELDS = ("variant", "width", "image_size", "mean", "std", "dtype", "remat")


def validate(config: ConfigDict, devices: int):
  """All checks of a training. devices: number of devices over all processes."""
  _validate_fields(config)
  checks.check_durations(config)
  checks.check_mesh(config, devices, ("batch_size", "eval.batch_size"))
  checks.check_train(config, devices)
  if not config.data:
    raise ValueError("config.data is empty; give at least one spec, e.g. ({'source': 'shapes'},)")
  for i, spec in enumerate(config.data):
    data.validate_spec(spec, f"config.data.{i}")
  data.embeddings.validate(config)
  evals.validate_tasks(config)


def validate_evaluation(config: ConfigDict, devices: int):
  """The checks of an evaluation alone, which needs no training data, and its batch for the task
  "loss" only.
  """
  _validate_fields(config)
  evals.validate_tasks(config)
  in_batches = any(task.get("kind") == "loss" for task in config.eval.tasks)
  checks.check_mesh(
    config, devices, ("eval.batch_size", "batch_size") if in_batches else ("eval.batch_size",)
  )
  if not config.eval.tasks:
    raise ValueError("config.eval.tasks is empty; the run's config must name what to evaluate")


def _validate_fields(config):
  config_lib.check_values(config)
  for i, rule in enumerate(config.mesh.shard):
    optim.compile_rule(rule, field := f"config.mesh.shard.{i}")
    if rule[1] is not None and not (isinstance(rule[1], int) and rule[1] >= 0):
      raise ValueError(
        f"{field}={config_lib.shown(rule)} must end in a dimension from 0 up, or in None"
      )
  _validate_towers(config)


def _validate_towers(config):
  image = config.model.image
  if image.variant in resnet.SIZES:
    _validate_resnet(image)
  elif image.image_size % image.patch:
    raise ValueError(
      f"config.image.size={image.image_size} is not divisible by "
      f"config.model.image.patch={image.patch}"
    )
  if image.stem == "conv" and not image.patch_bias:
    raise ValueError(
      'config.model.image.patch_bias=False has no place in config.model.image.stem="conv"; leave '
      "it True"
    )
  if image.stem == "conv" and image.patch & (image.patch - 1):
    raise ValueError(
      f"config.model.image.patch={image.patch} must be a power of two for "
      'config.model.image.stem="conv"'
    )
  for name in ("image", "text"):
    tower = config.model[name]
    if tower.variant in transformer.SIZES:
      try:
        transformer.Shape.of(tower)
      except ValueError as e:
        raise ValueError(f"config.model.{name}: {e}") from None


def _validate_resnet(image):
  for field, initial in config_lib.default().model.image.items():
    if field not in RESNET_FIELDS and image[field] != initial:
      raise ValueError(
        f"config.{fields.to_set(f'model.image.{field}')}={image[field]!r} has no place in "
        f"config.model.image.variant={image.variant!r}; leave it {initial!r}"
      )
  if image.image_size % resnet.STRIDE:
    raise ValueError(
      f"config.image.size={image.image_size} is not divisible by {resnet.STRIDE}, the stride of "
      f"config.model.image.variant={image.variant!r}"
    )
  if image.width and image.width % 2:
    raise ValueError(
      f"config.model.image.width={image.width} must be even for "
      f"config.model.image.variant={image.variant!r}"
    )
