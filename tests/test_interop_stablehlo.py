"""StableHLO out: the README's own lines, run in a process that cannot import siglax, give what the
towers give.
"""

import json
import os
import subprocess
import sys

import cv2
import jax
from jax import export as jax_export
import numpy as np
import pytest
from test_interop_export import GOLDEN  # noqa: F401, the SigLIP folder with a tokenizer
from test_interop_export import exported  # noqa: F401, the SigLIP folder with a tokenizer
from test_interop_export import folder  # noqa: F401, the SigLIP folder with a tokenizer

import siglax
from siglax import models
from siglax import tower as tower_lib
from siglax.commands import cli
from siglax.data import images
from siglax.interop import stablehlo
from siglax.tower import export

TEXTS = ["A Red disc!", "a  blue square, and a small ring"]
# argv: the inputs, then exported folders; the outputs go beside each.
PROGRAM = """
import os, sys
sys.modules["siglax"] = None
inputs, *folders = sys.argv[1:]
inputs = dict(__import__("numpy").load(inputs))
for folder in folders:
  os.chdir(folder)
  found = {}
  for block in open("README.md").read().split("```python")[1:]:
    code = block.split("```")[0]
    # Its example compiles three functions; once is enough.
    exec(code if folder == folders[0] else code.split("\\nzimg")[0], found)
  picture = lambda name: os.path.join(os.path.dirname(folder), name + ".png")
  assert folder != folders[0] or found["patches"].shape[0] == 2
  out = {name: found["pixels"](picture(name)) for name in ("picture", "grey16", "rgb16")}
  if "tokens" in found:
    out["tokens"] = found["tokens"](inputs["texts"].tolist())
  for name in found["config"]["functions"]:
    function, x = found["load"](name), inputs["ids" if name == "embed_text" else "images"]
    out[name] = function(x)
    if folder == folders[0]:
      out[name + "_one"] = function(x[:1])
  function = found["config"]["functions"]["image_tokens"]
  params = dict(found["np"].load("image.npz"))
  if folder == folders[0]:
    call = found["export"].deserialize(open(function["file"], "rb").read()).call
    loss = lambda p: (call(p, inputs["images"]) ** 2).sum()
    out["gradient"] = found["jax"].grad(loss)(params)["norm/bias"]
  found["np"].savez(folder + ".out.npz", **out)
assert "flax" not in sys.modules
"""


@pytest.fixture(scope="module")
def image():
  """One tower alone, as the quickstart's: convolutions, sincos positions, mean pooling, blocks one
  by one.
  """
  c = siglax.load(GOLDEN / "hf_siglip").config
  c.model.image.update(stem="conv", position="sincos", pool="mean", scan=False, remat="full")
  model = models.build(c.model, ("image",))
  rng = np.random.default_rng(3)
  # Numbers that bfloat16 holds, so that its export has nothing to round.
  random = lambda x: jax.numpy.asarray(rng.normal(size=x.shape) / 4, jax.numpy.bfloat16).astype(
    x.dtype
  )
  return tower_lib.Tower(c, jax.tree.map(random, model.shapes), None)


def sixteen_bits():
  """Pictures of the towers' size, so that nothing is resized."""
  rng = np.random.default_rng(5)
  return {
    "grey16": rng.integers(0, 2**16, (16, 16), np.uint16),
    "rgb16": rng.integers(0, 2**16, (16, 16, 3), np.uint16),
  }


@pytest.fixture(scope="module")
def elsewhere(folder, image, tmp_path_factory):  # noqa: F811
  """(inputs, {name: (tower, folder, outputs there)})."""
  there = tmp_path_factory.mktemp("stablehlo")
  rng = np.random.default_rng(0)
  inputs = {
    "images": np.load(GOLDEN / "hf_clip" / "io.npz")["pictures"],
    "ids": np.load(GOLDEN / "hf_clip" / "io.npz")["ids"],
    "texts": np.array(TEXTS),
  }
  np.savez(there / "in.npz", **inputs)
  cv2.imwrite(str(there / "picture.png"), rng.integers(0, 256, (40, 23, 3), np.uint8))
  for name, x in sixteen_bits().items():
    cv2.imwrite(str(there / f"{name}.png"), x[..., ::-1] if x.ndim == 3 else x)
  exported(folder, "stablehlo", there / "siglip")
  exported(GOLDEN / "hf_clip", "stablehlo", there / "clip")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(tower_lib, "load", lambda _: image)
    export.export("run", "stablehlo", there / "image", "bfloat16")
  towers = {"siglip": siglax.load(folder), "clip": siglax.load(GOLDEN / "hf_clip"), "image": image}
  folders = [str(there / name) for name in towers]
  # Isolated (-I): neither this folder nor PYTHONPATH is on its path, and of siglax's dependencies
  # jax alone is imported.
  run = subprocess.run(
    [sys.executable, "-I", "-c", PROGRAM, str(there / "in.npz"), *folders],
    capture_output=True,
    text=True,
    env={**os.environ, "JAX_NUM_CPU_DEVICES": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
  )
  assert run.returncode == 0, run.stderr
  return inputs, {
    name: (towers[name], there / name, dict(np.load(there / f"{name}.out.npz"))) for name in towers
  }


@pytest.mark.parametrize("name", ["siglip", "clip"])
def test_functions_give_what_transformers_gives(elsewhere, name):
  out, z = elsewhere[1][name][2], np.load(GOLDEN / f"hf_{name}" / "io.npz")
  np.testing.assert_allclose(out["embed_image"], z["zpictures"], atol=1e-5)
  np.testing.assert_allclose(out["image_tokens"], z["tokens"], atol=1e-5)
  if name == "siglip":
    np.testing.assert_allclose(out["embed_image_one"], z["zpictures"][:1], atol=1e-5)
    np.testing.assert_allclose(out["image_tokens_one"], z["tokens"][:1], atol=1e-5)
    np.testing.assert_allclose(out["embed_text_one"], out["embed_text"][:1], atol=1e-5)
    # Of the sum of squared tokens by the last norm's bias, which is added to each.
    np.testing.assert_allclose(
      out["gradient"], 2 * z["tokens"].sum(axis=(0, 1)), rtol=1e-4, atol=1e-4
    )


def test_functions_of_a_tower_that_no_library_has(elsewhere):
  inputs, found = elsewhere
  tower, _, out = found["image"]
  normalized = ((inputs["images"] / 255.0 - 0.5) / 0.5).astype(np.float32)
  assert {name for name in out if name in stablehlo.FUNCTIONS} == {"embed_image", "image_tokens"}
  np.testing.assert_allclose(
    out["embed_image"], jax.jit(tower.model.embed_image)(tower.params, normalized), atol=1e-5
  )
  tokens = jax.jit(tower.model.image_tokens)(tower.params, normalized)
  np.testing.assert_allclose(out["image_tokens"], tokens, atol=1e-5)
  # pool="mean" without a head: the embedding is their mean, of length 1
  mean = out["image_tokens"].mean(axis=1)
  np.testing.assert_allclose(
    out["embed_image"], mean / np.linalg.norm(mean, axis=1, keepdims=True), atol=1e-5
  )


@pytest.mark.parametrize("name", ["siglip", "clip", "image"])
def test_sixteen_bits_become_eight_as_siglax_reads_them(elsewhere, name):
  _, folder, out = elsewhere[1][name]
  for picture, x in sixteen_bits().items():
    want = np.broadcast_to(x.reshape(16, 16, -1) // 256, (16, 16, 3))
    np.testing.assert_array_equal(out[picture], want, err_msg=picture)
    np.testing.assert_array_equal(
      images.decode((folder.parent / f"{picture}.png").read_bytes()), want
    )


def test_texts_and_logits_are_those_of_transformers(elsewhere):
  _, folder, out = elsewhere[1]["clip"]
  z = np.load(GOLDEN / "hf_clip" / "io.npz")
  np.testing.assert_allclose(out["embed_text"], z["ztxt"], atol=1e-5)
  config = json.loads((folder / "config.json").read_text())
  np.testing.assert_allclose(
    config["scale"] * z["zimg"] @ out["embed_text"].T + config["bias"], z["logits"], atol=1e-4
  )


@pytest.mark.parametrize("name", ["siglip", "clip"])
def test_the_inputs_of_the_readme_are_those_of_the_tower(elsewhere, name):
  tower, folder, out = elsewhere[1][name]
  picture = images.decode((folder.parent / "picture.png").read_bytes())
  np.testing.assert_array_equal(
    out["picture"], images.resize(picture, 16, tower.config.image.resize, tower.config.image.fit)
  )
  assert ("tokens" in out) == (tower.text is not None) == (folder / "tokenizer.model").is_file()
  if tower.text is not None:
    np.testing.assert_array_equal(out["tokens"], tower.text(TEXTS))


def test_one_function_runs_on_every_platform_and_needs_one_device(elsewhere):
  folder = elsewhere[1]["siglip"][1]
  for name in stablehlo.FUNCTIONS:
    data = (folder / (name + stablehlo.SUFFIX)).read_bytes()
    function = jax_export.deserialize(data)
    assert (
      function.platforms == ("cpu", "cuda", "tpu")
      and function.nr_devices == 1
      and not function.disabled_safety_checks
    )
    # No path of the machine that wrote it
    assert os.path.dirname(siglax.__file__).encode() not in data
    # The parameters are beside, not inside
    assert len(data) < (folder / "image.npz").stat().st_size * 5


def test_one_tower_alone(elsewhere):
  folder = elsewhere[1]["image"][1]
  assert sorted(file.name for file in folder.iterdir()) == [
    "README.md",
    "config.json",
    "embed_image.jax_export",
    "image.npz",
    "image_tokens.jax_export",
  ]
  config = json.loads((folder / "config.json").read_text())
  assert (
    "text" not in config
    and "scale" not in config
    and "embed_text" not in (folder / "README.md").read_text()
  )
  assert sum(x.dtype.itemsize for x in np.load(folder / "image.npz").values()) == 2 * len(
    np.load(folder / "image.npz").files
  )


def test_it_goes_one_way(elsewhere, capsys):
  folder = elsewhere[1]["clip"][1]
  with pytest.raises(
    ValueError, match="clip was written by --format stablehlo, which siglax does not read back"
  ) as e:
    siglax.load(folder)
  assert "\n" not in str(e.value)
  assert (
    cli.main(
      ["export", "--from", str(GOLDEN / "hf_clip"), "--format", "stablehlo", "--out", str(folder)]
    )
    == 1
  )
  assert capsys.readouterr().err.endswith("exists; give a path that does not\n")
