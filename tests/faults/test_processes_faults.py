"""Faults in real processes, one or two as a group: killed, hung up, damaged, deaf. All slow but for
a start or two.
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

from siglax.runs import lock

from short_runs import TINY
from short_runs import assert_equal
from short_runs import state
from short_runs import steps

CHILD = str(pathlib.Path(__file__).parent / "child.py")
FIELDS = (
  "--config.eval.tasks=()",
  "--config.log.tensorboard=False",
  "--config.checkpoint.keep_latest=3",
)
END_SECONDS = 30


def start(workdir, count=1, *fields, faults=({},), config=f"{TINY}:steps=12"):
  """faults: of each process, the last for those that follow."""
  port, started = free_port(), []
  for i in range(count):
    group = (
      ["--coordinator", f"127.0.0.1:{port}", "--processes", str(count), "--process-id", str(i)]
      if count > 1
      else []
    )
    command = [
      sys.executable,
      CHILD,
      json.dumps(faults[min(i, len(faults) - 1)]),
      "train",
      "--config",
      config,
      "--workdir",
      str(workdir),
    ]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(2 // count)}
    started.append(
      subprocess.Popen(
        [*command, *FIELDS, *fields, *group],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
      )
    )
  return started


def finish(started, timeout=200):
  outputs = [process.communicate(timeout=timeout)[0] for process in started]
  return [process.returncode for process in started], outputs


def wait_for(condition, started, timeout=200):
  deadline = time.monotonic() + timeout
  while time.monotonic() < deadline and not condition():
    if all(process.poll() is not None for process in started):
      raise AssertionError(finish(started))
    time.sleep(0.01)
  assert condition()


def logged(workdir):
  try:
    return max(
      json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()
    )
  except (OSError, ValueError):
    return 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """Two devices, whether of one process or of two."""
  workdir = tmp_path_factory.mktemp("whole")
  codes, outputs = finish(start(workdir))
  assert codes == [0], outputs
  return workdir


def copy_of_stopped(whole, workdir):
  """As if the run had been killed after step 8."""
  subprocess.run(["cp", "-r", str(whole), str(workdir)], check=True)
  subprocess.run(["rm", "-r", str(workdir / "checkpoints" / "12")], check=True)
  return workdir


def assert_one_line(output, *texts):
  line = output.strip().splitlines()[-1]
  assert all(text in line for text in texts), output
  assert "Traceback" not in output and "Exception ignored" not in output, output


@pytest.mark.slow
def test_the_last_save_fails_in_one_line_and_in_time_although_a_thread_hangs(whole, tmp_path):
  faults = {"failing_saves": {"kind": "ENOSPC"}, "hanging_thread": {}}
  started = start(tmp_path, 1, "--config.checkpoint.every_steps=12", faults=(faults,))
  wait_for(lambda: logged(tmp_path) >= 11, started)
  begin = time.monotonic()
  codes, outputs = finish(started)
  assert codes == [1] and time.monotonic() - begin < END_SECONDS + 10
  assert_one_line(
    outputs[0],
    "siglax train: the checkpoint of step 12 could not be saved",
    "make room on the disk",
  )


@pytest.mark.slow
def test_a_full_disk_in_the_background_is_one_line(whole, tmp_path):
  codes, outputs = finish(start(tmp_path, faults=({"small_files": {"size": 2**16}},)))
  assert codes == [1]
  assert_one_line(outputs[0], "siglax train: ", "there is no good checkpoint")


@pytest.mark.slow
def test_a_second_interrupt_ends_an_evaluation_that_swallows_it(tmp_path):
  spec = "{'source':'shapes','split':'test','image_size':16}"
  task = f"--config.eval.tasks=({{'kind':'loss','name':'test','data':{spec},'examples':16}},)"
  started = start(tmp_path, 1, task, faults=({"deaf_evaluation": {}},))
  wait_for(lambda: logged(tmp_path) >= 6, started)
  time.sleep(1)
  for _ in range(2):
    started[0].send_signal(signal.SIGINT)
    time.sleep(0.5)
  codes, _ = finish(started, timeout=20)
  assert codes == [130]
  codes, outputs = finish(start(tmp_path, 1))  # its lock is a dead process's
  assert codes == [0] and "is dead; taking it over" in outputs[0]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_signal_to_one_of_two_saves_in_both(number, whole, tmp_path):
  started = start(tmp_path, 2, config=f"{TINY}:steps=2000")
  wait_for(lambda: logged(tmp_path) >= 2, started)
  started[1].send_signal(number)
  codes, outputs = finish(started, timeout=60)
  assert codes == [0, 0], outputs
  assert "saved; the same command resumes there" in outputs[0] and steps(tmp_path)[-1] == logged(
    tmp_path
  )


@pytest.mark.slow
def test_two_processes_walk_back_together(whole, tmp_path):
  workdir = copy_of_stopped(whole, tmp_path / "run")
  file = max(
    (workdir / "checkpoints" / "8" / "state" / "d").iterdir(), key=lambda p: p.stat().st_size
  )
  file.write_bytes(b"")
  codes, outputs = finish(start(workdir, 2))
  assert codes == [0, 0] and all("checkpoint of step 8 is damaged" in out for out in outputs), (
    outputs
  )
  assert "resuming at step 4" in outputs[0] and (workdir / "checkpoints" / "damaged-8").is_dir()
  got, want = state(workdir), state(whole)
  for k in want:  # gloo adds in another order than one process
    np.testing.assert_allclose(got[k], want[k], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("times, codes", [(2, [0, 0]), (10**6, [1, 1])])
def test_a_read_that_fails_in_one_of_two(times, codes, whole, tmp_path):
  workdir = copy_of_stopped(whole, tmp_path / "run")
  started = start(workdir, 2, faults=({}, {"failing_reads": {"kind": "EIO", "times": times}}))
  got, outputs = finish(started, timeout=120)
  assert got == codes, outputs
  assert steps(workdir)[:2] == [4, 8] and not list((workdir / "checkpoints").glob("damaged-*"))
  if codes == [1, 1]:
    assert_one_line(
      outputs[0],
      "the checkpoint of step 8",
      "another process could not read it; nothing was changed",
    )
    assert_one_line(
      outputs[1], "the checkpoint of step 8", "Input/output error; nothing was changed"
    )
  else:
    assert "resuming at step 8" in outputs[0]


@pytest.mark.slow
def test_a_group_is_started_once(tmp_path):
  first = start(tmp_path, 2, config=f"{TINY}:steps=100000")
  wait_for(lambda: logged(tmp_path) >= 1, first)
  codes, outputs = finish(start(tmp_path, 2, config=f"{TINY}:steps=100000"), timeout=120)
  assert codes == [1, 1] and all("is in use: process" in out for out in outputs), outputs
  assert all(process.poll() is None for process in first)
  first[0].send_signal(signal.SIGTERM)
  codes, outputs = finish(first)
  assert codes == [0, 0] and not (tmp_path / lock.FILE).exists()


@pytest.mark.slow
def test_a_short_soak(tmp_path):
  """One fault of each kind that ends or stops a run, from benchmarks/soak.py."""
  root = pathlib.Path(__file__).parents[2]
  counts = "kill=2,term=1,stop=1,full=1,damage=1,double=1,cut=1"
  command = [sys.executable, str(root / "benchmarks" / "soak.py"), "--tiny", "--counts", counts]
  made = subprocess.run(command, capture_output=True, text=True, timeout=900)
  assert made.returncode == 0, made.stdout + made.stderr
  assert "(final parameters)" in made.stdout and "FAILED" not in made.stdout
