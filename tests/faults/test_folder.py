"""Run folders whose files were lost, mixed or changed between two starts: one line, and nothing of
value is touched.
"""

import json
import os
import shutil
import signal

import cv2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from siglax.data import pipeline
from siglax.data.shapes import Shapes
from siglax.runs import history

import inject
from short_runs import STEPS  # pylint: disable=unused-import
from short_runs import assert_equal  # pylint: disable=unused-import
from short_runs import run  # pylint: disable=unused-import
from short_runs import shared_programs  # pylint: disable=unused-import
from short_runs import state  # pylint: disable=unused-import
from short_runs import steps  # pylint: disable=unused-import


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A run that nothing disturbs; its checkpoints are of steps 8 and 12."""
  workdir = tmp_path_factory.mktemp("whole") / "run"
  with inject.nonfinite():
    run(workdir)
  return workdir


@pytest.fixture
def folder(whole, tmp_path):
  """A copy of it that resumes at step 8."""
  shutil.copytree(whole, tmp_path / "run")
  shutil.rmtree(tmp_path / "run" / "checkpoints" / "12")
  return tmp_path / "run"


def contents(folder):
  return {
    str(p.relative_to(folder)): p.read_bytes()
    for p in folder.rglob("*")
    if p.is_file() and p.name != "lock.json"
  }


def refuses(folder, match, **fields):
  before = contents(folder)
  with inject.nonfinite(), pytest.raises(ValueError, match=match) as error:
    run(folder, **fields)
  assert "\n" not in str(error.value) and contents(folder) == before


def test_a_finished_run_is_not_trained_past_its_end(whole, tmp_path):
  shutil.copytree(whole, tmp_path / "run")
  (tmp_path / "run" / "config.json").unlink()
  refuses(
    tmp_path / "run", "of 12 steps, this one of 8; a run can only be made longer", total_steps=8
  )


def test_the_checkpoints_of_another_run_are_told_by_their_own_config(folder, tmp_path):
  with inject.nonfinite():
    run(tmp_path / "other", optim__lr=0.05)
  shutil.rmtree(folder / "checkpoints")
  shutil.copytree(tmp_path / "other" / "checkpoints", folder / "checkpoints")
  refuses(folder, "holds a run of another config: optim.lr is 0.05 there and 0.001 here")


def test_checkpoints_that_have_gone_are_missed(folder):
  shutil.rmtree(folder / "checkpoints" / "8")
  refuses(folder, "the run there saved step 12, but checkpoints/ is empty now")
  (folder / history.FILE).unlink()
  with inject.nonfinite():
    run(folder)  # begins again, as the message says
  assert steps(folder) == [8, 12]


def test_another_tokenizer_is_refused(folder):
  file = folder / "tokenizer.model"
  file.write_bytes(file.read_bytes() + b"\0")
  refuses(
    folder,
    "config.text.tokenizer='shapes' is another model than .*tokenizer.model, which the run was "
    "trained with",
  )


def test_data_of_another_size_are_refused(tmp_path):
  drawn, path = Shapes(examples=24, image_size=16), tmp_path / "a.parquet"

  def write(rows):
    examples = [drawn[i] for i in range(rows)]
    png = [cv2.imencode(".png", e["image"])[1].tobytes() for e in examples]
    pq.write_table(pa.table({"image": png, "caption": [e["captions"][0] for e in examples]}), path)

  data = ({"source": "parquet", "path": str(path)},)
  write(24)
  with inject.nonfinite():
    run(tmp_path / "run", data=data, total_steps=4)
  write(20)
  refuses(
    tmp_path / "run", "config.data.0 has 20 examples, and had 24 when", data=data, total_steps=4
  )


def test_names_that_only_look_like_steps_are_left_alone(whole, folder):
  odd = ("00012", "١٢", "9999999999999999999", "-4", "7.5")
  for name in odd:
    (folder / "checkpoints" / name).mkdir()
  with inject.nonfinite():
    run(folder)
  assert_equal(state(folder), state(whole))
  assert {p.name for p in (folder / "checkpoints").iterdir()} == {*odd, "8", "12"}


def test_a_longer_total_that_made_no_step_can_be_taken_back(whole, folder):
  config = json.loads((folder / "config.json").read_text())
  # As --extend leaves it before its first save
  (folder / "config.json").write_text(json.dumps({**config, "total_steps": 90}))
  with inject.nonfinite():
    run(folder)
  assert_equal(state(folder), state(whole))


@pytest.mark.parametrize(
  "name, line",
  [
    ("metrics.jsonl", b'{"step": "x"}'),
    ("metrics.jsonl", b"[" * 200_000),
    ("metrics.jsonl", b'{"step": 3, "loss": NaN}'),
    ("metrics.jsonl", b'{"step": 8}'),
    ("metrics.jsonl", b'{"step": 8, "loss": "a", "eval/x/loss": "b"}'),
    ("metrics.jsonl", b"\0" * 99),
    ("starts.jsonl", b'{"start": 2}'),
    ("starts.jsonl", b'{"start": "1"}'),
    ("starts.jsonl", b'{"start": 1, "seconds": []}'),
  ],
)
def test_records_of_wrong_types_are_left_out(name, line, whole, folder):
  with (folder / name).open("ab") as file:
    file.write(line + b"\n")
  with inject.nonfinite():
    run(folder)
  assert_equal(state(folder), state(whole))


def test_data_that_fail_while_a_stop_is_asked_for_lose_nothing(tmp_path, monkeypatch):
  """As where a signal goes to the whole process group, and the workers end before the loop asks for
  a batch.
  """
  ask = pipeline.TrainBatches.__next__

  def fails_with_the_signal(self):
    if getattr(self, "asked", 0) == 6:
      signal.raise_signal(signal.SIGTERM)
      raise ValueError("a worker process that loads data has ended: killed by the same signal")
    self.asked = getattr(self, "asked", 0) + 1
    return ask(self)

  monkeypatch.setattr(pipeline.TrainBatches, "__next__", fails_with_the_signal)
  with inject.nonfinite():
    run(tmp_path)
  assert steps(tmp_path) == [4, 6]


def test_a_name_that_orbax_does_not_take_is_refused_before_step_1(tmp_path):
  with inject.nonfinite(), pytest.raises(ValueError, match=r"is not UTF-8, or the locale is not"):
    run(tmp_path / os.fsdecode(b"\xff\xfe"))
