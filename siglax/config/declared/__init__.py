"""The declaration of every field of a config: a default, a sentence, a type, the values that are
allowed, and what may change them later. siglax/config/fields.py puts them together.

A new field is a line in its group; a new group is a line here too.
"""

from siglax.config.declared.group import Group
from siglax.config.declared.inputs import IMAGE
from siglax.config.declared.inputs import LOADER
from siglax.config.declared.inputs import TEXT
from siglax.config.declared.model import IMAGE_TOWER
from siglax.config.declared.model import MODEL
from siglax.config.declared.model import TEXT_TOWER
from siglax.config.declared.run import CHECKPOINT
from siglax.config.declared.run import EVAL
from siglax.config.declared.run import FREE_IN_SPECS
from siglax.config.declared.run import LOG
from siglax.config.declared.run import MESH
from siglax.config.declared.run import PROFILE
from siglax.config.declared.run import TOP
from siglax.config.declared.training import LOSS
from siglax.config.declared.training import OPTIM
from siglax.config.declared.training import TRAIN

GROUPS = (
  TOP,
  LOADER,
  IMAGE,
  TEXT,
  LOSS,
  TRAIN,
  MODEL,
  IMAGE_TOWER,
  TEXT_TOWER,
  OPTIM,
  MESH,
  EVAL,
  CHECKPOINT,
  LOG,
  PROFILE,
)
