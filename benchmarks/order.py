"""What order="shards" costs in randomness: how often two examples of a batch are of one shard.

    python benchmarks/order.py
    python benchmarks/order.py --plot docs/orders.png

Of 1,000,000 examples in 1,000 shards, batches of 4,096 over one epoch. Prints a markdown table by
`shuffle_shards`: the shards that a batch has examples of, and how many times as often as by chance
two examples of a batch are of one shard. The plot shows for each place of an epoch which example
stands there, of each of three orders.
"""

import argparse

import matplotlib
import numpy as np

from siglax.data import order

EXAMPLES, SHARDS, BATCH = 1_000_000, 1000, 4096
OPEN = (1, 4, 16, 64, 256, SHARDS)


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--plot", metavar="FILE.png")
  arguments = parser.parse_args()
  sizes = np.full(SHARDS, EXAMPLES // SHARDS)
  places = {count: epoch(sizes, count) for count in OPEN}
  print("| shuffle_shards | shards in a batch | pairs of one shard, × chance |\n|---|---|---|")
  for count, found in places.items():
    batches = found[: EXAMPLES // BATCH * BATCH].reshape(-1, BATCH) // (EXAMPLES // SHARDS)
    counts = np.array([np.bincount(batch, minlength=SHARDS) for batch in batches])
    pairs = (counts * (counts - 1)).sum(1).mean() / (BATCH * (BATCH - 1))
    chance = (EXAMPLES // SHARDS - 1) / (EXAMPLES - 1)
    name = "all (a permutation of all)" if count == SHARDS else str(count)
    print(f"| {name} | {(counts > 0).sum(1).mean():,.0f} | {pairs / chance:.1f} |")
  if arguments.plot:
    plot(places, arguments.plot)


def epoch(sizes, count: int) -> np.ndarray:
  shuffle = order.ShardShuffle(sizes, 0, count)
  return np.array([shuffle[k] for k in range(EXAMPLES)])


def plot(places, file: str):
  matplotlib.use("Agg")
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(1, 3, figsize=(9, 3), sharey=True, layout="constrained")
  for axis, count in zip(axes, (16, 64, SHARDS)):
    shown = np.arange(0, EXAMPLES, 100)
    axis.plot(shown / 1e6, places[count][shown] / 1e6, ".", markersize=0.7, color="#2a78d6")
    name = "a permutation of all" if count == SHARDS else f"shuffle_shards={count}"
    axis.set_title(name, fontsize=10)
    axis.set_xlabel("place in the epoch, millions", fontsize=9)
  axes[0].set_ylabel("example, millions", fontsize=9)
  figure.savefig(file, dpi=120)


if __name__ == "__main__":
  main()
