"""A folder of which a twentieth is broken or odd, in eleven ways: each is counted by its kind, what
can be seen is seen as Pillow sees it, and all other examples stay what they were.
"""

import io
import json
import logging
import re

import cv2
import numpy as np
from PIL import Image
import pytest

from siglax import config as config_lib
from siglax.commands import cli
from siglax.data import images
from siglax.data import pipeline

COUNT, EACH, SIZE = 400, 2, 8


def noise(seed, height=24, width=20):
  small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
  return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def encoded(image, kind="JPEG", **options):
  out = io.BytesIO()
  (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, kind, **options)
  return out.getvalue()


def animated(seed, kind):
  frames = [Image.fromarray(noise(seed + k)) for k in range(3)]
  return encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)


def deep(seed):
  return cv2.imencode(".png", noise(seed)[..., ::-1].astype(np.uint16) * 257)[1].tobytes()


# How each way makes a picture of its number; None leaves the picture as it is.
ODD = {
  "1×1": lambda i: encoded(noise(i, 1, 1), "PNG"),
  "30,000×2": lambda i: encoded(noise(i, 2, 30_000)),
  "CMYK": lambda i: encoded(Image.fromarray(noise(i)).convert("CMYK"), quality=95),
  "16 bits": deep,
  "GIF": lambda i: animated(i, "GIF"),
  "WebP": lambda i: animated(i, "WEBP"),
}
BROKEN = {
  "cut short": lambda i: encoded(noise(i))[:-80],
  "zero bytes": lambda i: b"",
  "text": lambda i: b"404 not found: there is no such picture on this server",
  "no caption": None,
  "not UTF-8": None,
}
WAYS = ODD | BROKEN
# Spread over the folder: {number of a picture: the way that it is odd or broken}.
PLACES = {7 + 17 * k: way for k, way in enumerate(way for way in WAYS for _ in range(EACH))}
REASONS = {
  r"the image \(\d+ bytes\) cannot be decoded: not an image, cut short, or damaged": 2 * EACH,
  r"the image is empty \(0 bytes\)": EACH,
  r"no caption and no label": EACH,
  r"'.*\.txt' is not UTF-8 at byte 4": EACH,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """(a folder of sound pictures, the same with the odd and broken ones)."""
  made = []
  for name in ("sound", "mixed"):
    folder = tmp_path_factory.mktemp(name)
    for i in range(COUNT):
      way = PLACES.get(i) if name == "mixed" else None
      make, text = WAYS.get(way), f"picture {i}".encode()
      picture = encoded(noise(i)) if make is None else make(i)
      (folder / f"{i:03}.jpg").write_bytes(picture)
      if way != "no caption":
        (folder / f"{i:03}.txt").write_bytes(b"pict\xff" if way == "not UTF-8" else text)
    made.append(folder)
  return made


def epoch(folder):
  """({number: (picture, tokens)}, batches) of one epoch."""
  config = config_lib.default()
  config.data = ({"source": "folder", "path": str(folder), "max_bad_fraction": 0.2},)
  config.batch_size, config.image.size, config.image.crop_min_area = 40, SIZE, 0.5

  def text(captions):
    return np.array([[int(caption.split()[1])] for caption in captions], np.int32)

  batches, drawn = pipeline.train_batches(config, text), []
  for _ in range(COUNT // 40):
    batch = next(batches)
    drawn += zip(batches.last[1], batch["image"], batch["tokens"][:, 0].tolist())
  batches.close()
  return drawn, batches


def test_each_kind_is_counted_and_the_others_are_unchanged(folders, caplog):
  (want, sound), _ = epoch(folders[0]), caplog.clear()
  with caplog.at_level(logging.WARNING, "siglax"):
    got, mixed = epoch(folders[1])
  broken = {i for i, way in PLACES.items() if way in BROKEN}
  assert sound.bad == [0] and sorted(i for i, _, _ in want) == list(range(COUNT))
  for (i, picture, number), (j, there, told) in zip(want, got):
    assert j == told and j not in broken and (i == j or i in broken)
    if i not in PLACES:
      np.testing.assert_array_equal(picture, there)
  # Each is drawn once, and named once.
  named = [re.search(r"example (\d+) is broken", r.getMessage()) for r in caplog.records]
  assert sorted(int(found[1]) for found in named) == sorted(broken)
  assert mixed.drawn[0] - mixed.bad[0] == COUNT
  assert len(broken) <= mixed.bad[0] <= len(broken) + 2  # some are drawn again in place of others


def test_inspect_counts_each_kind(folders, capsys):
  assert cli.main(["inspect", str(folders[1]), "--json"]) == 0
  report = json.loads(capsys.readouterr().out)
  found = [(kind["reason"], kind["count"]) for kind in report["broken"]]
  for reason, count in REASONS.items():
    assert [n for said, n in found if re.fullmatch(reason, said)] == [count], found
  assert len(found) == len(REASONS)
  assert report["broken_examples"] == sorted(i for i, way in PLACES.items() if way in BROKEN)


@pytest.mark.parametrize("way", ODD)
def test_odd_pictures_are_seen_as_pillow_sees_them(way):
  data = ODD[way](5)
  image = Image.open(io.BytesIO(data))
  want = noise(5) if way == "16 bits" else np.asarray(image.convert("RGB"))
  error = np.abs(images.decode(data).astype(int) - want)
  assert error.max() <= (8 if way in ("CMYK", "30,000×2") else 0)
