"""Short runs in this process, many of one config, and what they leave."""

import json
import pathlib

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from siglax import config as config_lib
from siglax.training import loop
from siglax.training import program
from siglax.training import run as run_lib

import inject

TINY = str(pathlib.Path(__file__).parents[1] / "tiny.py")
STEPS = 12
DEFAULTS = {"eval.tasks": "()", "log.tensorboard": "False"}


@pytest.fixture(scope="module", autouse=True)
def shared_programs():
  optimize = jax.config.read("jax_disable_most_optimizations")
  with pytest.MonkeyPatch.context() as patch:
    share_programs(patch.setattr)
    jax.config.update("jax_disable_most_optimizations", True)  # compiles in a third of the time
    yield
  jax.config.update("jax_disable_most_optimizations", optimize)


def share_programs(setattr):
  """Runs of equal configs, but for what is kept of their checkpoints, share their program and their
  first state. They use one device, whose programs compile faster than those of eight.
  """
  programs, states = {}, {}
  init, initial_state = program.Program.__init__, run_lib.Run.initial_state
  free = (
    "keep_latest",
    "keep_every_steps",
    "keep_one_in",
    "keep_best",
    "verify",
    "max_failed_saves",
  )

  def __init__(self, config, *args, **kwargs):
    key = config.copy_and_resolve_references().to_dict()
    key["checkpoint"] = {k: v for k, v in key["checkpoint"].items() if k not in free}
    self.key = json.dumps(key, sort_keys=True)
    if self.key not in programs:
      before = set(vars(self))
      init(self, config, *args, **kwargs)
      programs[self.key] = {
        k: v for k, v in vars(self).items() if k not in before and k != "config"
      }
    vars(self).update(programs[self.key], config=config)

  def initial(self):
    if self.key not in states:
      states[self.key] = jax.device_get(initial_state(self))
    return jax.device_put(states[self.key], jax.tree.map(lambda x: x.sharding, self.abstract_state))

  setattr(jax, "device_count", lambda: 1)
  setattr(program.Program, "__init__", __init__)
  setattr(run_lib.Run, "initial_state", initial)


def make_config(**fields):
  """tests/tiny.py without evaluations, saved every 4 steps."""
  given = {name.replace("__", "."): str(value) for name, value in fields.items()}
  return config_lib.load(f"{TINY}:steps={STEPS}", DEFAULTS | given)


def run(workdir, **fields):
  return loop.train(make_config(**fields), workdir)


def state(workdir, step: int = STEPS) -> dict[str, np.ndarray]:
  """What orbax itself reads of a checkpoint, by path."""
  folder, reader = (
    pathlib.Path(workdir).absolute() / "checkpoints" / str(step) / "state",
    ocp.PyTreeCheckpointer(),
  )
  as_numpy = jax.tree.map(
    lambda _: ocp.RestoreArgs(restore_type=np.ndarray), reader.metadata(folder).item_metadata.tree
  )
  tree = reader.restore(folder, restore_args=as_numpy)
  return {
    jax.tree_util.keystr(path): np.asarray(x)
    for path, x in jax.tree_util.tree_leaves_with_path(tree)
  }


def steps(workdir) -> list[int]:
  return sorted(
    int(p.name) for p in (pathlib.Path(workdir) / "checkpoints").iterdir() if p.name.isdecimal()
  )


def records(workdir) -> list[dict]:
  return [
    json.loads(line) for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
  ]


def assert_equal(got: dict, want: dict):
  """Bit for bit."""
  assert got.keys() == want.keys()
  assert [
    k for k in want if got[k].tobytes() != want[k].tobytes() or got[k].dtype != want[k].dtype
  ] == []


def nonfinite_leaves(tree: dict) -> list[str]:
  floats = {k: x for k, x in tree.items() if jax.numpy.issubdtype(x.dtype, jax.numpy.floating)}
  return [k for k, x in floats.items() if not np.isfinite(x.astype(np.float32)).all()]


@pytest.fixture(scope="module")
def whole(shared_programs, tmp_path_factory):
  """The state at the end of a run that nothing disturbs, of the program that `inject.nonfinite`
  compiles.
  """
  workdir = tmp_path_factory.mktemp("whole")
  with inject.nonfinite():
    run(workdir)
  return state(workdir)
