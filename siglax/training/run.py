"""Everything a training needs, made of its config before anything compiles."""

from __future__ import annotations

import pathlib

import jax

from siglax import config as config_lib
from siglax import data as data_lib
from siglax.models import attention
from siglax.models import trainable as trainable_lib
from siglax.runs import bucket
from siglax.runs import digest
from siglax.runs import folder as folder_lib
from siglax.training import checks
from siglax.training import evaluation
from siglax.training import initial
from siglax.training import program
from siglax.training import state as state_lib


class Run(program.Program):
  """Everything a run needs, made of its config before anything compiles; see
  siglax/training/loop.py. workdir: its folder on this machine; shown: as its user names it.
  """

  def __init__(self, config, workdir):
    checks.validate(config, jax.device_count())
    attention.check_device(config.train.attention)
    config = initial.with_preprocessing(config, workdir)
    text = folder_lib.text_processor(config)
    self.sources = data_lib.open_data(config)
    config = config_lib.resolve(config, text, lambda: data_lib.same_label(config, self.sources))
    self.text = text
    self.workdir, self.shown = pathlib.Path(workdir), bucket.shown(workdir)
    self.epoch_examples = data_lib.num_examples(self.sources)
    super().__init__(config, self.epoch_examples)
    if self.embedded:
      data_lib.embeddings.check(config, self.sources, self.model.embed_dim)
    self.evaluate = evaluation.Evaluator(config, self.model, text, self.mesh)

  def due(self, what: str, step: int) -> bool:
    """Whether to log, evaluate or save after this many steps; the last step always does.

    An evaluation that would be due less than a tenth of its interval before the last step is left
    to the last step.
    """
    every = self.every[what]
    if what == "eval" and every and self.total_steps - step < every / 10:
      every = None
    return step == self.total_steps or bool(every and step and step % every == 0)

  def initial_state(self) -> state_lib.TrainState:
    """A fresh state, made in its shards. Parameters of config.model.init_from, read before anything
    compiles, take the place of random ones.
    """
    init_from = self.config.model.init_from
    loaded = (
      {}
      if init_from is None
      else initial.initial_params(init_from, self.model, self.mesh, self.config)
    )
    shardings = jax.tree.map(lambda x: x.sharding, self.abstract_state)
    create = lambda key, loaded: self.create(trainable_lib.overlay(self.model.init(key), loaded))
    return jax.jit(create, out_shardings=shardings, donate_argnums=1)(
      jax.random.key(self.config.seed), loaded
    )

  def check_tower(self, params):
    """ValueError when the embeddings of pictures to train on were made by another image tower than
    the run's.
    """
    if self.embedded:
      data_lib.embeddings.check_tower(
        self.sources, digest.image_tower(self.model, params, self.mesh)
      )

  def batches(self, start_step: int, counts: dict | None = None):
    return data_lib.train_batches(
      self.config,
      self.text,
      start_step=start_step,
      sources=self.sources,
      counts=counts,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      numbered=self.gamma is not None,
    )
