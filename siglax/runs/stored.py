"""Checkpoints on disk, and how one is read.

Orbax keeps no checksum, so a flipped byte would be restored silently as wrong numbers. Each
checkpoint therefore carries a digest of its state and one of its metadata; `restore` starts at the
newest checkpoint and walks back to the newest one that matches both. A failure to read (a disk that
does not answer, too many open files) is no damage: it is tried again, and then the start ends with
one line. Nothing on disk changes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from siglax.config import values
from siglax.devices import distributed
from siglax.devices import errors
from siglax.devices import paths
from siglax.runs import digest as digest_lib
from siglax.runs import places

logger = logging.getLogger("siglax")


class Damaged(Exception):
  """What a checkpoint holds is not what was saved."""


class Stored:
  """The checkpoints of one run folder, to read. Global view: all processes call every method
  together.
  """

  def __init__(self, folder):
    self._place = places.at(folder)
    self._damaged: list[int] = []
    self._last: int = 0  # step of what was restored

  @property
  def steps(self) -> list[int]:
    """Steps on disk, oldest first; none where the folder does not exist; a save that is under way
    is not among them. OSError where the folder cannot be read: a run that took such a folder for an
    empty one would start from scratch.
    """
    return self._place.steps()

  @property
  def good(self) -> list[int]:
    """Steps on disk that `restore` did not find damaged, oldest first."""
    return [step for step in self.steps if step not in self._damaged]

  def found(self) -> list[int]:
    """`steps`, after several attempts where the disk fails; ValueError after the last of them."""
    return errors.attempt(lambda: self.steps, f"{self._place.name} cannot be read")

  def newest_meta(self) -> dict | None:
    """Metadata of the newest checkpoint that has them whole; None for none. ValueError where the
    disk fails.
    """
    for step in reversed(self.found()):
      try:
        return errors.attempt(
          lambda: self.meta(step),
          f"the metadata of step {step} in {self._place.name} cannot be read",
        )
      except (Damaged, OSError, ValueError) as e:
        if errors.is_failure(e):
          raise
    return None

  def meta(self, step: int) -> dict:
    """The metadata of one checkpoint. Raises Damaged where they do not match their digest."""
    meta = json.loads(self._place.read(step))
    if not isinstance(meta, dict) or not isinstance(meta.get("digest"), dict):
      raise Damaged("its metadata holds no digest")
    if "sha256" in meta and meta.pop("sha256") != sha256_of(meta):  # siglax 0.1 wrote none
      raise Damaged("its metadata does not match its digest")
    return meta

  def restore(self, abstract_state, before: int | None = None):
    """(state, meta) of the newest good checkpoint, or None when there is none at all.

    abstract_state: jax.ShapeDtypeStruct leaves with the shardings to restore to, of any mesh; a
    dict of some of the state's fields, such as {"params": …}, reads those alone. before: considers
    steps below it only. A damaged checkpoint is named in the log and passed over. Raises ValueError
    in one line when one cannot be read for another reason, and when there are checkpoints and none
    is good.
    """
    damaged = {}
    while (step := self._newest_but(damaged, before)) is not None:
      try:
        state, meta = self._read(step, abstract_state)
      except Damaged as e:
        logger.warning("checkpoint of step %d is damaged, trying the one before it: %s", step, e)
        damaged[step] = e
        continue
      self._damaged, self._last = list(damaged), step
      return state, meta
    if damaged:
      step, reason = next(iter(damaged.items()))
      raise ValueError(
        f"no checkpoint in {self._place.name} is good; the newest, of step {step}: {reason}"
      )
    return None

  def _newest_but(self, damaged, before) -> int | None:
    """The newest step on disk below `before` that is not in `damaged`; the same on all
    processes.
    """

    def find():
      return max(
        (
          step for step in self.found() if step not in damaged and (before is None or step < before)
        ),
        default=None,
      )

    return distributed.of_first(distributed.on_first(find))

  def _read(self, step, abstract_state) -> Any:
    """(state, meta) of one checkpoint. Damaged when it is; ValueError after several attempts that
    failed otherwise.

    All processes read their own parts and then agree on how it went. Damage is believed when it is
    seen twice.
    """
    seen, begin = 0, time.monotonic()
    for delay in (*errors.RETRY_SECONDS, None):
      state = meta = error = None
      try:
        meta = self.meta(step)
        state = self._read_state(step, abstract_state)
      # pylint: disable=broad-exception-caught; damage shows as many kinds of errors
      except Exception as e:
        error = e
      failed, damaged, tried = distributed.any_has(
        error is not None and errors.is_failure(error),
        error is not None,
        isinstance(error, errors.Unreachable),
      )
      if not damaged:
        error = self._compare(step, state, meta)
        if not any(distributed.any_has(error is not None)):
          state = (
            {k: state[k] for k in abstract_state} if isinstance(abstract_state, dict) else state
          )
          return state, meta
      self._place.drop(step)
      reason = "another process could not read it" if error is None else values.one_line(error)
      if not failed:
        seen += 1
        if seen == 2:
          raise Damaged(reason)
      if delay is None or tried:  # a server has had its attempts
        raise ValueError(
          f"the checkpoint of step {step} in {self._place.name} cannot be read, tried for "
          f"{time.monotonic() - begin:.0f} s: {reason}; "
          "nothing was changed, start again when it can be read"
        ) from error
      if failed:
        logger.warning(
          "reading the checkpoint of step %d failed, trying again in %.1f s: %s",
          step,
          delay,
          reason,
        )
      time.sleep(delay if failed else 0)

  def _read_state(self, step, abstract_state):
    if isinstance(abstract_state, dict) and "step" not in abstract_state:
      sharding = jax.tree.leaves(abstract_state)[0].sharding
      whole = (
        jax.sharding.NamedSharding(sharding.mesh, jax.P())
        if hasattr(sharding, "mesh")
        else sharding
      )
      abstract_state = {
        **abstract_state,
        "step": jax.ShapeDtypeStruct((), jnp.int32, sharding=whole),
      }
    restore_args = ocp.checkpoint_utils.construct_restore_args(abstract_state)
    args = ocp.args.PyTreeRestore(abstract_state, restore_args=restore_args, partial_restore=True)
    # The handler, unlike orbax's managers, waits for no other process: one that fails would keep
    # the rest waiting.
    state = ocp.PyTreeCheckpointHandler().restore(self._place.local(step) / "state", args=args)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
      if isinstance(leaf, jax.ShapeDtypeStruct):  # orbax leaves it as it is given
        raise Damaged(f"{paths.name(path)} is not in it")
    return jax.tree.map(lambda x: None if x is ocp.PLACEHOLDER else x, state)

  def _compare(self, step, state, meta) -> Damaged | None:
    """What does not fit: the folder's name, the metadata's step, the state's, or the state's
    digest.
    """
    wrong = [
      name for name, value in digest_lib.digest(state).items() if value != meta["digest"].get(name)
    ]
    if wrong:
      return Damaged(f"{wrong[0]} does not match its digest")
    of_state = state["step"] if isinstance(state, dict) else state.step
    of_state = step if of_state is None else int(of_state)  # None in a part that is read back
    if not step == meta.get("step") == of_state:
      return Damaged(
        f"the folder is of step {step}, its metadata of step {meta.get('step')}, its state of step "
        f"{of_state}"
      )
    return None


def sha256_of(meta: dict) -> str:
  """Of the metadata without its own digest."""
  return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
