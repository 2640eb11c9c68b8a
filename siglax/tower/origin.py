"""What is at a path that holds towers, before any parameter is read: a run folder, or a checkpoint
of another library.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from siglax import config as config_lib
from siglax import interop
from siglax import models
from siglax.data.text import TextProcessor
from siglax.interop import fields
from siglax.runs.folder import kept_tokenizer
from siglax.runs.folder import read_config
from siglax.runs.folder import read_params
from siglax.runs.folder import text_processor


@dataclasses.dataclass(frozen=True)
class Origin:
  """config: that describes it. towers: those to take. text: None where no text tower is taken, or
  where there is no tokenizer.

  folder: the run folder, or the file or folder of another library, whose checkpoint is `foreign`.
  """

  folder: pathlib.Path
  config: Any
  towers: tuple[str, ...]
  text: TextProcessor | None
  foreign: interop.Checkpoint | None = None

  def model(self) -> models.TwoTowers:
    """The model of its config."""
    if self.foreign is not None:
      return self.foreign.model()
    return models.build(self.config.model, self.towers)

  def read(self, model, mesh) -> dict:
    """All parameters of that model, sharded over the mesh; of a run those of its newest good
    checkpoint.
    """
    if self.foreign is not None:
      return self.foreign.read(model, mesh)
    return read_params(self.folder, model, mesh)

  @property
  def preprocessed(self) -> tuple[str, ...]:
    """The towers whose preprocessing is known: without a tokenizer, that of texts is not."""
    return tuple(name for name in self.towers if name == "image" or self.text)


def find(path) -> Origin:
  """What is at a path or a URL, with ":img" or ":txt" behind it for one of its towers.

  Raises ValueError in one line for what is missing, damaged or of an architecture that siglax does
  not have.
  """
  path = interop.local(path)
  folder, towers = interop.split(path)
  if (foreign := interop.find(path)) is not None:
    with foreign.naming():
      text = text_processor(foreign.config) if foreign.tokenizer else None
      config_lib.check_vocabulary(foreign.config, text)
    config_lib.fill_text(foreign.config, text)
    return Origin(folder, foreign.config, foreign.towers, text, foreign)
  config = read_config(folder)
  text = text_processor(config, folder) if "text" in towers else None
  return Origin(folder, config, towers, text)


def config_from(path, tokenizer: str = ""):
  """A config that trains on from what is at a path: its towers, preprocessing and loss, and
  model.init_from; all other fields are at their defaults.

  tokenizer: where there is none at the path; ValueError for neither.
  """
  origin = find(path)
  config = config_lib.default()
  for field, value in fields.describing(origin.config, origin.towers).items():
    config_lib.set_field(config, field, value)
  if tokenizer:
    config.text.tokenizer = tokenizer
  elif origin.foreign is None and origin.text and (kept := kept_tokenizer(origin.folder)):
    config.text.tokenizer = str(kept)
  elif "text" in origin.towers and origin.text is None:
    raise ValueError(f"{path} has no tokenizer; give the one that it was trained with, tokenizer=…")
  config.loss.name = origin.config.loss.name
  config.model.init_from = str(path)
  return config
