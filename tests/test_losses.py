"""The losses against float64 numpy: value and all gradients, every impl, on one and on eight
devices, over processes.
"""

import functools
import json
import pathlib
import re
import subprocess
import sys

from conftest import free_port
import jax
from jax.extend.core import jaxprs_in_params
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from siglax import config as config_lib
from siglax import losses
from siglax.config import parts
from siglax.devices import flops
from siglax.devices import mesh as mesh_lib
from siglax.losses import statistics

import oracles

TILE = 10  # of 25 examples on a device: three tiles of 9, two of them overlapping
# name: loss(zimg, ztxt, scale, bias, …), its oracle, how many of the four arguments it depends on
LOSSES = {
  "sigmoid": (losses.sigmoid_loss, oracles.sigmoid, 4),
  "softmax": (
    lambda zimg, ztxt, scale, bias, **kw: losses.softmax_loss(zimg, ztxt, scale, **kw),
    oracles.softmax,
    3,
  ),
  "focal": (losses.focal_loss, oracles.focal, 4),
  "hinge": (
    lambda zimg, ztxt, scale, bias, **kw: losses.hinge_loss(zimg, ztxt, **kw),
    oracles.hinge,
    2,
  ),
  "hinge_hardest": (
    lambda zimg, ztxt, scale, bias, **kw: losses.hinge_loss(zimg, ztxt, negatives="hardest", **kw),
    functools.partial(oracles.hinge, negatives="hardest"),
    2,
  ),
}
EACH = pytest.mark.parametrize("name", list(LOSSES))
BOTH = pytest.mark.parametrize("name", ["sigmoid", "softmax"])


def line(D):
  return Mesh(np.array(jax.devices()[:D]), ("data",), axis_types=(AxisType.Auto,))


@functools.lru_cache(None)
def compiled(name, impl, D, axis="data"):
  """Value and gradients of 3 · loss: what is outside of a loss must reach all its gradients."""
  loss, _, count = LOSSES[name]
  mesh = line(D) if axis == "data" else mesh_lib.make(4, 2)
  tile = None if impl == "dense" else TILE

  def outer(zimg, ztxt, scale, bias, weights, labels):
    return 3 * loss(
      zimg,
      ztxt,
      scale,
      bias,
      mesh=mesh,
      axis=axis,
      impl=impl,
      tile=tile,
      weights=weights,
      labels=labels,
    )

  return jax.jit(jax.value_and_grad(outer, argnums=tuple(range(count)))), mesh


def errors(name, impl, D, scale, batch, dtype=jnp.float32, axis="data"):
  """Largest error of the loss and of each gradient against the oracle, relative to its largest
  element.
  """
  function, mesh = compiled(name, impl, D, axis)
  zimg, ztxt, w, labels = batch
  rows = NamedSharding(mesh, P(axis))
  zimg, ztxt = (jax.device_put(jnp.asarray(z, dtype), rows) for z in (zimg, ztxt))
  weights, integers = (
    None if w is None else jnp.float32(w),
    None if labels is None else jnp.int32(labels),
  )
  value, grads = function(zimg, ztxt, jnp.float32(scale), jnp.float32(-3), weights, integers)
  assert all(g.dtype == dtype for g in grads[:2]) and value.dtype == jnp.float32
  want, want_grads = LOSSES[name][1](
    *(np.asarray(z, np.float64) for z in (zimg, ztxt)), scale, -3.0, w, labels
  )
  relative = lambda got, want: (
    np.abs(np.asarray(got, np.float64) - 3 * want).max() / np.abs(3 * want).max()
  )
  return [relative(value, want)] + [relative(g, x) for g, x in zip(grads, want_grads)]


@EACH
@pytest.mark.parametrize(
  "impl, D, d",
  [
    ("dense", 8, 64),
    ("ring", 1, 64),
    ("ring", 2, 768),
    ("ring", 8, 64),
    ("gather", 8, 768),
  ],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_value_and_gradients_equal_float64(name, impl, D, d, weighted):
  zimg, ztxt, w, labels = oracles.batch(25 * D, d)
  w[[3, 7]] = 0
  for scale in (1.0, 10.0, 100.0):
    batch = (zimg, ztxt, w, labels) if weighted else (zimg, ztxt, None, None)
    assert max(errors(name, impl, D, scale, batch)) <= 1e-5


@BOTH
def test_over_two_flattened_axes_in_bfloat16(name):
  zimg, ztxt, w, labels = oracles.batch(25 * 8, 64)
  batch = (zimg, ztxt, w, labels)
  assert max(errors(name, "ring", 8, 10.0, batch, axis=("data", "fsdp"))) <= 1e-5
  assert max(errors(name, "ring", 8, 10.0, batch, jnp.bfloat16, axis=("data", "fsdp"))) <= 2e-2


@EACH
@pytest.mark.parametrize("impl", ["ring", "gather"])
def test_the_value_alone_as_evaluation_takes_it(name, impl):
  loss, oracle, _ = LOSSES[name]
  zimg, ztxt, _, _ = oracles.batch(25 * 8, 16)
  value = jax.jit(functools.partial(loss, mesh=line(8), impl=impl, tile=TILE))(
    *(jnp.float32(x) for x in (zimg, ztxt, 10.0, -3.0))
  )
  want = oracle(zimg, ztxt, 10.0, -3.0)[0]
  assert abs(value - want) <= 1e-5 * abs(want)


@EACH
@pytest.mark.parametrize("impl", ["dense", "ring", "gather"])
def test_weight_zero_removes_an_example_from_rows_and_columns(name, impl):
  zimg, ztxt, w, labels = oracles.batch(50, 64)
  w[[3, 30]] = 0
  keep = w > 0
  want, want_grads = LOSSES[name][1](zimg[keep], ztxt[keep], 10.0, -3.0, w[keep], labels[keep])
  # Whatever a removed example holds
  zimg[3], ztxt[3], zimg[30], ztxt[30] = (
    np.nan,
    5 * ztxt[3],
    -np.inf,
    np.nan,
  )
  value, grads = compiled(name, impl, 2)[0](
    *(jnp.float32(x) for x in (zimg, ztxt, 10.0, -3.0, w)), jnp.int32(labels)
  )
  assert abs(value - 3 * want) <= 1e-5 * abs(3 * want)
  for got, x in zip(grads, want_grads):
    got = np.asarray(got)
    assert (
      np.abs(got[keep] - 3 * x if got.ndim else got - 3 * x).max() <= 1e-5 * np.abs(3 * x).max()
    )
    assert not got.ndim or not got[~keep].any()


@EACH
@pytest.mark.parametrize("impl", ["dense", "ring", "gather"])
def test_a_batch_of_weights_zero_has_the_loss_zero(name, impl):
  zimg, ztxt, w, labels = oracles.batch(50, 64)
  zimg[3] = np.nan
  value, grads = compiled(name, impl, 2)[0](
    *(jnp.float32(x) for x in (zimg, ztxt, 10.0, -3.0, 0 * w)), jnp.int32(labels)
  )
  assert value == 0 and not any(np.asarray(g).any() for g in grads)


@EACH
@pytest.mark.parametrize("impl", ["dense", "ring", "gather"])
def test_weights_of_any_size(name, impl):
  zimg, ztxt, w, labels = oracles.batch(50, 64)
  exact = lambda w: w.astype(np.float32).astype(np.float64)
  for size in (1e-18, 1e-25, 1e-38, 1e-42, 1e30):  # 1e-42 is subnormal, with ten bits
    some = np.where(np.arange(50) % 3 == 0, size, 1) * w
    assert max(errors(name, impl, 2, 100.0, (zimg, ztxt, exact(some), labels))) <= 1e-5
    # Elsewhere the gradients themselves are below all floats
    if name in ("softmax", "hinge_hardest") or size > 1e-30:
      assert max(errors(name, impl, 2, 100.0, (zimg, ztxt, exact(size * w), labels))) <= 1e-5


@pytest.mark.parametrize("impl", ["dense", "ring", "gather"])
def test_a_light_weight_counts_where_its_logit_is_the_largest(impl):
  """exp(100) of the largest logit times 1e-38 is as much as the others' exp(12)."""
  zimg, ztxt, w, labels = oracles.batch(50, 64)
  ztxt[4], ztxt[7], w[4], w[7] = zimg[0], zimg[1], 1e-38, 1e-25
  assert (
    max(
      errors(
        "softmax", impl, 2, 100.0, (zimg, ztxt, w.astype(np.float32).astype(np.float64), labels)
      )
    )
    <= 1e-5
  )


@EACH
@pytest.mark.parametrize("impl", ["dense", "ring", "gather"])
def test_under_x64_the_results_stay_float32(name, impl):
  loss, oracle, count = LOSSES[name]
  zimg, ztxt, w, labels = oracles.batch(50, 64)
  with jax.enable_x64(True):
    value = lambda *z: loss(
      *z, mesh=line(2), impl=impl, tile=None if impl == "dense" else TILE, weights=w, labels=labels
    )
    arguments = (jnp.float32(zimg), jnp.asarray(ztxt), 10.0, jnp.float64(-3))
    function = jax.jit(jax.value_and_grad(value, tuple(range(count))))
    got, grads = jax.eval_shape(function, *arguments)
    assert got.dtype == grads[0].dtype == jnp.float32
    if name == "softmax":
      got, grads = function(*arguments)
      want, want_grads = oracle(zimg, ztxt, 10.0, -3.0, w, labels)
      for x, y in zip((got, *grads), (want, *want_grads)):
        assert np.abs(np.asarray(x) - y).max() <= 1e-5 * np.abs(y).max()


@BOTH
def test_integer_weight_with_labels_equals_repeating(name):
  zimg, ztxt, _, labels = oracles.batch(25, 64)
  w = np.ones(25)
  w[2] = 3
  repeat = lambda x: np.concatenate([x, x[[2, 2]]])
  want = LOSSES[name][1](repeat(zimg), repeat(ztxt), 10.0, -3.0, None, repeat(labels))[0]
  value, _ = compiled(name, "ring", 1)[0](
    *(jnp.float32(x) for x in (zimg, ztxt, 10.0, -3.0, w)), jnp.int32(labels)
  )
  assert abs(value - 3 * want) <= 1e-5 * abs(3 * want)


def test_two_real_processes_agree_with_float64_and_embed_in_order():
  worker, port = str(pathlib.Path(__file__).parent / "loss_process.py"), str(free_port())
  processes = [
    subprocess.Popen([sys.executable, worker, str(rank), port], stdout=subprocess.PIPE, text=True)
    for rank in range(2)
  ]
  outputs = [process.communicate(timeout=120)[0] for process in processes]
  assert [process.returncode for process in processes] == [0, 0]
  for output in outputs:
    worst = json.loads(output.splitlines()[-1])
    assert len(worst) == 5 and max(worst.values()) <= 1e-5, worst


# What follows reads compiled programs, runs none.


def program(name, impl, D, b, d, tile, extras=False):
  """(function, abstract arguments) of value and gradients over D devices."""
  loss, _, count = LOSSES[name]
  mesh = line(D)
  rows, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
  z = jax.ShapeDtypeStruct((b * D, d), jnp.float32, sharding=rows)
  scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
  weights = jax.ShapeDtypeStruct((b * D,), jnp.float32, sharding=rows) if extras else None
  labels = jax.ShapeDtypeStruct((b * D,), jnp.int32, sharding=rows) if extras else None

  def outer(zimg, ztxt, scale, bias, weights, labels):
    return loss(
      zimg, ztxt, scale, bias, mesh=mesh, impl=impl, tile=tile, weights=weights, labels=labels
    )

  return jax.value_and_grad(outer, argnums=tuple(range(count))), (
    z,
    z,
    scalar,
    scalar,
    weights,
    labels,
  )


@functools.lru_cache(None)
def executable(name, impl, D, b, d, tile, extras=False):
  function, arguments = program(name, impl, D, b, d, tile, extras)
  return jax.jit(function).lower(*arguments).compile()


@BOTH
def test_memory_is_flat_in_devices_and_within_five_copies_of_the_embeddings(name):
  b, d = 2048, 768
  temp = {
    D: executable(name, "ring", D, b, d, 512).memory_analysis().temp_size_in_bytes for D in (4, 8)
  }
  # As docs/losses.md has it
  assert max(temp.values()) <= {"sigmoid": 4.43, "softmax": 4.69}[name] * b * d * 4
  weighted = executable(name, "ring", 8, b, d, 512, extras=True)
  assert weighted.memory_analysis().temp_size_in_bytes <= 5 * b * d * 4
  assert abs(temp[8] / temp[4] - 1) <= 0.02


@EACH
@pytest.mark.parametrize("impl", ["ring", "gather"])
def test_matrix_products_are_at_the_floor(name, impl):
  D, b, d = 8, 64, 32
  count = flops.count(*_flat(program(name, impl, D, b, d, 16, True)))
  trips = 8 if name in ("softmax", "hinge_hardest") else 6
  assert count <= (trips + 0.01) * b * (b * D) * d


@EACH
@pytest.mark.parametrize("impl", ["dense", "ring", "gather"])
def test_float32_products_are_not_rounded_on_any_device(name, impl):
  """Where a device has a fast product of float32, it rounds to bfloat16 or TF32; a CPU has none, so
  its results do not tell.
  """
  function, *arguments = _flat(program(name, impl, 2, 20, 8, None if impl == "dense" else 10, True))
  products = [
    e
    for e in equations(jax.make_jaxpr(function)(*arguments).jaxpr)
    if e.primitive.name == "dot_general"
  ]
  assert len(products) >= 3
  assert all(e.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2 for e in products)


def equations(jaxpr):
  """All of a jaxpr, those of the ones within too."""
  for equation in jaxpr.eqns:
    yield equation
    for inner in jaxprs_in_params(equation.params):
      yield from equations(inner)


def _flat(function_and_arguments):
  function, arguments = function_and_arguments
  return function, *arguments


@BOTH
def test_bytes_sent_round_the_ring(name):
  """Of every permute in the compiled program, times the trips of the loop it stands in."""
  D, b, d, s = 8, 64, 32, 4
  text = executable(name, "ring", D, b, d, 16).as_text()
  sent = permuted_bytes(text, D)
  limit = D * b * d * (s + 4) if name == "sigmoid" else D * b * (2 * d * s + 4 * d + 32)
  trips = 1 if name == "sigmoid" else 2
  least = (D - 1) * b * d * (trips * s + 4)  # texts on each trip, gradients on one
  assert least <= sent <= limit


def permuted_bytes(text, D):
  """Bytes that a device sends in the collective-permutes of an HLO module whose only loop around
  them is the ring's.
  """
  sizes = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "pred": 1}
  computations = re.split(r"\n(?=%|ENTRY)", text)
  entry = next(c for c in computations if c.startswith("ENTRY"))
  total = 0
  for computation in computations:
    trips = 1 if computation is entry else D - 2
    for kind, shape in re.findall(
      r"= \(?(\w+)\[([\d,]*)\]\S* (?:[^=]*\) )?collective-permute(?:-start)?\(", computation
    ):
      total += trips * sizes[kind] * int(np.prod([int(n) for n in shape.split(",") if n]))
  return total


# The choice of impl and tile.


@pytest.mark.parametrize(
  "B, D, want",
  [
    (1024, 8, "dense"),
    (8192, 8, "gather"),
    (32768, 8, "ring"),
    (32768, 1, "ring"),
    (1_048_576, 256, "ring"),
    (114_688, 64, "gather"),
    (131_072, 64, "ring"),  # 12·B·768 bytes are 0.98 and 1.13 of 1/16 of the memory
  ],
)
def test_auto_takes_what_fits(B, D, want):
  class Devices:  # as many as a pod has
    shape, axis_names = {"data": D}, ("data",)

  assert losses.choose(B, 768, Devices, memory=16 * 2**30) == want


@pytest.mark.parametrize(
  "b, d, want",
  [(2048, 768, 512), (4096, 768, 512), (32768, 768, 1024), (1024, 256, 256), (3000, 768, 512)],
)
def test_default_tile_divides_where_it_can(b, d, want):
  assert losses.default_tile(b, d) == want


@pytest.mark.parametrize("impl", ["dense", "ring", "gather"])
def test_a_config_of_every_loss_makes_it(impl):
  zimg, ztxt, _, _ = (jnp.float32(x) for x in oracles.batch(8, 16))
  for name, fields in {
    "sigmoid": {},
    "softmax": {},
    "focal": {"gamma": 1.5},
    "hinge": {"margin": 0.3, "negatives": "hardest"},
  }.items():
    c = config_lib.default().loss
    c.name, c.impl = name, impl
    c.update(fields)
    oracle = getattr(oracles, name)
    want = oracle(*(np.asarray(z, np.float64) for z in (zimg, ztxt)), 10.0, -3.0, **fields)[0]
    assert abs(jax.jit(losses.make(c))(zimg, ztxt, 10.0, -3.0) / want - 1) < 1e-5


# Statistics for the log.


def test_logit_means_equal_those_of_the_matrix():
  zimg, ztxt, w, _ = oracles.batch(9, 4)
  x, ww, off = 7 * zimg @ ztxt.T - 2, np.outer(w, w), ~np.eye(9, dtype=bool)
  want = (np.average(np.diag(x), weights=w), np.average(x[off], weights=ww[off]))
  for size in (1, 1e-25, 1e30):
    got = statistics.logit_means(jnp.array(zimg), jnp.array(ztxt), 7.0, -2.0, jnp.float32(size * w))
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_statistics_leave_out_examples_of_weight_zero():
  zimg, ztxt, w, _ = oracles.batch(9, 4)
  w[[2, 5]] = 0
  keep = w > 0
  x, ww, off = 7 * zimg[keep] @ ztxt[keep].T - 2, np.outer(w[keep], w[keep]), ~np.eye(7, dtype=bool)
  right = np.argmax(x, axis=1) == np.arange(7)
  zimg[2], ztxt[5] = np.nan, np.inf
  z, w32 = (jnp.float32(zimg), jnp.float32(ztxt)), jnp.float32(w)
  want = (np.average(np.diag(x), weights=w[keep]), np.average(x[off], weights=ww[off]))
  np.testing.assert_allclose(statistics.logit_means(*z, 7.0, -2.0, w32), want, rtol=1e-4)
  for size in (1, 1e-25):
    np.testing.assert_allclose(
      statistics.local_accuracy(*z, size * w32), np.average(right, weights=w[keep]), rtol=1e-5
    )
  assert 0 < right.mean() < 1
  assert statistics.norm_error(z[0], w32) < 1e-6 and np.isnan(statistics.norm_error(z[0], w32 + 1))
  absent = statistics.logit_means(*z, 7.0, -2.0, 0 * w32) + (
    statistics.local_accuracy(*z, 0 * w32),
    statistics.norm_error(z[0], 0 * w32),
  )
  assert np.isfinite(absent).all()


@pytest.mark.parametrize("labelled", [False, True])
def test_local_accuracy_tells_apart_the_examples_of_a_block(labelled):
  b, k = 70, statistics.BLOCK  # 6 of each device are in no block
  zimg, ztxt, w, labels = oracles.batch(2 * b, 8)
  w[::5] = 0
  ids = labels if labelled else np.arange(2 * b)
  right, total = 0.0, 0.0
  for start in (0, b):
    block = np.arange(start, start + k)
    alive = block[w[block] > 0]
    for i in alive:
      right += w[i] * (ids[alive[np.argmax(ztxt[alive] @ zimg[i])]] == ids[i])
      total += w[i]
  got = statistics.local_accuracy(
    *(jnp.float32(x) for x in (zimg, ztxt, w)), jnp.int32(labels) if labelled else None, 2
  )
  np.testing.assert_allclose(got, right / total, rtol=1e-5)
  assert 0.05 < right / total < 0.95


# Bad input.


@pytest.mark.parametrize(
  "change, message",
  [
    ({"ztxt": jnp.ones((16, 9))}, r"zimg \(16, 8\) and ztxt \(16, 9\)"),
    ({"impl": "rign"}, "impl='rign' is unknown; known are auto, dense, ring, gather"),
    ({"tile": 0}, "tile=0 must be positive"),
    ({"labels": jnp.ones(16)}, "labels have dtype float32"),
    ({"weights": jnp.ones(17)}, r"weights \(17,\) must have the shape \(16,\)"),
    ({"mesh": "8", "axis": "model"}, "axis='model' is not of the mesh, whose axes are data, fsdp"),
    (
      {"mesh": "8", "zimg": jnp.ones((12, 8)), "ztxt": jnp.ones((12, 8))},
      "a batch of 12 is not divisible by the 8 devices",
    ),
  ],
)
def test_bad_arguments_are_one_line(change, message):
  arguments = dict(zimg=jnp.ones((16, 8)), ztxt=jnp.ones((16, 8)), scale=1.0, bias=0.0) | change
  if "mesh" in change:
    arguments["mesh"] = mesh_lib.make()
  with pytest.raises(ValueError, match=message) as error:
    losses.sigmoid_loss(**arguments)
  assert "\n" not in str(error.value)


def test_unknown_negatives_are_named():
  with pytest.raises(ValueError, match="negatives='some' is unknown; known are all, hardest"):
    losses.hinge_loss(jnp.ones((4, 2)), jnp.ones((4, 2)), negatives="some")


def test_auto_gathers_what_takes_a_sixteenth_of_the_memory():
  """Texts and two copies of their gradients, 12 bytes a number; and below the hop that hides its
  time.
  """

  class Devices:
    shape, axis_names = {"data": 8}, ("data",)

  least = 16 * 12 * 8192 * 768
  assert [losses.choose(8192, 768, Devices, memory=m) for m in (least, least - 1)] == [
    "gather",
    "ring",
  ]
  assert [losses.choose(B, 768, Devices, memory=2**50) for B in (8 * 4095, 8 * 4096)] == [
    "gather",
    "ring",
  ]
  # 362 · 2896 ≤ 2²⁰ < 363 · 2904
  assert [losses.choose(B, 768, Devices, memory=0) for B in (2896, 2904)] == [
    "dense",
    "ring",
  ]

  class Two:
    shape, axis_names = {"data": 2}, ("data",)

  assert losses.choose(8000, 768, Two, memory=2**50) == "gather"
  assert losses.choose(4095, 768, None, memory=2**50) == "ring"  # one device has nothing to gather


# A loss of one's own.


def register_own():
  """The sigmoid loss, and a focal one with a field, as a user writes them."""
  losses.pairwise("own_sigmoid", lambda x, p: jax.nn.softplus(x) - p * x)
  wrong = lambda x, p: jnp.where(p, -x, x)
  losses.pairwise(
    "own_focal",
    lambda x, p, power: jax.nn.sigmoid(wrong(x, p)) ** power * jax.nn.softplus(wrong(x, p)),
    fields={"power": config_lib.Field(2.0, "As gamma of the focal loss.", least=0)},
  )


@pytest.fixture
def registered():
  """Losses of one's own; they, and what a test registers, are taken out again."""
  before = len(parts.registered)
  register_own()
  yield
  parts.withdraw(parts.registered[before:])


def of_config(name, impl, D, tile=None, **fields):
  """The loss that config.loss makes."""
  c = config_lib.default().loss
  c.name, c.impl, c.tile = name, impl, tile
  c.update(fields)
  return losses.make(c, line(D))


@pytest.mark.parametrize(
  "name, oracle, fields",
  [
    ("own_sigmoid", oracles.sigmoid, {}),
    ("own_focal", functools.partial(oracles.focal, gamma=1.5), {"power": 1.5}),
  ],
)
@pytest.mark.parametrize("impl, D", [("dense", 1), ("ring", 1), ("ring", 2), ("ring", 8)])
def test_a_pair_loss_of_ones_own_equals_float64(registered, name, oracle, fields, impl, D):
  zimg, ztxt, w, labels = oracles.batch(25 * D, 16)
  w[3] = 0
  loss = of_config(name, impl, D, None if impl == "dense" else TILE, **fields)
  outer = lambda *scalars, weights, labels: 3 * loss(*scalars, weights=weights, labels=labels)
  function = jax.jit(jax.value_and_grad(outer, (0, 1, 2, 3)))
  for w, labels in ((w, labels), (None, None)):
    arguments = (jnp.float32(x) for x in (zimg, ztxt, 10.0, -3.0))
    optional = {
      "weights": w if w is None else jnp.float32(w),
      "labels": labels if labels is None else jnp.int32(labels),
    }
    got, grads = function(*arguments, **optional)
    want, want_grads = oracle(zimg, ztxt, 10.0, -3.0, w, labels)
    for x, y in zip((got, *grads), (want, *want_grads)):
      assert np.abs(np.asarray(x, np.float64) - 3 * y).max() <= 1e-5 * np.abs(3 * y).max()


def test_autodiff_takes_the_memory_and_the_products_of_the_sigmoid_by_hand(registered):
  b, D, d = 2048, 4, 768
  arguments = program("sigmoid", "ring", D, b, d, 512)[1][:4]
  temp, work = {}, {}
  for name, loss in (
    ("hand", of_config("sigmoid", "ring", D, 512)),
    ("own", of_config("own_sigmoid", "ring", D, 512)),
  ):
    function = jax.value_and_grad(loss, (0, 1, 2, 3))
    temp[name] = jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes
    work[name] = flops.count(function, *arguments)
  assert temp["own"] <= 1.05 * temp["hand"] and work["own"] == work["hand"]


@pytest.mark.parametrize(
  "formula, message",
  [
    (lambda x, p: jnp.sum(x), r"gives float32 \(\) of logits float32 \(2, 3\)"),
    (lambda x, p: x > 0, "gives bool"),
    (lambda x, p: x - jnp.max(x, axis=1, keepdims=True), "mixes pairs"),
  ],
)
def test_a_formula_that_is_none_of_pairs_is_one_line(registered, formula, message):
  with pytest.raises(ValueError, match=message):
    losses.pairwise("wrong", formula)
  assert "wrong" not in losses.LOSSES


def test_names_and_fields_that_are_taken(registered):
  square = lambda x, p, **options: jnp.square(x - p)
  with pytest.raises(ValueError, match="there is a loss 'hinge' already"):
    losses.pairwise("hinge", square)
  with pytest.raises(ValueError, match="declares the field 'gamma' otherwise"):
    losses.pairwise("other", square, fields={"gamma": config_lib.Field(1.0, "Another.")})
  losses.pairwise("other", square, fields={"tile": config_lib.Field(1, "Taken.")})
  with pytest.raises(ValueError, match="the field 'tile', which config.loss has already"):
    config_lib.default()
