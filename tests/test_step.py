"""One update: the same on any mesh, frozen parts untouched; and the counting of FLOPs."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siglax import config as config_lib
from siglax import models
from siglax.costs import collectives
from siglax.data.text import TextProcessor
from siglax.devices import flops
from siglax.devices import mesh as mesh_lib
from siglax.models import trainable as trainable_lib
from siglax.runs import folder as folder_lib
from siglax.training import checks
from siglax.training import optim
from siglax.training import run as run_lib
from siglax.training import state as state_lib
from siglax.training import step as step_lib

import oracles
import tiny


def batch(n=16, seed=0):
  rng = np.random.default_rng(seed)
  return {
    "image": rng.integers(0, 256, (n, 16, 16, 3), np.uint8),
    "tokens": rng.integers(3, 100, (n, 12), np.int32),
    "label": np.arange(n, dtype=np.int32),
    "weight": rng.uniform(0.5, 1.5, n).astype(np.float32),
  }


@functools.lru_cache(None)
def whole_gradients(fields):
  """In one piece, on one device."""
  return gradients(one_device(), **dict(fields))


def gradients(mesh, n=64, **fields):
  """Loss and gradients of one batch with dropout, FLOPs of all of it, and of the towers forward."""
  c = tiny.get_config()
  c.batch_size = n
  for field, value in {"model.image.dropout": 0.3, "model.text.dropout": 0.2, **fields}.items():
    config_lib.override(c, field, str(value))
  checks.validate(c, mesh.size)
  c = config_lib.resolve(c, TextProcessor())
  model = models.build(c.model)
  params = jax.jit(model.init)(jax.random.key(0))
  frozen = trainable_lib.frozen_mask(c, params)
  function = step_lib.make_value_and_grad(c, model, mesh, frozen)
  examples = mesh_lib.to_global(mesh, batch(n))
  with jax.set_mesh(mesh):
    (loss, _), grads = jax.jit(function)(
      jax.device_put(params, mesh_lib.replicated(mesh)), examples, jnp.int32(3)
    )
  forward = flops.count(model.embed_image, params, examples["image"]) + flops.count(
    model.embed_text, params, examples["tokens"]
  )
  return (
    float(loss),
    jax.device_get(grads),
    flops.count(function, params, examples, jnp.int32(3)),
    forward,
  )


@functools.lru_cache(None)
def by_hand(fields, n=64):
  """The same loss and gradients: each tower once, with the keys of step 3, and the loss and its
  gradients in float64.
  """
  c = tiny.get_config()
  for field, value in {
    "batch_size": n,
    "model.image.dropout": 0.3,
    "model.text.dropout": 0.2,
    **dict(fields),
  }.items():
    config_lib.override(c, field, str(value))
  c = config_lib.resolve(c, TextProcessor())
  model, examples = models.build(c.model), batch(n)
  params = jax.jit(model.init)(jax.random.key(0))
  of_towers = jax.random.split(jax.random.fold_in(jax.random.key(c.seed), 3))
  keys = [jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(n)) for key in of_towers]
  embed = lambda params: (
    model.embed_image(params, examples["image"], keys[0]),
    model.embed_text(params, examples["tokens"], keys[1]),
  )
  z, pull_back = jax.vjp(jax.jit(embed), params)
  scale, bias = float(jnp.exp(params["log_scale"])), float(params.get("bias", 0))
  loss, (dimg, dtxt, dscale, *dbias) = getattr(oracles, c.loss.name)(
    *(np.float64(x) for x in z), scale, bias, np.float64(examples["weight"])
  )
  (grads,) = pull_back((jnp.float32(dimg), jnp.float32(dtxt)))
  return loss, jax.device_get(grads) | {"log_scale": dscale * scale} | {"bias": x for x in dbias}


def updates(mesh, count=2, **fields):
  c = tiny.get_config()
  for field, value in fields.items():
    config_lib.override(c, field, str(value))
  c = config_lib.resolve(c, TextProcessor())
  model = models.build(c.model)
  params = model.shapes
  tx, schedule = optim.make(c, params, 50)
  ema = c.train.ema is not None
  abstract = state_lib.abstract(model, tx, mesh, ema)
  shardings = jax.tree.map(lambda x: x.sharding, abstract)
  state = first = jax.jit(
    lambda key: state_lib.create(model.init(key), tx, ema), out_shardings=shardings
  )(jax.random.key(0))
  first, history, averages = jax.device_get(first.params), [], []
  with jax.set_mesh(mesh):
    update = step_lib.jit(
      step_lib.make(c, model, tx, schedule, mesh, trainable_lib.frozen_mask(c, params)),
      abstract,
      mesh,
    )
    for i in range(count):
      state, metrics = update(state, mesh_lib.to_global(mesh, batch(seed=i)))
      history.append(jax.device_get(metrics))
      averages.append(jax.device_get((state.params, state.ema)))
  return first, state, history, averages


def one_device():
  return jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), mesh_lib.BATCH_AXES)


def test_micro_batched_memory_does_not_grow_with_the_batch():
  temp = {}
  for n in (64, 512):
    c = tiny.get_config()
    c.batch_size, c.train.microbatch, c.loss.impl = n, 16, "ring"
    c = config_lib.resolve(c, TextProcessor())
    model, mesh = models.build(c.model), one_device()
    params = model.shapes
    function = step_lib.make_value_and_grad(c, model, mesh, trainable_lib.frozen_mask(c, params))
    with jax.set_mesh(mesh):
      compiled = jax.jit(function).lower(params, batch(n), jnp.int32(0)).compile()
    temp[n] = compiled.memory_analysis().temp_size_in_bytes
  embeddings = 4 * 512 * 16 * 4  # both towers' and their gradients
  tile = 256 * 256 * 4 * 4  # at this width a tile is more than the embeddings
  assert temp[512] <= 1.2 * temp[64] + embeddings + tile


def test_eight_devices_with_sharded_parameters_train_as_one(monkeypatch):
  monkeypatch.setattr(mesh_lib, "FSDP_MIN_ELEMENTS", 100)
  _, _, one, _ = updates(one_device(), 20)
  _, state, eight, _ = updates(
    mesh_lib.make(2, 4), 20, **{"loss.impl": "ring", "train.microbatch": 1, "train.ema": 0.5}
  )
  for tree in (state.params, state.opt_state, state.ema):
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
      if jax.tree_util.keystr(path).endswith("['fc1']['kernel']"):
        assert leaf.addressable_shards[0].data.size == leaf.size // 4
  for name in set(one[0]) - {"local_accuracy"}:  # which is among fewer on a smaller device
    np.testing.assert_allclose(
      [m[name] for m in eight], [m[name] for m in one], rtol=1e-5, atol=1e-6, err_msg=name
    )


def test_siglip_b16_is_split_evenly():
  """SigLIP B/16 with AdamW over 8 devices: at most an eighth of the state and 3 % on each."""
  c = config_lib.default()
  c.model.image.variant = c.model.text.variant = "B"
  c.image.size, c.model.text.vocab_size, c.model.text.eos_id, c.loss.bias_init = (
    256,
    32_000,
    1,
    -10.0,
  )
  model = models.build(c.model)
  tx, _ = optim.make(c, model.shapes, 100)
  leaves = jax.tree.leaves(state_lib.abstract(model, tx, mesh_lib.make(1, 8)))
  bytes_of = lambda shape, leaf: int(np.prod(shape)) * leaf.dtype.itemsize
  whole = sum(bytes_of(x.shape, x) for x in leaves)
  mine = sum(bytes_of(x.sharding.shard_shape(x.shape), x) for x in leaves)
  assert whole > 3 * 4 * 203e6 and mine <= whole / 8 * 1.03


def test_a_rule_decides_how_a_parameter_is_split():
  mesh = mesh_lib.make(2, 4)
  shapes = {
    "params": {
      "a": {"kernel": jax.ShapeDtypeStruct((8, 512, 1024), jnp.float32)},
      "b": jax.ShapeDtypeStruct((6,), jnp.float32),
    }
  }
  split = lambda rules: mesh_lib.state_shardings(mesh, shapes, rules)["params"]["a"]["kernel"].spec
  assert tuple(split(())) == (None, None, "fsdp")
  assert tuple(split((("a/.*", 1), (".*", None)))) == (None, "fsdp", None)
  assert tuple(split(((".*/kernel", None),))) == ()
  with pytest.raises(
    ValueError,
    match=r"config.mesh.shard.0: dimension 3 of params/a/kernel \(8, 512, 1024\) is not divisible",
  ):
    split((("a/kernel", 3),))


def test_the_average_follows_the_parameters_and_the_logged_rate_is_that_of_the_update():
  want, _, history, steps = updates(one_device(), 3, **{"train.ema": 0.75})
  np.testing.assert_allclose(
    [m["lr"] for m in history], 1e-3 * 0.5 * (1 + np.cos(np.pi * np.arange(3) / 50)), rtol=1e-6
  )
  for params, average in steps:
    want = jax.tree.map(lambda a, p: 0.75 * a + 0.25 * p, want, params)
    jax.tree.map(
      lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7), average, want
    )


@pytest.mark.parametrize("name", ["sigmoid", "softmax"])
def test_ring_and_dense_train_alike_on_eight_devices(name):
  curves = [
    [
      m["loss"]
      for m in updates(mesh_lib.make(4, 2), 50, **{"loss.name": name, "loss.impl": impl})[2]
    ]
    for impl in ("dense", "ring")
  ]
  assert curves[0][-1] != curves[0][0]
  np.testing.assert_allclose(*curves, rtol=1e-4)


@pytest.mark.parametrize(
  "shape, microbatch, fields",
  [
    ((1, 1), 8, {"loss.name": "softmax", "loss.impl": "ring"}),
    ((2, 4), 4, {"loss.name": "softmax", "loss.impl": "ring"}),
    ((8, 1), 1, {"optim.lr_multipliers": "(('text/.*', None), ('.*', 1.0))"}),
  ],
)
def test_a_micro_batched_step_is_the_full_step(shape, microbatch, fields):
  mesh = one_device() if shape == (1, 1) else mesh_lib.make(*shape)
  loss, grads, whole, forward = whole_gradients(tuple(fields.items()))
  chunked_loss, chunked, work, _ = gradients(mesh, **fields, **{"train.microbatch": microbatch})
  want_loss, want = by_hand(tuple(fields.items()))
  np.testing.assert_allclose((loss, chunked_loss), want_loss, rtol=3e-6)
  assert jax.tree.structure(chunked) == jax.tree.structure(grads)
  largest = max(np.abs(g).max() for g in jax.tree.leaves(grads))
  errors = {}
  for (path, g), x in zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(chunked)):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    hand = functools.reduce(lambda tree, key: tree[key.key], path, want)
    # The bias of the keys moves no attention weight: all of its gradient is rounding.
    size = largest if name.endswith("key/bias") else np.abs(g).max()
    errors[name] = [float(np.abs(a - b).max() / size) for a, b in ((x, g), (g, hand))]
  assert np.max(list(errors.values())) <= 3e-6, errors
  if shape == (1, 1):  # on more, the ring is counted per device
    # So 4/3 of the towers', which are three times their forward pass
    assert work == whole + forward


def test_micro_batches_add_their_gradients_before_they_cross_the_network():
  """As many bytes of gradients as of the step in one piece, whatever the number of chunks."""
  mesh, traffic = mesh_lib.make(8, 1), []
  for microbatch in (None, 4, 1):
    c = tiny.get_config()
    c.batch_size, c.train.microbatch, c.loss.impl = 64, microbatch, "ring"
    c = config_lib.resolve(c, TextProcessor())
    model = models.build(c.model)
    params = model.shapes
    function = step_lib.make_value_and_grad(c, model, mesh, trainable_lib.frozen_mask(c, params))
    shardings = mesh_lib.replicated(mesh), mesh_lib.batch_sharding(mesh), None
    with jax.set_mesh(mesh):
      lowered = jax.jit(function, in_shardings=shardings).lower(params, batch(64), jnp.int32(0))
      traffic.append(collectives.read(lowered.compile().as_text(), 8))
  size = trainable_lib.count(params)
  for found in traffic:
    assert size <= found["all-reduce"].payload / 4 <= size + 100  # and a few sums of metrics
    assert found["all-gather"].payload == found["reduce-scatter"].payload == 0
  assert len({found["collective-permute"].payload for found in traffic}) == 1


def test_the_vocabulary_stays_where_it_is(monkeypatch):
  """No collective of a step over fsdp has a dimension of the vocabulary's size; over data, that of
  its gradient has a device's columns alone.
  """
  monkeypatch.setattr(mesh_lib, "FSDP_MIN_ELEMENTS", 100)
  words, shapes = 1013, {}
  for data, fsdp, microbatch in ((1, 8, None), (2, 4, None), (2, 4, 1)):
    c, mesh = tiny.get_config(), mesh_lib.make(data, fsdp)
    c.train.microbatch, c.model.text.vocab_size, c.model.text.eos_id = microbatch, words, 1
    model = models.build(config_lib.resolve(c, TextProcessor()).model)
    params = mesh_lib.abstract(mesh, model.shapes)
    frozen = trainable_lib.frozen_mask(c, params)
    function = step_lib.make_value_and_grad(c, model, mesh, frozen)
    shardings = jax.tree.map(lambda x: x.sharding, params)
    function = jax.jit(
      function,
      in_shardings=(shardings, mesh_lib.batch_sharding(mesh), None),
      out_shardings=(None, shardings),
    )
    with jax.set_mesh(mesh):
      hlo = function.lower(params, batch(), jnp.int32(0)).compile().as_text()
    moved = re.findall(r"= (.*?) (?:all|reduce|collective)-[a-z-]+\(", hlo)
    assert moved
    shapes[data, fsdp, microbatch] = {
      shape for line in moved for shape in re.findall(rf"\[(?:\d+,)*{words}(?:,\d+)*\]", line)
    }
  width = tiny.get_config().model.text.width
  assert shapes == {
    (1, 8, None): set(),
    (2, 4, None): {f"[{words},{width // 4}]"},
    (2, 4, 1): {f"[{words},{width // 4}]"},
  }


def test_a_frozen_tower_stays_and_the_scale_keeps_under_its_cap():
  fields = {
    "optim.lr_multipliers": "(('image/.*', None), ('.*', 1.0))",
    "loss.scale_init": 10.0,
    "loss.scale_max": 5.0,
  }
  first, state, _, _ = updates(one_device(), **fields)
  after = jax.device_get(state.params)
  jax.tree.map(np.testing.assert_array_equal, first["image"], after["image"])
  assert np.abs(first["text"]["head"]["kernel"] - after["text"]["head"]["kernel"]).max() > 0
  assert 4.9 < np.exp(after["log_scale"]) <= 5.0001  # at 10 before the first update
  moments = sum(x.size for x in jax.tree.leaves(state.opt_state))
  assert (
    moments
    < 2 * sum(x.size for x in jax.tree.leaves({k: v for k, v in after.items() if k != "image"}))
    + 10
  )


def test_a_loss_by_label_starts_at_the_log_odds_of_a_match(tmp_path):
  c = tiny.get_config()
  c.loss.positives = "label"
  made = run_lib.Run(c, tmp_path)
  folder_lib.write(made.workdir, made.config, made.text)
  shares = np.bincount([made.sources[0][i]["label"] for i in range(64)]) / 64
  p = 1 / 16 + 15 / 16 * (shares**2).sum()
  assert made.config.model.bias_init == pytest.approx(np.log(p / (1 - p)))
  again = run_lib.Run(c, tmp_path)
  folder_lib.write(again.workdir, again.config, again.text)  # resumes: the same value again


def test_flops_of_products_convolutions_and_loops():
  a, b = jnp.ones((3, 5)), jnp.ones((5, 7))
  assert flops.count(jnp.dot, a, b) == 2 * 3 * 5 * 7
  assert (
    flops.count(
      jax.jit(lambda x: jax.lax.scan(lambda c, _: (c @ jnp.ones((5, 5)), None), x, length=4)[0]), a
    )
    == 4 * 2 * 3 * 5 * 5
  )
  conv = lambda x, k: jax.lax.conv_general_dilated(
    x, k, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  assert flops.count(conv, jnp.ones((2, 8, 8, 3)), jnp.ones((2, 2, 3, 6))) == 2 * (
    2 * 4 * 4 * 6
  ) * (2 * 2 * 3)
