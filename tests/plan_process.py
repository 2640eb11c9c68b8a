"""A plan of tiny towers for N devices, compiled and scaled: `python plan_process.py N FSDP IMPL
[SLICES [EXAMPLES]]`, with EXAMPLES of a loss that remembers so many.

Prints {"compiled", "scaled"}: what `plan._measure` and `scaled.measure` give.
"""

import json
import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = sys.argv[1]

from siglax import config as config_lib
from siglax.costs import collectives
from siglax.costs import plan
from siglax.costs import scaled

import tiny


def main(devices: int, fsdp: str, impl: str, slices: str = "1", examples: str = "0"):
  scaled.COMPILED = scaled.VIRTUAL = devices - 1  # so that measure scales
  config = tiny.get_config()
  config.eval.tasks = ()
  for field, value in {
    "model.text.vocab_size": "20000",  # large enough that fsdp splits its table
    "mesh.fsdp": fsdp,
    "mesh.slices": slices,
    "loss.impl": impl,
    "batch_size": str(2 * devices),
    "train.remat.image": "full",
    "loss.name": "global" if int(examples) else "sigmoid",
  }.items():
    config_lib.override(config, field, value)
  config = config_lib.resolve(config, plan._text(config))
  both = {
    "compiled": plan._measure(config, int(examples) or None),
    "scaled": scaled.measure(config, devices, int(examples) or None, plan._measure),
  }
  figures = {}
  for name, (report, traffic) in both.items():
    sums = {kind: (of.count, of.payload, of.sent) for kind, of in traffic.items()}
    crossing = [collectives.crossing(traffic, domain) for domain in (8, 72, devices // int(slices))]
    figures[name] = {**report, "traffic": sums, "crossing": crossing}
  print(json.dumps(figures))


if __name__ == "__main__":
  main(int(sys.argv[1]), *sys.argv[2:])
