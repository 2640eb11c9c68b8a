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
    ({"seeds": ()}, "must be whole numbers"),
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
    ({"seeds": 3}, "seeds=3 must be whole numbers"),
    ({"set": 3}, "set=3 must be a dict"),
    ({"grid": [("loss.name", ("a",))]}, "grid=[('loss.name', ('a',))] must be a dict"),
    ({"grid": {1: (2,)}}, "must be a dict, of the names of fields"),
    ({"grid": {"loss.name": ("a",)}, "baseline": {"loss.nam": "a"}}, "did you mean 'loss.name'?"),
    ({"grid": {"loss.name": ("a",)}, "baseline": {"loss.name": "b"}}, "none of its values ['a']"),
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
  study = {"config": "x.py", "fields": {"a": names}, "seeds": [0], "runs": runs}
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
  # A damaged line of the last evaluation: that before it is none in its place.
  torn = [json.dumps(lines[1]), json.dumps(lines[3])[:-9], json.dumps({"step": 8, "loss": 1.0})]
  (tmp_path / "runs/done/metrics.jsonl").write_text("\n".join(torn))
  assert folder.results(tmp_path)[0]["metrics"] == {}


def test_a_folder_of_no_study_is_one_line(tmp_path):
  with pytest.raises(ValueError, match="is no study folder"):
    folder.read(tmp_path)
  (tmp_path / "study.json").write_text('{"version": 1, "config": "x.py", "fields": {}}')
  with pytest.raises(ValueError, match="study.json is damaged: it has no seeds"):
    folder.read(tmp_path)
  (tmp_path / "study.json").write_text('{"version": 7}')
  with pytest.raises(ValueError, match="has version 7; this siglax reads version 1"):
    folder.results(tmp_path)
