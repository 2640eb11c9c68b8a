"""A run that starts from a checkpoint of another one is the run trained so from the start."""

import pytest

import short_runs
from short_runs import shared_programs

TRUNK = {"optim__schedule": "constant", "checkpoint__keep_every_steps": 4}
COOLED = {**TRUNK, "optim__cooldown_steps": 4}


@pytest.fixture(scope="module")
def trunk(shared_programs, tmp_path_factory):
  """Of 12 steps, with the checkpoints of steps 4, 8 and 12."""
  workdir = tmp_path_factory.mktemp("trunk")
  short_runs.run(workdir, **TRUNK)
  return workdir


def test_a_branch_equals_the_run_from_the_start_bit_for_bit(trunk, tmp_path):
  whole = tmp_path / "whole"
  short_runs.run(whole, **COOLED)
  # The state has all that the step uses: parameters, moments, step. That of the branch is compared
  # where it has been kept from changing, too: after the cooldown has begun.
  branch = tmp_path / "branch"
  short_runs.run(branch, **COOLED, train__branch_from=f"{trunk}@8")
  assert short_runs.records(branch)[0]["step"] == 9
  short_runs.assert_equal(short_runs.state(branch), short_runs.state(whole))
  told = lambda workdir: [
    r["loss"] for r in short_runs.records(workdir) if r["step"] > 8 and "loss" in r
  ]
  assert told(branch) == told(whole)
  with pytest.raises(AssertionError):  # the cooldown does something
    short_runs.assert_equal(short_runs.state(branch), short_runs.state(trunk))


def test_a_branch_that_was_stopped_goes_on_without_its_trunk(trunk, tmp_path):
  """Its own checkpoints come first, and it needs nothing of the trunk then."""
  fields = {**TRUNK, "total_steps": 10}
  short_runs.run(tmp_path, **fields, train__branch_from=f"{trunk}@4")
  short_runs.run(tmp_path, **TRUNK, train__branch_from="elsewhere@4")
  short_runs.assert_equal(short_runs.state(tmp_path), short_runs.state(trunk))


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"train__branch_from": "{}@5"}, "no checkpoint of step 5; {} has those of steps 4, 8, 12"),
    ({"train__branch_from": "nowhere@5"}, "no checkpoint of step 5; nowhere has none"),
    ({"optim__cooldown_steps": 6}, "the learning rate of step 8 was 0.001 there and is 0.000833"),
    ({"optim__schedule": "cosine"}, "the learning rate of step 2 was 0.001 there"),
    ({"optim__lr": 0.002}, "another config: optim.lr is 0.001 there and 0.002 here"),
    ({"seed": 1}, "another config: seed is 0 there and 1 here"),
    ({"total_steps": 8}, "step 8 is not before the end of this run of 8 steps"),
    ({"train__branch_from": "{}"}, "must be a run folder and the step of a checkpoint, such as"),
    ({"train__branch_from": "@5"}, "is empty"),
  ],
)
def test_a_run_that_is_no_branch_is_one_line(trunk, tmp_path, fields, message):
  fields = {**TRUNK, "train__branch_from": "{}@8", **fields}
  fields["train__branch_from"] = fields["train__branch_from"].format(trunk)
  with pytest.raises(ValueError) as e:
    short_runs.run(tmp_path / "run", **fields)
  assert message.format(trunk) in str(e.value) and "\n" not in str(e.value)
  assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_a_loss_whose_gamma_falls_over_the_training_has_no_branches(shared_programs, tmp_path):
  fields = {**TRUNK, "loss__name": "global", "total_steps": 4}
  short_runs.run(tmp_path / "trunk", **fields)
  fields |= {"total_steps": 8, "train__branch_from": f"{tmp_path / 'trunk'}@4"}
  with pytest.raises(ValueError, match="γ fell there over config.loss.gamma_decay of 4 steps, and"):
    short_runs.run(tmp_path / "branch", **fields)
