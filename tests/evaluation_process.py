"""One of COUNT processes with two devices together that evaluate the Parquet files of FOLDER, over
gloo: `python evaluation_process.py RANK COUNT PORT FOLDER` prints, of each task, the metrics as
all their bits, and how many pictures this process read and decoded.
"""

import collections
import json
import os
import sys
import threading

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = str(2 // int(sys.argv[2]))

import jax

import tiny


class Counts:
  """How often the functions that it wraps were called, from any thread."""

  def __init__(self):
    self.of, self._lock = collections.Counter(), threading.Lock()

  def wrap(self, name, function):
    def counted(*arguments):
      with self._lock:
        self.of[name] += 1
      return function(*arguments)

    return counted


def main(rank, count, port, folder):
  if count > 1:
    jax.distributed.initialize(
      f"127.0.0.1:{port}", count, rank, heartbeat_timeout_seconds=10, shutdown_timeout_seconds=10
    )
  from siglax import config as config_lib
  from siglax import evals
  from siglax import models
  from siglax.data import images
  from siglax.data.sources import parquet
  from siglax.data.text import TextProcessor
  from siglax.devices import mesh as mesh_lib
  from siglax.training import evaluation

  counts = Counts()
  images.prepare = counts.wrap("decoded", images.prepare)
  parquet.Parquet.__getitem__ = counts.wrap("read", parquet.Parquet.__getitem__)
  config, text = tiny.get_config(), TextProcessor(length=12)
  config = config_lib.resolve(config, text)
  config.eval.batch_size, config.loader.threads = 96, 3
  model, mesh = models.build(config.model), mesh_lib.make()
  params = jax.jit(model.init, out_shardings=mesh_lib.replicated(mesh))(jax.random.key(0))
  train = {"source": "parquet", "path": f"{folder}/odd.parquet"}
  fields = {
    "zero_shot": {"classnames": ("red", "green", "blue", "yellow")},
    "knn": {"train": train},
    "linear_probe": {"train": train, "weight_decay": 0.01},
  }
  said = {}
  for name, kinds in (
    ("even", ("retrieval",)),
    ("odd", tuple(evals.KINDS)[:7]),
    ("broken", ("retrieval",)),
  ):
    data = {"source": "parquet", "path": f"{folder}/{name}.parquet"}
    config.eval.tasks = tuple(
      {"kind": kind, "name": f"{name}_{kind}", "data": data, **fields.get(kind, {})}
      for kind in kinds
    )
    counts.of = collections.Counter()
    try:
      metrics = evaluation.Evaluator(config, model, text, mesh)(params)
      said[name] = {"metrics": metrics, **counts.of}
    except ValueError as e:
      said[name] = str(e)
  print(json.dumps(said))


if __name__ == "__main__":
  main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
