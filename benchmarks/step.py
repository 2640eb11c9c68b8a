"""Time, compiled memory and FLOPs of one training step.

    python benchmarks/step.py
    python benchmarks/step.py --config configs/quickstart.py

The first is the shape that big_vision was measured at; its own time is 1.6 s a step.

Prints the median of --repeat steps, one line of JSON last. big_vision's figure: its two-tower model
of the same shape, the same dense sigmoid loss, batch 128, float32, on two CPU cores
(../shared/reference of this project's developers).
"""

import argparse
import json
import statistics
import time

import jax
import numpy as np

from siglax import config as config_lib
from siglax.devices import host
from siglax.devices import mesh as mesh_lib
from siglax.runs import folder as folder_lib
from siglax.training import program


def big_vision_shape():
  """Width 192; image depth 6, patch 4, 32×32, MAP; text depth 4, 16 tokens, vocabulary 4096; batch
  128.
  """
  c = config_lib.default()
  c.batch_size = 128
  config_lib.set_duration(c, "total", steps=1000)
  c.image.size, c.text.length = 32, 16
  c.model.image.variant = c.model.text.variant = "Ti"
  c.model.image.depth, c.model.text.depth, c.model.image.patch = 6, 4, 4
  c.model.image.scan = c.model.text.scan = False  # as big_vision's default
  c.model.text.vocab_size, c.model.text.eos_id = 4096, 1
  c.loss.bias_init = -10.0
  return c


def prepare(config):
  """(program, compiled update, state, batch on the device) of a config; the batch is random."""
  if config.model.text.vocab_size is None:
    config = config_lib.resolve(config, folder_lib.text_processor(config))
  made = program.Program(config, epoch_examples=1)
  create = lambda key: made.create(made.model.init(key))
  state = jax.jit(create, out_shardings=jax.tree.map(lambda x: x.sharding, made.abstract_state))(
    jax.random.key(0)
  )
  rng, size = np.random.default_rng(0), config.image.size
  rows = config.batch_size
  batch = mesh_lib.to_global(
    made.mesh,
    {
      "image": rng.integers(0, 256, (rows, size, size, 3), np.uint8),
      "tokens": rng.integers(0, config.model.text.vocab_size, (rows, config.text.length), np.int32),
      "label": np.arange(rows, dtype=np.int32),
      "weight": np.ones(rows, np.float32),
    },
  )
  with jax.set_mesh(made.mesh):
    return made, made.update().lower(made.abstract_state, batch).compile(), state, batch


def parse(parser, default):
  """(arguments, config with its --config.a.b=value) of the command line; default() makes the config
  of none.
  """
  arguments, rest = parser.parse_known_args()
  config = config_lib.load(arguments.config) if arguments.config else default()
  for word in rest:
    field, _, value = word.removeprefix("--config.").partition("=")
    config_lib.override(config, field, value)
  return arguments, config


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--config", help="config file; the default is the shape big_vision was measured at"
  )
  parser.add_argument("--repeat", type=int, default=20)
  arguments, config = parse(parser, big_vision_shape)
  host.keep_freed_memory()
  made, compiled, state, batch = prepare(config)
  times = []
  for _ in range(arguments.repeat + 1):
    start = time.perf_counter()
    state, metrics = jax.block_until_ready(compiled(state, batch))
    times.append(time.perf_counter() - start)
  print(
    json.dumps(
      {
        "device": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
        "batch_size": config.batch_size,
        "parameters": sum(x.size for x in jax.tree.leaves(made.abstract_state.params)),
        "seconds_per_step": round(statistics.median(times[1:]), 4),
        "spread": [round(min(times[1:]), 4), round(max(times[1:]), 4)],
        "model_gflops_per_step": round(made.model_flops() / 1e9, 1),
        "temp_mib": round(compiled.memory_analysis().temp_size_in_bytes / 2**20, 1),
        "loss": round(float(metrics["loss"]), 4),
      }
    )
  )


if __name__ == "__main__":
  main()
