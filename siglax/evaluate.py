"""`siglax evaluate`: the evaluation tasks of a run folder on its newest good checkpoint."""

from __future__ import annotations

import json
import pathlib

import jax

from siglax import config as config_lib
from siglax import evals
from siglax import metrics
from siglax import tower
from siglax import train


def evaluate(folder, overrides: dict[str, str] | None = None, out=None) -> dict[str, float]:
  """Evaluates a run folder, prints a table and writes CLIP_benchmark's records to `out` (folder/eval.json).

  overrides: changes of the run's config, such as {"eval.batch_size": "512"}.
  """
  folder = pathlib.Path(folder)
  config = tower.read_config(folder)
  out = pathlib.Path(out or folder / "eval.json")
  if not out.parent.is_dir():
    raise ValueError(f"--out {out}: there is no folder {out.parent}")
  # Whatever devices there are: how the training was split changes no embedding.
  config.mesh.data, config.mesh.fsdp, config.mesh.shard, config.train.microbatch = "rest", 1, (), None
  for field, text in (overrides or {}).items():
    config_lib.override(config, field, text)
  config.text.tokenizer = str(folder / tower.TOKENIZER)
  run = train.Run(config, folder)
  if not run.config.eval.tasks:
    raise ValueError("config.eval.tasks is empty; the run's config must name what to evaluate")
  values = run.evaluate(tower.read_params(folder, run.model, run.mesh))
  if jax.process_index() == 0:
    records = evals.clip_benchmark_json(run.config, values, model="siglax", pretrained=folder.name)
    out.write_text(json.dumps(records, indent=1))
    metrics.print_table(f"siglax evaluate {folder}", [(k, f"{v:.4f}") for k, v in values.items()] + [("file", str(out))])
  return values
