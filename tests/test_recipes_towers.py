"""docs/recipes: a tower, a format and an optimizer of one's own, from a file outside the package
and as a file inside of a copy of it.
"""

import dataclasses
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

import siglax
from siglax import config as config_lib
from siglax import models
from siglax import tower as tower_lib
from siglax.commands import cli
from siglax.config import imports
from siglax.config import parts
from siglax.data.text import TextProcessor
from siglax.devices import mesh as mesh_lib
from siglax.models import resnet
from siglax.runs import digest as digest_lib
from siglax.tower import export
from siglax.training import checks
from siglax.training import initial
from siglax.training import optim

import tiny

ROOT = pathlib.Path(__file__).parent.parent
NAMES = ("tower", "format", "optimizer")


def blocks(name, language):
  text = (ROOT / "docs" / "recipes" / f"{name}.md").read_text()
  found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
  return [block for of, block in found if of == language]


def printed(name, files, **paths):
  """The words of the last command that the recipe prints, with other paths for some flags."""
  (text,) = blocks(name, "")
  words = shlex.split(text.splitlines()[-1])[1:]
  paths = {"import": files[name], **paths}
  for flag, path in paths.items():
    words[words.index(f"--{flag}") + 1] = str(path)
  return words


@pytest.fixture(scope="module", autouse=True)
def forget():
  """What this module imports."""
  before = len(parts.registered)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(imports, "_imported", {})
    yield
  parts.withdraw(parts.registered[before:])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """{recipe: its file}, imported."""
  folder = tmp_path_factory.mktemp("recipes")
  found = {}
  for name in NAMES:
    (code,) = blocks(name, "python")
    found[name] = folder / f"my_{name}.py"
    found[name].write_text(code)
    imports.import_parts(str(found[name]))
  return found


def small(**fields):
  c = tiny.get_config()
  for field, value in fields.items():
    config_lib.override(c, field, str(value))
  return config_lib.resolve(c, TextProcessor())


def of_patches(**fields):
  """With the tower of the recipe, which has none of a transformer's sizes."""
  image = config_lib.default().model.image
  initial = {f"model.image.{k}": image[k] for k in ("width", "depth", "heads", "mlp_dim")}
  return small(**initial | {"model.image.variant": "patches-S"} | fields)


@pytest.fixture(scope="module")
def run(files, tmp_path_factory):
  """The folder of a run of the tower, the optimizer and the schedule, by the printed commands."""
  folder = tmp_path_factory.mktemp("run")
  config = folder / "config.py"
  config.write_text(
    f"import sys\nsys.path.insert(0, {str(ROOT / 'tests')!r})\nimport tiny\n"
    "def get_config():\n"
    "  c = tiny.get_config(2)\n"
    "  for name in ('width', 'depth', 'heads', 'mlp_dim'): c.model.image[name] = None\n"
    "  c.eval.tasks, c.log.tensorboard = (), False\n"
    "  return c\n"
  )
  workdir = folder / "run"
  words = printed("tower", files, config=config, workdir=workdir)
  more = [word for word in printed("optimizer", files) if word.startswith("--config.")]
  more += ["--import", str(files["optimizer"]), "--config.loss.impl=ring", "--config.optim.lr=0.1"]
  assert cli.main([*words, *more]) == 0
  return workdir


def test_the_tower_is_trained_kept_and_embeds(run, files):
  lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
  assert [line["step"] for line in lines if "loss" in line] == [1, 2]
  kept = json.loads((run / "imports.json").read_text())
  assert [["image tower", "patches"]] in [record["parts"] for record in kept]
  tower = siglax.load(run)
  assert set(tower.params["image"]["layers"]) == {"0", "1", "2"} and tower.model.embed_dim == 64
  pictures = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
  z = tower.embed_images(list(pictures))
  # The network of the recipe in float64.
  p = jax.tree.map(np.float64, tower.params["image"])
  patches = (pictures / 255 - 0.5) / 0.5
  patches = patches.reshape(3, 2, 8, 2, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(3, 4, -1)
  x = patches @ p["stem"]["kernel"].reshape(-1, 64) + p["stem"]["bias"]
  for layer in p["layers"].values():
    gelu = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    x = x + gelu @ layer["kernel"] + layer["bias"]
  want = x.mean(axis=1) @ p["head"]["kernel"] + p["head"]["bias"]
  np.testing.assert_allclose(z, want / np.linalg.norm(want, axis=1, keepdims=True), atol=1e-5)


def test_siglax_embed_takes_it(run, tmp_path):
  data = "shapes:examples=8,image_size=16"
  assert (
    cli.main(["embed", "--from", str(run), "--data", data, "--out", str(tmp_path / "x.npz")]) == 0
  )
  assert np.load(tmp_path / "x.npz")["image_embedding"].shape == (8, 64)


def test_it_goes_out_as_functions_and_other_formats_refuse_it(run, tmp_path):
  out = pathlib.Path(export.export(run, "stablehlo", tmp_path / "out"))
  assert json.loads((out / "config.json").read_text())["image"]["width"] == 64
  for form in ("hf", "hf-vision", "open_clip", "onnx", "vit"):
    refusal = "config.model.image.variant='patches-S'; it needs 'Ti'.*: stablehlo$"
    with pytest.raises(ValueError, match=f"--format {form} cannot express {refusal}"):
      export.export(run, form, tmp_path / ("x.vit" if form == "vit" else "x"))


@pytest.mark.parametrize(
  "fields, line",
  [
    ({"model.image.depth": 3}, "config.model.image.depth=3 has no place in .*'patches-S'"),
    ({"train.remat.image": "full"}, "config.train.remat.image='full' has no place in"),
    ({"train.patch_drop": 0.5}, "config.train.patch_drop=0.5 has no place in"),
    ({"model.image.hidden_layers": -1}, "config.model.image.hidden_layers=-1 must be at least 0"),
    ({"image.size": 20}, "config.image.size=20 is not divisible by config.model.image.patch=8"),
  ],
)
def test_what_the_tower_has_no_place_for_is_named(files, fields, line):
  with pytest.raises(ValueError, match=line):
    checks.validate(of_patches(**fields), 8)


def test_other_towers_have_no_place_for_its_field(files):
  with pytest.raises(ValueError, match="model.image.hidden_layers=3 has no place in .*='S'"):
    checks.validate(small(**{"model.image.hidden_layers": 3}), 8)


def test_init_from_names_what_differs_of_two(run, files):
  model = models.build(of_patches(**{"model.image.hidden_layers": 1}).model)
  with pytest.raises(ValueError, match="config.model.image.hidden_layers is 3 there and 1 here"):
    initial.initial_params(run, model, mesh_lib.make())


@pytest.mark.parametrize(
  "changed, message",
  [
    ({"name": "other"}, "the image tower 'patches' has a variant 'patches-S' already"),
    ({"variants": {"B": 1}}, "the image tower 'vit' has a variant 'B' already"),
    ({"variants": {"x": 1}}, "there is an image tower 'patches' already"),
  ],
)
def test_names_that_are_taken(files, changed, message):
  tower = dataclasses.replace(models.IMAGE_TOWERS["patches"], **changed)
  with pytest.raises(ValueError, match=message):
    models.IMAGE_TOWERS.register(tower)


def test_statistics_that_are_not_declared_are_named(files, monkeypatch):
  plain = dataclasses.replace(resnet.TOWER, name="plain", variants={"plain": 1})
  plain = dataclasses.replace(plain, has_batch_norm=False)
  monkeypatch.setitem(resnet.SIZES, "plain", (64, (1, 1, 1, 1), 1024))
  monkeypatch.setattr(models.IMAGE_TOWERS, "_parts", {"plain": plain})
  c = of_patches(**{"image.size": 64}).model
  c.image.variant, c.image.width = "plain", 4
  with pytest.raises(ValueError, match="image tower 'plain' has running statistics .*norm/mean"):
    models.build(c)


def test_the_format_comes_back_bit_for_bit(files, tmp_path, monkeypatch):
  # The tower of the training that the recipe prints, before its first step.
  _, _, _, config, _, _, *given = shlex.split(blocks("format", "")[0].splitlines()[0])
  c = config_lib.load(str(ROOT / config))
  for word in given:
    config_lib.override(c, *word.removeprefix("--config.").split("="))
  c = config_lib.resolve(c, TextProcessor())
  model = models.build(c.model)
  params = jax.jit(model.init)(jax.random.key(0))
  before = tower_lib.Tower(c, params, TextProcessor(length=24), mesh_lib.make())
  load = tower_lib.load
  monkeypatch.setattr(tower_lib, "load", lambda source: before)
  out = tmp_path / "tower.vit"
  assert cli.main(printed("format", files, out=out)) == 0
  after = load(out)
  digest = lambda tower: digest_lib.image_tower(tower.model, tower.params, tower.mesh)
  assert digest(after) == digest(before)
  # Not to the bit: XLA compiles blocks that are scanned in another way.
  pictures = list(np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), np.uint8))
  z = before.embed_images(pictures), after.embed_images(pictures)
  np.testing.assert_allclose(*z, rtol=0, atol=2e-7)
  # Of another pooling it has no place, and of an option that is not in its table neither.
  for field, value in (("pool", "map"), ("activation", "gelu")):
    before.config = small(**{"model.image.pool": "mean"} | {f"model.image.{field}": value})
    with pytest.raises(
      ValueError, match=f"vit cannot express config.model.image.{field}='{value}'"
    ):
      export.export("run", "vit", tmp_path / "other.vit")


def test_the_optimizer_and_its_schedule_are_the_formula(files):
  fields = {"name": "sgd", "momentum": 0.5, "schedule": "stairs", "stair": 2, "lr": 0.1}
  c = small(**{f"optim.{k}": v for k, v in fields.items()}, **{"optim.weight_decay": 0.0})
  checks.validate(c, 8)
  p, gradients = np.ones((2, 3), np.float32), (1.0, 2.0, 3.0)
  params = {"image": {"head": {"kernel": p}}}
  tx, schedule = optim.make(c, params, 10)
  state, trace = tx.init(params), 0.0
  for step, g in enumerate(gradients):
    updates, state = tx.update(jax.tree.map(lambda x, g=g: g * x / x, params), state, params)
    params = optax.apply_updates(params, updates)
    trace, rate = 0.5 * trace + g, 0.1 * 0.1 ** (step // 2)
    np.testing.assert_allclose(schedule(step), rate, rtol=1e-6)
    p = p - rate * trace
  np.testing.assert_allclose(params["image"]["head"]["kernel"], p, rtol=1e-6)
  c.optim.momentum = 1.0
  with pytest.raises(ValueError, match=r"config.optim.momentum=1.0 must lie in \[0, 1\)"):
    checks.validate(c, 8)


FOR_REGISTERING = (
  "from siglax import interop",
  "from siglax.training.optimizers import OPTIMIZERS",
  "from siglax.training.schedules import SCHEDULES",
)
INSIDE = {
  "tower": ("siglax/models/patches.py", 1),
  "format": ("siglax/interop/vit_arrays.py", 1),
  "optimizer": ("siglax/training/sgd.py", 2),
}
ASKS = """
from siglax import interop, models
from siglax.training.optimizers import OPTIMIZERS
assert models.IMAGE_TOWERS.of_variant("patches-S").name == "patches" == models.patches.TOWER.name
assert interop.written()[-1] == "vit" and OPTIMIZERS.names[-1] == "sgd"
from siglax import config
c = config.default()
assert c.model.image.hidden_layers == 2 and c.optim.momentum == 0.9
"""


def apply(folder, edit):
  """A block of diff: its file, then parts that begin with @@."""
  name, *hunks = edit.split("@@\n")
  file = folder / name.removeprefix("--- ").strip()
  text = file.read_text()
  for hunk in hunks:
    lines = hunk.splitlines()
    old, new = ("\n".join(line[1:] for line in lines if line[0] in kinds) for kinds in (" -", " +"))
    assert text.count(f"\n{old}\n") == 1, (name, old)
    text = text.replace(f"\n{old}\n", f"\n{new}\n")
  file.write_text(text)
  return sum(line.startswith("-") for hunk in hunks for line in hunk.splitlines())


def test_inside_the_package_each_is_a_file_and_a_line(tmp_path):
  ignored = shutil.ignore_patterns("__pycache__")
  shutil.copytree(ROOT / "siglax", tmp_path / "siglax", ignore=ignored)
  for name, (path, registers) in INSIDE.items():
    (code,), (edit,) = blocks(name, "python"), blocks(name, "diff")
    lines = [line for line in code.splitlines() if line not in FOR_REGISTERING]
    assert all(".register(" in line for line in lines[-registers:])
    (tmp_path / path).write_text("\n".join(lines[:-registers]) + "\n")
    assert apply(tmp_path, edit) <= 1  # lines that are changed, beside the import
  code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{ASKS}"
  environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300
  )
  assert done.returncode == 0, done.stderr
