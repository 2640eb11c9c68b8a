"""NaFlex: pictures at their own aspect ratio, and Siglip2Model folders in and out.

The numbers are transformers' own (tests/golden/make.py; those of ../shared: test_parity.py).
"""

import json
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy

import siglax
from siglax import config as config_lib
from siglax import models
from siglax.commands import cli
from siglax.data import images
from siglax.data import native

FOLDER = pathlib.Path(__file__).parent / "golden" / "hf_siglip2"


@pytest.fixture(scope="module")
def tower():
  return siglax.load(FOLDER)


@pytest.fixture(scope="module")
def golden():
  return np.load(FOLDER / "io.npz")


@pytest.fixture(scope="module")
def embed(tower):
  return jax.jit(lambda images: tower.model.embed_image(tower.params, images))


def packed(patches, shapes):
  """transformers' inputs, normalised floats [n, l, 3p²] and rows and columns, as ours."""
  n, most, size = patches.shape
  found = np.zeros((n, most, size + 4), np.float32)
  found[..., :-4] = patches
  for picture, (rows, columns) in zip(found, shapes):
    places = [divmod(k, columns) if k < rows * columns else (65535, 65535) for k in range(most)]
    picture[:, -4:] = [(row % 256, row // 256, c % 256, c // 256) for row, c in places]
  return found


def test_a_tower_gives_what_transformers_gives(tower, golden, embed):
  inputs = packed(golden["patches"], golden["shapes"])
  zimg = np.asarray(embed(inputs))
  np.testing.assert_allclose(zimg, golden["zimg"], atol=1e-5)
  ztxt = np.asarray(jax.jit(tower.model.embed_text)(tower.params, golden["ids"]))
  np.testing.assert_allclose(ztxt, golden["ztxt"], atol=1e-5)
  np.testing.assert_allclose(tower.logits(zimg, ztxt), golden["logits"], atol=1e-5)
  tokens = np.asarray(jax.jit(tower.model.image_tokens)(tower.params, inputs))
  for ours, theirs, (rows, columns) in zip(tokens, golden["tokens"], golden["shapes"]):
    np.testing.assert_allclose(ours[: rows * columns], theirs[: rows * columns], atol=1e-5)


def test_pictures_are_prepared_as_transformers_does(tower, golden):
  """Of whole patches, which need no resampler, to the last bit; the others within a level, since
  torch resamples in other arithmetic than Pillow.
  """
  pictures = [golden[f"picture_{k}"] for k in range(len(golden["shapes"]))]
  for k, picture in enumerate(pictures):
    ours, theirs = tower.pixels(picture), golden["patches"][k]
    rows, columns = golden["shapes"][k]
    count = rows * columns
    assert ours.dtype == np.uint8 and ours.shape == (16, 3 * 64 + 4)
    levels = np.abs(ours[:count, :-4] - (theirs[:count].astype(np.float64) * 0.5 + 0.5) * 255)
    exact = picture.shape[:2] == (rows * 8, columns * 8)
    assert levels.max() < (1e-4 if exact else 1.001), k
    np.testing.assert_array_equal(ours[:, -4:], packed(theirs[None], [(rows, columns)])[0, :, -4:])
  z = tower.embed_images(pictures)
  whole = [k for k, p in enumerate(pictures) if p.shape[0] * p.shape[1] == 16 * 64]
  assert len(whole) >= 3
  np.testing.assert_allclose(z[whole], golden["zimg"][whole], atol=1e-5)


def test_grids_are_those_of_transformers(golden):
  for height, width, patch, most, rows, columns in golden["grids"].tolist():
    assert native.grid(height, width, patch, most) == (rows, columns)


def test_what_fills_a_picture_up_changes_nothing(tower, golden, embed):
  """Neither more of it, nor what it holds."""
  inputs = packed(golden["patches"], golden["shapes"])
  longer = np.concatenate([inputs, np.full_like(inputs[:, :5], 7.0)], axis=1)
  longer[:, 16:, -4:] = 255
  for picture, (rows, columns) in zip(longer, golden["shapes"]):
    picture[rows * columns :, :-4] = 9.0
  np.testing.assert_allclose(embed(longer), embed(inputs), atol=1e-6)


def test_square_pixels_are_cut_into_the_same_patches(golden, embed):
  pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
  patches = np.stack([native.pack(picture, 8, 16) for picture in pixels])
  np.testing.assert_allclose(embed(pixels), embed(patches), atol=1e-6)


def test_a_row_of_more_than_256_patches_keeps_its_places():
  strip = native.pack(np.zeros((2, 2 * 300, 3), np.uint8), 2, 320)
  columns = strip[:, -2].astype(int) + 256 * strip[:, -1].astype(int)
  assert columns[:300].tolist() == list(range(300)) and (columns[300:] == 65535).all()


def test_a_folder_comes_back_bit_for_bit(tower, tmp_path, monkeypatch):
  assert (
    cli.main(["export", "--from", str(FOLDER), "--format", "hf", "--out", str(tmp_path / "hf")])
    == 0
  )
  again = siglax.load(tmp_path / "hf")
  jax.tree.map(np.testing.assert_array_equal, again.params, tower.params)
  assert again.config.image.to_dict() == tower.config.image.to_dict()
  ours = safetensors.numpy.load_file(tmp_path / "hf" / "model.safetensors")
  theirs = safetensors.numpy.load_file(FOLDER / "model.safetensors")
  assert ours.keys() == theirs.keys()
  for name, value in ours.items():
    np.testing.assert_array_equal(value, theirs[name])
  for file in ("config.json", "preprocessor_config.json"):
    given, made = (json.loads((folder / file).read_text()) for folder in (FOLDER, tmp_path / "hf"))
    for section in ("vision_config", "text_config"):
      given |= given.pop(section, {})
      made |= made.pop(section, {})
    same = made.keys() & given.keys() - {"bos_token_id", "eos_token_id", "pad_token_id"}
    assert len(same) > 5 and {k: made[k] for k in same} == {k: given[k] for k in same}


def test_the_image_tower_goes_alone(tower, golden, tmp_path):
  out = tmp_path / "vision"
  assert (
    cli.main(["export", "--from", str(FOLDER), "--format", "hf-vision", "--out", str(out)]) == 0
  )
  alone = siglax.load(out)
  assert alone.model.towers == ("image",)
  picture = [golden["picture_1"]]
  np.testing.assert_array_equal(alone.embed_images(picture), tower.embed_images(picture))


def test_the_text_tower_goes_alone(tower, golden, tmp_path):
  out = tmp_path / "text"
  assert cli.main(["export", "--from", str(FOLDER), "--format", "hf-text", "--out", str(out)]) == 0
  assert json.loads((out / "config.json").read_text())["architectures"] == ["Siglip2TextModel"]
  alone = siglax.load(out)
  jax.tree.map(np.testing.assert_array_equal, alone.params["text"], tower.params["text"])


@pytest.mark.parametrize(
  ("form", "said"),
  [
    ("open_clip", "config.model.image.variant='naflex-S'"),
    ("stablehlo", "config.image.fit='native'; it needs 'squash' or 'crop'"),
    ("onnx", "config.model.image.variant='naflex-S'; it needs 'Ti' or"),
  ],
)
def test_formats_of_squares_refuse_it(form, said, tmp_path, capsys):
  assert cli.main(["export", "--from", str(FOLDER), "--format", form, "--out", str(tmp_path / "x")])
  assert said in capsys.readouterr().err
  assert not (tmp_path / "x").exists()


def copied(tmp_path, file, **changes):
  folder = tmp_path / "copy"
  folder.mkdir()
  for one in FOLDER.iterdir():
    (folder / one.name).write_bytes(one.read_bytes())
  content = json.loads((folder / file).read_text())
  at = content.get("vision_config", content)
  at |= changes
  (folder / file).write_text(json.dumps(content))
  return folder


@pytest.mark.parametrize(
  ("file", "changes", "said"),
  [
    ("config.json", {"num_patches": 10}, "num_patches=10 is none that siglax has"),
    ("config.json", {"num_patches": 2**62}, "claims config.model.image.grid"),
    ("config.json", {"vision_use_head": False}, "vision_use_head=False"),
    ("preprocessor_config.json", {"max_num_patches": 15}, "max_num_patches=15 is none"),
    (
      "preprocessor_config.json",
      {"patch_size": 16},
      "patch_size=16, and the tower has patches of 8",
    ),
  ],
)
def test_what_does_not_fit_is_one_line(file, changes, said, tmp_path):
  with pytest.raises(ValueError, match=said) as e:
    siglax.load(copied(tmp_path, file, **changes))
  assert "\n" not in str(e.value) and file in str(e.value) or "claims" in said


def test_other_towers_refuse_pictures_at_their_own_ratio():
  c = config_lib.default()
  c.image.fit = "native"
  with pytest.raises(ValueError, match="config.image.fit=\"native\" has no place in .*'S'.*squash"):
    models.check_fit(c)
  c.model.image.variant = "naflex-S"
  models.check_fit(c)
  prepared = images.prepare(np.zeros((20, 90, 3), np.uint8), c.image)
  assert prepared.shape == (16, 3 * 16**2 + 4)
