"""siglax.metrics and siglax.curves: what is on disk after a run, a kill and a resume."""

import io
import json
import struct
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from siglax import config as config_lib
from siglax import curves
from siglax import metrics


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


@pytest.mark.parametrize("torn", [b"", b'{"step": 60, "lo', b"\x00\x00\x00", b'{"step": 60, "loss": 0.1}'])
def test_resume_drops_later_and_torn_lines(tmp_path, config, torn):
  record_run(tmp_path, config, [10, 20, 30, 40, 50])
  with (tmp_path / "metrics.jsonl").open("ab") as file:
    file.write(torn)
  assert [r["step"] for r in metrics.read(tmp_path)][:5] == [10, 20, 30, 40, 50]
  record_run(tmp_path, config, [40, 50, 60], step=30)
  assert [r["step"] for r in lines(tmp_path)] == [10, 20, 30, 40, 50, 60]
  assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_failed_rewrite_leaves_the_old_file(tmp_path, config, monkeypatch):
  record_run(tmp_path, config, [10, 20])
  before = (tmp_path / "metrics.jsonl").read_bytes()

  def fail(*_):
    raise OSError("disk full")

  monkeypatch.setattr(metrics.os, "fsync", fail)
  with pytest.raises(OSError):
    record_run(tmp_path, config, [20], step=10)
  assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_kill_9_then_resume(tmp_path, config):
  program = f"""
from siglax import config as config_lib, metrics
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
      size, = struct.unpack("<Q", blob[at : at + 8])
      yield event_pb2.Event.FromString(blob[at + 12 : at + 12 + size])
      at += size + 16


def test_tensorboard_events_and_purge_on_resume(tmp_path, config):
  config.log.tensorboard = True
  with metrics.RunMetrics(tmp_path, config, total_steps=100) as run:
    run.write(10, {"loss": 0.5})
    run.write(10, {"eval/val/acc1": 0.25})
  scalars = {(v.tag, e.step): v.simple_value for e in events(tmp_path) for v in e.summary.value}
  assert scalars == {("train/loss", 10): 0.5, ("train/examples", 10): 320, ("eval/val/acc1", 10): 0.25}
  record_run(tmp_path, config, [20], step=10)
  assert [e.step for e in events(tmp_path) if e.session_log.status] == [1, 11]  # hides the steps from there on


def test_wandb_is_resumed_by_its_id(tmp_path, config, monkeypatch):
  calls = []
  run = types.SimpleNamespace(log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("finish"))
  monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **kw: calls.append(kw) or run))
  config.log.wandb = "project"
  for step in (0, 10):
    record_run(tmp_path, config, [step + 10], step=step)
  first, logged, finished, second, *_ = calls
  assert first["project"] == "project" and first["id"] == second["id"] == (tmp_path / "wandb_id.txt").read_text()
  assert first["config"]["batch_size"] == 32 and finished == "finish"
  assert logged == (10, {"train/examples": 320, "train/loss": 0.1, "train/examples_per_sec": 64.0})


def test_wandb_missing_says_what_to_install(tmp_path, config, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  config.log.wandb = "project"
  with pytest.raises(ValueError, match=r"config.log.wandb='project' needs .* pip install siglax\[wandb\]"):
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
  assert "step 40/100  loss 0.5000  64 examples/s  eta 0:00:30" in shown and "step 50/100  val/acc1 0.25" in shown


def test_summary(tmp_path, config, capsys, monkeypatch):
  run = write_both_kinds(tmp_path, config)
  run.print_summary()
  text = capsys.readouterr().out.splitlines()
  assert text[0] == f"siglax run {tmp_path.name}"
  assert dict(line.split(maxsplit=1) for line in text[1:] if "final" not in line and "median" not in line) == {
      "steps": "50", "examples": "1,600", "time": "0:00:00", "eval/val/acc1": "0.2500", "eval/val/acc5": "0.7500", "files": str(tmp_path)
  }
  assert "final loss" in text[5] and text[5].endswith("0.5000") and text[4].endswith("64")
  assert ("time", "1:01:01") in metrics.summary(tmp_path, 3661.2)
  monkeypatch.setattr(sys, "stdout", Terminal())
  run.print_summary()
  assert "final loss" in sys.stdout.getvalue()


def test_summary_of_a_run_without_records(tmp_path, config):
  record_run(tmp_path, config, [])
  assert metrics.summary(tmp_path, 0) == [("time", "0:00:00"), ("files", str(tmp_path))]
  with pytest.raises(ValueError, match="metrics.jsonl: no such file"):
    metrics.read(tmp_path / "nothing")


@pytest.mark.parametrize("kind, tflops", [
    ("TPU v4", 275), ("TPU v5 lite", 197), ("TPU v5e", 197), ("TPU v5", 459), ("TPU v5p", 459), ("TPU v6 lite", 918), ("TPU v6e", 918),
    ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA H100 80GB HBM3", 989.5), ("NVIDIA H100 PCIe", 756.5), ("NVIDIA H200", 989.5),
    ("NVIDIA GH200 480GB", 989.5), ("NVIDIA H200 NVL", 835.5), ("NVIDIA B200", 2250), ("NVIDIA GB200", 2500), ("NVIDIA L4", 121),
    ("NVIDIA L40S", 362), ("NVIDIA L40", 181), ("Tesla V100-SXM2-16GB", 125), ("Tesla V100-PCIE-32GB", 112), ("Tesla T4", 65),
    ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None), ("NVIDIA RTX A1000", None), ("NVIDIA T400", None), ("NVIDIA A10G", None),
])
def test_peak_flops(kind, tflops):
  device = types.SimpleNamespace(platform="gpu", device_kind=kind)
  assert metrics.peak_flops(device) == (None if tflops is None else tflops * 1e12)
  assert metrics.peak_flops(jax.devices("cpu")[0]) is None


def test_nothing_heavy_is_imported_early():
  heavy = ("tensorboardX", "rich", "matplotlib", "wandb")
  program = f"import sys, siglax.metrics, siglax.curves, siglax.optim, siglax.evals; print([m for m in {heavy} if m in sys.modules])"
  assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "[]"


def test_curves(tmp_path):
  records = [{"step": s, "loss": 5 / s, "logit_pos": 0.1 * s, "logit_neg": -1.0 * s} for s in range(1, 30)]
  records += [{"step": s, "eval/val/loss": 6 / s, "eval/in/acc1": s / 30, "eval/in/acc5": 0.5} for s in (10, 20)]
  records += [{"step": 25, "loss": None}]
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
  (loss_title, _, loss), (_, limits, evaluation), (_, _, logits) = curves._panels(records)
  assert loss_title == "Loss" and [c[0] for c in loss] == ["training", "val"] and limits == (0, 100)
  assert evaluation == [("in accuracy", curves.COLOURS[0], (10, 20), (pytest.approx(100 / 3), pytest.approx(200 / 3)))]
  assert [c[0] for c in logits] == ["pairs", "non-pairs"] and len(loss[0][2]) == 29
  path = curves.plot(tmp_path)
  assert path == tmp_path / "curves.png" and path.read_bytes().startswith(b"\x89PNG")


def test_curves_of_nothing_is_an_error(tmp_path):
  (tmp_path / "metrics.jsonl").write_text("")
  with pytest.raises(ValueError, match="holds no loss and no evaluation to draw"):
    curves.plot(tmp_path)


def test_curve_labels_do_not_touch():
  heights = curves._apart([10.0, 97, 98, 99], 0, 100)
  assert heights[0] == 10 and min(np.diff(heights)) > 6 and heights[-1] <= 100
