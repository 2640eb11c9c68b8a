"""How runs end: saves that fail, signals at any moment, folders in use, longer runs. In this
process, on one device.
"""

import itertools
import multiprocessing
import os
import pathlib
import resource
import signal
import subprocess
import sys

import jax
import pytest

from siglax import data
from siglax.data import order
from siglax.devices import distributed
from siglax.devices import errors
from siglax.runs import checkpoint
from siglax.runs import folder as folder_lib
from siglax.runs import lock
from siglax.runs import stored
from siglax.training import evaluation
from siglax.training import program
from siglax.training import resume
from siglax.training import run as run_lib

import inject
from short_runs import assert_equal  # two are fixtures
from short_runs import make_config  # two are fixtures
from short_runs import records  # two are fixtures
from short_runs import run  # two are fixtures
from short_runs import shared_programs  # two are fixtures
from short_runs import state  # two are fixtures
from short_runs import steps  # two are fixtures
from short_runs import whole  # two are fixtures

SPEC = "{'source':'shapes','split':'test','image_size':16}"
TASK = f"({{'kind':'loss','name':'test','data':{SPEC},'examples':16}},)"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  monkeypatch.setattr(errors, "RETRY_SECONDS", (0.0, 0.0, 0.0, 0.0))


def test_a_save_that_fails_is_made_at_the_next_step(whole, tmp_path, caplog):
  with inject.nonfinite(), inject.failing_saves("ENOSPC", times=1):
    run(tmp_path, checkpoint__keep_latest=5)
  assert steps(tmp_path) == [5, 8, 12]
  assert (
    "the checkpoint of step 4 failed, attempt 1 in a row: [Errno 28] No space left on device"
    in caplog.text
  )
  assert_equal(state(tmp_path), whole)


@pytest.mark.parametrize(
  "fault", [lambda: inject.failing_saves("EROFS"), lambda: inject.small_files(2**16)]
)
def test_saves_that_fail_end_the_run_in_one_line(fault, whole, tmp_path):
  """The second fault fails in the background, inside of C++."""
  with inject.nonfinite():
    with fault(), pytest.raises(ValueError) as error:
      run(tmp_path, checkpoint__max_failed_saves=0)
    assert (
      "1 saves in a row have failed, each tried twice, more than "
      "config.checkpoint.max_failed_saves=0" in str(error.value)
    )
    with fault(), pytest.raises(ValueError) as last:
      run(tmp_path, checkpoint__max_failed_saves=9)
    assert (
      "the checkpoint of step 12 could not be saved; there is no good checkpoint; make room on the "
      "disk" in str(last.value)
    )
    assert "\n" not in str(error.value) + str(last.value) and steps(tmp_path) == []
    run(tmp_path)
  assert_equal(state(tmp_path), whole)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
  (tmp_path / "checkpoints").touch()
  with pytest.raises(
    ValueError, match="checkpoints cannot be written: File exists; use another --workdir"
  ):
    run(tmp_path)
  assert not (tmp_path / lock.FILE).exists()


def test_a_full_disk_at_the_start_leaves_the_files_of_the_run(tmp_path):
  folder_of(tmp_path / "run", 4)
  before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.is_file()}
  made, limits = (
    run_lib.Run(make_config(), tmp_path / "run"),
    resource.getrlimit(resource.RLIMIT_FSIZE),
  )
  size = len(before["config.json"])
  assert size < len(before["tokenizer.model"])  # so config.json fits, and the tokenizer does not
  try:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    said = "cannot be written: .*/run/tokenizer.model: File too large; use another folder"
    with pytest.raises(ValueError, match=said):
      resume.write_files(made)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.is_file()} == before


def test_a_run_that_broken_examples_stopped_goes_on_with_a_higher_limit(tmp_path):
  spec = "({'source':'shapes','examples':64,'image_size':16,'max_bad_fraction':%s},)"
  folder_of(tmp_path / "run", 4, data=spec % 0.01)
  resume.check_folder(run_lib.Run(make_config(data=spec % 0.1), tmp_path / "run"))
  with pytest.raises(
    ValueError, match="data.0.examples is 64 there and 63 here; use another --workdir"
  ):
    resume.check_folder(
      run_lib.Run(make_config(data=(spec % 0.1).replace("64", "63")), tmp_path / "run")
    )


def test_a_run_goes_on_with_the_examples_that_its_checkpoint_tells_of(tmp_path, monkeypatch):
  with inject.nonfinite():
    run(tmp_path, checkpoint__keep_latest=5)
    made, checkpoints = run_lib.Run(make_config(), tmp_path), stored.Stored(tmp_path)
    fingerprint = data.Fingerprint(made.config, made.sources)
    for step in (4, 8, 12):
      assert checkpoints.meta(step)["data"]["order"] == fingerprint(step)
    shuffled = order.shuffled
    monkeypatch.setattr(
      order, "shuffled", lambda source, spec, seed, field: shuffled(source, spec, seed + 1, field)
    )
    with pytest.raises(ValueError, match="the examples after step 12 would be others than when"):
      run(tmp_path, checkpoint__keep_latest=5)
    run(tmp_path, checkpoint__keep_latest=5, loader__allow_new_order=True)


def test_a_read_that_fails_for_ever_changes_nothing(whole, tmp_path):
  with inject.nonfinite():
    run(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for where in ("state", "meta", "list"):
      with (
        inject.failing_reads("ESTALE", times=10**6, where=where),
        pytest.raises(ValueError, match="nothing was changed"),
      ):
        run(tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def send_at(monkeypatch, number, owner, name, at=lambda *args: True):
  """Sends this process a signal when it calls a function, once."""
  function, sent = getattr(owner, name), []

  def call(*args, **kwargs):
    if not sent and at(*args):
      sent.append(True)
      os.kill(os.getpid(), number)
    return function(*args, **kwargs)

  monkeypatch.setattr(owner, name, call)


SIGNALS = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)
MOMENTS = {"start-up": 0, "step": 7, "save": 4, "evaluation": 6}
QUICK = (
  (signal.SIGHUP, "start-up"),
  (signal.SIGHUP, "step"),
  (signal.SIGTERM, "save"),
  (signal.SIGINT, "evaluation"),
)


@pytest.mark.parametrize(
  "number, moment",
  [
    pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
    for case in itertools.product(SIGNALS, MOMENTS)
  ],
)
def test_a_signal_at_any_moment_saves_and_the_run_resumes(number, moment, whole, tmp_path, capsys):
  fields = {"eval__tasks": TASK} if moment == "evaluation" else {}
  with inject.nonfinite():
    with pytest.MonkeyPatch.context() as patch:
      of_step = lambda self, step=0: step == 6
      owner, name, at = {
        "start-up": (data, "open_data", lambda *args: True),
        "step": (program.Program, "update", of_step),
        "save": (checkpoint.Checkpoints, "save", lambda *args: True),
        "evaluation": (evaluation.Evaluator, "__call__", lambda *args: True),
      }[moment]
      send_at(patch, number, owner, name, at)
      run(tmp_path, **fields)
    # A signal in a save or an evaluation is obeyed before the next one that is asked for: after the
    # step that follows, or at once.
    out = capsys.readouterr().out
    found = int(
      out.partition(f"stopped by {signal.Signals(number).name} at step ")[2].split()[0].rstrip(",")
    )
    assert MOMENTS[moment] <= found <= MOMENTS[moment] + 1
    assert steps(tmp_path)[-1:] == ([found] if found else [])
    run(tmp_path)
  assert_equal(state(tmp_path), whole)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_loader_worker_that_dies_with_a_signal(processes, tmp_path, monkeypatch, capsys):
  """One process saves what there is. Several agree on a later step to save at, which this one
  cannot reach without batches: it ends in one line, and waits for no agreement.
  """
  make, calls = data.TrainBatches.__next__, []

  def call(self):
    calls.append(True)
    assert len(calls) < 9, "it asks a dead loader again and again"
    if len(calls) == 6:
      monkeypatch.setattr(jax, "process_count", lambda: processes)
      monkeypatch.setattr(distributed, "preempted", lambda step: False)
      os.kill(os.getpid(), signal.SIGTERM)
      for worker in multiprocessing.active_children():
        worker.kill()
      for _ in range(99):  # what is ready is used up
        make(self)
    return make(self)

  monkeypatch.setattr(data.TrainBatches, "__next__", call)
  fields = {"loader__workers": 1, "checkpoint__every_steps": 99}
  if processes == 1:
    run(tmp_path, **fields)
    assert "stopped by SIGTERM at step 5, saved" in capsys.readouterr().out
    assert steps(tmp_path) == [5]
  else:
    with pytest.raises(ValueError, match="the worker process .* was ended by SIGKILL"):
      run(tmp_path, **fields)
  assert not multiprocessing.active_children()


def test_under_nohup_a_hangup_is_ignored(whole, tmp_path, monkeypatch):
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    send_at(monkeypatch, signal.SIGHUP, checkpoint.Checkpoints, "save")
    with inject.nonfinite():
      run(tmp_path)
  finally:
    signal.signal(signal.SIGHUP, before)
  assert_equal(state(tmp_path), whole)


def test_a_folder_in_use_or_taken_over(whole, tmp_path):
  with inject.nonfinite():
    with lock.Lock(tmp_path), pytest.raises(ValueError, match="is in use"):
      run(tmp_path)
    assert not (tmp_path / "config.json").exists()
    # Another host's takes it over after the save of step 4: nothing is saved after that, and its
    # lock stays.
    save = checkpoint.Checkpoints.save
    with pytest.MonkeyPatch.context() as patch:

      def saved(self, *args, **kwargs):
        save(self, *args, **kwargs)
        self.wait()
        (tmp_path / lock.FILE).write_text('{"host": "another", "process": 7, "key": "x"}')

      patch.setattr(checkpoint.Checkpoints, "save", saved)
      with pytest.raises(
        ValueError,
        match="process 7 on another has taken the run folder over; this process saves nothing more",
      ):
        run(tmp_path)
    assert steps(tmp_path) == [4] and '"x"' in (tmp_path / lock.FILE).read_text()
    (tmp_path / lock.FILE).unlink()
    run(tmp_path)
  assert_equal(state(tmp_path), whole)


def folder_of(workdir, step, **fields):
  """A run folder whose newest checkpoint is of a step, without training."""
  made = run_lib.Run(make_config(**fields), workdir)
  workdir.mkdir()
  folder_lib.write(made.workdir, made.config, made.text)
  (workdir / "checkpoints" / str(step)).mkdir(parents=True)


@pytest.mark.parametrize(
  "fields, step, longer",
  [
    ({"optim__schedule": "constant"}, 12, "at once"),
    ({"optim__schedule": "rsqrt"}, 12, "at once"),
    ({"optim__schedule": "constant", "optim__cooldown_steps": 4}, 8, "at once"),
    (
      {"optim__schedule": "constant", "optim__cooldown_steps": 4},
      9,
      "learning rate goes from 0.00075 to 0.001",
    ),
    # ½(1 + cos 2π/3), ½(1 + cos π/3)
    (
      {"optim__schedule": "cosine"},
      8,
      "learning rate goes from 0.00025 to 0.00075",
    ),
    ({"optim__schedule": "linear"}, 6, "learning rate goes from 0.0005 to 0.00075"),
  ],
)
def test_a_run_is_made_longer_where_its_schedule_allows_it(fields, step, longer, tmp_path):
  workdir = tmp_path / "run"
  folder_of(workdir, step, **fields)
  made = run_lib.Run(make_config(**fields, total_steps=24), workdir)
  if longer == "at once":
    resume.check_folder(made)
  else:
    with pytest.raises(ValueError) as error:
      resume.check_folder(made)
    assert (
      longer in str(error.value)
      and "give --extend" in str(error.value)
      and "\n" not in str(error.value)
    )
  resume.check_folder(made, extend=True)
  for extend in (False, True):
    with pytest.raises(
      ValueError, match="is of 12 steps, this one of 8; a run can only be made longer"
    ):
      resume.check_folder(run_lib.Run(make_config(**fields, total_steps=8), workdir), extend)


@pytest.mark.slow
def test_a_longer_run_ends_as_if_it_had_been_so_long(tmp_path):
  fields = {"optim__schedule": "constant"}
  with inject.nonfinite():
    run(tmp_path / "longer", total_steps=8, **fields)
    run(tmp_path / "longer", **fields)
    run(tmp_path / "whole", **fields)
  assert_equal(state(tmp_path / "longer"), state(tmp_path / "whole"))
  assert [r["loss"] for r in records(tmp_path / "longer") if "loss" in r] == [
    r["loss"] for r in records(tmp_path / "whole") if "loss" in r
  ]


def test_a_program_that_fails_ends_although_a_thread_hangs():
  code = (
    "import sys, threading; from siglax.commands import cli; cli.END_SECONDS = 0.5; cli.main = "
    "lambda: 1;"
    "threading.Thread(target=threading.Event().wait).start(); sys.exit(cli.entry())"
  )
  root = pathlib.Path(__file__).parents[2]
  assert subprocess.run([sys.executable, "-c", code], cwd=root, timeout=60).returncode == 1
