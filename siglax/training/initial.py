"""What a training starts from, where config.model.init_from names it: the parameters, and the
preprocessing of pictures and texts that they were trained with.
"""

from __future__ import annotations

import logging

import jax
import numpy as np

from siglax import config as config_lib
from siglax import interop
from siglax import models
from siglax.devices import mesh as mesh_lib
from siglax.interop import layout
from siglax.interop import positions
from siglax.runs.folder import read_params
from siglax.runs.folder import text_processor
from siglax.runs.folder import trained_config
from siglax.tower import origin as origin_lib

logger = logging.getLogger("siglax")


def with_preprocessing(config, workdir):
  """The config, whose fields of preprocessing that nobody has set have the values of what the run
  starts from; one line in the log names those that change.

  A run that goes on in `workdir` keeps what it began with, whatever has become of
  config.model.init_from. Raises ValueError in one line for what cannot be opened.
  """
  path, unset = config.model.init_from, config_lib.unset_inherited(config)
  if path is None or not unset:
    return config
  begun = trained_config(workdir)
  if begun is not None and begun.model.init_from == path:
    there, towers = begun, models.TOWERS
  else:
    begun, origin = None, origin_lib.find(path)
    there, towers = origin.config, origin.preprocessed
  values = {name: config_lib.get(there, name) for name in unset if name.split(".")[0] in towers}
  values = {name: x for name, x in values.items() if x != config_lib.get(config, name)}
  if values and begun is None:
    logger.info(
      "config.model.init_from=%s: from there come %s",
      path,
      ", ".join(f"config.{name}={value!r}" for name, value in values.items()),
    )
  return config_lib.replaced(config, values)


def initial_params(path, model, mesh, config=None) -> dict:
  """Parameters to start `model` from, of what config.model.init_from names: those of both towers,
  or of one. LoRA's own are not among them: those that a run has are merged into the rest.

  config: of the run that starts; how its preprocessing differs from theirs is a line in the log.
  Raises ValueError in one line when they do not fit the model.
  """
  relative_bias = model.config.relative_bias
  model, path = models.plain(model), interop.local(path)
  origin = origin_lib.find(path)
  if origin.foreign is not None:
    params = origin.foreign.read_into(model, mesh)
  else:
    params = _of_run(origin, model, mesh, path)
  if config is not None:
    _say_changes(path, origin, config)
  if "text" in params:
    _say_length(path, origin.config.text.length, model.config.text)
  return models.with_bias(params, relative_bias)


def _of_run(origin, model, mesh, path) -> dict:
  """The parameters of a run folder's newest checkpoint."""
  there, towers = models.build(origin.config.model), origin.towers
  interop.check_same(there, model, towers, path)
  wanted = mesh_lib.abstract(mesh, model.shapes)
  read = models.stack_blocks(
    models.plain_params(read_params(origin.folder, there, mesh, towers)), model.config
  )
  params = {name: value for name, value in read.items() if name in wanted}
  for name in (read.keys() ^ wanted.keys()) - set(models.TOWERS) if towers == models.TOWERS else ():
    logger.warning(
      "%s: %s",
      path,
      f"{name} is left out, this loss has none"
      if name in read
      else f"it has no {name}, which starts afresh",
    )
  for tower in towers:
    if (need := wanted[tower].get("pos_embedding")) is not None:
      old = np.asarray(jax.device_get(params[tower]["pos_embedding"]))
      resized = layout.resize_positions(old, need.shape[0], model, tower, "position embedding")
      params[tower]["pos_embedding"] = jax.device_put(resized, need.sharding)
  return params


def _say_changes(path, origin, here):
  """Logs in one line where the preprocessing of pictures and texts differs."""
  changes = interop.changes(origin.config, here, origin.preprocessed)
  text = origin.text
  if text and text.files != text_processor(here).files:
    changes.append(
      f"config.text.tokenizer is another one there ({text.tokenizer}) than {here.text.tokenizer!r} "
      "here"
    )
  if changes:
    logger.warning(
      "config.model.init_from=%s was trained with other inputs: %s", path, "; ".join(changes)
    )


def _say_length(path, old: int, text):
  """Logs in one line what becomes of the positions of texts. text: config.model.text of the run."""
  if old != text.length:
    logger.warning(
      "config.model.init_from=%s: config.text.length is %d there and %d here; %s",
      path,
      old,
      text.length,
      positions.texts_in_words(old, text.length, text.pool == "last"),
    )
