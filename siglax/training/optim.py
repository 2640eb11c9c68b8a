"""The optimizer and its learning rate: optax parts, chosen per parameter by the first regular
expression that matches.

A parameter's path is its keys joined by "/", such as "image/encoder/blocks/mlp/fc1/kernel" or
"log_scale". One update of a trainable parameter p with gradient g, after the global-norm clip over
all trainable gradients:

    p ← p − lr(step)·lr_multiplier·layer_decay^above·d
    d = direction(g) + decay_multiplier·(weight_decay·p + start_decay·(p − p₀))

p₀ is what the training started from (L2-SP: Li et al., arXiv 1802.01483); with start_decay a copy
of it, of what decays, is part of the optimizer's state, sharded and saved with it.
direction is that of the optimizer (optimizers.py), lr(step) that of the schedule (schedules.py);
above counts the layers between p and the head of its tower. Frozen parameters get zero updates,
hold no optimizer state and do not count in the norm that clips. The norm that a run logs is the one
before the clip. The running statistics of batch norm are frozen here, whatever the patterns, which
pass them over: the step replaces them.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import optax

from siglax import losses
from siglax.devices import paths
from siglax.models import trainable as trainable_lib
from siglax.training import schedules
from siglax.training.optimizer import by_path
from siglax.training.optimizers import OPTIMIZERS

# Those of the loss; config.loss.lr_multiplier is theirs.
LOGIT_PARAMETERS = ("log_scale", "bias", "relative_bias")
# What comes before the first block of a tower.
EMBEDDINGS = ("stem", "embedding", "pos_embedding", "cls", "pre_norm")


def make(
  config: ConfigDict,
  params,
  total_steps: int,
  warmup_steps: int = 0,
  cooldown_steps: int = 0,
  hold_steps: int = 0,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """The optimizer of `config.optim` for these parameters, and the learning rate it follows.

  params: nested dict of arrays or jax.ShapeDtypeStruct; only its paths and shapes are read.
  config.loss.lr_multiplier multiplies that of scale and bias; config.optim.layer_decay is
  `layer_decay`'s. Weight decay multiplies the learning rate and its multiplier, as in optax.adamw
  and PyTorch. big_vision's does not: it shrinks weights by wd per step at the peak, so divide its
  wd by its lr (wd 1e-4 at lr 1e-3 is 0.1 here). Raises ValueError for a parameter that no pattern
  covers, a pattern that decides none, and values out of range.
  """
  optim = config.optim
  decay = trainable_lib.first_match(params, optim.decay, "config.optim.decay")
  multiplier = trainable_lib.first_match(
    params, optim.lr_multipliers, "config.optim.lr_multipliers"
  )
  _check_values(decay, multiplier)
  multiplier |= {
    name: multiplier[name] * config.loss.lr_multiplier
    for name in LOGIT_PARAMETERS
    if multiplier.get(name)
  }
  multiplier |= {
    name: multiplier[name] * x
    for name, x in layer_decay(config, params).items()
    if multiplier[name] is not None
  }
  lr = schedules.make(config, total_steps, warmup_steps, cooldown_steps, hold_steps)
  optimizer = OPTIMIZERS.find(optim.name, "config.optim.name")
  trainable = optax.chain(
    optax.clip_by_global_norm(optim.clip_norm) if optim.clip_norm else optax.identity(),
    optimizer.direction(**optimizer.options(optim)),
    by_path(
      lambda path, u, p: (
        u + optim.weight_decay * decay[path] * p if optim.weight_decay * decay[path] else u
      )
    ),
    *_towards_start({path: optim.start_decay * x for path, x in decay.items()}),
    by_path(
      lambda path, u, p: (
        u if np.all(multiplier[path] == 1) else (multiplier[path] * u).astype(u.dtype)
      )
    ),
    *_slower_scale(config),
    optax.scale_by_learning_rate(lr),
  )
  labels = jax.tree.map(
    lambda frozen: "frozen" if frozen else "trainable", trainable_lib.frozen_mask(config, params)
  )
  return optax.partition({"trainable": trainable, "frozen": optax.set_to_zero()}, labels), lr


def _slower_scale(config) -> list[optax.GradientTransformation]:
  """What the loss declares as `slower_scale`; nothing where it declares none."""
  loss = losses.LOSSES.find(config.loss.name, "config.loss.name")
  if loss.slower_scale is None:
    return []
  above, factor = loss.slower_scale
  slower = lambda u, p: jnp.where(p > math.log(above), factor * u, u)
  return [by_path(lambda path, u, p: slower(u, p) if path == "log_scale" else u)]


class _Start(NamedTuple):
  """params: those of the start, of what decays towards them."""

  params: dict


def _towards_start(strength: dict) -> list[optax.GradientTransformation]:
  """update + strength·(p − p₀) for the paths whose strength is not 0; nothing where all are."""
  if not any(strength.values()):
    return []

  def init(params):
    copies = {path: jnp.copy(p) for path, p in paths.flatten(params).items() if strength[path]}
    return _Start(paths.unflatten(copies))

  def update(updates, state, params):
    start = paths.flatten(state.params)
    towards = by_path(
      lambda path, u, p: u + strength[path] * (p - start[path]) if path in start else u
    )
    return towards.update(updates, optax.EmptyState(), params)[0], state

  return [optax.GradientTransformation(init, update)]


def layer_decay(config: ConfigDict, params) -> dict:
  """{path: layer_decay^above} for the towers whose config.optim.layer_decay is not 1.

  above is 0 for the last norm, pooling and head, L − i for block i of L, and L + 1 for the
  embeddings; of blocks that are stacked, an array that broadcasts over them. Source: Clark et al.,
  ELECTRA, arXiv 2003.10555, section 3.1; for vision transformers Bao et al., BEiT, arXiv
  2106.08254, appendix. Raises ValueError for a tower without blocks.
  """
  decayed = {}
  for tower, decay in config.optim.layer_decay.items():
    if decay == 1 or tower not in params:
      continue
    leaves = paths.flatten(params[tower])
    found = {name: re.match(r"encoder/blocks/(?:(\d+)/)?", name) for name in leaves}
    if not any(found.values()):
      raise ValueError(f"config.optim.layer_decay.{tower}={decay} needs a transformer; set 1.0")
    depth = max(int(m[1]) + 1 if m[1] else leaves[name].shape[0] for name, m in found.items() if m)
    for name, leaf in leaves.items():
      above = 0
      if m := found[name]:
        stacked = np.arange(depth).reshape(-1, *[1] * (leaf.ndim - 1))
        above = depth - (int(m[1]) if m[1] else stacked)
      elif name.split("/")[0] in EMBEDDINGS:
        above = depth + 1
      decayed[f"{tower}/{name}"] = decay**above
  return decayed


def _check_values(decay: dict, multiplier: dict):
  for name, value in decay.items():
    if not isinstance(value, (int, float)) or value < 0:
      raise ValueError(
        f"config.optim.decay gives {value!r} for {name!r}; it needs a number of at least 0"
      )
  for name, value in multiplier.items():
    if value is not None and (not isinstance(value, (int, float)) or value <= 0):
      raise ValueError(
        f"config.optim.lr_multipliers gives {value!r} for {name!r}; it needs a positive number, or "
        "None to freeze"
      )
  if all(value is None for value in multiplier.values()):
    raise ValueError('config.optim.lr_multipliers freezes every parameter; end it with (".*", 1.0)')
