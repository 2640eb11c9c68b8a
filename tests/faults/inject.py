"""Faults for tests/faults and benchmarks/soak.py: what devices, disks and neighbours do to a run,
as context managers.

They take the places of functions that a run calls, so that they work in this process;
tests/faults/child.py brings them into others. FAULTS names them all.
"""

import contextlib
import errno
import os
import pathlib
import resource
import threading
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from siglax.training import evaluation
from siglax.training import program
from siglax.training import step as step_lib

VALUES = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}
PLACES = ("gradient", "moment", "parameter")


def error(kind: str) -> Exception:
  """A new error: "EIO" and its kind as the operating system raises them, "memory", or "exhausted"
  as XLA does.
  """
  if kind == "memory":
    return MemoryError()
  if kind == "exhausted":
    return RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1234 bytes.")
  number = getattr(errno, kind)
  return OSError(number, os.strerror(number))


@contextlib.contextmanager
def nonfinite(
  place: str | None = None, step: int = 0, value: str = "nan", leaf: int = 0, times: int = 1
):
  """Puts a value into a leaf of the gradient of updates step + 1, step + 2, … (`times` of them), or
  of the moments or the parameters after them. None does nothing, in the same compiled program as
  the others.
  """
  make, update = step_lib.make_value_and_grad, program.Program.update

  def make_value_and_grad(*args):
    value_and_grad = make(*args)

    def poisoned(params, batch, step):
      found, grads = value_and_grad(params, batch, step)
      which, number = batch["poison_leaf"][0], batch["poison"][0]
      leaves, tree = jax.tree.flatten(grads)
      leaves = [jnp.where(which == i, number.astype(g.dtype), g) for i, g in enumerate(leaves)]
      return found, jax.tree.unflatten(tree, leaves)

    return poisoned

  def poisoned_update(self, at=0):
    compiled = update(self, at)
    now = place is not None and step <= at < step + times

    def run(state, batch):
      gradient = now and place == "gradient"
      rows = batch["weight"].shape
      poison = {
        "poison_leaf": np.full(rows, leaf if gradient else -1, np.int32),
        "poison": np.full(rows, VALUES[value], np.float32),
      }
      state, metrics = compiled(
        state, {**batch, **jax.device_put(poison, batch["weight"].sharding)}
      )
      if now and not gradient:
        part = "opt_state" if place == "moment" else "params"
        state = state.replace(**{part: _poison(getattr(state, part), leaf, value)})
      return state, metrics

    def trace(state, batch):
      rows = batch["weight"]
      poison = {
        name: jax.ShapeDtypeStruct(rows.shape, dtype, sharding=rows.sharding)
        for name, dtype in (("poison_leaf", np.int32), ("poison", np.float32))
      }
      return compiled.trace(state, {**batch, **poison})

    run.trace = trace  # of a jitted function
    return run

  with (
    mock.patch.object(step_lib, "make_value_and_grad", make_value_and_grad),
    mock.patch.object(program.Program, "update", poisoned_update),
  ):
    yield


def _poison(tree, leaf: int, value: str):
  """Of the leaves that hold floats, the one of this number, counted round and round."""
  leaves, structure = jax.tree.flatten(tree)
  floats = [i for i, x in enumerate(leaves) if jnp.issubdtype(x.dtype, jnp.floating)]
  i = floats[leaf % len(floats)]
  x = leaves[i]
  leaves[i] = jax.jit(lambda x: x.at[(0,) * x.ndim].set(VALUES[value]), out_shardings=x.sharding)(x)
  return jax.tree.unflatten(structure, leaves)


@contextlib.contextmanager
def failing_reads(kind: str = "EIO", times: int = 1, where: str = "state"):
  """The next reads of a checkpoint's state, of its metadata, or of the list of checkpoints fail."""
  left = [times]

  def fails(function, matches=lambda *args: True):
    def call(*args, **kwargs):
      if left[0] > 0 and matches(*args):
        left[0] -= 1
        raise error(kind)
      return function(*args, **kwargs)

    return call

  if where == "state":
    patch = mock.patch.object(
      ocp.PyTreeCheckpointHandler, "restore", fails(ocp.PyTreeCheckpointHandler.restore)
    )
  elif where == "meta":
    of_meta = lambda path: path.parts[-2:] == ("meta", "metadata")
    patch = mock.patch.object(pathlib.Path, "read_bytes", fails(pathlib.Path.read_bytes, of_meta))
  else:
    of_list = lambda path=".": os.path.basename(os.fspath(path)) == "checkpoints"
    patch = mock.patch.object(os, "listdir", fails(os.listdir, of_list))
  with patch:
    yield left


@contextlib.contextmanager
def failing_saves(kind: str = "ENOSPC", times: int = 10**9, after: int = 0):
  """The folders of saves cannot be made: `times` of them, after the first `after`."""
  made, mkdir = [0], os.mkdir

  def fails(path, *args, **kwargs):
    if "orbax-checkpoint-tmp" in pathlib.Path(os.fspath(path)).name:
      made[0] += 1
      if after < made[0] <= after + times:
        raise error(kind)
    return mkdir(path, *args, **kwargs)

  with mock.patch.object(os, "mkdir", fails):
    yield made


@contextlib.contextmanager
def small_files(size: int):
  """From the first save on, writes beyond this size of a file fail (EFBIG), those of C++ libraries
  too, as on a full disk.
  """
  before, save = resource.getrlimit(resource.RLIMIT_FSIZE), ocp.AsyncCheckpointer.save

  def limited(self, *args, **kwargs):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    return save(self, *args, **kwargs)

  with mock.patch.object(ocp.AsyncCheckpointer, "save", limited):
    try:
      yield
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def hanging_thread():
  """A thread that is no daemon and never ends, as a disk that does not answer leaves one."""
  threading.Thread(target=threading.Event().wait).start()
  yield


@contextlib.contextmanager
def deaf_evaluation():
  """An evaluation that never ends and swallows interrupts, as some libraries do."""

  def call(self, params):
    while True:
      try:
        time.sleep(1)
      except KeyboardInterrupt:
        pass

  with mock.patch.object(evaluation.Evaluator, "__call__", call):
    yield


FAULTS = {
  f.__name__: f
  for f in (nonfinite, failing_reads, failing_saves, small_files, hanging_thread, deaf_evaluation)
}
