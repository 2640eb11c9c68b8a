"""How fast LiT training gets its rows from files of `siglax embed`, and how long a step waits.

    python benchmarks/embeddings.py
    python benchmarks/embeddings.py --threads 1 2 8 --step 50

Of each format: the time of all cores that a row takes, rows a second, and the share of its time
that a loop waits whose step keeps the device busy for --step milliseconds, the host free. 20,000
rows of 768 numbers with two captions of 12 words each, batches of 4,096, 16 tokens.
"""

import argparse
import pathlib
import tempfile
import time

import numpy as np

from siglax import config as config_lib
from siglax import data
from siglax.data import embedding_files
from siglax.data.text import TextProcessor

ROWS, WIDTH, BATCH, BATCHES = 20_000, 768, 4096, 12
WORDS = "a the photo of red blue circle square small large above below left right two".split()


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
  parser.add_argument("--step", type=float, default=72, help="milliseconds of a step")
  arguments = parser.parse_args()
  print("| file | threads | µs a row | rows/s | waiting |\n|---|---|---|---|---|")
  with tempfile.TemporaryDirectory() as folder:
    for ending in embedding_files.WRITERS:
      file = pathlib.Path(folder) / f"rows{ending}"
      write(file)
      for threads in arguments.threads:
        took, cpu = measured(file, threads, 0)
        waited = measured(file, threads, arguments.step / 1000)[0]
        rate, share = BATCH / took, waited / (waited + arguments.step / 1000)
        print(f"| {ending} | {threads} | {cpu / BATCH * 1e6:.1f} | {rate:,.0f} | {share:.0%} |")


def write(file):
  rng, writer = np.random.default_rng(0), embedding_files.WRITERS[file.suffix](file)
  for _ in range(0, ROWS, 1000):
    numbers = rng.normal(size=(1000, WIDTH)).astype(np.float32)
    captions = [[" ".join(rng.choice(WORDS, 12)) for _ in range(2)] for _ in range(1000)]
    writer.write([{"image_embedding": x, "captions": c} for x, c in zip(numbers, captions)])
  writer.close({"digest": "x", "width": WIDTH, "image": {}, "classnames": None})


def measured(file, threads, step):
  """Seconds of a batch: how long the loop waits, and of all cores."""
  config = config_lib.default()
  config.batch_size, config.loader.threads = BATCH, threads
  config.data = ({"source": "embeddings", "path": str(file)},)
  batches = data.train_batches(config, TextProcessor(length=16))
  waited = 0.0
  for k in range(BATCHES + config.loader.buffer + 1):
    if k == config.loader.buffer + 1:  # what was ready at the start is gone
      waited, cpu = 0.0, time.process_time()
    began = time.perf_counter()
    next(batches)
    waited += time.perf_counter() - began
    time.sleep(step)
  cpu = time.process_time() - cpu
  batches.close()
  return waited / BATCHES, cpu / BATCHES


if __name__ == "__main__":
  main()
