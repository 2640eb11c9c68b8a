"""A checkpoint of another library, opened, and whether its towers are those of a model."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
from typing import Any

from siglax import models
from siglax.interop import fields
from siglax.interop import files
from siglax.interop import layout


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """A checkpoint of another library. config: a siglax config that describes its towers and their
  preprocessing.

  table: of its names. towers: those to read, of those it has. tokenizer: its path, or None.
  """

  arrays: files.Arrays
  table: layout.Table
  config: Any
  towers: tuple[str, ...]
  tokenizer: pathlib.Path | None

  def model(self) -> models.TwoTowers:
    """The model of its own config."""
    with self.naming():
      return models.build(self.config.model, self.towers)

  def read(self, model, mesh) -> dict:
    """All its parameters, for the model of its own config."""
    with self.naming():
      return layout.read(self.arrays, self.table, model, mesh, self.towers)

  @contextlib.contextmanager
  def naming(self):
    """Every error in here names the checkpoint."""
    try:
      yield
    except ValueError as e:
      raise e if self.arrays.name in str(e) else ValueError(f"{self.arrays.name}: {e}") from None

  def check_sizes(self):
    """ValueError when its config claims a size that the parameters of its file cannot have, before
    any shape is made of it.
    """
    limit = sum(math.prod(shape) for shape in self.arrays.shapes.values())
    claimed = fields.describing(self.config, self.towers)
    tower = models.declared(self.config.model)["image"]
    if "image" in self.towers and tower.stride is not None:
      size, stride = claimed.pop("image.size"), tower.stride(self.config.model.image)
      has_patches = "patch" in tower.uses
      if size < stride:
        least = f"config.model.image.patch={stride}" if has_patches else f"a stride of {stride}"
        raise ValueError(f"{self.arrays.name} claims config.image.size={size}, less than {least}")
      places = f"(image.size/{'model.image.patch' if has_patches else stride})²"
      claimed[places] = (size // stride) ** 2
    for field, value in claimed.items():
      if type(value) is int and value > limit:
        raise ValueError(
          f"{self.arrays.name} claims config.{field}={value}, and its file has {limit} parameters "
          "in all"
        )

  def read_into(self, model, mesh) -> dict:
    """Its parameters for another model; positions are resized, and a scale or bias that one of them
    lacks is left out.

    Raises ValueError that lists each field of config.model in which the two differ.
    """
    check_same(self.model(), model, self.towers, self.arrays.name)
    return layout.read(self.arrays, self.table, model, mesh, self.towers, fresh=True)


def check_same(there, here, towers, name):
  """ValueError that lists each field of config.model in which two models differ, but for what can
  be resized.
  """
  if different := differences(there, here, towers):
    raise ValueError(f"config.model.init_from={name} holds other towers: {'; '.join(different)}")


def differences(there, here, towers, where="there", and_where="here") -> list[str]:
  """The fields of config.model in which two models differ, but for what can be resized, each
  "config.model.FIELD is A there and B here".
  """
  ours = dict(_fields(here, towers))
  return [
    f"config.model.{field} is {a!r} {where} and {ours[field]!r} {and_where}"
    for field, a in _fields(there, towers)
    if field in ours and a != ours[field]
  ]


def changes(there, here, towers, where="there", and_where="here") -> list[str]:
  """What pictures and texts of these towers went through there and do not here, each "config.FIELD
  is A there and B here".

  The tokenizer, whose path says little, and the length of texts are not compared.
  """
  now = fields.preprocessing(here, towers)
  return [
    f"config.{field} is {value!r} {where} and {now[field]!r} {and_where}"
    for field, value in fields.preprocessing(there, towers).items()
    if field not in ("text.tokenizer", "text.length") and value != now[field]
  ]


def _fields(model, towers):
  """(name, value) of all that two models must share, sizes as numbers. A position embedding has its
  own rule.
  """
  yield "embed_dim", model.embed_dim
  for name in towers:
    same = model.declared[name].same(model.config[name], model.embed_dim)
    yield from ((f"{name}.{field}", value) for field, value in same.items())
