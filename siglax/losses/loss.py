"""What a loss declares of itself. siglax/losses/__init__.py lists the losses."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import math

import jax

from siglax.config.parts import Field


def weighted_once(loss, c, **options):
  """Of a loss that is linear in the weights."""
  del options
  return loss * c


@dataclasses.dataclass(frozen=True)
class Loss:
  """A contrastive loss: its maths, and what a config, a model and the docs need to know of it.

  name: in config.loss.name. doc: one sentence.
  dense: (zimg [B, d], ztxt [B, d], *scalars, weights [B] or None, labels [B] or None, **options) →
  scalar, the formula in plain jnp. The largest weight is 1.
  per_device: (**options) → the same on one device, as `ring.differentiable` takes it.
  fields: those of config.loss that are this loss's own; their values are the options.
  has_scale: the cosines are multiplied by a scale that is trained. scale_max: its cap where
  config.loss.scale_max is None.
  bias_init: (batch size, share of the other pairs that match) → the bias at the start; None where
  there is no bias.
  rescale: (loss, c, **options) → the loss where all weights are c times as large.
  plus: a loss of embeddings alone, without scale and bias, that is added to this one; its fields
  are among `fields`, and are options of it alone.
  gamma: (steps of the training, **options) → γ by the step, of a loss that remembers of each
  example of the data a running normaliser (running.py), u ← (1 − γ)·u + γ·g; None for one that
  remembers nothing. The former's dense and per_device take `running` and give (loss, rows to
  store) in place of the loss; without `running`, u is g, and they give the loss alone.
  slower_scale: (scale, factor), the factor of the learning rate of the scale where it is larger.
  needs_float32: (**options) → why products of bfloat16 would give other gradients, in words that
  follow a name; None where they do not.
  """

  name: str
  doc: str
  dense: Callable[..., jax.Array]
  per_device: Callable[..., Callable]
  fields: Mapping[str, Field] = dataclasses.field(default_factory=dict)
  has_scale: bool = True
  scale_max: float | None = None
  bias_init: Callable[[int, float], float] | None = None
  rescale: Callable[..., jax.Array] = weighted_once
  plus: Loss | None = None
  gamma: Callable[..., Callable] | None = None
  slower_scale: tuple[float, float] | None = None
  needs_float32: Callable[..., str | None] = lambda **options: None

  def scalars(self, scale, bias) -> tuple:
    """Those of the two that the loss depends on."""
    return (scale,) * self.has_scale + (bias,) * (self.bias_init is not None)

  def options(self, config) -> dict:
    """The values of its fields in `config.loss`."""
    return {name: config[name] for name in self.fields}

  def check_dtype(self, dtype: str | None, options: dict):
    """ValueError in one line for bfloat16 where `needs_float32` has a reason."""
    if dtype == "bfloat16" and (reason := self.needs_float32(**options)):
      raise ValueError(
        f'config.loss.dtype="bfloat16" has no place in config.loss.name="{self.name}", which '
        f'{reason}; set it to "float32"'
      )

  def dtype(self, wanted: str, train_dtype: str, options: dict) -> str:
    """What a config's loss.dtype stands for: of "auto" that of the activations, float32 where the
    loss needs it. ValueError in one line as `check_dtype`.
    """
    if wanted == "auto":
      return "float32" if self.needs_float32(**options) else train_dtype
    self.check_dtype(wanted, options)
    return wanted


def matched_prior(batch_size: int, share: float) -> float:
  """The log-odds that a pair of a batch matches.

  That is log(1 / B), −10 near a batch of 22k as in SigLIP; with a share of other pairs that match
  too, log(p / (1 − p)) with p = 1/B + (1 − 1/B)·share.
  """
  B = batch_size
  match, other = 1 / B + (1 - 1 / B) * share, (1 - 1 / B) * (1 - share)
  # Where all match there are no odds: as if one of the B² pairs did not.
  return math.log(match / max(other, 1 / B**2)) if share else -math.log(B)
