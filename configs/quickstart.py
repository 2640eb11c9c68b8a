"""The built-in pictures on a laptop: SigLIP in under five minutes on two cores."""

from siglax import config as config_lib


def get_config(steps: int = 2000, size: int = 48):
  c = config_lib.default()
  c.batch_size = 64  # more steps of the same examples
  config_lib.set_duration(c, "total", steps=steps)
  # People name a thing more often than its colour. So do these captions; the tests' tell all.
  detail = {"shape": 0.9, "colour": 0.5, "size": 0.5, "where": 0.7}
  c.data = (
    {
      "source": "shapes",
      "split": "train",
      "examples": 1_000_000,
      "image_size": size,
      "detail": detail,
      "objects": (1, 1, 1, 1, 1, 2, 3),  # lone objects teach shapes soonest
    },
  )
  c.loader.threads = 1  # small pictures: more threads wait for each other
  c.image.size = size
  c.text.length = 24
  for tower in (c.model.image, c.model.text):
    tower.width, tower.depth, tower.heads, tower.mlp_dim = 96, 2, 4, 384
    tower.pool, tower.scan = "mean", False  # mean pooling leaves the first plateau soonest
  c.model.text.depth = 1
  c.model.image.stem = "conv"
  c.model.image.patch = 8
  c.optim.name = "muon"  # leaves the plateaus in half of the examples that adamw needs
  c.optim.lr = 3e-3
  c.optim.clip_norm = 1.0
  c.optim.weight_decay = (
    0.8  # strong, so that shape and colour are learned apart and hold for pairs never seen
  )
  config_lib.set_duration(c, "optim.warmup", steps=min(200, steps // 10))
  config_lib.set_duration(c, "log.every", steps=50)
  config_lib.set_duration(c, "eval.every", steps=500)
  config_lib.set_duration(c, "checkpoint.every", steps=500)
  c.eval.tasks = tuple(task for pairs in ("seen", "unseen") for task in _tasks(pairs, size)) + (
    {"kind": "loss", "name": "test", "data": _test(size), "examples": 1024},
  )
  return c


def _test(size, **spec):
  return {"source": "shapes", "split": "test", "image_size": size, **spec}


def _tasks(pairs, size):
  """Zero-shot over all 48 classes and retrieval among 256 captions, of colour-shape pairs seen in
  training or never.
  """
  yield {
    "kind": "zero_shot",
    "name": f"classes_{pairs}",
    "data": _test(size, pairs=pairs, objects=(1,)),
    "examples": 1024,
    "templates": ("a {}.", "there is a {}.", "a picture of a {}."),
  }
  yield {
    "kind": "retrieval",
    "name": f"captions_{pairs}",
    "data": _test(size, pairs=pairs),
    "examples": 256,
    "distinct": True,
    "captions_per_image": 1,
  }
