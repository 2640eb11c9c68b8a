"""CLIP's ResNets: published sizes, a float64 forward pass in both modes, one step on many devices,
and checkpoints.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import siglax
from siglax import config as config_lib
from siglax import models
from siglax.data.text import TextProcessor
from siglax.devices import flops
from siglax.devices import mesh as mesh_lib
from siglax.models import resnet
from siglax.models import trainable as trainable_lib
from siglax.runs import checkpoint
from siglax.training import checks
from siglax.training import initial
from siglax.training import optim
from siglax.training import run as run_lib
from siglax.training import state as state_lib
from siglax.training import step as step_lib

import tiny as tiny_run

QUICKLY = {"xla_backend_optimization_level": 0}
RN17 = {"model.image.variant": "RN17"}
IMAGES = np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), np.uint8)


def tiny(**fields):
  c = tiny_run.get_config()
  image = config_lib.default().model.image
  for field in ("depth", "heads", "mlp_dim", "patch"):
    c.model.image[field] = image[field]
  c.image.size, c.model.image.variant, c.model.image.width = 64, "RN50", 4
  for field, value in fields.items():
    config_lib.override(c, field, str(value))
  return config_lib.resolve(c, TextProcessor())


@pytest.fixture(scope="module", autouse=True)
def rn17():
  """A size with each kind of block and little to compile."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(resnet.SIZES, "RN17", (64, (2, 1, 1, 1), 1024))
    yield


def randomized(model):
  """Every leaf random, norms and running statistics too; variances positive."""
  rng = np.random.default_rng(1)

  def leaf(path, x):
    values = rng.normal(size=x.shape).astype(np.float32)
    if x.ndim > 1:
      return values / np.sqrt(np.prod(x.shape[:-1])).astype(np.float32)
    return (
      1 + 0.3 * np.tanh(values) if path[-1].key in ("var", "scale") else np.float32(0.3) * values
    )

  return jax.tree_util.tree_map_with_path(leaf, model.shapes)


@pytest.mark.parametrize(
  "size, parameters, embed_dim", [("RN50", 38_316_896, 1024), ("RN101", 56_259_936, 512)]
)
def test_sizes_are_those_of_open_clip(size, parameters, embed_dim):
  c = tiny(**{"model.image.variant": size, "model.image.width": None, "image.size": 224})
  model = models.build(c.model)
  params = model.shapes["image"]
  assert trainable_lib.count(params) == parameters and model.embed_dim == embed_dim
  # Or the second step is compiled anew
  assert not any(x.weak_type for x in jax.tree.leaves(params))
  statistics = sum(x.size for x in jax.tree.leaves(params)) - parameters
  assert statistics == sum(
    2 * x.size for path, x in jax.tree_util.tree_leaves_with_path(params) if path[-1].key == "scale"
  )


def double(params):
  return jax.tree.map(lambda x: np.asarray(x, np.float64), params)


def convolution(x, kernel, stride=1):
  k = len(kernel) // 2
  x = np.pad(x, ((0, 0), (k, k), (k, k), (0, 0)))
  rows, columns = x.shape[1] - 2 * k, x.shape[2] - 2 * k
  return sum(
    x[:, i : i + rows : stride, j : j + columns : stride] @ kernel[i, j]
    for i in range(len(kernel))
    for j in range(len(kernel))
  )


def conv_norm(x, p, training, stride=1):
  """In training the running statistics in p are replaced."""
  x, p = convolution(x, p["conv"]["kernel"], stride), p["norm"]
  mean, var = p["mean"], p["var"]
  if training:
    rows = x.reshape(-1, x.shape[-1])
    mean, var = rows.mean(0), rows.var(0)
    p["mean"], p["var"] = 0.9 * p["mean"] + 0.1 * mean, 0.9 * p["var"] + 0.1 * rows.var(0, ddof=1)
  return (x - mean) / np.sqrt(var + 1e-5) * p["scale"] + p["bias"]


def halved(x):
  return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


def reference(params, images, training):
  """(last feature map, unit rows) in float64."""
  relu = lambda x: np.maximum(x, 0)
  x = (images / 255 - 0.5) / 0.5
  for i in (1, 2, 3):
    x = relu(conv_norm(x, params["stem"][f"conv{i}"], training, 2 if i == 1 else 1))
  x = halved(x)
  for stage, blocks in params["stages"].items():
    for block, p in blocks.items():
      pool = halved if stage != "0" and block == "0" else lambda x: x
      y = relu(conv_norm(relu(conv_norm(x, p["conv1"], training)), p["conv2"], training))
      y = conv_norm(pool(y), p["conv3"], training)
      x = relu(y + (conv_norm(pool(x), p["shortcut"], training) if "shortcut" in p else x))
  tokens = x.reshape(len(x), -1, x.shape[-1])
  x = np.concatenate([tokens.mean(1, keepdims=True), tokens], 1) + params["pos_embedding"]
  linear = lambda x, p: x @ p["kernel"] + p["bias"]
  heads = lambda x: x.reshape(*x.shape[:2], -1, 64)  # of 64, whatever the width
  p = params["pool"]
  q, k, v = (
    heads(linear(x[:, :1], p["query"])),
    heads(linear(x, p["key"])),
    heads(linear(x, p["value"])),
  )
  a = np.exp(np.einsum("nqhd,nkhd->nhqk", q, k) / 8)
  y = np.einsum("nhqk,nkhd->nqhd", a / a.sum(-1, keepdims=True), v).reshape(len(x), -1)
  y = linear(y, p["out"])
  return tokens, y / np.linalg.norm(y, axis=1, keepdims=True)


def test_both_modes_equal_float64_numpy():
  model = models.build(tiny(**RN17).model)
  params = randomized(model)

  @jax.jit
  def run(params, images):
    return (
      model.embed_image(params, images),
      model.image_tokens(params, images),
      model.embed_image_in_training(params, images),
    )

  z, tokens, (ztrain, running) = run(params, IMAGES[:4])
  want_tokens, want = reference(double(params["image"]), IMAGES[:4], training=False)
  np.testing.assert_allclose(z, want, atol=1e-5)
  np.testing.assert_allclose(tokens, want_tokens, atol=1e-5 * np.abs(want_tokens).max())
  after = double(params["image"])
  np.testing.assert_allclose(ztrain, reference(after, IMAGES[:4], training=True)[1], atol=1e-5)
  got = dict(jax.tree_util.tree_leaves_with_path(running["image"]))
  want = {
    k: x for k, x in jax.tree_util.tree_leaves_with_path(after) if k[-1].key in ("mean", "var")
  }
  assert got.keys() == want.keys() and len(got) == 2 * (3 + 5 * 3 + 4)
  for path, x in want.items():
    np.testing.assert_allclose(got[path], x, rtol=1e-5, atol=1e-5, err_msg=str(path))


def test_maps_equal_float64_numpy():
  """Places as embeddings, and what the attention pool takes of each."""
  linear = lambda x, p: x @ p["kernel"] + p["bias"]
  model = models.build(tiny(**RN17).model)
  params = randomized(model)
  p = double(params["image"])
  tokens, _ = reference(p, IMAGES[:4], training=False)
  x = np.concatenate([tokens.mean(1, keepdims=True), tokens], 1) + p["pos_embedding"]
  alone = linear(linear(x[:, 1:], p["pool"]["value"]), p["pool"]["out"])
  got, taken = jax.jit(
    lambda p: (model.patch_embeddings(p, IMAGES[:4]), model.pooling_attention(p, IMAGES[:4]))
  )(params)
  want = alone / np.linalg.norm(alone, axis=-1, keepdims=True)
  np.testing.assert_allclose(got, want, atol=1e-5)
  heads = lambda x, p: linear(x, p).reshape(*x.shape[:2], -1, 64)
  q, k = heads(x[:, :1], p["pool"]["query"]), heads(x, p["pool"]["key"])
  a = np.exp(np.einsum("nqhd,nkhd->nhk", q, k) / 8)
  np.testing.assert_allclose(taken, (a / a.sum(-1, keepdims=True))[:, :, 1:], atol=1e-5)


def test_statistics_of_bfloat16_are_taken_in_float32():
  norm = resnet.BatchNorm(3)
  norm.train()
  x = jnp.asarray(np.random.default_rng(0).normal(100, 1, (16, 16, 16, 3)), jnp.bfloat16)
  assert norm(x).dtype == jnp.bfloat16
  rows = np.asarray(x, np.float64).reshape(-1, 3)
  np.testing.assert_allclose(norm.mean[...], 0.1 * rows.mean(0), rtol=1e-5)
  np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * rows.var(0, ddof=1), rtol=1e-5)


def test_flops_are_those_of_the_convolutions_and_the_pool():
  model = models.build(tiny(**{"model.image.width": None, "image.size": 224}).model)
  work = 2 * (112**2 * 9 * (3 * 32 + 32 * 32 + 32 * 64))
  features = 64
  for stage, count in enumerate((3, 4, 6, 3)):
    width, side = 64 * 2**stage, 56 // 2**stage
    for block in range(count):
      before = side * (2 if stage and not block else 1)  # the pool comes after the 3×3
      work += 2 * before**2 * (features * width + 9 * width**2) + 2 * side**2 * width * 4 * width
      work += 2 * side**2 * features * 4 * width * (not block)
      features = 4 * width
  work += 2 * features**2 * (1 + 2 * 50) + 2 * 2 * 50 * features + 2 * features * 1024
  params = model.shapes
  assert (
    flops.count(model.embed_image, params, jax.ShapeDtypeStruct((1, 224, 224, 3), np.uint8)) == work
  )


def batch():
  rng = np.random.default_rng(0)
  return {
    "image": IMAGES,
    "tokens": rng.integers(3, 100, (16, 12), np.int32),
    "label": np.arange(16, dtype=np.int32),
    "weight": rng.uniform(0.5, 1.5, 16).astype(np.float32),
  }


@pytest.fixture(scope="module")
def trained(rn17):
  """One update on eight devices, parameters split and all computed again: parameters before, state
  after, metrics.
  """
  c = tiny(**RN17, **{"train.remat.image": "full", "optim.weight_decay": 10.0})
  model, mesh = models.build(c.model), mesh_lib.make(4, 2)
  params = randomized(model)
  tx, schedule = optim.make(c, params, 50)
  state = state_lib.create(params, tx)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(mesh_lib, "FSDP_MIN_ELEMENTS", 100)
    abstract = mesh_lib.abstract(mesh, jax.eval_shape(lambda: state))
  with jax.set_mesh(mesh):
    update = step_lib.jit(
      step_lib.make(c, model, tx, schedule, mesh, trainable_lib.frozen_mask(c, params)),
      abstract,
      mesh,
    )
    state = jax.device_put(state, jax.tree.map(lambda x: x.sharding, abstract))
    examples = mesh_lib.to_global(mesh, batch())
    state, metrics = update.lower(state, examples).compile(QUICKLY)(state, examples)
  return params, jax.device_put(state, jax.devices()[0]), metrics


def test_a_step_on_eight_devices_is_the_step_on_one(trained):
  params, state, metrics = trained
  c = tiny(**RN17)
  model = models.build(c.model)
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), mesh_lib.BATCH_AXES)
  function = jax.jit(
    step_lib.make_value_and_grad(c, model, mesh, trainable_lib.frozen_mask(c, params))
  )
  with jax.set_mesh(mesh):
    arguments = params, batch(), jnp.int32(0)
    (loss, (_, running, _)), grads = jax.device_get(
      function.lower(*arguments).compile(QUICKLY)(*arguments)
    )
  np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
  np.testing.assert_allclose(
    metrics["grad_norm"], np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(grads))), rtol=1e-5
  )
  # Adam's first moment after one step is (1 − b1) times the gradient; statistics have neither.
  got = {
    name.partition("/mu/")[2]: x / 0.1
    for name, x in leaves(state.opt_state).items()
    if "/mu/" in name
  }
  want = leaves(grads)
  assert (
    got.keys()
    == want.keys()
    == {name for name in leaves(params) if not name.endswith(("norm/mean", "norm/var"))}
  )
  largest = max(np.abs(x).max() for x in want.values())
  for name, x in want.items():
    # The bias of the keys moves no attention weight: all of its gradient is rounding.
    size = largest if name.endswith("key/bias") else np.abs(x).max()
    assert np.abs(got[name] - x).max() <= 1e-5 * size, name
  after, before = leaves(state.params), leaves(params)
  for name, x in leaves(running).items():
    np.testing.assert_allclose(after[name], x, rtol=1e-5, atol=1e-6, err_msg=name)
    assert np.abs(x - before[name]).max() > 1e-3


def leaves(tree):
  found = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
  return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in found}


def test_a_checkpoint_holds_the_statistics(trained, tmp_path):
  _, state, _ = trained
  c = tiny(**RN17)
  saved = checkpoint.Checkpoints(tmp_path, c.checkpoint)
  saved.save(1, state.replace(opt_state=()), {})
  saved.wait()
  saved.close()
  (tmp_path / "config.json").write_text(config_lib.to_json(c))
  _, z = reference(double(state.params["image"]), IMAGES, training=False)
  np.testing.assert_allclose(
    siglax.load(f"{tmp_path}:img").embed_images(list(IMAGES), batch_size=16), z, atol=1e-5
  )
  # Its text tower is as wide without it
  assert siglax.load(f"{tmp_path}:txt").model.embed_dim == z.shape[1]
  start = lambda **fields: initial.initial_params(
    tmp_path, models.build(tiny(**{**RN17, **fields}).model), mesh_lib.make()
  )
  larger, old = start(**{"image.size": 96})["image"], leaves(state.params)
  assert larger["pos_embedding"].shape == (10, 128)
  # Of the mean token
  np.testing.assert_array_equal(larger["pos_embedding"][0], old["image/pos_embedding"][0])
  np.testing.assert_array_equal(
    larger["stem"]["conv1"]["norm"]["var"], old["image/stem/conv1/norm/var"]
  )
  with pytest.raises(ValueError, match="image.width is 4 there and 8 here"):
    start(**{"model.image.width": 8})
  with pytest.raises(
    ValueError, match="image.variant is 'RN17' there and \"a transformer's\" here"
  ):
    start(**{"model.image.variant": "S", "model.image.width": 192})


def test_what_is_computed_again_holds_no_convolution_unless_all_is():
  work = {}
  for remat in ("none", "dots", "full"):
    c = tiny(**RN17)
    c.model.image.remat = remat
    model = models.build(c.model)
    params = model.shapes
    loss = lambda params: model.embed_image_in_training(params, IMAGES)[0].sum()
    work[remat] = flops.count(jax.grad(loss), params)
  forward = flops.count(model.embed_image, params, IMAGES)
  assert work["none"] == work["dots"] < work["full"] < work["none"] + forward


def test_micro_batches_need_a_frozen_tower(tmp_path):
  fields = {"train.microbatch": 1, "model.image.variant": "RN50"}
  with pytest.raises(
    ValueError,
    match="config.train.microbatch=1 has no place in config.model.image.variant='RN50': batch "
    "norm needs",
  ):
    run_lib.Run(tiny(**fields), tmp_path)
  c = tiny(**fields, **{"optim.lr_multipliers": "(('image/.*', None), ('.*', 1.0))"})
  model, mesh = models.build(c.model), mesh_lib.make()
  params = model.shapes
  function = step_lib.make_value_and_grad(c, model, mesh, trainable_lib.frozen_mask(c, params))
  with jax.set_mesh(mesh):
    (_, (_, running, _)), grads = jax.eval_shape(function, params, batch(), jnp.int32(0))
  assert running == {} and not jax.tree.leaves(grads["image"]) and jax.tree.leaves(grads["text"])


@pytest.mark.parametrize(
  "fields, line",
  [
    (
      {"model.image.depth": 3},
      "config.model.image.depth=3 has no place in config.model.image.variant='RN50'; leave it None",
    ),
    ({"model.image.pool": "cls"}, "config.model.image.pool='cls' has no place"),
    ({"model.image.scan": False}, "config.model.image.scan=False has no place"),
    (
      {"image.size": 80},
      "config.image.size=80 is not divisible by 32, the stride of "
      "config.model.image.variant='RN50'",
    ),
    ({"model.image.width": 5}, "config.model.image.width=5 must be even"),
  ],
)
def test_what_a_resnet_has_no_place_for_is_named(fields, line):
  with pytest.raises(ValueError, match=line):
    checks.validate(tiny(**fields), 8)


def test_patterns_pass_statistics_over():
  c = tiny()
  params = models.build(c.model).shapes
  c.optim.lr_multipliers = ((".*/norm/mean", 1.0), (".*", 1.0))
  with pytest.raises(
    ValueError,
    match="config.optim.lr_multipliers.0: the pattern '.*/norm/mean' matches no parameter",
  ):
    trainable_lib.frozen_mask(c, params)
