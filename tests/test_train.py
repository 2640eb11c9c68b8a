"""The loop in real processes: killed, stopped, diverged, resumed; and bad input in one line."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from siglax import config as config_lib
from siglax.commands import cli
from siglax.data.shapes import Shapes
from siglax.data.text import TextProcessor
from siglax.runs import history
from siglax.runs import stored
from siglax.training import resume
from siglax.training import run as run_lib

TINY = str(pathlib.Path(__file__).parent / "tiny.py")
CONTRACT = {
  "step",
  "examples",
  "loss",
  "scale",
  "bias",
  "logit_pos",
  "logit_neg",
  "grad_norm",
  "lr",
  "examples_per_sec",
  "examples_per_sec_per_device",
  "data_wait",
  "step_time",
}


def start(workdir, *fields, config=TINY):
  command = [
    sys.executable,
    "-m",
    "siglax.commands.cli",
    "train",
    "--config",
    config,
    "--workdir",
    str(workdir),
    *fields,
  ]
  environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
  return subprocess.Popen(
    command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
  )


def run(workdir, *fields, **kw):
  process = start(workdir, *fields, **kw)
  out, _ = process.communicate(timeout=240)
  return process.returncode, out


def records(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir):
  return [(r["step"], r["loss"]) for r in records(workdir) if "loss" in r]


def evaluations(workdir):
  return [
    {k: v for k, v in r.items() if k == "step" or k.startswith("eval/")}
    for r in records(workdir)
    if any(k.startswith("eval/") for k in r)
  ]


def stop_at(workdir, step, number, saved=None):
  """Starts a run and sends a signal once this step is logged, and that one saved; returns (exit
  code, output).
  """
  process = start(workdir)
  deadline = time.monotonic() + 200
  while time.monotonic() < deadline and process.poll() is None:
    try:
      if losses(workdir)[-1][0] >= step and (
        saved is None or (workdir / "checkpoints" / str(saved)).is_dir()
      ):
        break
    except (OSError, ValueError, IndexError):
      pass  # not there yet, or a line half written
    time.sleep(0.02)
  process.send_signal(number)
  out, _ = process.communicate(timeout=120)
  return process.returncode, out


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A run that nothing interrupts."""
  workdir = tmp_path_factory.mktemp("whole")
  code, out = run(workdir)
  assert code == 0, out
  return workdir


def test_a_run_leaves_what_is_promised(whole):
  names = {p.name for p in whole.iterdir()}
  assert {"config.json", "checkpoints", "metrics.jsonl", "tokenizer.model", "curves.png"} <= names
  assert any(name.startswith("events") for name in names)
  assert [step for step, _ in losses(whole)] == list(range(1, 13))
  # Whose values tests/test_six_steps.py checks
  assert set(records(whole)[3]) == CONTRACT | {
    "local_accuracy",
    "host_time",
  }
  assert stored.Stored(whole).steps == [8, 12] and (whole / "curves.png").read_bytes().startswith(
    b"\x89PNG"
  )
  text = TextProcessor(whole / "tokenizer.model", length=12)
  assert (text(["a red square"]) == TextProcessor(length=12)(["a red square"])).all()
  resolved = config_lib.resolve(config_lib.load(TINY), TextProcessor())
  assert config_lib.from_json((whole / "config.json").read_text()).to_dict() == resolved.to_dict()
  assert [e["step"] for e in evaluations(whole)] == [6, 12]
  assert set(evaluations(whole)[0]) >= {
    "eval/classes/acc1",
    "eval/captions/text_retrieval_recall@5",
    "eval/captions/image_retrieval_recall@10",
    "eval/test/loss",
  }


@pytest.mark.parametrize("step, saved", [(3, None), (4, 4)])
def test_killed_and_started_again_is_as_if_not_killed(whole, tmp_path, step, saved):
  code, _ = stop_at(tmp_path, step, signal.SIGKILL, saved)
  assert code == -signal.SIGKILL
  reached = losses(tmp_path)[-1][0]
  assert reached < 12
  steps = stored.Stored(tmp_path).steps  # what the kill left whole; nothing of it is done again
  assert saved is None or saved in steps
  code, out = run(tmp_path, "--config.loader.threads=3")
  assert code == 0, out
  assert f"resuming at step {steps[-1]}\n" in out if steps else "resuming" not in out
  assert losses(tmp_path) == losses(whole)
  assert evaluations(tmp_path) == evaluations(whole)
  assert [(s["last_step"], s["ended"]) for s in history.read(tmp_path)] == [
    (reached, "killed"),
    (12, "finished"),
  ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_says_how_to_resume(whole, tmp_path, number):
  code, out = stop_at(tmp_path, 3, number)
  assert code == 0, out
  assert f"stopped by {number.name} at step" in out and "the same command resumes there" in out
  stopped = losses(tmp_path)[-1][0]
  assert stopped < 12 and (tmp_path / "checkpoints" / str(stopped)).is_dir()
  code, out = run(tmp_path)
  assert code == 0 and f"resuming at step {stopped}" in out
  assert losses(tmp_path) == losses(whole)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
  code, out = run(tmp_path, "--config.optim.lr=1e30", "--config.checkpoint.every_steps=1")
  assert code == 1 and "Traceback" not in out
  last = out.strip().splitlines()[-1]
  assert (
    "loss=nan at step" in last
    and "the last good checkpoint is" in last
    and "lower config.optim.lr" in last
  )
  code, out = run(
    tmp_path / "checked", "--config.optim.lr=1e30", "--config.loss.check_embeddings=True"
  )
  assert (
    code == 1
    and "tower's embeddings at step" in out.strip().splitlines()[-1]
    and "are not finite" in out
  )
  # No checkpoint: the folder is free for another config
  resume.check_folder(run_lib.Run(config_lib.load(TINY), tmp_path / "checked"))


def test_a_finished_run_and_a_run_of_another_config(whole, capsys):
  before = records(whole)
  code, out = run(whole)
  assert code == 0 and records(whole) == before, out
  line = fails(
    capsys,
    "train",
    "--config",
    TINY,
    "--workdir",
    str(whole),
    "--config.optim.lr=0.5",
    "--config.batch_size=32",
  )
  assert "holds a run of another config" in line
  assert (
    "optim.lr is 0.001 there and 0.5 here" in line and "batch_size is 16 there and 32 here" in line
  )


def test_replay_makes_a_step_again_and_names_its_examples(whole, capsys):
  before = {p: p.read_bytes() for p in whole.rglob("*") if p.is_file()}
  command = [
    sys.executable,
    "-m",
    "siglax.commands.cli",
    "replay",
    "--run",
    str(whole),
    "--step",
    "10",
    "--json",
  ]
  done = subprocess.run(
    command,
    env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
    capture_output=True,
    text=True,
    timeout=240,
  )
  assert done.returncode == 0, done.stderr
  report = json.loads(done.stdout)
  (logged,) = (r for r in records(whole) if r["step"] == 10 and "loss" in r)
  assert (report["loss"], report["grad_norm"], report["logged"]) == (
    logged["loss"],
    logged["grad_norm"],
    logged["loss"],
  )
  assert report["from"] == 8 and len(report["examples"]) == 16
  source = Shapes(examples=64, image_size=16)
  for example in report["examples"]:
    drawn = source[example["example"]]
    assert (example["data"], example["label"], example["captions"]) == (
      0,
      drawn["label"],
      list(drawn["captions"]),
    )
  # One pass over the data, each example once
  assert len({example["example"] for example in report["examples"]}) == 16
  assert {p: p.read_bytes() for p in whole.rglob("*") if p.is_file()} == before
  assert "--step 13 must lie in 1 … 12" in fails(
    capsys, "replay", "--run", str(whole), "--step", "13"
  )


def fails(capsys, *arguments):
  """The one line that a command which fails prints."""
  assert cli.main(list(arguments)) == 1
  captured = capsys.readouterr()
  (line,) = captured.err.strip().splitlines()
  return line


def parquet(path, rows):
  pq.write_table(pa.table(rows), path)
  return str(path)


@pytest.mark.parametrize(
  "field, message",
  [
    ("optim.ler=1", "config.optim.ler is unknown; did you mean config.optim.lr?"),
    ("batch_size=12", "config.batch_size=12 is not divisible by the 8 devices"),
    ("loss.name=triplet", "known are sigmoid, softmax, focal, hinge"),
    ("optim.name=sgd", "known are adamw, adafactor, lion"),
    ("data.0.source=tar", "known are shapes, parquet"),
    ("model.text.variant=XL", "known are Ti, S, B, L, So400m, g-opt"),
    ("text.tokenizer=none.model", "none.model"),
    (
      "data=({'source':'parquet','path':'none.parquet'},)",
      "config.data.0.path='none.parquet': no such file",
    ),
  ],
)
def test_bad_fields_are_one_line(field, message, tmp_path, capsys):
  assert message in fails(
    capsys, "train", "--config", TINY, "--workdir", str(tmp_path / "run"), f"--config.{field}"
  )
  assert not (tmp_path / "run").exists()


def test_bad_files_are_one_line(tmp_path, capsys):
  (tmp_path / "empty.parquet").touch()
  no_image = parquet(tmp_path / "columns.parquet", {"picture": [b"x"], "caption": ["a cat"]})
  for path, message in ((tmp_path / "empty.parquet", "is empty"), (no_image, "no such column")):
    field = f"--config.data=({{'source':'parquet','path':'{path}'}},)"
    line = fails(capsys, "train", "--config", TINY, "--workdir", str(tmp_path / "run"), field)
    assert message in line and "config.data.0." in line


@pytest.mark.parametrize(
  "rows, reason",
  [
    ({"image": [b"not a picture"] * 8, "caption": ["a cat"] * 8}, "image"),
    ({"image": [b"\x89PNG"] * 8, "caption": [""] * 8}, "caption"),
  ],
)
def test_data_without_a_good_example_stops_the_run(rows, reason, tmp_path, capsys):
  path = parquet(tmp_path / "bad.parquet", rows)
  field = f"--config.data=({{'source':'parquet','path':'{path}'}},)"
  assert cli.main(["train", "--config", TINY, "--workdir", str(tmp_path / "run"), field]) == 1
  last = capsys.readouterr().err.strip().splitlines()[-1]
  assert last.startswith("siglax train: ") and "config.data.0" in last and reason in last


def test_bad_folders_and_commands_are_one_line(tmp_path, capsys):
  (tmp_path / "file").touch()
  line = fails(capsys, "train", "--config", TINY, "--workdir", str(tmp_path / "file" / "run"))
  assert "cannot be written" in line
  assert "no such file" in fails(capsys, "train", "--config", "none.py", "--workdir", str(tmp_path))
  assert "is no run folder" in fails(capsys, "evaluate", "--from", str(tmp_path))
  assert "no such file or folder" in fails(capsys, "evaluate", "--from", str(tmp_path / "none"))
  assert "--colour=1 is unknown" in fails(capsys, "evaluate", "--from", str(tmp_path), "--colour=1")
