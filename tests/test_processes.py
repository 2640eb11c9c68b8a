"""Several real processes as one run, over gloo: the same losses as one process, ended together,
resumed by any number.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

from conftest import free_port
import numpy as np
import pytest

from siglax import config as config_lib
from siglax.commands import cli
from siglax.devices import distributed

TINY = str(pathlib.Path(__file__).parent / "tiny.py")
# What could tell processes apart: dropout by place in the batch, the ring over both axes, sharded
# parameters.
FIELDS = (
  "--config.eval.tasks=()",
  "--config.mesh.fsdp=2",
  "--config.loss.impl=ring",
  "--config.model.image.dropout=0.2",
  "--config.train.microbatch=1",
)


def start(workdir, count, *fields, devices=8, each=None):
  """`count` processes of siglax train with devices / count devices each. each: more words of one
  process.
  """
  port = free_port()
  command = [
    sys.executable,
    "-m",
    "siglax.commands.cli",
    "train",
    "--config",
    TINY,
    "--workdir",
    str(workdir),
    *FIELDS,
    *fields,
  ]
  started = []
  for i in range(count):
    group = (
      ["--coordinator", f"127.0.0.1:{port}", "--processes", str(count), "--process-id", str(i)]
      if count > 1
      else []
    )
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices // count)}
    started.append(
      subprocess.Popen(
        command + group + (each[i] if each else []),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
      )
    )
  return started


def finish(started, timeout=150):
  outputs = [process.communicate(timeout=timeout)[0] for process in started]
  return [process.returncode for process in started], outputs


def losses(workdir):
  records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return {r["step"]: r["loss"] for r in records if "loss" in r}


def wait_for_step(workdir, step, started):
  deadline = time.monotonic() + 150
  while time.monotonic() < deadline and all(process.poll() is None for process in started):
    try:
      if max(losses(workdir)) >= step:
        return
    except (OSError, ValueError):
      pass  # not there yet, or a line half written
    time.sleep(0.02)
  raise AssertionError(finish(started)[1])


def assert_same(got, want):
  assert got.keys() == want.keys()
  np.testing.assert_allclose([got[k] for k in want], list(want.values()), rtol=1e-6)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """One process of eight devices, from the first step to the last."""
  workdir = tmp_path_factory.mktemp("whole")
  codes, outputs = finish(start(workdir, 1))
  assert codes == [0], outputs
  return losses(workdir)


@pytest.mark.slow
def test_a_signal_to_one_process_ends_all_at_one_step_and_one_process_resumes(whole, tmp_path):
  started = start(tmp_path, 2, "--config.log.every_steps=1")
  wait_for_step(tmp_path, 2, started)
  started[1].send_signal(signal.SIGTERM)
  codes, outputs = finish(started)
  assert codes == [0, 0], outputs
  stopped = max(losses(tmp_path))
  assert f"stopped by SIGTERM at step {stopped}, saved" in outputs[0] and stopped < 12
  assert "loss" in outputs[0] and "loss" not in outputs[1]  # process 0 alone reports
  codes, outputs = finish(start(tmp_path, 1))
  assert codes == [0] and f"resuming at step {stopped}" in outputs[0]
  assert_same(losses(tmp_path), whole)


@pytest.mark.slow
def test_processes_that_are_slices_have_the_losses_of_one_slice(whole, tmp_path):
  codes, outputs = finish(start(tmp_path, 2, "--config.mesh.slices=2"))
  assert codes == [0, 0], outputs
  assert "ring of 2 × 4" in outputs[0]
  assert_same(losses(tmp_path), whole)


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_four_resume(whole, tmp_path):
  started = start(tmp_path, 2)
  wait_for_step(tmp_path, 6, started)
  started[1].send_signal(signal.SIGKILL)
  codes, outputs = finish(started, timeout=60)
  assert codes[0] != 0 and codes[1] == -signal.SIGKILL
  # XLA's word where its heartbeat is the first to notice, siglax's where a collective is.
  words = "tasks are unhealthy", "another process of this group has ended"
  assert any(word in outputs[0] for word in words), outputs[0]
  codes, outputs = finish(start(tmp_path, 4))
  assert codes == [0] * 4 and "resuming at step" in outputs[0], outputs
  assert_same(losses(tmp_path), whole)


def test_processes_with_different_configs_are_told_apart(tmp_path):
  codes, outputs = finish(start(tmp_path, 2, each=[[], ["--config.optim.lr=0.5"]]))
  assert codes == [1, 1]
  for output in outputs:
    assert (
      "the processes have different configs: optim.lr is 0.001 in process 0 and 0.5 in process 1"
      in output
    )
    assert "Traceback" not in output
  assert not (tmp_path / "config.json").exists()


def test_processes_with_different_imports_are_told_apart(tmp_path):
  for name, power in (("a.py", 2), ("b.py", 3)):
    (tmp_path / name).write_text(
      f"from siglax import losses\nlosses.pairwise('own', lambda x, p: (x - p) ** {power})\n"
    )
  each = [["--import", str(tmp_path / name)] for name in ("a.py", "b.py")]
  codes, outputs = finish(start(tmp_path / "run", 2, each=each))
  assert codes == [1, 1]
  for output in outputs:
    assert "the processes have imported different files: " in output and "a.py (" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
  "arguments, message",
  [
    (
      ["--processes", "2"],
      "--coordinator, --process-id missing; a process group needs all of --coordinator, "
      "--processes, --process-id",
    ),
    (
      ["--coordinator", "localhost:1", "--processes", "2", "--process-id", "2"],
      "--process-id=2 must lie in 0 … 1, as --processes=2",
    ),
    (
      ["--coordinator", "localhost", "--processes", "2", "--process-id", "1"],
      "--coordinator=localhost must be host:port",
    ),
    (
      ["--coordinator", "127.0.0.1:9", "--processes", "2", "--process-id", "1", "--wait", "1"],
      "process 1 could not reach process 0 at 127.0.0.1:9 within 1 s",
    ),
  ],
)
def test_a_group_that_cannot_be_is_one_line(arguments, message, tmp_path, capsys):
  assert cli.main(["train", "--config", TINY, "--workdir", str(tmp_path / "run"), *arguments]) == 1
  (line,) = capsys.readouterr().err.strip().splitlines()
  assert message in line and not (tmp_path / "run").exists()


def test_the_environment_names_a_group(monkeypatch):
  for name, value in zip(distributed.VARIABLES, ("host:1", "4", "3")):
    monkeypatch.setenv(name, value)
  assert distributed._named(None, None, None) == ("host:1", 4, 3)
  assert distributed._named("other:2", 2, 0) == ("other:2", 2, 0)  # flags go first
  monkeypatch.delenv("JAX_PROCESS_ID")
  with pytest.raises(
    ValueError, match="JAX_PROCESS_ID missing; a process group needs all of JAX_COORDINATOR_ADDRESS"
  ):
    distributed._named(None, None, None)


def test_differences_name_both_sides():
  a, b = config_lib.default(), config_lib.default()
  b.seed = 3
  assert config_lib.differences(a, b, "in process 0", "in process 1") == [
    "seed is 0 in process 0 and 3 in process 1"
  ]
