"""The losses beside SigLIP's, CLIP's, the focal and the hinge loss, against float64 numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_losses

from siglax import config as config_lib
from siglax import losses
from siglax.devices import flops
from siglax.losses import sigmoid_masked

import oracles


def of_config(name, **fields):
  """The loss of a config with these fields, called as the functions of siglax.losses are."""

  def loss(zimg, ztxt, scale, bias, *, mesh=None, axis="data", impl, tile=None, **batch):
    config = config_lib.default().loss
    config.update(name=name, impl=impl, tile=tile, **fields)
    return jax.jit(losses.make(config, mesh, axis))(zimg, ztxt, scale, bias, **batch)

  return loss


def masked(kept, ratio):
  fields = {"kept_negatives": kept, "negatives_per_pair": ratio}
  oracle = functools.partial(oracles.sigmoid_masked, kept=kept, ratio=ratio)
  return of_config("sigmoid_masked", **fields), oracle, 4


LOSSES = {
  "softmax_hard": (of_config("softmax_hard"), oracles.softmax_hard, 3),
  "cyclip": (of_config("cyclip"), oracles.cyclip, 3),
  "sigmoid_hardest": masked("hardest", 3.3),
}
FLOPS = {"softmax_hard": 8, "cyclip": 8, "sigmoid_hardest": 22}  # by b·B·d
EACH = pytest.mark.parametrize("name", list(LOSSES))


@pytest.fixture(scope="module", autouse=True)
def known():
  """Among the losses that the functions of test_losses compile."""
  test_losses.LOSSES.update(LOSSES | {"sigmoid_easiest": masked("easiest", 3.3)})


def of_float32(x):
  return x.astype(np.float32).astype(np.float64)


@EACH
@pytest.mark.parametrize("impl, D", [("dense", 8), ("ring", 8)])
def test_value_and_gradients_equal_float64(name, impl, D):
  zimg, ztxt, w, labels = oracles.batch(25 * D, 64)
  w[[3, 7]] = 0
  for scale in (1.0, 10.0, 100.0):
    for batch in ((zimg, ztxt, None, None), (zimg, ztxt, w, labels)):
      assert max(test_losses.errors(name, impl, D, scale, batch)) <= 1e-5


@pytest.mark.parametrize("impl", ["dense", "ring"])
def test_the_easiest_negatives(impl):
  zimg, ztxt, w, labels = oracles.batch(50, 64)
  for batch in ((zimg, ztxt, None, None), (zimg, ztxt, w, labels)):
    assert max(test_losses.errors("sigmoid_easiest", impl, 2, 10.0, batch)) <= 1e-5


@EACH
def test_an_absent_example_and_weights_of_any_size(name):
  """On the ring of 2 devices, whose program the dense one has been compared with."""
  zimg, ztxt, w, labels = oracles.batch(50, 64)
  for size in (1e-25, 1e30):
    some = of_float32(np.where(np.arange(50) % 3 == 0, size, 1) * w)
    assert max(test_losses.errors(name, "ring", 2, 100.0, (zimg, ztxt, some, labels))) <= 1e-5
  w[[3, 30]] = 0
  keep = w > 0
  oracle = LOSSES[name][1]
  want, want_grads = oracle(zimg[keep], ztxt[keep], 10.0, -3.0, w[keep], labels[keep])
  zimg[3], ztxt[3], zimg[30], ztxt[30] = np.nan, 5 * ztxt[3], -np.inf, np.nan
  arguments = [jnp.float32(x) for x in (zimg, ztxt, 10.0, -3.0, w)]
  function, _ = test_losses.compiled(name, "ring", 2)
  value, grads = function(*arguments, jnp.int32(labels))
  assert abs(value - 3 * want) <= 1e-5 * abs(3 * want)
  for got, x in zip(grads[:2], want_grads):
    got = np.asarray(got)
    assert np.abs(got[keep] - 3 * x).max() <= 1e-5 * np.abs(3 * x).max() and not got[~keep].any()
  value, grads = function(*arguments[:4], 0 * arguments[4], jnp.int32(labels))
  assert value == 0 and not any(np.asarray(g).any() for g in grads)


@EACH
def test_matrix_products_and_their_precision(name):
  D, b, d = 8, 64, 32
  function, arguments = test_losses.program(name, "ring", D, b, d, 16, True)
  of_grams = 20 * b * d**2 if name == "cyclip" else 0  # its matrices [d, d]
  count = flops.count(function, *arguments)
  assert count <= (FLOPS[name] + 0.01) * b * (b * D) * d + of_grams
  equations = test_losses.equations(jax.make_jaxpr(function)(*arguments).jaxpr)
  products = [e for e in equations if e.primitive.name == "dot_general"]
  assert len(products) >= 3
  assert all(e.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2 for e in products)


def test_memory_is_flat_in_devices():
  name, b, d = "softmax_hard", 1024, 256  # the one whose trips carry the most
  temp = [
    test_losses.executable(name, "ring", D, b, d, 256).memory_analysis().temp_size_in_bytes
    for D in (4, 8)
  ]
  assert temp[1] <= 1.02 * temp[0] and temp[1] <= 10 * b * d * 4


def test_without_hardness_it_is_the_softmax_loss():
  zimg, ztxt, w, labels = (jnp.asarray(x) for x in oracles.batch(50, 16))
  zimg, ztxt, w = (x.astype(jnp.float32) for x in (zimg, ztxt, w))
  loss = of_config("softmax_hard", hardness=0.0)
  got = loss(zimg, ztxt, 10.0, 0.0, impl="ring", tile=20, weights=w, labels=labels)
  want = losses.softmax_loss(zimg, ztxt, 10.0, impl="dense", weights=w, labels=labels)
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_random_negatives_are_a_share_of_the_places_of_a_batch():
  """The same on one device and on eight, as many in each row and column, for any indices."""
  B, ratio = 2000, 16.0
  index = jnp.arange(B, dtype=jnp.int32)
  kept = np.asarray(sigmoid_masked._random(index, index, ratio / (B - 1)))
  assert abs(kept.sum() / (ratio * B) - 1) < 5 / np.sqrt(ratio * B)
  for sums in (kept.sum(0), kept.sum(1)):
    assert 0.8 < sums.var() / ratio < 1.2  # as of independent draws
  assert np.array_equal(
    sigmoid_masked._random(index[40:50], index[7:9], ratio / (B - 1)), kept[40:50, 7:9]
  )

  zimg, ztxt, w, labels = oracles.batch(200, 16)
  kept = np.asarray(sigmoid_masked._random(index[:200], index[:200], 3.3 / 199))
  x, p = 10 * zimg @ ztxt.T - 3, oracles.matching(labels, 200)
  terms = np.outer(w, w) / w.sum() * (np.logaddexp(0, x) - p * x)
  want = (terms * (kept | (p == 1))).sum()
  loss = of_config("sigmoid_masked", kept_negatives="random", negatives_per_pair=3.3)
  rows = [jnp.float32(z) for z in (zimg, ztxt)]
  for impl, mesh in (("dense", None), ("ring", test_losses.line(8))):
    got = loss(
      *rows, 10.0, -3.0, mesh=mesh, impl=impl, weights=jnp.float32(w), labels=jnp.int32(labels)
    )
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_all_and_none_of_the_negatives():
  zimg, ztxt, _, _ = (jnp.float32(x) for x in oracles.batch(50, 16))
  run = lambda ratio: of_config(
    "sigmoid_masked", kept_negatives="hardest", negatives_per_pair=ratio
  )(zimg, ztxt, 10.0, -3.0, impl="ring", tile=20)
  whole = losses.sigmoid_loss(zimg, ztxt, 10.0, -3.0, impl="dense")
  np.testing.assert_allclose(run(1e9), whole, rtol=1e-5)
  own = np.logaddexp(0, -(10 * np.sum(zimg * ztxt, axis=1) - 3)).mean()
  np.testing.assert_allclose(run(0.0), own, rtol=1e-5)


def test_too_many_pairs_to_count_is_one_line():
  z = jax.ShapeDtypeStruct((2**16, 8), jnp.float32)
  loss = of_config("sigmoid_masked", kept_negatives="hardest")
  for impl in ("dense", "ring"):
    with pytest.raises(ValueError, match="batch_size=65536 must be at most 65,535"):
      jax.eval_shape(lambda a, b: loss(a, b, 10.0, -3.0, impl=impl), z, z)
