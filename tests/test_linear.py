"""Gradients of weights in float32, of towers in bfloat16."""

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
import test_losses

from siglax import config as config_lib
from siglax.data.text import TextProcessor
from siglax.devices import mesh as mesh_lib
from siglax.devices import paths
from siglax.models import linear
from siglax.training import program as program_lib

import tiny


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
  graphdef, state = nnx.split(layer)

  def pull_back(state, x, dy):
    y, pull = jax.vjp(lambda state, x: nnx.merge(graphdef, state)(x), state, x)
    return y, *pull(dy)

  mesh = mesh_lib.make()
  rows = NamedSharding(mesh, P(mesh_lib.BATCH_AXES))
  jitted = jax.jit(pull_back, in_shardings=(None, rows, rows))
  y, gradients, dx = jitted(state, x, dy)
  wide = lambda a: np.asarray(a).astype(np.float64).reshape(-1, a.shape[-1])
  for name, want in (("kernel", wide(x).T @ wide(dy)), ("bias", wide(dy).sum(0))):
    got = gradients[name][...]
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * np.abs(want).max())
  kernel = np.asarray(layer.kernel[...].astype(jnp.bfloat16)).astype(np.float64)
  assert y.dtype == dx.dtype == jnp.bfloat16
  np.testing.assert_allclose(wide(y), wide(x) @ kernel, rtol=2**-8, atol=2**-8)
  if not rank:
    np.testing.assert_allclose(wide(dx), wide(dy) @ kernel.T, rtol=2**-8, atol=2**-7)


@pytest.mark.parametrize("remat", ["none", "dots"])
def test_no_weight_of_a_block_has_a_gradient_that_was_rounded(remat):
  config = config_lib.load(tiny.__file__)
  config.train.dtype = "bfloat16"
  # Shapes that no activation has.
  config.batch_size, config.model.image.mlp_dim, config.model.text.mlp_dim = 32, 40, 56
  config.train.remat.image = config.train.remat.text = remat
  program = program_lib.Program(config_lib.resolve(config, TextProcessor()), 64)
  with jax.set_mesh(program.mesh):
    jaxpr = program.update().trace(program.abstract_state, program.abstract_batch()).jaxpr
  shapes = {
    leaf.shape[paths.is_stacked(name) :]
    for name, leaf in paths.flatten(program.abstract_state.params).items()
    if name.endswith("kernel") and "/blocks/" in name
  }
  rounded = [
    str(e)
    for e in test_losses.equations(jaxpr.jaxpr)
    if e.primitive.name == "convert_element_type"
    and e.invars[0].aval.dtype == jnp.bfloat16
    and e.outvars[0].aval.dtype == jnp.float32
    and e.outvars[0].aval.shape in shapes
  ]
  products = [
    e.outvars[0].aval
    for e in test_losses.equations(jaxpr.jaxpr)
    if e.primitive.name == "dot_general" and e.outvars[0].aval.shape in shapes
  ]
  assert len(shapes) > 3 and not rounded
  assert len(products) >= 12 and {p.dtype.name for p in products} == {"float32"}
