"""What a study file declares, and the study folder."""

import json

import pytest

from siglax import studies
from siglax.studies import folder


def test_settings_are_all_combinations():
  study = studies.Study(
    "x.py",
    grid={"loss.name": ("softmax", "sigmoid")},
    paired={"batch_size": (32, 64), "optim.lr": (1e-3, 2e-3)},
    settings=({"train.patch_drop": 0.5, "train.unmasked_steps": 2}, {"train.patch_drop": 0.0}),
  )
  assert len(study.combinations) == 8
  assert {"loss.name": "sigmoid", "batch_size": 64, "optim.lr": 2e-3, "train.patch_drop": 0.0} in (
    study.combinations
  )
  assert not any(x["batch_size"] == 32 and x["optim.lr"] == 2e-3 for x in study.combinations)
  assert study.fields["loss.name"] == ["softmax", "sigmoid"]


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"paired": {"batch_size": (32, 64), "optim.lr": (1e-3,)}}, "batch_size has 2, optim.lr has 1"),
    ({"seeds": (0, 1, 0)}, "0 is there twice"),
    ({"seeds": ()}, "must be a list of whole numbers"),
    ({"grid": {"batch_size": "32"}}, "must be a list"),
    ({"grid": {"batch_size": ()}}, "must be a list"),
    ({"grid": {"seed": (1, 2)}}, "give seeds"),
    ({"grid": {"a": (1,)}, "settings": ({"a": 2},)}, "a stands in two"),
    ({"grid": {"a": (1,)}, "set": {"a": 2}}, "leave it in one"),
    ({"equal": "flop"}, "did you mean 'flops'?"),
    ({"equal": "seconds"}, "needs amount"),
    ({"amount": 0}, "must be a positive number of examples"),
    ({"amount": float("inf")}, "amount=inf must be a positive number of examples"),
    ({"base": 3}, "base=3 must be a text"),
    ({"seeds": 3}, "seeds=3 must be a list of whole numbers from 0, such as (0, 1, 2)"),
    ({"set": 3}, "set=3 must be a dict"),
    ({"grid": [("loss.name", ("a",))]}, "grid=[('loss.name', ('a',))] must be a dict"),
    ({"grid": {1: (2,)}}, "must be a dict, of the names of fields"),
    ({"grid": {"loss.name": ("a",)}, "baseline": {"loss.nam": "a"}}, "did you mean 'loss.name'?"),
    ({"grid": {"loss.name": ("a",)}, "baseline": {"loss.name": "b"}}, "none of its values ['a']"),
    (
      {"grid": {"loss.nam": ("a",)}, "baseline": {"loss.name": "a"}},
      "baseline: loss.name is none of the study's fields loss.nam",
    ),
    ({"baseline": "loss.name=a"}, "must be a dict, of the names of fields, such as {'loss.name'"),
    ({"branches": studies.Branches((100, 200)), "amount": 5}, "leave equal"),
  ],
)
def test_a_wrong_study_is_one_line(fields, message):
  with pytest.raises(ValueError) as e:
    studies.Study(**{"base": "x.py", **fields})
  assert message in str(e.value) and "\n" not in str(e.value)


def test_results_come_from_the_run_folders(tmp_path):
  """Statuses, the last evaluation and the costs, of folders written by hand."""
  names = ["done", "broken", "begun", "not_yet"]
  runs = [{"name": n, "values": {"a": n}, "seed": 0, "flops": 80, "steps": 8} for n in names]
  study = {"config": "x.py", "overrides": {}, "fields": {"a": names}, "seeds": [0], "runs": runs}
  study |= {"baseline": None, "equal": "examples", "trunks": [], "environment": {}}
  folder.write(tmp_path, study)
  assert folder.read(tmp_path) == {"version": 1, **study}
  lines = [
    {"step": 4, "examples": 64, "scale": 9.0, "bias": 0.0},
    {"step": 4, "examples": 64, "eval/t/acc1": 0.5, "eval/t/chance/acc1": 0.1},
    {"step": 8, "examples": 128, "scale": 8.5, "bias": 0.0},
    {"step": 8, "examples": 128, "eval/t/acc1": 0.75, "eval/t/loss": None},
  ]
  start = {"start": 1, "first_step": 0, "last_step": 8, "seconds": {"step": 3.0, "init": 1.0}}
  for name, ended, count in (("done", "finished", 4), ("begun", None, 2), ("broken", "x", 2)):
    (of_run := tmp_path / "runs" / name).mkdir(parents=True)
    (of_run / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines[:count]))
    (of_run / "starts.jsonl").write_text(json.dumps({**start, "ended": ended}) + "\n")
  folder.failed_file(tmp_path, "broken").parent.mkdir()
  folder.failed_file(tmp_path, "broken").write_text("loss is not finite\n")

  found = {result["name"]: result for result in folder.write_results(tmp_path)}
  assert {name: result["status"] for name, result in found.items()} == {
    "done": "finished",
    "broken": "failed",
    "begun": "unfinished",
    "not_yet": "missing",
  }
  assert found["done"]["metrics"] == {"eval/t/acc1": 0.75, "eval/t/loss": None}
  assert found["done"]["learned"] == {"scale": 8.5}  # softmax has no bias
  assert found["begun"]["learned"] == {}
  assert found["done"]["costs"] == {
    "examples": 128,
    "flops": 80,
    "seconds": 4.0,
    "peak_bytes": None,
  }
  assert found["broken"]["error"] == "loss is not finite"
  assert all(found[name]["metrics"] == {} for name in names[1:])
  assert found["begun"]["costs"]["flops"] == 40 and found["not_yet"]["costs"]["examples"] == 0
  assert folder.read_results(tmp_path) == list(found.values())
  # That it has finished counts for more than that it once failed.
  folder.failed_file(tmp_path, "done").write_bytes(b"no space\xff")
  assert folder.status(tmp_path, "done") == ("finished", None)
  (tmp_path / "runs/done/starts.jsonl").write_text(json.dumps({**start, "ended": "x"}) + "\n")
  assert folder.status(tmp_path, "done") == ("failed", "no space\N{REPLACEMENT CHARACTER}")


@pytest.mark.parametrize(
  "kept, torn, problem",
  [
    (4, 9, "has no evaluation of the last step 8"),
    (2, 0, "ends at step 4, and the run at step 8"),
    (0, 0, "is empty or absent"),
  ],
)
def test_an_earlier_evaluation_is_none_in_the_last_ones_place(tmp_path, kept, torn, problem):
  """Where the end of a finished run's metrics.jsonl is lost, or the line of its last evaluation."""
  lines = [
    {"step": 4, "loss": 2.0},
    {"step": 4, "eval/t/acc1": 0.5},
    {"step": 8, "eval/t/acc1": 0.75},
    {"step": 8, "loss": 1.0},
  ]
  said = [json.dumps(line) for line in lines]
  said[2] = said[2][: len(said[2]) - torn]
  (tmp_path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in said[:kept]))
  start = {"start": 1, "first_step": 0, "last_step": 8, "seconds": {}, "ended": "finished"}
  (tmp_path / "starts.jsonl").write_text(json.dumps(start) + "\n")
  run = {"name": "a", "values": {}, "seed": 0}
  found = folder.result(tmp_path, run, "finished", None)
  assert (found["status"], found["metrics"]) == ("damaged", {})
  assert found["error"] == f"metrics.jsonl {problem}; remove {tmp_path}, and train it again"
  (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
  found = folder.result(tmp_path, run, "finished", None)
  assert (found["status"], found["metrics"]) == ("finished", {"eval/t/acc1": 0.75})
  # Resumed without its task: that is no damage.
  del lines[2]
  (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
  (tmp_path / "config.json").write_text('{"eval": {"tasks": []}}')
  found = folder.result(tmp_path, run, "finished", None)
  assert (found["status"], found["metrics"]) == ("finished", {})


def test_a_folder_of_no_study_is_one_line(tmp_path):
  with pytest.raises(ValueError, match="is no study folder"):
    folder.read(tmp_path)
  (tmp_path / "study.json").write_text('{"version": 1, "config": "x.py", "fields": {}}')
  with pytest.raises(ValueError, match="study.json is damaged: it has no overrides"):
    folder.read(tmp_path)
  (tmp_path / "study.json").write_text('{"version": 7}')
  with pytest.raises(ValueError, match="has version 7; this siglax reads version 1"):
    folder.results(tmp_path)
