"""A study of seconds: `siglax ablate --config tests/tiny_study.py`."""

import pathlib

from siglax import studies

TINY = pathlib.Path(__file__).with_name("tiny.py")


def get_study(steps: int = 8, branches: bool = False, broken: bool = False):
  grid = {"loss.name": ("sigmoid", "softmax")}
  if broken:  # its loss is not finite at the first step
    grid["optim.lr"] = (1e-3, 1e30)
  return studies.Study(
    f"{TINY}:steps={steps}",
    set={
      "log.tensorboard": False,
      "optim.schedule": "constant",
      "eval.tasks": (
        {
          "kind": "loss",
          "name": "test",
          "data": {"source": "shapes", "image_size": 16},
          "examples": 16,
        },
      ),
      "model.image.depth": 1,
    },
    grid=grid,
    seeds=(0, 1),
    baseline={"loss.name": "sigmoid"},
    branches=studies.Branches((128, 192), cooldown=0.5) if branches else None,
  )
