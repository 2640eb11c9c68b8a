"""A gradient, a moment or a parameter that is not finite: never on disk, the run ends and says
where, and goes on.
"""

import re

import numpy as np
import pytest

from siglax.runs import digest

import inject
from short_runs import assert_equal  # two are fixtures
from short_runs import nonfinite_leaves  # two are fixtures
from short_runs import records  # two are fixtures
from short_runs import run  # two are fixtures
from short_runs import shared_programs  # two are fixtures
from short_runs import state  # two are fixtures
from short_runs import steps  # two are fixtures
from short_runs import whole  # two are fixtures


@pytest.mark.parametrize(
  "place, step, value, last",
  [
    ("gradient", 5, "nan", 4),
    ("gradient", 11, "inf", 8),
    ("moment", 4, "nan", 4),
    ("moment", 11, "-inf", 8),
    ("parameter", 7, "nan", 4),
    ("parameter", 11, "inf", 8),
  ],
)
def test_a_value_that_is_not_finite_is_never_kept(place, step, value, last, whole, tmp_path):
  # Nothing else is left when a bad one is taken for the newest
  keep = {"checkpoint__keep_latest": 1}
  with inject.nonfinite(place, step, value, leaf=3), pytest.raises(FloatingPointError) as error:
    run(tmp_path, **keep)
  message = str(error.value)
  assert "\n" not in message and f"the last good checkpoint is of step {last}" in message
  assert step < int(re.search(r"(?:at|after) step (\d+)", message)[1]) <= last + 4
  spoiled = {
    "gradient": "params/",
    "parameter": "params/",
    "moment": "opt_state/" if step == 11 else "params/",
  }[place]
  assert re.search(rf"{spoiled}[^ ]+ is not finite", message)
  assert steps(tmp_path) == [last] and nonfinite_leaves(state(tmp_path, last)) == []
  with inject.nonfinite():
    run(tmp_path, **keep)
  assert_equal(state(tmp_path), whole)


def test_updates_that_are_not_finite_are_left_out(tmp_path):
  fields = {
    "optim__skip_nonfinite": 2,
    "checkpoint__every_steps": 1,
    "checkpoint__keep_latest": 20,
    "loss__check_embeddings": True,
  }
  with inject.nonfinite("gradient", 5, times=2):
    run(tmp_path / "run", **fields)
  before, skipped, after = (state(tmp_path / "run", step) for step in (5, 7, 8))
  # The number of the step, and that of its learning rate.
  numbers = [k for k in before if before[k].tobytes() != skipped[k].tobytes()]
  assert (
    len(numbers) == 2
    and "['step']" in numbers
    and all((before[k], skipped[k]) == (5, 7) for k in numbers)
  )
  assert after["['params']['log_scale']"] != before["['params']['log_scale']"]
  lines = {r["step"]: r for r in records(tmp_path / "run") if "loss" in r}
  assert [lines[step]["skipped"] for step in range(1, 13)] == [0] * 5 + [1] + [2] * 6
  assert [step for step in lines if lines[step]["grad_norm"] is None] == [6, 7]
  # Checked, and no metric
  assert not [k for line in lines.values() for k in line if k.startswith("norm_error")]
  # One more in a row stops the run, and what is on disk is the state before them.
  with inject.nonfinite("gradient", 5, times=3), pytest.raises(FloatingPointError) as error:
    run(tmp_path / "three", **fields)
  assert (
    "grad_norm=nan at step 8, after 2 updates left out in a row (config.optim.skip_nonfinite=2)"
    in str(error.value)
  )
  assert_equal(
    state(tmp_path / "three", steps(tmp_path / "three")[-1]) | {k: before[k] for k in numbers},
    before,
  )
  # The count goes on where a run resumes.
  with inject.nonfinite("gradient", 9):
    run(tmp_path / "three", **fields)
  assert [r["skipped"] for r in records(tmp_path / "three") if "loss" in r][-1] == 3


def test_the_check_runs_in_saves_alone(tmp_path, monkeypatch):
  saved, inspect = [], digest.inspect

  def counted(state):
    saved.append(int(state.step))
    return inspect(state)

  monkeypatch.setattr(digest, "inspect", counted)
  with inject.nonfinite():
    run(tmp_path)
  assert saved == [4, 8, 12]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_inspect_names_the_leaf(dtype):
  good = {
    "a": np.zeros(3, dtype),
    "b": {"c": np.ones((2, 2), dtype), "n": np.array([2**31 - 1], np.int32)},
  }
  assert digest.inspect(good)[1] is None
  for bad in (np.nan, np.inf, -np.inf):
    x = np.ones((2, 2), dtype)
    x[1, 1] = bad
    assert digest.inspect({**good, "b": {**good["b"], "c": x}})[1] == "b/c"
