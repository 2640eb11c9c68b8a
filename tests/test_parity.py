"""Each folder of ../shared/parity: the numbers of the library that made it, from its inputs."""

import pathlib

import jax
import numpy as np
import pytest
from test_naflex import packed

import siglax
from siglax import losses

PARITY = pathlib.Path(__file__).resolve().parents[2] / "shared" / "parity"
NAMES = (
  *("hf_siglip", "hf_clip", "hf_clip_bpe", "siglip2_fixed", "siglip2_naflex", "open_clip_vit"),
  *("big_vision_siglip", "big_vision_siglip_scan"),
)
pytestmark = pytest.mark.skipif(not PARITY.is_dir(), reason="needs ../shared/parity")


def inputs(z):
  """(pixels, tokens) of an io.npz, as siglax's towers take them."""
  tokens = z["labels" if "labels" in z else "input_ids"].astype(np.int32)
  if "spatial_shapes" in z:
    return packed(z["pixel_values"], z["spatial_shapes"]), tokens
  return z["image"] if "image" in z else z["pixel_values"].transpose(0, 2, 3, 1), tokens


def unit(x):
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_every_folder_is_here():
  assert {folder.name for folder in PARITY.iterdir()} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_numbers_of_the_library(name):
  z = dict(np.load(PARITY / name / "io.npz"))
  file = PARITY / name / "checkpoint.npz"
  tower = siglax.load(file if file.is_file() else PARITY / name)
  pixels, tokens = inputs(z)

  @jax.jit
  def outputs(params):
    m = tower.model
    return (
      m.embed_image(params, pixels),
      m.embed_text(params, tokens),
      m.image_tokens(params, pixels),
    )

  zimg, ztxt, patches = map(np.asarray, outputs(tower.params))
  close = lambda found, want, atol=1e-5: np.testing.assert_allclose(found, want, rtol=0, atol=atol)
  close(zimg, unit(z["zimg" if "zimg" in z else "image_embeds"]))
  close(ztxt, unit(z["ztxt" if "ztxt" in z else "text_embeds"]))
  if "logits_per_image" in z:
    close(tower.logits(zimg, ztxt), z["logits_per_image"], atol=1e-4)
  if "t" in z:
    close([tower.scale, tower.bias], [z["t"][0], z["b"][0]])
  if "logit_scale" in z:
    np.testing.assert_allclose(tower.scale, z["logit_scale"], rtol=1e-6)
  if "loss" in z:
    loss = {
      "sigmoid": lambda: losses.sigmoid_loss(zimg, ztxt, tower.scale, tower.bias),
      "softmax": lambda: losses.softmax_loss(zimg, ztxt, tower.scale),
    }
    np.testing.assert_allclose(loss[tower.config.loss.name](), z["loss"], rtol=1e-5)
  if "img_encoded" in z:
    close(patches, z["img_encoded"])
  if "vision_last_hidden_state" in z and tower.config.model.image.pool == "map":
    close(patches, z["vision_last_hidden_state"])
  if tower.text is not None:
    np.testing.assert_array_equal(tower.text(z["texts"].tolist()), tokens)
