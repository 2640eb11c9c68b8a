"""Slices of devices with a slow network between them: the ring that crosses it once a round, and
what the compiled step sends through it. On eight devices as 2 × 4 and 4 × 2.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from siglax import config as config_lib
from siglax import losses
from siglax.costs import collectives
from siglax.costs import hlo
from siglax.costs import plan
from siglax.costs import table
from siglax.data.text import TextProcessor
from siglax.devices import mesh as mesh_lib
from siglax.devices import paths
from siglax.losses.layout import Layout
from siglax.training import program as program_lib

import oracles
import tiny

D, WIDTH, TILE = 8, 16, 3
MASKED = {"kept_negatives": "hardest", "negatives_per_pair": 3.3}
# name: fields of config.loss, its oracle, how many of zimg, ztxt, scale, bias it depends on
LOSSES = {
  "sigmoid": ({}, oracles.sigmoid, 4),
  "softmax": ({}, oracles.softmax, 3),
  "hinge": (
    {"negatives": "hardest"},
    functools.partial(oracles.hinge, negatives="hardest"),
    2,
  ),
  "sigmoid_masked": (
    MASKED,
    functools.partial(oracles.sigmoid_masked, kept="hardest", ratio=3.3),
    4,
  ),
}


def line():
  return Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType.Auto,))


def value_and_grad(name, slices, tile=None):
  fields, _, count = LOSSES[name]
  c = config_lib.default().loss
  c.update(name=name, impl="ring", tile=tile, **fields)
  loss = losses.make(c, line(), slices=slices)
  return jax.jit(jax.value_and_grad(loss, tuple(range(count))))


@pytest.mark.parametrize(
  "name, slices",
  [
    ("sigmoid", 2),
    ("sigmoid", 4),
    ("sigmoid", 8),
    ("softmax", 2),
    ("softmax", 4),
    ("hinge", 4),
    ("sigmoid_masked", 2),
  ],
)
def test_value_and_gradients_equal_float64(name, slices):
  """Seven examples on a device, in overlapping tiles, with weights, some of them 0, and labels."""
  zimg, ztxt, w, labels = oracles.batch(7 * D, WIDTH)
  w[[3, 20]] = 0
  function = value_and_grad(name, slices, TILE)
  got, grads = function(
    *(jnp.float32(x) for x in (zimg, ztxt, 10.0, -3.0)),
    weights=jnp.float32(w),
    labels=jnp.int32(labels),
  )
  want, want_grads = LOSSES[name][1](zimg, ztxt, 10.0, -3.0, w, labels)
  for x, y in zip((got, *grads), (want, *want_grads)):
    assert np.abs(np.asarray(x, np.float64) - y).max() <= 1e-5 * np.abs(y).max()


@functools.lru_cache(None)
def executable(name, slices, b=5, tile=None):
  """Compiled value and gradients of b examples on a device; its HLO text."""
  rows, whole = NamedSharding(line(), P("data")), NamedSharding(line(), P())
  z = jax.ShapeDtypeStruct((b * D, WIDTH), jnp.float32, sharding=rows)
  scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
  return value_and_grad(name, slices, tile).lower(z, z, scalar, scalar).compile().as_text()


def crosses(instruction, places):
  """Whether a collective-permute goes from slice to slice; all of its devices do then, or none."""
  ways = {
    source // places != target // places
    for source, target in collectives._pairs(instruction.attributes)
  }
  assert len(ways) == 1
  return ways.pop()


@pytest.mark.parametrize("slices", [2, 4, 8])
def test_a_device_sends_its_share_of_texts_and_gradients_to_other_slices(slices):
  """(S − 1)/S of the texts of the batch, and of their gradients, over the D/S devices of a slice:
  S − 1 times b examples a device, each way.
  """
  b = 5
  text = executable("sigmoid", slices, b)
  permutes = {"collective-permute": collectives.read(text, D)["collective-permute"]}
  assert collectives.crossing(permutes, D // slices) == (slices - 1) * 2 * b * WIDTH * 4
  flat = collectives.read(executable("sigmoid", 1, b), D)
  # The devices at the edges of a slice send every hop across.
  assert collectives.crossing(flat, D // slices) >= (D - 1) * 2 * b * WIDTH * 4


@pytest.mark.parametrize("slices", [2, 4])
def test_two_trips_send_the_texts_at_most_twice(slices):
  """And once the gradients; the softmax's two sums of a text come back from the first trip, and go
  out on the second.
  """
  b = 5
  found = collectives.read(executable("softmax", slices, b), D)["collective-permute"]
  sent = collectives.crossing({"collective-permute": found}, D // slices)
  hops, sums = (slices - 1) * b * 4, 2 + 2
  # XLA may send the texts of both trips once where they cross outside of a loop.
  assert hops * (2 * WIDTH + sums) <= sent <= hops * (3 * WIDTH + sums)


@pytest.mark.parametrize("slices", [2, 4])
def test_what_crosses_is_not_waited_for(slices):
  """Beside each hop between slices the program has products that neither need what arrives nor make
  what is sent, and that come after those that did make it. (Texts need no product.)

  In several tiles, the products of a device and those of the texts before it are loops that hand
  the sums of the images on, so one that waits makes all later ones wait.
  """
  program, places = hlo.Program(executable("sigmoid", slices, tile=2)), D // slices
  hops = 0
  for computation in program.computations.values():
    products = {name for name, of in computation.instructions.items() if multiplies(program, of)}
    users = lambda of, found=computation.users: [use.name for use in found.get(of.name, ())]
    for name, instruction in computation.instructions.items():
      if instruction.opcode == "collective-permute" and crosses(instruction, places):
        before = reached(computation, [name], lambda of: of.operands)
        after = reached(computation, [name], users)
        made = products & before
        later = reached(computation, made, users) & products if made else products
        assert later - before - after, name
        hops += 1
  assert hops == 2 * (slices - 1)


def multiplies(program, instruction) -> bool:
  """Whether it is a product of matrices, or has one in what it calls."""
  if instruction.opcode == "dot":
    return True
  called = (program.computations[name] for name, _ in instruction.calls())
  return any(multiplies(program, of) for body in called for of in body.instructions.values())


def reached(computation, names, neighbours) -> set[str]:
  """What can be reached from instructions within their computation."""
  found, left = set(), list(names)
  while left:
    of = computation.instructions.get(left.pop())
    new = [] if of is None else [n for n in neighbours(of) if n not in found]
    found.update(new)
    left.extend(new)
  return found


@pytest.mark.parametrize("slices", [2, 4])
def test_memory_stays_a_few_times_the_texts_of_a_device(slices):
  """Beside what a ring of one slice keeps: texts and states that cross, and the state of those that
  stay at home.
  """
  b, d = 512, 256
  c = config_lib.default().loss
  c.update(name="sigmoid", impl="ring", tile=128)
  loss = jax.jit(jax.value_and_grad(losses.make(c, line(), slices=slices), (0, 1, 2, 3)))
  z = jax.ShapeDtypeStruct((b * D, d), jnp.float32, sharding=NamedSharding(line(), P("data")))
  scalar = jax.ShapeDtypeStruct((), jnp.float32)
  compiled = loss.lower(z, z, scalar, scalar).compile()
  assert compiled.memory_analysis().temp_size_in_bytes <= 14 * b * d * 4


@pytest.fixture(scope="module")
def batches():
  """Twenty of 16 examples, on the host."""
  rng = np.random.default_rng(0)
  return [
    {
      "image": rng.integers(0, 256, (16, 16, 16, 3), np.uint8),
      "tokens": rng.integers(0, 100, (16, 12)).astype(np.int32),
      "label": rng.integers(0, 5, 16).astype(np.int32),
      "weight": rng.uniform(0.5, 2, 16).astype(np.float32),
    }
    for _ in range(20)
  ]


def train(batches, **fields):
  """(losses, parameters) of a training on these batches."""
  c = tiny.get_config(steps=20)
  c.loss.impl = "ring"
  for name, value in fields.items():
    config_lib.set_field(c, f"mesh.{name}", value)
  program = program_lib.Program(config_lib.resolve(c, TextProcessor()), 64)
  with jax.set_mesh(program.mesh):
    make = lambda: program.create(program.model.init(jax.random.key(0)))
    shardings = jax.tree.map(lambda x: x.sharding, program.abstract_state)
    state, found = jax.jit(make, out_shardings=shardings)(), []
    for batch in batches:
      state, metrics = program.update()(state, mesh_lib.to_global(program.mesh, batch))
      found.append(float(metrics["loss"]))
  return np.array(found), jax.tree.map(np.asarray, state.params)


@pytest.fixture(scope="module")
def one_slice(batches):
  return train(batches)


@pytest.mark.parametrize("fsdp", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_twenty_steps_of_two_slices_are_those_of_one(batches, one_slice, fsdp, monkeypatch):
  """Losses and parameters, which lie in shards over fsdp. Not the biases of keys: attention does
  not depend on them, so that their gradient, and Adam's step, is rounding alone.
  """
  monkeypatch.setattr(mesh_lib, "FSDP_MIN_ELEMENTS", 0)
  (losses_of_one, params_of_one), (found, params) = one_slice, train(batches, slices=2, fsdp=fsdp)
  np.testing.assert_allclose(found, losses_of_one, rtol=1e-6)
  got, want = paths.flatten(params), paths.flatten(params_of_one)
  for name in want:
    if not name.endswith("attention/key/bias"):
      np.testing.assert_allclose(got[name], want[name], rtol=0, atol=1e-6, err_msg=name)


def test_a_plan_tells_what_crosses():
  """By hand: a slice of 4 devices shares what it has to exchange of the gradients' sum, n bytes:
  2·n·(1 − 1/2) / 4 a device. On the ring b texts, their gradients and weights cross once.
  """
  c = tiny.get_config()
  c.loss.impl, c.mesh.slices, c.eval.tasks = "ring", 2, ()
  report = plan.plan(c, D, ("H100",))
  slices, chip = report["slices"], report["chips"]["H100"]
  b, width = c.batch_size // D, report["embed_dim"]
  assert (slices["count"], slices["devices"]) == (2, 4)
  assert slices["sent"]["collective-permute"] == b * (2 * width + 1) * 4
  summed = report["collectives"]["all-reduce"]["payload"]
  assert slices["sent"]["all-reduce"] == pytest.approx(summed / 4)
  assert (chip["domain"], chip["domains"]) == (4, 2)
  assert chip["crossing_bytes"] == pytest.approx(sum(slices["sent"].values()))
  words = dict(table._rows(report))["between slices"]
  assert words.startswith("2 slices of 4 devices; a device sends ") and "in all-reduce" in words


def test_each_slice_is_a_block_of_the_mesh():
  ids = lambda *sizes: [[device.id for device in row] for row in mesh_lib.make(*sizes).devices]
  assert ids(4, 2, 2) == [[0, 1], [2, 3], [4, 5], [6, 7]]
  assert ids("rest", 4, "auto") == [[0, 1, 2, 3], [4, 5, 6, 7]]
  assert mesh_lib.count_slices("auto") == 1 and mesh_lib.count_slices(4) == 4


class Device:
  """One of a machine or a TPU pod, as jax tells of it."""

  def __init__(self, number, slice_index, process_index, platform="gpu"):
    self.id, self.slice_index, self.process_index = number, slice_index, process_index
    self.platform, self.device_kind, self.client = platform, "H100", None

  def __repr__(self):
    return f"{self.slice_index}.{self.process_index}.{self.id}"


def test_what_the_devices_tell_of_slices(monkeypatch):
  """Four machines of two GPUs, whose devices jax may list in any order."""
  devices = [Device(i, i % 4, i % 4) for i in range(8)]
  monkeypatch.setattr(jax, "devices", lambda: devices)
  assert [mesh_lib.count_slices(of) for of in ("auto", 1, 2, 4, 8)] == [4, 1, 2, 4, 8]
  with pytest.raises(
    ValueError, match="config.mesh.slices=3, but the devices lie in 4 slices of 2"
  ):
    mesh_lib.count_slices(3)
  for device in devices:
    device.platform = "tpu"
  with pytest.raises(
    ValueError, match="config.mesh.slices=2, but the devices lie in 4 slices of 2"
  ):
    mesh_lib.count_slices(2)
  devices.pop()
  with pytest.raises(ValueError, match="4 slices of 1 and 2 devices; use config.mesh.slices=auto"):
    mesh_lib.count_slices("auto")


def test_slices_that_do_not_divide_are_one_line():
  with pytest.raises(
    ValueError, match="config.mesh.data=4 is not divisible by config.mesh.slices=8"
  ):
    mesh_lib.make(4, 2, 8)
  with pytest.raises(
    ValueError, match=r"slices=3 do not divide the 8 devices .*config.mesh.slices"
  ):
    Layout(line(), slices=3).check(8)
