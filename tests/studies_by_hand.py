"""A study folder written by hand: runs whose values are known."""

import json
import pathlib

import numpy as np

from siglax import config as config_lib
from siglax.runs import each as each_lib
from siglax.runs import history
from siglax.runs import records
from siglax.studies import folder as folder_lib

LOSSES = {"sigmoid": 0.0, "softmax": 0.03, "hinge": -0.06}
BATCHES = (32, 64, 128, 256)
SEEDS = (0, 1, 2)
METRICS = ("zs/acc1", "zs/acc5", "val/image_retrieval_recall@1")


def accuracy(loss: str, batch: int) -> float:
  return 0.5 + LOSSES[loss] + 0.05 * np.log2(batch / 32)


def write_run(folder: pathlib.Path, values: dict, seed: int, examples: int, ended="finished"):
  """A run folder with 20 log lines and four evaluations."""
  folder.mkdir(parents=True)
  config = config_lib.default()
  for field, value in (values | {"seed": seed}).items():
    config_lib.set_field(config, field, value)
  (folder / "config.json").write_text(config_lib.to_json(config))
  batch, loss = config.batch_size, config.loss.name
  rng = np.random.default_rng([seed, batch, *map(ord, loss)])
  # Some examples are hard for all runs, as those of a real evaluation are.
  hard = np.random.default_rng(7).random(examples)
  p = accuracy(loss, batch) + rng.normal(0, 0.01)
  each = {
    name: np.float32(0.5 * hard + 0.5 * rng.random(examples) < p - 0.02 * k)
    for k, name in enumerate(METRICS)
  }
  (folder / each_lib.FILE).write_bytes(each_lib.encode(each))
  lines, steps = [], 20 * 1024 // batch
  for k in range(1, 21):
    step = steps * k // 20
    at = {"step": step, "examples": step * batch}
    noise = rng.normal(0, 0.02)
    values = {"loss": 3 / k**0.5 + noise, "scale": 10 + k + noise, "bias": -10 + 0.1 * k + noise}
    lines.append(at | values)
    if k % 5 == 0:
      share = k / 20
      of_each = {f"eval/{name}": float(np.mean(x)) * share for name, x in each.items()}
      of_each["eval/val/alignment"] = 2 * batch**-0.2 * (20 / k) ** 0.1 + noise / 10
      lines.append(at | of_each | {"eval/val/loss": np.log(batch) / k**0.5 + noise})
  lines.append(
    {"step": steps, "examples": steps * batch, "cost/flops": 10**9, "cost/peak_bytes": 2 * 10**8}
  )
  (folder / records.FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
  start = {"start": 1, "host": "here", "first_step": 0, "last_step": steps, "ended": ended}
  start |= {"seconds": {"init": 1.0, "step": 20.0 + rng.random()}}
  (folder / history.FILE).write_text(json.dumps(start) + "\n")


def write(folder: pathlib.Path, losses=tuple(LOSSES), batches=BATCHES, examples=400):
  """A study of losses and batch sizes, with the baseline sigmoid. The last runs of hinge failed,
  were stopped, and are missing.
  """
  runs = []
  for loss in losses:
    for batch in batches:
      for seed in SEEDS:
        values = {"loss.name": loss, "batch_size": batch}
        name = f"loss.name={loss},batch_size={batch},seed={seed}"
        command = f"siglax train --config configs/x.py --config.loss.name={loss}"
        runs.append({"name": name, "values": values, "seed": seed, "command": command})
  study = {
    "config": "configs/ablate/losses.py",
    "overrides": {"seeds": "(0, 1, 2)"},
    "fields": {"loss.name": list(losses), "batch_size": list(batches)},
    "seeds": list(SEEDS),
    "baseline": {"loss.name": "sigmoid"},
    "equal": "examples",
    "runs": [run | {"steps": 100, "flops": 10**9, "parameters": 1000} for run in runs],
    "trunks": [],
    "environment": {"siglax": "0.1.0", "jax": "0.10.2", "device": "cpu"},
  }
  folder.mkdir(parents=True)
  folder_lib.write(folder, study)
  for run in runs:
    left_out = run["name"].endswith("hinge,batch_size=256,seed=2")
    if left_out:
      continue
    ends = {"seed=0": "FloatingPointError: loss=nan at step 7", "seed=1": "SIGTERM"}
    of_hinge, _, seed = run["name"].rpartition(",")
    ended = ends.get(seed) if of_hinge.endswith("hinge,batch_size=256") else "finished"
    path = folder / folder_lib.RUNS / run["name"]
    write_run(path, run["values"], run["seed"], examples, ended)
  if "hinge" in losses and 256 in batches:
    failed = folder_lib.failed_file(folder, "loss.name=hinge,batch_size=256,seed=0")
    failed.parent.mkdir(exist_ok=True)
    failed.write_text("FloatingPointError: loss=nan at step 7\n")
  return study


if __name__ == "__main__":
  import sys

  write(pathlib.Path(sys.argv[1]))
