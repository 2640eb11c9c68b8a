"""Whether two revisions train the same: four runs of 20 steps, their losses compared bit for bit.

    python benchmarks/same_losses.py between main HEAD
    python benchmarks/same_losses.py make main main.json
    python benchmarks/same_losses.py compare main.json head.json

"make" writes the losses of one revision, checked out in a worktree for the time that takes;
"compare" says where two files differ, and exits 1 if they do; "between" does both. It takes two
minutes of CPU for each revision.

The runs, all with scan=False; all but the quickstart read pictures that this script writes:

    quickstart   the quickstart's config, cut small
    resnet       a ResNet with the softmax loss
    sharded      four virtual devices, parameters split over two, micro-batches, averaged parameters
    lit          a text tower trained on the embeddings of a frozen image tower

A file holds {run: {metric: [value of each step]}} as hexadecimal floats, which lose nothing.
"""

import argparse
import importlib
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile

STEPS = 20
BATCH = 16
PICTURES = 96
METRICS = ("loss", "grad_norm", "scale", "bias")  # those of an evaluation are all compared
DEVICES = {"sharded": 4}


def main():
  raw = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
  commands = parser.add_subparsers(dest="command", required=True)
  between = commands.add_parser("between", help="make the losses of two revisions and compare them")
  between.add_argument("revisions", nargs=2, metavar="REVISION")
  make = commands.add_parser("make", help="write the losses of one revision")
  make.add_argument("revision")
  make.add_argument("file", type=pathlib.Path)
  compare = commands.add_parser("compare", help="compare two files")
  compare.add_argument("files", nargs=2, type=pathlib.Path, metavar="FILE")
  run = commands.add_parser("run", help="one run with the importable siglax; `make` starts it")
  run.add_argument("name", choices=tuple(RUNS))
  run.add_argument("file", type=pathlib.Path)
  arguments = parser.parse_args()
  if arguments.command == "between":
    sys.exit(report(*(losses_of(revision) for revision in arguments.revisions)))
  elif arguments.command == "make":
    arguments.file.write_text(json.dumps(losses_of(arguments.revision), indent=1) + "\n")
  elif arguments.command == "compare":
    sys.exit(report(*(json.loads(file.read_text()) for file in arguments.files)))
  else:
    arguments.file.write_text(json.dumps(RUNS[arguments.name]()))


def losses_of(revision: str) -> dict:
  """{run: {metric: [hexadecimal float]}} of a git revision, checked out for the time that takes."""
  root = pathlib.Path(__file__).resolve().parent.parent
  with tempfile.TemporaryDirectory() as folder:
    tree, made = pathlib.Path(folder) / "tree", pathlib.Path(folder) / "losses.json"
    worktree = ["git", "-C", root, "worktree"]
    subprocess.run([*worktree, "add", "--quiet", "--detach", tree, revision], check=True)
    try:
      losses = {}
      for name in RUNS:
        environment = os.environ | {
          "JAX_PLATFORMS": "cpu",
          "JAX_NUM_CPU_DEVICES": str(DEVICES.get(name, 1)),
          "PYTHONPATH": str(tree),
        }
        command = [sys.executable, pathlib.Path(__file__).resolve(), "run", name, made]
        subprocess.run(command, check=True, cwd=tree, env=environment)
        losses[name] = json.loads(made.read_text())
      return losses
    finally:
      subprocess.run([*worktree, "remove", "--force", tree], check=True)


def report(one: dict, other: dict) -> int:
  """Prints where two sets of losses differ, by run; the exit status, 1 where they do."""
  for name in sorted(one.keys() | other.keys()):
    a, b = one.get(name, {}), other.get(name, {})
    where = []
    for metric in sorted(a.keys() | b.keys()):
      pairs = list(itertools.zip_longest(a.get(metric, []), b.get(metric, [])))
      if other_at := [k for k, (x, y) in enumerate(pairs, start=1) if x != y]:
        where.append(f"{metric} differs in {len(other_at)} of {len(pairs)}, first in {other_at[0]}")
    if where:
      print(f"{name}: {'; '.join(where)}")
    else:
      last = float.fromhex(a["loss"][-1])
      print(f"{name}: the same, {sum(map(len, a.values()))} values, last loss {last}")
  return int(one != other)


def first_of(*names: str):
  """The first of these modules that there is: revisions differ in where it lies."""
  for name in names:
    try:
      return importlib.import_module(name)
    except ModuleNotFoundError as e:
      if not name.startswith(e.name):
        raise
  raise ModuleNotFoundError(f"this siglax has none of {', '.join(names)}")


def train(config) -> dict:
  """The metrics of a training, in a folder that is then gone."""
  with tempfile.TemporaryDirectory() as folder:
    return train_in(folder, config)


def train_in(folder, config) -> dict:
  from siglax import config as config_lib

  config_lib.set_duration(config, "total", steps=STEPS)
  config_lib.set_duration(config, "log.every", steps=1)
  config_lib.set_duration(config, "checkpoint.every", steps=STEPS)
  config.loader.threads = 1
  config.log.tensorboard = False
  first_of("siglax.training.loop", "siglax.train").train(config, folder)
  values = {}
  for line in (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines():
    for name, value in json.loads(line).items():
      if name in METRICS or name.startswith("eval/"):
        values.setdefault(name, []).append(float(value).hex())
  assert len(values["loss"]) == STEPS, values
  return values


def small(transformers=("image", "text")):
  """The default config with transformers of width 16, for pictures that `write_pictures` wrote."""
  from siglax import config as config_lib

  c = config_lib.default()
  c.batch_size = c.eval.batch_size = BATCH
  config_lib.set_duration(c, "optim.warmup", steps=2)
  c.image.size, c.text.length = 16, 12
  for tower in (c.model[name] for name in transformers):
    tower.width, tower.depth, tower.heads, tower.mlp_dim, tower.scan = 16, 2, 2, 32, False
  if "image" in transformers:
    c.model.image.patch = 8
  return c


def write_pictures(path, side: int):
  """A Parquet file of random pictures, PNG, each with two captions and a label."""
  import cv2
  import numpy as np
  import pyarrow as pa
  import pyarrow.parquet as pq

  draw = np.random.default_rng(0)
  pictures = draw.integers(256, size=(PICTURES, side, side, 3), dtype=np.uint8)
  words = "red green blue small large circle square star".split()
  captions = [[" ".join(draw.choice(words, 4)) for _ in range(2)] for _ in pictures]
  images = [cv2.imencode(".png", picture)[1].tobytes() for picture in pictures]
  labels = [i % 4 for i in range(PICTURES)]
  pq.write_table(pa.table({"image": images, "captions": captions, "label": labels}), path)


def quickstart():
  from siglax import config as config_lib

  c = config_lib.load("configs/quickstart.py", {})
  c.batch_size, c.eval.tasks = BATCH, ()
  config_lib.set_duration(c, "optim.warmup", steps=2)
  for tower in (c.model.image, c.model.text):
    tower.width, tower.heads, tower.mlp_dim, tower.scan = 32, 2, 64, False
  return train(c)


def resnet():
  c = small(("text",))
  with tempfile.TemporaryDirectory() as folder:
    write_pictures(data := f"{folder}/pictures.parquet", 64)
    c.data = ({"source": "parquet", "path": data},)
    c.model.image["variant" if "variant" in c.model.image else "size"] = "RN50"
    c.model.image.width = 8
    c.image.size, c.image.crop_min_area, c.image.flip = 64, 0.5, True
    c.loss.name, c.loss.positives = "softmax", "label"
    c.optim.clip_norm = 1.0
    return train(c)


def sharded():
  c = small()
  with tempfile.TemporaryDirectory() as folder:
    write_pictures(data := f"{folder}/pictures.parquet", 16)
    c.data = ({"source": "parquet", "path": data},)
    c.mesh.fsdp = 2
    c.train.microbatch, c.train.ema = 2, 0.9
    c.train.remat.image = "full"
    c.train.dtype = "bfloat16"
    c.loss.impl = "ring"
    c.optim.name = "adafactor"
    c.eval.tasks = ({"kind": "loss", "name": "test", "data": dict(c.data[0])},)
    return train(c)


def lit():
  with tempfile.TemporaryDirectory() as folder:
    write_pictures(data := f"{folder}/pictures.parquet", 16)
    first = small()
    first.data = ({"source": "parquet", "path": data},)
    train_in(f"{folder}/first", first)
    embed = first_of("siglax.tower.embed", "siglax.embed").embed
    embedded = f"{folder}/embedded.parquet"
    embed(f"{folder}/first", {"source": "parquet", "path": data}, embedded)
    c = small()
    c.seed = 1
    c.data = ({"source": "embeddings", "path": embedded},)
    c.model.init_from = f"{folder}/first:img"
    c.optim.lr_multipliers = (("image/.*", None), (".*", 1.0))
    c.eval.tasks = ({"kind": "loss", "name": "test", "data": {"source": "parquet", "path": data}},)
    return train(c)


RUNS = {run.__name__: run for run in (quickstart, resnet, sharded, lit)}

if __name__ == "__main__":
  main()
