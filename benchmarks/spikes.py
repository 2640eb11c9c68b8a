"""Spikes of the gradient in the runs of a study: steps whose norm is more than five times the
median of the 50 steps before.

    python benchmarks/spikes.py studies/beta2 optim.lr optim.b2

A line a setting of the fields: the number of such steps in each of its runs, and their mean. Takes
a study whose log.every_steps is 1, as configs/ablate/beta2.py's.
"""

import argparse
import collections
import json
import pathlib
import statistics

from siglax import config as config_lib

TIMES, BEFORE = 5, 50


def spikes(norms: list[float]) -> int:
  return sum(
    norms[i] > TIMES * statistics.median(norms[i - BEFORE : i]) for i in range(BEFORE, len(norms))
  )


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
  parser.add_argument("study", type=pathlib.Path)
  parser.add_argument("fields", nargs="+", metavar="FIELD")
  options = parser.parse_args()
  found = collections.defaultdict(list)
  for folder in sorted((options.study / "runs").iterdir()):
    config = config_lib.from_json((folder / "config.json").read_text())
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    norms = [line["grad_norm"] for line in lines if "grad_norm" in line]
    found[tuple(config_lib.get(config, field) for field in options.fields)].append(spikes(norms))
  for values, counts in sorted(found.items()):
    setting = " ".join(f"{field}={value}" for field, value in zip(options.fields, values))
    print(f"{setting}: {counts}, mean {statistics.mean(counts):.1f}")


if __name__ == "__main__":
  main()
