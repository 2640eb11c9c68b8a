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


def declared(config) -> dict:
  """{"image": Tower, "text": Tower} of `config.model`."""
  return {kind: towers.of_variant(config[kind].variant) for kind, towers in BY_KIND.items()}
