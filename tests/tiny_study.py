"""A study of seconds: `siglax ablate --config tests/tiny_study.py`."""

import pathlib

from siglax import studies

DATA = {"source": "shapes", "split": "test", "image_size": 16}
TINY = pathlib.Path(__file__).with_name("tiny.py")


def get_study(
  steps: int = 8,
  losses: bool = True,
  branches: bool = False,
  broken: bool = False,
  stages: bool = False,
):
  grid = {"loss.name": ("sigmoid", "softmax")} if losses else {}
  if broken:  # its loss is not finite at the first step
    grid["optim.lr"] = (1e-3, 1e30)
  if stages:  # whole pictures, after as many steps with half of their patches
    grid |= {"train.patch_drop": (0.0,), "first.train.patch_drop": (0.5,), "first.share": (0.5,)}
  return studies.Study(
    f"{TINY}:steps={steps}",
    set={
      "log.tensorboard": False,
      "optim.schedule": "constant",
      "eval.tasks": ({"kind": "loss", "name": "test", "data": DATA, "examples": 16},),
      "model.image.depth": 1,
    },
    grid=grid,
    seeds=(0, 1),
    baseline={"loss.name": "sigmoid"} if losses else None,
    branches=studies.Branches((128, 192), cooldown=0.5) if branches else None,
  )
