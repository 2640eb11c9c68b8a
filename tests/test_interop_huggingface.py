"""Hugging Face folders in: transformers' own outputs (tests/golden/make.py), other sizes, and files
that are wrong.
"""

import json
import pathlib
import pickle
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

import siglax
from siglax import config as config_lib
from siglax import losses
from siglax import models
from siglax.data import images as images_lib
from siglax.data.text import TextProcessor
from siglax.devices import mesh
from siglax.interop import huggingface
from siglax.interop import positions
from siglax.training import initial
from siglax.training import run as run_lib

GOLDEN = pathlib.Path(__file__).parent / "golden"
TINY = pathlib.Path(__file__).parent / "tiny.py"
SHAPES = pathlib.Path(siglax.__file__).parent / "data" / "shapes.model"


@pytest.fixture
def folder(tmp_path):
  """A copy of the SigLIP folder, to damage; `edit` changes its tensors, `configure` its
  config.json.
  """
  shutil.copytree(GOLDEN / "hf_siglip", tmp_path / "hf")
  return tmp_path / "hf"


def image(t, pixels):
  return np.asarray(jax.jit(t.model.embed_image)(t.params, pixels))


def edit(folder, change):
  file = folder / "model.safetensors"
  tensors = safetensors.numpy.load_file(file)
  change(tensors)
  safetensors.numpy.save_file(tensors, file, {"format": "pt"})
  return tensors


def configure(folder, change):
  file = folder / "config.json"
  value = json.loads(file.read_text())
  change(value)
  file.write_text(json.dumps(value))


def agree(path, ids, pixels, want):
  t = siglax.load(path)
  zimg, ztxt = image(t, pixels), np.asarray(jax.jit(t.model.embed_text)(t.params, ids))
  np.testing.assert_allclose(zimg, want["zimg"], atol=1e-5)
  np.testing.assert_allclose(ztxt, want["ztxt"], atol=1e-5)
  np.testing.assert_allclose(t.logits(zimg, ztxt), want["logits"], atol=1e-5)
  loss = getattr(losses, f"{t.config.loss.name}_loss")
  parameters = models.scale_and_bias(t.params)[: 2 if t.config.loss.name == "sigmoid" else 1]
  np.testing.assert_allclose(loss(zimg, ztxt, *parameters, impl="dense"), want["loss"], atol=1e-5)
  return t


@pytest.mark.parametrize("name", ["hf_siglip", "hf_clip", "hf_siglip_minimal", "hf_siglip_odd"])
def test_towers_give_what_transformers_gives(name):
  """Pixels, texts and pictures: of SigLIP, of CLIP, with a config.json that leaves out all it may,
  and with exact GELU.
  """
  z = np.load(GOLDEN / name / "io.npz")
  t = agree(GOLDEN / name, z["ids"], z["pixels"], z)
  np.testing.assert_allclose(image(t, z["pictures"]), z["zpictures"], atol=1e-5)
  np.testing.assert_allclose(
    jax.jit(t.model.image_tokens)(t.params, z["pictures"]), z["tokens"], rtol=1e-5, atol=1e-5
  )


def test_defaults_of_a_config_are_those_of_transformers():
  want = json.loads((GOLDEN / "hf_defaults.json").read_text())
  for family, sections in huggingface.DEFAULTS.items():
    for section, fields in sections.items():
      theirs = want[family][section]
      # transformers fills projection_size with hidden_size; its model without this field has the
      # attention head.
      ours = {
        k: v if k != "projection_size" else fields["hidden_size"]
        for k, v in fields.items()
        if k != "vision_use_head"
      }
      assert ours == {k: theirs[k] for k in ours}
  assert (
    want["clip"]["projection_dim"] == 512
    and huggingface.DEFAULTS["siglip"]["vision"]["vision_use_head"] is True
  )


def test_shards_are_read_like_one_file(folder):
  tensors = sorted(safetensors.numpy.load_file(folder / "model.safetensors").items())
  (folder / "model.safetensors").unlink()
  index = {}
  for part, shard in (("a.safetensors", tensors[::2]), ("b.safetensors", tensors[1::2])):
    safetensors.numpy.save_file(dict(shard), folder / part)
    index |= dict.fromkeys(dict(shard), part)
  (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
  jax.tree.map(
    np.testing.assert_array_equal,
    siglax.load(folder).params,
    siglax.load(GOLDEN / "hf_siglip").params,
  )
  (folder / "b.safetensors").unlink()
  with pytest.raises(ValueError, match="b.safetensors is missing; .* holds 44 tensors"):
    siglax.load(folder)


def test_half_precision_files_load_as_float32(folder):
  edit(folder, lambda t: t.update({k: v.astype(jax.numpy.bfloat16) for k, v in t.items()}))
  z = np.load(GOLDEN / "hf_siglip" / "io.npz")
  t = siglax.load(folder)
  assert {x.dtype.name for x in jax.tree.leaves(t.params)} == {"float32"}
  assert 0 < np.abs(image(t, z["pixels"]) - z["zimg"]).max() < 0.03


def test_vision_model_alone_and_one_tower_of_both(folder):
  z = np.load(GOLDEN / "hf_siglip" / "io.npz")
  half = siglax.load(f"{folder}:img")
  edit(folder, lambda t: [t.pop(k) for k in list(t) if not k.startswith("vision_model.")])
  configure(folder, lambda c: (vision := c["vision_config"], c.clear(), c.update(vision)))
  vision = siglax.load(folder)
  for t in (half, vision):
    assert set(t.params) == {"image"}
    np.testing.assert_allclose(image(t, z["pixels"]), z["zimg"], atol=1e-5)
  with pytest.raises(ValueError, match="no text tower"):
    vision.model.embed_text(vision.params, z["ids"])
  with pytest.raises(ValueError, match="neither a scale nor a bias"):
    vision.scale
  with pytest.raises(ValueError, match="has no text tower"):
    siglax.load(f"{folder}:txt")


def test_positions_of_no_square_grid_are_not_resized(folder):
  edit(
    folder,
    lambda t: t.update(
      {"vision_model.embeddings.position_embedding.weight": np.zeros((5, 16), np.float32)}
    ),
  )
  with pytest.raises(
    ValueError,
    match="position_embedding.weight has 5 positions and 9 are needed; only square grids",
  ):
    started(target(**{"image.size": 24}), folder)


def target(**fields):
  """A config that fits hf_siglip, for another image size."""
  c = config_lib.load(f"{TINY}:steps=2")
  for name, width in (("image", 16), ("text", 12)):
    t = c.model[name]
    t.width, t.depth, t.heads, t.mlp_dim = width, 2, 2, 24
  c.text.length, c.model.embed_dim, c.model.text.vocab_size, c.model.text.eos_id = 6, 16, 40, 1
  c.loss.bias_init = -3.0
  for field, value in fields.items():
    config_lib.override(c, field, str(value))
  return c


def started(config, path):
  model = models.build(config.model)
  return model, initial.initial_params(path, model, mesh.make())


@pytest.mark.parametrize("scan", [True, False])
def test_init_from_at_another_resolution_is_interpolate_pos_encoding(scan):
  z = np.load(GOLDEN / "hf_siglip" / "io.npz")
  fields = {"image.size": 24, "model.image.scan": scan}
  model, params = started(target(**fields), GOLDEN / "hf_siglip")
  assert params["image"]["pos_embedding"].shape == (9, 16)
  np.testing.assert_allclose(jax.jit(model.embed_image)(params, z["large"]), z["zlarge"], atol=1e-5)
  model, params = started(
    config_lib.from_json(config_lib.to_json(clip := clip_target(24))), GOLDEN / "hf_clip"
  )
  assert clip.model.image.pool == "cls" and params["image"]["pos_embedding"].shape == (10, 16)
  z = np.load(GOLDEN / "hf_clip" / "io.npz")
  np.testing.assert_allclose(jax.jit(model.embed_image)(params, z["large"]), z["zlarge"], atol=1e-5)


def clip_target(size):
  c = siglax.load(GOLDEN / "hf_clip").config
  c.image.size = size
  return c


def test_positions_equal_torch():
  z = np.load(GOLDEN / "positions.npz")
  x = z["x"].reshape(256, 3)
  for name in ("square", "odd"):
    rows, columns, _ = z[name].shape
    np.testing.assert_allclose(
      positions.resize_grid(x, (16, 16), (rows, columns)).reshape(rows, columns, 3),
      z[name],
      atol=1e-5,
    )
  smooth = np.linspace(0, 1, 24)[:, None, None] + np.zeros((24, 24, 1))
  small = positions.resize_grid(smooth.reshape(-1, 1), (24, 24), (8, 8)).reshape(8, 8)
  # Antialiased
  np.testing.assert_allclose(small[2:-2], smooth.reshape(8, 3, 8, 3).mean((1, 3))[2:-2], atol=1e-6)
  np.testing.assert_allclose(positions.weights(24, 8).sum(1), 1)


def test_parameters_land_in_the_shards_of_the_mesh(monkeypatch):
  monkeypatch.setattr(mesh, "FSDP_MIN_ELEMENTS", 100)
  grid = mesh.make(data=2, fsdp=4)
  model = models.build(target().model)
  params = initial.initial_params(GOLDEN / "hf_siglip", model, grid)
  want = mesh.state_shardings(grid, params)
  jax.tree.map(
    lambda x, s: x.sharding.is_equivalent_to(s, x.ndim) or pytest.fail(str(x.sharding)),
    params,
    want,
  )
  assert params["image"]["encoder"]["blocks"]["mlp"]["fc1"]["kernel"].addressable_shards[
    0
  ].data.shape == (2, 16, 6)


def test_a_run_starts_from_one_tower_of_a_folder(tmp_path, monkeypatch):
  c = target()
  c.model.text.vocab_size = None
  c.model.init_from = f"{GOLDEN / 'hf_siglip'}:img"
  run = run_lib.Run(c, tmp_path)
  shapes = run.abstract_state.params  # an init that compiles fast
  monkeypatch.setattr(
    run.model,
    "init",
    lambda key: jax.tree.map(lambda x: jax.numpy.full(x.shape, 7.0, x.dtype), shapes),
  )
  params = run.initial_state().params
  jax.tree.map(
    np.testing.assert_array_equal,
    params["image"]["norm"],
    siglax.load(c.model.init_from).params["image"]["norm"],
  )
  assert params["text"]["embedding"].shape == (run.text.vocab_size, 12)
  assert all(
    (np.asarray(x) == 7).all()
    for x in jax.tree.leaves({k: v for k, v in params.items() if k != "image"})
  )


def test_a_scale_or_bias_that_one_side_lacks_is_said_and_left_out(caplog):
  c = target()
  c.loss.bias_init = None
  _, params = started(c, GOLDEN / "hf_siglip")
  assert "logit_bias is left out" in caplog.text and "bias" not in params
  c = siglax.load(GOLDEN / "hf_clip").config
  c.model.bias_init = -2.0
  _, params = started(c, GOLDEN / "hf_clip")
  assert (
    "bias" not in params
    and "log_scale" in params
    and "has no bias, which starts afresh" in caplog.text
  )


@pytest.mark.parametrize(
  "fields, match",
  [
    ({"model.image.width": 32, "model.embed_dim": 16}, "image.width is 16 there and 32 here"),
    ({"model.text.depth": 3}, "text.depth is 2 there and 3 here"),
    ({"model.text.vocab_size": 41}, "text.vocab_size is 40 there and 41 here"),
    (
      {"model.image.patch": 4, "model.image.heads": 4},
      "image.heads is 2 there and 4 here; .*image.patch is 8 there and 4",
    ),
    ({"model.image.pool": "mean"}, "image.pool is 'map' there and 'mean' here"),
    ({"model.text.norm_eps": 1e-5}, "text.norm_eps is 1e-06 there and 1e-05 here"),
  ],
)
def test_other_towers_are_refused_with_both_sides(fields, match):
  with pytest.raises(ValueError, match=match):
    started(target(**fields), GOLDEN / "hf_siglip")


def nan(tensors):
  tensors["vision_model.encoder.layers.1.mlp.fc2.weight"][3, 2] = np.nan


@pytest.mark.parametrize(
  "change, match",
  [
    (nan, "vision_model.encoder.layers.1.mlp.fc2.weight holds values that are not finite"),
    (lambda t: t.pop("text_model.head.bias"), "lacks text_model.head.bias$"),
    (lambda t: t.pop("logit_bias"), "lacks logit_bias$"),
    (lambda t: t.update(extra=np.zeros(2, np.float32)), "unused are extra$"),
    (
      lambda t: t.update({"logit_scale": np.zeros(2, np.float32)}),
      r"logit_scale has the shape \[2\]; .* need \[1\]",
    ),
    (
      lambda t: t.update({"text_model.head.weight": np.zeros((16, 13), np.float32)}),
      r"text_model.head.weight has the shape \[16, 13\]; these towers need \[16, 12\]",
    ),
    (
      lambda t: t.update(
        {"vision_model.embeddings.position_embedding.weight": np.zeros((5, 16), np.float32)}
      ),
      r"position_embedding.weight has the shape \[5, 16\]; these towers need \[4, 16\]",
    ),
    (
      lambda t: t.update({"text_model.head.bias": np.zeros(16, np.int32)}),
      "text_model.head.bias is of type I32",
    ),
  ],
)
def test_wrong_tensors_are_named(folder, change, match):
  edit(folder, change)
  with pytest.raises(ValueError, match=match) as e:
    siglax.load(folder)
  assert "\n" not in str(e.value)


@pytest.mark.parametrize(
  "change, match",
  [
    (
      lambda c: c.update(model_type="bert"),
      "model_type='bert' is none that siglax reads; it reads siglip",
    ),
    (lambda c: c.update(model_type="blip"), "model_type='blip'"),
    (lambda c: c["vision_config"].update(hidden_act="relu"), "hidden_act='relu' is unknown"),
    (lambda c: c["vision_config"].update(num_channels=1), "num_channels=1"),
    (
      lambda c: c["text_config"].update(vocab_size="many"),
      "text_config.vocab_size='many' is not a positive int",
    ),
    (
      lambda c: c["vision_config"].update(patch_size=0),
      "vision_config.patch_size=0 is not a positive int",
    ),
    (
      lambda c: c["text_config"].update(num_hidden_layers=3),
      "it lacks text_model.encoder.layers.2.layer_norm1.bias",
    ),
    (
      lambda c: c["text_config"].update(num_attention_heads=5),
      "width=12 is not divisible by heads=5",
    ),
    (
      lambda c: c["vision_config"].update(patch_size=7),
      r"has the shape \[16, 3, 8, 8\]; these towers need \[16, 3, 7, 7\]",
    ),
    (
      lambda c: c["text_config"].update(num_hidden_layers=10**9),
      "claims config.model.text.depth=1000000000, and its file has 12402",
    ),
    (
      lambda c: c["vision_config"].update(hidden_size=10**12),
      "claims config.model.image.width=1000000000000, and its file",
    ),
    (
      lambda c: c["vision_config"].update(image_size=8 * 10**6),
      r"claims config.\(image.size/model.image.patch\)²=1000000000000, and its file",
    ),
    (
      lambda c: c["vision_config"].update(image_size=24),
      r"has the shape \[4, 16\]; these towers need \[9, 16\]",
    ),
    (
      lambda c: c["vision_config"].update(image_size=7),
      "claims config.image.size=7, less than config.model.image.patch=8",
    ),
    (
      lambda c: c["text_config"].update(layer_norm_eps=float("nan")),
      "text_config.layer_norm_eps=nan is not a positive number",
    ),
    (
      lambda c: c["text_config"].update(hidden_size=True),
      "text_config.hidden_size=True is not a positive int",
    ),
    (
      lambda c: c["vision_config"].update(vision_use_head=1),
      "vision_config.vision_use_head=1 is not a bool",
    ),
    (lambda c: c.update(vision_config=[]), "vision_config is no JSON object"),
    (
      lambda c: c.update(model_type=["siglip"]),
      r"model_type=\['siglip'\] is none that siglax reads",
    ),
  ],
)
def test_wrong_configs_are_named(folder, change, match):
  configure(folder, change)
  with pytest.raises(ValueError, match=match) as e:
    siglax.load(folder)
  assert str(folder) in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
  "file, text, match",
  [
    ("config.json", "[]", "holds no JSON object"),
    ("config.json", '{"model_type": "siglip", "text_config"', "cannot be read as JSON"),
    ("config.json", "[" * 10**5, "cannot be read as JSON: maximum recursion depth"),
    ("preprocessor_config.json", "[1]", "holds no JSON object"),
    (
      "preprocessor_config.json",
      '{"image_mean": [0.5, 0.5]}',
      r"image_mean=\[0.5, 0.5\] is no list of three numbers",
    ),
    (
      "preprocessor_config.json",
      '{"image_mean": [0.5, 0.5, NaN]}',
      r"image_mean=.* is no list of three numbers",
    ),
    (
      "preprocessor_config.json",
      '{"image_std": [0.5, 0.5, 0]}',
      r"image_std=.* is no list of three positive numbers",
    ),
    ("preprocessor_config.json", '{"resample": true}', "resample=True is none that siglax has"),
    (
      "preprocessor_config.json",
      '{"do_normalize": false}',
      "do_normalize=False is none that siglax has; it has true",
    ),
    (
      "preprocessor_config.json",
      '{"rescale_factor": 1}',
      "rescale_factor=1 is none that siglax has; it has 1/255",
    ),
    ("tokenizer_config.json", "nothing", "cannot be read as JSON"),
    ("tokenizer_config.json", '{"do_lower_case": "yes"}', "do_lower_case='yes' is not a bool"),
    ("spiece.model", "nothing", "is not a sentencepiece model, or is damaged"),
    (
      "model.safetensors.index.json",
      '{"weight_map": {"a": 1}}',
      "1 is no file name in this folder",
    ),
    ("model.safetensors.index.json", "{", "cannot be read as JSON"),
  ],
)
def test_broken_files_of_a_folder_are_named(folder, file, text, match):
  shutil.copy(SHAPES, folder / "spiece.model")
  if "index" in file:
    (folder / "model.safetensors").unlink()
  (folder / file).write_text(text)
  with pytest.raises(ValueError, match=match) as e:
    siglax.load(folder)
  assert str(folder / file) in str(e.value) and "\n" not in str(e.value)


def test_a_json_file_of_gigabytes_is_not_read(folder):
  with (folder / "preprocessor_config.json").open("wb") as f:
    f.truncate(3 * 2**30)  # sparse: it takes no disk
  with pytest.raises(
    ValueError,
    match="preprocessor_config.json cannot be read as JSON: it has 3221225472 bytes, and at most "
    "67108864",
  ):
    siglax.load(folder)


def test_cut_short_pickled_and_missing_files(folder, tmp_path):
  file = folder / "model.safetensors"
  whole = file.read_bytes()
  for length in (0, 5, 300, len(whole) - 10):
    file.write_bytes(whole[:length])
    with pytest.raises(ValueError, match="model.safetensors is no safetensors file, or is damaged"):
      siglax.load(folder)
  file.unlink()
  (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))
  with pytest.raises(ValueError, match="pytorch_model.bin is a pickle, which is never read"):
    siglax.load(folder)
  (folder / "config.json").write_text("{")
  with pytest.raises(ValueError, match="config.json cannot be read as JSON"):
    siglax.load(folder)
  with pytest.raises(ValueError, match="no such file or folder"):
    siglax.load(tmp_path / "none")


def test_preprocessing_and_tokenizer_come_with_the_folder(folder):
  t = siglax.load(folder)
  assert (t.config.image.size, t.config.image.resize, t.config.text.length) == (16, "bicubic", 6)
  picture = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
  z = t.embed_images([picture])
  np.testing.assert_allclose(
    z, image(t, images_lib.resize(picture, 16, "bicubic")[None]), atol=1e-6
  )
  with pytest.raises(ValueError, match="has no tokenizer .*embed_text"):
    t.embed_texts(["a"])
  shutil.copy(SHAPES, folder / "spiece.model")
  with pytest.raises(ValueError, match="vocab_size=40 is below the"):
    siglax.load(folder)
  pieces = TextProcessor(length=6).vocab_size
  edit(
    folder,
    lambda x: x.update(
      {"text_model.embeddings.token_embedding.weight": np.ones((pieces, 12), np.float32)}
    ),
  )
  configure(folder, lambda c: c["text_config"].update(vocab_size=pieces))
  preprocessor = folder / "preprocessor_config.json"
  images = {"resample": 2, "image_std": [0.4, 0.5, 0.6], "size": {"shortest_edge": 16}}
  preprocessor.write_text(json.dumps({**images, "image_mean": "grey"}))
  (folder / "tokenizer_config.json").write_text(
    json.dumps(
      {"tokenizer_class": "GemmaTokenizer", "pad_token": "<pad>", "eos_token": {"content": "<eos>"}}
    )
  )
  with pytest.raises(
    ValueError, match="preprocessor_config.json: image_mean='grey' is no list of three numbers"
  ):
    siglax.load(folder)
  preprocessor.write_text(json.dumps({**images, "image_mean": [0.1, 0.2, 0.3]}))
  t = siglax.load(folder)
  c, text = t.config.image, t.config.text
  assert (c.resize, c.fit, c.mean, c.std) == ("bilinear", "crop", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
  assert (text.pad, text.lowercase, text.strip_punctuation) == ("pad", True, False)
  assert t.text("red")[0, -1] == 0 and t.embed_texts(["a red disc"]).shape == (1, 16)


def test_crop_keeps_the_middle_of_the_longer_side():
  picture = np.zeros((20, 60, 3), np.uint8)
  picture[:, 20:40] = 200
  np.testing.assert_array_equal(
    images_lib.resize(picture, 20, "bicubic", "crop"), picture[:, 20:40]
  )
  assert images_lib.resize(picture[:, :33], 7, "bilinear", "crop").shape == (7, 7, 3)
