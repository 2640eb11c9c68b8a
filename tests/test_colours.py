"""siglax.data.colours: SimCLR's colour jitter and grey, against their formulas in float64."""

import colorsys
import itertools
import types

import cv2
import numpy as np
import pytest

from siglax.data import colours
from siglax.data import images

GREY = np.array([0.299, 0.587, 0.114])


def config(**fields):
  off = dict(size=24, crop_min_area=0.5, crop_max_aspect=4 / 3, pad=1, flip=True)
  limits = dict(max_bytes=2**24, max_pixels=2**26)
  of_colours = dict(jitter=0.0, jitter_probability=0.8, grey_probability=0.0)
  return types.SimpleNamespace(**off | limits | of_colours | fields)


def picture(seed=0, size=24):
  """Every kind of colour: smooth, noise, greys, black, white, pure ones."""
  rng = np.random.default_rng(seed)
  found = cv2.GaussianBlur(rng.integers(0, 256, (size, size, 3), np.uint8), (5, 5), 0)
  found[::3] = rng.integers(0, 256, found[::3].shape)
  found[0] = np.linspace(0, 255, size).astype(np.uint8)[:, None]
  found[1, :8] = list(itertools.product((0, 255), repeat=3))
  return found


# The formulas on float64 [H, W, 3] in 0 … 255, not rounded.
def brightness(x, factor):
  return (factor * x).clip(0, 255)


def contrast(x, factor):
  return (factor * x + (1 - factor) * (x @ GREY).mean()).clip(0, 255)


def saturation(x, factor):
  return (factor * x + (1 - factor) * (x @ GREY)[..., None]).clip(0, 255)


def hue(x, turn):
  def one(pixel):
    h, s, v = colorsys.rgb_to_hsv(*pixel)
    return colorsys.hsv_to_rgb((h + turn) % 1, s, v)

  return np.apply_along_axis(one, -1, x / 255) * 255


@pytest.mark.parametrize("factor", [0.2, 0.77, 1.0, 1.8])
@pytest.mark.parametrize("of", [brightness, contrast, saturation])
def test_each_change_is_its_formula_rounded(of, factor):
  got = getattr(colours, of.__name__)(picture(), factor)
  # A grey level is rounded first: half a level times |1 − factor| is added to the rounding.
  assert got.dtype == np.uint8
  assert (
    np.abs(got - of(picture().astype(float), factor)).max() <= 0.5 + 0.5 * abs(1 - factor) + 0.01
  )


@pytest.mark.parametrize("turn", [-0.2, -0.01, 0.0, 0.13, 0.2])
def test_the_hue_turns_and_greys_stay(turn):
  got = colours.hue(picture(), turn)
  assert np.abs(got - hue(picture().astype(float), turn)).max() <= 0.51
  np.testing.assert_array_equal(got[0], picture()[0])


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_a_picture_is_what_its_numbers_stand_for(strength):
  on = config(jitter=strength, grey_probability=0.2)
  rng, errors = np.random.default_rng(1), []
  for k, order in enumerate(itertools.permutations((brightness, contrast, saturation, hue))):
    draws = rng.random(colours.DRAWS)
    draws[0], draws[5], draws[6] = 0.79, (k + 0.5) / 24, 0.9 if k % 2 else 0.1
    amounts = dict(
      zip((brightness, contrast, saturation), 1 + 0.8 * strength * (2 * draws[1:4] - 1))
    )
    amounts[hue] = 0.2 * strength * (2 * draws[4] - 1)
    want = picture(k).astype(float)
    for change in order:
      want = change(want, amounts[change])
    if k % 2 == 0:
      want = np.repeat((want @ GREY)[..., None], 3, -1)
    errors.append(np.abs(colours.changed(picture(k), draws, on) - want))
  # Rounding after each change, which the next one may enlarge 1.8 times.
  assert np.max(errors) < 8 and np.mean(errors) < 0.6


def test_colours_change_as_often_as_stated_and_leave_the_crop_as_it_is():
  source = picture(size=60)
  off, on = config(), config(jitter=0.7, jitter_probability=0.6, grey_probability=0.3)
  same = grey = 0
  for seed in range(600):
    rng = np.random.default_rng(seed)
    plain = images.augment(source, rng, off)
    draws = np.random.default_rng(seed).random(7 + colours.DRAWS).tolist()
    # Without colours a view takes the numbers that it always took.
    assert rng.random() == draws[7]
    view = images.augment(source, np.random.default_rng(seed), on)
    np.testing.assert_array_equal(view, colours.changed(plain, draws[7:], on))
    grey += (view == view[..., :1]).all()
    same += np.array_equal(view, plain)
  # Binomial: five deviations are 61 and 56.
  assert abs(same - 600 * 0.4 * 0.7) < 61 and abs(grey - 600 * 0.3) < 56


def test_torchvision_says_the_same():
  functional = pytest.importorskip("torchvision.transforms.functional")
  torch = pytest.importorskip("torch")
  tensor = torch.from_numpy(picture()).permute(2, 0, 1).double() / 255
  for name, amount, theirs in (
    ("brightness", 1.6, functional.adjust_brightness),
    ("contrast", 0.4, functional.adjust_contrast),
    ("saturation", 1.7, functional.adjust_saturation),
    ("hue", -0.17, functional.adjust_hue),
  ):
    want = theirs(tensor, amount).permute(1, 2, 0).numpy() * 255
    assert np.abs(getattr(colours, name)(picture(), amount) - want).max() < 1.1, name
