"""The losses against float64 numpy written from the formulas, values and all gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siglax import losses
from siglax import mesh as mesh_lib

B, D = 16, 8


def inputs(seed=0):
  rng = np.random.default_rng(seed)
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  return unit(rng.normal(size=(B, D))), unit(rng.normal(size=(B, D))), rng.integers(0, 5, B), rng.uniform(0.5, 2, B)


def target(labels, n):
  return np.eye(n) if labels is None else (labels[:, None] == labels[None, :]).astype(float)


def sigmoid_oracle(zimg, ztxt, scale, bias, w, labels):
  """Loss and gradients in float64: dL/dx_ij = w_i w_j (σ(x_ij) − p_ij) / Σw."""
  w = np.ones(len(zimg)) if w is None else w
  x, p, ww = scale * zimg @ ztxt.T + bias, target(labels, len(zimg)), np.outer(w, w) / w.sum()
  loss = (ww * (np.logaddexp(0, x) - p * x)).sum()
  return loss, gradients(ww * (1 / (1 + np.exp(-x)) - p), zimg, ztxt, scale)


def softmax_oracle(zimg, ztxt, scale, bias, w, labels):
  """Loss and gradients in float64, row by row."""
  del bias
  w = np.ones(len(zimg)) if w is None else w
  x, p = scale * zimg @ ztxt.T, target(labels, len(zimg))
  loss, dx = 0.0, np.zeros_like(x)
  for transpose in (False, True):
    y, g = (x.T, dx.T) if transpose else (x, dx)
    for i in range(len(y)):
      if not w[i]:
        continue
      e = w * np.exp(y[i] - y[i].max())
      q = p[i] * w / (p[i] * w).sum()
      loss += 0.5 * w[i] / w.sum() * (np.log(e.sum()) + y[i].max() - q @ y[i])
      g[i] += 0.5 * w[i] / w.sum() * (e / e.sum() - q)
  return loss, gradients(dx, zimg, ztxt, scale)


def gradients(dx, zimg, ztxt, scale):
  return scale * dx @ ztxt, scale * dx.T @ zimg, (dx * (zimg @ ztxt.T)).sum(), dx.sum()


def sigmoid(zimg, ztxt, scale, bias, weights, labels, **kw):
  return losses.sigmoid_loss(zimg, ztxt, scale, bias, weights=weights, labels=labels, **kw)


def softmax(zimg, ztxt, scale, bias, weights, labels, **kw):
  return losses.softmax_loss(zimg, ztxt, scale, weights=weights, labels=labels, **kw) + 0 * bias


VALUE_AND_GRAD = {f: jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2, 3))) for f in (sigmoid, softmax)}
BOTH = pytest.mark.parametrize("loss, oracle", [(sigmoid, sigmoid_oracle), (softmax, softmax_oracle)])


def run(loss, zimg, ztxt, scale, bias, w, labels):
  single = lambda x: None if x is None else jnp.asarray(x, jnp.float32)
  return VALUE_AND_GRAD[loss](
      single(zimg), single(ztxt), jnp.float32(scale), jnp.float32(bias), single(w), None if labels is None else jnp.asarray(labels)
  )


def close(got, want, tolerance=1e-5):
  got, want = np.asarray(got, np.float64), np.asarray(want)
  assert np.abs(got - want).max() <= tolerance * max(np.abs(want).max(), 1e-3), (got, want)


@BOTH
@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("labelled", [False, True])
def test_value_and_gradients_equal_float64(loss, oracle, scale, weighted, labelled):
  zimg, ztxt, labels, w = inputs()
  w, labels = w if weighted else None, labels if labelled else None
  value, grads = run(loss, zimg, ztxt, scale, -3.0, w, labels)
  want, want_grads = oracle(zimg, ztxt, scale, -3.0, w, labels)
  close(value, want)
  for got, wanted in zip(grads[: 4 if loss is sigmoid else 3], want_grads):
    close(got, wanted)


@BOTH
def test_weight_zero_removes_an_example_from_rows_and_columns(loss, oracle):
  zimg, ztxt, labels, w = inputs()
  zimg[3] *= 5  # whatever a removed example holds
  w[[3, 7]] = 0
  keep = w > 0
  value, grads = run(loss, zimg, ztxt, 10.0, -3.0, w, labels)
  close(value, oracle(zimg[keep], ztxt[keep], 10.0, -3.0, w[keep], labels[keep])[0])
  assert not np.asarray(grads[0])[~keep].any() and not np.asarray(grads[1])[~keep].any()


@BOTH
def test_integer_weight_with_labels_equals_repeating(loss, oracle):
  zimg, ztxt, labels, _ = inputs()
  w = np.ones(B)
  w[2] = 3
  repeat = lambda x: np.concatenate([x, x[[2, 2]]])
  close(run(loss, zimg, ztxt, 10.0, -3.0, w, labels)[0], oracle(repeat(zimg), repeat(ztxt), 10.0, -3.0, None, repeat(labels))[0])


@BOTH
def test_sharded_over_eight_devices_equals_one(loss, oracle):
  mesh = mesh_lib.make(4, 2)
  zimg, ztxt, labels, w = inputs()
  put = lambda x, dtype: jax.device_put(np.asarray(x, dtype), mesh_lib.batch_sharding(mesh))
  value, grads = VALUE_AND_GRAD[loss](
      put(zimg, np.float32), put(ztxt, np.float32), jnp.float32(10), jnp.float32(-3), put(w, np.float32), put(labels, np.int32)
  )
  want, want_grads = oracle(zimg, ztxt, 10.0, -3.0, w, labels)
  close(value, want)
  close(grads[0], want_grads[0])


@pytest.mark.parametrize("change, message", [
    ({"ztxt": jnp.ones((B, D + 1))}, r"zimg \(16, 8\) and ztxt \(16, 9\)"),
    ({"impl": "rign"}, "impl='rign' is unknown; known are auto, dense"),
    ({"tile": 0}, "tile=0 must be positive"),
    ({"labels": jnp.ones(B)}, "labels have dtype float32"),
    ({"weights": jnp.ones(B + 1)}, r"weights \(17,\) must have the shape \(16,\)"),
    ({"mesh": "8", "axis": "model"}, "axis='model' is not of the mesh, whose axes are data, fsdp"),
])
def test_bad_arguments_are_one_line(change, message):
  arguments = dict(zimg=jnp.ones((B, D)), ztxt=jnp.ones((B, D)), scale=1.0, bias=0.0) | change
  if "mesh" in change:
    arguments["mesh"] = mesh_lib.make()
  with pytest.raises(ValueError, match=message) as error:
    losses.sigmoid_loss(**arguments)
  assert "\n" not in str(error.value)
