"""Pictures a second of an evaluation, by one and by several processes of this machine, and beside
what decoding alone and embedding alone make of the same pictures.

    python benchmarks/evaluation.py
    python benchmarks/evaluation.py --against ../before --processes 1 2
    python benchmarks/evaluation.py --overlap --pictures 2000

JPEGs of 500×375, made here, in a Parquet file with three captions each; a retrieval task with small
towers, so that decoding is most of the work. The processes share the machine's cores, and so the
threads. A figure is the median of the evaluations after the first, which compiles. CPU time is that
of all processes together; others on the machine disturb it less. --against: a checkout of another
commit, which takes turns with this one.

--overlap has three measures take turns in one process, each over all pictures: decoding alone, by
as many threads; embedding alone, of one batch that is on the device, again and again; and the
evaluation's own embedding, which does both. Rates are medians over the turns. "evaluation / slower"
is the evaluation's rate as a share of the slower of the other two. On a CPU decoding and embedding
share the cores, so that an evaluation takes the sum of both; "cores allow" is the share that this
leaves, and a device of its own allows 1. "CPU / sum" is the CPU time of the evaluation over that of
the other two together: what overlapping costs, whoever else keeps the cores busy.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent.parent
BATCH, TURNS = 128, 3
# Of --overlap: towers whose embedding takes far less than decoding, about as long, and far more.
TOWERS = {
  "tiny/32": {"patch": 32},
  "Ti/32, 4 layers": {"patch": 32, "width": 192, "depth": 4, "heads": 3, "mlp_dim": 768},
  "S/32": {"patch": 32, "width": 384, "depth": 12, "heads": 6, "mlp_dim": 1536},
}


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--pictures", type=int, default=1024)
  parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
  parser.add_argument("--against", type=pathlib.Path, help="a checkout of another commit")
  parser.add_argument("--overlap", action="store_true", help="beside decoding and embedding alone")
  parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.worker:
    file, rank, count, port = options.worker
    return evaluate(file, int(rank), int(count), port)
  if options.overlap:
    return overlap(options.pictures)
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


def machine() -> str:
  """The processor, its cores, and how busy others keep them."""
  name = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
  load = os.getloadavg()[0]
  return f"{name[1] if name else '?'}, {len(os.sched_getaffinity(0))} cores, load {load:.1f} before"


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


def prepared(**image):
  """(config, evaluator, params) with the tiny towers of the tests at 224 px; image: fields of the
  image tower.
  """
  import jax

  from siglax import config as config_lib
  from siglax import models
  from siglax.data.text import TextProcessor
  from siglax.devices import mesh as mesh_lib
  from siglax.training import evaluation

  config, text = config_lib.load(str(HERE / "tests" / "tiny.py")), TextProcessor(length=12)
  config.image.size, config.eval.batch_size = 224, BATCH
  config.loader.threads = None
  for name, value in image.items():
    config.model.image[name] = value
  config = config_lib.resolve(config, text)
  model, mesh = models.build(config.model), mesh_lib.make()
  params = jax.jit(model.init, out_shardings=mesh_lib.replicated(mesh))(jax.random.key(0))
  return config, lambda: evaluation.Evaluator(config, model, text, mesh), params


def evaluate(file: str, rank: int, count: int, port: str):
  import jax

  if count > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", count, rank)
  from siglax.devices import cores

  config, make, params = prepared(patch=32)
  config.loader.threads = max(1, cores.usable() // count)
  data = {"source": "parquet", "path": file}
  config.eval.tasks = ({"kind": "retrieval", "name": "x", "data": data},)
  evaluator, seconds = make(), []
  for _ in range(1 + TURNS):
    began = time.perf_counter(), time.process_time()
    evaluator(params)
    seconds.append((time.perf_counter() - began[0], time.process_time() - began[1]))
  print(json.dumps([statistics.median(x) for x in zip(*seconds[1:])]))


def overlap(pictures: int):
  """Prints what --overlap says."""
  print(f"{machine()}; batches of {BATCH}, {pictures:,} pictures of 224 px in a turn\n")
  print(
    "| tower | decoding/s | embedding/s | evaluation/s | evaluation / slower | cores allow | "
    "CPU / sum |\n|---|---|---|---|---|---|---|"
  )
  with tempfile.TemporaryDirectory() as folder:
    file = str(pathlib.Path(folder) / "pictures.parquet")
    write(file, pictures)
    for name, fields in TOWERS.items():
      walls, cpus = measures(file, pictures, fields)
      decoding, embedding, evaluation = (pictures / wall for wall in walls)
      slower = min(decoding, embedding)
      allowed = 1 / (1 / decoding + 1 / embedding) / slower
      print(
        f"| {name} | {decoding:,.0f} | {embedding:,.0f} | {evaluation:,.0f} | "
        f"{evaluation / slower:.2f} | {allowed:.2f} | {cpus[2] / (cpus[0] + cpus[1]):.2f} |",
        flush=True,
      )


def measures(file: str, pictures: int, fields: dict) -> list[list[float]]:
  """(seconds, seconds of CPU), medians of TURNS, of decoding alone, embedding alone and the
  evaluation's embedding.
  """
  import jax
  import numpy as np

  from siglax import data as data_lib
  from siglax.data import sources
  from siglax.devices import cores
  from siglax.devices import mesh as mesh_lib
  from siglax.evals import ranking

  config, make, params = prepared(**fields)
  examples = data_lib.EvalExamples(sources.open_source({"source": "parquet", "path": file}), config)
  evaluator = make()
  embedder = evaluator._embedder
  embedder.params = params
  batch = np.stack([examples[i]["image"] for i in range(BATCH)])
  batch = mesh_lib.to_global(evaluator._mesh, batch)

  def decode():
    with concurrent.futures.ThreadPoolExecutor(cores.usable()) as pool:
      spans = np.array_split(np.arange(pictures), 8 * cores.usable())
      list(pool.map(lambda span: [examples[int(i)] for i in span][:0], spans))

  def embed():
    with jax.set_mesh(evaluator._mesh):
      found = [embedder._embed_image(params, batch) for _ in range(-(-pictures // BATCH))]
    jax.block_until_ready(found)

  def evaluate():
    ranking.embed_images(examples, range(pictures), embedder)

  evaluate(), embed()  # compiles
  took = {decode: [], embed: [], evaluate: []}
  for _ in range(TURNS):
    for what, of in took.items():
      began = time.perf_counter(), time.process_time()
      what()
      of.append((time.perf_counter() - began[0], time.process_time() - began[1]))
  return [[statistics.median(x) for x in kind] for kind in zip(*(zip(*of) for of in took.values()))]


if __name__ == "__main__":
  main()
