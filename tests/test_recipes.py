"""Every config in configs/ is valid on its devices and as large as published; its smoke=True
trains.
"""

import json
import pathlib

import jax
import numpy as np
import pytest

import siglax
from siglax import config as config_lib
from siglax import models
from siglax.commands import cli
from siglax.devices import paths
from siglax.interop import fields
from siglax.interop import positions
from siglax.models import trainable as trainable_lib
from siglax.tower import export
from siglax.training import checks
from siglax.training import run as run_lib

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"


def block(width, mlp_dim):
  """Parameters of one transformer block: four projections, two layers of the MLP, two norms."""
  return 4 * (width * width + width) + 2 * width * mlp_dim + mlp_dim + width + 4 * width


def siglip_image(width, depth, mlp_dim, patch, patches):
  """big_vision's ViT with a MAP head: patch embedding, positions, blocks, norm; probe, attention,
  norm, MLP.
  """
  pooling = width + block(width, mlp_dim) - 2 * width
  return (
    3 * patch**2 * width
    + width
    + patches * width
    + depth * block(width, mlp_dim)
    + 2 * width
    + pooling
  )


def siglip_text(width, depth, mlp_dim, vocab, length, embed_dim):
  """big_vision's text tower: embedding, positions, blocks, norm, projection with a bias."""
  return (
    vocab * width
    + length * width
    + depth * block(width, mlp_dim)
    + 2 * width
    + width * embed_dim
    + embed_dim
  )


def openai_clip(patch, patches):
  """OpenAI's published ViT-B CLIP: 151,277,313 (B/32), 149,620,737 (B/16)."""
  image = (
    3 * patch**2 * 768
    + 768
    + (patches + 1) * 768
    + 2 * 768
    + 12 * block(768, 3072)
    + 2 * 768
    + 768 * 512
  )
  text = 49_408 * 512 + 77 * 512 + 12 * block(512, 2048) + 2 * 512 + 512 * 512
  return image + text + 1


def openai_resnet_clip(layers=(3, 4, 6, 3), width=64, embed_dim=1024, patches=49):
  """OpenAI's published RN50 CLIP, 102,007,137: convolutions with two numbers a feature for the
  norm, attention pool, text.
  """
  conv = lambda a, b, size: a * b * size**2 + 2 * b
  image = conv(3, width // 2, 3) + conv(width // 2, width // 2, 3) + conv(width // 2, width, 3)
  features = width
  for stage, count in enumerate(layers):
    w = width * 2**stage
    image += conv(features, 4 * w, 1)
    for _ in range(count):
      image += conv(features, w, 1) + conv(w, w, 3) + conv(w, 4 * w, 1)
      features = 4 * w
  image += (patches + 1) * features + 3 * (features**2 + features) + (features + 1) * embed_dim
  return image + 49_408 * 512 + 77 * 512 + 12 * block(512, 2048) + 2 * 512 + 512 * embed_dim + 1


SIGLIP_B = siglip_image(768, 12, 3072, 16, 256) + siglip_text(768, 12, 3072, 32_000, 64, 768) + 2
# Devices to validate on, and parameters by the published layouts with scale and bias; None where
# nothing is published.
RECIPES = {
  "quickstart": (1, None),
  "cifar10_captions": (1, None),
  "siglip_b16": (32, SIGLIP_B),
  "siglip_b16_one_gpu": (1, SIGLIP_B),
  "finetune": (1, None),
  "siglip_b16_384": (64, SIGLIP_B + (576 - 256) * 768),
  "lit_b16": (32, SIGLIP_B),
  "siglip_l16": (
    64,
    siglip_image(1024, 24, 4096, 16, 256) + siglip_text(1024, 24, 4096, 32_000, 64, 1024) + 2,
  ),
  "siglip_so400m": (
    128,
    siglip_image(1152, 27, 4304, 14, 256) + siglip_text(1152, 27, 4304, 32_000, 16, 1152) + 2,
  ),
  "siglip_g_opt": (
    256,
    siglip_image(1536, 40, 6144, 16, 256) + siglip_text(1152, 27, 4304, 256_000, 64, 1536) + 2,
  ),
  "clip_b32": (32, openai_clip(32, 49)),
  "clip_b16": (32, openai_clip(16, 196)),
  "clip_rn50": (32, openai_resnet_clip()),
}
PUBLISHED = [name for name, (_, count) in RECIPES.items() if count]


def load(name, arguments=""):
  return config_lib.load(f"{CONFIGS / name}.py{arguments}")


def trained(name, arguments, workdir) -> list[dict]:
  """Trains a smoke run by the command line; its log lines."""
  command = ["train", "--config", f"{CONFIGS / name}.py:smoke=True{arguments}"]
  assert cli.main([*command, "--workdir", str(workdir)]) == 0
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  lines = [line for line in lines if "loss" in line]
  assert [line["step"] for line in lines] == [1, 2, 3, 4]
  assert np.isfinite([line["loss"] for line in lines]).all()
  return lines


@pytest.fixture(scope="module")
def first(tmp_path_factory):
  """A smoke run of the first stage, from which others start."""
  workdir = tmp_path_factory.mktemp("first")
  trained("siglip_b16", "", workdir)
  return workdir


def test_the_formulas_give_the_published_counts():
  assert openai_clip(32, 49) == 151_277_313 and openai_clip(16, 196) == 149_620_737
  assert openai_resnet_clip() == 102_007_137
  assert round(SIGLIP_B / 1e6, 1) == 203.2
  assert [round(RECIPES[f"siglip_{name}"][1] / 1e6) for name in ("l16", "so400m", "g_opt")] == [
    652,
    877,
    1871,
  ]


def test_every_config_file_is_tested():
  assert sorted(RECIPES) == sorted(path.stem for path in CONFIGS.glob("*.py"))


@pytest.mark.parametrize("name", RECIPES)
def test_a_config_is_valid_on_its_devices(name, first):
  config = load(name, f":init={first}" if name == "finetune" else "")
  checks.validate(config, RECIPES[name][0])
  warmup, total = (
    config_lib.duration_steps(config, k, epoch_examples=400_000_000)
    for k in ("optim.warmup", "total")
  )
  assert warmup <= total / 10


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published(name):
  config = load(name)
  config.model.text.eos_id = 1
  params = models.build(config.model).shapes
  assert trainable_lib.count(params) == RECIPES[name][1]


@pytest.mark.parametrize("name", PUBLISHED)
def test_smoke_makes_a_run(name, first, tmp_path):
  """Everything but compilation: data, tokenizer, towers, and an optimizer whose patterns match
  these parameters.
  """
  start = {"lit_b16": f",init={first}:img", "siglip_b16_384": f",init={first}"}.get(name, "")
  run = run_lib.Run(load(name, f":smoke=True{start}"), tmp_path)
  # Running statistics
  assert run.total_steps == 4 and any(jax.tree.leaves(run.frozen)) == (
    name in ("lit_b16", "clip_rn50")
  )


def test_arguments_reach_the_config():
  c = load(
    "siglip_b16", ":train=a-*.parquet,tokenizer=b.model,zero_shot=c.parquet,examples=9_000_000_000"
  )
  assert c.data[0]["path"] == "a-*.parquet" and c.text.tokenizer == "b.model"
  assert c.eval.tasks[0]["data"]["path"] == "c.parquet" and c.total_examples == 9_000_000_000
  assert load("siglip_b16", ":examples=327_680_000").optim.warmup_steps == 1000
  c = load("lit_b16", ":init=runs/x,embedded=e.parquet")
  assert c.model.init_from == "runs/x" and c.data == (
    {"source": "embeddings", "path": "e.parquet"},
  )
  # A smoke run needs no file
  assert load("lit_b16", ":smoke=True,embedded=e.parquet").data[0]["source"] == "shapes"


def test_the_second_stage_starts_from_the_first(first, tmp_path):
  run = run_lib.Run(load("siglip_b16_384", f":smoke=True,init={first}"), tmp_path / "a")
  params, old = run.initial_state().params, siglax.load(first).params
  assert old["image"]["pos_embedding"].shape == (4, 16)  # 32 pixels, and then 48
  want = positions.resize(np.asarray(old["image"]["pos_embedding"]), 9)
  np.testing.assert_array_equal(params["image"]["pos_embedding"], want)
  same = lambda params: {
    name: x for name, x in paths.flatten(params).items() if name != "image/pos_embedding"
  }
  jax.tree.map(np.testing.assert_array_equal, same(params), same(old))


@pytest.mark.slow
@pytest.mark.parametrize(
  "name, tower", [("siglip_b16_384", ""), ("lit_b16", ":img"), ("finetune", "")]
)
def test_what_starts_from_the_first_stage_trains(name, tower, first, tmp_path):
  lines = trained(name, f",init={first}{tower}", tmp_path)
  if name == "finetune":  # a step of hold, and the first of the warmup
    assert [line["lr"] for line in lines[:3]] == [0, 0, pytest.approx(1e-5)]


def test_the_second_stage_needs_the_first(tmp_path, capsys):
  command = f"{CONFIGS / 'siglip_b16_384'}.py:smoke=True,init={tmp_path}/x"
  assert cli.main(["train", "--config", command, "--workdir", str(tmp_path / "run")]) == 1
  assert f"{tmp_path}/x: no such file or folder" in capsys.readouterr().err


def test_fine_tuning_takes_all_from_the_checkpoint(first, tmp_path):
  there = siglax.load(first)
  tuned = run_lib.Run(load("finetune", f":smoke=True,init={first}"), tmp_path)
  assert tuned.text.files == there.text.files and tuned.hold_steps == 1
  params = tuned.initial_state().params
  jax.tree.map(np.testing.assert_array_equal, params, there.params)
  assert fields.describing(tuned.config, models.TOWERS) == {
    **fields.describing(there.config, models.TOWERS),
    "text.tokenizer": str(first / "tokenizer.model"),
  }
  # From a file without a tokenizer
  export.export(first, "big_vision", tmp_path / "x.npz")
  with pytest.raises(ValueError, match="x.npz has no tokenizer; give .* tokenizer=…"):
    load("finetune", f":init={tmp_path / 'x.npz'}")
  config = load("finetune", f":init={tmp_path / 'x.npz'}:img,tokenizer=shapes,train=a,test=b.csv")
  assert config.text.tokenizer == "shapes" and config.model.text.width is None
  assert config.eval.tasks[0]["data"] == {"source": "csv", "path": "b.csv"}
