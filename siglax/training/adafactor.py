"""Adafactor as ScalingViT and SigLIP use it."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from siglax.devices import paths
from siglax.training.optimizer import Optimizer
from siglax.training.optimizer import by_path

# Adafactor keeps row and column statistics where both are at least this long, so never over a stack
# of layers.
MIN_DIM_TO_FACTOR = 128


def adafactor(b1: float, b2: float) -> optax.GradientTransformation:
  """The direction of ScalingViT's Adafactor, which SigLIP uses: b1 momentum, b2 caps the second
  moment's decay.

  v_t = β_t·v + (1 − β_t)·g², β_t = min(b2, 1 − t^−0.8), kept as row and column means for matrices;
  u = g/√v, divided by max(1, rms(u)) in each parameter of each layer; m = b1·m + (1 − b1)·u is the
  direction. Updates are not scaled by the size of the parameters. The momentum is stored in
  bfloat16, as half the memory is this optimizer's purpose. 1e-30 under the root takes the place of
  config.optim.eps. Differs from big_vision's scale_by_adafactor: clips at rms 1, where big_vision
  clips only the global norm unless told to; factors dimensions from 128 on (32 there), and each
  layer of a stack on its own whatever the depth.
  Source: Zhai et al., Scaling Vision Transformers, arXiv 2106.04560, section 3.4; Shazeer & Stern,
  arXiv 1804.04235.
  """
  decay = lambda step, exponent: jnp.minimum(b2, 1 - (step + 1.0) ** -exponent)
  return optax.chain(
    optax.scale_by_factored_rms(min_dim_size_to_factor=MIN_DIM_TO_FACTOR, decay_rate_fn=decay),
    by_path(_clip_rms),
    optax.ema(b1, debias=False, accumulator_dtype=jnp.bfloat16),
  )


def _clip_rms(path, update, _):
  """Divides by max(1, rms); of a leaf stacked over layers ("…/blocks/mlp/…", not
  "…/blocks/0/mlp/…"), by layer.
  """
  axes = tuple(range(1, update.ndim)) if paths.is_stacked(path) else None
  return update / jnp.maximum(1.0, jnp.sqrt(jnp.mean(jnp.square(update), axis=axes, keepdims=True)))


OPTIMIZER = Optimizer(
  "adafactor",
  "ScalingViT's Adafactor, which SigLIP uses: half of Adam's memory",
  adafactor,
  uses=("b1", "b2"),
)
