"""The towers that there are. One more is a file with a `TOWER` (tower.py says what that declares)
and its place here; from outside the package it is `IMAGE_TOWERS.register(…)` in a file of --import.
"""

from __future__ import annotations

from siglax.models import naflex
from siglax.models import resnet
from siglax.models import text
from siglax.models import vit
from siglax.models.tower import Towers

IMAGE_TOWERS = Towers("image", (vit.TOWER, resnet.TOWER, naflex.TOWER))
TEXT_TOWERS = Towers("text", (text.TOWER,))
BY_KIND = {"image": IMAGE_TOWERS, "text": TEXT_TOWERS}


def check_fit(config):
  """ValueError for pictures at their own aspect ratio where the image tower takes squares."""
  tower = declared(config.model)["image"]
  if config.image.fit == "native" and tower.normalize is None:
    raise ValueError(
      f'config.image.fit="native" has no place in config.model.image.variant='
      f"{config.model.image.variant!r}, which takes squares; use squash or crop"
    )


def declared(config) -> dict:
  """{"image": Tower, "text": Tower} of `config.model`."""
  return {kind: towers.of_variant(config[kind].variant) for kind, towers in BY_KIND.items()}
