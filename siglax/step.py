"""One update: embed → loss → gradient → optimizer. Global view; jit it once.

The batch is {"image": uint8 [B, H, W, 3], "tokens": int32 [B, L], "label": int32 [B], "weight": float32 [B]}.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from siglax import losses
from siglax import mesh as mesh_lib
from siglax.losses import statistics
from siglax.models import scale_and_bias
from siglax.state import TrainState


def make(config, model, tx, schedule, mesh, frozen):
  """The update (state, batch) → (state, metrics), to be jitted; metrics are float32 scalars on the device.

  config: the resolved config. frozen: bools like params; no gradient is computed for what is frozen.
  """
  loss_fn = losses.make(config.loss, mesh, mesh_lib.BATCH_AXES)
  dropout = config.model.image.dropout > 0 or config.model.text.dropout > 0
  scale_max = config.loss.scale_max

  def objective(trainable, fixed, batch, key):
    params = _merge(trainable, fixed)
    image_key, text_key = (None, None) if key is None else jax.random.split(key)
    zimg = model.embed_image(params, batch["image"], image_key)
    ztxt = model.embed_text(params, batch["tokens"], text_key)
    scale, bias = scale_and_bias(params)
    labels = batch["label"] if config.loss.positives == "label" else None
    loss = loss_fn(zimg, ztxt, scale, bias, weights=batch["weight"], labels=labels)
    return loss, _statistics(config, mesh, zimg, ztxt, scale, bias, batch["weight"], labels)

  def step(state: TrainState, batch) -> tuple[TrainState, dict]:
    # The key is a function of the step, so that a resumed run drops the same activations.
    key = jax.random.fold_in(jax.random.key(config.seed), state.step) if dropout else None
    trainable, fixed = _split(state.params, frozen)
    (loss, values), grads = jax.value_and_grad(objective, has_aux=True)(trainable, fixed, batch, key)
    scale, bias = scale_and_bias(state.params)
    metrics = {
        "loss": loss, "scale": scale, "bias": bias, **values,
        "grad_norm": optax.tree.norm(grads), "lr": schedule(state.step),
    }
    grads = jax.tree.map(lambda g, p: jnp.zeros_like(p) if g is None else g, grads, state.params, is_leaf=lambda x: x is None)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    if scale_max is not None:
      params["log_scale"] = jnp.minimum(params["log_scale"], jnp.log(scale_max))
    return TrainState(step=state.step + 1, params=params, opt_state=opt_state), metrics

  return step


def jit(step, abstract_state: TrainState, mesh):
  """The compiled update: the state is donated and keeps its shardings, metrics are replicated."""
  shardings = jax.tree.map(lambda x: x.sharding, abstract_state)
  return jax.jit(
      step,
      in_shardings=(shardings, mesh_lib.batch_sharding(mesh)),
      out_shardings=(shardings, mesh_lib.replicated(mesh)),
      donate_argnums=0,
  )


def _statistics(config, mesh, zimg, ztxt, scale, bias, weights, labels) -> dict:
  logit_pos, logit_neg = statistics.logit_means(zimg, ztxt, scale, bias, weights)
  values = {
      "logit_pos": logit_pos, "logit_neg": logit_neg,
      "local_accuracy": statistics.local_accuracy(zimg, ztxt, weights, labels, mesh.size),
  }
  if config.loss.check_embeddings:
    values |= {f"norm_error_{tower}": statistics.norm_error(z) for tower, z in (("image", zimg), ("text", ztxt))}
  return values


def _split(params, frozen):
  """(trainable, frozen) parts of params, each with None where the other has a leaf."""
  trainable = jax.tree.map(lambda p, f: None if f else p, params, frozen)
  fixed = jax.tree.map(lambda p, f: p if f else None, params, frozen)
  return trainable, fixed


def _merge(trainable, fixed):
  return jax.tree.map(lambda a, b: b if a is None else a, trainable, fixed, is_leaf=lambda x: x is None)
