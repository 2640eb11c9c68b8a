"""siglax/runs/metrics.py and curves.py: what is on disk after a run, a kill and a resume."""

import contextlib
import io
import itertools
import json
import os
import pathlib
import resource
import signal
import struct
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
import test_evals

from siglax import config as config_lib
from siglax import evals
from siglax.data import plot
from siglax.devices import chips
from siglax.runs import curves
from siglax.runs import files
from siglax.runs import goodput
from siglax.runs import history
from siglax.runs import metrics
from siglax.runs import records
from siglax.runs import summary
from siglax.training import run as run_lib

TINY = str(pathlib.Path(__file__).parent / "tiny.py")


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture
def config():
  config = config_lib.default()
  config.batch_size = 32
  config.log.tensorboard = False
  return config


def lines(folder):
  return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def record_run(folder, config, steps, *, step=0, total_steps=100):
  with metrics.RunMetrics(folder, config, total_steps=total_steps, step=step) as run:
    for s in steps:
      run.write(s, {"loss": 1 / s, "examples_per_sec": 64.0, "mfu": None})


def test_one_line_a_record_with_plain_numbers(tmp_path, config):
  with metrics.RunMetrics(tmp_path / "run", config, total_steps=100) as run:
    with jax.transfer_guard("disallow"):
      run.write(10, {"loss": jax.device_put(np.float32(0.5)), "scale": np.float64(10), "mfu": None})
    run.write(10, {"eval/val/acc1": 0.25})
    run.write(20, {"loss": np.float32("nan"), "grad_norm": float("inf")})
    # On disk before close: another process, or nobody, may read it after a kill.
    assert len(lines(tmp_path / "run")) == 3
  assert lines(tmp_path / "run") == [
    {"step": 10, "examples": 320, "loss": 0.5, "scale": 10.0},
    {"step": 10, "examples": 320, "eval/val/acc1": 0.25},
    {"step": 20, "examples": 640, "loss": None, "grad_norm": None},
  ]
  # No constant that strict JSON readers refuse.
  assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
  "torn",
  [
    b"",
    b'{"step": null, "loss": 1}',
    b'{"step": "60"}',
    b'{"step": 60, "lo',
    b"\x00\x00\x00",
    b'{"step": 60, "loss": 0.1}',
  ],
)
def test_resume_drops_later_and_torn_lines(tmp_path, config, torn):
  record_run(tmp_path, config, [10, 20, 30, 40, 50])
  with (tmp_path / "metrics.jsonl").open("ab") as file:
    file.write(torn)
  assert [r["step"] for r in records.read(tmp_path)][:5] == [10, 20, 30, 40, 50]
  record_run(tmp_path, config, [40, 50, 60], step=30)
  assert [r["step"] for r in lines(tmp_path)] == [10, 20, 30, 40, 50, 60]
  assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


@contextlib.contextmanager
def full_at(size):
  """As a full disk: this process can write no file beyond so many bytes."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_failed_rewrite_leaves_the_old_file_and_no_other(tmp_path, config):
  record_run(tmp_path, config, range(1, 20))
  before = (tmp_path / "metrics.jsonl").read_bytes()
  with (
    full_at(100),
    pytest.raises(
      ValueError, match="metrics.jsonl cannot be written: File too large; .* another --workdir"
    ),
  ):
    record_run(tmp_path, config, [], step=10)
  assert (tmp_path / "metrics.jsonl").read_bytes() == before
  assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_lines_wait_for_a_full_disk_and_none_is_torn(tmp_path, caplog):
  path = tmp_path / "a.jsonl"
  lines = files.Lines(path, keep=4)
  lines.append({"n": 0})
  with full_at(20):  # two lines of nine bytes, and two bytes of a third
    for n in range(1, 5):
      lines.append({"n": n})
  assert [r["n"] for r in files.read_records(path, "n")] == [0, 1]
  assert [r.message for r in caplog.records] == [
    f"{path} cannot be written (File too large): its lines wait in memory, and the training goes on"
  ]
  lines.append({"n": 5})
  assert path.read_bytes() == b"".join(b'{"n": %d}\n' % n for n in range(6))
  assert [r.message for r in caplog.records][1:] == [f"{path} is written again"]
  with full_at(path.stat().st_size + 3):
    for n in range(6, 12):
      lines.append({"n": n})
    lines.close()
  assert caplog.records[-1].message == f"{path} lacks its last lines, 4 of them (File too large)"
  # No torn line at the end either
  assert path.read_bytes() == b"".join(b'{"n": %d}\n' % n for n in range(6))


def test_lines_keep_the_newest_in_memory(tmp_path):
  lines = files.Lines(tmp_path / "a.jsonl", keep=2)
  with full_at(0):
    for n in range(5):
      lines.append({"n": n})
  lines.close()
  assert files.read_records(tmp_path / "a.jsonl", "n") == [{"n": 3}, {"n": 4}]


# A run of 300 records whose disk is full from the third kilobyte on, and free again before the last
# record.
FULL = """
import resource, sys
from siglax import config as config_lib
from siglax.runs import metrics
from siglax.devices import streams
config = config_lib.default()
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
with metrics.RunMetrics(sys.argv[1], config, total_steps=300) as run:
  resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
  for step in range(1, 300):
    run.write(step, {"loss": 1.0, "lr": 1e-3})
  resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
  run.write(300, {"loss": 1.0})
streams.say("done")
"""


def run_full(folder, **streams):
  environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
  return subprocess.run(
    [sys.executable, "-c", FULL, str(folder)], timeout=100, env=environment, text=True, **streams
  )


def test_a_full_disk_neither_hangs_nor_ends_a_run(tmp_path):
  done = run_full(tmp_path, capture_output=True)
  assert done.returncode == 0 and done.stdout == "done\n", done.stderr
  warnings = [
    line.removeprefix("WARNING:siglax:")
    for line in done.stderr.splitlines()
    if not line.startswith("step ")
  ]
  assert sorted(warnings) == [
    f"{tmp_path}/metrics.jsonl cannot be written (File too large): its lines wait in memory, and "
    "the training goes on",
    f"{tmp_path}/metrics.jsonl is written again",
    "TensorBoard is dropped, and the training goes on without it: OSError: [Errno 27] File too "
    "large",
  ]
  assert [r["step"] for r in lines(tmp_path)] == list(range(1, 301))


def test_a_pipe_that_nobody_reads_neither_ends_a_run_nor_prints_a_traceback(tmp_path):
  unread, pipe = os.pipe()
  os.close(unread)
  with os.fdopen(pipe, "w") as pipe:
    assert run_full(tmp_path / "both", stdout=pipe, stderr=pipe).returncode == 0
    done = run_full(tmp_path / "stdout", stdout=pipe, stderr=subprocess.PIPE)
    assert done.returncode == 0 and "Error" not in done.stderr.replace("OSError: [Errno 27]", "")
  assert [r["step"] for r in lines(tmp_path / "both")] == list(range(1, 301))


@pytest.mark.slow
def test_a_run_without_stdout_and_stderr_trains_and_saves(tmp_path):
  given = f'--config {TINY}:steps=2 --workdir {tmp_path} --config.eval.tasks="()"'
  command = f'exec "{sys.executable}" -m siglax.commands.cli train {given}'
  environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
  assert (
    subprocess.run(
      ["sh", "-c", f"{command} >/dev/full 2>&-"], env=environment, timeout=200
    ).returncode
    == 0
  )
  assert [r["step"] for r in lines(tmp_path) if "loss" in r] == [1, 2]
  assert (tmp_path / "checkpoints" / "2").is_dir() and (tmp_path / "curves.png").is_file()
  (start,) = history.read(tmp_path)
  assert (start["first_step"], start["last_step"], start["ended"]) == (0, 2, "finished")


def test_a_metrics_file_that_is_none_is_one_line(tmp_path, config):
  (tmp_path / "metrics.jsonl").mkdir()
  os.mkfifo(tmp_path / "fifo")
  (tmp_path / "other").mkdir()
  (tmp_path / "other" / "metrics.jsonl").symlink_to(tmp_path / "fifo")
  for folder in (tmp_path, tmp_path / "other"):
    with pytest.raises(
      ValueError, match=r"metrics.jsonl cannot be written: it is no file; .* --workdir$"
    ):
      record_run(folder, config, [])


def test_kill_9_then_resume(tmp_path, config):
  program = f"""
from siglax import config as config_lib
from siglax.runs import metrics
from siglax.devices import streams
config = config_lib.default()
config.log.tensorboard = False
run = metrics.RunMetrics({str(tmp_path)!r}, config, total_steps=10**9)
for step in range(1, 10**9):
  run.write(step, {{"loss": 1.0, "lr": 1e-3}})
"""
  process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
  for line in process.stderr:
    if line.startswith("step 300/"):
      break
  process.kill()
  process.wait()
  process.stderr.close()
  record_run(tmp_path, config, [201, 202], step=200)
  assert [r["step"] for r in lines(tmp_path)] == list(range(1, 203))


def test_other_processes_write_nothing(tmp_path, config, monkeypatch, capsys):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  with metrics.RunMetrics(tmp_path / "run", config, total_steps=10) as run:
    run.write(1, {"loss": 1.0})
    run.print_summary()
  assert not (tmp_path / "run").exists() and capsys.readouterr() == ("", "")


def events(folder):
  from tensorboardX.proto import event_pb2

  for path in sorted(folder.glob("events.*")):
    blob, at = path.read_bytes(), 0
    while at < len(blob):
      (size,) = struct.unpack("<Q", blob[at : at + 8])
      yield event_pb2.Event.FromString(blob[at + 12 : at + 12 + size])
      at += size + 16


def test_tensorboard_events_and_purge_on_resume(tmp_path, config):
  config.log.tensorboard = True
  with metrics.RunMetrics(tmp_path, config, total_steps=100) as run:
    run.write(10, {"loss": 0.5})
    run.write(10, {"eval/val/acc1": 0.25})
  scalars = {(v.tag, e.step): v.simple_value for e in events(tmp_path) for v in e.summary.value}
  assert scalars == {
    ("train/loss", 10): 0.5,
    ("train/examples", 10): 320,
    ("eval/val/acc1", 10): 0.25,
  }
  record_run(tmp_path, config, [20], step=10)
  # Hides the steps from there on
  assert [e.step for e in events(tmp_path) if e.session_log.status] == [
    1,
    11,
  ]


def test_wandb_is_resumed_by_its_id(tmp_path, config, monkeypatch):
  calls = []
  run = types.SimpleNamespace(
    log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("finish")
  )
  monkeypatch.setitem(
    sys.modules, "wandb", types.SimpleNamespace(init=lambda **kw: calls.append(kw) or run)
  )
  config.log.wandb = "project"
  for step in (0, 10):
    record_run(tmp_path, config, [step + 10], step=step)
  first, logged, finished, second, *_ = calls
  assert (
    first["project"] == "project"
    and first["id"] == second["id"] == (tmp_path / "wandb_id.txt").read_text()
  )
  assert first["config"]["batch_size"] == 32 and finished == "finish"
  assert logged == (10, {"train/examples": 320, "train/loss": 0.1, "train/examples_per_sec": 64.0})


def test_wandb_missing_says_what_to_install(tmp_path, config, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  config.log.wandb = "project"
  with pytest.raises(
    ValueError, match=r"config.log.wandb='project' needs .* pip install siglax\[wandb\]"
  ):
    metrics.RunMetrics(tmp_path, config, total_steps=10)


def write_both_kinds(folder, config):
  with metrics.RunMetrics(folder, config, total_steps=100) as run:
    run.write(40, {"loss": 0.5, "examples_per_sec": 64.0, "mfu": 0.314})
    run.write(50, {"eval/val/acc1": 0.25, "eval/val/acc5": 0.75})
    return run


def test_progress_in_a_log(tmp_path, config, capsys):
  write_both_kinds(tmp_path, config)
  assert capsys.readouterr().err.splitlines() == [
    "step 40/100  loss 0.5000  64 examples/s  eta 0:00:30  mfu 31.4%",
    "step 50/100  val/acc1 0.25  val/acc5 0.75",
  ]


def test_progress_in_a_terminal(tmp_path, config, monkeypatch):
  monkeypatch.setattr(sys, "stderr", Terminal())
  monkeypatch.setenv("TERM", "xterm")
  monkeypatch.setenv("COLUMNS", "120")
  write_both_kinds(tmp_path, config)
  shown = sys.stderr.getvalue()
  assert (
    "step 40/100  loss 0.5000  64 examples/s  eta 0:00:30" in shown
    and "step 50/100  val/acc1 0.25" in shown
  )


def test_wandb_that_fails_is_dropped_with_one_warning(tmp_path, config, monkeypatch, caplog):
  logged = []

  def log(values, step):
    logged.append(step)
    if len(logged) == 2:
      raise RuntimeError("no network")

  def finish():
    raise RuntimeError("still none")

  def init(**_):
    raise RuntimeError("no server")

  monkeypatch.setitem(
    sys.modules,
    "wandb",
    types.SimpleNamespace(init=lambda **_: types.SimpleNamespace(log=log, finish=finish)),
  )
  config.log.wandb = "project"
  record_run(tmp_path, config, [10, 20, 30])
  assert logged == [10, 20] and [r["step"] for r in lines(tmp_path)] == [10, 20, 30]
  record_run(tmp_path, config, [40], step=30)
  monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
  record_run(tmp_path, config, [50], step=40)
  dropped = "Weights & Biases is dropped, and the training goes on without it: RuntimeError: "
  assert [r.message for r in caplog.records] == [
    dropped + "no network",
    dropped + "still none",
    dropped + "no server",
  ]
  assert [r["step"] for r in lines(tmp_path)] == [10, 20, 30, 40, 50]


def test_facts_are_written_once_and_names_keep_their_order(tmp_path, config, capsys):
  values = {
    "eval/b/recall@10": 0.5,
    "eval/b/recall@5": 0.25,
    "eval/a/acc1": 0.1,
    "eval/a/chance/acc1": 0.02,
  }
  with metrics.RunMetrics(tmp_path, config, total_steps=100) as run:
    run.write(10, values)
    run.write(20, values)
  with metrics.RunMetrics(tmp_path, config, total_steps=100, step=20) as run:
    run.write(30, values)
    run.write(40, {**values, "eval/a/chance/acc1": 0.03})
  once = ["step", "examples", "eval/b/recall@10", "eval/b/recall@5", "eval/a/acc1"]
  assert [list(r) for r in lines(tmp_path)] == [
    [*once, "eval/a/chance/acc1"],
    once,
    once,
    [*once, "eval/a/chance/acc1"],
  ]
  assert (
    capsys.readouterr().err.splitlines()[0]
    == "step 10/100  b/recall@10 0.5  b/recall@5 0.25  a/acc1 0.1"
  )


# Three starts, by hand: 0 → 53 killed, 50 → 60 killed, 40 (as 50 was damaged) → 100. Of the first,
# steps 41 to 53 are done again, though 51 to 53 count once: 13 of its 53. Of the second all 10, of
# the third none.
STARTS = [
  {
    "start": 1,
    "first_step": 0,
    "last_step": 53,
    "seconds": {"init": 10, "data_wait": 5.3, "step": 53},
    "ended": "killed",
  },
  {
    "start": 2,
    "first_step": 50,
    "last_step": 60,
    "seconds": {"init": 10, "data_wait": 2, "step": 10, "checkpoint": 4},
    "ended": "killed",
  },
  {
    "start": 3,
    "first_step": 40,
    "last_step": 100,
    "seconds": {"init": 10, "step": 60, "evaluation": 5.7},
    "ended": "finished",
  },
]


def test_steps_lost_to_stops_and_their_time():
  steps, seconds = history.account(STARTS)
  assert steps == 13 + 10 == 53 + 10 + 60 - 100
  assert seconds == pytest.approx(
    {
      "init": 30,
      "compile": 0,
      "data_wait": 4.0,
      "step": 40 + 60,
      "evaluation": 5.7,
      "checkpoint": 4,
      "lost": 1.3 + 13 + 2 + 10,
    }
  )
  assert history.account([]) == (0, dict.fromkeys((*goodput.PHASES, "lost"), 0.0))


def test_history_survives_kill_9_and_notes_how_starts_end(tmp_path):
  program = f"""
import os, signal
from siglax.runs import goodput
from siglax.runs import history
kept = history.History({str(tmp_path)!r}, step=30, goodput=goodput.Goodput())
kept.update(37)
os.kill(os.getpid(), signal.SIGKILL)
"""
  process = subprocess.Popen([sys.executable, "-c", program])
  assert process.wait() == -signal.SIGKILL
  with (tmp_path / "starts.jsonl").open("ab") as file:
    file.write(b'{"start": 1, "last')  # as a kill in a write leaves it
  clock = goodput.Goodput()
  clock.enter("step")
  with history.History(tmp_path, step=32, goodput=clock) as second:
    second.update(33)
    first, now = history.read(tmp_path)
    assert (first["pid"], first["first_step"], first["last_step"], first["ended"]) == (
      process.pid,
      30,
      37,
      "killed",
    )
    assert (now["start"], now["pid"], now["first_step"], now["last_step"], now["ended"]) == (
      2,
      os.getpid(),
      32,
      33,
      None,
    )
    second.end(34, "SIGTERM")
  assert (tmp_path / "starts.jsonl").read_text().count("\n") == 2  # one line of each
  with pytest.raises(ZeroDivisionError), history.History(tmp_path, step=34, goodput=clock) as third:
    third.update(35)
    1 / 0
  history.History(tmp_path, step=35, goodput=clock).end(40, "finished")
  starts = history.read(tmp_path)
  assert [(s["last_step"], s["ended"]) for s in starts] == [
    (37, "killed"),
    (34, "SIGTERM"),
    (35, "ZeroDivisionError: division by zero"),
    (40, "finished"),
  ]
  assert (
    history.account(starts)[0] == 37 - 32
    and starts[1]["seconds"]["step"] > 0 == starts[1]["seconds"]["compile"]
  )


def test_history_that_cannot_be_written_is_one_warning(tmp_path, caplog):
  (tmp_path / "starts.jsonl").mkdir()
  with history.History(tmp_path, step=0, goodput=goodput.Goodput()) as kept:
    kept.update(1)
    kept.end(2, "finished")
  assert [r.message for r in caplog.records] == [
    f"{tmp_path}/starts.jsonl cannot be written (Is a directory): this start will be in no report"
  ]
  assert history.read(tmp_path) == []


@pytest.mark.parametrize("fault", ["another process", "no file"])
def test_a_start_without_a_history_ends_in_its_own_error(fault, tmp_path, monkeypatch):
  if fault == "no file":
    (tmp_path / "starts.jsonl").mkdir()
  else:
    monkeypatch.setattr(jax, "process_index", lambda: 1)
  with (
    pytest.raises(FloatingPointError, match="loss=nan"),
    history.History(tmp_path, step=4, goodput=goodput.Goodput()),
  ):
    raise FloatingPointError("loss=nan")


def test_summary(tmp_path, config, capsys, monkeypatch):
  run = write_both_kinds(tmp_path, config)
  run.print_summary()
  text = capsys.readouterr().out.splitlines()
  assert text[0] == f"siglax run {tmp_path.name}"
  assert [line.split("  ")[-1].strip() for line in text[1:]] == [
    "50",
    "1,600",
    "64",
    "0.5000, batch 32",
    "0.2500 at step 50, best 0.2500 at step 50",
    "0.7500 at step 50, best 0.7500 at step 50",
    str(tmp_path),
  ]
  monkeypatch.setattr(sys, "stdout", Terminal())
  run.print_summary()
  assert "final loss" in sys.stdout.getvalue()


def write_lines(path, records):
  path.write_text("".join(json.dumps(r) + "\n" for r in records))


def test_summary_of_all_starts(tmp_path, config):
  write_lines(tmp_path / "metrics.jsonl", [{"step": 100, "examples": 3200}])
  write_lines(tmp_path / "starts.jsonl", STARTS[2:])
  assert dict(summary.summary(tmp_path, config))["time"] == "0:01:16"
  write_lines(tmp_path / "starts.jsonl", STARTS)
  rows = dict(summary.summary(tmp_path, config))
  assert rows["time"] == "0:02:50 over 3 starts, with 23 steps lost to stops"  # 170 s, by hand
  assert (
    rows["goodput"]
    == "init 17.6%  compile 0.0%  data_wait 2.4%  step 58.8%  evaluation 3.4%  checkpoint 2.4%  "
    "lost 15.5%"
  )


def test_summary_shows_the_best_chance_batches_and_a_loss_that_rises(tmp_path, config):
  facts = {"eval/in/chance/acc1": 0.1, "eval/val/batch/loss": 24}
  losses, accuracies = [6.1, 5.8, 5.83, 5.9, None, 5.86], [0.1, 0.3, 0.2, 0.3, 0.25, None]
  records = [
    {
      "step": 10 * i,
      "examples": 320 * i,
      "eval/val/loss": l,
      "eval/in/acc1": a,
      **(facts if i == 1 else {}),
    }
    for i, (l, a) in enumerate(zip(losses, accuracies), 1)
  ]

  def rows(n):
    write_lines(tmp_path / "metrics.jsonl", records[:n])
    return summary.summary(tmp_path, config)[2:-1]

  assert rows(5) == [
    ("eval/val/loss", "not finite at step 50, best 5.8000 at step 20, batch 24"),
    ("eval/in/acc1", "0.2500 at step 50, best 0.3000 at step 20, chance 0.1000"),
  ]
  # 5.86 is above 5.8 by 1.03%, 5.83 by 0.5%; and 5.9 by 1.7%.
  rises = (
    "it has risen since step 20 (best 5.8000, now {}), where lower is better: the model overfits"
  )
  assert [rows(n)[2:] for n in range(1, 7)] == [
    [],
    [],
    [],
    [("eval/val/loss", rises.format("5.9000"))],
    [],
    [("eval/val/loss", rises.format("5.8600"))],
  ]
  records[2]["eval/val/loss"] = 5.9  # one evaluation after the best says little
  assert rows(3)[2:] == []
  for record in records:
    record["eval/val/loss"] = None
  assert rows(6)[0] == ("eval/val/loss", "not finite at step 60, batch 24")


def test_summary_of_a_run_without_records(tmp_path, config):
  record_run(tmp_path, config, [])
  assert summary.summary(tmp_path, config) == [("files", str(tmp_path))]
  with pytest.raises(ValueError, match="metrics.jsonl: no such file"):
    records.read(tmp_path / "nothing")


def test_chance_is_what_random_rankings_get():
  counts = [1, 2, 4]  # captions of three images
  captions = [[f"{i}.{j}" for j in range(n)] for i, n in enumerate(counts)]
  rng = np.random.default_rng(0)
  embedder = test_evals.Embedder(
    test_evals.unit(rng, 3, 4),
    {t: z for t, z in zip(sum(captions, []), test_evals.unit(rng, 7, 4))},
  )
  facts = {}
  task = {"kind": "retrieval", "name": "x", "data": {"source": "shapes"}}
  evals.run(
    test_evals.make_config(task), embedder, lambda _: test_evals.Examples(captions), facts=facts
  )
  owner, want = np.repeat(range(3), counts), {}
  for k in (1, 5, 10):
    # Every set of k captions that may come first, and of k images.
    texts = [set(owner[list(top)]) for top in itertools.combinations(range(7), min(k, 7))]
    want[f"eval/x/chance/text_retrieval_recall@{k}"] = np.mean(
      [[i in top for i in range(3)] for top in texts]
    )
    want[f"eval/x/chance/image_retrieval_recall@{k}"] = min(k, 3) / 3
  assert facts == pytest.approx(want)
  for names, acc5 in (("abcdefgh", 5 / 8), ("abc", 1)):
    embedder = test_evals.Embedder(
      np.eye(2, dtype=np.float32), {n: np.ones(2, np.float32) for n in names}
    )
    task = {
      "kind": "zero_shot",
      "name": "x",
      "data": {},
      "classnames": tuple(names),
      "templates": ("{}",),
    }
    facts = {}
    evals.run(
      test_evals.make_config(task),
      embedder,
      lambda _: test_evals.Examples([[]] * 2, [0, 1]),
      facts=facts,
    )
    assert facts == {
      "eval/x/chance/acc1": 1 / len(names),
      "eval/x/chance/acc5": acc5,
      "eval/x/chance/mean_per_class_recall": 1 / len(names),
    }


@pytest.mark.parametrize("count, batch", [(5, 5), (8, 8), (19, 8)])
def test_the_loss_tells_the_size_of_its_batches(count, batch):
  embedder = test_evals.Embedder(np.eye(count, dtype=np.float32), {"a": np.ones(count, np.float32)})
  task, facts = {"kind": "loss", "name": "x", "data": {}}, {}
  evals.run(
    test_evals.make_config(task, batch_size=8),
    embedder,
    lambda _: test_evals.Examples([["a"]] * count),
    test_evals.sigmoid_loss,
    facts,
  )
  assert facts == {"eval/x/batch/loss": batch}
  assert evals.lower_is_better("eval/x/loss") and not evals.lower_is_better("eval/loss/acc1")


@pytest.mark.parametrize(
  "every, total, want",
  [
    (233, 700, [233, 466, 700]),  # 699 is a step before the end
    (100, 1000, [100 * i for i in range(1, 11)]),
    (90, 99, [90, 99]),  # just a tenth
    (None, 50, [50]),
    (91, 100, [100]),
    (60, 100, [60, 100]),
    (1, 3, [1, 2, 3]),
  ],
)
def test_an_evaluation_just_before_the_last_step_is_left_to_it(every, total, want):
  run = types.SimpleNamespace(every={"eval": every, "checkpoint": every}, total_steps=total)
  assert [step for step in range(total + 1) if run_lib.Run.due(run, "eval", step)] == want
  if every:
    saves = [*range(every, total, every), total]
    assert [step for step in range(total + 1) if run_lib.Run.due(run, "checkpoint", step)] == saves


@pytest.mark.parametrize(
  "kind, tflops",
  [
    ("TPU v4", 275),
    ("TPU v5 lite", 197),
    ("TPU v5e", 197),
    ("TPU v5", 459),
    ("TPU v5p", 459),
    ("TPU v6 lite", 918),
    ("TPU v6e", 918),
    ("NVIDIA A100-SXM4-80GB", 312),
    ("NVIDIA H100 80GB HBM3", 989.5),
    ("NVIDIA H100 PCIe", 756.5),
    ("NVIDIA H200", 989.5),
    ("NVIDIA GH200 480GB", 989.5),
    ("NVIDIA H200 NVL", 835.5),
    ("NVIDIA B200", 2250),
    ("NVIDIA GB200", 2500),
    ("NVIDIA L4", 121),
    ("NVIDIA L40S", 362),
    ("NVIDIA L40", 181),
    ("Tesla V100-SXM2-16GB", 125),
    ("Tesla V100-PCIE-32GB", 112),
    ("Tesla T4", 65),
    ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
    ("NVIDIA RTX A1000", None),
    ("NVIDIA T400", None),
    ("NVIDIA A10G", None),
  ],
)
def test_peak_flops(kind, tflops):
  device = types.SimpleNamespace(platform="gpu", device_kind=kind)
  assert chips.peak_flops(device) == (None if tflops is None else tflops * 1e12)
  assert chips.peak_flops(jax.devices("cpu")[0]) is None


def test_nothing_heavy_is_imported_early():
  heavy = ("tensorboardX", "rich", "matplotlib", "wandb")
  program = (
    "import sys, siglax.runs.metrics, siglax.runs.curves, siglax.evals\n"
    f"print([m for m in {heavy} if m in sys.modules])"
  )
  assert (
    subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip()
    == "[]"
  )


def test_curves(tmp_path):
  records = [
    {"step": s, "loss": 5 / s, "logit_pos": 0.1 * s, "logit_neg": -1.0 * s} for s in range(1, 30)
  ]
  records += [
    {"step": s, "eval/val/loss": abs(s - 20) + 1, "eval/in/acc1": s / 40, "eval/in/acc5": 0.5}
    for s in (10, 20, 30)
  ]
  records += [
    {"step": 30, "eval/in/chance/acc1": 0.2},
    {"step": 25, "loss": None},
    {"step": 40, "eval/val/loss": None},
  ]
  records += [{"step": 10, "eval/c/image_retrieval_recall@1": 0.01}]
  write_lines(tmp_path / "metrics.jsonl", records)
  panels = dict(curves._panels(records))
  assert list(panels) == ["Loss", "Zero-shot accuracy, %", "Retrieval R@1, %", "Mean logit"]
  training, validation = panels["Loss"]
  assert training.label == "training" and len(training.steps) == 29 and training.best is None
  assert validation == ("val", plot.COLOURS[0], (10, 20, 30), (11, 1, 11), None, (20, 1))
  assert panels["Zero-shot accuracy, %"] == [
    ("in", plot.COLOURS[0], (10, 20, 30), (25, 50, 75), 20, (30, 75))
  ]
  assert [c.label for c in panels["Retrieval R@1, %"]] == ["c text → image"]
  assert [c.label for c in panels["Mean logit"]] == ["pairs", "non-pairs"]
  path = curves.plot(tmp_path)
  assert path == tmp_path / "curves.png" and path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
  "values, chance, want",
  [
    ((2.0, 3.0), None, (1.95, 3.05)),
    ((2.0, 3.0), 1.0, (0.9, 3.1)),
    ((2.0, 3.0), 0.5, (1.95, 3.05)),
    ((4.0,), None, (3.8, 4.2)),
  ],
)
def test_axes_fit_the_values_and_a_chance_that_is_near(values, chance, want):
  assert curves._limits(
    [curves.Curve("a", "#000000", (1,) * len(values), values, chance)]
  ) == pytest.approx(want)


def test_curves_of_nothing_is_an_error(tmp_path):
  (tmp_path / "metrics.jsonl").write_text("")
  with pytest.raises(ValueError, match="holds no loss and no evaluation to draw"):
    curves.plot(tmp_path)


def test_curve_labels_do_not_touch():
  heights = curves._apart([10.0, 97, 98, 99], 0, 100)
  assert heights[0] == 10 and min(np.diff(heights)) > 6 and heights[-1] <= 100
