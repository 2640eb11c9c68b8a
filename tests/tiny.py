"""A run of seconds on the built-in dataset, for tests of the loop: `--config
tests/tiny.py:steps=12`.
"""

from siglax import config as config_lib


def get_config(steps: int = 12):
  c = config_lib.default()
  c.batch_size = 16
  config_lib.set_duration(c, "total", steps=steps)
  c.data = ({"source": "shapes", "examples": 64, "image_size": 16},)
  c.image.size, c.text.length = 16, 12
  for tower in (c.model.image, c.model.text):
    tower.width, tower.depth, tower.heads, tower.mlp_dim = 16, 1, 2, 32
  c.model.image.patch = 8
  c.eval.batch_size = 16
  c.loader.threads = 1
  config_lib.set_duration(c, "log.every", steps=1)
  config_lib.set_duration(c, "eval.every", steps=6)
  config_lib.set_duration(c, "checkpoint.every", steps=4)
  data = {"source": "shapes", "split": "test", "image_size": 16}
  c.eval.tasks = (
    {"kind": "zero_shot", "name": "classes", "data": {**data, "objects": (1,)}, "examples": 24},
    {
      "kind": "retrieval",
      "name": "captions",
      "data": data,
      "examples": 20,
      "captions_per_image": 1,
    },
    {"kind": "loss", "name": "test", "data": data, "examples": 20},
  )
  return c
