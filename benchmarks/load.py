"""Memory of siglax.load: the peak resident size over the bytes of the parameters.

    python benchmarks/load.py CHECKPOINT        a Hugging Face folder, a big_vision .npz, an open_clip folder

On one CPU device the parameters themselves count once; the rest is what reading needs.
"""

from __future__ import annotations

import argparse
import os
import threading
import time

import jax

import siglax


def resident() -> int:
  """Bytes of this process in memory, pages of mapped files included (Linux)."""
  with open("/proc/self/statm") as f:
    return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Peak:
  """The highest resident size within a with block, sampled every two milliseconds."""

  def __enter__(self):
    self.bytes, self._running = resident(), True
    self._thread = threading.Thread(target=self._watch)
    self._thread.start()
    return self

  def _watch(self):
    while self._running:
      self.bytes = max(self.bytes, resident())
      time.sleep(0.002)

  def __exit__(self, *error):
    self._running = False
    self._thread.join()


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("checkpoint")
  path = parser.parse_args().checkpoint
  load = siglax.load  # imports what it needs, before anything is measured
  jax.numpy.zeros(1).block_until_ready()
  before, start = resident(), time.perf_counter()
  with Peak() as peak:
    tower = load(path)
    jax.block_until_ready(tower.params)
  size, more = sum(x.nbytes for x in jax.tree.leaves(tower.params)), peak.bytes - before
  print(
      f"{path}: parameters {size / 2**20:.0f} MiB, peak {more / 2**20:.0f} MiB = {more / size:.2f} of them, "
      f"{time.perf_counter() - start:.1f} s"
  )


if __name__ == "__main__":
  main()
