"""Linear probes of siglax and of scikit-learn on raw pixels, at the same weight decay.

    python benchmarks/probe.py --train cifar10_train.parquet --test cifar10_test.parquet

Rows are the pixels in 0..1, as they are, with no tower. Both minimise mean cross-entropy +
decay/2 · ‖W‖² (scikit-learn's C is 1 / (n · decay)), or squared errors + decay · ‖W‖² (its alpha is
n · decay). scikit-learn must be installed.
"""

import argparse
import time

import cv2
import numpy as np

from siglax import data
from siglax.evals import linear


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--train", required=True)
  parser.add_argument("--test", required=True)
  parser.add_argument("--examples", type=int, help="of train; all by default")
  parser.add_argument("--decays", type=float, nargs="+", default=[0.1, 0.01])
  options = parser.parse_args()
  z, y = pixels(options.train, options.examples)
  test_z, test_y = pixels(options.test, None)
  classes = int(y.max()) + 1
  print(f"{len(z):,} pictures to learn from, {len(test_z):,} to name, width {z.shape[1]:,}")
  print("| solver | decay | siglax | seconds | scikit-learn | seconds |\n|---|---|---|---|---|---|")
  for decay in options.decays:
    for name, ours, theirs in solvers(decay, len(z)):
      began = time.perf_counter()
      mine = linear.accuracy(ours(z, y, classes)(decay), test_z, test_y)
      mid = time.perf_counter()
      other = theirs.fit(z, y).score(test_z, test_y)
      end = time.perf_counter()
      cells = f"{mine:.2%} | {mid - began:.0f} | {other:.2%} | {end - mid:.0f}"
      print(f"| {name} | {decay:g} | {cells} |", flush=True)


def solvers(decay: float, n: int):
  from sklearn import linear_model

  logistic = linear_model.LogisticRegression(C=1 / (n * decay), max_iter=2000)
  ridge = linear_model.RidgeClassifier(alpha=n * decay)
  return ("ridge", linear.Ridge, ridge), ("logistic", linear.Logistic, logistic)


def pixels(path: str, count: int | None) -> tuple[np.ndarray, np.ndarray]:
  source = data.open_source({"source": "parquet", "path": path})
  examples = [source[i] for i in range(len(source) if count is None else count)]
  decode = lambda image: cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
  z = np.stack([decode(example["image"]).ravel() for example in examples])
  return z.astype(np.float32) / 255, np.array([example["label"] for example in examples])


if __name__ == "__main__":
  main()
