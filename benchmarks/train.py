"""Throughput of training on accelerators: examples/s, MFU and peak memory, the data random and on
the device.

    python benchmarks/train.py --batches 512 1024 2048
    python benchmarks/train.py --batches 32768 --microbatch 1024
    python benchmarks/train.py --config configs/clip_b32.py --batches 4096 \\
      --config.train.remat.image=full

Without --config it is SigLIP B/16 at 224 px, 64 tokens, bfloat16.

Runs --steps steps back to back for each batch, and prints a line of JSON for each; "best" is the
last line. A batch that does not fit is reported and passed over. MFU counts three forward passes of
both towers over the device's bf16 peak.
"""

import argparse
import json
import time

import jax
from step import parse  # benchmarks/step.py
from step import prepare  # benchmarks/step.py

from siglax import config as config_lib
from siglax.config import checks
from siglax.devices import chips


def b16():
  """SigLIP B/16 at 224 px in bfloat16; nothing recomputed but what is between matrix products."""
  c = config_lib.default()
  config_lib.set_duration(c, "total", steps=1000)
  c.image.size, c.text.length, c.train.dtype = 224, 64, "bfloat16"
  c.model.image.variant = c.model.text.variant = "B"
  c.model.text.vocab_size, c.model.text.eos_id, c.loss.bias_init = 32_000, 1, -10.0
  return c


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--config", help="config file; SigLIP B/16 by default")
  parser.add_argument("--batches", type=int, nargs="+", default=[512, 1024, 2048])
  parser.add_argument("--microbatch", type=int, help="examples a device embeds at a time")
  parser.add_argument("--steps", type=int, default=50)
  arguments, config = parse(parser, b16)
  config.train.microbatch = arguments.microbatch
  results = []
  for batch_size in arguments.batches:
    config.batch_size = batch_size
    checks.check_train(config, jax.device_count())
    result = {
      "device": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
      "batch_size": batch_size,
      "microbatch": arguments.microbatch,
    }
    try:
      results.append(result | measure(config, arguments.steps))
    except jax.errors.JaxRuntimeError as e:
      if "RESOURCE_EXHAUSTED" not in str(e):
        raise
      print(json.dumps(result | {"error": "out of memory"}), flush=True)
      continue
    print(json.dumps(results[-1]), flush=True)
  if results:
    print(json.dumps({"best": max(results, key=lambda r: r["examples_per_sec"])}))


def measure(config, steps):
  made, compiled, state, batch = prepare(config)
  for _ in range(3):
    state, metrics = compiled(state, batch)
  jax.block_until_ready(metrics)
  start = time.perf_counter()
  for _ in range(steps):
    state, metrics = compiled(state, batch)
  jax.block_until_ready(metrics)
  seconds = (time.perf_counter() - start) / steps
  device = jax.devices()[0]
  peak, memory = (
    chips.peak_flops(device),
    (device.memory_stats() or {}).get("peak_bytes_in_use"),
  )
  flops = made.model_flops()
  return {
    "steps": steps,
    "seconds_per_step": round(seconds, 5),
    "examples_per_sec": round(config.batch_size / seconds, 1),
    "model_tflops_per_sec_per_device": round(flops / seconds / jax.device_count() / 1e12, 3),
    "mfu": None if peak is None else round(flops / seconds / jax.device_count() / peak, 4),
    "peak_memory_gib": None if memory is None else round(memory / 2**30, 2),
    "temp_gib": round(compiled.memory_analysis().temp_size_in_bytes / 2**30, 3),
    "loss": round(float(metrics["loss"]), 4),
  }


if __name__ == "__main__":
  main()
