"""Run folders and exports in buckets, of fsspec's memory://."""

import contextlib
import datetime
import json
import os
import subprocess
import sys
import threading
import time

import fsspec
import jax
import numpy as np
import pytest

import siglax
from siglax import config as config_lib
from siglax.commands import cli
from siglax.data import buckets
from siglax.data import remote
from siglax.data import uploads
from siglax.runs import bucket
from siglax.runs import bucket_lock
from siglax.runs import checkpoint
from siglax.runs import lock
from siglax.runs import stored
from siglax.training import initial

import short_runs
from short_runs import shared_programs  # pylint: disable=unused-import

URL = "memory://bucket/runs/x"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  """A cache folder of the test's own; no long pauses."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setattr(buckets, "FIRST_PAUSE", 0.001)
  buckets._remembered.clear()
  yield tmp_path / "cache" / "siglax" / "runs"


@pytest.fixture
def memory():
  filesystem = fsspec.filesystem("memory")
  filesystem.store.clear()
  filesystem.pseudo_dirs[:] = [""]
  yield filesystem
  filesystem.store.clear()


def losses(content: bytes) -> list[float]:
  return [line["loss"] for line in map(json.loads, content.splitlines()) if "loss" in line]


def state(url, folder, step=12):
  """What orbax reads of a checkpoint in a bucket."""
  files = {
    file: folder / "copy" / "checkpoints" / file.partition("/checkpoints/")[2]
    for file in uploads.listing.files_in(f"{url}/checkpoints/{step}", hidden=True)
  }
  remote.download(files)
  return short_runs.state(folder / "copy", step)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
  """A run on the disk."""
  workdir = tmp_path_factory.mktemp("local") / "x"
  short_runs.run(workdir)
  return workdir


def test_a_run_in_a_bucket_is_a_run_on_the_disk(memory, local, tmp_path, cache, caplog):
  """Stopped and resumed; then read by every command that reads runs."""
  with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
    save = checkpoint.Checkpoints.save

    def stop(self, step, *arguments, **options):
      if step == 12:
        raise KeyboardInterrupt
      save(self, step, *arguments, **options)

    patch.setattr(checkpoint.Checkpoints, "save", stop)
    short_runs.run(URL)
  assert losses(memory.cat("/bucket/runs/x/metrics.jsonl")) == losses(
    (local / "metrics.jsonl").read_bytes()
  )
  assert stored.Stored(bucket.opened(URL)).steps == [4, 8]
  caplog.set_level("INFO")
  short_runs.run(URL)
  assert "resuming at step 8" in caplog.text
  assert losses(memory.cat("/bucket/runs/x/metrics.jsonl")) == losses(
    (local / "metrics.jsonl").read_bytes()
  )
  short_runs.assert_equal(state(URL, tmp_path), short_runs.state(local))
  top = {path.rpartition("/")[2] for path in memory.ls("/bucket/runs/x", detail=False)}
  assert top == {path.name for path in local.iterdir()}
  for name in ("config.json", "tokenizer.model"):
    assert memory.cat(f"/bucket/runs/x/{name}") == (local / name).read_bytes()
  starts = [json.loads(line) for line in memory.cat("/bucket/runs/x/starts.jsonl").splitlines()]
  assert [(start["first_step"], start["ended"]) for start in starts] == [
    (0, "KeyboardInterrupt: "),
    (8, "finished"),
  ]
  assert not [path for path in memory.store if "lock.json" in path]


@pytest.fixture
def copy(memory, local):
  """The local run, copied to a bucket as it is: a checkpoint has the same files there."""
  memory.put(f"{local}/", "/bucket/runs/x", recursive=True)
  yield URL


def test_readers_of_runs(copy, memory, local, tmp_path, capsys):
  assert cli.main(["inspect", "--run", URL, "--json"]) == 0
  assert json.loads(capsys.readouterr().out)["step"] == 12
  assert cli.main(["replay", "--run", URL, "--step", "10", "--json"]) == 0
  report = json.loads(capsys.readouterr().out)
  assert report["loss"] == report["logged"] and report["from"] == 8
  there, here = siglax.load(URL), siglax.load(local)
  assert jax.tree.all(jax.tree.map(np.array_equal, there.params, here.params))
  tasks = ({"kind": "loss", "name": "t", "data": {"source": "shapes"}, "examples": 16},)
  for path in (URL, str(local)):
    assert cli.main(["evaluate", "--from", path, f"--config.eval.tasks={tasks}"]) == 0
  assert json.loads(memory.cat("/bucket/runs/x/eval.json")) == json.loads(
    (local / "eval.json").read_bytes()
  )
  model, mesh = there.model, there.mesh
  for end in ("", ":img"):
    first, second = (initial.initial_params(f"{x}{end}", model, mesh) for x in (URL, local))
    assert first.keys() == second.keys() and len(first) == (1 if end else 4)
    assert jax.tree.all(jax.tree.map(np.array_equal, first, second))


def test_exports_and_embeddings(copy, memory, local, tmp_path, capsys):
  for form, name in (("hf", "hf"), ("big_vision", "x.npz")):
    out = f"memory://bucket/out/{name}"
    export = ["export", "--format", form, "--from"]
    assert cli.main([*export, URL, "--out", out]) == 0
    assert cli.main([*export, URL, "--out", out]) == 1
    assert f"--out {out} exists; give a path that does not" in capsys.readouterr().err
    assert cli.main([*export, str(local), "--out", str(tmp_path / name)]) == 0
  here = {str(f.relative_to(tmp_path / "hf")): f.read_bytes() for f in (tmp_path / "hf").iterdir()}
  there = {
    path.removeprefix("/bucket/out/hf/"): memory.cat(path) for path in memory.find("/bucket/out/hf")
  }
  assert there == here
  params = lambda path: siglax.load(path).params
  same = jax.tree.map(np.array_equal, params("memory://bucket/out/x.npz"), params(local))
  assert jax.tree.all(same)
  embed = ["embed", "--from", "memory://bucket/out/hf", "--data", "shapes:examples=8", "--out"]
  for out in ("memory://bucket/out/e.npz", str(tmp_path / "e.npz")):
    assert cli.main([*embed, out]) == 0
  remote.download({"memory://bucket/out/e.npz": tmp_path / "there.npz"})
  with np.load(tmp_path / "there.npz") as a, np.load(tmp_path / "e.npz") as b:
    np.testing.assert_array_equal(a["image_embedding"], b["image_embedding"])


def test_half_an_export_is_no_export(copy, memory, monkeypatch, capsys):
  put = uploads.put_file

  def fail(path, file, within=None):
    if path.endswith("model.safetensors"):
      raise buckets.Unreachable(f"{path!r}: tried 6 times")
    put(path, file, within)

  monkeypatch.setattr(uploads, "put_file", fail)
  out = "memory://bucket/out/hf"
  assert cli.main(["export", "--from", URL, "--format", "hf", "--out", out]) == 1
  assert f"--out {out} cannot be written: 'memory://" in capsys.readouterr().err
  assert memory.find("/bucket/out") == []


def test_what_is_no_run_is_one_line(memory, capsys):
  memory.pipe_file("/bucket/x/y", b"")
  for url, said in (
    ("memory://bucket/no", "memory://bucket/no: no such file or folder"),
    ("memory://bucket/x", "memory://bucket/x is no run folder: it has no config.json"),
  ):
    assert cli.main(["replay", "--run", url, "--step", "1"]) == 1
    assert said in capsys.readouterr().err
  assert cli.main(["export", "--from", "memory://bucket/no", "--format", "hf", "--out", "o"]) == 1
  assert "'memory://bucket/no': no such file or folder" in capsys.readouterr().err


def options(**fields):
  config = config_lib.default().checkpoint
  config.update(fields)
  return config


def small(step):
  # A leaf of more than one file.
  return {"params": {"a": jax.numpy.full((4, 8), step, jax.numpy.float32)}, "step": np.int32(step)}


def opened(**fields):
  """The checkpoints of URL, to write."""
  return checkpoint.Checkpoints(bucket.stand_in(URL), options(**fields))


def save(saving, step):
  state = jax.tree.map(jax.numpy.asarray, small(step))
  saving.save(step, state, {"config": "c"})
  saving.wait()


def restored():
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
    ),
    small(0),
  )
  found = stored.Stored(bucket.stand_in(URL)).restore(like)
  if found is None:
    return None
  assert (np.asarray(found[0]["params"]["a"]) == found[1]["step"]).all()
  return found[1]["step"]


def test_a_checkpoint_is_there_whole_or_not_at_all(memory, monkeypatch):
  """A process that ends before any of the requests of a save leaves the checkpoint before it."""
  saving = opened()
  save(saving, 1)
  saving.close()
  before, request, requests = dict(memory.store), buckets.request, 0

  def end(path, *arguments, **options):
    nonlocal requests
    requests -= 1
    if requests < 0:
      raise SystemExit  # as the process would: nothing more is asked for
    return request(path, *arguments, **options)

  ended, count = 0, 1
  while restored() != 2:
    memory.store.clear()
    memory.store.update(before)
    saving = opened()
    requests = count
    monkeypatch.setattr(buckets, "request", end)
    with contextlib.suppress(ValueError, SystemExit):
      save(saving, 2)
    monkeypatch.setattr(buckets, "request", request)
    saving._unreachable = True  # nothing more is asked for
    ended += restored() == 1
    count += 1
  assert ended > 5
  # What was left is removed at the next start.
  memory.store.clear()
  memory.store.update(before)
  memory.pipe_file("/bucket/runs/x/checkpoints/2/state/params.a/0.0", b"x")
  opened().close()
  assert memory.store.keys() == before.keys()


def test_damage_is_found_and_kept(memory, caplog):
  saving = opened(keep_latest=3)
  for step in (1, 2, 3):
    save(saving, step)
  saving.close()
  path = "/bucket/runs/x/checkpoints/3/state/params.a/0.0"
  content = bytearray(memory.cat(path))
  content[-1] ^= 1
  memory.pipe_file(path, bytes(content))
  memory.rm("/bucket/runs/x/checkpoints/2/state/params.a/0.0")
  saving = opened(keep_latest=1)
  like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), small(0))
  assert saving.restore(like)[1]["step"] == 1
  assert "checkpoint of step 3 is damaged" in caplog.text
  assert saving.steps == [1, 2, 3]
  save(saving, 3)
  saving.close()
  assert saving.steps == [3] and restored() == 3
  folders = {path.rpartition("/")[2] for path in memory.ls("/bucket/runs/x/checkpoints", False)}
  assert folders == {"3", "damaged-2", "damaged-3"}
  assert memory.cat("/bucket/runs/x/checkpoints/damaged-3/state/params.a/0.0") == bytes(content)


def test_a_failure_to_read_is_no_damage(memory, monkeypatch):
  saving = opened()
  save(saving, 1)
  saving.close()
  before, request = dict(memory.store), buckets.request

  def fail(path, *arguments, **options):
    if "/state/" in path:
      raise buckets.Unreachable(f"{path!r}: tried 6 times")
    return request(path, *arguments, **options)

  monkeypatch.setattr(buckets, "request", fail)
  with pytest.raises(ValueError, match="the checkpoint of step 1 in memory://.* nothing was chang"):
    restored()
  assert memory.store == before


def test_old_checkpoints_go(memory):
  saving = opened(keep_latest=2, keep_every_steps=3, verify=True)
  for step in range(1, 7):
    save(saving, step)
  saving.close()
  assert saving.steps == [3, 5, 6]
  folders = {path.rpartition("/")[2] for path in memory.ls("/bucket/runs/x/checkpoints", False)}
  assert folders == {"3", "5", "6"}
  assert os.listdir(saving._place.staging) == []


def test_a_folder_that_stands_for_a_url_ends_with_its_process(memory, cache):
  code = (
    "import os, sys; from siglax.runs import bucket; bucket.stand_in('memory://b/x');"
    "print(len(os.listdir(sys.argv[1]))); sys.stdout.flush(); os.kill(os.getpid(), 9)"
  )
  for _ in range(2):
    ran = subprocess.run([sys.executable, "-c", code, cache], capture_output=True, text=True)
    assert ran.stdout == "1\n", ran.stderr
  assert len(os.listdir(cache)) == 1
  bucket.stand_in("memory://b/x")
  assert len(os.listdir(cache)) == 1
  bucket.stand_in("memory://b/x")
  assert len(os.listdir(cache)) == 2


@pytest.fixture
def quick(monkeypatch):
  monkeypatch.setattr(bucket_lock, "SETTLE_SECONDS", 0.05)
  monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.1)


def taken(url=URL):
  return bucket_lock.take(bucket.stand_in(url))


def holder(memory) -> dict:
  return json.loads(memory.cat("/bucket/runs/x/lock.json"))


def dies(holder, memory):
  """More than a minute ago."""
  holder._released.set()
  time.sleep(0.2)
  memory.store["/bucket/runs/x/lock.json"].modified -= datetime.timedelta(seconds=99)


def test_one_process_at_a_time(memory, quick, monkeypatch, caplog):
  first = taken()
  with pytest.raises(ValueError, match=f"^--workdir {URL} is in use: process {os.getpid()} on "):
    taken()
  assert bucket_lock.sees(bucket.stand_in(URL), first.key)
  beats = holder(memory)["beats"]
  while holder(memory)["beats"] == beats:
    time.sleep(0.01)
  first.release()
  assert not memory.exists("/bucket/runs/x/lock.json")
  second = taken()
  # As of a process of another machine, which is alive.
  monkeypatch.setattr(lock, "_same_processes", lambda holder: False)
  with pytest.raises(ValueError, match="is in use"):
    taken()
  dies(second, memory)
  third = taken()
  assert "is dead; taking it over" in caplog.text and holder(memory)["key"] == third.key
  assert not second.held()
  with pytest.raises(lock.Lost, match="is no longer this process's"):
    second.check()
  third.check()
  third.release()
  second.release()


def test_two_that_take_a_dead_lock_over(memory, quick, monkeypatch):
  monkeypatch.setattr(lock, "_same_processes", lambda holder: False)
  monkeypatch.setattr(bucket_lock, "SETTLE_SECONDS", 2.0)
  dies(taken(), memory)
  got, refused = [], []

  def take():
    try:
      got.append(taken())
    except ValueError as e:
      refused.append(e)

  threads = [threading.Thread(target=take) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(got) == 1 and len(refused) == 3
  assert holder(memory)["key"] == got[0].key
  got[0].release()


def test_a_run_that_was_taken_over_writes_nothing_more(memory, quick):
  folder = bucket.stand_in(URL)
  mine = bucket_lock.take(folder)
  with bucket.following(folder, mine):
    (folder / "a.json").write_text("1")
    bucket.mirror(folder).sync()
    content = json.dumps({**holder(memory), "key": "another's"}).encode()
    mine._released.set()
    memory.pipe_file("/bucket/runs/x/lock.json", content)
    assert not mine.held()
    (folder / "a.json").write_text("22")
  mine.release()
  assert memory.cat("/bucket/runs/x/a.json") == b"1"
  assert memory.cat("/bucket/runs/x/lock.json") == content


def test_files_follow(memory, quick, monkeypatch, caplog):
  """Also after a time in which the server failed."""
  folder, request = bucket.stand_in(URL), buckets.request
  monkeypatch.setattr(bucket, "SECONDS", 0.0)
  (folder / "imports").mkdir()
  (folder / "wandb").mkdir()

  def there(name, content):
    deadline = time.monotonic() + 20
    while not memory.exists(f"/bucket/runs/x/{name}") or content != memory.cat(
      f"/bucket/runs/x/{name}"
    ):
      assert time.monotonic() < deadline
      time.sleep(0.02)

  def fail(path, *arguments, **options):
    raise buckets.Unreachable(f"{path!r}: tried 6 times")

  mine = bucket_lock.take(folder)
  with bucket.following(folder, mine):
    for name in ("metrics.jsonl", "imports/a.py", "wandb/b", ".c.tmp"):
      (folder / name).write_text("1")
    there("metrics.jsonl", b"1")
    there("imports/a.py", b"1")
    monkeypatch.setattr(buckets, "request", fail)
    (folder / "metrics.jsonl").write_text("12")
    while "its files wait on this machine" not in caplog.text:
      time.sleep(0.02)
    monkeypatch.setattr(buckets, "request", request)
    there("metrics.jsonl", b"12")
    (folder / "metrics.jsonl").write_text("123")
  mine.release()
  assert memory.cat("/bucket/runs/x/metrics.jsonl") == b"123"
  assert "is written again" in caplog.text
  assert [path for path in memory.store if "wandb" in path or ".tmp" in path] == []
