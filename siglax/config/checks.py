"""What can be checked of a config without reading data or compiling: each raises ValueError in one
line, given, needed, field.
"""

from __future__ import annotations

import math
import re

from ml_collections import ConfigDict

from siglax import config as config_lib
from siglax import data
from siglax import evals
from siglax import losses
from siglax import models
from siglax.models import transformer
from siglax.training import optim
from siglax.training.optimizers import OPTIMIZERS
from siglax.training.schedules import SCHEDULES

# Fields with a fixed set of values.
CHOICES = {
  "loss.impl": losses.IMPLS,
  "loss.positives": ("pair", "label"),
  "image.resize": ("bilinear", "bicubic"),
  "image.fit": ("squash", "crop"),
  "text.pad": ("eos", "pad"),
  "train.dtype": ("float32", "bfloat16"),
  "train.remat.image": tuple(transformer.REMAT),
  "train.remat.text": tuple(transformer.REMAT),
  "model.image.stem": ("patch", "conv"),
  "model.image.position": ("learned", "sincos"),
  "model.image.pool": ("map", "mean", "cls"),
  "model.image.activation": tuple(transformer.ACTIVATIONS),
  "model.image.head": ("auto", "linear", "linear_no_bias"),
  "model.text.pool": ("last", "mean", "map", "eos", "argmax"),
  "model.text.activation": tuple(transformer.ACTIVATIONS),
  "model.text.head": ("linear", "linear_no_bias"),
}
MANY = 2**31 - 1  # the most rows that an array is indexed by
# Fields with a least value and, where more would only fill the memory or hang, a largest one.
BOUNDS = {
  "seed": (0, 2**32 - 1),
  "batch_size": (1, MANY),
  "eval.batch_size": (1, MANY),
  "image.size": (1, 2**14),
  "image.max_pixels": (1, None),
  "image.max_bytes": (1, None),
  "image.pad": (0, 2**14),
  "image.crop_max_aspect": (1, None),
  "text.length": (2, 2**20),
  "loss.tile": (1, None),
  "model.embed_dim": (1, 2**20),
  "model.image.patch": (1, 2**14),
  "model.text.vocab_size": (1, MANY),
  **{
    f"model.{tower}.{name}": (least, most)
    for tower in ("image", "text")
    for name, least, most in (
      ("width", 1, 2**20),
      ("depth", 1, 2**10),
      ("heads", 1, 2**20),
      ("mlp_dim", 1, 2**24),
      ("lora_rank", 0, 2**20),
    )
  },
  "loader.threads": (1, 2**10),
  "loader.workers": (0, 2**10),
  "loader.buffer": (1, 2**16),
  "optim.eps": (0, None),
  "optim.skip_nonfinite": (0, None),
  "optim.weight_decay": (0, None),
  "checkpoint.keep_latest": (1, None),
  "checkpoint.keep_every_steps": (1, None),
  "checkpoint.keep_one_in": (1, None),
  "checkpoint.max_failed_saves": (0, None),
  "mesh.fsdp": (1, None),
}
# Fields that are above 0.
POSITIVE = (
  "optim.lr",
  "optim.clip_norm",
  "optim.rsqrt_timescale",
  "loss.scale_init",
  "loss.scale_max",
  "model.image.norm_eps",
  "model.text.norm_eps",
)
# Shares, from 0 up to but not including 1.
SHARES = ("optim.b1", "optim.b2", "train.patch_drop", "model.image.dropout", "model.text.dropout")


def validate(config: ConfigDict, devices: int):
  """All checks of a training. devices: number of devices over all processes."""
  _validate_fields(config)
  for name, needed in config_lib.DURATIONS.items():
    given = {
      f"{name}_{k}": v
      for k in config_lib.UNITS
      if (v := config_lib.get(config, f"{name}_{k}")) is not None
    }
    if len(given) > 1 or needed and not given:
      raise ValueError(
        f"{' and '.join(given) or 'none'} of config.{name}_{{steps,examples,epochs}} set; set "
        "exactly one"
      )
    for field, value in given.items():
      if (
        value < 0 or value == 0 and name not in ("optim.warmup", "optim.cooldown", "train.unmasked")
      ):
        raise ValueError(f"config.{field}={value} must be positive")
  _validate_mesh(config, devices, ("batch_size", "eval.batch_size"))
  validate_train(config, devices)
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
  _validate_mesh(
    config, devices, ("eval.batch_size", "batch_size") if in_batches else ("eval.batch_size",)
  )
  if not config.eval.tasks:
    raise ValueError("config.eval.tasks is empty; the run's config must name what to evaluate")


def _validate_fields(config):
  config_lib.check_values(config)
  losses.LOSSES.find(config.loss.name, "config.loss.name")
  for name, field in losses.LOSSES.fields().items():
    if problem := field.problem(value := config.loss[name]):
      raise ValueError(f"config.loss.{name}={config_lib.shown(value)} {problem}")
  for field, registry in (("name", OPTIMIZERS), ("schedule", SCHEDULES)):
    registry.find(config.optim[field], f"config.optim.{field}")
    for name, of in registry.fields().items():
      if problem := of.problem(value := config.optim[name]):
        raise ValueError(f"config.optim.{name}={config_lib.shown(value)} {problem}")
  for field, choices in CHOICES.items():
    if (value := config_lib.get(config, field)) not in choices:
      raise ValueError(
        f"config.{field}={config_lib.shown(value)} is unknown; known are {', '.join(choices)}"
      )
  for field, (least, most) in BOUNDS.items():
    if (value := config_lib.get(config, field)) is None:
      continue
    if value < least or most is not None and value > most:
      or_none = ", or None" if config_lib.get(config_lib.default(), field) is None else ""
      raise ValueError(
        f"config.{field}={value} must be at "
        f"{f'least {least}' if value < least else f'most {most:,}'}{or_none}"
      )
  for field in POSITIVE:
    if (value := config_lib.get(config, field)) is not None and value <= 0:
      raise ValueError(f"config.{field}={value} must be positive")
  for field in SHARES:
    if not 0 <= (value := config_lib.get(config, field)) < 1:
      raise ValueError(f"config.{field}={value} must lie in [0, 1)")
  if not 0 < config.image.crop_min_area <= 1:
    raise ValueError(f"config.image.crop_min_area={config.image.crop_min_area} must lie in (0, 1]")
  if config.loss.lr_multiplier <= 0:
    raise ValueError(
      f"config.loss.lr_multiplier={config.loss.lr_multiplier} must be positive; "
      "config.optim.lr_multipliers freezes with None"
    )
  for field in ("image.mean", "image.std"):
    value = config_lib.get(config, field)
    if len(value) != 3 or not all(
      isinstance(x, (int, float)) and not isinstance(x, bool) for x in value
    ):
      raise ValueError(
        f"config.{field}={config_lib.shown(value)} must be three numbers: of red, green and blue"
      )
  if min(config.image.std) <= 0:
    raise ValueError(
      f"config.image.std={config.image.std} must be positive: pixels are divided by it"
    )
  for field in ("model.init_from", "text.tokenizer"):
    if (value := config_lib.get(config, field)) is not None:
      config_lib.check_local(f"config.{field}", value)
  for i, rule in enumerate(config.mesh.shard):
    optim.compile_rule(rule, field := f"config.mesh.shard.{i}")
    if rule[1] is not None and not (isinstance(rule[1], int) and rule[1] >= 0):
      raise ValueError(
        f"{field}={config_lib.shown(rule)} must end in a dimension from 0 up, or in None"
      )
  _validate_towers(config)


def _validate_mesh(config, devices, sizes):
  """sizes: fields of batches that the devices are to divide."""
  mesh = config.mesh
  if mesh.data != "rest" and (not isinstance(mesh.data, int) or isinstance(mesh.data, bool)):
    raise ValueError(f'config.mesh.data={mesh.data!r} must be a number of devices or "rest"')
  if mesh.data == "rest" and devices % mesh.fsdp:
    raise ValueError(f"config.mesh.fsdp={mesh.fsdp} does not divide the {devices} devices")
  if mesh.data != "rest" and mesh.data * mesh.fsdp != devices:
    raise ValueError(
      f"config.mesh.data={mesh.data} × config.mesh.fsdp={mesh.fsdp} is {mesh.data * mesh.fsdp}, "
      f"but there are {devices} devices"
    )
  for field in sizes:
    size = config_lib.get(config, field)
    if size % devices:
      below, above = size // devices * devices, -(-size // devices) * devices
      use = f"use {below} or {above}" if below else f"use {above}"
      raise ValueError(
        f'config.{field}={size} is not divisible by the {devices} devices on mesh axes "data" and '
        f'"fsdp"; {use}'
      )


def validate_train(config, devices):
  """Checks config.train and config.profile; a part of `validate`."""
  microbatch, size = config.train.microbatch, config.batch_size // devices
  if microbatch is not None and (microbatch < 1 or size % microbatch):
    near = sorted(
      {n for d in range(1, math.isqrt(size) + 1) if size % d == 0 for n in (d, size // d)}
    )
    use = sorted(
      {
        max((n for n in near if n <= microbatch), default=1),
        min((n for n in near if n >= microbatch), default=size),
      }
    )
    raise ValueError(
      f"config.train.microbatch={microbatch} does not divide the {size} examples of a device "
      "(config.batch_size="
      f"{config.batch_size} over {devices} devices); use {' or '.join(map(str, use))}"
    )
  if not config.train.patch_drop and any(
    config_lib.get(config, f"train.unmasked_{k}") for k in config_lib.UNITS
  ):
    raise ValueError(
      "config.train.unmasked is set, but config.train.patch_drop=0 leaves no patch out; set both "
      "or none"
    )
  if config.train.ema is not None and not 0 < config.train.ema < 1:
    raise ValueError(f"config.train.ema={config.train.ema} must lie in (0, 1), or be None")
  profile_steps(config)


def profile_steps(config) -> tuple[int, int] | None:
  """First and last step to trace, of config.profile.steps; ValueError for what is no such range."""
  text = config.profile.steps
  if text is None:
    return None
  steps = re.fullmatch("([0-9]{1,10}):([0-9]{1,10})", text)
  first, last = map(int, steps.groups()) if steps else (0, 0)
  if not 1 <= first <= last:
    raise ValueError(
      f"config.profile.steps={config_lib.shown(text)} must be two steps, the first at least 1, "
      'such as "10:15"'
    )
  return first, last


def _validate_towers(config):
  for kind, tower in models.declared(config.model).items():
    of = config.model[kind]
    for name, field in models.BY_KIND[kind].fields().items():
      if problem := field.problem(of[name]):
        raise ValueError(f"config.model.{kind}.{name}={config_lib.shown(of[name])} {problem}")
    _validate_unused(kind, tower, of)
    if not 0 < (decay := config.optim.layer_decay[kind]) <= 1:
      raise ValueError(
        f"config.optim.layer_decay.{kind}={decay} must lie in (0, 1]; 1 decays nothing"
      )
    tower.check(of)
    try:
      tower.shape(of)
    except ValueError as e:
      raise ValueError(f"config.model.{kind}: {e}") from None


def _validate_unused(kind, tower, of):
  initial = config_lib.default().model[kind]
  for name in tower.unused(kind, of):
    if of[name] != initial[name]:
      field = config_lib.FOLLOWS.get(f"model.{kind}.{name}", f"model.{kind}.{name}")
      raise ValueError(
        f"config.{field}={of[name]!r} has no place in "
        f"config.model.{kind}.variant={of.variant!r}; leave it {initial[name]!r}"
      )
