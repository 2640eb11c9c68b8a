"""What an optimizer and a schedule declare of themselves, which optimizers.py and schedules.py
list.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses

import jax
import optax

from siglax.config.parts import Field
from siglax.devices import paths


@dataclasses.dataclass(frozen=True)
class Part:
  """What both have.

  name: in config.optim. doc: one sentence. uses: the fields of config.optim that are its options,
  beside those that siglax applies around any (lr, clip_norm, weight_decay and the patterns).
  fields: options of its own, which config.optim gets.
  """

  name: str
  doc: str
  uses: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)
  fields: Mapping[str, Field] = dataclasses.field(default_factory=dict, kw_only=True)

  def options(self, optim) -> dict:
    """The values of its options in `config.optim`."""
    return {name: optim[name] for name in (*self.uses, *self.fields)}


@dataclasses.dataclass(frozen=True)
class Optimizer(Part):
  """direction: (**options) → an optax.GradientTransformation from gradients to the direction of
  descent, before the learning rate, its multipliers and weight decay. State and updates have the
  structure of the parameters, whose blocks may be stacked over depth ("…/blocks/mlp/…").
  """

  direction: Callable[..., optax.GradientTransformation]


@dataclasses.dataclass(frozen=True)
class Schedule(Part):
  """curve: (lr, steps, **options) → an optax.Schedule, the learning rate by the step after the
  warmup, of which there are `steps`. ends_at_zero: it takes no cooldown, and depends on `steps`.
  """

  curve: Callable[..., optax.Schedule]
  ends_at_zero: bool = False


def by_path(function) -> optax.GradientTransformation:
  """function(path, update, parameter) → update on every leaf; without state."""

  def update(updates, params):
    return jax.tree_util.tree_map_with_path(
      lambda path, u, p: function(paths.name(path), u, p), updates, params
    )

  return optax.stateless(update)
