"""`siglax ablate`: the runs that come of a study file, what is wrong with one, and their making."""

import errno
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from siglax import config as config_lib
from siglax import studies
from siglax.devices import chips
from siglax.runs import history
from siglax.studies import ablate
from siglax.studies import environment
from siglax.studies import folder
from siglax.studies import grid
from siglax.studies import lengths
from siglax.studies import running
from siglax.studies import sizes
from siglax.studies import study as study_lib
from siglax.training import run as run_lib

STUDY = str(pathlib.Path(__file__).with_name("tiny_study.py"))
TINY = str(pathlib.Path(__file__).with_name("tiny.py"))
ENVIRONMENT = {"platform": "cpu", "device": "cpu", "devices": 8}
SIZES = sizes.Sizes()


def runs_of(study, seconds=None):
  return grid.runs_of(study, lengths.Lengths(SIZES, lambda overrides: seconds))


def tiny(**fields):
  return studies.Study(f"{TINY}:steps=8", set={"eval.tasks": ()}, **fields)


def ablation(config, workdir, **overrides):
  words = ablate.Words(config, overrides, str(workdir))
  return ablate.Ablation(words, ENVIRONMENT, dict(os.environ), [()])


def start(workdir, *words, config=STUDY):
  """`siglax ablate` as a process that leads a group of its own."""
  command = [sys.executable, "-m", "siglax.commands.cli", "ablate", "--config", config]
  return subprocess.Popen(
    [*command, "--workdir", str(workdir), *words],
    env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    start_new_session=True,
  )


def told(results):
  """What is the same on any day."""
  for result in results:
    for name in folder.MEASURED:
      result["costs"].pop(name)
  return results


def lines_logged(workdir) -> int:
  return sum(p.read_bytes().count(b"\n") for p in workdir.glob("*/*/metrics.jsonl"))


def test_runs_are_named_by_their_values_and_differ_in_nothing_else():
  runs = runs_of(
    tiny(grid={"loss.name": ("sigmoid", "hinge"), "batch_size": (16, 32)}, seeds=(3, 5))
  )
  assert [run.name for run in runs[:4]] == [
    "loss.name=sigmoid,batch_size=16,seed=3",
    "loss.name=sigmoid,batch_size=32,seed=3",
    "loss.name=hinge,batch_size=16,seed=3",
    "loss.name=hinge,batch_size=32,seed=3",
  ]
  first, wider = runs[0].config(), runs[1].config()
  different = config_lib.differences(first, wider)
  assert [line.split()[0] for line in different] == ["batch_size", "total_examples", "total_steps"]


def test_equal_examples_are_equal_for_all_batch_sizes_and_so_is_the_warmup():
  study = tiny(grid={"batch_size": (16, 32, 64)}, seeds=(0,))
  study = studies.Study(study.base, set={**study.set, "optim.warmup_steps": 4}, grid=study.grid)
  for run in runs_of(study):
    config, size = run.config(), SIZES(run.config())
    assert size.steps * config.batch_size == 8 * 16
    assert config_lib.duration_steps(config, "optim.warmup", 1) * config.batch_size == 4 * 16


def test_equal_flops_are_those_of_the_base_within_a_step():
  """Of runs that leave out half of the patches, with an end that sees them all."""
  grid_of = {"train.patch_drop": 0.5, "train.unmasked_steps": 2}
  study = tiny(settings=({"train.patch_drop": 0.0}, grid_of), equal="flops", seeds=(0,))
  whole, dropped = [SIZES(run.config()) for run in runs_of(study)]
  assert whole.steps == 8 and dropped.steps > 8 and dropped.unmasked == 2
  # Counted by hand: the masked steps, then the others.
  of_dropped = (dropped.steps - 2) * dropped.step_flops + 2 * whole.step_flops
  assert abs(of_dropped - 8 * whole.step_flops) <= dropped.step_flops / 2


def test_equal_seconds_are_as_many_steps_as_take_them():
  study = tiny(grid={"batch_size": (16, 32)}, equal="seconds", amount=3.0, seeds=(0,))
  assert {run.config().total_steps for run in runs_of(study, seconds=0.25)} == {12}
  assert {SIZES(run.config()).steps for run in runs_of(study)} == {8, 4}  # not timed yet


def test_branches_share_a_trunk_up_to_where_they_cool_down():
  study = study_lib.load(f"{STUDY}:branches=True", {"seeds": "(0,)"})
  trunk, short, long = runs_of(study)[:3]
  assert trunk.is_trunk and trunk.config().total_steps == 6  # the longest start
  assert (short.branch_step, long.branch_step) == (4, 6)
  assert short.config().total_steps == 8 and short.config().optim.cooldown_steps == 4
  assert trunk.config().checkpoint.keep_every_steps == 2
  assert short.values == {"loss.name": "sigmoid", "total_examples": 128}


def test_a_first_stage_takes_its_share_of_the_flops():
  setting = {"image.size": 32, "first.image.size": 16, "first.share": 0.5}
  study = tiny(settings=({"image.size": 32}, setting), equal="flops", seeds=(0,))
  whole, first, last = runs_of(study)
  assert (first.name, last.trunk) == (f"first,{last.name}", first.name)
  assert last.values == setting and first.is_trunk
  assert (first.config().image.size, last.config().image.size) == (16, 32)
  sizes_of = [SIZES(run.config()) for run in (whole, first, last)]
  assert sizes_of[1].step_flops < sizes_of[0].step_flops == sizes_of[2].step_flops
  for size in sizes_of[1:]:
    assert abs(size.flops - sizes_of[0].flops / 2) <= size.step_flops / 2
  made = running.command(last, pathlib.Path("x"), "runs")
  assert f"--config.model.init_from=x/trunks/{first.name}" in made
  for share in (0, 1, None):
    with pytest.raises(ValueError, match="must lie in .0, 1., the share of the first stage"):
      tiny(settings=({"first.image.size": 16, "first.share": share},))


def test_hours_are_those_of_the_roofline():
  size = sizes.Size(
    steps=10,
    unmasked=4,
    step_flops=int(1e15),
    unmasked_flops=int(2e15),
    parameters=1,
    state_bytes=8,
    device_state_bytes=8,
    checkpoints=3,
    devices=2,
  )
  assert size.flops == 14e15 and size.disk_bytes == 24 + sizes.OTHER_BYTES
  chip = chips.named("H100")
  assert size.hours(chip) == pytest.approx(14e15 / 2 / 989.5e12 / 3600)


@pytest.mark.parametrize(
  "fields, message",
  [
    (
      {"grid": {"optim.lrr": (1e-3,)}},
      "config.optim.lrr is unknown; did you mean config.optim.lr?",
    ),
    (
      {"grid": {"optim.lr": (1e-3, -1.0)}},
      "optim.lr=-1.0,seed=0: config.optim.lr=-1.0 must be pos",
    ),
    ({"grid": {"data.0.exampels": (4,)}}, "exampels is unknown; did you mean examples?"),
    ({"grid": {"loss.name": ("a/b", "a_b")}}, "collide in the name loss.name=a_b,seed=0"),
    ({"grid": {"batch_size": (16, 16.0)}}, "config.batch_size=16.0 is of type float"),
    (
      {"settings": ({"loss.name": "sigmoid"}, {"optim.lr": 1e-3})},
      "loss.name=sigmoid,seed=0 and optim.lr=0.001,seed=0 have the same config",
    ),
    ({"grid": {"train.patch_drop": ("None",)}}, "is of type NoneType; it needs float"),
    ({"grid": {"data.0.objects": ([1, float("nan")],)}}, "as the text of a command line"),
    ({"equal": "flops", "amount": 1.0}, "amount=1 flops is less than a step of batch_size=16"),
    ({"branches": studies.Branches((16,))}, "too few for a trunk and a cooldown"),
    (
      {"branches": studies.Branches((128,))},
      "config.optim.schedule='cosine' does; put {'optim.schedule': 'constant'} into set, or give "
      "--config.base.optim.schedule=constant; the schedules that do not are ",
    ),
  ],
)
def test_a_wrong_study_is_one_line_before_any_run(fields, message):
  with pytest.raises(ValueError) as e:
    for run in runs_of(tiny(**fields)):
      try:
        SIZES(run.config())
      except ValueError as error:
        raise ValueError(f"{run.name}: {error}") from error
  assert message in str(e.value) and "\n" not in str(e.value)


def test_a_task_whose_data_lack_labels_is_one_line_before_any_run(tmp_path):
  (tmp_path / "a.csv").write_text("image,caption\na.png,a cat\n")
  cv2.imwrite(str(tmp_path / "a.png"), np.zeros((16, 16, 3), np.uint8))
  data = {"source": "csv", "path": str(tmp_path / "a.csv")}
  task = {"kind": "zero_shot", "name": "test", "data": data, "classnames": ("cat", "dog")}
  study = studies.Study(f"{TINY}:steps=8", set={"eval.tasks": (task,)}, seeds=(0,))
  (run,) = runs_of(study)
  with pytest.raises(ValueError, match=r"config.eval.tasks.0 \('test'\): .* label"):
    SIZES(run.config())


def test_a_disk_that_is_too_small_is_one_line_before_any_run(tmp_path, monkeypatch):
  usage = shutil.disk_usage(tmp_path)
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
  one = ablation(f"{STUDY}:losses=False", tmp_path / "study", seeds="(0,)")
  with pytest.raises(ValueError, match="1 kB free, and the checkpoints of 1 runs take up to"):
    one.run()
  assert not list((tmp_path / "study").iterdir())


def test_devices_in_sets_and_parts_of_runs():
  assert environment.parse_devices("0,1;2,3") == [(0, 1), (2, 3)]
  assert environment.variables("gpu", (2, 3)) == {"CUDA_VISIBLE_DEVICES": "2,3"}
  assert environment.variables("cpu", (2, 3)) == {}
  for text, message in (("0;0", "is there twice"), ("0,1;2", "of equal size"), ("a", "numbers")):
    with pytest.raises(ValueError, match=message):
      environment.parse_devices(text)
  cores = os.sched_getaffinity(0)
  environment.check_there("cpu", [(core,) for core in cores], {})
  with pytest.raises(ValueError, match="--devices: there is no core 100000; this process has"):
    environment.check_there("cpu", [(min(cores),), (100000,)], {})
  assert ablate.parse_only("1/4") == (1, 4)
  for text in ("4/4", "1", "-1/2", "1/b"):
    with pytest.raises(ValueError, match="must be i/n"):
      ablate.parse_only(text)


def test_a_command_line_takes_other_values_of_the_grid():
  grid_of = lambda name, text: study_lib.load(STUDY, {name: text}).grid
  assert grid_of("grid.loss.name", "('sigmoid',)") == {"loss.name": ("sigmoid",)}
  for name, text, message in (
    ("grid.loss.nam", "('hinge',)", "loss.nam is no field of the study's grid, .*did you mean 'l"),
    ("grid.loss.name", "hinge", r"grid\['loss.name'\]='hinge' must be a list of values"),
    ("base.loss.name", "hinge", "loss.name is one of the study's fields"),
    ("grids", "1", "a study has base.FIELD, grid.FIELD, base, seeds, amount, baseline to set"),
    ("grid.loss.name", "('softmax',)", r"--config.baseline=.{'loss.name': 'softmax'}. names anoth"),
  ):
    with pytest.raises(ValueError, match=message):
      grid_of(name, text)
  given = {"grid.loss.name": "('softmax',)", "baseline": "None"}
  assert study_lib.load(STUDY, given).baseline is None


def test_a_study_that_lost_its_file_goes_on(tmp_path):
  """Where all that the folder holds are runs of this study."""
  config, workdir = f"{STUDY}:losses=False", tmp_path / "study"
  for run in ablation(config, workdir).runs:
    (of_run := workdir / "runs" / run.name).mkdir(parents=True)
    resolved = run_lib.Run(run.config(), sizes.NO_FOLDER).config  # as a run writes it
    assert config_lib.differences(resolved, run.config())
    (of_run / "config.json").write_text(config_lib.to_json(resolved))
  ablation(config, workdir)
  with pytest.raises(ValueError, match=r"a run of another study, .*: optim.lr is 0.* there"):
    ablation(config, workdir, **{"base.optim.lr": "0.5"})
  (workdir / "study.json").write_text('{"version": 1, "runs": [')
  with pytest.raises(ValueError, match="seed=.: this one has not; use another --workdir"):
    ablation(config, workdir, seeds="(5,)")
  (workdir / "study.json").write_text('{"version": 7}')
  with pytest.raises(ValueError, match="has version 7"):
    ablation(config, workdir)
  (tmp_path / "a").write_text("")
  with pytest.raises(ValueError, match="a is a file; name a folder, new or of this study"):
    ablation(config, tmp_path / "a")


def test_a_study_of_equal_seconds_goes_on_with_other_lengths_but_no_other_config(tmp_path):
  (tmp_path / "seconds.py").write_text(
    "from siglax import studies\n"
    "def get_study():\n"
    f"  return studies.Study('{TINY}:steps=8', set={{'eval.tasks': ()}}, seeds=(0,), "
    "equal='seconds', amount=3.0)"
  )
  config, workdir = str(tmp_path / "seconds.py"), tmp_path / "study"
  one = ablation(config, workdir)
  workdir.mkdir()
  folder.write(workdir, one._record())
  of_setting = {k: v for k, v in one.runs[0].overrides.items() if k != "seed"}
  (of_timed := workdir / "measured" / one._timed_run(of_setting).name).mkdir(parents=True)
  lines = [{"step": step, "step_time": 0.25} for step in (1, 10, 20, 30, 40)]
  (of_timed / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
  assert one.runs[0].config().total_steps == 8
  assert ablation(config, workdir).runs[0].config().total_steps == 12
  with pytest.raises(ValueError, match="one here: train.dtype is .* there and .bfloat16. here"):
    ablation(config, workdir, **{"base.train.dtype": "bfloat16"})


def test_the_reason_of_a_failure_is_that_of_its_own_process(tmp_path):
  """Two studies in a folder append to the same log."""
  log = tmp_path / "log.txt"
  log.write_text("siglax train: an earlier start\n")
  process = subprocess.Popen(["false"])
  process.wait()
  made = running.Process(None, process, log, log.stat().st_size)
  assert made.reason() == "exit code 1, without a word"
  with log.open("a") as file:
    file.write("step 1\nsiglax train: --workdir a is in use: process 3\nstep 2/9  loss 1.0\n")
  assert running.IN_USE in made.reason()
  # That of another one, which found this one there, and then its own that nobody foresaw.
  log.write_text(log.read_text().replace("process 3\n", f"process {process.pid} on b\n"))
  with log.open("a") as file:
    file.write("KeyError: 'x'\n")
  assert made.reason() == "KeyError: 'x'"


@pytest.mark.slow
def test_a_full_disk_ends_a_study_after_its_runs_have_saved(tmp_path, monkeypatch):
  """What comes of a run cannot be written; the one beside it is not killed."""
  one = ablation(f"{STUDY}:steps=4", tmp_path / "study", seeds="(0,)")
  one._sets = [(core,) for core in sorted(os.sched_getaffinity(0))[:2]]
  if len(one._sets) < 2:
    pytest.skip("needs two cores")

  def full(folder):
    raise OSError(errno.ENOSPC, "No space left on device", f"{folder}/results.json")

  monkeypatch.setattr(folder, "write_results", full)
  with pytest.raises(OSError, match="No space left on device: .*results.json"):
    one.run()
  ends = [history.read(path)[-1]["ended"] for path in (tmp_path / "study/runs").iterdir()]
  assert len(ends) == 2 and "finished" in ends and set(ends) <= {"finished", "SIGTERM"}


@pytest.mark.slow
def test_a_study_of_one_run(tmp_path):
  """Its run is one of siglax train; a second start makes nothing."""
  one = ("--config.seeds=(1,)", "--config.base.loss.name=hinge")
  process = start(tmp_path / "study", *one, config=f"{STUDY}:steps=4,losses=False")
  said = process.communicate()[0]
  assert process.returncode == 0, said
  assert "[1/1] seed=1: finished" in said and "1 finished" in said.splitlines()[-1]
  study = folder.read(tmp_path / "study")
  (run,) = study["runs"]
  assert (run["name"], run["values"], run["seed"], study["equal"]) == ("seed=1", {}, 1, "examples")
  (result,) = folder.read_results(tmp_path / "study")
  assert result["status"] == "finished" and result["costs"]["examples"] == 64
  of_run = tmp_path / "study" / "runs" / "seed=1"
  lines = [json.loads(line) for line in (of_run / "metrics.jsonl").read_text().splitlines()]
  loss = [line["eval/test/loss"] for line in lines if "eval/test/loss" in line][-1]
  assert result["metrics"] == {"eval/test/loss": loss}
  given = config_lib.load(run["config"], run["overrides"])
  assert given.loss.name == "hinge" and given.seed == 1
  trained = config_lib.read(of_run / "config.json")
  # What a run resolves by itself.
  resolved = ("loss.bias_init", "loss.dtype", "model.text.", "text.lowercase", "text.strip")
  assert not [x for x in config_lib.differences(trained, given) if not x.startswith(resolved)]

  (tmp_path / "study/study.json").unlink()  # lost; all that is there are runs of this study
  again = start(tmp_path / "study", *one, config=f"{STUDY}:steps=4,losses=False")
  before = (of_run / "starts.jsonl").read_bytes()
  assert again.communicate()[0].splitlines()[-1].endswith("study: 1 finished")
  assert (of_run / "starts.jsonl").read_bytes() == before


def test_a_failed_run_is_listed_and_another_study_refused(tmp_path, capsys):
  """Of a study whose only run has failed before, nothing is left to make."""
  config, workdir = f"{STUDY}:steps=4,losses=False", tmp_path / "study"
  one = ablation(config, workdir, seeds="(1,)")
  folder.failed_file(workdir, "seed=1").parent.mkdir(parents=True)
  folder.failed_file(workdir, "seed=1").write_text("the loss is not finite\n")
  assert one.run() == ""
  assert "seed=1 failed: the loss is not finite" in capsys.readouterr().out
  (result,) = folder.read_results(workdir)
  assert result["status"] == "failed" and result["metrics"] == {}
  assert len(ablation(config, workdir, seeds="(1,2)").runs) == 2  # a study may grow
  for other, seeds, message in (
    (
      f"{STUDY}:steps=5,losses=False",
      "(1,)",
      "holds another study, .*: it has the run seed=1, whose config is another one here: "
      "total_steps is 4 there and 5 here; use another --workdir",
    ),
    (
      config,
      "(2,)",
      r"the run seed=1, which this one has not; give what it was made with \(--config.seeds=\(1,\)",
    ),
  ):
    with pytest.raises(ValueError, match=message):
      ablation(other, workdir, seeds=seeds)
  with pytest.raises(ValueError, match="is not empty and holds no study"):
    ablation(config, tmp_path)


@pytest.mark.slow
def test_a_study_killed_twice_has_the_same_results(tmp_path):
  """SIGKILL of the whole group, at random places; of its runs two fail."""
  config, seed = f"{STUDY}:broken=True,steps=6", "--config.seeds=(0,)"
  whole = start(tmp_path / "whole", seed, config=config)
  said = whole.communicate()[0]
  assert whole.returncode == 0, said
  draw = random.Random(0)
  for _ in range(2):
    process = start(tmp_path / "killed", seed, config=config)
    until = lines_logged(tmp_path / "killed") + draw.randint(1, 10)
    while lines_logged(tmp_path / "killed") < until and process.poll() is None:
      time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
  last = start(tmp_path / "killed", seed, config=config)
  said = last.communicate()[0]
  assert last.returncode == 0, said
  results = folder.read_results(tmp_path / "killed")
  assert told(results) == told(folder.read_results(tmp_path / "whole"))
  statuses = {result["name"]: result["status"] for result in results}
  assert list(statuses.values()).count("failed") == list(statuses.values()).count("finished") == 2
  broken = next(x for x in results if x["name"] == "loss.name=softmax,optim.lr=1e+30,seed=0")
  assert "is not finite" in broken["error"] and broken["metrics"] == {}
  assert f"{broken['name']} failed: {broken['error']}" in said


@pytest.mark.slow
def test_a_setting_in_two_stages(tmp_path):
  """The second begins from the parameters of the first, and costs as much as both."""
  process = start(tmp_path, "--config.seeds=(0,)", config=f"{STUDY}:losses=False,stages=True")
  said = process.communicate()[0]
  assert process.returncode == 0, said
  (result,) = folder.read_results(tmp_path)
  assert result["status"] == "finished" and result["costs"]["examples"] == 8 * 16
  (run,) = folder.read(tmp_path)["runs"]
  config = config_lib.read(tmp_path / "runs" / run["name"] / "config.json")
  assert config.model.init_from == str(tmp_path / "trunks" / run["trunk"])
  first = config_lib.read(tmp_path / "trunks" / run["trunk"] / "config.json")
  assert (config.total_steps, config.train.patch_drop) == (4, 0.0)
  assert (first.total_steps, first.train.patch_drop) == (4, 0.5)


@pytest.mark.slow
def test_a_study_in_branches_stopped_and_gone_on_with_in_parts(tmp_path):
  """Each branch begins at the step of its trunk; a SIGTERM saves; --only makes a part."""
  config, seed = f"{STUDY}:branches=True", "--config.seeds=(0,)"
  process = start(tmp_path, seed, "--only", "1/2", config=config)
  while not lines_logged(tmp_path):
    time.sleep(0.01)
  process.send_signal(signal.SIGTERM)
  said = process.communicate()[0]
  assert process.returncode == 1 and "SIGTERM: the runs save and end" in said, said
  for part in ("1/2", "0/2"):
    process = start(tmp_path, seed, "--only", part, config=config)
    said = process.communicate()[0]
    assert process.returncode == 0, said
    if part == "1/2":
      assert {x["status"] for x in folder.read_results(tmp_path) if "softmax" in x["name"]} == {
        "finished"
      }
      assert {x["status"] for x in folder.read_results(tmp_path) if "sigmoid" in x["name"]} == {
        "missing"
      }
  results = folder.read_results(tmp_path)
  assert [x["status"] for x in results] == ["finished"] * 4
  assert [x["costs"]["examples"] for x in results] == [128, 192] * 2
  for run in folder.read(tmp_path)["runs"]:
    first = history.read(tmp_path / "runs" / run["name"])[0]["first_step"]
    assert first == run["branch_step"] == {128: 4, 192: 6}[run["values"]["total_examples"]]
