"""The learning rate by step. One more schedule is a Schedule (optimizer.py says what that declares)
and its place in SCHEDULES; from outside the package it is `SCHEDULES.register(…)` in a file of
--import.
"""

from __future__ import annotations

import jax.numpy as jnp
from ml_collections import ConfigDict
import optax

from siglax.config.parts import Registry
from siglax.training.optimizer import Schedule


def _rsqrt(lr, steps, rsqrt_timescale) -> optax.Schedule:
  del steps
  return lambda s: lr * jnp.sqrt(rsqrt_timescale / (rsqrt_timescale + s))


SCHEDULES: Registry[Schedule] = Registry(
  "schedule",
  (
    Schedule("cosine", "lr·½(1 + cos(π·s/S))", optax.cosine_decay_schedule, ends_at_zero=True),
    Schedule(
      "rsqrt",
      "lr·√(timescale/(timescale + s)), timescale = config.optim.rsqrt_timescale",
      _rsqrt,
      uses=("rsqrt_timescale",),
    ),
    Schedule(
      "linear",
      "lr·(1 − s/S)",
      lambda lr, steps: optax.linear_schedule(lr, 0.0, steps),
      ends_at_zero=True,
    ),
    Schedule("constant", "lr", lambda lr, steps: optax.constant_schedule(lr)),
  ),
  merged=True,
)


def flat() -> list[str]:
  """The schedules that do not end at 0, which a cooldown may end."""
  return [schedule.name for schedule in SCHEDULES.values() if not schedule.ends_at_zero]


def make(
  config: ConfigDict,
  total_steps: int,
  warmup_steps: int = 0,
  cooldown_steps: int = 0,
  hold_steps: int = 0,
) -> optax.Schedule:
  """The learning rate of `config.optim` by step; the first update is step 0, the last total_steps −
  1.

  It is 0 in the first hold_steps, and all else follows as in a training without them.
  With s = step − warmup_steps and S = total_steps − warmup_steps:
  warmup: lr·step/warmup_steps, then one of
  cosine: lr·½(1 + cos(π·s/S))    linear: lr·(1 − s/S)    constant: lr
  rsqrt:  lr·√(timescale/(timescale + s)), timescale = config.optim.rsqrt_timescale
  cooldown (rsqrt and constant): the above times (total_steps − step)/cooldown_steps in the last
  cooldown_steps. Raises ValueError when warmup and cooldown do not fit, or for a cooldown of a
  schedule that ends at 0 anyway.
  """
  optim = config.optim
  chosen = SCHEDULES.find(optim.schedule, "config.optim.schedule")
  if hold_steps + warmup_steps + cooldown_steps > total_steps or hold_steps == total_steps:
    hold = f"config.optim.hold_* is {hold_steps} steps, " if hold_steps else ""
    given = {"hold": hold_steps, "warmup": warmup_steps, "cooldown": cooldown_steps}
    short = total_steps // 10
    flags = [f"--config.optim.{name}_steps={short}" for name, n in given.items() if n > short]
    raise ValueError(
      f"{hold}config.optim.warmup_* is {warmup_steps} steps and config.optim.cooldown_* "
      f"{cooldown_steps}, "
      f"but the training is {total_steps} steps; shorten them ({' '.join(flags)}) or lengthen "
      "config.total_*"
    )
  if cooldown_steps and chosen.ends_at_zero:
    raise ValueError(
      f"config.optim.cooldown is {cooldown_steps} steps, but "
      f"config.optim.schedule={optim.schedule!r} ends at 0 "
      f"without one; set config.optim.cooldown_steps=0 or use {' or '.join(flat())}"
    )
  total_steps -= hold_steps
  curve = chosen.curve(optim.lr, max(total_steps - warmup_steps, 1), **chosen.options(optim))
  if warmup_steps:
    warmup = optax.linear_schedule(0.0, optim.lr, warmup_steps)
    curve = optax.join_schedules([warmup, curve], [warmup_steps])
  if cooldown_steps:
    cooldown = optax.linear_schedule(
      1.0, 0.0, cooldown_steps, transition_begin=total_steps - cooldown_steps
    )
    cooled = lambda step, curve=curve: curve(step) * cooldown(step)
  else:
    cooled = curve
  if not hold_steps:
    return cooled
  return optax.join_schedules([optax.constant_schedule(0.0), cooled], [hold_steps])
