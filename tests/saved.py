"""A run folder with one checkpoint, for tests that need no training."""

from siglax.runs import checkpoint
from siglax.runs import folder as folder_lib
from siglax.training import run as run_lib


def write(config, workdir, change=lambda params: params):
  """The run of a config; its checkpoint holds the parameters of its start, changed by `change`."""
  run = run_lib.Run(config, workdir)
  run.workdir.mkdir(parents=True, exist_ok=True)
  folder_lib.write(run.workdir, run.config, run.text)
  state = run.initial_state()
  state = state.replace(params=change(state.params))
  checkpoints = checkpoint.Checkpoints(run.workdir, run.config.checkpoint)
  checkpoints.save(0, state, {}, last=True)
  checkpoints.close()
  return run
