"""Checkpoints: exact, on any mesh, and never silently wrong."""

import errno
import os
import pathlib

from faults import inject
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from siglax import config as config_lib
from siglax.config import values
from siglax.devices import errors
from siglax.devices import mesh as mesh_lib
from siglax.runs import checkpoint
from siglax.runs import digest
from siglax.runs import quiet
from siglax.runs import stored
from siglax.training import state as state_lib


def options(**fields):
  c = config_lib.default().checkpoint
  for k, v in fields.items():
    c[k] = v
  return c


def state(mesh, k):
  rows = jax.device_put(
    np.random.default_rng(k).normal(size=(16, 8)).astype(np.float32), mesh_lib.batch_sharding(mesh)
  )
  whole = jax.device_put(
    {"half": jnp.arange(6, dtype=jnp.bfloat16) + k, "step": jnp.int32(k)}, mesh_lib.replicated(mesh)
  )
  return {"params": {"w": rows, "half": whole["half"]}, "step": whole["step"]}


def abstract(mesh, tree):
  sharding = {2: mesh_lib.batch_sharding(mesh)}
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=sharding.get(x.ndim, mesh_lib.replicated(mesh))
    ),
    tree,
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
  return all(
    np.asarray(x).tobytes() == np.asarray(y).tobytes()
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b))
  )


def damage(folder, step):
  """Flips one bit in the middle of the largest data file of a checkpoint."""
  file = max(
    (folder / "checkpoints" / str(step) / "state").rglob("d/*"), key=lambda f: f.stat().st_size
  )
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 1
  file.write_bytes(data)


def test_restores_bit_for_bit_on_another_mesh(run):
  other = mesh_lib.make(2, 4)
  reading = stored.Stored(run)
  restored, meta = reading.restore(abstract(other, state(other, 6)))
  assert same(restored, state(other, 6)) and meta["step"] == 6
  part, _ = stored.Stored(run).restore({"params": abstract(other, state(other, 6))["params"]})
  assert same(part["params"], state(other, 6)["params"])


def test_damage_is_found_and_the_checkpoint_before_is_used(run, caplog):
  mesh = mesh_lib.make()
  damage(run, 6)
  (run / "checkpoints" / "4" / "state" / "manifest.ocdbt").write_bytes(b"")
  writing = checkpoint.Checkpoints(run, options(keep_latest=3))
  restored, meta = writing.restore(abstract(mesh, state(mesh, 2)))
  assert meta["step"] == 2 and same(restored, state(mesh, 2))
  assert (
    "checkpoint of step 6 is damaged" in caplog.text
    and "checkpoint of step 4 is damaged" in caplog.text
  )
  writing.save(4, state(mesh, 4), {})  # the damaged newer ones are out of the way
  writing.close()
  assert stored.Stored(run).steps == [2, 4]


def test_all_damaged_is_an_error_and_none_is_none(run, tmp_path_factory):
  mesh = mesh_lib.make()
  for k in (2, 4, 6):
    damage(run, k)
  with pytest.raises(
    ValueError, match="no checkpoint in .* is good; the newest, of step 6"
  ) as error:
    stored.Stored(run).restore(abstract(mesh, state(mesh, 6)))
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
    y.reshape(-1).view(f"uint{8 * x.dtype.itemsize}")[k] ^= (
      1 if dtype == jnp.bool_ else 1 << 8 * x.dtype.itemsize - 1
    )
    flipped.append(y)
  reversed_, scalar = x[::-1].copy(), x[3, 1, 0]
  leaves = [
    x,
    jax.device_put(x, mesh_lib.batch_sharding(mesh_lib.make())),
    *flipped,
    reversed_,
    scalar,
  ]
  found = list(digest.digest(leaves).values())
  assert found == [digest_of(leaf) for leaf in leaves]
  assert found[0] == found[1] and found[0] not in found[2:]


def test_every_leaf_of_a_state_is_under_the_digest(tmp_path):
  """The moments too: exact, by name, and noticed when one of their bits flips on the disk."""
  mesh, params = mesh_lib.make(), state(mesh_lib.make(), 1)["params"]
  whole = state_lib.create({"w": params["w"]}, optax.adam(0.1), ema=True)
  names = {"step", "params/w", "opt_state/0/count", "opt_state/0/mu/w", "opt_state/0/nu/w", "ema/w"}
  moved = jax.tree.map(lambda x: x.at[(0,) * x.ndim].add(1), whole)
  found, after = digest.digest(whole), digest.digest(moved)
  assert found.keys() == names and all(found[name] != after[name] for name in names)
  saving = checkpoint.Checkpoints(tmp_path, options())
  nothing = jnp.zeros((4096,))  # so that the moment is the largest file
  large = {
    "params": {"w": nothing},
    "opt_state": jax.random.normal(jax.random.key(0), (4096,)),
    "step": jnp.int32(1),
  }
  saving.save(1, large, {})
  saving.close()
  like = abstract(mesh, large)
  assert same(stored.Stored(tmp_path).restore(like)[0], large)
  damage(tmp_path, 1)
  with pytest.raises(ValueError, match="opt_state"):
    stored.Stored(tmp_path).restore(like)


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
    saving.save(k, {"params": x, "step": jnp.int32(k)}, {})
    x = step(x)
  saving.close()
  like = {
    "params": jax.ShapeDtypeStruct(
      (512, 512), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
    )
  }
  restored, meta = stored.Stored(tmp_path).restore(like)  # its digest was of what was given
  assert meta["step"] == 3 and float(restored["params"][0, 0]) == 5


def files(folder, step):
  return sorted(p for p in (folder / "checkpoints" / str(step)).rglob("*") if p.is_file())


def contents(folder):
  """What is on disk, but for the time a deletion in the background takes."""
  return {
    str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
  }


def restored(folder, config=None, step=6):
  mesh = mesh_lib.make()
  checkpoints = stored.Stored(folder) if config is None else checkpoint.Checkpoints(folder, config)
  found, meta = checkpoints.restore(abstract(mesh, state(mesh, step)))
  assert same(found, state(mesh, meta["step"]))  # whatever is restored is what was saved
  return checkpoints, meta["step"]


@pytest.fixture
def quick(monkeypatch):
  """Attempts without a pause."""
  monkeypatch.setattr(errors, "RETRY_SECONDS", (0.0, 0.0, 0.0, 0.0))


# Files that no reader needs: the state is whole without them.
UNUSED = (
  "commit_success.txt",
  "_CHECKPOINT_METADATA",
  "_sharding",
  "array_metadatas",
  "ocdbt.process_0",
)


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", ["flip", "truncate", "empty", "zeros", "delete"])
def test_damage_of_any_file_is_found_or_harmless(kind, run):
  quiet.quiet_orbax()
  rng = np.random.default_rng(0)
  for file in files(run, 6):
    good = file.read_bytes()
    bad = bytearray(good)
    if kind == "flip" and bad:
      bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
    file.write_bytes(
      {
        "flip": bad,
        "truncate": bad[: len(bad) // 2],
        "empty": b"",
        "zeros": bytes(len(bad)),
        "delete": b"",
      }[kind]
    )
    if kind == "delete":
      file.unlink()
    _, step = restored(run)
    needed = not any(name in str(file) for name in UNUSED) and "/d/" not in str(file)
    assert (
      step == 4 or step == 6 and (not needed or kind == "delete" and file.name == "_METADATA")
    ), file
    file.write_bytes(good)
  assert restored(run)[1] == 6


def swap(a, b):
  a.rename(a.with_name("held"))
  b.rename(a)
  a.with_name("held").rename(b)


@pytest.mark.parametrize(
  "kind",
  [
    "folders",
    "states",
    "metadata",
    "renamed",
    "step of the metadata",
    "metadata",
    "a file",
    "no state",
    "no metadata",
  ],
)
def test_checkpoints_that_are_mixed_up_are_damaged(kind, run):
  six, four, text = run / "checkpoints" / "6", run / "checkpoints" / "4", None
  if kind == "folders":
    swap(six, four)
  elif kind == "states":
    swap(six / "state", four / "state")
  elif kind == "metadata":
    swap(six / "meta", four / "meta")
  elif kind == "renamed":
    six.rename(run / "checkpoints" / "7")
  elif kind == "step of the metadata":
    file = six / "meta" / "metadata"
    file.write_text(
      file.read_text().replace('"step": 6', '"step": 5').replace('"step":6', '"step":5')
    )
    text = "does not match its digest"
  elif kind == "a file":
    six.rename(run / "checkpoints" / "held")
    six.touch()
  else:
    (six / {"no state": "state", "no metadata": "meta"}[kind]).rename(run / "held")
  both = kind in ("folders", "states", "metadata")
  with pytest.MonkeyPatch.context() as patch:
    lines = []
    patch.setattr(checkpoint.logger, "warning", lambda form, *args: lines.append(form % args))
    assert restored(run)[1] == (2 if both else 4)
  assert len(lines) == 1 + both and (text is None or text in lines[0])


def test_a_leaf_that_is_not_there_is_damage(run):
  mesh = mesh_lib.make()
  like = abstract(mesh, state(mesh, 6))
  like["params"]["more"] = like["params"]["half"]
  with pytest.raises(
    ValueError, match="no checkpoint in .* is good; the newest, of step 6: params/more is not in it"
  ):
    stored.Stored(run).restore(like)


def test_a_step_is_compared_although_both_digests_fit(run):
  """Metadata of step 6 in a folder called 5: neither its own digest nor the state's tells."""
  (run / "checkpoints" / "6").rename(run / "checkpoints" / "5")
  with pytest.MonkeyPatch.context() as patch:
    lines = []
    patch.setattr(checkpoint.logger, "warning", lambda form, *args: lines.append(form % args))
    assert restored(run)[1] == 4
  assert "the folder is of step 5, its metadata of step 6, its state of step 6" in lines[0]


@pytest.mark.parametrize(
  "kind", ["EIO", "ESTALE", "ETIMEDOUT", "EMFILE", "EACCES", "memory", "exhausted"]
)
@pytest.mark.parametrize("where", ["state", "meta"])
def test_a_read_that_fails_is_tried_again_and_nothing_is_changed(kind, where, run, quick):
  before = contents(run)
  with inject.failing_reads(kind, times=3, where=where) as left:
    checkpoints, step = restored(run, options(keep_latest=1))
  assert step == 6 and left == [0] and contents(run) == before
  mesh = mesh_lib.make()
  with inject.failing_reads(kind, times=10**6, where=where), pytest.raises(ValueError) as error:
    checkpoint.Checkpoints(run, options()).restore(abstract(mesh, state(mesh, 6)))
  assert (
    "the checkpoint of step 6" in str(error.value)
    and "nothing was changed" in str(error.value)
    and "\n" not in str(error.value)
  )
  assert contents(run) == before
  checkpoints.close()


def test_a_list_that_cannot_be_read_is_no_empty_list(run, quick):
  mesh = mesh_lib.make()
  with inject.failing_reads("ESTALE", times=2, where="list"):
    assert restored(run)[1] == 6
  with (
    inject.failing_reads("EIO", times=10**6, where="list"),
    pytest.raises(ValueError, match="checkpoints cannot be read: .*; nothing was changed"),
  ):
    stored.Stored(run).restore(abstract(mesh, state(mesh, 6)))


def test_a_damaged_checkpoint_is_moved_aside_by_the_next_save_that_succeeds(run, quick):
  damage(run, 6)
  bad = {p.name: p.read_bytes() for p in files(run, 6)}
  mesh = mesh_lib.make()
  checkpoints, step = restored(run, options(keep_latest=1, keep_one_in=None))
  assert step == 4 and (run / "checkpoints" / "6").is_dir()  # reading changes nothing
  with inject.failing_saves("ENOSPC"):
    checkpoints.save(5, state(mesh, 5), {})
  assert (
    checkpoints.steps == [2, 4, 6]
    and checkpoints.last_good() == "the last good checkpoint is of step 4"
  )
  checkpoints.save(5, state(mesh, 5), {})
  checkpoints.close()
  assert checkpoints.steps == [5] and restored(run)[1] == 5
  assert {
    p.name: p.read_bytes() for p in (run / "checkpoints" / "damaged-6").rglob("*") if p.is_file()
  } == bad


def test_a_damaged_checkpoint_of_the_same_step_comes_back_where_the_save_fails(run, quick):
  damage(run, 6)
  mesh = mesh_lib.make()
  checkpoints, _ = restored(run, options(keep_latest=1, keep_one_in=None))
  with inject.failing_saves("EROFS"):
    checkpoints.save(6, state(mesh, 6), {})
  assert checkpoints.steps == [2, 4, 6] and not (run / "checkpoints" / "damaged-6").exists()
  checkpoints.save(6, state(mesh, 6), {})
  checkpoints.close()
  assert (
    restored(run)[1] == 6
    and checkpoints.steps == [6]
    and (run / "checkpoints" / "damaged-6").is_dir()
  )


@pytest.mark.parametrize("group", [2**28, 1])
def test_verify_finds_what_the_disk_did_not_keep_before_the_old_ones_go(
  group, run, quick, monkeypatch
):
  monkeypatch.setattr(checkpoint, "VERIFY_BYTES", group)
  mesh = mesh_lib.make()
  checkpoints, _ = restored(run, options(keep_latest=1, keep_one_in=None, verify=True))
  checkpoints.save(8, state(mesh, 8), {})
  checkpoints.wait()
  assert checkpoints.steps == [8]
  wait = checkpoint.ocp.AsyncCheckpointer.wait_until_finished

  def damaged(self):
    wait(self)
    if checkpoints.steps[-1] == 10:
      damage(run, 10)

  with monkeypatch.context() as patch:
    patch.setattr(checkpoint.ocp.AsyncCheckpointer, "wait_until_finished", damaged)
    checkpoints.save(10, state(mesh, 10), {})
  # It is to be made again
  assert checkpoints.steps == [8] and checkpoints.newest == 8 and checkpoints.poll()
  assert (run / "checkpoints" / "damaged-10").is_dir()
  with inject.failing_reads("EIO", times=2):  # a read that fails is no damage
    checkpoints.save(12, state(mesh, 12), {})
  checkpoints.close()
  assert checkpoints.steps == [12] and restored(run)[1] == 12


def test_a_disk_that_does_not_answer_while_a_save_is_looked_after_ends_nothing(
  run, quick, monkeypatch, caplog
):
  """Neither the look for the new folder nor the move of one that `verify` found damaged may end the
  training.
  """
  mesh = mesh_lib.make()
  checkpoints, _ = restored(run, options(keep_latest=1, keep_one_in=None))
  checkpoints.save(8, state(mesh, 8), {})
  stat = os.stat

  def fails(path, *args, **kwargs):
    if str(path).endswith("checkpoints/8"):
      raise inject.error("ESTALE")
    return stat(path, *args, **kwargs)

  with monkeypatch.context() as patch:
    patch.setattr(os, "stat", fails)
    assert not checkpoints.poll()
  checkpoints.close()
  assert checkpoints.steps == [8]

  checkpoints, _ = restored(run, options(keep_latest=1, keep_one_in=None, verify=True), 8)
  wait, rename = checkpoint.ocp.AsyncCheckpointer.wait_until_finished, pathlib.Path.rename

  def damaged(self):
    wait(self)
    if (run / "checkpoints" / "10").is_dir():
      damage(run, 10)

  def fails_once(self, target):
    if target.name == "damaged-10":
      raise inject.error("EIO")
    return rename(self, target)

  with monkeypatch.context() as patch:
    patch.setattr(checkpoint.ocp.AsyncCheckpointer, "wait_until_finished", damaged)
    patch.setattr(pathlib.Path, "rename", fails_once)
    checkpoints.save(10, state(mesh, 10), {})
  assert (
    checkpoints.steps == [8, 10]
    and checkpoints.last_good() == "the last good checkpoint is of step 8"
  )
  checkpoints.save(11, state(mesh, 11), {})
  checkpoints.close()
  assert checkpoints.steps == [11] and (run / "checkpoints" / "damaged-10").is_dir()


def test_one_in_so_many_is_kept_for_good_and_no_metric_is_taken_for_the_best(tmp_path):
  mesh = mesh_lib.make()
  saving = checkpoint.Checkpoints(
    tmp_path, options(keep_latest=1, keep_one_in=3, keep_best="eval/a/acc1"), every=2
  )
  for k, metric in (
    (2, float("nan")),
    (4, 0.5),
    (6, 0.1),
    (8, None),
    (10, 0.2),
    (12, 0.3),
    (14, 0.4),
  ):
    saving.save(k, state(mesh, k), {}, None if metric is None else {"eval/a/acc1": metric})
  saving.close()
  assert saving.steps == [4, 6, 12, 14]  # 6 and 12 are each third that is due, 4 the best
  (file,) = (tmp_path / "checkpoints" / "4" / "meta").glob("metadata")
  file.write_text(file.read_text().replace("0.5", '"x"'))
  saving = checkpoint.Checkpoints(
    tmp_path, options(keep_latest=1, keep_one_in=None, keep_best="eval/a/acc1")
  )
  saving.save(16, state(mesh, 16), {})
  saving.close()
  assert saving.steps == [4, 14, 16]  # what cannot be read is kept, as it may be the best


@pytest.mark.parametrize("kind", ["ENOSPC", "EROFS", "EDQUOT"])
def test_saves_that_fail_are_made_again_and_then_end_the_run(kind, run, quick, caplog):
  mesh = mesh_lib.make()
  checkpoints, _ = restored(run, options(max_failed_saves=2))
  with inject.failing_saves(kind):
    for k in range(7, 12):
      checkpoints.save(k, state(mesh, k), {})
      # Each is tried twice: again at the next step, then when it is due
      assert checkpoints.poll() == (k % 2 == 1)
    with pytest.raises(ValueError) as error:
      checkpoints.save(12, state(mesh, 12), {})
  assert (
    "3 saves in a row have failed, each tried twice, more than config.checkpoint.max_failed_saves=2"
    in str(error.value)
  )
  assert "the last good checkpoint is of step 6" in str(error.value)
  assert checkpoints.steps == [2, 4, 6] and "training goes on" in caplog.text
  checkpoints.save(12, state(mesh, 12), {})  # one that succeeds forgets them
  checkpoints.wait()
  assert checkpoints.steps == [6, 12] and not checkpoints.poll()
  with (
    inject.failing_saves(kind),
    pytest.raises(
      ValueError,
      match="the checkpoint of step 13 could not be saved; the last good checkpoint is of step 12",
    ),
  ):
    checkpoints.save(13, state(mesh, 13), {}, last=True)
  with inject.failing_saves(kind, times=2):
    checkpoints.save(13, state(mesh, 13), {}, last=True)
  checkpoints.close()
  assert restored(run)[1] == 13


def test_the_digest_of_more_elements_than_32_bits_count():
  assert (
    jax.eval_shape(digest.leaf_digest, jax.ShapeDtypeStruct((2, 2**17, 2**17), jnp.float32)).dtype
    == jnp.uint32
  )


def test_the_best_by_a_loss_is_the_lowest(tmp_path):
  mesh = mesh_lib.make()
  saving = checkpoint.Checkpoints(
    tmp_path, options(keep_latest=1, keep_best="eval/a/loss"), lower_is_better=True
  )
  for k, loss in ((2, 0.9), (4, 0.1), (6, 0.2), (7, None), (9, 0.3)):
    saving.save(k, state(mesh, k), {}, loss and {"eval/a/loss": loss})
  saving.wait()
  assert saving.steps == [4, 9]
  saving.close()


def chained(outer, inner, attribute):
  setattr(outer, attribute, inner)
  return outer


@pytest.mark.parametrize(
  "error, failed",
  [
    (OSError(5, "Input/output error"), True),
    (OSError(28, "No space left on device"), True),
    (MemoryError(), True),
    (FileNotFoundError(2, "No such file or directory"), False),
    (IsADirectoryError(21, "Is a directory"), False),
    (OSError("no number"), False),
    (ValueError("a bad byte"), False),
    (RuntimeError("x RESOURCE_EXHAUSTED: y"), True),
    (ValueError("write: Stale file handle"), True),
    (chained(ValueError("a"), MemoryError(), "__cause__"), True),
    (chained(ValueError("a"), MemoryError(), "__context__"), True),
    (chained(ValueError("a"), KeyError("b"), "__cause__"), False),
    (ExceptionGroup("some", [ValueError("a"), OSError(5, "x")]), True),
    (ExceptionGroup("some", [ValueError("a")]), False),
  ],
)
def test_failures_are_told_from_damage(error, failed):
  assert errors.is_failure(error) is failed


def test_one_line_of_an_error():
  assert (
    values.one_line(ValueError("x" * 300)) == "x" * 300
    and values.one_line(KeyError()) == "KeyError"
  )
  assert values.one_line(ValueError("a" * 151 + "\n" + "b" * 149)) == "a" * 120 + " …  " + "b" * 149


def test_a_restore_before_a_step_takes_none_of_that_step(run):
  mesh = mesh_lib.make()
  assert int(stored.Stored(run).restore(abstract(mesh, state(mesh, 0)), before=4)[0]["step"]) == 2


def test_a_save_that_fails_in_one_of_several_processes_ends_the_run(run, monkeypatch):
  checkpoints = checkpoint.Checkpoints(run, options())
  checkpoints._pending = 8
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with pytest.raises(
    ValueError, match="the checkpoint of step 8 failed: full; the last good checkpoint is of step 6"
  ):
    checkpoints._fail(OSError("full"))
  monkeypatch.undo()
  checkpoints.close()


def test_a_save_that_fails_in_the_background_is_noticed_at_the_next_step(run, monkeypatch, caplog):
  """And not only when the next save is due, which may be an hour later."""
  checkpoints = checkpoint.Checkpoints(run, options(keep_latest=3))

  def full(self):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(checkpoint.ocp.AsyncCheckpointer, "check_for_errors", full)
  checkpoints._pending = 8
  assert checkpoints.poll()
  assert "the checkpoint of step 8 failed, attempt 1 in a row: [Errno 28] No space" in caplog.text
  monkeypatch.undo()
  checkpoints.close()


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_old_checkpoint_that_cannot_be_deleted_disturbs_nothing(run, monkeypatch):
  mesh = mesh_lib.make()
  checkpoints = checkpoint.Checkpoints(run, options(keep_latest=1))
  remove = os.rmdir

  def rmdir(path, *args, **kwargs):
    if str(path) == "state":  # of what is being deleted, relative to its folder
      raise OSError(errno.EIO, "Input/output error")
    return remove(path, *args, **kwargs)

  monkeypatch.setattr(os, "rmdir", rmdir)
  checkpoints.save(8, state(mesh, 8), {})
  checkpoints.close()
  monkeypatch.undo()
  assert stored.Stored(run).steps == [8]
  assert list((run / "checkpoints").glob(".deleting-*/state"))  # the failure was there
  checkpoint.Checkpoints(run, options()).close()
  assert not list((run / "checkpoints").glob(".deleting-*"))  # the next start tries again


def test_a_failure_is_tried_again_after_growing_pauses(monkeypatch):
  """7.5 s in all, which a network file system needs to come back."""
  pauses = []
  monkeypatch.setattr(errors.time, "sleep", pauses.append)

  def read():
    raise OSError(errno.ESTALE, "Stale file handle")

  with pytest.raises(ValueError, match="^it cannot be read: .*Stale file handle; nothing was"):
    errors.attempt(read, "it cannot be read")
  assert pauses == [0.5, 1, 2, 4]
