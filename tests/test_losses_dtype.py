"""config.loss.dtype: the losses of bfloat16 against float64 numpy, and what their programs multiply
and send.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
from test_losses import equations
from test_losses import line

from siglax import config as config_lib
from siglax import losses
from siglax.costs import collectives
from siglax.data.text import TextProcessor

import oracles

B, WIDTH, TILE = 48, 64, 5
LOSSES = {
  "sigmoid": oracles.sigmoid,
  "softmax": oracles.softmax,
  "focal": oracles.focal,
  "softmax_hard": oracles.softmax_hard,
  "cyclip": oracles.cyclip,
}
PLACES = [("dense", 8), ("dense", 1), ("ring", 2), ("ring", 1), ("gather", 2), ("ring", 8)]


def of_config(dtype, **fields):
  config = config_lib.default().loss
  config.update(dtype=dtype, **fields)
  return config


@functools.lru_cache(None)
def value_and_grad(dtype, name, impl, D, grad=True):
  """(zimg, ztxt, scale, bias, weights, labels) → the loss with, where asked, its gradients."""
  tile = None if impl == "dense" else TILE
  loss = losses.make(of_config(dtype, name=name, impl=impl, tile=tile), line(D))
  of = lambda *z: loss(*z[:4], weights=z[4], labels=z[5])
  return jax.value_and_grad(of, (0, 1, 2, 3)) if grad else of


def abstract(D, b=16, d=32):
  rows, whole = NamedSharding(line(D), P("data")), NamedSharding(line(D), P())
  z = jax.ShapeDtypeStruct((b * D, d), jnp.float32, sharding=rows)
  return z, z, *(jax.ShapeDtypeStruct((), jnp.float32, sharding=whole),) * 2, None, None


@pytest.mark.parametrize(
  "name, impl, D",
  # All share what depends on devices.
  [(name, *place) for name in ("sigmoid", "softmax") for place in PLACES]
  + [(name, *place) for name in ("focal", "softmax_hard", "cyclip") for place in PLACES[1:3]],
)
def test_bfloat16_is_near_float64(name, impl, D):
  """The oracle takes the embeddings as they were before they were rounded."""
  zimg, ztxt, w, labels = oracles.batch(B, WIDTH)
  function = jax.jit(value_and_grad("bfloat16", name, impl, D))
  for scale in (10.0, 100.0):
    value, grads = function(*map(jnp.float32, (zimg, ztxt, scale, -3, w)), jnp.int32(labels))
    want, want_grads = LOSSES[name](zimg, ztxt, scale, -3.0, w, labels)
    assert abs(value / want - 1) <= 1e-3
    for got, x in zip(grads, want_grads):
      assert got.dtype == jnp.float32
      assert np.abs(np.asarray(got, np.float64) - x).max() <= 2e-2 * np.abs(x).max()
    # It is computed in bfloat16, which float32 would show by an error of 1e-6.
    assert np.abs(grads[0] - want_grads[0]).max() >= 5e-4 * np.abs(want_grads[0]).max()


@pytest.mark.parametrize("impl", ["dense", "ring", "gather"])
@pytest.mark.parametrize("name", ["sigmoid", "softmax", "global", "sigmoid_masked"])
def test_all_products_are_of_bfloat16_and_add_in_float32(name, impl):
  jaxpr = jax.make_jaxpr(value_and_grad("bfloat16", name, impl, 2))(*abstract(2))
  found = {}
  for e in equations(jaxpr.jaxpr):
    found.setdefault(e.primitive.name, []).append(e)
  assert len(found["dot_general"]) >= 3
  for e in found["dot_general"]:
    assert [v.aval.dtype for v in e.invars] == [jnp.bfloat16] * 2
    assert e.outvars[0].aval.dtype == jnp.float32
  for kind in {"ring": ("ppermute",), "gather": ("all_gather",)}.get(impl, ()):
    sent = [v.aval for e in found[kind] for v in e.invars if len(v.aval.shape) > 1]
    assert any(x.dtype == jnp.bfloat16 for x in sent)
  # Gradients that travel are float32.
  sent = [v.aval for e in found.get("all_to_all", ()) for v in e.invars]
  assert all(x.dtype == jnp.float32 for x in sent)


@pytest.mark.parametrize("impl", ["dense", "ring", "gather"])
@pytest.mark.parametrize("name", list(losses.LOSSES))
def test_float32_is_the_program_of_before_there_was_a_choice(name, impl):
  """Of embeddings in float32 that are taken as they are."""
  programs = [
    str(jax.make_jaxpr(value_and_grad(dtype, name, impl, 2))(*abstract(2)).jaxpr)
    for dtype in ("auto", "float32")
  ]
  assert programs[0] == programs[1]
  assert "bf16" not in programs[0]


@pytest.mark.parametrize("name, trips", [("sigmoid", 1), ("softmax", 2)])
def test_texts_travel_in_half_the_bytes(name, trips):
  """By the compiled program. The value alone sends texts, and of the softmax the sums of a text, 2
  numbers; with the gradients, float32 sums of them travel too.
  """
  D, b, d = 8, 16, 32
  sent = {}
  for grad in (False, True):
    for dtype in ("float32", "bfloat16"):
      function = jax.jit(value_and_grad(dtype, name, "ring", D, grad))
      text = function.lower(*abstract(D, b, d)).compile().as_text()
      sent[dtype, grad] = collectives.read(text, D)["collective-permute"].sent
  hop = b * d * 4
  assert sent["float32", False] - sent["bfloat16", False] == D * hop / 2
  sums = 0 if name == "sigmoid" else (D - 1) * b * 8
  assert sent["float32", False] == D * hop + sums
  # XLA may make the first hops of two trips once.
  halved = 2 * (sent["float32", True] - sent["bfloat16", True])
  assert trips * (D - 1) * hop <= halved <= trips * D * hop
  assert sent["bfloat16", True] - halved / 2 >= (D - 1) * hop


def test_what_a_config_gets():
  text = TextProcessor()

  def resolved(**fields):
    config = config_lib.default()
    for field, value in fields.items():
      group, name = field.split("_", 1)
      config[group][name] = value
    config.model.text.vocab_size = 200
    return config_lib.resolve(config, text).loss.dtype

  assert resolved() == resolved(train_dtype="bfloat16", loss_dtype="float32") == "float32"
  assert resolved(train_dtype="bfloat16") == resolved(loss_dtype="bfloat16") == "bfloat16"
  hardest = {"loss_name": "sigmoid_masked", "loss_kept_negatives": "hardest"}
  for fields in ({"loss_name": "hinge"}, hardest):
    assert resolved(train_dtype="bfloat16", **fields) == "float32"
    message = (
      f'config.loss.dtype="bfloat16" has no place in config.loss.name="{fields["loss_name"]}"'
    )
    with pytest.raises(ValueError, match=message):
      resolved(loss_dtype="bfloat16", **fields)


def test_a_call_that_needs_float32_or_asks_for_another_type_is_one_line():
  zimg, ztxt, *_ = (jnp.float32(x) for x in oracles.batch(6, 4))
  with pytest.raises(ValueError, match='"hinge", which has a derivative that jumps at the margin'):
    losses.hinge_loss(zimg, ztxt, dtype="bfloat16")
  with pytest.raises(ValueError, match="dtype='float16' is unknown; known are float32, bfloat16"):
    losses.sigmoid_loss(zimg, ztxt, 10.0, -3.0, dtype="float16")


def test_a_run_of_before_there_was_the_field_is_of_float32():
  config = config_lib.default()
  config.train.dtype = "bfloat16"
  written = config_lib.to_json(config)
  assert '"dtype": "auto"' in written
  old = written.replace('"dtype": "auto",', "")
  assert config_lib.from_json(old).loss.dtype == "float32"
  assert config_lib.from_json(written).loss.dtype == "auto"
