"""Evaluation of a model's parameters: in training, and of any towers by `siglax evaluate`."""

from __future__ import annotations

import json
import pathlib

import jax
import numpy as np

from siglax import config as config_lib
from siglax import data as data_lib
from siglax import evals
from siglax import losses
from siglax import models
from siglax import tower
from siglax.config import fields
from siglax.data import buckets
from siglax.data import pipeline
from siglax.data import uploads
from siglax.devices import cores
from siglax.devices import mesh as mesh_lib
from siglax.devices import streams
from siglax.runs import summary
from siglax.tower import origin as origin_lib
from siglax.training import checks
from siglax.training import tasks as tasks_lib


class Evaluator:
  """All tasks of config.eval: parameters → {"eval/<name>/<metric>": value}. Global view: all
  processes call together.

  config: resolved. Data is opened, and each program compiled, once for all calls. facts: see
  `evals.run`.
  """

  def __init__(self, config, model, text, mesh):
    models.check_fit(config)
    self._config, self._mesh = config, mesh
    self._embedder = tower.Embedder(
      model,
      None,
      text,
      mesh,
      batch_size=config.eval.batch_size,
      threads=config.loader.threads or cores.usable(),
    )
    loss = losses.make(config.loss, mesh, mesh_lib.BATCH_AXES)
    self._loss = jax.jit(loss, out_shardings=mesh_lib.replicated(mesh))
    self._task_data, self.facts = {}, {}

  def check(self):
    """Opens the data of all tasks; ValueError in one line for what one of them lacks. Compiles
    nothing.
    """
    evals.check(self._config, self._open_task_data)

  def use_workers(self):
    """Has the pictures of large tasks read by worker processes, as config.loader says or as suits
    the cores: where no training has workers of its own.
    """
    sources = [data.source for data in self._task_data.values()]
    threads, workers = pipeline.loader_threads(self._config, sources)
    self._embedder.threads, self._embedder.workers = threads, workers

  def __call__(self, params) -> dict[str, float]:
    self._embedder.params = params
    return evals.run(
      self._config, self._embedder, self._open_task_data, self._compute_loss, self.facts
    )

  def _compute_loss(self, zimg, ztxt, scale, bias, weights, labels):
    rows = mesh_lib.batch_sharding(self._mesh)
    scale, bias = jax.device_put(
      (np.float32(scale), np.float32(bias)), mesh_lib.replicated(self._mesh)
    )
    pairs = jax.device_put({"weights": weights, "labels": labels}, rows)
    return self._loss(*jax.device_put((zimg, ztxt), rows), scale, bias, **pairs)

  def _open_task_data(self, spec):
    """A task's examples; opened once, also where several tasks read the same."""
    key = repr(sorted(spec.items()))
    if key not in self._task_data:
      self._task_data[key] = data_lib.EvalExamples(data_lib.open_source(spec), self._config)
    return self._task_data[key]


def evaluate(
  source, overrides: dict[str, str] | None = None, out=None, tasks=(), classnames=None
) -> dict[str, float]:
  """Evaluates what siglax.load takes, prints a table and writes CLIP_benchmark's records to `out`.
  Both may be URLs. out: None takes DIR/eval.json of a run whose own tasks are evaluated, and else
  writes nothing.

  overrides: changes of the config, such as {"eval.batch_size": "512"}. tasks: words of a command
  line (siglax/training/tasks.py) in place of the run's own tasks. classnames: a file, for the tasks
  that give none. The training data need not be there.
  """
  given, origin = str(source), origin_lib.find(source)
  config = origin.config
  if out is None and origin.foreign is None and not tasks:
    out = f"{given.removesuffix(':img').rstrip('/')}/eval.json"
  if out is not None:
    _check_out(str(out))
  # Whatever devices there are: how the training was split changes no embedding.
  config.mesh.data, config.mesh.fsdp, config.mesh.shard = "rest", 1, ()
  if tasks:
    config.eval.tasks = tasks_lib.parse(tasks)
  for field, text in (overrides or {}).items():
    config_lib.override(config, field, text)
    if not fields.all_fields()[fields.at(field)].evaluation:
      raise ValueError(
        f"config.{field} is the run's own; an evaluation can change "
        f"{', '.join(fields.changeable_in_evaluation())}"
      )
  if classnames is not None:
    config.eval.tasks = tasks_lib.with_classnames(config.eval.tasks, classnames)
  checks.validate_evaluation(config, jax.device_count())
  _check_towers(config, origin, given)
  mesh, model = mesh_lib.make(config.mesh.data, config.mesh.fsdp), origin.model()
  evaluator = Evaluator(config, model, origin.text, mesh)
  evaluator.check()
  evaluator.use_workers()
  values = evaluator(origin.read(model, mesh))
  if jax.process_index() == 0:
    name = origin.folder.name
    records = evals.clip_benchmark_json(config, values, model="siglax", pretrained=name)
    rows = [(k, f"{v:.4f}{summary.fact_in_words(k, evaluator.facts)}") for k, v in values.items()]
    if out is not None:
      rows.append(("file", str(out)))
    streams.print_table(f"siglax evaluate {given}", rows)
    if out is not None:
      _write(str(out), records)
  return values


def _check_towers(config, origin, given: str):
  """ValueError for a tower, or a tokenizer, that the tasks need and that is not there."""
  for i, task in enumerate(config.eval.tasks):
    kind = evals.KINDS[task["kind"]]
    missing = "image" if "image" not in origin.towers else "text"
    if missing not in origin.towers and (missing == "image" or kind.needs_texts):
      problem = f"{given} has no {missing} tower; give one that has"
    elif kind.needs_texts and origin.text is None:
      problem = f"{given} has no tokenizer; put it into its folder"
    else:
      continue
    raise ValueError(f'config.eval.tasks.{i} ({task["name"]!r}): kind="{kind.name}": {problem}')


def _check_out(out: str):
  parent = pathlib.Path(out).parent
  if not (buckets.is_url(out) or parent.is_dir()):
    raise ValueError(f"--out {out}: there is no folder {parent}")
  if not out.endswith(".json") and uploads.exists(out):
    raise ValueError(f"--out {out} exists and is no .json file; give another path")


def _write(out: str, records: list[dict]):
  try:
    uploads.write(out, json.dumps(records, indent=1).encode())
  except OSError as e:
    raise ValueError(f"--out {out} cannot be written: {e.strerror or e}; give another path") from e
