"""The towers: published sizes, an independent numpy forward pass, and the properties each option promises."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siglax import config as config_lib
from siglax import models


def tiny(**fields):
  c = config_lib.default()
  c.image.size, c.text.length, c.loss.bias_init = 16, 6, -10.0
  for tower in (c.model.image, c.model.text):
    tower.width, tower.depth, tower.heads, tower.mlp_dim = 16, 2, 4, 32
  c.model.image.patch, c.model.text.vocab_size, c.model.text.eos_id = 8, 20, 1
  for field, value in fields.items():
    config_lib.override(c, field, str(value))
  model = models.build(c.model)
  return model, model.init(jax.random.key(0))


IMAGES = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
TOKENS = np.array([[5, 6, 7, 1, 1, 1], [8, 1, 1, 1, 1, 1], [9, 10, 11, 12, 13, 1]], np.int32)


def count(c):
  c.model.text.eos_id = 1
  return sum(x.size for x in jax.tree.leaves(jax.eval_shape(models.build(c.model).init, jax.random.key(0))))


def test_siglip_b16_has_the_published_number_of_parameters():
  c = config_lib.default()
  c.image.size, c.model.image.size, c.model.text.size = 224, "B", "B"
  c.model.text.vocab_size, c.loss.bias_init = 32_000, -10.0
  assert count(c) == 203_155_970


def layer_norm(x, p):
  return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def linear(x, p):
  return x @ p["kernel"] + p["bias"]


def mlp(x, p):
  x = linear(x, p["fc1"])
  return linear(0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))), p["fc2"])


def attention(q, x, p, heads=4):
  split = lambda y: y.reshape(*y.shape[:2], heads, -1).transpose(0, 2, 1, 3)
  q, k, v = split(linear(q, p["query"])), split(linear(x, p["key"])), split(linear(x, p["value"]))
  a = np.exp(q @ k.transpose(0, 1, 3, 2) / np.sqrt(q.shape[-1]))
  y = (a / a.sum(-1, keepdims=True)) @ v
  return linear(y.transpose(0, 2, 1, 3).reshape(y.shape[0], y.shape[2], -1), p["out"])


def encoder(x, p):
  for i in range(2):
    b = jax.tree.map(lambda leaf: leaf[i], p["encoder"]["blocks"])
    y = layer_norm(x, b["norm1"])
    x = x + attention(y, y, b["attention"])
    x = x + mlp(layer_norm(x, b["norm2"]), b["mlp"])
  return layer_norm(x, p["norm"])


def jitter(params):
  """Every leaf random, so that no zero bias or unit scale hides a mistake."""
  leaves, tree = jax.tree.flatten(params)
  rng = np.random.default_rng(1)
  return tree.unflatten([np.asarray(x) + 0.1 * rng.normal(size=x.shape).astype(np.float32) for x in leaves])


def numpy_image_tower(params, kept=slice(None)):
  """Tokens and embeddings of IMAGES in float64, of some of the patches alone."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)["image"]
  x = (IMAGES / 255 - 0.5) / 0.5
  patches = x.reshape(3, 2, 8, 2, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(3, 4, -1)
  stem = p["stem"]["embedding"]
  tokens = encoder((patches @ stem["kernel"].reshape(-1, 16) + stem["bias"] + p["pos_embedding"])[:, kept], p)
  head = p["pool"]
  y = attention(np.broadcast_to(head["probe"], (3, 1, 16)), tokens, head["attention"])
  y = (y + mlp(layer_norm(y, head["norm"]), head["mlp"]))[:, 0]
  return tokens, y / np.linalg.norm(y, axis=1, keepdims=True)


def test_image_tower_equals_float64_numpy():
  model, params = tiny()
  params = jitter(params)
  tokens, want = numpy_image_tower(params)
  np.testing.assert_allclose(model.image_tokens(params, IMAGES), tokens, atol=1e-5)
  np.testing.assert_allclose(jax.jit(model.embed_image)(params, IMAGES), want, atol=1e-5)


def test_dropped_patches_leave_the_tower_of_the_others():
  model, params = tiny(**{"train.patch_drop": 0.5})
  params = jitter(params)
  halves = list(itertools.combinations(range(4), 2))
  wanted = np.stack([numpy_image_tower(params, half)[1] for half in halves])  # [6, 3, d]
  embed, chosen = jax.jit(model.embed_image), set()
  for seed in range(8):
    z = np.asarray(embed(params, IMAGES, jax.random.split(jax.random.key(seed), 3)))
    error = np.abs(wanted - z).max(axis=2)
    assert (error.min(axis=0) < 1e-5).all()
    chosen |= {tuple(error.argmin(axis=0).tolist())}
  assert len({half for row in chosen for half in row}) == 6  # every half comes up, and not the same for all pictures
  assert any(len(set(row)) > 1 for row in chosen)
  np.testing.assert_allclose(embed(params, IMAGES), numpy_image_tower(params)[1], atol=1e-5)  # without keys, all


def test_a_class_token_is_never_dropped():
  model, params = tiny(**{"train.patch_drop": 0.75, "model.image.pool": "cls"})
  keys = jax.random.split(jax.random.key(0), 3)
  tokens = model._tower(params, "image").encode(model.normalize(IMAGES), keys)
  full = model._tower(params, "image").stem(model.normalize(IMAGES))
  assert tokens.shape[1] == 2 and full.shape[1:3] == (2, 2)
  changed = {**params, "image": {**params["image"], "cls": params["image"]["cls"] + np.arange(16.0)}}
  assert np.abs(model.embed_image(changed, IMAGES, keys) - model.embed_image(params, IMAGES, keys)).max() > 1e-3


@pytest.mark.parametrize("scan", [True, False])
def test_lora_is_its_merged_kernels(scan):
  model, params = tiny(**{"model.image.lora_rank": 2, "model.image.scan": scan})
  plain = models.without_lora(model)
  same = jax.tree_util.tree_leaves_with_path(params["image"])
  assert all((x == 0).all() for path, x in same if path[-1].key == "lora_b")  # so that nothing changes at first
  params = jitter(params)
  wide = jax.tree.map(np.float64, params["image"])  # merged by hand, in float64
  blocks = wide["encoder"]["blocks"]
  for attention in [blocks["attention"]] if scan else [blocks[str(i)]["attention"] for i in range(2)]:
    for part in attention.values():
      lora = part.pop("lora")
      part["kernel"] = part["kernel"] + np.einsum("...dr,...re->...de", lora["lora_a"], lora["lora_b"])
  by_hand = {**params, "image": jax.tree.map(np.float32, wide)}
  want = plain.embed_image(by_hand, IMAGES)
  np.testing.assert_allclose(model.embed_image(params, IMAGES), want, atol=2e-6)
  np.testing.assert_allclose(plain.embed_image(models.merge_lora(params), IMAGES), want, atol=2e-6)


def test_text_tower_equals_float64_numpy():
  model, params = tiny()
  params = jitter(params)
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)["text"]
  y = linear(encoder(p["embedding"][TOKENS] + p["pos_embedding"], p)[:, -1], p["head"])
  want = y / np.linalg.norm(y, axis=1, keepdims=True)
  np.testing.assert_allclose(jax.jit(model.embed_text)(params, TOKENS), want, atol=1e-5)


def test_loop_of_blocks_equals_scan():
  scanned, params = tiny()
  looped, _ = tiny(**{"model.image.scan": False, "model.text.scan": False})
  for tower in ("image", "text"):
    blocks = params[tower]["encoder"]["blocks"]
    params = {**params, tower + "_": {
        **params[tower], "encoder": {"blocks": {str(i): jax.tree.map(lambda x: x[i], blocks) for i in range(2)}},
    }}
  loop_params = {"image": params["image_"], "text": params["text_"]}
  np.testing.assert_allclose(looped.embed_image(loop_params, IMAGES), scanned.embed_image(params, IMAGES), atol=1e-6)
  np.testing.assert_allclose(looped.embed_text(loop_params, TOKENS), scanned.embed_text(params, TOKENS), atol=1e-6)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_no_gradient(remat):
  plain, params = tiny()
  again, _ = tiny(**{"train.remat.image": remat})
  grad = lambda model: jax.jit(jax.grad(lambda p: model.embed_image(p, IMAGES)[:, 0].sum()))(params)["image"]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), grad(plain), grad(again))


def test_causal_text_does_not_look_ahead():
  model, params = tiny(**{"model.text.causal": True})
  encode = lambda tokens: np.asarray(model._tower(params, "text").encode(tokens))
  changed = TOKENS.copy()
  changed[:, 4] = 15
  before, after = encode(TOKENS), encode(changed)
  np.testing.assert_allclose(before[:, :4], after[:, :4], atol=1e-6)
  assert np.abs(before[:, 4] - after[:, 4]).max() > 1e-3


def test_eos_and_mean_pooling_ignore_what_follows_the_end():
  tail = TOKENS.copy()
  tail[1, 3:] = 17  # after the first end token
  for pool in ("eos", "mean"):
    model, params = tiny(**{"model.text.pool": pool, "model.text.causal": True})
    np.testing.assert_allclose(model.embed_text(params, TOKENS), model.embed_text(params, tail), atol=1e-6)


@pytest.mark.parametrize("fields", [
    {"model.image.pool": "cls", "model.image.position": "sincos"},
    {"model.image.pool": "mean", "model.image.stem": "conv", "model.embed_dim": 12},
    {"model.text.pool": "map"},
])
def test_options_give_unit_rows_of_one_width(fields):
  model, params = tiny(**fields)
  zimg, ztxt = model.embed_image(params, IMAGES), model.embed_text(params, TOKENS)
  assert zimg.shape == ztxt.shape == (3, model.embed_dim) and zimg.dtype == ztxt.dtype == jnp.float32
  np.testing.assert_allclose(np.linalg.norm(zimg, axis=1), 1, atol=1e-6)
  assert model.image_tokens(params, IMAGES).shape == (3, 4, 16)


def test_uint8_equals_normalised_floats_and_bfloat16_is_near():
  model, params = tiny()
  z = model.embed_image(params, IMAGES)
  np.testing.assert_allclose(model.embed_image(params, (IMAGES / np.float32(255) - 0.5) / 0.5), z, atol=1e-6)
  half, _ = tiny(**{"train.dtype": "bfloat16"})
  assert np.abs(half.embed_image(params, IMAGES) - z).max() < 0.03
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))


def test_dropout_is_a_function_of_each_examples_key():
  model, params = tiny(**{"model.image.dropout": 0.5})
  embed = lambda images, seed: np.asarray(model.embed_image(params, images, jax.random.split(jax.random.key(seed), 4)[: len(images)]))
  z = embed(IMAGES[:4], 1)
  assert (z == embed(IMAGES[:4], 1)).all() and np.abs(z - embed(IMAGES[:4], 2)).max() > 1e-3
  np.testing.assert_allclose(embed(IMAGES[:2], 1), z[:2], atol=1e-6)  # whoever else is in the batch
  assert np.abs(embed(IMAGES[:1].repeat(2, 0), 1)[0] - embed(IMAGES[:1].repeat(2, 0), 1)[1]).max() > 1e-3


def test_scale_and_bias_start_as_configured():
  _, params = tiny()
  scale, bias = models.scale_and_bias(params)
  np.testing.assert_allclose((scale, bias), (10.0, -10.0), rtol=1e-6)
