"""Time and memory of a retrieval task over many embeddings, and whether it is brute force's.

    python benchmarks/retrieval.py
    python benchmarks/retrieval.py --images 2000 --texts 10000 --width 64

No tower and no picture: random embeddings, in which a text lies nearer to its own image than to
most others, go through the kind "retrieval" as those of a tower would. Peak memory is that of the
whole process, jax and the embeddings included. A few images and texts, drawn at random, are ranked
against all others by numpy in float64 as well.
"""

import argparse
import resource
import time

import numpy as np

from siglax.evals import retrieval

CHECKED = 300  # images, and texts, that are ranked by brute force
NEAR = 0.3  # of a text to its image, where the noise has length 1


class Examples:
  """Image i with its captions, which are the numbers of its texts."""

  def __init__(self, images: int, each: int):
    self._images, self._each = images, each

  def __len__(self) -> int:
    return self._images

  def __getitem__(self, i: int) -> dict:
    texts = range(i * self._each, (i + 1) * self._each)
    return {"image": None, "captions": list(map(str, texts)), "label": None}


class Embedder:
  """Gives embeddings that are there already."""

  def __init__(self, zimg, ztxt):
    self._zimg, self._ztxt = zimg, ztxt

  def images(self, get, count):
    for i in range(count):
      get(i)
    return self._zimg

  def texts(self, texts):
    return self._ztxt


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--images", type=int, default=200_000)
  parser.add_argument("--texts", type=int, default=1_000_000, help="a multiple of the images")
  parser.add_argument("--width", type=int, default=64)
  options = parser.parse_args()
  rng = np.random.default_rng(0)
  each = options.texts // options.images
  zimg = unit(rng.standard_normal((options.images, options.width), np.float32))
  noise = unit(rng.standard_normal((options.images * each, options.width), np.float32))
  noise += NEAR * np.repeat(zimg, each, axis=0)
  ztxt = unit(noise)
  del noise
  data = Examples(options.images, each)
  began, cpu = time.perf_counter(), time.process_time()
  found = retrieval.evaluate(
    data, Embedder(zimg, ztxt), None, None, examples=None, distinct=False, captions_per_image=None
  )
  wall, cpu = time.perf_counter() - began, time.process_time() - cpu
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  print("| images | texts | width | seconds | seconds of CPU | peak memory |")
  print("|---|---|---|---|---|---|")
  sizes = f"| {len(zimg):,} | {len(ztxt):,} | {options.width}"
  print(f"{sizes} | {wall:,.0f} | {cpu:,.0f} | {peak:.2f} GiB |")
  for name, value in found.items():
    if name in retrieval.KIND.metrics:
      print(f"{name}: {value:.4f}")
  wrong = 0
  for i in rng.integers(len(zimg), size=CHECKED):
    similarity = ztxt @ zimg[i].astype(np.float64)
    wrong += differ(found, "text", i, place(similarity, slice(i * each, (i + 1) * each)))
    j = rng.integers(len(ztxt))
    similarity = zimg @ ztxt[j].astype(np.float64)
    wrong += differ(found, "image", j, place(similarity, slice(j // each, j // each + 1)))
  print(f"of {2 * CHECKED} queries ranked by brute force, {wrong} differ")


def place(similarity: np.ndarray, own: slice) -> int:
  """That of the best own item, from 0."""
  return int(np.sum(similarity > similarity[own].max()))


def differ(found: dict, wanted: str, i: int, rank: int) -> bool:
  names = {k: f"each/{wanted}_retrieval_recall@{k}" for k in retrieval.RECALL_AT}
  return any(found[name][i] != (rank < k) for k, name in names.items())


def unit(x: np.ndarray) -> np.ndarray:
  x /= np.linalg.norm(x, axis=1, keepdims=True)
  return x


if __name__ == "__main__":
  main()
