"""What a run folder tells: its config, its tokenizer and its parameters."""

from __future__ import annotations

import pathlib

from siglax import config as config_lib
from siglax import models
from siglax.data import text as text_lib
from siglax.devices import disk
from siglax.devices import mesh as mesh_lib
from siglax.models import trainable as trainable_lib
from siglax.runs import bucket
from siglax.runs import imports
from siglax.runs import stored

CONFIG = "config.json"


def read_config(folder):
  """The resolved config of a run folder. ValueError when there is none, or when it needs what was
  not imported.
  """
  file = pathlib.Path(folder) / CONFIG
  if not file.is_file():
    raise ValueError(
      f"{bucket.shown(folder)} is no run folder: it has no {CONFIG}; give the --workdir of siglax "
      "train"
    )
  imports.check(folder)
  return config_lib.read(file)


def trained_config(folder):
  """The config of the run whose checkpoints are in a folder, None where there are none.

  What was trained, and not what config.json says: the files of two runs may have been mixed.
  """
  checkpoints = stored.Stored(folder)
  meta = checkpoints.newest_meta()
  if meta and "config" in meta:
    return config_lib.from_json(meta["config"])
  return read_config(folder) if checkpoints.found() else None


def write(folder, config, text: text_lib.TextProcessor):
  """Writes the resolved config, the tokenizer and what was imported into a run folder. OSError
  where the disk fails.
  """
  imports.write(folder)
  disk.write_atomic(folder / CONFIG, config_lib.to_json(config).encode())
  for name, data in text.files.items():
    disk.write_atomic(folder / name, data)


def kept_tokenizer(folder) -> pathlib.Path | None:
  """The file of the tokenizer that a run folder keeps."""
  names = text_lib.names_in(str(folder), text_lib.KINDS)
  return pathlib.Path(folder) / names[0] if names else None


def other_tokenizer(folder, text: text_lib.TextProcessor) -> pathlib.Path | None:
  """The file of the tokenizer that a run folder keeps, where that is not `text`."""
  kept, folder = kept_tokenizer(folder), pathlib.Path(folder)
  if kept is None:
    return None
  here = {name: data for name, data in text.files.items() if (folder / name).is_file()}
  same = all((folder / name).read_bytes() == data for name, data in here.items())
  return None if kept.name in here and same else kept


def text_processor(config, folder=None) -> text_lib.TextProcessor:
  """The run's text preprocessing; a run folder carries a copy of its tokenizer."""
  copy = None if folder is None else kept_tokenizer(folder)
  tokenizer = copy or config.text.tokenizer
  return text_lib.TextProcessor(
    tokenizer,
    length=config.text.length,
    lowercase=config.text.lowercase,
    strip_punctuation=config.text.strip_punctuation,
    pad=config.text.pad,
  )


def read_params(folder, model, mesh, towers: tuple[str, ...] = models.TOWERS) -> dict:
  """Parameters of the newest good checkpoint of a run folder, sharded over the mesh: their average,
  if the run kept one.

  ValueError when there is no good checkpoint. towers: one tower alone comes without scale and bias.
  """
  missing = f"{bucket.shown(folder)} has no checkpoint; let siglax train save one"
  if not stored.Stored(folder).found():
    raise ValueError(missing)
  config, shapes = read_config(folder), model.shapes
  wanted = {"params": shapes}
  # Frozen parameters have no average; the patterns are those of both towers.
  if config.train.ema is not None:
    frozen = trainable_lib.frozen_mask(config, models.build(config.model).shapes)
    wanted["ema"], wanted["params"] = trainable_lib.split(
      shapes, {name: frozen[name] for name in shapes}
    )
  if towers != models.TOWERS:
    wanted = {field: {name: tree[name] for name in towers} for field, tree in wanted.items()}
  abstract = mesh_lib.abstract(mesh, wanted)
  restored = stored.Stored(folder).restore(abstract)
  if restored is None:
    raise ValueError(missing)
  read = restored[0]
  return trainable_lib.merge(read["ema"], read["params"]) if "ema" in read else read["params"]
