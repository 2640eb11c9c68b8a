"""Run folders whose config.json has no version: golden/run_version_1 was trained by the commit
b06059f, in a folder with `small.model`, its tokenizer.model, by

    siglax train --config tests/tiny.py:steps=4 --workdir run_version_1 \\
    --config.text.tokenizer=small.model --config.optim.schedule=constant --config.optim.name=lion
    --config.log.tensorboard=False --config.data.0.size=96
    --config.model.{image,text}.{width=8,mlp_dim=16} --config.text.length=8
    --config.eval.tasks=({'kind': 'zero_shot', 'name': 'classes', 'data': D, 'size': 16}, {'kind':
    'loss', 'name': 'test', 'data': D, 'size': 32})

where D = {'source': 'shapes', 'split': 'test', 'image_size': 16, 'size': 48}; its curves.png was
removed.
"""

import json
import pathlib
import shutil

import numpy as np
import pytest

from siglax import config as config_lib
from siglax import tower as tower_lib
from siglax.commands import cli
from siglax.data.shapes import Shapes

import tiny

FOLDER = pathlib.Path(__file__).parent / "golden" / "run_version_1"
# What b06059f logged of the same run with steps=8, and its evaluation of the folder.
# Of steps 5 to 8
LOSSES = (
  4.371449947357178,
  4.452136993408203,
  4.792726516723633,
  4.154070854187012,
)
DATA = "{'source':'shapes','split':'test','image_size':16,'examples':48}"
FLAGS = (
  "text.tokenizer=small.model",
  "optim.schedule=constant",
  "optim.name=lion",
  "log.tensorboard=False",
  "data.0.examples=96",
  "text.length=8",
  *(f"model.{tower}.{name}" for tower in ("image", "text") for name in ("width=8", "mlp_dim=16")),
  f"eval.tasks=({{'kind':'zero_shot','name':'classes','data':{DATA},'examples':16}},)",
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  shutil.copytree(FOLDER, tmp_path / "run")
  shutil.copy(FOLDER / "tokenizer.model", "small.model")
  return tmp_path / "run"


def test_its_config_has_todays_names():
  config = config_lib.read(FOLDER / "config.json")
  assert config.model.image.variant == config.model.text.variant == "S"
  assert config.data == ({"source": "shapes", "examples": 96, "image_size": 16},)
  data = {"source": "shapes", "split": "test", "image_size": 16, "examples": 48}
  assert config.eval.tasks == (
    {"kind": "zero_shot", "name": "classes", "data": data, "examples": 16},
    {"kind": "loss", "name": "test", "data": data, "examples": 32},
  )
  assert json.loads(config_lib.to_json(config))["version"] == 2
  assert config_lib.to_json(config_lib.from_json(config_lib.to_json(config))) == config_lib.to_json(
    config
  )


def test_it_goes_on_with_the_same_losses(folder):
  flags = [f"--config.{flag}" for flag in FLAGS]
  assert (
    cli.main(["train", "--config", f"{tiny.__file__}:steps=8", "--workdir", str(folder), *flags])
    == 0
  )
  lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
  losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
  np.testing.assert_allclose([losses[step] for step in range(5, 9)], LOSSES, rtol=1e-5)
  assert json.loads((folder / "config.json").read_text())["version"] == 2


def test_it_evaluates_and_exports(folder, capsys):
  assert cli.main(["evaluate", "--from", str(folder)]) == 0
  records = json.loads((folder / "eval.json").read_text())
  logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  known = next(line for line in logged if "eval/classes/acc5" in line)
  assert records[0]["metrics"]["acc5"] == known["eval/classes/acc5"] == 0.125
  assert f"{known['eval/test/loss']:.4f}" in capsys.readouterr().out
  assert (
    cli.main(["export", "--from", str(folder), "--format", "hf-vision", "--out", "exported"]) == 0
  )
  images = [Shapes("test", 8, 16)[i]["image"] for i in range(8)]
  exported, run = (tower_lib.load(path).embed_images(images) for path in ("exported", folder))
  assert np.ptp(run, axis=0).max() > 0.01
  np.testing.assert_allclose(exported, run, atol=1e-5)
