"""Checkpoints: exact, on any mesh, and never silently wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from siglax import checkpoint
from siglax import config as config_lib
from siglax import mesh as mesh_lib
from siglax import state as state_lib


def options(**fields):
  c = config_lib.default().checkpoint
  for k, v in fields.items():
    c[k] = v
  return c


def state(mesh, k):
  rows = jax.device_put(np.random.default_rng(k).normal(size=(16, 8)).astype(np.float32), mesh_lib.batch_sharding(mesh))
  return {"params": {"w": rows, "half": jnp.arange(6, dtype=jnp.bfloat16) + k}, "step": jnp.int32(k)}


def abstract(mesh, tree):
  sharding = {2: mesh_lib.batch_sharding(mesh)}
  return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.get(x.ndim, mesh_lib.replicated(mesh))), tree
  )


@pytest.fixture
def run(tmp_path):
  """Checkpoints of steps 2, 4 and 6 on 8 devices, saved and closed."""
  mesh = mesh_lib.make()
  saving = checkpoint.Checkpoints(tmp_path, options(keep_latest=3))
  for k in (2, 4, 6):
    saving.save(k, state(mesh, k), {"config": "{}"})
  saving.close()
  return tmp_path


def same(a, b):
  return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


def damage(folder, step):
  """Flips one bit in the middle of the largest data file of a checkpoint."""
  file = max((folder / "checkpoints" / str(step) / "state").rglob("d/*"), key=lambda f: f.stat().st_size)
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 1
  file.write_bytes(data)


def test_restores_bit_for_bit_on_another_mesh(run):
  other = mesh_lib.make(2, 4)
  reading = checkpoint.Checkpoints(run)
  restored, meta = reading.restore(abstract(other, state(other, 6)))
  assert same(restored, state(other, 6)) and meta["step"] == 6
  part, _ = checkpoint.Checkpoints(run).restore({"params": abstract(other, state(other, 6))["params"]})
  assert same(part["params"], state(other, 6)["params"])


def test_damage_is_found_and_the_checkpoint_before_is_used(run, caplog):
  mesh = mesh_lib.make()
  damage(run, 6)
  (run / "checkpoints" / "4" / "state" / "manifest.ocdbt").write_bytes(b"")
  writing = checkpoint.Checkpoints(run, options(keep_latest=3))
  restored, meta = writing.restore(abstract(mesh, state(mesh, 2)))
  assert meta["step"] == 2 and same(restored, state(mesh, 2))
  assert "checkpoint of step 6 is damaged" in caplog.text and "checkpoint of step 4 is damaged" in caplog.text
  writing.save(4, state(mesh, 4), {})  # the damaged newer ones are out of the way
  writing.close()
  assert checkpoint.Checkpoints(run).steps == [2, 4]


def test_all_damaged_is_an_error_and_none_is_none(run, tmp_path_factory):
  mesh = mesh_lib.make()
  for k in (2, 4, 6):
    damage(run, k)
  with pytest.raises(ValueError, match="no checkpoint in .* is good; the newest, of step 6") as error:
    checkpoint.Checkpoints(run).restore(abstract(mesh, state(mesh, 6)))
  assert "\n" not in str(error.value)
  empty = checkpoint.Checkpoints(tmp_path_factory.mktemp("empty"), options())
  assert empty.restore(abstract(mesh, state(mesh, 6))) is None


def digest_of(x):
  """Σ_k bits_k·(2k + 1) mod 2³² in whole numbers."""
  bits = np.asarray(x).reshape(-1).view(f"uint{8 * x.dtype.itemsize}")
  return sum(int(value) * (2 * k + 1) for k, value in enumerate(bits)) % 2**32


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32, jnp.uint8, jnp.bool_])
def test_digest_sees_every_element_whatever_the_sharding(dtype):
  x = np.random.default_rng(0).integers(0, 2, (16, 3, 2)).astype(dtype)
  flipped = []
  for k in range(x.size):  # the highest bit, which an even weight would push out of the sum
    y = x.copy()
    y.reshape(-1).view(f"uint{8 * x.dtype.itemsize}")[k] ^= 1 if dtype == jnp.bool_ else 1 << 8 * x.dtype.itemsize - 1
    flipped.append(y)
  reversed_, scalar = x[::-1].copy(), x[3, 1, 0]
  leaves = [x, jax.device_put(x, mesh_lib.batch_sharding(mesh_lib.make())), *flipped, reversed_, scalar]
  found = list(checkpoint.digest(leaves).values())
  assert found == [digest_of(leaf) for leaf in leaves]
  assert found[0] == found[1] and found[0] not in found[2:]


def test_every_leaf_of_a_state_is_under_the_digest(tmp_path):
  """The moments too: exact, by name, and noticed when one of their bits flips on the disk."""
  mesh, params = mesh_lib.make(), state(mesh_lib.make(), 1)["params"]
  whole = state_lib.create({"w": params["w"]}, optax.adam(0.1), ema=True)
  names = {"step", "params/w", "opt_state/0/count", "opt_state/0/mu/w", "opt_state/0/nu/w", "ema/w"}
  moved = jax.tree.map(lambda x: x.at[(0,) * x.ndim].add(1), whole)
  found, after = checkpoint.digest(whole), checkpoint.digest(moved)
  assert found.keys() == names and all(found[name] != after[name] for name in names)
  saving = checkpoint.Checkpoints(tmp_path, options())
  nothing = jnp.zeros((4096,))  # so that the moment is the largest file
  large = {"params": {"w": nothing}, "opt_state": jax.random.normal(jax.random.key(0), (4096,))}
  saving.save(1, large, {})
  saving.close()
  like = abstract(mesh, large)
  assert same(checkpoint.Checkpoints(tmp_path).restore(like)[0], large)
  damage(tmp_path, 1)
  with pytest.raises(ValueError, match="opt_state"):
    checkpoint.Checkpoints(tmp_path).restore(like)


def test_what_is_kept(tmp_path):
  mesh = mesh_lib.make()
  kept = options(keep_latest=1, keep_every_steps=4, keep_best="eval/a/acc1")
  saving = checkpoint.Checkpoints(tmp_path, kept)
  for k, accuracy in ((2, 0.9), (4, 0.1), (6, 0.2), (7, None), (9, None)):
    saving.save(k, state(mesh, k), {}, accuracy and {"eval/a/acc1": accuracy})
  saving.wait()
  assert saving.steps == [2, 4, 9]
  saving.close()


def test_a_save_holds_what_was_given_although_the_step_overwrites_it(tmp_path):
  saving = checkpoint.Checkpoints(tmp_path, options())
  step = jax.jit(lambda x: x + 1, donate_argnums=0)
  x = jnp.zeros((512, 512))
  for k in range(1, 4):
    x = step(x)
    saving.save(k, {"params": x}, {})
    x = step(x)
  saving.close()
  like = {"params": jax.ShapeDtypeStruct((512, 512), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))}
  restored, meta = checkpoint.Checkpoints(tmp_path).restore(like)  # its digest was of what was given
  assert meta["step"] == 3 and float(restored["params"][0, 0]) == 5


def test_the_digest_of_more_elements_than_32_bits_count():
  assert jax.eval_shape(checkpoint.leaf_digest, jax.ShapeDtypeStruct((2, 2**17, 2**17), jnp.float32)).dtype == jnp.uint32


def test_a_step_that_is_on_the_disk_is_not_saved_again(run):
  saving = checkpoint.Checkpoints(run, options(keep_latest=3))
  for step in (6, 5):
    with pytest.raises(ValueError, match=f"checkpoint of step {step} was not saved: 6 is already on disk"):
      saving.save(step, state(mesh_lib.make(), step), {})
  assert saving.steps == [2, 4, 6]
  saving.close()
