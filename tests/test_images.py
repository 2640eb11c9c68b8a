"""siglax.data.images against Pillow's decoder, a float64 resampler and numpy's own padding."""

import io
import math
import types

import cv2
import numpy as np
from PIL import Image
import pytest

from siglax.data import images


def draw(height, width, seed=0, scales=(3, 9, 40)):
  """A picture with structure at these numbers of knots a side: uint8 [height, width, 3]."""
  rng = np.random.default_rng(seed)
  picture = np.zeros((height, width, 3))
  for cells in scales:
    knots = rng.uniform(-1, 1, (cells, cells, 3))
    grow = lambda channel: cv2.resize(channel, (width, height), interpolation=cv2.INTER_CUBIC)
    picture += np.stack([grow(knots[..., c]) for c in range(3)], -1)
  return (128 + 50 * picture).clip(0, 255).astype(np.uint8)


def encode(image, kind="PNG", **options):
  file = io.BytesIO()
  Image.fromarray(image).save(file, kind, **options)
  return file.getvalue()


def image_config(size, **fields):
  off = dict(crop_min_area=1.0, crop_max_aspect=4 / 3, pad=0, flip=False)
  limits = dict(max_bytes=2**24, max_pixels=2**26)
  colours = dict(jitter=0.0, jitter_probability=0.8, grey_probability=0.0)
  return types.SimpleNamespace(**dict(size=size) | off | limits | colours | fields)


def test_decode_gives_rgb_whatever_the_file():
  image = draw(40, 30)
  np.testing.assert_array_equal(images.decode(encode(image)), image)
  np.testing.assert_array_equal(images.decode(memoryview(encode(image))), image)
  np.testing.assert_array_equal(images.decode(encode(image, "WEBP", lossless=True)), image)
  grey = image[..., 0]
  np.testing.assert_array_equal(images.decode(encode(grey)), np.stack([grey] * 3, -1))
  alpha = np.dstack([image, draw(40, 30, 1)[..., 0]])
  np.testing.assert_array_equal(images.decode(encode(alpha)), image)
  palette = Image.fromarray(image).quantize(64)
  file = io.BytesIO()
  palette.save(file, "PNG")
  np.testing.assert_array_equal(images.decode(file.getvalue()), np.asarray(palette.convert("RGB")))
  deep = cv2.imencode(".png", image[..., ::-1].astype(np.uint16) * 257)[1].tobytes()
  np.testing.assert_array_equal(images.decode(deep), image)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "quality": 95}])
def test_decode_of_jpeg_is_pillow_s_within_rounding(options):
  data = encode(draw(60, 90), "JPEG", **options)
  want = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
  assert (
    np.abs(images.decode(data) - want).max() <= 6
    and np.abs(images.decode(data) - want).mean() < 0.6
  )


def test_decode_turns_a_photo_upright():
  exif = Image.Exif()
  exif[0x0112] = 6  # turned by a quarter
  image = draw(20, 30)
  data = encode(image, "PNG", exif=exif)
  np.testing.assert_array_equal(images.decode(data), np.rot90(image, -1))


def test_decode_takes_arrays():
  image = draw(5, 7)
  assert images.decode(image).base is image or images.decode(image) is image
  np.testing.assert_array_equal(images.decode(image[..., 0]), np.stack([image[..., 0]] * 3, -1))
  np.testing.assert_array_equal(images.decode(image[..., :1]), np.stack([image[..., 0]] * 3, -1))
  np.testing.assert_array_equal(images.decode(np.dstack([image, image[..., 0]])), image)


@pytest.mark.parametrize(
  "data, message",
  [
    (b"", "empty"),
    (b"not an image at all", "19 bytes"),
    (None, "NoneType"),
    ("path.jpg", "str"),
    (np.zeros((4, 4, 3), np.float32), "float32"),
    (np.zeros((4, 4, 2), np.uint8), "2 channels"),
    (np.zeros((0, 4, 3), np.uint8), "not empty"),
    (np.zeros(4, np.uint8), r"uint8\[4\]"),
  ],
)
def test_decode_refuses_in_one_line(data, message):
  with pytest.raises(ValueError, match=message) as e:
    images.decode(data)
  assert "\n" not in str(e.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_decode_refuses_files_that_are_cut_short(kind):
  data = encode(draw(120, 160), kind)
  for share in (0.01, 0.3, 0.9):
    with pytest.raises(ValueError, match="cannot be decoded"):
      images.decode(data[: int(len(data) * share)])


@pytest.mark.parametrize(
  "kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM"]
)
def test_size_is_limited_before_decoding(monkeypatch, kind):
  data = encode(draw(20, 30), kind)
  allow = lambda pixels, size: types.SimpleNamespace(max_pixels=pixels, max_bytes=size)
  assert images.decode(data, allow(600, len(data))).shape == (20, 30, 3)
  monkeypatch.setattr(images.cv2, "imdecode", None)  # nothing is decoded to find out
  with pytest.raises(
    ValueError,
    match=r"^the image has 30 × 20 pixels, more than config\.image\.max_pixels=599; shrink",
  ):
    images.decode(data, allow(599, len(data)))
  with pytest.raises(
    ValueError,
    match=rf"^the image has more than config\.image\.max_bytes={len(data) - 1} bytes; shrink",
  ):
    images.decode(data, allow(600, len(data) - 1))


def test_a_large_file_is_not_read(tmp_path):
  with (tmp_path / "a.png").open("wb") as f:
    f.truncate(2**40)  # a hole
  read = images.read(tmp_path / "a.png", types.SimpleNamespace(max_bytes=1000))
  assert read == bytes(1001)


def resample(image, size, kernel, support):
  """float64 [size, size, 3]: the kernel stretched by the scale where it shrinks, normalised at the
  borders.
  """
  for axis in (0, 1):
    length = image.shape[axis]
    scale = length / size
    stretch = max(scale, 1)
    centre = (np.arange(size) + 0.5) * scale
    distance = (np.arange(length) + 0.5 - centre[:, None]) / stretch
    weights = np.where(np.abs(distance) < support, kernel(np.abs(distance)), 0)
    weights /= weights.sum(1, keepdims=True)
    image = np.moveaxis(np.tensordot(weights, image.astype(np.float64), (1, axis)), 0, axis)
  return image


def triangle(x):
  return 1 - x


def cubic(x, a=-0.5):
  return np.where(x < 1, ((a + 2) * x - (a + 3)) * x * x + 1, a * (((x - 5) * x + 8) * x - 4))


@pytest.mark.parametrize("shape", [(50, 70), (333, 97), (20, 20), (31, 200), (32, 64), (1, 1)])
@pytest.mark.parametrize(
  "name, kernel, support", [("bilinear", triangle, 1), ("bicubic", cubic, 2)]
)
def test_resize_is_the_antialiased_filter(shape, name, kernel, support):
  image = draw(*shape)
  want = resample(image, 32, kernel, support).clip(0, 255)
  got = images.resize(image, 32, name)
  assert got.shape == (32, 32, 3) and got.dtype == np.uint8
  # Pillow rounds between the two axes, and its weights are fixed-point.
  assert np.abs(got - want).max() <= (1.01 if name == "bilinear" else 1.5)


@pytest.mark.parametrize("fit", ["squash", "crop"])
def test_a_large_image_is_resized_to_the_same_bits(monkeypatch, fit):
  image = draw(333, 97)
  height, width = (333 * 32 // 97, 32) if fit == "crop" else (32, 32)
  want = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
  top = (height - 32) // 2
  monkeypatch.setattr(images, "WHOLE_BYTES", 1000)
  np.testing.assert_array_equal(images.resize(image, 32, "bicubic", fit), want[top : top + 32])


def test_an_image_of_the_size_passes_untouched():
  image = draw(32, 32)
  assert images.resize(image, 32) is image
  assert images.fast_resize(image, 32) is image
  view = images.augment(image, np.random.default_rng(0), image_config(32))
  assert np.shares_memory(view, image) and (view == image).all()


@pytest.mark.parametrize(
  "shape", [(36, 36), (48, 60), (64, 64), (75, 150), (300, 200), (20, 200), (16, 24)]
)
def test_fast_resize_is_antialiased(shape):
  noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
  got = images.fast_resize(noise, 32)
  # Plain linear interpolation leaves about 49, however much it shrinks.
  want = resample(noise, 32, triangle, 1)
  assert got.std() < 1.45 * want.std()
  smooth = draw(*shape, scales=(3, 12))
  assert np.abs(images.fast_resize(smooth, 32) - resample(smooth, 32, triangle, 1)).mean() < 1.5


def boxes(width, height, min_area, max_aspect, n=4000):
  draws = np.random.default_rng(0).random((n, 4)).tolist()
  return np.array([images.crop_box(width, height, min_area, max_aspect, *u) for u in draws])


@pytest.mark.parametrize(
  "width, height", [(500, 375), (32, 32), (900, 100), (7, 5), (1, 1), (1, 50)]
)
@pytest.mark.parametrize(
  "min_area, max_aspect", [(0.08, 4 / 3), (0.6, 4 / 3), (0.9, 1.0), (1.0, 2.0)]
)
def test_crops_lie_inside_and_keep_their_area(width, height, min_area, max_aspect):
  x, y, w, h = boxes(width, height, min_area, max_aspect).T
  assert (x >= 0).all() and (y >= 0).all() and (w >= 1).all() and (h >= 1).all()
  assert (x + w <= width).all() and (y + h <= height).all()
  # A side is rounded by half a pixel at most.
  assert ((w + 0.5) * (h + 0.5) >= min_area * width * height - 1e-6).all()
  x, y, w, h = images.crop_box(width, height, min_area, max_aspect, 0.1, 0.5, 1 - 1e-9, 1 - 1e-9)
  assert x + w == width and y + h == height  # the last place is drawn too


def test_crops_have_the_stated_distribution():
  width, height, min_area = 1000, 1000, 0.3
  x, y, w, h = boxes(width, height, min_area, 4 / 3, n=20_000).T
  share = w * h / (width * height)
  assert np.quantile(share, [0, 0.25, 0.5, 0.75, 1]) == pytest.approx(
    [0.3, 0.475, 0.65, 0.825, 1], abs=0.02
  )
  small = share < 0.7  # any aspect fits
  log = np.log(w / h)[small] / np.log(4 / 3)
  assert np.quantile(log, [0, 0.25, 0.5, 0.75, 1]) == pytest.approx([-1, -0.5, 0, 0.5, 1], abs=0.04)
  places = np.stack([(x / np.maximum(width - w, 1))[small], (y / np.maximum(height - h, 1))[small]])
  for place in places:
    assert np.quantile(place, [0, 0.25, 0.5, 0.75, 1]) == pytest.approx(
      [0, 0.25, 0.5, 0.75, 1], abs=0.03
    )
  # One of these four has nothing to do with another: a correlation of n draws is off zero by 1 /
  # √n.
  related = np.corrcoef([*places, log, share[small]])
  assert np.abs(related - np.eye(4)).max() < 5 / math.sqrt(small.sum())


def test_a_panorama_is_cropped_to_its_full_height():
  x, y, w, h = boxes(3000, 1000, 0.9, 4 / 3).T  # no crop of 90 % has an aspect of 4 / 3
  assert (h == 1000).all() and (w >= 2700).all() and (w < 3000).any()


# Red is x and green is y, so a pixel tells where it was taken.
HEIGHT, WIDTH = 120, 200
PLACES = np.stack([*np.mgrid[:HEIGHT, :WIDTH][::-1], np.zeros((HEIGHT, WIDTH))], -1).astype(
  np.uint8
)


def views(size=32, n=3000, seed=0, **fields):
  """Of many views of PLACES: the box of each in pixels as its pixels tell it, float64 [n] x, y, w,
  h, and if it is flipped.
  """
  rng, config = np.random.default_rng(seed), image_config(size, **fields)
  shown = np.stack([images.augment(PLACES, rng, config) for _ in range(n)]).astype(float)
  inner = np.arange(2, size - 2)  # a filter leans inwards at the border
  across, down = shown[:, size // 2, inner, 0], shown[:, inner, size // 2, 1]
  # A pixel k of the view is from x0 + (k + ½)·w/size − ½: a line, of which the box is the ends.
  (slope_x, first_x), (slope_y, first_y) = (
    np.polyfit(inner + 0.5, line.T, 1) for line in (across, down)
  )
  flipped = slope_x < 0
  return (
    np.where(flipped, first_x + slope_x * size, first_x) + 0.5,
    first_y + 0.5,
    np.abs(slope_x) * size,
    slope_y * size,
    flipped,
  )


def test_augment_shows_boxes_as_large_and_anywhere_as_stated():
  x, y, w, h, _ = views(crop_min_area=0.4)
  assert x.min() > -1 and y.min() > -1 and (x + w).max() < WIDTH + 1 and (y + h).max() < HEIGHT + 1
  share = w * h / (WIDTH * HEIGHT)
  assert np.quantile(share, [0, 0.25, 0.5, 0.75, 1]) == pytest.approx(
    [0.4, 0.55, 0.7, 0.85, 1], abs=0.03
  )
  free = (WIDTH - w > 20) & (HEIGHT - h > 20)  # elsewhere rounding hides the place
  places = [(x / (WIDTH - w))[free], (y / (HEIGHT - h))[free]]
  for place in places:
    assert np.quantile(place, [0.05, 0.5, 0.95]) == pytest.approx([0.05, 0.5, 0.95], abs=0.06)
  assert abs(np.corrcoef(places)[0, 1]) < 5 / math.sqrt(free.sum())


def test_augment_flips_whatever_the_crop_and_the_shift():
  x, y, w, h, flipped = views(crop_min_area=0.4, flip=True)
  assert 0.45 < flipped.mean() < 0.55
  features = [w * h, w / h, x / np.maximum(WIDTH - w, 1), y / np.maximum(HEIGHT - h, 1), flipped]
  assert np.abs(np.corrcoef(features)[-1, :-1]).max() < 5 / math.sqrt(len(flipped))
  # Without a crop the first pixel across, from the left or from the right, tells the shift.
  x, y, _, _, flipped = views(pad=4, flip=True)
  assert np.abs(np.corrcoef([x, y, flipped])[-1, :-1]).max() < 5 / math.sqrt(len(flipped))


def test_augment_shifts_over_a_reflected_border_pixel_for_pixel():
  image, size, pad = draw(8, 8), 8, 2
  padded = np.pad(image, [(pad, pad), (pad, pad), (0, 0)], mode="reflect")
  windows = {
    padded[y : y + size, x : x + size].tobytes(): (y, x) for y in range(5) for x in range(5)
  }
  rng = np.random.default_rng(0)
  seen = [
    windows[images.augment(image, rng, image_config(size, pad=pad)).tobytes()] for _ in range(500)
  ]
  counts = np.unique(seen, axis=0, return_counts=True)[1]
  assert len(counts) == 25 and counts.min() >= 6  # 20 each on average


def test_augment_flips_half_of_the_time():
  image = draw(8, 8)
  rng = np.random.default_rng(0)
  views = [images.augment(image, rng, image_config(8, flip=True)) for _ in range(400)]
  flipped = [np.array_equal(view, image[:, ::-1]) for view in views]
  assert all(f or np.array_equal(view, image) for f, view in zip(flipped, views))
  assert 160 < sum(flipped) < 240


def test_augment_is_a_pure_function_of_its_random_numbers():
  image = draw(50, 60)
  kept = image.copy()
  config = image_config(24, crop_min_area=0.3, pad=3, flip=True)
  views = [images.augment(image, np.random.default_rng(seed), config) for seed in (1, 2, 1)]
  np.testing.assert_array_equal(views[0], views[2])
  assert not np.array_equal(views[0], views[1]) and views[0].shape == (24, 24, 3)
  np.testing.assert_array_equal(image, kept)


@pytest.mark.parametrize(
  "fields",
  [
    {},
    {"crop_min_area": 0.3},
    {"pad": 3},
    {"flip": True},
    {"crop_min_area": 0.3, "pad": 3, "flip": True},
  ],
)
def test_augment_draws_as_often_whatever_is_on(fields):
  # So a change of one augmentation leaves the others' random numbers, and the caption drawn next,
  # where they were.
  rng = np.random.default_rng(1)
  images.augment(draw(50, 60), rng, image_config(24, **fields))
  assert rng.random() == np.random.default_rng(1).random(8)[7]


@pytest.mark.parametrize("shape", [(31, 50), (50, 31), (16, 41), (9, 16), (40, 40)])
def test_a_crop_is_the_centre_of_the_resized_shorter_side(shape):
  """As CLIP's preprocessing: torchvision's Resize(16), whose longer side is rounded down, and the
  centre.
  """
  picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
  height, width = (
    (16, int(16 * shape[1] / shape[0]))
    if shape[0] < shape[1]
    else (int(16 * shape[0] / shape[1]), 16)
  )
  whole = np.array(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))
  top, left = (height - 16) // 2, (width - 16) // 2
  np.testing.assert_array_equal(
    images.resize(picture, 16, "bicubic", "crop"), whole[top : top + 16, left : left + 16]
  )


def photo(width, height, rng, orientation=1) -> bytes:
  """A JPEG of smooth colours with noise, as photographs have it."""
  coarse = rng.integers(0, 256, (height // 150 + 2, width // 150 + 2, 3), np.uint8)
  smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
  noisy = np.clip(smooth + rng.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)
  out, exif = io.BytesIO(), Image.Exif()
  exif[0x0112] = orientation
  Image.fromarray(noisy).save(out, "JPEG", quality=90, exif=exif)
  return out.getvalue()


@pytest.fixture
def scales(monkeypatch):
  """The scales at which JPEGs are decoded."""
  found, imdecode = [], cv2.imdecode

  def recorded(data, flags):
    found.append(next(scale for scale, f in images.SCALES.items() if f == flags))
    return imdecode(data, flags)

  monkeypatch.setattr(cv2, "imdecode", recorded)
  return found


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
  "width, height, fields, expected",
  [
    (800, 600, {}, [8]),  # 600 / 64 > 8
    (500, 375, {}, [4]),
    (201, 187, {}, [2]),
    (127, 600, {}, [1]),
    (800, 600, {"crop_min_area": 0.9, "crop_max_aspect": 1.05, "pad": 3, "flip": True}, [8]),
    (800, 600, {"crop_min_area": 0.3, "crop_max_aspect": 1.1}, [4]),
  ],
)
def test_a_view_of_a_large_jpeg_is_that_of_all_its_pixels(
  scales, width, height, fields, expected, orientation
):
  data = photo(width, height, np.random.default_rng(orientation), orientation)
  config = image_config(64, **fields)
  whole = images.decode(data)
  scales.clear()
  view = images.augment(data, np.random.default_rng(11), config)
  assert scales == expected and view.shape == (64, 64, 3)
  # Pillow's antialiased filter over the crop whose sides are multiples of the scale.
  draws, box = np.random.default_rng(11).random(7), (0, 0, *whole.shape[1::-1])
  if config.crop_min_area < 1:
    limits = config.crop_min_area, config.crop_max_aspect
    box = images.crop_box(*whole.shape[1::-1], *limits, *draws[:4])
  x, y, w, h = (round(side / scales[0]) * scales[0] for side in box)
  box = x, y, min(x + w, whole.shape[1]), min(y + h, whole.shape[0])
  want = np.asarray(Image.fromarray(whole).resize((64, 64), Image.Resampling.BILINEAR, box))
  if pad := config.pad:
    want = np.pad(want, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
    x, y = (draws[4:6] * (2 * pad + 1)).astype(int)
    want = want[y : y + 64, x : x + 64]
  if config.flip and draws[6] < 0.5:
    want = want[:, ::-1]
  assert np.abs(view - want.astype(int)).mean() < 1.5  # grey levels, of 256


def test_small_pictures_and_other_formats_are_decoded_whole(scales):
  rng = np.random.default_rng(0)
  whole = images.decode(photo(400, 300, rng))
  png = cv2.imencode(".png", whole)[1].tobytes()
  small = photo(127, 300, rng)
  config = image_config(64, crop_min_area=0.5)
  for data in (png, small):
    pixels = images.decode(data)
    scales.clear()
    got = images.augment(data, np.random.default_rng(1), config)
    assert scales == [1]
    np.testing.assert_array_equal(got, images.augment(pixels, np.random.default_rng(1), config))


def test_a_large_jpeg_that_is_cut_short_leaves_the_random_numbers():
  data = photo(800, 600, np.random.default_rng(0))
  rng, other = np.random.default_rng(5), np.random.default_rng(5)
  with pytest.raises(ValueError, match="cannot be decoded"):
    images.augment(data[: len(data) // 2], rng, image_config(64))
  assert rng.random() == other.random()
