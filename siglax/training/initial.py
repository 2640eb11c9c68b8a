"""The parameters that a training starts from, where config.model.init_from names some."""

from __future__ import annotations

import logging

import jax
import numpy as np

from siglax import config as config_lib
from siglax import interop
from siglax import models
from siglax.devices import mesh as mesh_lib
from siglax.interop import positions
from siglax.runs.folder import read_config
from siglax.runs.folder import read_params
from siglax.runs.folder import text_processor

logger = logging.getLogger("siglax")


def initial_params(path, model, mesh, config=None) -> dict:
  """Parameters to start `model` from, of what config.model.init_from names: those of both towers,
  or of one. LoRA's own are not among them: those that a run has are merged into the rest.

  config: of the run that starts; how its preprocessing differs from theirs is a line in the log.
  Raises ValueError in one line when they do not fit the model.
  """
  model, path = models.without_lora(model), interop.local(path)
  if (foreign := interop.find(path)) is not None:
    params = foreign.read_into(model, mesh)
    if config is not None:
      _say_changes(
        path,
        foreign.config,
        config,
        foreign.towers,
        foreign.tokenizer and text_processor(foreign.config),
      )
    return params
  folder, towers = interop.split(path)
  config_there = read_config(folder)
  there = models.build(config_there.model)
  interop.check_same(there, model, towers, path)
  if config is not None:
    _say_changes(
      path, config_there, config, towers, "text" in towers and text_processor(config_there, folder)
    )
  wanted = mesh_lib.abstract(mesh, jax.eval_shape(model.init, jax.random.key(0)))
  read = models.stack_blocks(
    models.merge_lora(read_params(folder, there, mesh, towers)), model.config
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
  if "image" in params and (need := wanted["image"].get("pos_embedding")) is not None:
    old = np.asarray(jax.device_get(params["image"]["pos_embedding"]))
    resized = positions.resize(old, need.shape[0], model.extra_positions)
    params["image"]["pos_embedding"] = jax.device_put(resized, need.sharding)
  return params


def _say_changes(path, there, here, towers, text):
  """Logs in one line where the preprocessing of pictures and texts differs. text: the TextProcessor
  there, if known.
  """
  config_lib.fill_text(there, text or None)
  known = [name for name in towers if name == "image" or text]
  changes = interop.changes(there, here, known)
  if text and text.files != text_processor(here).files:
    changes.append(
      f"config.text.tokenizer is another one there ({text.tokenizer}) than {here.text.tokenizer!r} "
      "here"
    )
  if changes:
    logger.warning(
      "config.model.init_from=%s was trained with other inputs: %s", path, "; ".join(changes)
    )
