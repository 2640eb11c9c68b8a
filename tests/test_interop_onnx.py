"""ONNX out: the README's own lines, run by onnxruntime in a process that imports neither siglax nor
jax, give what transformers and the towers give.
"""

import importlib.util
import json
import pathlib
import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest
from test_interop_export import GOLDEN
from test_interop_export import exported
from test_interop_export import folder  # noqa: F401, the SigLIP folder with a tokenizer
import test_resnet

import siglax
from siglax import config as config_lib
from siglax import models
from siglax import tower as tower_lib
from siglax.commands import cli
from siglax.config.declared import model as declared
from siglax.interop import onnx as onnx_format
from siglax.models import resnet
from siglax.tower import export

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
onnx_graph = pytest.importorskip("siglax.interop.onnx_graph")

ROOT = pathlib.Path(__file__).parents[1]

TEXTS = ["A Red disc!", "a  blue square, and a small ring"]
# argv: the inputs, then exported folders; the outputs go beside each.
PROGRAM = """
import os, sys
inputs, *folders = sys.argv[1:]
inputs = dict(__import__("numpy").load(inputs))
for folder in folders:
  os.chdir(folder)
  found = {}
  for block in open("README.md").read().split("```python")[1:]:
    exec(block.split("```")[0], found)
  assert found["logits"].shape == (2, 2)
  config, x = found["config"], inputs["pictures"]
  embed = {name: found["load"](name) for name in config["functions"]}
  for file in ("float", "patches"):
    config["functions"][file] = {"file": file + ".onnx", "input": "pixels"}
  config["functions"]["float"]["input"] = "normalized_pixels"
  floats = (x / 255 - config["image"]["mean"]) / config["image"]["std"]
  out = {
    "zimg": embed["embed_image"](x),
    "one": embed["embed_image"](x[:1]),
    "ztxt": embed["embed_text"](inputs["ids"]),
    "float": found["load"]("float")(floats.astype("float32")),
    "patches": found["load"]("patches")(x),
    "pixels": found["pixels"](inputs["picture"].item()),
  }
  if "tokens" in found:
    out["tokens"] = found["tokens"](inputs["texts"].tolist())
    out["embedded"] = embed["embed_text"](out["tokens"])
  found["np"].savez(folder + ".out.npz", **out)
assert not {"jax", "flax", "siglax", "torch"} & set(sys.modules)
"""


def session(file):
  return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def elsewhere(folder, tmp_path_factory):
  """{name: (the folder that was exported, the export, what its README's lines made)}."""
  there = tmp_path_factory.mktemp("onnx")
  sources = {"hf_siglip": folder, "hf_clip": GOLDEN / "hf_clip"}
  z = np.load(GOLDEN / "hf_clip" / "io.npz")
  picture = there / "picture.png"
  cv2.imwrite(str(picture), np.random.default_rng(0).integers(0, 256, (40, 23, 3), np.uint8))
  np.savez(
    there / "in.npz", pictures=z["pictures"], ids=z["ids"], texts=TEXTS, picture=str(picture)
  )
  for name, source in sources.items():
    exported(source, "onnx", there / name)
  words = [str(there / name) for name in ("in.npz", *sources)]
  # Isolated (-I): neither this folder nor PYTHONPATH is on its path.
  run = subprocess.run(
    [sys.executable, "-I", "-c", PROGRAM, *words], capture_output=True, text=True
  )
  assert run.returncode == 0, run.stderr
  return {
    name: (source, there / name, dict(np.load(there / f"{name}.out.npz")))
    for name, source in sources.items()
  }


@pytest.mark.parametrize("name", ["hf_siglip", "hf_clip"])
def test_images_give_what_transformers_gives(elsewhere, name):
  out, z = elsewhere[name][2], np.load(GOLDEN / name / "io.npz")
  for made in ("zimg", "float"):
    np.testing.assert_allclose(out[made], z["zpictures"], atol=1e-5, strict=True)
  np.testing.assert_allclose(out["one"], z["zpictures"][:1], atol=1e-5, strict=True)
  np.testing.assert_allclose(out["patches"], z["tokens"], atol=1e-5, strict=True)


def test_texts_and_logits_are_those_of_transformers(elsewhere):
  _, there, out = elsewhere["hf_clip"]
  z, config = (
    np.load(GOLDEN / "hf_clip" / "io.npz"),
    json.loads((there / "config.json").read_text()),
  )
  np.testing.assert_allclose(out["ztxt"], z["ztxt"], atol=1e-5, strict=True)
  logits = config["scale"] * z["zimg"] @ out["ztxt"].T + config["bias"]
  np.testing.assert_allclose(logits, z["logits"], atol=1e-4)
  assert "tokens" not in out  # it has no tokenizer


def test_pictures_and_strings_become_what_they_become_in_siglax(elsewhere):
  source, there, out = elsewhere["hf_siglip"]
  tower, picture = siglax.load(source), there.parent / "picture.png"
  np.testing.assert_array_equal(out["pixels"], tower.pixels(picture))
  np.testing.assert_array_equal(out["tokens"], tower.text(TEXTS))
  np.testing.assert_allclose(out["embedded"], tower.embed_texts(TEXTS), atol=1e-5, strict=True)


def test_the_files_are_standard_onnx_of_any_number_of_rows(elsewhere):
  for _, there, _ in elsewhere.values():
    config = json.loads((there / "config.json").read_text())
    for function in config["functions"].values():
      onnx.checker.check_model(there / function["file"], full_check=True)
      model = onnx.load(there / function["file"])
      assert {node.domain for node in model.graph.node} == {""}
      for value, declared_as in ((model.graph.input, "from"), (model.graph.output, "to")):
        kind = value[0].type.tensor_type
        sizes = ",".join(d.dim_param or str(d.dim_value) for d in kind.shape.dim)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        assert function[declared_as] == f"{dtype}[{sizes}]"


# Fields of towers which, with the defaults, together have every choice of every field.
OPTIONS = {
  "conv": {
    "image": {"stem": "conv", "position": "sincos", "pool": "mean", "scan": False},
    "text": {"pool": "mean", "dtype": "bfloat16"},
  },
  "cls": {
    "image": {"pool": "cls", "pre_norm": True, "patch_bias": False, "head": "linear_no_bias"}
    | {"activation": "quick_gelu", "position": "sincos", "dtype": "bfloat16"},
    "text": {"pool": "eos", "causal": True, "head": "linear_no_bias", "activation": "quick_gelu"},
  },
  "map": {
    "image": {"head": "linear", "activation": "gelu", "norm_eps": 1e-3},
    "text": {"pool": "map", "activation": "gelu", "scan": False},
  },
  "argmax": {"text": {"pool": "argmax", "causal": True, "norm_eps": 1e-2}},
}


def test_the_options_are_all_that_there_are():
  for group, name in ((declared.IMAGE_TOWER, "image"), (declared.TEXT_TOWER, "text")):
    for field, has in group.declared.items():
      if has.names is not None and field != "variant":
        default = config_lib.default().model[name][field]
        values = {fields.get(name, {}).get(field, default) for fields in OPTIONS.values()}
        assert values | {default} == set(has.names), field


def of_random(c, monkeypatch, towers=models.TOWERS):
  """A tower of random parameters, which siglax.load gives."""
  params = test_resnet.randomized(models.build(c.model, towers))
  tower = tower_lib.Tower(c, params, None)
  monkeypatch.setattr(tower_lib, "load", lambda _: tower)
  return tower


@pytest.mark.parametrize("options", OPTIONS)
def test_every_option_of_a_tower_goes_out(options, tmp_path, monkeypatch):
  """An export compares itself with the tower, here at a tenth of what it allows."""
  monkeypatch.setattr(onnx_format, "TOLERANCE", 1e-5)
  c = siglax.load(GOLDEN / "hf_siglip").config
  for name, fields in OPTIONS[options].items():
    c.model[name].update(fields)
  of_random(c, monkeypatch, tuple(OPTIONS[options]))
  export.export("run", "onnx", tmp_path / "out")
  assert len(list(tmp_path.glob("out/*.onnx"))) == len(OPTIONS[options])


def test_a_resnet_goes_out(tmp_path, monkeypatch):
  monkeypatch.setattr(onnx_format, "TOLERANCE", 1e-5)
  monkeypatch.setitem(resnet.SIZES, "RN50", (64, (2, 1, 1, 1), 1024))  # each kind of block
  tower = of_random(test_resnet.tiny(), monkeypatch, ("image",))
  export.export("run", "onnx", tmp_path / "out")
  x = np.random.default_rng(2).integers(0, 256, (3, 64, 64, 3), np.uint8)
  found = session(tmp_path / "out" / "image.onnx").run(None, {"pixels": x})[0]
  params = test_resnet.double(tower.params["image"])
  _, want = test_resnet.reference(params, x, training=False)
  np.testing.assert_allclose(found, want, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["siglip_b16", "clip_b16"])
def test_towers_of_b16_go_out(recipe, tmp_path, monkeypatch):
  c = config_lib.load(
    str(ROOT / "configs" / f"{recipe}.py"), {"image.size": "224", "train.dtype": "float32"}
  )
  c.model.text.vocab_size, c.model.text.eos_id = 32_000, 1
  tower, out = of_random(c, monkeypatch), tmp_path / "out"
  export.export("run", "onnx", out)
  rng = np.random.default_rng(2)
  ids = rng.integers(0, 32_000, (7, c.text.length), np.int32)
  ids[1::2, c.text.length // 2] = 1
  x = {"image": rng.integers(0, 256, (7, 224, 224, 3), np.uint8), "text": ids}
  for name in models.TOWERS:
    want = jax.jit(getattr(tower.model, f"embed_{name}"))(tower.params, x[name])
    for count in (1, 7):
      there = session(out / f"{name}.onnx")
      found = there.run(None, {there.get_inputs()[0].name: x[name][:count]})[0]
      difference = np.abs(found - want[:count]).max()
      print(f"{recipe} {name} at batch {count}: {difference:.1e}")
      assert difference < 1e-4


def test_one_tower_alone(tmp_path):
  out = exported(f"{GOLDEN / 'hf_clip'}:txt", "onnx", tmp_path / "out")
  assert sorted(file.name for file in out.iterdir()) == ["README.md", "config.json", "text.onnx"]
  assert "pixels" not in (out / "README.md").read_text()


def test_more_than_a_file_takes_goes_beside_it(elsewhere, tmp_path, monkeypatch):
  monkeypatch.setattr(onnx_graph, "INSIDE", 1000)
  out = exported(GOLDEN / "hf_clip", "onnx", tmp_path / "out")
  assert sorted(file.name for file in out.iterdir() if ".onnx" in file.name) == [
    *("image.onnx", "image.onnx.data", "text.onnx", "text.onnx.data")
  ]
  pictures = np.load(GOLDEN / "hf_clip" / "io.npz")["pictures"]
  found = session(out / "image.onnx").run(None, {"pixels": pictures})[0]
  np.testing.assert_array_equal(found, elsewhere["hf_clip"][2]["zimg"])


@pytest.mark.parametrize("name", models.TOWERS)
def test_other_embeddings_are_refused_and_nothing_stays(name, tmp_path, monkeypatch, capsys):
  """Positions of 3000 take the digits of the mean of squares that flax's norms compute."""
  tower = of_random(siglax.load(GOLDEN / "hf_siglip").config, monkeypatch, (name,))
  tower.params[name]["pos_embedding"] += 3000
  words = ["export", "--from", "run", "--format", "onnx", "--out", str(tmp_path / "out")]
  assert cli.main(words) == 1
  said = capsys.readouterr().err
  assert f"--format onnx: {name}.onnx in onnxruntime" in said and "it needs 1e-04" in said
  assert said.count("\n") == 1 and not list(tmp_path.iterdir())


def test_what_it_cannot_do_is_one_line(elsewhere, tmp_path, monkeypatch):
  there, new = elsewhere["hf_clip"][1], tmp_path / "new"
  with pytest.raises(ValueError, match="--dtype bfloat16 has no place .* it needs float32"):
    export.export(GOLDEN / "hf_clip", "onnx", new, "bfloat16")
  with pytest.raises(ValueError) as e:
    siglax.load(there)
  assert str(e.value) == (
    f"{there} was written by --format onnx, which siglax does not read back; give what it was "
    "exported from, or that in one of the formats hf, hf-vision, hf-text, big_vision, open_clip"
  )
  find = importlib.util.find_spec
  absent = lambda name, *more: None if name.startswith("onnx") else find(name, *more)
  monkeypatch.setattr(importlib.util, "find_spec", absent)
  with pytest.raises(ValueError) as e:
    export.export(GOLDEN / "hf_clip", "onnx", new)
  assert str(e.value) == "the format onnx needs onnx and onnxruntime: pip install onnx onnxruntime"
  assert not new.exists()
