"""Time, compiled memory and FLOPs of one training step.

    python benchmarks/step.py                       the shape big_vision was measured at; its own time is 1.6 s a step
    python benchmarks/step.py --config configs/quickstart.py

Prints the median of --repeat steps, one line of JSON last. big_vision's figure: its two-tower model of the same shape,
the same dense sigmoid loss, batch 128, float32, on two CPU cores (../shared/reference of this project's developers).
"""

import argparse
import json
import statistics
import time

import jax
import numpy as np

from siglax import config as config_lib
from siglax import mesh as mesh_lib
from siglax import models, optim
from siglax import state as state_lib
from siglax import step as step_lib
from siglax import train


def big_vision_shape():
  """Width 192; image depth 6, patch 4, 32×32, MAP; text depth 4, 16 tokens, vocabulary 4096; batch 128."""
  c = config_lib.default()
  c.batch_size = 128
  config_lib.set_duration(c, "total", steps=1000)
  c.image.size, c.text.length = 32, 16
  c.model.image.size = c.model.text.size = "Ti"
  c.model.image.depth, c.model.text.depth, c.model.image.patch = 6, 4, 4
  c.model.image.scan = c.model.text.scan = False  # as big_vision's default
  c.model.text.vocab_size, c.model.text.eos_id = 4096, 1
  c.loss.bias_init = -10.0
  return c


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--config", help="config file; the default is the shape big_vision was measured at")
  parser.add_argument("--repeat", type=int, default=20)
  arguments, rest = parser.parse_known_args()
  mesh_lib.keep_freed_memory()
  config = config_lib.load(arguments.config) if arguments.config else big_vision_shape()
  for word in rest:
    field, _, value = word.removeprefix("--config.").partition("=")
    config_lib.override(config, field, value)
  if config.model.text.vocab_size is None:
    from siglax import tower

    config = config_lib.resolve(config, tower.text_processor(config))
  mesh = mesh_lib.make(config.mesh.data, config.mesh.fsdp)
  model = models.build(config.model)
  params = jax.eval_shape(model.init, jax.random.key(0))
  tx, schedule = optim.make(config, params, 1000, 10)
  abstract = state_lib.abstract(model, tx, mesh)
  state = jax.jit(lambda key: state_lib.create(model.init(key), tx), out_shardings=jax.tree.map(lambda x: x.sharding, abstract))(
      jax.random.key(0)
  )
  rng, size = np.random.default_rng(0), config.image.size
  rows = mesh_lib.process_rows(config.batch_size)
  batch = mesh_lib.to_global(mesh, {
      "image": rng.integers(0, 256, (rows, size, size, 3), np.uint8),
      "tokens": rng.integers(0, config.model.text.vocab_size, (rows, config.text.length), np.int32),
      "label": np.arange(rows, dtype=np.int32),
      "weight": np.ones(rows, np.float32),
  })
  update = step_lib.make(config, model, tx, schedule, mesh, optim.frozen_mask(config, params))
  with jax.set_mesh(mesh):
    compiled = step_lib.jit(update, abstract, mesh).lower(abstract, batch).compile()
    times = []
    for _ in range(arguments.repeat + 1):
      start = time.perf_counter()
      state, metrics = jax.block_until_ready(compiled(state, batch))
      times.append(time.perf_counter() - start)
  print(json.dumps({
      "device": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
      "batch_size": config.batch_size,
      "parameters": sum(x.size for x in jax.tree.leaves(params)),
      "seconds_per_step": round(statistics.median(times[1:]), 4),
      "spread": [round(min(times[1:]), 4), round(max(times[1:]), 4)],
      "model_gflops_per_step": round(train.model_flops(config, model) / 1e9, 1),
      "temp_mib": round(compiled.memory_analysis().temp_size_in_bytes / 2**20, 1),
      "loss": round(float(metrics["loss"]), 4),
  }))


if __name__ == "__main__":
  main()
