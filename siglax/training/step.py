"""One update: embed → loss → gradient → optimizer. Global view; jit it once.

The batch is {"image": uint8 [B, H, W, 3], "tokens": int32 [B, L], "label": int32 [B], "weight":
float32 [B]}. With "image_embedding": float32 [B, d] in place of "image", the image tower does not
run. With K = config.text.captions above 1, "tokens" is [B, K, L]: each picture has K texts that
match it. The loss is then that of B·K pairs in which the embedding of a picture stands K times,
with labels that tell which rows are of one picture, or with those of the batch. For a loss that
remembers examples there is "example": int32 [B], their numbers in the data.

The loss needs the embeddings of the whole batch, the towers need activations of no more than they
work on. So a step with config.train.microbatch embeds in chunks and keeps nothing but the
embeddings, takes the loss and its gradients with respect to them, and embeds each chunk again to
pull its part back into the parameters (GradCache: Gao et al., arXiv 2101.06983; BASIC: Pham et al.,
arXiv 2111.10050). Same loss and same gradients as in one piece, for a third more tower FLOPs.
Adding up the gradients of smaller batches would be another loss: with fewer negatives.

Batch norm (siglax/models/resnet.py) takes its statistics of the whole batch too, so its towers
train in one piece; the running ones come with the embeddings and take their place in the new
parameters. An image tower that is all frozen runs on its running statistics, as in evaluation, and
keeps them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from siglax import losses
from siglax.devices import mesh as mesh_lib
from siglax.losses import running as running_lib
from siglax.losses import statistics
from siglax.models import TOWERS
from siglax.models import scale_and_bias
from siglax.models import trainable as trainable_lib
from siglax.training.state import TrainState


def make(config, model, tx, schedule, mesh, frozen, hold_steps: int = 0, gamma=None):
  """The update (state, batch) → (state, metrics), to be jitted; metrics are float32 scalars on the
  device.

  config: the resolved config. frozen: bools like params; no gradient is computed for what is
  frozen. In the first hold_steps all parameters, and their average, stay bit for bit as they are,
  and only the optimizer's state is updated. With config.optim.skip_nonfinite, an update whose
  gradient is not finite leaves all but the number of the step and of its learning rate as it was,
  and metrics["skipped"] tells. gamma: of a loss that remembers examples, γ by the step. Raises
  ValueError in one line for micro-batches of a tower that trains with batch norm.
  """
  value_and_grad = make_value_and_grad(config, model, mesh, frozen)
  scale_max, decay, skips = config.loss.scale_max, config.train.ema, config.optim.skip_nonfinite > 0
  layout = losses.layout(config.loss, *mesh_lib.of_batch(mesh, config.mesh.slices)).chosen(
    config.batch_size, model.embed_dim
  )

  def step(state: TrainState, batch) -> tuple[TrainState, dict]:
    if gamma is not None:
      example = batch["example"]
      remembered = running_lib.fetch(state.normalisers, example, gamma(state.step), layout)
      batch = batch | {"remembered": remembered}
    (loss, (values, running, rows)), grads = value_and_grad(state.params, batch, state.step)
    scale, bias = scale_and_bias(state.params)
    metrics = {
      "loss": loss,
      "scale": scale,
      "bias": bias,
      **values,
      "grad_norm": optax.tree.norm(grads),
      "lr": schedule(state.step),
    }
    fill = lambda g, p: jnp.zeros_like(p) if g is None else g
    grads = jax.tree.map(fill, grads, state.params, is_leaf=lambda x: x is None)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = trainable_lib.overlay(optax.apply_updates(state.params, updates), running)
    if scale_max is not None:
      params["log_scale"] = jnp.minimum(params["log_scale"], jnp.log(scale_max))
    average = lambda p, a: None if a is None else decay * a + (1 - decay) * p
    ema = None if decay is None else jax.tree.map(average, params, state.ema)
    new = TrainState(step=state.step + 1, params=params, opt_state=opt_state, ema=ema)
    if hold_steps:
      held = state.step < hold_steps
      stay = lambda a, b: jnp.where(held, a, b)
      new = new.replace(
        params=jax.tree.map(stay, state.params, new.params),
        ema=jax.tree.map(stay, state.ema, new.ema),
      )
    if skips:
      finite = jnp.isfinite(metrics["grad_norm"])
      metrics["skipped"] = 1 - finite.astype(jnp.int32)
      new = _unless_skipped(finite, new, state)
    if gamma is not None:
      if skips:
        rows["at"] = jnp.where(finite, rows["at"], -1)
      new = new.replace(normalisers=running_lib.store(state.normalisers, rows, layout))
    return new, metrics

  return step


def _unless_skipped(finite, new: TrainState, state: TrainState) -> TrainState:
  """The new state where the gradient is finite. The normalisers, which are not yet in it, stay
  out.
  """
  unchanged = state.replace(step=new.step, normalisers=None)
  # The schedule's own count goes on, so that the learning rate is always that of the step.
  is_schedule = lambda x: isinstance(x, optax.ScaleByScheduleState)
  keep = lambda a, b: a if is_schedule(a) else jnp.where(finite, a, b)
  return jax.tree.map(keep, new, unchanged, is_leaf=is_schedule)


def make_value_and_grad(config, model, mesh, frozen):
  """(params, batch, step) → ((loss, (statistics, running, rows)), gradients like params with None
  where frozen); see the module.

  running: the running statistics of batch norm after the step, a part of params. rows: of a batch
  with "remembered", what siglax/losses/running.py fetched for it, the rows to store; else None.
  """
  loss_fn = losses.make(config.loss, *mesh_lib.of_batch(mesh, config.mesh.slices))
  image, text = model.config.image, model.config.text
  random = image.dropout > 0 or image.patch_drop > 0 or text.dropout > 0
  microbatch = config.train.microbatch
  chunks = 1 if microbatch is None else config.batch_size // mesh.size // microbatch
  updates_statistics = trains_batch_norm(model, frozen)
  if updates_statistics and chunks > 1:
    raise ValueError(
      f"config.train.microbatch={microbatch} has no place in "
      f"config.model.image.variant={config.model.image.variant!r}: batch "
      "norm needs the statistics of the whole batch; leave it None, or freeze the image tower"
    )

  embed = _embedding(model, updates_statistics)

  def objective(zimg, ztxt, logit_params, batch):
    scale, bias = scale_and_bias(logit_params)
    labels = batch["label"] if config.loss.positives == "label" else None
    given, remembered = {"weights": batch["weight"], "labels": labels}, batch.get("remembered")
    rows_img, rows_txt = zimg, ztxt
    if ztxt.ndim == 3:
      rows_img, rows_txt, given = _of_captions(zimg, ztxt, **given)
      ztxt = ztxt[:, 0]
    loss, rows = loss_fn(rows_img, rows_txt, scale, bias, **given, running=remembered), None
    if remembered is not None:
      loss, rows = loss
    values = _statistics(config, mesh, zimg, ztxt, scale, bias, batch["weight"], labels)
    return loss, (values, rows)

  def value_and_grad(params, batch, step):
    logit_params = {k: v for k, v in params.items() if k not in TOWERS}
    trainable, fixed = trainable_lib.split(_part(params, TOWERS), _part(frozen, TOWERS))
    examples = {
      name: batch[name] for name in ("image", "image_embedding", "tokens") if name in batch
    }
    if random:
      examples |= _keys(config.seed, step, config.batch_size)
    if chunks == 1:
      z, pull_back, running = jax.vjp(
        lambda trainable: embed(trainable, fixed, examples), trainable, has_aux=True
      )
    else:
      z, pull_back = _in_chunks(embed, trainable, fixed, examples, chunks, mesh, config.mesh.shard)
      running = {}
    value_and_grad = jax.value_and_grad(objective, (0, 1, 2), has_aux=True)
    (loss, (values, rows)), (*dz, dlogit_params) = value_and_grad(*z, logit_params, batch)
    (grads,) = pull_back(tuple(dz))
    return (loss, (values, running, rows)), grads | {
      k: None if frozen[k] else g for k, g in dlogit_params.items()
    }

  return value_and_grad


def _in_chunks(embed, trainable, fixed, examples, chunks: int, mesh, rules):
  """The embeddings, and what pulls their gradients back into `trainable`; of the forward pass the
  examples alone are kept.

  The devices of one place of the mesh's "data" add the gradients of all their chunks first, and the
  sum over "data" crosses the network once a step, as without chunks. Over "fsdp" each chunk gathers
  the parameters and scatters the gradients, so that no device holds all of either.
  rules: config.mesh.shard, by which the gradients are sharded.
  """
  examples = jax.tree.map(lambda x: mesh_lib.split_rows(mesh, x, chunks), examples)
  z = jax.lax.map(lambda chunk: embed(trainable, fixed, chunk)[0], examples)
  like = mesh_lib.state_shardings(mesh, trainable, rules)

  def pull_back_chunks(trainable, fixed, examples, dz):
    def add_chunk(grads, chunk):
      examples, dz = chunk
      _, pull_back = jax.vjp(lambda trainable: embed(trainable, fixed, examples)[0], trainable)
      grads = jax.tree.map(jnp.add, grads, *pull_back(dz))
      return mesh_lib.constrain(grads, like), None

    zeros = mesh_lib.constrain(jax.tree.map(jnp.zeros_like, trainable), like)
    return jax.lax.scan(add_chunk, zeros, (examples, dz))[0]

  def pull_back_all(dz):
    dz = jax.tree.map(lambda x: mesh_lib.split_rows(mesh, x, chunks), dz)
    pull_back = mesh_lib.summed_over_data(mesh, pull_back_chunks)
    return (pull_back((trainable, fixed), (examples, dz)),)

  return jax.tree.map(lambda x: mesh_lib.join_rows(mesh, x), z), pull_back_all


def trains_batch_norm(model, frozen) -> bool:
  """Whether a step takes batch statistics and updates the running ones. frozen: bools like
  params.
  """
  return model.has_batch_norm and not all(jax.tree.leaves(frozen["image"]))


def jit(step, abstract_state: TrainState, mesh):
  """The compiled update: the state is donated and keeps its shardings, metrics are replicated."""
  shardings = jax.tree.map(lambda x: x.sharding, abstract_state)
  return jax.jit(
    step,
    in_shardings=(shardings, mesh_lib.batch_sharding(mesh)),
    out_shardings=(shardings, mesh_lib.replicated(mesh)),
    donate_argnums=0,
  )


def _embedding(model, updates_statistics):
  """(trainable, fixed, examples) → ((zimg, ztxt), running statistics); trainable and fixed are
  parts of one tree.
  """

  def embed(trainable, fixed, examples):
    params, running = trainable_lib.merge(trainable, fixed), {}
    ztxt = embed_texts(model, params, examples["tokens"], examples.get("text_key"))
    if "image_embedding" in examples:
      zimg = examples["image_embedding"]
    elif updates_statistics:
      zimg, running = model.embed_image_in_training(
        params, examples["image"], examples.get("image_key")
      )
    else:
      zimg = model.embed_image(params, examples["image"], examples.get("image_key"))
    return (zimg, ztxt), running

  return embed


def embed_texts(model, params, tokens, keys=None) -> jax.Array:
  """tokens [N, L] → [N, d], or [N, K, L] → [N, K, d]: K captions of each picture, with a random key
  of their own each.
  """
  if tokens.ndim == 2:
    return model.embed_text(params, tokens, keys)
  N, K, L = tokens.shape
  if keys is not None:
    keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(keys, jnp.arange(K))
    keys = keys.reshape(N * K)
  return model.embed_text(params, tokens.reshape(N * K, L), keys).reshape(N, K, -1)


def _of_captions(zimg, ztxt, weights, labels) -> tuple:
  """Rows of a loss, one for each of the K captions of N pictures, with labels that tell which
  belong together: (zimg [N·K, d], ztxt [N·K, d], {"weights", "labels"}). ztxt: [N, K, d].
  """
  N, K, d = ztxt.shape
  labels = jnp.arange(N, dtype=jnp.int32) if labels is None else labels
  zimg, weights, labels = (jnp.repeat(x, K, axis=0) for x in (zimg, weights, labels))
  return zimg, ztxt.reshape(N * K, d), {"weights": weights, "labels": labels}


def _statistics(config, mesh, zimg, ztxt, scale, bias, weights, labels) -> dict:
  logit_pos, logit_neg = statistics.logit_means(zimg, ztxt, scale, bias, weights)
  values = {
    "logit_pos": logit_pos,
    "logit_neg": logit_neg,
    "local_accuracy": statistics.local_accuracy(zimg, ztxt, weights, labels, mesh.size),
  }
  if config.loss.check_embeddings:
    values |= {
      f"norm_error_{tower}": statistics.norm_error(z, weights)
      for tower, z in (("image", zimg), ("text", ztxt))
    }
  return values


def _keys(seed, step, batch_size) -> dict:
  """A key for each example and tower: a function of seed, step and place in the batch, so of
  nothing that resuming, chunks or the number of devices change.
  """
  keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), step))
  of_examples = jax.vmap(jax.random.fold_in, (None, 0))
  return {
    f"{tower}_key": of_examples(key, jnp.arange(batch_size)) for tower, key in zip(TOWERS, keys)
  }


def _part(tree: dict, names) -> dict:
  return {name: tree[name] for name in names}
