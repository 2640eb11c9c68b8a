"""docs/recipes: a source and an evaluation of one's own, from a file outside the package, in
threads and in loader processes, and as a file inside of a copy of it.
"""

import json
import os
import pathlib
import pickle
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest

import siglax
from siglax import config as config_lib
from siglax import data
from siglax import evals
from siglax.commands import cli
from siglax.config import imports
from siglax.config import options
from siglax.config import parts
from siglax.config.parts import Field
from siglax.data import sources
from siglax.data.text import TextProcessor
from siglax.evals.kind import Kind

import tiny

ROOT = pathlib.Path(__file__).parent.parent
NAMES = ("source", "evaluation")
PICTURES = 16


def blocks(name, language):
  text = (ROOT / "docs" / "recipes" / f"{name}.md").read_text()
  found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
  return [block for of, block in found if of == language]


def printed(name, k, **changed):
  """The words of line k of the commands that a recipe prints, with other values of some flags."""
  (text,) = blocks(name, "")
  words = shlex.split(text.splitlines()[k])[1:]
  for flag, value in changed.items():
    words[words.index(f"--{flag}") + 1] = str(value)
  return words


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """{recipe: its file}, imported, beside the folder pictures/; forgotten after this module."""
  folder, before = tmp_path_factory.mktemp("recipes"), len(parts.registered)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(imports, "_imported", {})
    patch.chdir(folder)
    found = {}
    _, pictures = blocks("source", "python")
    exec(pictures.replace("range(1000)", f"range({PICTURES})"), {})
    for name in NAMES:
      code, *_ = blocks(name, "python")
      found[name] = folder / f"my_{name}.py"
      found[name].write_text(code)
      imports.import_parts(found[name].name)
    yield found
  parts.withdraw(parts.registered[before:])


@pytest.fixture(scope="module")
def run(files):
  """The folder of a run of both, with a loader process."""
  folder = files["source"].parent
  (folder / "config.py").write_text(
    f"import sys\nsys.path.insert(0, {str(ROOT / 'tests')!r})\nimport tiny\n"
    "from siglax import config as config_lib\n"
    "def get_config():\n"
    "  c = tiny.get_config(4)\n"
    "  c.log.tensorboard = False\n"
    "  c.loader.workers = 1\n"
    "  config_lib.set_duration(c, 'eval.every', steps=1)\n"
    "  config_lib.set_duration(c, 'checkpoint.every', steps=1)\n"
    "  c.checkpoint.keep_latest, c.checkpoint.keep_one_in = 1, None\n"
    "  return c\n"
  )
  words = printed("source", 0, config="config.py", workdir="run")
  more = printed("evaluation", 0)
  tasks = [word for word in more if word.startswith("--config.")]
  tasks[0] = tasks[0].replace("{'source': 'shapes', 'split': 'test'}", SIDECAR)
  assert SIDECAR in tasks[0]
  assert cli.main([*words, "--import", "my_evaluation.py", *tasks]) == 0
  return folder / "run"


SIDECAR = "{'source': 'sidecar', 'path': 'pictures'}"


def first_batches(config):
  text = TextProcessor(length=config.text.length)
  batches = data.train_batches(config, text)
  try:
    return [next(batches) for _ in range(3)]
  finally:
    batches.close()


def test_a_source_from_outside_gives_the_same_batches_in_loader_processes(files):
  c = tiny.get_config()
  c.data = ({"source": "sidecar", "path": "pictures"},)
  want = first_batches(c)
  assert want[0]["image"].any() and want[0]["tokens"].any()
  file = files["source"]
  content = file.read_text()
  file.write_text("raise RuntimeError('changed meanwhile')")
  try:
    c.loader.workers = 2
    for got, batch in zip(first_batches(c), want, strict=True):
      for name in batch:
        np.testing.assert_array_equal(got[name], batch[name])
  finally:
    file.write_text(content)


def test_a_copy_in_the_same_process_imports_nothing_again(files):
  c = tiny.get_config()
  examples = data.open_source({"source": "sidecar", "path": "pictures"})
  batches = data.train_batches(c, TextProcessor(), sources=[examples])
  (loader,), before = batches._loaders, len(parts.registered)
  batches.close()
  copy = pickle.loads(pickle.dumps(loader))
  assert type(copy.source) is type(examples) and len(parts.registered) == before


def test_both_are_trained_with_and_the_best_step_is_the_lowest(run):
  lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
  assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
  evaluated = {line["step"]: line for line in lines if "eval/test/cone" in line}
  by_cone = sorted(evaluated, key=lambda step: evaluated[step]["eval/test/cone"])
  kept = {int(name.name) for name in (run / "checkpoints").iterdir() if name.name.isdigit()}
  assert kept == {by_cone[0], 4} and by_cone[-1] not in kept
  last = evaluated[4]
  tower = siglax.load(run)
  examples = data.open_source({"source": "sidecar", "path": "pictures"})
  zimg = np.float64(tower.embed_images([examples[i]["image"] for i in range(PICTURES)]))
  ztxt = np.float64(tower.embed_texts([examples[i]["captions"][0] for i in range(PICTURES)]))
  pairs = [(i, j) for i in range(PICTURES) for j in range(PICTURES) if i != j]
  gap = np.sqrt(np.sum((sum(zimg) / PICTURES - sum(ztxt) / PICTURES) ** 2))
  cone = np.mean([np.dot(zimg[i], zimg[j]) for i, j in pairs])
  assert abs(last["eval/test/gap"] - gap) <= 1e-4
  assert abs(last["eval/test/cone"] - cone) <= 1e-4


def test_siglax_embed_takes_the_source(run, files):
  out = files["source"].parent / "embedded.npz"
  assert cli.main(printed("source", 1, **{"from": run}, out=out)) == 0
  with np.load(out) as arrays:
    assert len(arrays["image_embedding"]) == PICTURES
    assert json.loads(arrays["key"].tobytes())[:2] == ["000", "001"]


def test_siglax_evaluate_needs_the_files(run):
  """In a process of its own, without them, and with both."""
  words = [sys.executable, "-m", "siglax.commands.cli", *printed("evaluation", 1, **{"from": run})]
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  call = lambda words: subprocess.run(
    words, cwd=run.parent, env=environment, capture_output=True, text=True, timeout=300
  )
  done = call(words)
  assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
  assert "needs my_source.py, which adds the source 'sidecar': give --import" in done.stderr
  done = call([*words, "--import", "my_source.py"])
  assert done.returncode == 0 and "eval/test/cone" in done.stdout, done.stderr


@pytest.mark.parametrize(
  "spec, message",
  [
    ({}, "path is missing; source 'sidecar' needs it"),
    ({"path": 3}, "path=3 is of type int; it needs str"),
    ({"path": "x", "endign": ".png"}, "endign is unknown; did you mean ending?"),
    ({"path": "nowhere"}, "path='nowhere' has no file *.jpg"),
  ],
)
def test_fields_are_checked_by_their_declarations(files, spec, message):
  with pytest.raises(ValueError, match=re.escape(f"config.data.0.{message}")):
    data.open_source({"source": "sidecar", **spec}, "config.data.0")


def test_fields_of_a_task_are_checked_by_their_declarations(files):
  config = config_lib.default()
  task = {"kind": "modality_gap", "name": "x", "data": {"source": "shapes"}}
  config.eval.tasks = ({**task, "power": 0.0},)
  with pytest.raises(ValueError, match="config.eval.tasks.0.power=0.0 must be positive"):
    evals.validate_tasks(config)
  config.eval.tasks = ({**task, "examples": 1},)
  evals.validate_tasks(config)
  with pytest.raises(ValueError, match=r"tasks.0 \('x'\): the cone needs two examples"):
    evals.check(config, data.open_source)


@pytest.mark.parametrize(
  "values, message",
  [
    ({}, "declares the metric 'a', but gave none"),
    ({"a": 1.0, "b": 2.0}, "gave 'b', which is none of its metrics a"),
  ],
)
def test_a_kind_gives_what_it_declares(monkeypatch, values, message):
  kind = Kind("mine", "", ("a",), lambda data, embedder, config, loss: values)
  monkeypatch.setitem(evals.KINDS._parts, "mine", kind)
  config = config_lib.default()
  config.eval.tasks = ({"kind": "mine", "name": "x", "data": {}},)
  with pytest.raises(ValueError, match=message):
    evals.run(config, None, lambda spec: None)


def test_declarations_that_contradict_themselves():
  nothing = lambda **values: None
  with pytest.raises(ValueError, match="lower_is_better"):
    Kind("x", "", ("a",), nothing, lower_is_better=("b",))
  with pytest.raises(ValueError, match="has the metric 'a/b'; a name has no '/'"):
    Kind("x", "", ("a/b",), nothing)
  with pytest.raises(ValueError, match="'x' has the metric 'loss' with another lower_is_better"):
    evals.KINDS.register(Kind("x", "", ("loss",), nothing))
  assert "x" not in evals.KINDS
  with pytest.raises(ValueError, match="declares the field 'data', which every task has"):
    Kind("x", "", ("a",), nothing, fields={"data": Field(1, "")})
  with pytest.raises(ValueError, match="declares the field 'weight', which every data spec has"):
    data.Source("x", "", nothing, {"weight": Field(1, "")})


def test_words_of_a_command_line_are_of_the_declared_type(files):
  assert sources.parse_spec("shapes:examples=²") == {"source": "shapes", "examples": "²"}
  assert sources.parse_spec("a.parquet:caption=2020,weight=3")["caption"] == "2020"
  assert sources.parse_spec("sidecar:path=7,weight=0.5") == {
    "source": "sidecar",
    "path": "7",
    "weight": 0.5,
  }


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, True, "1"])
def test_a_number_is_finite_and_within_its_bounds(value):
  fields = {"x": Field(1.0, "", least=0)}
  with pytest.raises(ValueError, match="^here.x="):
    options.filled({"x": value}, fields, "it", "here.")


ASKS = """
from siglax import data, evals
assert data.SOURCES.names[-1] == "sidecar" and evals.KINDS.names[-1] == "modality_gap"
assert len(data.open_source({"source": "sidecar", "path": "pictures"})) == 16
"""


def test_inside_the_package_each_is_a_file_and_a_line(files, tmp_path):
  ignored = shutil.ignore_patterns("__pycache__")
  shutil.copytree(ROOT / "siglax", tmp_path / "siglax", ignore=ignored)
  shutil.copytree(files["source"].parent / "pictures", tmp_path / "pictures")
  for name, path, needless in (
    ("source", "siglax/data/sources/sidecar.py", "from siglax import data"),
    ("evaluation", "siglax/evals/modality_gap.py", "from siglax import evals"),
  ):
    (code, *_), (edit,) = blocks(name, "python"), blocks(name, "diff")
    *lines, last = [line for line in code.splitlines() if line != needless]
    assert ".register(" in last
    (tmp_path / path).write_text("\n".join(lines) + "\n")
    apply(tmp_path, edit)
  environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
  done = subprocess.run(
    [sys.executable, "-c", ASKS],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    env=environment,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr


def apply(folder, edit):
  """Adds the lines of a block of diff, its file and then parts that begin with @@."""
  name, *hunks = edit.split("@@\n")
  file = folder / name.removeprefix("--- ").strip()
  text = file.read_text()
  for hunk in hunks:
    context, added = hunk.splitlines()
    assert context[0] == " " and added[0] == "+" and text.count(f"\n{context[1:]}\n") == 1
    text = text.replace(f"\n{context[1:]}\n", f"\n{context[1:]}\n{added[1:]}\n")
  file.write_text(text)
