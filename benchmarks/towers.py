"""Time and memory of towers in and out: siglax.load and `siglax export` of a SigLIP B/16 with
random weights.

    python benchmarks/towers.py
    python benchmarks/towers.py --load CHECKPOINT

The first has 203.2M parameters, float32, 775 MiB; --size So400m takes 1.1B. CHECKPOINT is a Hugging
Face folder, a big_vision .npz or an open_clip folder.

Each runs in a process of its own on one CPU device. The peak is of the resident size, over the
bytes of the parameters, which count once themselves; the rest is what reading or writing needs. An
export loads first.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
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


def make(size: str, out: pathlib.Path):
  """A big_vision file of the named size with random weights, through siglax's own writer."""
  from siglax import config as config_lib
  from siglax import interop
  from siglax import models
  from siglax import tower
  from siglax.devices import mesh as mesh_lib

  c = config_lib.default()
  c.image.size = 224
  c.model.image.variant = c.model.text.variant = size
  c.model.text.vocab_size, c.model.text.eos_id, c.loss.bias_init = 32_000, 1, -10.0
  params = jax.jit(models.build(c.model).init)(jax.random.key(0))
  interop.FORMATS["big_vision"].write(
    tower.Tower(c, params, None, mesh_lib.make()), out, "float32", out
  )


def measure(what: str, function) -> None:
  from siglax.tower import export

  del export
  jax.numpy.zeros(1).block_until_ready()
  before, start = resident(), time.perf_counter()
  with Peak() as peak:
    size = function()
  seconds, more = time.perf_counter() - start, peak.bytes - before
  print(
    f"| {what} | {size / 2**20:.0f} | {more / 2**20:.0f} | {more / size:.2f} | {seconds:.1f} |",
    flush=True,
  )


def load(path) -> int:
  tower = siglax.load(path)
  jax.block_until_ready(tower.params)
  return sum(x.nbytes for x in jax.tree.leaves(tower.params))


def export(path, form, out) -> int:
  from siglax.tower import export

  export.export(path, form, out)
  files = [out] if pathlib.Path(out).is_file() else pathlib.Path(out).glob("*.safetensors")
  return sum(os.path.getsize(file) for file in files)


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--size", default="B")
  parser.add_argument("--make", metavar="FILE.npz", help="only make the random checkpoint")
  parser.add_argument("--load", metavar="CHECKPOINT", help="only load it")
  parser.add_argument(
    "--export", nargs=3, metavar=("CHECKPOINT", "FORMAT", "OUT"), help="only export it"
  )
  arguments = parser.parse_args()
  if arguments.make:
    make(arguments.size, pathlib.Path(arguments.make))
  elif arguments.load:
    measure(f"load {arguments.load}", lambda: load(arguments.load))
  elif arguments.export:
    measure(f"load and export {arguments.export[1]}", lambda: export(*arguments.export))
  else:
    print(
      "| what | parameters MiB | peak MiB | peak / parameters | seconds |\n|---|---|---|---|---|",
      flush=True,
    )
    again = lambda *words: subprocess.run(
      [sys.executable, os.path.abspath(__file__), *map(str, words)], check=True, cwd=folder
    )
    with tempfile.TemporaryDirectory() as folder:
      again("--size", arguments.size, "--make", "random.npz")
      again("--load", "random.npz")
      for form, out in (("hf", "hf"), ("big_vision", "again.npz")):
        again("--export", "random.npz", form, out)
      again("--load", "hf")


if __name__ == "__main__":
  main()
