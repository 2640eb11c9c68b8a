"""What a search in a million embeddings costs: seconds, and memory beyond what Python holds before.

    python benchmarks/search.py
    python benchmarks/search.py --rows 1000000 --width 256 --queries 1 100 --formats .npz .parquet

Of files as `siglax embed` writes them, with random unit rows: the time of `embedding_index.nearest`
(top 20), of one core and by the clock, and its peak of memory, each in a process of its own. The
last line of each file is numpy with the whole array in memory. Files go into --folder, which needs
room for one of them.
"""

import argparse
import json
import multiprocessing
import pathlib
import re
import tempfile
import time
import zipfile

import numpy as np

from siglax.data import embedding_files
from siglax.data import embedding_index

ABOUT = {"digest": "x", "image": {}, "classnames": None}
CHUNK, TOP = 1000, 20


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--rows", type=int, default=1_000_000)
  parser.add_argument("--width", type=int, default=768)
  parser.add_argument("--dtypes", nargs="+", default=["float16", "float32"])
  parser.add_argument("--queries", type=int, nargs="+", default=[1, 100])
  parser.add_argument("--formats", nargs="+", default=[".npz", ".parquet", ".array_record"])
  parser.add_argument("--folder", help="of the files, while they are there; that of the system")
  arguments = parser.parse_args()
  print("| file | dtype | MB | queries | by | seconds | of a core | peak MiB |")
  print("|---|---|---|---|---|---|---|---|")
  for ending in arguments.formats:
    for dtype in arguments.dtypes:
      with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        file = pathlib.Path(folder) / f"index{ending}"
        write(file, arguments.rows, arguments.width, dtype)
        size = file.stat().st_size / 1e6
        for count in arguments.queries:
          for search in (by_index, by_numpy) if ending == ".npz" else (by_index,):
            took, cpu, peak = apart(search, str(file), count, arguments.width)
            print(
              f"| {ending} | {dtype} | {size:,.0f} | {count} | {search.__name__[3:]} | {took:.1f} "
              f"| {cpu:.1f} | {peak:,.0f} |",
              flush=True,
            )


def rows(count: int, width: int, dtype: str):
  """Unit rows [CHUNK, width] of a million, always the same."""
  rng = np.random.default_rng(0)
  for _ in range(0, count, CHUNK):
    z = rng.standard_normal((CHUNK, width), np.float32)
    yield (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(dtype)


def write(file: pathlib.Path, count: int, width: int, dtype: str):
  about = {**ABOUT, "width": width}
  if file.suffix == ".npz":
    write_npz(file, count, width, dtype, about)
    return
  writer = embedding_files.WRITERS[file.suffix](file)
  for start, z in zip(range(0, count, CHUNK), rows(count, width, dtype)):
    writer.write(
      [
        {"image_embedding": x, "captions": ["a caption of a few words"], "key": f"{start + i:09}"}
        for i, x in enumerate(z)
      ]
    )
  writer.close(about)


def write_npz(file, count, width, dtype, about):
  """As embedding_files.NpzWriter, which holds all rows in memory."""
  as_json = lambda value: np.frombuffer(json.dumps(value).encode(), np.uint8)
  with zipfile.ZipFile(file, "w") as z:
    with z.open("image_embedding.npy", "w", force_zip64=True) as f:
      header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (count, width)}
      np.lib.format.write_array_header_1_0(f, header)
      for chunk in rows(count, width, dtype):
        f.write(chunk.tobytes())
    for name, array in {
      "label": np.full(count, -1),
      "weight": np.ones(count),
      "captions": as_json([["a caption of a few words"]] * count),
      "key": as_json([f"{i:09}" for i in range(count)]),
      "siglax": as_json(about),
    }.items():
      with z.open(f"{name}.npy", "w", force_zip64=True) as f:
        np.lib.format.write_array(f, array)


def by_index(file, queries):
  index = embedding_index.Index(file)
  found = embedding_index.nearest(index, queries, TOP)
  index.told([row for _, row in found[0]])


def by_numpy(file, queries):
  z = np.load(file)["image_embedding"].astype(np.float32)
  np.argsort(-(queries @ z.T), axis=1)[:, :TOP]


def apart(search, file, count, width) -> tuple[float, float, float]:
  """(seconds, those of all cores, MiB of the peak above what was there before), in a process."""
  ours, theirs = multiprocessing.get_context("spawn").Pipe()
  process = multiprocessing.get_context("spawn").Process(
    target=measured, args=(theirs, search, file, count, width)
  )
  process.start()
  found = ours.recv()
  process.join()
  return found


def measured(pipe, search, file, count, width):
  queries = next(rows(CHUNK, width, "float32"))[:count]
  # ru_maxrss would be that of the process which started this one, if that was higher.
  status = lambda: pathlib.Path("/proc/self/status").read_text()
  peak = lambda: int(re.search(r"VmHWM:\s*(\d+)", status())[1]) / 1024
  before, began, cpu = peak(), time.perf_counter(), time.process_time()
  search(file, queries)
  pipe.send((time.perf_counter() - began, time.process_time() - cpu, peak() - before))


if __name__ == "__main__":
  main()
