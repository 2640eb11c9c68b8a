"""Whether the memory of the loader stays flat: 20,000 batches, 50 epochs, of every source.

    python benchmarks/flat.py
    python benchmarks/flat.py --sources webdataset --orders shards --workers 2

Of 3,200 small pictures in 16 files, batches of 8, two threads; each row is a process of its own. It
prints what is more at the end than after the first epoch: resident memory in MiB (that of worker
processes is added, shared memory left out), file descriptors and threads. "parquet on demand" is
data larger than the memory that siglax holds of Parquet, which is lowered to a quarter of them.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import cv2
from data import own_memory
import numpy as np
import sources

from siglax.data import embedding_files

EXAMPLES, SHARDS, BATCH, SIZE = 3200, 16, 8, 16
ON_DEMAND = "parquet on demand"
WITHOUT_SHARDS = ("shapes", "folder", "tfds", "embeddings")


def picture(seed: int) -> bytes:
  noise = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)
  return cv2.imencode(".jpg", noise)[1].tobytes()


def write(root: pathlib.Path) -> dict[str, dict]:
  """{source: a data spec}, of every source."""
  specs = sources.write(root, [picture(seed) for seed in range(EXAMPLES)], SHARDS)
  shapes = {"source": "shapes", "examples": EXAMPLES, "image_size": SIZE}
  (root / "embedded").mkdir()
  file = root / "embedded/a.array_record"
  writer = embedding_files.WRITERS[".array_record"](file)
  embedding = np.zeros(32, np.float32)
  writer.write([{"image_embedding": embedding, "captions": ["a caption"]}] * EXAMPLES)
  writer.close({"digest": "", "width": 32, "image": {}, "classnames": None})
  embedded = {"source": "embeddings", "path": str(file)}
  return {"shapes": shapes, **specs, ON_DEMAND: specs["parquet"], "embeddings": embedded}


def children() -> list[str]:
  tasks = pathlib.Path("/proc/self/task").glob("*/children")
  return [pid for task in tasks for pid in task.read_text().split()]


def held() -> dict[str, float]:
  """What this process and its workers hold while all batches that may be made ahead are made."""
  time.sleep(1)
  pids = children()
  memory = own_memory("self", bool(not pids)) + sum(own_memory(pid, False) for pid in pids)
  count = lambda what: sum(len(os.listdir(f"/proc/{pid}/{what}")) for pid in ("self", *pids))
  return {"memory": memory / 2**20, "fds": count("fd"), "threads": count("task")}


def cell(name: str, spec: dict, workers: int, batches: int):
  from siglax import config as config_lib
  from siglax import data
  from siglax.data import files
  from siglax.data.text import TextProcessor

  if name == ON_DEMAND:
    paths = pathlib.Path(spec["path"]).parent.glob("*.parquet")
    files.MEMORY_BYTES = sum(path.stat().st_size for path in paths) // 4
  c = config_lib.default()
  c.data = (spec,)
  c.batch_size, c.image.size, c.image.crop_min_area, c.image.flip = BATCH, SIZE, 0.3, True
  c.loader.threads, c.loader.workers = 2, workers
  made = data.train_batches(c, TextProcessor(length=16))
  epoch = EXAMPLES // BATCH
  for _ in range(epoch):
    next(made)
  first, began = held(), time.perf_counter()
  for _ in range(batches - epoch):
    next(made)
  rate = (batches - epoch) * BATCH / (time.perf_counter() - began)
  growth = {what: now - first[what] for what, now in held().items()}
  made.close()
  print(json.dumps({**growth, "rate": rate}))


def run(values: dict) -> dict:
  command = [sys.executable, __file__, "--cell", json.dumps(values)]
  done = subprocess.run(command, capture_output=True, text=True)
  if done.returncode:
    raise SystemExit(done.stderr)
  return json.loads(done.stdout.splitlines()[-1])


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--sources", nargs="*", help="all by default")
  parser.add_argument("--orders", nargs="*", default=["global", "shards"])
  parser.add_argument("--workers", type=int, default=0)
  parser.add_argument("--batches", type=int, default=20_000)
  parser.add_argument("--cell", help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.cell:
    return cell(**json.loads(arguments.cell))
  print("| source | order | memory, MiB | descriptors | threads | examples/s |")
  print("|---|---|---|---|---|---|")
  with tempfile.TemporaryDirectory() as folder:
    specs = write(pathlib.Path(folder))
    os.environ["XDG_CACHE_HOME"] = folder
    for name in arguments.sources or specs:
      for order in arguments.orders:
        if order == "shards" and name in WITHOUT_SHARDS:
          continue
        spec = {**specs[name], "order": order, "shuffle_shards": 2}
        values = {"name": name, "spec": spec, "workers": arguments.workers}
        found = run(values | {"batches": arguments.batches})
        print(
          f"| {name} | {order} | {found['memory']:+.1f} | {found['fds']:+.0f} | "
          f"{found['threads']:+.0f} | {found['rate']:,.0f} |",
          flush=True,
        )


if __name__ == "__main__":
  main()
