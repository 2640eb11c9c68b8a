"""Pictures a second of an evaluation, by one and by several processes of this machine.

    python benchmarks/evaluation.py
    python benchmarks/evaluation.py --against ../before --processes 1 2

JPEGs of 500×375, made here, in a Parquet file with three captions each; a retrieval task with small
towers, so that decoding is most of the work. The processes share the machine's cores, and so the
threads. A figure is the median of the evaluations after the first, which compiles. CPU time is that
of all processes together; others on the machine disturb it less. --against: a checkout of another
commit, which takes turns with this one.
"""

import argparse
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent.parent
BATCH, TURNS = 128, 3


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--pictures", type=int, default=1024)
  parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
  parser.add_argument("--against", type=pathlib.Path, help="a checkout of another commit")
  parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.worker:
    file, rank, count, port = options.worker
    return evaluate(file, int(rank), int(count), port)
  roots = [root.resolve() for root in (options.against, HERE) if root is not None]
  print("| processes | checkout | pictures/s | ms of CPU a picture |\n|---|---|---|---|")
  with tempfile.TemporaryDirectory() as folder:
    file = str(pathlib.Path(folder) / "pictures.parquet")
    write(file, options.pictures)
    for count in options.processes:
      for root in roots:
        wall, cpu = measured(root, file, count)
        rate, each = options.pictures / wall, 1000 * cpu / options.pictures
        print(f"| {count} | {root.name} | {rate:,.0f} | {each:.1f} |", flush=True)


def write(file: str, pictures: int):
  import cv2
  import numpy as np
  import pyarrow as pa
  import pyarrow.parquet as pq

  rng, encoded = np.random.default_rng(0), []
  for _ in range(16):
    picture = cv2.resize(rng.integers(0, 256, (64, 64, 3), np.uint8), (500, 375))
    encoded.append(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 87])[1].tobytes())
  captions = [[f"picture {i}, caption {k}" for k in range(3)] for i in range(pictures)]
  rows = {"image": [encoded[i % 16] for i in range(pictures)], "captions": captions}
  pq.write_table(pa.table(rows), file, row_group_size=256)


def measured(root: pathlib.Path, file: str, count: int) -> tuple[float, float]:
  """(seconds, seconds of CPU) of an evaluation by `count` processes of the siglax at `root`."""
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = str(s.getsockname()[1])
  command = [sys.executable, __file__, "--worker", file]
  started = [
    subprocess.Popen(
      [*command, str(rank), str(count), port],
      env=os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"},
      stdout=subprocess.PIPE,
      text=True,
    )
    for rank in range(count)
  ]
  outputs = [process.communicate()[0] for process in started]
  if any(process.returncode for process in started):
    raise SystemExit(f"{root}: a process failed")
  walls, cpus = zip(*(json.loads(output.splitlines()[-1]) for output in outputs))
  return max(walls), sum(cpus)


def evaluate(file: str, rank: int, count: int, port: str):
  import jax

  if count > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", count, rank)
  from siglax import config as config_lib
  from siglax import models
  from siglax.data.text import TextProcessor
  from siglax.devices import cores
  from siglax.devices import mesh as mesh_lib
  from siglax.training import evaluation

  config, text = config_lib.load(str(HERE / "tests" / "tiny.py")), TextProcessor(length=12)
  config.image.size, config.model.image.patch, config.eval.batch_size = 224, 32, BATCH
  config = config_lib.resolve(config, text)
  config.loader.threads = max(1, cores.usable() // count)
  data = {"source": "parquet", "path": file}
  config.eval.tasks = ({"kind": "retrieval", "name": "x", "data": data},)
  model, mesh = models.build(config.model), mesh_lib.make()
  params = jax.jit(model.init, out_shardings=mesh_lib.replicated(mesh))(jax.random.key(0))
  evaluator, seconds = evaluation.Evaluator(config, model, text, mesh), []
  for _ in range(1 + TURNS):
    began = time.perf_counter(), time.process_time()
    evaluator(params)
    seconds.append((time.perf_counter() - began[0], time.process_time() - began[1]))
  print(json.dumps([statistics.median(x) for x in zip(*seconds[1:])]))


if __name__ == "__main__":
  main()
