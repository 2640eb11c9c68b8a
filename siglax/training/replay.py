"""One step of a run again: its batch, its loss, and which examples it was made of."""

from __future__ import annotations

import jax

from siglax import config as config_lib
from siglax.devices import mesh as mesh_lib
from siglax.devices import streams
from siglax.runs import bucket
from siglax.runs import folder as folder_lib
from siglax.runs import records
from siglax.runs import stored
from siglax.training import remat
from siglax.training import run as run_lib


def replay(folder, step: int) -> dict:
  """Trains from the newest good checkpoint before `step` up to it; nothing is written.

  folder: a run folder, with its data in place. step: as in metrics.jsonl, from 1. The result is the
  same bit for bit as in the run, on devices of the same kind and number. Returns {"step", "from":
  step of the checkpoint or 0, "loss", "grad_norm", "logged": the loss in metrics.jsonl or None,
  "examples": [{"data": index in config.data, "example": index in its source, "key": its name or
  None, "label", "captions"}, …] in the order of the batch}. Raises ValueError in one line for a
  step that the run does not have, or whose checkpoint cannot be read.
  """
  folder = bucket.opened(folder)
  checkpoints = stored.Stored(folder)
  run = run_lib.Run(config_of(folder, step), folder)
  check_step(run.shown, step, run.total_steps)
  restored = checkpoints.restore(run.abstract_state, before=step)
  state, start = (
    (run.initial_state(), 0) if restored is None else (restored[0], restored[1]["step"])
  )
  batches = run.batches(start)
  try:
    with jax.set_mesh(run.mesh):
      remat.choose(run)
      for i in range(start, step):
        rows = next(batches)
        state, metrics = run.update(i)(state, mesh_lib.to_global(run.mesh, rows))
  finally:
    batches.close()
  values = {name: float(metrics[name]) for name in ("loss", "grad_norm")}
  fields = lambda example: {name: example.get(name) for name in ("key", "label", "captions")}
  examples = [{"data": k, "example": i, **fields(run.sources[k][i])} for k, i in zip(*batches.last)]
  return {
    "step": step,
    "from": start,
    **values,
    "logged": _logged(folder, step),
    "examples": examples,
  }


def check_step(folder, step: int, total_steps: int):
  """ValueError for a step that the run in a folder does not have."""
  if not 1 <= step <= total_steps:
    raise ValueError(f"--step {step} must lie in 1 … {total_steps}, the steps of {folder}")


def config_of(folder, step: int):
  """The config that a run took a step with. A run that was made longer since took it by the
  schedule of the first checkpoint after it.
  """
  checkpoints, config = stored.Stored(folder), folder_lib.read_config(folder)
  after = next((s for s in checkpoints.steps if s >= step), None)
  return config if after is None else config_lib.from_json(checkpoints.meta(after)["config"])


def _logged(folder, step) -> float | None:
  if not (folder / records.FILE).exists():
    return None
  return next(
    (r["loss"] for r in records.read(folder) if r["step"] == step and r.get("loss") is not None),
    None,
  )


def show(report: dict, title: str):
  """Prints a report as a table, and a line for each example."""
  logged, loss = report["logged"], report["loss"]
  if logged is None:
    same = "the step was not logged"
  else:
    same = f"{records.FILE} has " + (
      "the same" if logged == loss else f"{logged!r}: made on other devices, or of another length"
    )
  streams.print_table(
    title,
    [
      ("replayed from step", str(report["from"])),
      ("loss", f"{loss!r}; {same}"),
      ("grad_norm", f"{report['grad_norm']!r}"),
    ],
  )
  for row, example in enumerate(report["examples"]):
    known = {name: value for name, value in example.items() if value is not None}
    print(f"  row {row}: " + "  ".join(f"{name} {value}" for name, value in known.items()))
