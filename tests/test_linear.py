"""Gradients of weights in float32, of towers in bfloat16."""

import math

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict
import numpy as np
import pytest
import test_losses

from siglax import config as config_lib
from siglax.data.text import TextProcessor
from siglax.devices import mesh as mesh_lib
from siglax.devices import paths
from siglax.models import linear
from siglax.models import transformer
from siglax.training import program as program_lib

import tiny


def wide(rows):
  """Rows as float64, in one axis."""
  return np.asarray(rows).astype(np.float64).reshape(-1, rows.shape[-1])


def pulled_back(layer, x, dy):
  """(y, gradients of the parameters, dx), the rows x divided among eight devices."""
  graphdef, state = nnx.split(layer)

  def pull_back(state, x, dy):
    y, pull = jax.vjp(lambda state, x: nnx.merge(graphdef, state)(x), state, x)
    return y, *pull(dy)

  rows = NamedSharding(mesh_lib.make(), P(mesh_lib.BATCH_AXES))
  return jax.jit(pull_back, in_shardings=(None, rows, rows))(state, x, dy)


@pytest.mark.parametrize("rank", [0, 2])
def test_gradients_over_eight_devices_are_the_exact_sums(rank):
  """Of bfloat16 rows, against float64; a sum that is rounded on each device is 2e-3 off."""
  rng = np.random.default_rng(rank)
  x, dy = (rng.normal(size=(32, 5, d)).astype(jnp.bfloat16) for d in (24, 16))
  make, more = (
    (linear.LoRALinear, {"lora_rank": rank, "lora_dtype": jnp.bfloat16})
    if rank
    else (linear.Linear, {})
  )
  layer = make(24, 16, dtype=jnp.bfloat16, rngs=nnx.Rngs(0), **more)
  y, gradients, dx = pulled_back(layer, x, dy)
  for name, want in (("kernel", wide(x).T @ wide(dy)), ("bias", wide(dy).sum(0))):
    got = gradients[name][...]
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * np.abs(want).max())
  kernel = np.asarray(layer.kernel[...].astype(jnp.bfloat16)).astype(np.float64)
  assert y.dtype == dx.dtype == jnp.bfloat16
  np.testing.assert_allclose(wide(y), wide(x) @ kernel, rtol=2**-8, atol=2**-8)
  if not rank:
    np.testing.assert_allclose(wide(dx), wide(dy) @ kernel.T, rtol=2**-8, atol=2**-7)


def test_patches_are_a_convolution_whose_gradient_is_the_exact_sum():
  """Of pictures with pixels beyond the last whole patch, which no patch has."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(32, 9, 8, 3)).astype(jnp.bfloat16)
  dy = rng.normal(size=(32, 3, 4, 16)).astype(jnp.bfloat16)
  layer = linear.Patches(3, 16, (3, 2), (3, 2), dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
  y, gradients, dx = pulled_back(layer, x, dy)
  kernel = np.asarray(layer.kernel[...].astype(jnp.bfloat16)).astype(np.float64)
  want, of_x, of_kernel = np.zeros(dy.shape), np.zeros(x.shape), np.zeros(kernel.shape)
  pixels, cotangents = (np.asarray(a).astype(np.float64) for a in (x, dy))
  for i, j in np.ndindex(3, 4):
    at = np.s_[:, 3 * i : 3 * i + 3, 2 * j : 2 * j + 2]
    want[:, i, j] = np.einsum("npqc,pqce->ne", pixels[at], kernel)
    of_x[at] = np.einsum("ne,pqce->npqc", cotangents[:, i, j], kernel)
    of_kernel += np.einsum("npqc,ne->pqce", pixels[at], cotangents[:, i, j])
  for name, exact in (("kernel", of_kernel), ("bias", wide(dy).sum(0))):
    got = gradients[name][...]
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, exact, rtol=0, atol=1e-6 * np.abs(exact).max())
  assert y.dtype == dx.dtype == jnp.bfloat16
  np.testing.assert_allclose(wide(y), wide(want), rtol=2**-8, atol=2**-8)
  np.testing.assert_allclose(wide(dx), wide(of_x), rtol=2**-8, atol=2**-7)


def test_nothing_is_computed_for_a_gradient_that_nobody_asks_for():
  """Of parameters alone there are two products, of rows alone too; of a frozen layer one."""
  layer = linear.Patches(3, 16, (2, 2), (2, 2), dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
  graphdef, state = nnx.split(layer)
  x = jnp.ones((4, 4, 4, 3), jnp.bfloat16)
  value = lambda state, x: nnx.merge(graphdef, state)(x).astype(jnp.float32).sum()
  counts = {}
  for argnums in (0, 1, (0, 1)):
    jaxpr = jax.make_jaxpr(jax.grad(value, argnums))(state, x)
    found = list(test_losses.equations(jaxpr.jaxpr))
    counts[argnums] = sum(e.primitive.name == "dot_general" for e in found)
  assert counts == {0: 2, 1: 2, (0, 1): 3}


@pytest.mark.parametrize("remat", ["none", "dots"])
def test_no_weight_has_a_gradient_that_was_rounded(remat):
  config = config_lib.load(tiny.__file__)
  config.train.dtype = "bfloat16"
  # Shapes that no activation has.
  config.batch_size, config.model.image.mlp_dim, config.model.text.mlp_dim = 32, 40, 56
  config.train.remat.image = config.train.remat.text = remat
  program = program_lib.Program(config_lib.resolve(config, TextProcessor()), 64)
  with jax.set_mesh(program.mesh):
    jaxpr = program.update().trace(program.abstract_state, program.abstract_batch()).jaxpr
  shapes, of_positions = set(), set()
  for name, leaf in paths.flatten(program.abstract_state.params).items():
    if name.endswith("pos_embedding"):
      of_positions.add(leaf.shape)
    elif name.endswith("kernel"):
      shape = leaf.shape[paths.is_stacked(name) :]
      shapes.add((math.prod(shape[:-1]), shape[-1]))
  rounded = [
    str(e)
    for e in test_losses.equations(jaxpr.jaxpr)
    if e.primitive.name == "convert_element_type"
    and e.invars[0].aval.dtype == jnp.bfloat16
    and e.outvars[0].aval.dtype == jnp.float32
    and e.outvars[0].aval.shape in shapes | of_positions
  ]
  products = [
    e.outvars[0].aval
    for e in test_losses.equations(jaxpr.jaxpr)
    if e.primitive.name == "dot_general" and e.outvars[0].aval.shape in shapes
  ]
  assert len(shapes) > 3 and len(of_positions) == 2 and not rounded
  assert len(products) >= 12 and {p.dtype.name for p in products} == {"float32"}


def test_rematerialisation_gathers_no_kernel_more_often():
  """Over mesh.fsdp: each of a block's six is gathered for the forward and for the backward pass."""
  mesh = mesh_lib.make(4, 2)
  shape = transformer.Shape(64, 2, 4, 256, "gelu_tanh", 1e-6)
  rows = NamedSharding(mesh, P(mesh_lib.BATCH_AXES))
  x = jax.ShapeDtypeStruct((32, 32, 64), jnp.bfloat16, sharding=rows)
  for remat in ("dots", "attn_mlp", "full"):
    config = ConfigDict(
      {"dtype": "bfloat16", "dropout": 0.0, "scan": True, "remat": remat, "lora_rank": 0}
      | {"attention": "xla"}
    )
    graphdef, state = nnx.split(transformer.Encoder(shape, config, nnx.Rngs(0)))
    loss = lambda state, x: nnx.merge(graphdef, state)(x).astype(jnp.float32).sum()
    split = lambda p: NamedSharding(mesh, P(None, "fsdp") if p.ndim == 3 else P())
    state = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=split(p)), state)
    with jax.set_mesh(mesh):
      text = str(jax.jit(jax.grad(loss)).lower(state, x).compile().as_text())
    assert text.count(" all-gather(") == 12, remat
