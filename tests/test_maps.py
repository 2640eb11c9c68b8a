"""Where a tower looks: patches as embeddings, and weights of its pooling, beside float64 numpy."""

import jax
import numpy as np
import pytest
from test_models import IMAGES
from test_models import jitter
from test_models import tiny

import siglax
from siglax import config as config_lib
from siglax import models

import oracles
import saved
import tiny as tiny_run

HEADS, WIDTH, DIM = 4, 16, 12


def heads_of(x, p):
  """[n, heads, l, width of a head]."""
  return oracles.linear(x, p).reshape(*x.shape[:2], HEADS, -1).transpose(0, 2, 1, 3)


def weights(queries, x, p):
  """Softmax of q·k/√width, [n, heads, q, l]."""
  q, k = heads_of(queries, p["query"]), heads_of(x, p["key"])
  a = np.exp(q @ k.transpose(0, 1, 3, 2) / np.sqrt(WIDTH / HEADS))
  return a / a.sum(-1, keepdims=True)


def positions(p, blocks=None):
  """IMAGES after the first so many blocks, before the last norm; a class token comes first."""
  patches = (IMAGES / 127.5 - 1).reshape(3, 2, 8, 2, 8, 3).transpose(0, 1, 3, 2, 4, 5)
  x = oracles.linear(
    patches.reshape(3, 4, -1),
    {**p["stem"]["embedding"], "kernel": p["stem"]["embedding"]["kernel"].reshape(-1, WIDTH)},
  )
  if "cls" in p:
    x = np.concatenate([np.broadcast_to(p["cls"], (3, 1, WIDTH)), x], axis=1)
  stack = jax.tree.map(lambda leaf: leaf[:blocks], p["encoder"])
  x = x + p["pos_embedding"]
  for i in range(len(stack["blocks"]["norm1"]["scale"])):
    b = jax.tree.map(lambda leaf: leaf[i], stack["blocks"])
    y = oracles.layer_norm(x, b["norm1"])
    x = x + oracles.attention(y, y, b["attention"], HEADS)
    x = x + oracles.mlp(oracles.layer_norm(x, b["norm2"]), b["mlp"])
  return x


@pytest.mark.parametrize(
  "pool, scan", [("map", True), ("cls", True), ("cls", False), ("mean", False)]
)
def test_maps_equal_float64_numpy(pool, scan):
  fields = {"model.image.pool": pool, "model.image.scan": scan, "model.embed_dim": DIM}
  model, params = tiny(**fields)
  stacked = jitter(
    models.stack_blocks(params, tiny(**fields | {"model.image.scan": True})[0].config)
  )
  params = models.stack_blocks(stacked, model.config)
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), stacked)["image"]
  tokens = oracles.layer_norm(positions(p), p["norm"])
  patches = tokens[:, 1:] if pool == "cls" else tokens

  # What the tower says of a patch by itself: attention over one position takes all of it.
  alone = patches.reshape(12, 1, WIDTH)
  if pool == "map":
    attention = p["pool"]["attention"]
    y = oracles.linear(oracles.linear(alone, attention["value"]), attention["out"])
    alone = y + oracles.mlp(oracles.layer_norm(y, p["pool"]["norm"]), p["pool"]["mlp"])
  alone = oracles.linear(alone, p["head"])
  got, taken, z = jax.jit(
    lambda p: (
      model.patch_embeddings(p, IMAGES),
      model.pooling_attention(p, IMAGES),
      model.embed_image(p, IMAGES),
    )
  )(params)
  np.testing.assert_allclose(got.reshape(12, DIM), oracles.unit(alone[:, 0]), atol=1e-5)
  assert got.dtype == taken.dtype == np.float32

  if pool == "map":
    want = weights(np.broadcast_to(p["pool"]["probe"], (3, 1, WIDTH)), tokens, attention)[:, :, 0]
    # The weights are those of the embedding itself: of them and the values it is made again.
    y = want[:, :, None] @ heads_of(tokens, attention["value"])
    y = oracles.linear(y.transpose(0, 2, 1, 3).reshape(3, 1, WIDTH), attention["out"])
    y = (y + oracles.mlp(oracles.layer_norm(y, p["pool"]["norm"]), p["pool"]["mlp"]))[:, 0]
    np.testing.assert_allclose(z, oracles.unit(oracles.linear(y, p["head"])), atol=1e-5)
  elif pool == "cls":
    last = jax.tree.map(lambda leaf: leaf[-1], p["encoder"]["blocks"])
    x = oracles.layer_norm(positions(p, blocks=1), last["norm1"])
    want = weights(x[:, :1], x, last["attention"])[:, :, 0, 1:]
    assert (want.sum(-1) < 0.999).all()
  else:
    want = np.full((3, 1, 4), 0.25)
    np.testing.assert_allclose(z, oracles.unit(alone.reshape(3, 4, DIM).mean(1)), atol=1e-5)
  np.testing.assert_allclose(taken, want, atol=1e-5)


def test_a_tower_makes_maps_of_pictures_of_any_size(tmp_path):
  """Eleven pictures on eight devices, so that the last batch is not full."""
  run = saved.write(tiny_run.get_config(), tmp_path / "run")
  tower = siglax.load(run.workdir)
  rng, texts = np.random.default_rng(0), ["a red circle", "a blue square", "a star"]
  pictures = [rng.integers(0, 256, (20 + i, 30, 3), np.uint8) for i in range(11)]
  pixels = np.stack([tower.pixels(picture) for picture in pictures])
  z = jax.jit(tower.model.patch_embeddings)(tower.params, pixels)
  taken = jax.jit(tower.model.pooling_attention)(tower.params, pixels)
  similarity = tower.patch_similarity(pictures, texts, batch_size=8)
  want = np.einsum("npd,md->nmp", z, tower.embed_texts(texts)).reshape(11, 3, 2, 2)
  np.testing.assert_allclose(similarity, want, atol=1e-6)
  attention = tower.pooling_attention(pictures, batch_size=8)
  np.testing.assert_allclose(attention, np.reshape(taken, (11, 2, 2, 2)), atol=1e-6)
  np.testing.assert_allclose(attention.sum((2, 3)), 1, atol=1e-6)
  assert tower.patch_similarity([], texts).shape == (0, 3, 2, 2)
  with pytest.raises(ValueError, match=r"^images is one str; give a list: \['a.jpg'\]$"):
    tower.pooling_attention("a.jpg")


def test_a_tower_without_maps_says_so():
  c = config_lib.default()
  c.image.size, c.image.fit, c.model.image.variant = 16, "native", "naflex-Ti"
  c.model.image.depth, c.model.text.vocab_size, c.model.text.eos_id = 1, 20, 1
  model = models.build(c.model)
  params = model.shapes
  with pytest.raises(ValueError, match="'naflex' has no patch_embeddings; those of siglax with a"):
    jax.eval_shape(model.patch_embeddings, params, np.zeros((1, 16, 16, 3), np.uint8))
