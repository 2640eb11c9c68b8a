"""Prints how many built-in examples a second one core makes, captions included: median of several
runs.
"""

import argparse
import os
import statistics
import time

from siglax.data.shapes import Shapes


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--image-size", type=int, default=64, help="pixels")
  parser.add_argument("--examples", type=int, default=4000, help="examples of a run")
  parser.add_argument("--runs", type=int, default=5)
  arguments = parser.parse_args()
  if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
  rates = []
  for run in range(arguments.runs + 1):  # the first warms up
    dataset = Shapes("train", arguments.examples, arguments.image_size, seed=run)
    start = time.perf_counter()
    for i in range(arguments.examples):
      dataset[i]
    rates.append(arguments.examples / (time.perf_counter() - start))
  rates = sorted(rates[1:])
  size, median = arguments.image_size, statistics.median(rates)
  print(
    f"shapes {size}×{size}, one core: {median:,.0f} examples/s (median of {len(rates)} runs, "
    f"{rates[0]:,.0f} to {rates[-1]:,.0f})"
  )


if __name__ == "__main__":
  main()
