"""Where fields find the parts that they name: the tables and registries of the rooms above.

Config is the lowest room and imports none of these rooms. It asks for their tables by name, when a
field's choices are first needed: they import jax, and they take the declaration of a field from
here.
"""

from __future__ import annotations

from collections.abc import Callable
import importlib

from siglax.config import parts

# By the kind of part.
REGISTRIES = {
  "loss": "siglax.losses.LOSSES",
  "image tower": "siglax.models.IMAGE_TOWERS",
  "text tower": "siglax.models.TEXT_TOWERS",
  "optimizer": "siglax.training.optimizers.OPTIMIZERS",
  "schedule": "siglax.training.schedules.SCHEDULES",
  "source": "siglax.data.sources.SOURCES",
}


def registry(kind: str) -> parts.Registry:
  """The registry of a kind of part."""
  return _table(REGISTRIES[kind])


def spec_of(words: str) -> dict:
  """The data spec of a command line's words; see siglax/data/sources/__init__.py."""
  return _table("siglax.data.sources.parse_spec")(words)


def _names(*tables: str) -> Callable[[], tuple[str, ...]]:
  """A function that returns the names in tables, as `Field.choices` takes it."""
  return lambda: tuple(name for table in tables for name in _table(table))


def _table(path: str):
  module, _, name = path.rpartition(".")
  return getattr(importlib.import_module(module), name)


losses = _names(REGISTRIES["loss"])
optimizers = _names(REGISTRIES["optimizer"])
schedules = _names(REGISTRIES["schedule"])
loss_impls = _names("siglax.losses.IMPLS")
image_variants = lambda: registry("image tower").variants
text_variants = lambda: registry("text tower").variants
activations = _names("siglax.models.transformer.ACTIVATIONS")
attention = _names("siglax.models.attention.KERNELS")
remat = lambda: (
  *_table("siglax.models.transformer.REMAT"),
  _table("siglax.models.transformer.AUTO"),
)
