"""The towers: published sizes, an independent numpy forward pass, and the properties each option
promises.
"""

import itertools
import math
import pathlib

from flax import nnx
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from siglax import config as config_lib
from siglax import models
from siglax.devices import flops
from siglax.models import transformer

import oracles


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
  return sum(x.size for x in jax.tree.leaves(models.build(c.model).shapes))


def test_siglip_b16_has_the_published_number_of_parameters():
  c = config_lib.default()
  c.image.size, c.model.image.variant, c.model.text.variant = 224, "B", "B"
  c.model.text.vocab_size, c.loss.bias_init = 32_000, -10.0
  assert count(c) == 203_155_970


@pytest.mark.parametrize(
  "fields",
  [
    {},
    {"model.image.scan": False, "model.text.lora_rank": 2, "loss.relative_bias": True},
    {"model.image.variant": "RN50", "model.image.width": 8, "loss.bias_init": None},
  ],
)
def test_shapes_are_those_of_the_parameters(fields):
  model, params = tiny(**fields)
  shapes = jax.tree.map(lambda x: (x.shape, x.dtype), model.shapes)
  assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), params)


def jitter(params):
  """Every leaf random, so that no zero bias or unit scale hides a mistake."""
  leaves, tree = jax.tree.flatten(params)
  rng = np.random.default_rng(1)
  return tree.unflatten(
    [np.asarray(x) + 0.1 * rng.normal(size=x.shape).astype(np.float32) for x in leaves]
  )


def numpy_image_tower(params, kept=slice(None)):
  """Tokens and embeddings of IMAGES in float64, of some of the patches alone."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)["image"]
  x = (IMAGES / 255 - 0.5) / 0.5
  patches = x.reshape(3, 2, 8, 2, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(3, 4, -1)
  stem = p["stem"]["embedding"]
  tokens = oracles.encoder(
    (patches @ stem["kernel"].reshape(-1, 16) + stem["bias"] + p["pos_embedding"])[:, kept], p, 4
  )
  return tokens, oracles.unit(oracles.map_head(tokens, p["pool"], 4))


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
  # Every half comes up, and not the same for all pictures
  assert len({half for row in chosen for half in row}) == 6
  assert any(len(set(row)) > 1 for row in chosen)
  # Without keys, all
  np.testing.assert_allclose(embed(params, IMAGES), numpy_image_tower(params)[1], atol=1e-5)


def test_a_class_token_is_never_dropped():
  model, params = tiny(**{"train.patch_drop": 0.75, "model.image.pool": "cls"})
  keys = jax.random.split(jax.random.key(0), 3)
  tokens = model._tower(params, "image").encode(model.normalize(IMAGES), keys)
  full = model._tower(params, "image").stem(model.normalize(IMAGES))
  assert tokens.shape[1] == 2 and full.shape[1:3] == (2, 2)
  changed = {
    **params,
    "image": {**params["image"], "cls": params["image"]["cls"] + np.arange(16.0)},
  }
  assert (
    np.abs(model.embed_image(changed, IMAGES, keys) - model.embed_image(params, IMAGES, keys)).max()
    > 1e-3
  )


@pytest.mark.parametrize("scan", [True, False])
def test_lora_is_its_merged_kernels(scan):
  model, params = tiny(**{"model.image.lora_rank": 2, "model.image.scan": scan})
  plain = models.plain(model)
  same = jax.tree_util.tree_leaves_with_path(params["image"])
  # So that nothing changes at first
  assert all((x == 0).all() for path, x in same if path[-1].key == "lora_b")
  params = jitter(params)
  wide = jax.tree.map(np.float64, params["image"])  # merged by hand, in float64
  blocks = wide["encoder"]["blocks"]
  for attention in (
    [blocks["attention"]] if scan else [blocks[str(i)]["attention"] for i in range(2)]
  ):
    for part in attention.values():
      lora = part.pop("lora")
      part["kernel"] = part["kernel"] + np.einsum(
        "...dr,...re->...de", lora["lora_a"], lora["lora_b"]
      )
  by_hand = {**params, "image": jax.tree.map(np.float32, wide)}
  want = plain.embed_image(by_hand, IMAGES)
  np.testing.assert_allclose(model.embed_image(params, IMAGES), want, atol=2e-6)
  np.testing.assert_allclose(
    plain.embed_image(models.plain_params(params), IMAGES), want, atol=2e-6
  )


def test_text_tower_equals_float64_numpy():
  model, params = tiny()
  params = jitter(params)
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)["text"]
  tokens = oracles.encoder(p["embedding"][TOKENS] + p["pos_embedding"], p, 4)
  want = oracles.unit(oracles.linear(tokens[:, -1], p["head"]))
  np.testing.assert_allclose(jax.jit(model.embed_text)(params, TOKENS), want, atol=1e-5)


def test_a_seed_is_one_model_whether_its_blocks_are_scanned_or_not():
  """Bit for bit under jit, in which a run makes its parameters; and blocks in a loop compute what
  scanned ones do.
  """
  scanned, _ = tiny()
  looped, _ = tiny(**{"model.image.scan": False, "model.text.scan": False})
  of_scan, of_loop = (jax.jit(model.init)(jax.random.key(7)) for model in (scanned, looped))
  for tower in ("image", "text"):
    blocks = of_loop[tower]["encoder"]["blocks"]
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *(blocks[str(i)] for i in range(len(blocks))))
    again = {**of_loop[tower], "encoder": {**of_loop[tower]["encoder"], "blocks": stacked}}
    assert jax.tree.structure(again) == jax.tree.structure(of_scan[tower])
    jax.tree.map(np.testing.assert_array_equal, again, of_scan[tower])
  for embed, inputs in (("embed_image", IMAGES), ("embed_text", TOKENS)):
    got, want = (
      getattr(model, embed)(p, inputs) for model, p in ((looped, of_loop), (scanned, of_scan))
    )
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("remat", ["dots", "attn_mlp", "full"])
def test_remat_changes_no_gradient(remat):
  plain, params = tiny()
  again, _ = tiny(**{"train.remat.image": remat})
  grad = lambda model: jax.jit(jax.grad(lambda p: model.embed_image(p, IMAGES)[:, 0].sum()))(
    params
  )["image"]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), grad(plain), grad(again))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_remat_computes_again_what_it_does_not_keep(dtype):
  """Products of a block of n examples of l positions: two of attention, 2·n·l²·d FLOPs each; four
  maps d → d; the MLP's first, d → m.
  """
  n, l, d, m, depth = 2, 5, 8, 24, 3
  work = {}
  for remat in transformer.REMAT:
    config = ml_collections.ConfigDict(
      {"dtype": dtype, "dropout": 0.0, "scan": True, "remat": remat, "lora_rank": 0}
      | {"attention": "xla"}
    )
    shape = transformer.Shape(d, depth, 2, m, "gelu", 1e-6)
    graphdef, state = nnx.split(transformer.Encoder(shape, config, nnx.Rngs(0)))
    loss = lambda state, x: nnx.merge(graphdef, state)(x).astype(jnp.float32).sum()
    work[remat] = flops.count(jax.grad(loss), state, jnp.ones((n, l, d), dtype))
  attention, maps, first = 2 * n * l * l * d, 4 * 2 * n * l * d * d, 2 * n * l * d * m
  more = {remat: (work[remat] - work["none"]) / depth for remat in work}
  assert more == {
    "none": 0,
    "dots": 2 * attention,
    "attn_mlp": attention + maps,
    "full": 2 * attention + maps + first,
  }


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
    np.testing.assert_allclose(
      model.embed_text(params, TOKENS), model.embed_text(params, tail), atol=1e-6
    )


def test_a_class_token_and_sincos_positions_equal_float64_numpy():
  model, params = tiny(**{"model.image.pool": "cls", "model.image.position": "sincos"})
  params = jitter(params)
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)["image"]
  patches = (
    (IMAGES / 127.5 - 1).reshape(3, 2, 8, 2, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(3, 4, -1)
  )
  angle = 10_000 ** -(np.arange(4) / 3)  # times the column, then the row
  where = [
    np.r_[np.sin(x * angle), np.cos(x * angle), np.sin(y * angle), np.cos(y * angle)]
    for y in (0, 1)
    for x in (0, 1)
  ]
  x = (
    patches @ p["stem"]["embedding"]["kernel"].reshape(-1, 16)
    + p["stem"]["embedding"]["bias"]
    + np.array(where)
  )
  tokens = oracles.encoder(np.concatenate([np.broadcast_to(p["cls"], (3, 1, 16)), x], axis=1), p, 4)
  got, z = jax.jit(lambda p: (model.image_tokens(p, IMAGES), model.embed_image(p, IMAGES)))(params)
  np.testing.assert_allclose(got, tokens[:, 1:], atol=1e-5)
  np.testing.assert_allclose(z, oracles.unit(tokens[:, 0]), atol=1e-5)


def test_a_stem_of_convolutions_and_a_head_equal_float64_numpy():
  model, params = tiny(
    **{"model.image.pool": "mean", "model.image.stem": "conv", "model.embed_dim": 12}
  )
  params = jitter(params)
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)["image"]
  x = IMAGES / 127.5 - 1
  for i in range(3):
    x, n = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), x.shape[1] // 2
    # [n, n, 3, 3, 3, …]
    windows = np.stack(
      [[x[:, 2 * r : 2 * r + 3, 2 * c : 2 * c + 3] for c in range(n)] for r in range(n)]
    )
    y = np.einsum("rcnijk,ijkl->nrcl", windows, p["stem"]["convs"][str(i)]["kernel"])
    x = oracles.gelu_tanh(oracles.layer_norm(y, p["stem"]["norms"][str(i)]))
  tokens = oracles.encoder(
    oracles.linear(x, p["stem"]["embedding"]).reshape(3, 4, 16) + p["pos_embedding"], p, 4
  )
  got, z = jax.jit(lambda p: (model.image_tokens(p, IMAGES), model.embed_image(p, IMAGES)))(params)
  np.testing.assert_allclose(got, tokens, atol=1e-5)
  np.testing.assert_allclose(
    z, oracles.unit(oracles.linear(tokens.mean(axis=1), p["head"])), atol=1e-5
  )
  assert z.shape == jax.eval_shape(model.embed_text, params, TOKENS).shape == (3, 12)


def test_a_text_tower_with_a_probe_equals_float64_numpy():
  model, params = tiny(**{"model.text.pool": "map"})
  params = jitter(params)
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)["text"]
  y = oracles.map_head(
    oracles.encoder(p["embedding"][TOKENS] + p["pos_embedding"], p, 4), p["pool"], 4
  )
  np.testing.assert_allclose(
    jax.jit(model.embed_text)(params, TOKENS), oracles.unit(oracles.linear(y, p["head"])), atol=1e-5
  )


def test_activations_are_the_published_ones():
  x = np.linspace(-3, 3, 13)
  exact = np.array([y * 0.5 * (1 + math.erf(y / math.sqrt(2))) for y in x])
  np.testing.assert_allclose(transformer.ACTIVATIONS["gelu"](jnp.float32(x)), exact, atol=1e-6)
  np.testing.assert_allclose(
    transformer.ACTIVATIONS["gelu_tanh"](jnp.float32(x)), oracles.gelu_tanh(x), atol=1e-6
  )
  np.testing.assert_allclose(
    transformer.ACTIVATIONS["quick_gelu"](jnp.float32(x)), x / (1 + np.exp(-1.702 * x)), atol=1e-6
  )
  assert np.abs(exact - oracles.gelu_tanh(x)).max() > 1e-4


def test_uint8_equals_normalised_floats_and_bfloat16_is_near():
  model, params = tiny()
  z = model.embed_image(params, IMAGES)
  np.testing.assert_allclose(
    model.embed_image(params, (IMAGES / np.float32(255) - 0.5) / 0.5), z, atol=1e-6
  )
  half, _ = tiny(**{"train.dtype": "bfloat16"})
  assert np.abs(half.embed_image(params, IMAGES) - z).max() < 0.03
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))


def test_dropout_zeroes_a_share_and_scales_the_rest_up():
  x = np.random.default_rng(0).uniform(1, 2, (8, 100, 40)).astype(np.float32)
  y = np.asarray(transformer.dropout(x, 0.2, jax.random.split(jax.random.key(0), 8)))
  np.testing.assert_allclose(y[y != 0], 1.25 * x[y != 0], rtol=1e-6)
  np.testing.assert_allclose((y == 0).mean(axis=(1, 2)), 0.2, atol=0.03)  # of 4,000 draws, ± 0.0063
  assert len(np.unique((y == 0).reshape(8, -1), axis=0)) == 8


def test_dropout_is_a_function_of_each_examples_key():
  model, params = tiny(**{"model.image.dropout": 0.5})
  keys, embed = jax.random.split(jax.random.key(1), 3), jax.jit(model.embed_image)
  z = np.asarray(embed(params, IMAGES, keys))
  turned = np.array([2, 0, 1])
  # Wherever it stands
  np.testing.assert_allclose(embed(params, IMAGES[turned], keys[turned]), z[turned], atol=1e-6)
  assert (np.abs(np.asarray(embed(params, IMAGES, keys[turned])) - z).max(axis=1) > 1e-3).all()
  same = np.asarray(embed(params, IMAGES[[0, 0, 0]], keys))
  assert np.abs(same[0] - same[1]).max() > 1e-3 and np.abs(same[1] - same[2]).max() > 1e-3


def test_scale_and_bias_start_as_configured():
  _, params = tiny()
  scale, bias = models.scale_and_bias(params)
  np.testing.assert_allclose((scale, bias), (10.0, -10.0), rtol=1e-6)


def test_docs_list_the_towers_as_they_declare_themselves():
  lines = [
    "| tower | `variant` | what it is | fields of its tower that it uses |",
    "|---|---|---|---|",
  ]
  for kind, towers in models.BY_KIND.items():
    for tower in towers.values():
      variants, uses = (
        ", ".join(f"`{name}`" for name in names) for names in (tower.variants, tower.uses)
      )
      lines.append(f"| {kind} | {variants} | {tower.doc} | {uses} |")
  text = "\n".join(lines)
  assert text in (pathlib.Path(__file__).parents[1] / "docs" / "towers.md").read_text(), text
