"""Fine-tuning with and without a hold (config.optim.hold): what it gains, and what it forgets.

    siglax train --config configs/quickstart.py:steps=300 --workdir runs/quick
    python benchmarks/finetune.py --from runs/quick --train flickr_train.parquet \\
      --test flickr_val.parquet

Each row is the mean over the seeds, ± half of their range: after --steps updates of the weights on
--train, from the towers of --from, with a fresh Adam and no warmup. The hold comes before these
updates. "before" are the towers as they are. Columns: the loss on --test; among its pictures and
captions recall@5, as docs/metrics.md has it, both ways; what is left of the quickstart: zero-shot
top-1 over its 48 classes; and the largest loss of the first ten updates.
"""

import argparse
import contextlib
import pathlib
import sys
import tempfile

import numpy as np

from siglax import config as config_lib
from siglax.runs import folder as folder_lib
from siglax.runs import records
from siglax.tower import origin
from siglax.training import loop
from siglax.training import run as run_lib

METRICS = {
  "test loss": "eval/test/loss",
  "text R@5": "eval/retrieval/text_retrieval_recall@5",
  "image R@5": "eval/retrieval/image_retrieval_recall@5",
  "quickstart acc1": "eval/classes_seen/acc1",
}


def make(arguments, lr: float, hold: int, seed: int):
  """The config of one run."""
  c = origin.config_from(arguments.source)
  c.seed, c.batch_size, c.eval.batch_size = seed, 100, 100
  c.text.length = 80  # captions of people are longer than those of the quickstart
  config_lib.set_duration(c, "total", steps=arguments.steps + hold)
  config_lib.set_duration(c, "optim.hold", steps=hold)
  config_lib.set_duration(c, "log.every", steps=1)
  config_lib.set_duration(c, "checkpoint.every", steps=1000)
  config_lib.set_duration(c, "eval.every", steps=1000)
  c.optim.lr, c.optim.weight_decay, c.loader.threads = lr, 0.0, 1
  c.data = ({"source": "parquet", "path": arguments.train},)
  test = {"source": "parquet", "path": arguments.test}
  before = folder_lib.read_config(arguments.source).eval.tasks
  c.eval.tasks = (
    {"kind": "loss", "name": "test", "data": test, "examples": 100},
    {"kind": "retrieval", "name": "retrieval", "data": test, "examples": 100},
    *(task for task in before if task["name"] == "classes_seen"),
  )
  return c


def row(name: str, runs: list[dict[str, float]]) -> str:
  """A line of the table."""
  cells = []
  for column in runs[0]:
    values = np.array([run[column] for run in runs])
    spread = f" ± {np.ptp(values) / 2:.3f}" if len(values) > 1 else ""
    cells.append(f"{values.mean():.3f}{spread}")
  return f"| {name} | {' | '.join(cells)} |"


def run(config, folder: pathlib.Path) -> dict[str, float]:
  """Trains, and gives the values of the columns."""
  # The summary of a run is no part of the table.
  with contextlib.redirect_stdout(sys.stderr):
    evaluated = loop.train(config, folder)
  losses = [r["loss"] for r in records.read(folder) if "loss" in r]
  hold = config.optim.hold_steps
  found = {name: evaluated[key] for name, key in METRICS.items()}
  return found | {"first losses": max(losses[hold : hold + 10])}


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--from", dest="source", required=True, help="run of configs/quickstart.py")
  parser.add_argument("--train", required=True)
  parser.add_argument("--test", required=True)
  parser.add_argument("--steps", type=int, default=70)
  parser.add_argument("--hold", type=int, default=20)
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--lr", type=float, nargs="+", default=[3e-3, 3e-4])
  arguments = parser.parse_args()
  columns = (*METRICS, "first losses")
  print(f"| lr, hold | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}", flush=True)
  with tempfile.TemporaryDirectory() as scratch:
    folder = pathlib.Path(scratch)
    made = run_lib.Run(make(arguments, arguments.lr[0], 0, 0), folder / "before")
    found = made.evaluate(made.initial_state().evaluated)
    print(row("before", [{name: found[key] for name, key in METRICS.items()}]) + " – |", flush=True)
    for lr in arguments.lr:
      for hold in (0, arguments.hold):
        runs = [
          run(make(arguments, lr, hold, seed), folder / f"{lr}-{hold}-{seed}")
          for seed in range(arguments.seeds)
        ]
        print(row(f"{lr:g}, {hold} steps", runs), flush=True)


if __name__ == "__main__":
  main()
