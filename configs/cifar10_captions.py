"""Small pictures with captions and labels: CIFAR-10, or your own of about 32 pixels.

    siglax train \\
      --config configs/cifar10_captions.py:train=cifar10_train.parquet,test=cifar10_test.parquet \\
      --workdir runs/cifar10

train and test may be any data of docs/data.md: a folder of pictures with text files, tars, CSV and
so on. Columns of Parquet: image (JPEG or PNG bytes), caption (or captions, a list) and, if there
are any, label (int), with class names in the schema's metadata "classes". This config looks at the
data:

- train has labels: they say which texts match a picture (config.loss.positives, as UniCL does),
  because with few different captions most pairs of a batch are not really negatives. Without
  labels, a picture matches its own text alone.
- test has labels and class names: evaluation is zero-shot classification. Otherwise it is retrieval
  among 1,000 captions; --config.eval.tasks.0.kind=zero_shot with
  --config.eval.tasks.0.classnames="('cat','dog')" names classes that the data do not.
"""

import pyarrow.parquet as pq

from siglax import config as config_lib
from siglax.config import lookups
from siglax.data import paths
from siglax.data import sources


def get_config(
  train: str = "cifar10_train.parquet", test: str = "cifar10_test.parquet", epochs: float = 12
):
  c = config_lib.default()
  c.batch_size = 128
  config_lib.set_duration(c, "total", epochs=epochs)
  c.data = (lookups.spec_of(train),)
  c.loader.threads = 1  # small pictures: more threads wait for each other
  c.image.size = 32
  c.image.pad = 3
  c.image.crop_min_area = 0.6
  c.image.flip = True  # captions that name sides want this off
  # the built-in tokenizer spells words it does not know; `siglax tokenizer` makes a better one
  c.text.length = 32
  c.loss.positives = "label" if _holds(train, classes=False) else "pair"
  image, text = c.model.image, c.model.text
  # Three 3×3 convolutions, then 16 positions: on small data and a short schedule far ahead of
  # linear patches.
  image.stem, image.patch, image.pool, image.scan = "conv", 8, "mean", False
  image.width, image.depth, image.heads, image.mlp_dim = 192, 4, 6, 576
  text.width, text.depth, text.heads, text.mlp_dim = 64, 1, 4, 256
  text.pool = "mean"
  c.model.embed_dim = 64
  c.optim.name = "muon"
  c.optim.lr = 3e-3
  c.optim.weight_decay = 0.1
  c.optim.clip_norm = 1.0
  config_lib.set_duration(c, "optim.warmup", epochs=1)
  config_lib.set_duration(c, "log.every", steps=50)
  config_lib.set_duration(c, "eval.every", epochs=4)
  config_lib.set_duration(c, "checkpoint.every", epochs=1)
  task = {"name": "test", "data": lookups.spec_of(test)}
  if _holds(test, classes=True):
    c.eval.tasks = (
      {"kind": "zero_shot", **task, "templates": ("a photo of a {}.", "a photo of an {}.")},
    )
  else:
    c.eval.tasks = ({"kind": "retrieval", **task, "examples": 1000},)
  return c


def _holds(data: str, classes: bool) -> bool:
  """Whether the data have labels, and the names of their classes."""
  try:
    if (spec := lookups.spec_of(data))["source"] == "parquet":  # its schema tells
      schema = pq.read_schema(paths.find(spec["path"], "parquet")[0])
      return spec.get("label", "label") in schema.names and (
        not classes or b"classes" in (schema.metadata or {})
      )
    source = sources.open_source(spec)
    return "label" in source[0] and (not classes or sources.classnames(source) is not None)
  except (ValueError, OSError):
    return True  # not there, as CIFAR-10 may not be yet, or damaged: opening it says so
