"""Runs in buckets of real servers on this machine: moto's S3, and an emulator of Google's, whose
processes are killed and whose requests fail.
"""

import http.server
import io
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
import types

from conftest import free_port
import cv2
import numpy as np
import pytest

from siglax.data import buckets
from siglax.data.shapes import Shapes

import servers
import short_runs

pytestmark = pytest.mark.slow
TINY = str(pathlib.Path(__file__).parents[1] / "tiny.py")
ROWS, SHARDS, STEPS = 48, 4, 12
# For --import: process 0 is slow in making orbax's folders.
SLOW_FOLDERS = """
import asyncio
import jax
from orbax.checkpoint._src.path import atomicity

create = atomicity.AtomicRenameTemporaryPath.create

async def slow(self, *args, **kwargs):
  if jax.process_index() == 0:
    await asyncio.sleep(1)
  return await create(self, *args, **kwargs)

atomicity.AtomicRenameTemporaryPath.create = slow
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """A folder of tars."""
  root = tmp_path_factory.mktemp("data")
  examples = Shapes(examples=ROWS, image_size=16)
  for shard in range(SHARDS):
    with tarfile.open(root / f"{shard}.tar", "w") as out:
      for i in range(shard, ROWS, SHARDS):
        picture = cv2.imencode(".png", examples[i]["image"])[1].tobytes()
        for ending, content in (("png", picture), ("txt", examples[i]["captions"][0].encode())):
          info = tarfile.TarInfo(f"{i:03}.{ending}")
          info.size = len(content)
          out.addfile(info, io.BytesIO(content))
  return root


def start(workdir, data, cache, *more, count=1):
  """`count` processes of a training, two devices in all."""
  spec = {"source": "webdataset", "path": str(data), "order": "shards", "shuffle_shards": 2}
  command = [sys.executable, "-m", "siglax.commands.cli", "train", "--config", TINY]
  command += ["--workdir", str(workdir), f"--config.data=({spec},)", "--config.eval.tasks=()"]
  command += [f"--config.total_steps={STEPS}", *more]
  started, port = [], free_port()
  for i in range(count):
    group = [
      "--coordinator",
      f"127.0.0.1:{port}",
      "--processes",
      str(count),
      "--process-id",
      str(i),
    ]
    started.append(
      subprocess.Popen(
        command + (group if count > 1 else []),
        env={
          **os.environ,
          "JAX_NUM_CPU_DEVICES": str(2 // count),
          "XDG_CACHE_HOME": str(cache / str(i)),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
      )
    )
  return started


def finish(started, timeout=300) -> list[str]:
  outputs = [process.communicate(timeout=timeout)[0] for process in started]
  assert [process.returncode for process in started] == [0] * len(started), outputs
  return outputs


def losses(content: bytes) -> dict[int, float]:
  lines = map(json.loads, content.splitlines())
  return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
  """A run on the disk that nothing disturbs."""
  workdir = tmp_path_factory.mktemp("whole")
  finish(start(workdir, data, workdir / "cache"))
  return workdir


@pytest.fixture(scope="module")
def s3_server(data):
  with servers.s3() as server:
    servers.s3fs().put(f"{data}/", "bucket/data", recursive=True)
    yield server


@pytest.fixture
def s3(s3_server):
  yield s3_server
  s3_server.fail = lambda environ: None


def wait_for(filesystem, path, process):
  """For a file that is not empty."""
  deadline = time.monotonic() + 300
  while not filesystem.exists(path) or not filesystem.size(path):
    assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
    time.sleep(0.05)


def state(filesystem, run, folder):
  filesystem.get(f"{run}/checkpoints/{STEPS}", f"{folder}/checkpoints/", recursive=True)
  return short_runs.state(folder, STEPS)


def failing(share, seed=0):
  """Refuses a share of the requests."""
  rng = np.random.default_rng(seed)
  return lambda environ: "503 Slow Down" if rng.random() < share else None


def test_a_killed_run_in_s3_goes_on_as_if_it_had_not_been(s3, data, whole, tmp_path):
  """Trained from tars there; one of twenty requests fails."""
  filesystem, run = servers.s3fs(), "bucket/runs/killed"
  s3.fail = failing(0.05)
  (process,) = start(f"s3://{run}", "s3://bucket/data", tmp_path)
  wait_for(filesystem, f"{run}/checkpoints/4/meta/metadata", process)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  (output,) = finish(start(f"s3://{run}", "s3://bucket/data", tmp_path))
  s3.fail = lambda environ: None
  assert re.search(r"resuming at step (4|8|12)\b", output), output
  assert losses(filesystem.cat(f"{run}/metrics.jsonl")) == losses(
    (whole / "metrics.jsonl").read_bytes()
  )
  got = state(filesystem, run, tmp_path / "copy")
  short_runs.assert_equal(got, short_runs.state(whole))
  # Nothing of the killed process is left on this machine.
  assert os.listdir(tmp_path / "0/siglax/runs") == []


def test_two_processes_save_in_s3_and_one_resumes(s3, data, tmp_path, monkeypatch):
  filesystem, run = servers.s3fs(), "bucket/runs/two"
  (tmp_path / "slow_folders.py").write_text(SLOW_FOLDERS)
  monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
  # A leaf that is large enough to be sharded.
  flags = ("--config.mesh.fsdp=2", "--config.model.image.mlp_dim=20000")
  flags += ("--import", "slow_folders")
  finish(start(tmp_path / "local", data, tmp_path, *flags))
  first = start(f"s3://{run}", "s3://bucket/data", tmp_path, *flags, count=2)
  wait_for(filesystem, f"{run}/checkpoints/4/meta/metadata", first[0])
  first[1].send_signal(signal.SIGTERM)
  outputs = finish(first)
  assert "stopped by SIGTERM at step" in outputs[0] or "curves: s3://" in outputs[0]
  (output,) = finish(start(f"s3://{run}", "s3://bucket/data", tmp_path, *flags))
  assert "resuming at step" in output
  want = losses((tmp_path / "local/metrics.jsonl").read_bytes())
  got = losses(filesystem.cat(f"{run}/metrics.jsonl"))
  assert got.keys() == want.keys()
  np.testing.assert_allclose([got[k] for k in want], list(want.values()), rtol=1e-6)


def test_a_bucket_that_is_gone_ends_a_run_with_one_line(s3, data, tmp_path):
  filesystem, run = servers.s3fs(), "bucket/runs/gone"
  flags = ("--config.total_steps=100000", "--config.checkpoint.every_steps=100000")
  (process,) = start(f"s3://{run}", data, tmp_path, *flags)
  wait_for(filesystem, f"{run}/metrics.jsonl", process)
  s3.fail = lambda environ: "500 Internal Server Error"
  process.send_signal(signal.SIGTERM)
  began = time.monotonic()
  output = process.communicate(timeout=120)[0]
  print(f"ended after {time.monotonic() - began:.0f} s")
  assert process.returncode == 1
  said = re.search(
    r"^siglax train: the checkpoint of step (\d+) could not be saved; there is no good "
    r"checkpoint; what was to be uploaded is in (\S+): copy it to s3://(\S+)$",
    output,
    re.MULTILINE,
  )
  assert "Traceback" not in output, output
  assert said, output
  # What it advises.
  s3.fail = lambda environ: None
  filesystem.put(said[2], said[3], recursive=True)
  (process,) = start(f"s3://{run}", data, tmp_path, *flags)
  wait_for(filesystem, f"{run}/lock.json", process)
  while "resuming at step" not in (line := process.stdout.readline()):
    assert line, process.wait()
  assert line.strip().endswith(f"resuming at step {said[1]}")
  process.kill()
  process.communicate()


@pytest.fixture
def gcs(monkeypatch):
  """gcsfs's filesystem of an emulator with the bucket "bucket", which the environment names."""
  emulator = pytest.importorskip("gcp_storage_emulator.server")
  # The emulator's own answers one connection at a time, and gcsfs keeps many open; its requests
  # must come one by one.
  threaded = {**vars(http.server), "HTTPServer": http.server.ThreadingHTTPServer}
  monkeypatch.setattr(emulator, "server", types.SimpleNamespace(**threaded))
  one, handle = threading.Lock(), emulator.Router.handle

  def handle_alone(self, method):
    with one:
      handle(self, method)

  monkeypatch.setattr(emulator.Router, "handle", handle_alone)
  port = free_port()
  server = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
  server.start()
  monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
  monkeypatch.setenv("FSSPEC_GCS_TOKEN", "anon")
  # The emulator has no endpoint that tells whether a bucket has real folders. gcsfs reads this when
  # it is imported.
  monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
  gcsfs = pytest.importorskip("gcsfs")
  yield gcsfs.GCSFileSystem(token="anon", use_listings_cache=False)
  server.stop()


def test_a_run_in_google_s_storage(gcs, data, whole, tmp_path):
  for file in data.iterdir():
    gcs.pipe_file(f"bucket/data/{file.name}", file.read_bytes())
  (process,) = start("gs://bucket/run", "gs://bucket/data", tmp_path)
  wait_for(gcs, "bucket/run/checkpoints/4/meta/metadata", process)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  (output,) = finish(start("gs://bucket/run", "gs://bucket/data", tmp_path))
  assert "resuming at step" in output
  assert losses(gcs.cat("bucket/run/metrics.jsonl")) == losses(
    (whole / "metrics.jsonl").read_bytes()
  )
  for path in gcs.find(f"bucket/run/checkpoints/{STEPS}"):
    file = tmp_path / "copy" / path.removeprefix("bucket/run/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gcs.cat_file(path))
  short_runs.assert_equal(short_runs.state(tmp_path / "copy"), short_runs.state(whole))
