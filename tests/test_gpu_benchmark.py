"""benchmarks/gpu.py, which is for machines with a GPU, proven on a CPU with tiny shapes."""

import json
import os
import pathlib
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))

import gpu  # noqa: E402, benchmarks/gpu.py


def run(*words):
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
  done = subprocess.run(
    [sys.executable, ROOT / "benchmarks/gpu.py", "--tiny", "--repeat", "1", *words],
    env=environment,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_every_part_runs_on_a_cpu(tmp_path):
  said, found = run("--json", str(tmp_path / "gpu.json"))
  assert json.loads((tmp_path / "gpu.json").read_text()) == found
  assert {row["part"] for row in found["rows"]} == set(gpu.PARTS)
  assert {"machine", "jax", "GPU, driver, memory, power"} <= found["machine"].keys()
  optional = ("torch", "open_clip", "CUDAExecutionProvider")
  for row in found["rows"]:
    if "note" in row:
      assert any(name in json.dumps(row) for name in optional), row
      continue
    if "loader/s" in row:
      assert row["loader / step"] == pytest.approx(row["loader/s"] / row["step/s"])
      continue
    assert row["ms"] > 0
    if "examples/s" in row:
      assert row["examples/s"] == pytest.approx(1000 * row["batch"] / row["ms"])
      assert row["GiB"] > 0 and "MFU" not in row  # a CPU has no published peak
    if "difference" in row:  # in bfloat16 the rounding of two programs
      assert row["difference"] <= (1e-4 if row["dtype"] == "float32" else 2e-2)
  # Two towers, and what changes at each; two losses in two forms and two dtypes.
  of = lambda part: [row for row in found["rows"] if row["part"] == part]
  assert {row["tower"] for row in of("mfu")} == {"B/16", "L/16"}
  assert {row["remat"] for row in of("mfu")} == {"none", "dots", "attn_mlp", "full"}
  assert len([row for row in of("loss") if "MiB" in row]) >= 8
  for part in gpu.PARTS:
    assert f"\n## {part}\n\n| " in said


def test_a_part_without_time_is_lines_of_the_table():
  said, found = run("--only", "batch,exports", "--budget", "0")
  assert {row["part"] for row in found["rows"]} == {"batch", "exports"}
  assert {row["note"] for row in found["rows"]} == {"left out: no time was left"}
  assert said.count("left out: no time was left |") == len(found["rows"])


def test_a_cell_that_fails_is_a_note():
  def out_of_memory():
    raise MemoryError("RESOURCE_EXHAUSTED: out of\nmemory")

  later = time.monotonic() + 60
  assert gpu.tried(out_of_memory, later) == {
    "note": "MemoryError: RESOURCE_EXHAUSTED: out of memory"
  }
  assert gpu.tried(lambda: {"ms": 1.0}, later) == {"ms": 1.0}
  rows = [{"part": "x", "a": 1.5, "note": "y|z"}, {"part": "x", "b": 2}]
  assert gpu.table(rows).splitlines() == ["| a | b | note |", "|---|---|---|"] + [
    "| 1.5 |  | y\\|z |",
    "|  | 2 |  |",
  ]


@pytest.mark.parametrize(
  "words, message",
  [
    (("--only", "mfu,lost"), "--only lost is unknown; known are mfu, loss, loader, batch, exports"),
    (("--repeat", "0"), "--repeat 0 must be at least 1"),
    (("--budget", "nan"), "--budget nan must be at least 0"),
    (("--json", "/no/such/gpu.json"), "--json /no/such/gpu.json: there is no folder /no/such"),
  ],
)
def test_wrong_words_are_refused_before_the_work(words, message):
  done = subprocess.run(
    [sys.executable, ROOT / "benchmarks/gpu.py", *words], capture_output=True, text=True
  )
  assert done.returncode == 2
  assert message in done.stderr
