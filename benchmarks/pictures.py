"""Pictures a second on one core, from JPEG bytes to a random view of 224 pixels: siglax, Pillow,
and torchvision's transform as open_clip trains with it.

    taskset -c 0 python benchmarks/pictures.py
    taskset -c 0 python benchmarks/pictures.py --area 0.9
    taskset -c 0 python benchmarks/pictures.py --colours

JPEGs of three sizes, made here: 500×375, 2000×1500 in two qualities, as photographs of that
size have 0.2 to 0.3 bytes a pixel, and 256×256 as `siglax convert --short-side 256` leaves
them. The programs take turns; a figure is the median of five turns. torchvision is left out
where it is not installed; its view is a normalised float tensor, as it goes to the device there.
--colours adds SimCLR's colour jitter and grey to all but Pillow.
"""

import argparse
import io
import time
import types

import cv2
import numpy as np
from PIL import Image

from siglax.data import images

SIZE, TURNS = 224, 5
# (width, height, quality): pictures of a turn
KINDS = {(500, 375, 87): 160, (2000, 1500, 87): 24, (2000, 1500, 75): 24, (256, 256, 87): 160}


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--area", type=float, default=0.5, help="least share that a crop takes")
  parser.add_argument("--colours", action="store_true", help="SimCLR's colour jitter and grey")
  arguments = parser.parse_args()
  area = arguments.area
  programs = {"siglax": of_siglax(area, arguments.colours), "Pillow": of_pillow(area)}
  try:
    programs["torchvision"] = of_torchvision(area, arguments.colours)
  except ImportError as e:
    print(e)
  print("| JPEG | kB | " + " | ".join(programs) + " | × Pillow | × torchvision |")
  print("|---|---|" + "---|" * (len(programs) + 2))
  for (width, height, quality), count in KINDS.items():
    pictures = [jpeg(width, height, quality, np.random.default_rng(k)) for k in range(8)]
    rates = {name: [] for name in programs}
    for turn in range(TURNS):
      for name, view in programs.items():
        rng, began = np.random.default_rng(turn), time.perf_counter()
        for k in range(count):
          view(pictures[k % len(pictures)], rng)
        rates[name].append(count / (time.perf_counter() - began))
    rate = {name: float(np.median(found)) for name, found in rates.items()}
    ratios = [
      f"{rate['siglax'] / rate[name]:.2f}" if name in rate else "–"
      for name in ("Pillow", "torchvision")
    ]
    kb = np.mean([len(picture) for picture in pictures]) / 1000
    cells = [f"{width}×{height}", f"{kb:.0f}", *(f"{r:,.0f}" for r in rate.values()), *ratios]
    print("| " + " | ".join(cells) + " |", flush=True)


def jpeg(width: int, height: int, quality: int, rng) -> bytes:
  """Smooth colours with noise, as much of it as a photograph has."""
  coarse = rng.integers(0, 256, (height // 60, width // 60, 3)).astype(np.float32)
  smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
  noise = cv2.GaussianBlur(rng.normal(0, 45, smooth.shape), (0, 0), 0.9)
  pixels = np.clip(smooth + noise, 0, 255).astype(np.uint8)
  return cv2.imencode(".jpg", pixels, (cv2.IMWRITE_JPEG_QUALITY, quality))[1].tobytes()


def of_siglax(area, colours):
  config = types.SimpleNamespace(
    size=SIZE, crop_min_area=area, crop_max_aspect=4 / 3, pad=0, flip=True,
    jitter=1.0 * colours, jitter_probability=0.8, grey_probability=0.2 * colours,
    max_bytes=2**26, max_pixels=2**25,
  )  # fmt: skip
  return lambda data, rng: images.augment(data, rng, config)


def of_pillow(area):
  """The same crops, resized by Pillow's bicubic filter."""

  def view(data, rng):
    picture, draws = Image.open(io.BytesIO(data)).convert("RGB"), rng.random(7)
    x, y, w, h = images.crop_box(*picture.size, area, 4 / 3, *draws[:4])
    box = x, y, x + w, y + h
    picture = picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box)
    if draws[6] < 0.5:
      picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(picture)

  return view


def of_torchvision(area, colours):
  from torchvision import transforms

  bicubic = transforms.InterpolationMode.BICUBIC
  recoloured = [
    transforms.RandomApply([transforms.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
    transforms.RandomGrayscale(p=0.2),
  ]
  transform = transforms.Compose(
    [
      transforms.RandomResizedCrop(SIZE, scale=(area, 1), interpolation=bicubic),
      *(recoloured if colours else []),
      transforms.ToTensor(),
      transforms.Normalize((0.5,) * 3, (0.5,) * 3),
    ]
  )
  return lambda data, rng: transform(Image.open(io.BytesIO(data)).convert("RGB"))


if __name__ == "__main__":
  main()
