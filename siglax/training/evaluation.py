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
from siglax.data import page
from siglax.data import pipeline
from siglax.data import uploads
from siglax.devices import cores
from siglax.devices import mesh as mesh_lib
from siglax.devices import streams
from siglax.runs import each as each_lib
from siglax.runs import summary
from siglax.tower import origin as origin_lib
from siglax.training import checks
from siglax.training import tasks as tasks_lib


class Evaluator:
  """All tasks of config.eval: parameters → {"eval/<name>/<metric>": value}. Global view: all
  processes call together.

  config: resolved. Data is opened, and each program compiled, once for all calls. facts, and each
  of the last call: see `evals.run`.
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
    loss = losses.make(config.loss, *mesh_lib.of_batch(mesh, config.mesh.slices))
    self._loss = jax.jit(loss, out_shardings=mesh_lib.replicated(mesh))
    self._task_data, self.facts, self.each = {}, {}, {}

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
    self._embedder.params, self.each = params, {}
    return evals.run(
      self._config, self._embedder, self._open_task_data, self._compute_loss, self.facts, self.each
    )

  def show(self) -> dict[str, str]:
    """Of the parameters of the last call: see `evals.show`."""
    return evals.show(self._config, self._embedder, self._open_task_data)

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
  source, overrides: dict[str, str] | None = None, out=None, tasks=(), classnames=None, html=None
) -> dict[str, float]:
  """Evaluates what siglax.load takes, prints a table and writes CLIP_benchmark's records to `out`.
  Both may be URLs. out: None takes DIR/eval.json of a run whose own tasks are evaluated, with the
  values of single examples in DIR/each.npz, unless an override changes a task, and else writes
  nothing.

  overrides: changes of the config, such as {"eval.batch_size": "512"}. tasks: words of a command
  line (siglax/training/tasks.py) in place of the run's own tasks. classnames: a file, for the tasks
  that give none. html: a page to write, a path or a URL. The training data need not be there.
  """
  given, origin = str(source), origin_lib.find(source)
  config = origin.config
  of_run, own_tasks = out is None and origin.foreign is None and not tasks, config.eval.tasks
  if of_run:
    out = f"{given.removesuffix(':img').rstrip('/')}/eval.json"
  if out is not None:
    _check_out("--out", str(out), ".json")
  if html is not None:
    _check_out("--html", str(html), ".html")
  # Whatever devices there are: how the training was split changes no embedding.
  config.mesh.data, config.mesh.fsdp, config.mesh.shard = "rest", 1, ()
  config.mesh.slices = "auto"
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
  mesh = mesh_lib.make(config.mesh.data, config.mesh.fsdp, config.mesh.slices)
  model = origin.model()
  evaluator = Evaluator(config, model, origin.text, mesh)
  evaluator.check()
  evaluator.use_workers()
  values = evaluator(origin.read(model, mesh))
  if jax.process_index() == 0:
    name = origin.folder.name
    records = evals.clip_benchmark_json(config, values, model="siglax", pretrained=name)
    rows = [(k, f"{v:.4f}{summary.fact_in_words(k, evaluator.facts)}") for k, v in values.items()]
    streams.print_table(f"siglax evaluate {given}", rows)  # before it may turn out to have no room
    if out is not None:
      _write("--out", str(out), json.dumps(records, indent=1).encode())
      streams.say(f"wrote {out}")
    if of_run and config.eval.tasks == own_tasks:
      of_each = f"{out.removesuffix('eval.json')}{each_lib.FILE}"
      _write("--out", of_each, each_lib.encode(evaluator.each))
  if html is not None:
    sections = evaluator.show()
    if jax.process_index() == 0:
      _write("--html", str(html), _page(given, config, values, evaluator.facts, sections).encode())
      streams.say(f"wrote {html}")
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


def _check_out(flag: str, out: str, suffix: str):
  parent = pathlib.Path(out).parent
  if not (buckets.is_url(out) or parent.is_dir()):
    raise ValueError(f"{flag} {out}: there is no folder {parent}")
  if not out.endswith(suffix) and uploads.exists(out):
    raise ValueError(f"{flag} {out} exists and is no {suffix} file; give another path")


def _write(flag: str, out: str, content: bytes):
  try:
    uploads.write(out, content)
  except OSError as e:
    raise ValueError(f"{flag} {out} cannot be written: {e.strerror or e}; give another path") from e


def _page(given: str, config, values, facts, sections: dict[str, str]) -> str:
  """HTML of all metrics, and of what is behind them. sections: of `Evaluator.show`."""
  parts = []
  for task in config.eval.tasks:
    name = task["name"]
    rows = [
      [
        page.escaped(metric),
        f"{values[key]:.4f}",
        _shown(facts.get(f"eval/{name}/chance/{metric}")),
      ]
      for metric in evals.KINDS[task["kind"]].metrics
      for key in [f"eval/{name}/{metric}"]
    ]
    parts += [page.heading(name), page.table(["metric", "value", "chance"], rows, 1)]
    parts.append(sections.get(name, ""))
  return page.document(f"siglax evaluate {given}", "\n".join(parts))


def _shown(chance: float | None) -> str:
  return "" if chance is None else f"{chance:.4f}"
