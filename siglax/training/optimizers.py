"""The optimizers that there are. One more is an Optimizer (optimizer.py says what that declares)
and its place here; from outside the package it is `OPTIMIZERS.register(…)` in a file of --import.
"""

from __future__ import annotations

import optax

from siglax.config.parts import Registry
from siglax.training import adafactor
from siglax.training import muon
from siglax.training import stable_adamw
from siglax.training.optimizer import Optimizer

ADAMW = Optimizer(
  "adamw",
  "Adam (arXiv 1412.6980), as optax's scale_by_adam",
  optax.scale_by_adam,
  uses=("b1", "b2", "eps"),
)
LION = Optimizer(
  "lion",
  "Lion (arXiv 2302.06675), as optax's; its own b2 is 0.99, with lr 3 to 10 times smaller",
  optax.scale_by_lion,
  uses=("b1", "b2"),
)
OPTIMIZERS: Registry[Optimizer] = Registry(
  "optimizer",
  (ADAMW, adafactor.OPTIMIZER, LION, muon.OPTIMIZER, stable_adamw.OPTIMIZER),
  merged=True,
)
