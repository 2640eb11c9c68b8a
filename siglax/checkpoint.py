"""Checkpoints of a run: state, data position, config and digest, through orbax.

A save is asynchronous and appears whole or not at all. Orbax keeps no checksum: a flipped byte would restore silently
with wrong numbers. So each checkpoint carries a digest of its state, and `restore` walks back from the newest to the
newest that matches. Nothing is overwritten in place.
"""

from __future__ import annotations

import logging
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

logger = logging.getLogger("siglax")
FOLDER = "checkpoints"


class Checkpoints:
  """The checkpoints of one run folder. Global view: all processes call every method together.

  folder: the run folder. config: `config.checkpoint`, which says what is kept; None only reads.
  """

  def __init__(self, folder, config=None):
    path = pathlib.Path(folder).absolute() / FOLDER
    self._writes = config is not None
    self._best = config.keep_best if self._writes else None
    options = ocp.CheckpointManagerOptions(
        create=self._writes,
        read_only=not self._writes,
        preservation_policy=_policy(config) if self._writes else None,
    )
    self._manager = ocp.CheckpointManager(path, options=options, item_names=("state", "meta"))

  @property
  def steps(self) -> list[int]:
    """Steps on disk, oldest first."""
    return sorted(self._manager.all_steps())

  def save(self, step: int, state, meta: dict, metrics: dict | None = None):
    """Saves in the background. meta: what JSON can hold. metrics: of the last evaluation, for keep_best."""
    meta = {**meta, "step": step, "digest": digest(state)}
    metrics = metrics if self._best in (metrics or {}) else None
    saved = self._manager.save(
        step,
        args=ocp.args.Composite(state=ocp.args.PyTreeSave(state), meta=ocp.args.JsonSave(meta)),
        metrics=metrics,
    )
    if not saved:
      raise ValueError(f"checkpoint of step {step} was not saved: {self.steps[-1]} is already on disk")

  def restore(self, abstract_state):
    """(state, meta) of the newest good checkpoint, or None when there is none at all.

    abstract_state: jax.ShapeDtypeStruct leaves with the shardings to restore to, of any mesh; a dict of some of the
    state's fields, such as {"params": …}, reads those alone. A damaged checkpoint is named in the log and passed
    over; a manager that writes deletes it, since orbax refuses to save below it.
    Raises ValueError when there are checkpoints and none is good.
    """
    damaged = []
    for step in reversed(self.steps):
      try:
        state, meta = self._read(step, abstract_state)
      except Exception as e:  # pylint: disable=broad-except; damage shows as many kinds of errors
        reason = str(e).strip().partition("\n")[0][:200] or type(e).__name__
        logger.warning("checkpoint of step %d is damaged, trying the one before it: %s", step, reason)
        damaged.append((step, reason))
        continue
      for bad, _ in damaged if self._writes else ():
        self._manager.delete(bad)
      return state, meta
    if damaged:
      step, reason = damaged[0]
      raise ValueError(f"no checkpoint in {self._manager.directory} is good; the newest, of step {step}: {reason}")
    return None

  def _read(self, step, abstract_state):
    restore_args = ocp.checkpoint_utils.construct_restore_args(abstract_state)
    state_args = ocp.args.PyTreeRestore(abstract_state, restore_args=restore_args, partial_restore=True)
    saved = self._manager.restore(step, args=ocp.args.Composite(state=state_args, meta=ocp.args.JsonRestore()))
    good = saved.meta["digest"]
    wrong = [name for name, value in digest(saved.state).items() if value != good.get(name)]
    if wrong:
      raise ValueError(f"{wrong[0]} does not match its digest")
    return saved.state, saved.meta

  def preempted(self, step: int) -> bool:
    """Whether the processes have agreed to end at this step, after a SIGTERM to one of them; ask at every step."""
    return self._manager.reached_preemption(step)

  def wait(self):
    """Returns when what was saved is on disk."""
    self._manager.wait_until_finished()

  def close(self):
    self._manager.close()


def digest(state) -> dict[str, int]:
  """{path: Σ_k bits_k·(2k + 1) mod 2³² over the elements of the leaf}, whatever its sharding.

  The weights are odd, so a change of any single element changes the sum.
  """
  leaves = jax.tree_util.tree_leaves_with_path(state)
  sums = jax.device_get(_digest([leaf for _, leaf in leaves]))
  return {jax.tree_util.keystr(path, simple=True, separator="/"): int(x) for (path, _), x in zip(leaves, sums)}


@jax.jit
def _digest(leaves):
  return [leaf_digest(x) for x in leaves]


def leaf_digest(x: jax.Array) -> jax.Array:
  """uint32, of one leaf; see `digest`. Traceable."""
  unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
  bits = jax.lax.bitcast_convert_type(x, unsigned) if x.dtype != jnp.bool_ else x
  index, stride = jnp.zeros(x.shape, jnp.uint32), 1
  for axis in reversed(range(x.ndim)):
    index += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * np.uint32(stride % 2**32)
    stride *= x.shape[axis]
  return jnp.sum(bits.astype(jnp.uint32) * (2 * index + 1), dtype=jnp.uint32)


def _policy(config):
  policies = [checkpoint_managers.LatestN(config.keep_latest)]
  if config.keep_every_steps is not None:
    policies.append(checkpoint_managers.EveryNSteps(config.keep_every_steps))
  if config.keep_best is not None:
    best = lambda metrics: metrics[config.keep_best]
    policies.append(checkpoint_managers.BestN(get_metric_fn=best, n=1, keep_checkpoints_without_metrics=False))
  return checkpoint_managers.AnyPreservationPolicy(policies)
