"""What the order of the examples costs when there are many: 1 billion in 100,000 shards.

    python benchmarks/billion.py

Prints for 1 million and 1 billion virtual examples, of 10,000 a shard, in both orders: seconds from
opened sources to the first batch of 256, examples a second afterwards (their pictures are one array
of 16×16 pixels, so it is the rate of the order and the loader), and the peak of resident memory in
MiB. Each row is a process of its own; its imports are not timed.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np

SHARD = 10_000


class Virtual:
  def __init__(self, examples: int):
    self.shard_sizes = np.full(examples // SHARD, SHARD)
    self._picture = np.zeros((16, 16, 3), np.uint8)

  def __len__(self):
    return int(self.shard_sizes.sum())

  def __getitem__(self, i):
    return {"image": self._picture, "captions": [f"picture {i}"]}


def cell(examples: int, order: str):
  from siglax import config as config_lib
  from siglax import data

  c = config_lib.default()
  c.data = ({"source": "shapes", "order": order},)
  c.batch_size, c.image.size, c.loader.threads = 256, 16, 1
  text = lambda texts: np.zeros((len(texts), 16), np.int32)
  source, began = Virtual(examples), time.perf_counter()
  batches = data.train_batches(c, text, sources=[source])
  next(batches)
  first, began = time.perf_counter() - began, time.perf_counter()
  for _ in range(200):
    next(batches)
  rate = 200 * 256 / (time.perf_counter() - began)
  batches.close()
  memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  print(json.dumps({"first": first, "rate": rate, "memory": memory}))


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--cell", help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.cell:
    return cell(**json.loads(arguments.cell))
  print("| order | examples | first batch, s | examples/s | peak memory, MiB |")
  print("|---|---|---|---|---|")
  for order in ("global", "shards"):
    for examples in (10**6, 10**9):
      command = [sys.executable, __file__, "--cell"]
      command.append(json.dumps({"examples": examples, "order": order}))
      done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
      found = json.loads(done.stdout.splitlines()[-1])
      print(
        f"| {order} | {examples:,} | {found['first']:.2f} | {found['rate']:,.0f} | "
        f"{found['memory']:.0f} |",
        flush=True,
      )


if __name__ == "__main__":
  main()
