"""The loader: memory, time to the first batch and steady rate, by batch size and threads.

    python benchmarks/data.py --batch 1024 4096 --threads 1 8 64
    python benchmarks/data.py --threads 1 2 --against ../siglax-before

Each cell is a process of its own, on JPEGs of 500×375 pixels and about 60 kB, made here: a random
crop to --size pixels, and a caption. It prints

- first: seconds to the first batch, and in brackets as a multiple of batch / rate;
- rate: images a second afterwards, over --seconds;
- memory: growth of the peak resident memory over that at the start, workers' own included, in MiB
  and in brackets less the buffer + 2 batches that there may be.

--against: a checkout of siglax, whose loader runs in turn with this one in every cell.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import cv2
import numpy as np

HERE = pathlib.Path(__file__).resolve().parent.parent
PICTURES = 64


def jpeg(seed: int) -> bytes:
  """A smooth picture with noise, as large as a photograph of that size."""
  rng = np.random.default_rng(seed)
  coarse = rng.integers(0, 256, (6, 8, 3)).astype(np.float32)
  smooth = cv2.resize(coarse, (500, 375), interpolation=cv2.INTER_CUBIC)
  noise = cv2.GaussianBlur(rng.normal(0, 45, (375, 500, 3)), (0, 0), 0.9)
  picture = np.clip(smooth + noise, 0, 255).astype(np.uint8)
  return cv2.imencode(".jpg", picture, (cv2.IMWRITE_JPEG_QUALITY, 87))[1].tobytes()


class Pictures:
  def __init__(self):
    self.pictures = [jpeg(seed) for seed in range(PICTURES)]

  def __len__(self):
    return 1_000_000

  def __getitem__(self, i):
    return {"image": self.pictures[i % PICTURES], "captions": [f"picture {i} of a red square"]}


def own_memory(pid, shared: bool) -> int:
  """Bytes of a process that are resident, with those of shared files or without; 0 when it is
  gone.
  """
  try:
    resident, common = pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1:3]
  except OSError:
    return 0
  return (int(resident) - (0 if shared else int(common))) * os.sysconf("SC_PAGE_SIZE")


class Peak(threading.Thread):
  """The largest resident memory of this process and its children, looked at every 20 ms."""

  def __init__(self):
    super().__init__(daemon=True)
    self.bytes = 0

  def run(self):
    while True:
      tasks = pathlib.Path("/proc/self/task").glob("*/children")
      children = {pid for task in tasks for pid in _read(task).split()}
      memory = own_memory("self", True) + sum(own_memory(pid, False) for pid in children)
      self.bytes = max(self.bytes, memory)
      time.sleep(0.02)


def _read(path):
  try:
    return path.read_text()
  except OSError:
    return ""


def cell(batch, threads, workers, buffer, size, seconds):
  from siglax import config as config_lib
  from siglax import data
  from siglax.data.text import TextProcessor

  c = config_lib.default()
  c.data = ({"source": "shapes"},)
  c.batch_size, c.image.size, c.image.crop_min_area, c.image.flip = batch, size, 0.3, True
  c.loader.threads, c.loader.workers, c.loader.buffer = threads, workers, buffer
  batches = data.train_batches(c, TextProcessor(length=64), sources=[Pictures()])
  peak = Peak()
  at_start = own_memory("self", True)
  peak.start()
  began = time.perf_counter()
  next(batches)
  first = time.perf_counter() - began
  # What was made ahead is not counted: the rate is that of making.
  for _ in range(buffer + 1):
    next(batches)
  count, began = 0, time.perf_counter()
  while count < 2 * batch or time.perf_counter() - began < seconds:
    next(batches)
    count += batch
  rate = count / (time.perf_counter() - began)
  # A step that takes long: the buffer fills.
  last = next(batches)
  time.sleep(1.5 * buffer * batch / rate)
  del last
  batches.close()
  size = batch * (size * size * 3 + 64 * 4)
  print(json.dumps({"first": first, "rate": rate, "memory": peak.bytes - at_start, "size": size}))


def run(checkout, values) -> dict:
  given = [os.environ.get("PYTHONPATH")]
  done = subprocess.run(
    [sys.executable, __file__, "--cell", json.dumps(values)],
    env={**os.environ, "PYTHONPATH": os.pathsep.join([str(checkout), *filter(None, given)])},
    capture_output=True,
    text=True,
  )
  if done.returncode:
    raise SystemExit(done.stderr)
  return json.loads(done.stdout.splitlines()[-1])


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--batch", type=int, nargs="+", default=[256, 1024, 4096])
  parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 8, 64])
  parser.add_argument("--workers", type=int, nargs="+", default=[0])
  parser.add_argument("--buffer", type=int, default=2)
  parser.add_argument("--size", type=int, default=224)
  parser.add_argument("--seconds", type=float, default=10)
  parser.add_argument("--against", type=pathlib.Path)
  parser.add_argument("--cell", help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.cell:
    return cell(**json.loads(arguments.cell))
  size = np.mean([len(jpeg(seed)) for seed in range(8)]) / 1000
  print(f"JPEGs of {size:.0f} kB; load of the machine {os.getloadavg()[0]:.1f}", flush=True)
  print("loader  batch threads workers        first s     images/s           memory MiB")
  checkouts = {"this": HERE} | ({"other": arguments.against} if arguments.against else {})
  for batch, threads, workers in itertools.product(
    arguments.batch, arguments.threads, arguments.workers
  ):
    for name, checkout in checkouts.items():
      values = {"batch": batch, "threads": threads, "workers": workers}
      values |= {k: getattr(arguments, k) for k in ("buffer", "size", "seconds")}
      found = run(checkout, values)
      expected = batch / found["rate"]
      memory, allowed = found["memory"] / 2**20, found["size"] * (arguments.buffer + 2) / 2**20
      print(
        f"{name:6} {batch:6} {threads:7} {workers:7} {found['first']:8.2f} "
        f"({found['first'] / expected:4.2f}) {found['rate']:12.0f} "
        f"{memory:10.0f} ({memory - allowed:+6.0f})",
        flush=True,
      )


if __name__ == "__main__":
  main()
