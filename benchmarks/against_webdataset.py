"""From a tar of JPEGs to training batches on one core: siglax, and WebDataset with torchvision.

    taskset -c 0 python benchmarks/against_webdataset.py

The tar has 512 pictures of 500×375 pixels, made here, with a caption each. Both programs read it
once a turn, take random crops of 224 pixels and make batches of 256 in one thread; WebDataset
without worker processes, with the transform that open_clip trains with. They take turns; a figure
is the median of five turns. Needs webdataset and torchvision.
"""

import io
import pathlib
import statistics
import tarfile
import tempfile
import time

import numpy as np
import pictures

SIZE, BATCH, TURNS, EXAMPLES = 224, 256, 5, 512


def main():
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / "pictures.tar"
    write(file)
    programs = {"siglax": of_siglax, "WebDataset": of_webdataset}
    rates = {name: [] for name in programs}
    for _ in range(TURNS):
      for name, program in programs.items():
        rates[name].append(program(file))
  siglax, other = (statistics.median(found) for found in rates.values())
  print("| siglax, images/s | WebDataset and torchvision | ratio |")
  print("|---|---|---|")
  print(f"| {siglax:,.0f} | {other:,.0f} | {siglax / other:.2f} |")


def write(file: pathlib.Path):
  with tarfile.open(file, "w") as tar:
    for k in range(EXAMPLES):
      picture = pictures.jpeg(500, 375, 87, np.random.default_rng(k % 16))
      for ending, content in ((".jpg", picture), (".txt", b"a picture of a red square")):
        member = tarfile.TarInfo(f"{k:05}{ending}")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))


def of_siglax(file) -> float:
  from siglax import config as config_lib
  from siglax import data
  from siglax.data.text import TextProcessor

  c = config_lib.default()
  c.data = ({"source": "webdataset", "path": str(file)},)
  c.batch_size, c.image.size, c.image.crop_min_area, c.image.flip = BATCH, SIZE, 0.5, True
  c.loader.threads, c.loader.workers, c.loader.buffer = 1, 0, 1
  batches = data.train_batches(c, TextProcessor(length=64))
  rate = images_a_second(batch["image"] for batch in batches)
  batches.close()  # it would go on with the next batch
  return rate


def images_a_second(batches) -> float:
  began = time.perf_counter()
  for _ in range(EXAMPLES // BATCH):
    assert len(next(batches)) == BATCH
  return EXAMPLES / (time.perf_counter() - began)


def of_webdataset(file) -> float:
  from torchvision import transforms
  import webdataset

  transform = transforms.Compose(
    [
      transforms.RandomResizedCrop(
        SIZE, scale=(0.5, 1), interpolation=transforms.InterpolationMode.BICUBIC
      ),
      transforms.RandomHorizontalFlip(),
      transforms.ToTensor(),
      transforms.Normalize((0.5,) * 3, (0.5,) * 3),
    ]
  )
  examples = webdataset.WebDataset(str(file), shardshuffle=False, empty_check=False)
  examples = examples.decode("pilrgb").to_tuple("jpg", "txt").map_tuple(transform, str)
  return images_a_second(batch[0] for batch in examples.batched(BATCH, partial=False))


if __name__ == "__main__":
  main()
