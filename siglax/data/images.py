"""Bytes to pixels: decode, the resize of evaluation and export, and the augmentation of training.

An image is uint8 [H, W, 3] RGB throughout; the model normalises it on the device.
"""

from __future__ import annotations

import io
import math

import cv2
import numpy as np
from PIL import Image

from siglax.data import colours
from siglax.data import native

# Parallel over examples, not within one: OpenCV's own threads would fight for the same cores.
cv2.setNumThreads(0)
# Decoders print on a broken file; the pipeline names it instead.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

# Formats that OpenCV and Pillow both read. OpenCV decodes; only Pillow tells the size from the
# header before that.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "SUN")
Image.init()
RESAMPLERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# Scans of a progressive JPEG, of which each takes as long as a picture; encoders write about ten.
MAX_SCANS = 64
# Pillow holds a pixel in 4 bytes; of a picture with more bytes than this, one channel at a time,
# which comes to the same.
WHOLE_BYTES = 2**25
# How OpenCV decodes a JPEG at a fraction of its size: of the cosines of a block, only the low ones.
SCALES = {
  1: cv2.IMREAD_COLOR_RGB,
  2: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_2,
  4: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_4,
  8: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
EXIF_ORIENTATION, EXIF_SIDEWAYS = 0x0112, 5  # from this one on, height and width change places
# Shrinking by this much or less, linear interpolation mixes nearly all pixels by itself.
LINEAR_SHRINK = 1.25
# Up to this much, a 3×3 blur before it is as good as the exact area average at half the time.
BLUR_SHRINK = 2.5


def decode(data: bytes | np.ndarray, config=None) -> np.ndarray:
  """Encoded bytes (JPEG, PNG, WebP, GIF's first frame, …) or a uint8 array to uint8 [H, W, 3] RGB.

  Turned upright by its EXIF orientation; grey is repeated over the channels, alpha is dropped, 16
  bits become 8. An array may be [H, W], [H, W, 1], [H, W, 3] or [H, W, 4].
  config: config.image, of which max_bytes and max_pixels are read, None for pictures that are
  trusted. Both are compared before anything is decoded: 2.6 MB of PNG can hold 2.7 GB of pixels.
  Raises ValueError for what cannot be decoded, cut-off files included (OpenCV 5 refuses them; 4
  would have filled up with grey).
  """
  if isinstance(data, np.ndarray):
    return _from_array(data)
  _check_bytes(data)
  if config is not None:
    _check_size(data, config)
  return _decoded(data)


def _check_bytes(data):
  if not isinstance(data, (bytes, bytearray, memoryview)):
    raise ValueError(
      f"the image is {type(data).__name__}; it must be encoded bytes or a uint8 array"
    )
  if not len(data):
    raise ValueError("the image is empty (0 bytes)")


def _decoded(data, scale: int = 1) -> np.ndarray:
  """The pixels; of a JPEG 1/scale of its height and width, for a scale of `SCALES`."""
  try:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), SCALES[scale])
  except cv2.error as e:  # larger than OpenCV allows, or a header that lies
    if e.code == cv2.Error.StsNoMem:
      raise MemoryError(e.err) from None
    raise ValueError(f"the image ({len(data)} bytes) cannot be decoded: {e.err}") from None
  if image is None:
    raise _undecodable(data)
  return image


def read(path, config) -> bytes:
  """The bytes of a file for `decode`: of one that is too large, just enough to be refused."""
  with open(path, "rb") as file:
    return file.read(config.max_bytes + 1)


def _check_size(data, config) -> Image.Image:
  """The header. ValueError for more bytes or pixels than config.image allows, and for bytes without
  a header that says how many.
  """
  if len(data) > config.max_bytes:
    raise ValueError(
      f"the image has more than config.image.max_bytes={config.max_bytes} bytes; shrink it, or "
      "raise the field"
    )
  header = read_header(data)
  width, height = header.size
  if width * height > config.max_pixels:
    raise ValueError(
      f"the image has {width} × {height} pixels, more than "
      f"config.image.max_pixels={config.max_pixels}; shrink it, or "
      "raise the field"
    )
  if "progressive" in header.info and (scans := bytes(data).count(b"\xff\xda")) > MAX_SCANS:
    raise ValueError(
      f"the image ({len(data)} bytes) has {scans} scans, more than the {MAX_SCANS} of any good "
      "JPEG; encode it anew"
    )
  return header


def read_header(data) -> Image.Image:
  """What the header states, such as format and size. Not by Image.open, which warns and refuses by
  limits of its own.
  """
  head = bytes(data[:16])
  for name in FORMATS:
    try:
      factory, accept = Image.OPEN[name]
      if accept is not None and accept(head):
        return factory(io.BytesIO(data), "")
    except MemoryError:
      raise
    except Exception:  # each plugin has its own
      pass
  raise _undecodable(data)


def _undecodable(data) -> ValueError:
  return ValueError(
    f"the image ({len(data)} bytes) cannot be decoded: not an image, cut short, or damaged"
  )


def _from_array(image):
  if image.dtype != np.uint8 or image.ndim not in (2, 3) or not image.size:
    raise ValueError(
      f"the image is {image.dtype}{list(image.shape)}; an array must be uint8[H, W, 3], and not "
      "empty"
    )
  if image.ndim == 2:
    image = image[..., None]
  channels = image.shape[2]
  if channels not in (1, 3, 4):
    raise ValueError(f"the image has {channels} channels; an array must have 1, 3 or 4")
  return np.repeat(image, 3, axis=2) if channels == 1 else image[..., :3]


def resize(
  image: np.ndarray, size: int, resample: str = "bilinear", fit: str = "squash"
) -> np.ndarray:
  """uint8 [H, W, 3] to [size, size, 3] by Pillow's antialiased resampler: bilinear | bicubic.

  fit: "squash" both sides, or "crop": the shorter side to size and the centre cut out of the
  longer, as CLIP does. The resize of evaluation and of every exported preprocessor. An image of
  that size is returned as it is.
  """
  height, width = image.shape[:2]
  if (height, width) == (size, size):
    return image
  short, left, top = min(height, width), 0, 0
  if fit == "crop":
    height, width = size * height // short, size * width // short
    left, top = (width - size) // 2, (height - size) // 2
  else:
    height = width = size
  return _resampled(image, height, width, resample)[top : top + size, left : left + size]


def _resampled(image, height: int, width: int, resample: str) -> np.ndarray:
  shrink = lambda pixels: np.array(
    Image.fromarray(pixels).resize((width, height), RESAMPLERS[resample])
  )
  if image.nbytes <= WHOLE_BYTES:
    return shrink(image)
  return np.stack([shrink(image[..., k]) for k in range(3)], axis=-1)


def shrink(image: np.ndarray, short_side: int) -> np.ndarray:
  """uint8 [H, W, 3] with its short side shrunk to short_side by the average of areas; a smaller one
  is returned as it is.
  """
  height, width = image.shape[:2]
  if (short := min(height, width)) <= short_side:
    return image
  sides = (max(short_side, round(side * short_side / short)) for side in (width, height))
  return cv2.resize(image, tuple(sides), interpolation=cv2.INTER_AREA)


def encode(image: np.ndarray, ending: str, *options: int) -> bytes:
  """uint8 [H, W, 3] RGB as the bytes of a file. ending: ".png" and so on; options: of
  cv2.imencode.
  """
  done, data = cv2.imencode(ending, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
  if not done:
    raise ValueError(f"an image of {image.shape[1]} × {image.shape[0]} pixels is no {ending}")
  return data.tobytes()


def prepare(data: bytes | np.ndarray, config) -> np.ndarray:
  """uint8 [size, size, 3], what a tower sees of a picture outside of training: `decode`, then
  `resize`. With fit="native" the patches of a picture at its own aspect ratio, see `native.pack`.

  config: config.image, of which size, resize, fit, patch, max_bytes and max_pixels are read. Raises
  ValueError as `decode`.
  """
  image = decode(data, config)
  if config.fit == "native":
    patch, most = config.patch, (config.size // config.patch) ** 2
    height, width = image.shape[:2]
    rows, columns = native.grid(height, width, patch, most)
    return native.pack(_resampled(image, rows * patch, columns * patch, config.resize), patch, most)
  return resize(image, config.size, config.resize, config.fit)


def blank(config) -> np.ndarray:
  """What `prepare` makes of a black picture: it stands where a batch has no example."""
  return prepare(np.zeros((config.size, config.size, 3), np.uint8), config)


def augment(data: bytes | np.ndarray, rng: np.random.Generator, config) -> np.ndarray:
  """A random view, uint8 [size, size, 3], of a picture as `decode` takes it; a pure function of the
  picture, rng and config.

  config: config.image, of which size, crop_min_area, crop_max_aspect, pad, flip, jitter,
  jitter_probability, grey_probability, max_bytes and max_pixels are read. In this order: random
  resized crop (see `crop_box`), resize, shift by up to `pad` pixels over a reflected border,
  left-right flip, other colours (`colours.changed`). With all of them off only a resize is left,
  and an image of that size is returned as it is.

  A JPEG whose crop is at least 2, 4 or 8 times as large as the view, on both sides, is decoded at
  1/2, 1/4 or 1/8 of its size, which takes a fraction of the time. The sides of the crop then move
  by up to half a pixel of what is decoded. Raises ValueError as `decode`, and leaves rng as it was.
  """
  if isinstance(data, np.ndarray):
    return _view(_from_array(data), _draws(rng, config), config)
  _check_bytes(data)
  header = _check_size(data, config)
  if header.format != "JPEG" or min(header.size) < 2 * config.size:
    return _view(_decoded(data), _draws(rng, config), config)
  state = rng.bit_generator.state
  try:
    return _view_of_large(data, header, _draws(rng, config), config)
  except ValueError:
    rng.bit_generator.state = state
    raise


def _draws(rng: np.random.Generator, config) -> list[float]:
  """The numbers in [0, 1) that a view stands for. Those of the colours come last, so that crops are
  the same without them.
  """
  return rng.random(7 + (colours.DRAWS if colours.is_on(config) else 0)).tolist()


def _view_of_large(data, header: Image.Image, draws: list[float], config) -> np.ndarray:
  """`_view` of a JPEG, decoded at the scale that its crop needs."""
  width, height = header.size
  if header.getexif().get(EXIF_ORIENTATION, 1) >= EXIF_SIDEWAYS:
    width, height = height, width
  _, _, w, h = box = _box(width, height, draws, config)
  scale = max(scale for scale in SCALES if scale == 1 or scale * config.size <= min(w, h))
  image = _decoded(data, scale)
  if image.shape[:2] != (-(-height // scale), -(-width // scale)):  # a header that lies
    return _view(_decoded(data), draws, config)
  x, y, w, h = (round(number / scale) for number in box)
  return _finished(image[y : y + max(h, 1), x : x + max(w, 1)], draws, config)


def _view(image: np.ndarray, draws: list[float], config) -> np.ndarray:
  """The view of a whole picture that numbers in [0, 1) stand for."""
  if config.crop_min_area < 1:
    x, y, w, h = _box(image.shape[1], image.shape[0], draws, config)
    image = image[y : y + h, x : x + w]
  return _finished(image, draws, config)


def _box(width: int, height: int, draws: list[float], config) -> tuple[int, int, int, int]:
  if config.crop_min_area == 1:
    return 0, 0, width, height
  return crop_box(width, height, config.crop_min_area, config.crop_max_aspect, *draws[:4])


def _finished(image: np.ndarray, draws: list[float], config) -> np.ndarray:
  """A crop resized, shifted, flipped and in other colours."""
  size, pad = config.size, config.pad
  _, _, _, _, shift_x, shift_y, side, *of_colours = draws
  image = fast_resize(image, size)
  if pad:
    image = cv2.copyMakeBorder(image, pad, pad, pad, pad, cv2.BORDER_REFLECT_101)
    x, y = int(shift_x * (2 * pad + 1)), int(shift_y * (2 * pad + 1))
    image = image[y : y + size, x : x + size]
  if config.flip and side < 0.5:
    image = cv2.flip(image, 1)
  return colours.changed(image, of_colours, config) if of_colours else image


def crop_box(
  width: int,
  height: int,
  min_area: float,
  max_aspect: float,
  area: float,
  aspect: float,
  left: float,
  top: float,
) -> tuple[int, int, int, int]:
  """(x, y, w, h) in pixels of a crop inside width × height, from four uniform draws in [0, 1).

  Its share of the area is uniform in [min_area, 1], its aspect w / h log-uniform in [1 /
  max_aspect, max_aspect] as far as a crop of that area fits into the image; when none does, as near
  to it as fits. So there is nothing to reject, and min_area holds for any image. Inception's crop
  otherwise (Szegedy et al. 2015, section 6).
  """
  share = min_area + (1 - min_area) * area
  narrowest, widest = share * width / height, width / (share * height)
  low = min(max(1 / max_aspect, narrowest), widest)
  high = max(min(max_aspect, widest), narrowest)
  ratio = low * (high / low) ** aspect
  pixels = share * width * height
  w = min(max(round(math.sqrt(pixels * ratio)), 1), width)
  h = min(max(round(math.sqrt(pixels / ratio)), 1), height)
  return int(left * (width - w + 1)), int(top * (height - h + 1)), w, h


def fast_resize(image: np.ndarray, size: int) -> np.ndarray:
  """uint8 [H, W, 3] squashed to [size, size, 3], antialiased where it shrinks, at a fraction of
  Pillow's time.

  For training only: within a grey level or two of `resize` on average. An image of that size is
  returned as it is.
  """
  height, width = image.shape[:2]
  if max(height, width) > BLUR_SHRINK * size:
    # OpenCV averages areas only when no side grows; a side to enlarge is left to the linear step.
    image = cv2.resize(image, (min(width, size), min(height, size)), interpolation=cv2.INTER_AREA)
  elif max(height, width) > LINEAR_SHRINK * size:
    kernel = tuple(3 if side > LINEAR_SHRINK * size else 1 for side in (width, height))
    image = cv2.GaussianBlur(image, kernel, 0)
  if image.shape[:2] != (size, size):
    image = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
  return image
