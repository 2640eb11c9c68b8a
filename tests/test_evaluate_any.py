"""`siglax evaluate --tasks`: on a run and on the same towers in other libraries' formats, against
numpy on the embeddings that siglax.load gives.
"""

import json
import pathlib
import shutil

import numpy as np
import pytest

import siglax
from siglax import data as data_lib
from siglax.commands import cli
from siglax.data.shapes import Shapes
from siglax.evals import names
from siglax.tower import export
from siglax.training import tasks

RUN = pathlib.Path(__file__).parent / "golden" / "run_version_1"
COUNT = 40
DATA = f"data=shapes:split=test,data.image_size=16,data.examples={COUNT}"
TRAIN = "train=shapes:split=test,train.image_size=16,train.examples=160"


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
  """A folder with the same towers as a run, as Hugging Face's, and the image tower; others in a
  .npz.
  """
  folder = tmp_path_factory.mktemp("towers")
  shutil.copytree(RUN, folder / "run")
  export.export(folder / "run", "hf", folder / "hf")
  export.export(folder / "run", "hf-vision", folder / "vision")
  shutil.copy(RUN.parent / "big_vision_scan" / "checkpoint.npz", folder / "x.npz")
  return folder


@pytest.fixture(scope="module")
def shapes(towers):
  """(zimg, labels, a Tower, names of the classes) of the pictures that are evaluated."""
  source, tower = Shapes("test", COUNT, 16), siglax.load(towers / "run")
  examples = [source[i] for i in range(COUNT)]
  zimg = np.float64(tower.embed_images([example["image"] for example in examples]))
  return zimg, np.array([example["label"] for example in examples]), tower, source.classnames


def evaluated(source, out, *words) -> list[dict]:
  out.unlink(missing_ok=True)
  flags = ["--out", str(out), "--config.eval.batch_size=16"]
  assert cli.main(["evaluate", "--from", str(source), *words, *flags]) == 0
  return json.loads(out.read_text())


@pytest.mark.parametrize("source", ["run", "hf"])
def test_tasks_of_the_command_line_on_a_run_and_an_export(towers, shapes, tmp_path, source):
  zimg, labels, tower, classnames = shapes
  given = [
    f"zero_shot:{DATA},name=mine,templates=imagenet80",
    f"knn:{DATA},{TRAIN},k=3,weights=uniform",
    f"linear_probe:{DATA},{TRAIN},solver=ridge,weight_decay=0.1",
  ]
  before = (towers / "run" / "metrics.jsonl").read_bytes()
  zero_shot, knn, probe = evaluated(towers / source, tmp_path / "x.json", "--tasks", *given)
  assert not (towers / "run" / "eval.json").exists()
  assert (towers / "run" / "metrics.jsonl").read_bytes() == before
  lines = names.SETS["imagenet80"].read_text().splitlines()
  assert len(set(lines)) == 80 and all(line.count("{}") == 1 for line in lines)
  ztxt = [tower.embed_texts([line.replace("{}", name) for line in lines]) for name in classnames]
  assert knn["task"] == "knn" and 0 <= knn["metrics"]["knn_acc1"] <= 1
  means = np.stack([z.mean(axis=0) / np.linalg.norm(z.mean(axis=0)) for z in ztxt])
  right = np.argmax(zimg @ means.T, axis=1) == labels
  assert zero_shot == {
    "dataset": "mine",
    "model": "siglax",
    "pretrained": source,
    "task": "zeroshot_classification",
    "metrics": zero_shot["metrics"],
    "language": "en",
  }
  assert zero_shot["metrics"]["acc1"] == pytest.approx(right.mean(), abs=1e-6)
  assert probe["task"] == "linear_probe" and probe["metrics"]["lp_acc1"] > 0.1
  assert list(probe["metrics"]) == ["lp_acc1", "lp_acc5", "lp_mean_per_class_recall"]


def test_an_image_tower_alone_takes_kinds_without_texts(towers, capsys):
  task = f"knn:{DATA},{TRAIN},k=3"
  lines = []
  for source in ("vision", "run:img", "x.npz"):
    assert cli.main(["evaluate", "--from", str(towers / source), "--tasks", task]) == 0
    lines += [line for line in capsys.readouterr().out.splitlines() if "knn_acc1" in line]
  assert len(lines) == 3 and lines[0] == lines[1]


@pytest.mark.parametrize(
  "source, task, message",
  [
    ("vision", f"retrieval:{DATA}", "vision has no text tower; give one that has"),
    ("x.npz", f"zero_shot:{DATA}", "x.npz has no tokenizer; put it into its folder"),
    ("run:txt", f"knn:{DATA},{TRAIN}", "run:txt has no image tower; give one that has"),
    ("hf", "knn:data=shapes", "config.eval.tasks.0.train is missing; knn needs it"),
    ("hf", f"knn:{DATA},{TRAIN},k=161", "k=161 is more than the 160 examples of train"),
    ("hf", f"zero_shot:{DATA},templates=none.txt", "templates='none.txt' cannot be read: No such"),
    ("hf", f"zero_shot:{DATA},templates=names.txt", "'cat' must have one {} for the name"),
    ("hf", f"zero_shot:{DATA},classnames=empty.txt", "classnames='empty.txt' has no line"),
    ("hf", f"zero_shot:{DATA},classnames=names.txt", "has label"),
    ("hf", f"nearest:{DATA}", "kind='nearest' is no evaluation kind; known are zero_shot"),
    ("hf", "retrieval:data=shapes,image_size=16", "is written data.image_size=16, behind data="),
    ("hf", "retrieval:shapes", "'shapes' must be field=value"),
    ("hf", "empty.py", "its config.eval.tasks is empty"),
  ],
)
def test_what_does_not_fit_is_one_line(
  towers, tmp_path, monkeypatch, capsys, source, task, message
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "names.txt").write_text("cat\ndog\n")
  (tmp_path / "empty.txt").write_text("\n")
  (tmp_path / "empty.py").write_text(
    "from siglax import config\ndef get_config():\n  return config.default()\n"
  )
  assert cli.main(["evaluate", "--from", str(towers / source), "--tasks", task]) == 1
  (line,) = capsys.readouterr().err.strip().splitlines()
  assert line.startswith("siglax evaluate: ") and message in line


def test_words_become_tasks(tmp_path):
  (task,) = tasks.parse(
    [
      "linear_probe:data=a.parquet:label=fine,data.key=id,train=s3://b/c.parquet,train.label=y,"
      "shots=4"
    ]
  )
  assert task == {
    "kind": "linear_probe",
    "name": "linear_probe",
    "data": {"source": "parquet", "path": "a.parquet", "label": "fine", "key": "id"},
    "train": {"source": "parquet", "path": "s3://b/c.parquet", "label": "y"},
    "shots": 4,
  }
  (task,) = tasks.parse(["zero_shot:data=x,templates=a photo, of a {}.,name=7,examples=9"])
  assert task["templates"] == "a photo, of a {}." and (task["name"], task["examples"]) == ("7", 9)
  (tmp_path / "c.py").write_text(
    "from siglax import config\ndef get_config(examples=3):\n  c = config.default()\n"
    "  c.eval.tasks = ({'kind': 'loss', 'name': 'a', 'data': {'source': 'shapes'},"
    " 'examples': examples},)\n  return c\n"
  )
  loss, other = tasks.parse([f"{tmp_path}/c.py:examples=5", "retrieval:data=shapes"])
  assert loss["examples"] == 5 and other["name"] == "retrieval"


def test_classnames_of_a_file(tmp_path):
  zero_shot = {"kind": "zero_shot", "name": "pets", "data": {"source": "shapes"}}
  own, loss = {**zero_shot, "classnames": ("a",)}, {**zero_shot, "kind": "loss"}
  for name, text, want in (
    ("a.txt", "cat\nhot dog\n", ("cat", "hot dog")),
    ("a.json", '["cat", "dog"]', ("cat", "dog")),
    ("b.json", '{"any": ["cat", "dog"]}', ("cat", "dog")),
    ("c.json", '{"cars": ["bus"], "pets": ["cow"]}', ("cow",)),
  ):
    (tmp_path / name).write_text(text)
    file = str(tmp_path / name)
    found = tasks.with_classnames((zero_shot, own, loss), file)
    assert found == ({**zero_shot, "classnames": want}, own, loss)
  for name, text, message in (
    ("d.json", '{"cars": ["bus"], "ships": ["tug"]}', "has those of cars, ships; call the task"),
    ("e.json", "{", "is no JSON"),
    ("f.json", "[3]", "must be names, one for each label"),
    ("g.json", "{}", "must be names, one for each label"),
  ):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
      tasks.with_classnames((zero_shot,), str(tmp_path / name))
  with pytest.raises(ValueError, match="no task is without classnames of its own"):
    tasks.with_classnames((own, loss), str(tmp_path / "a.txt"))


def test_labels_are_known_without_pictures(monkeypatch, towers):
  """Of a source that knows its texts; the check of a probe reads no picture for them."""
  config = siglax.load(towers / "run").config
  examples = data_lib.EvalExamples(Shapes("test", 8, 16), config)
  assert examples.labels() is None

  class Known(Shapes):
    def texts(self):
      return iter([{"captions": [], "label": 4}, None, {"captions": ["a"]}])

  known = data_lib.EvalExamples(Known("test", 8, 16), config)
  assert known.labels() == [4, None, None]
