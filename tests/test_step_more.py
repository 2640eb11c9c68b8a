"""A step with several captions of a picture, and one with a relative bias."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_step

import siglax
from siglax import config as config_lib
from siglax import models
from siglax.data import loading
from siglax.data.text import TextProcessor
from siglax.devices import mesh as mesh_lib
from siglax.models import trainable as trainable_lib
from siglax.training import checks
from siglax.training import initial
from siglax.training import step as step_lib

import saved
import tiny

K, N = 3, 16


def resolved(**fields):
  c = tiny.get_config()
  for field, value in fields.items():
    config_lib.override(c, field, str(value))
  checks.validate(c, 8)
  return config_lib.resolve(c, TextProcessor())


def several(n=N):
  batch = test_step.batch(n)
  tokens = np.random.default_rng(7).integers(3, 100, (n, K, 12), np.int32)
  return batch | {"tokens": tokens, "label": np.arange(n, dtype=np.int32) // 2}


def gradients(c, batch, mesh):
  model = models.build(c.model)
  params = jax.jit(model.init)(jax.random.key(0))
  frozen = trainable_lib.frozen_mask(c, params)
  function = step_lib.make_value_and_grad(c, model, mesh, frozen)
  with jax.set_mesh(mesh):
    placed = jax.device_put(params, mesh_lib.replicated(mesh))
    (loss, _), grads = jax.jit(function)(placed, mesh_lib.to_global(mesh, batch), jnp.int32(3))
  return model, params, float(loss), jax.device_get(grads)


def assert_close(got, want):
  """Of trees: an element is off by no more than 1e-5 of the largest."""
  largest = max(np.abs(x).max() for x in jax.tree.leaves(want))
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
    np.testing.assert_allclose(x, y, atol=1e-5 * largest)


@pytest.mark.parametrize(
  "name, positives, microbatch",
  [("softmax", "pair", None), ("sigmoid", "label", 1), ("sigmoid", "pair", None)],
)
def test_each_caption_of_a_picture_matches_it(name, positives, microbatch):
  """The loss of N pictures and N·K texts, written out; a picture stands once, of the weight K."""
  c = resolved(
    **{
      "loss.name": name,
      "loss.positives": positives,
      "loss.impl": "ring",
      "train.microbatch": microbatch,
      "text.captions": K,
    }
  )
  batch = several()
  model, params, loss, grads = gradients(c, batch, mesh_lib.make(4, 2))
  embed = lambda params: (
    model.embed_image(params, batch["image"]),
    model.embed_text(params, batch["tokens"].reshape(N * K, 12)),
  )
  (zimg, ztxt), pull_back = jax.vjp(jax.jit(embed), params)
  picture = np.arange(N).repeat(K)  # of each text
  ids = batch["label"] if positives == "label" else np.arange(N)
  scale, bias = float(np.exp(params["log_scale"])), float(params.get("bias", 0))
  want, dimg, dtxt = written_out(
    name,
    *(np.float64(x) for x in (zimg, ztxt)),
    (ids[:, None] == ids[picture]).astype(float),
    batch["weight"].astype(np.float64),
    batch["weight"].astype(np.float64)[picture],
    scale,
    bias,
  )
  assert abs(loss - want) <= 1e-5 * abs(want)
  (expected,) = pull_back((jnp.float32(dimg), jnp.float32(dtxt)))
  for tower in models.TOWERS:
    assert_close(grads[tower], expected[tower])


def written_out(name, zimg, ztxt, p, w_image, w_text, scale, bias):
  """The loss of N images [N, d] and M texts [M, d], p [N, M] which match, and its gradients.

  sigmoid: (1/Σw) Σ_ij w_i w_j l_ij, where Σw is of the texts; softmax: the mean of the images'
  over all texts and of the texts' over all images, each image counted once for each text.
  """
  x, M = scale * zimg @ ztxt.T + bias * (name == "sigmoid"), len(ztxt)
  copies = M // len(zimg)
  if name == "sigmoid":
    ww = copies * np.outer(w_image, w_text) / w_text.sum()
    loss = (ww * (np.logaddexp(0, x) - p * x)).sum()
    dx = ww * (1 / (1 + np.exp(-x)) - p)
  else:
    loss, dx = 0.0, np.zeros_like(x)
    sides = ((x, dx, p, w_image * copies, w_text), (x.T, dx.T, p.T, w_text, w_image * copies))
    for y, g, q, own, others in sides:
      e = others * np.exp(y - y.max(axis=1, keepdims=True))
      q = q * others / (q * others).sum(axis=1, keepdims=True)
      share = 0.5 * own / w_text.sum()
      lse = np.log(e.sum(axis=1)) + y.max(axis=1)
      loss += (share * (lse - (q * y).sum(axis=1))).sum()
      g += share[:, None] * (e / e.sum(axis=1, keepdims=True) - q)
  return loss, scale * dx @ ztxt, scale * dx.T @ zimg


def test_captions_are_drawn_without_repetition_while_there_are_some():
  texts = {i: ["red", "blue", "green", "circle", "square"][: i + 1] for i in range(5)}

  class Source:
    def __len__(self):
      return 5

    def __getitem__(self, i):
      return {"image": np.zeros((4, 4, 3), np.uint8), "captions": texts[i]}

  text = TextProcessor(length=8)
  image = config_lib.default().image
  one, three = (
    loading.ExampleLoader(0, Source(), 0, False, image, text, captions=k) for k in (1, K)
  )
  seen = set()
  for i in range(5):
    for seed in range(20):
      tokens = three(i, np.random.default_rng(seed))["tokens"]
      assert tokens.shape == (K, 8)
      assert (tokens[0] == one(i, np.random.default_rng(seed))["tokens"]).all()
      distinct = len(np.unique(tokens, axis=0))
      assert distinct == min(K, len(texts[i]))
      seen |= {(i, bytes(row)) for row in tokens}
  assert len(seen) == 1 + 2 + 3 + 4 + 5


@functools.lru_cache(None)
def both_biases():
  absolute, relative = (resolved(**{"loss.relative_bias": x}) for x in (False, True))
  return [gradients(c, test_step.batch(), mesh_lib.make()) for c in (absolute, relative)]


def test_a_relative_bias_is_another_parameter_of_the_same_logits():
  (_, params, loss, grads), (_, relative, same, got) = both_biases()
  t, b = np.exp(np.float64(params["log_scale"])), np.float64(params["bias"])
  r = -b / t
  assert "bias" not in relative and np.isclose(relative["relative_bias"], r, rtol=1e-6)
  assert abs(same - loss) <= 1e-6 * loss
  for tower in models.TOWERS:
    assert_close(got[tower], grads[tower])
  np.testing.assert_allclose(got["relative_bias"], -t * grads["bias"], rtol=1e-5)
  np.testing.assert_allclose(
    got["log_scale"], grads["log_scale"] - t * r * grads["bias"], rtol=1e-4
  )


def test_a_tower_of_a_relative_bias_has_a_bias(tmp_path):
  """In a tower, in an export, and in a run that starts from it, which may have either."""
  c = tiny.get_config()
  c.eval.tasks, c.loss.relative_bias = (), True
  run = saved.write(c, tmp_path / "run", lambda p: p | {"relative_bias": jnp.float32(0.5)})
  tower = siglax.load(tmp_path / "run")
  assert set(tower.params) == {"image", "text", "log_scale", "bias"}
  assert np.isclose(tower.bias, -0.5 * tower.scale, rtol=1e-6)
  for wanted, name, value in ((True, "relative_bias", 0.5), (False, "bias", tower.bias)):
    config = run.config.copy_and_resolve_references()
    config.loss.relative_bias = config.model.relative_bias = wanted
    model = models.build(config.model)
    params = initial.initial_params(str(tmp_path / "run"), model, mesh_lib.make())
    assert params.keys() == model.shapes.keys()
    assert np.isclose(params[name], value, rtol=1e-6)


def test_a_relative_bias_of_a_loss_without_one_is_one_line():
  with pytest.raises(ValueError, match='relative_bias=True has no place in config.loss.name="soft'):
    resolved(**{"loss.relative_bias": True, "loss.name": "softmax"})
