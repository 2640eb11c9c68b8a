"""Evaluations: what a run measures besides its training loss, in training and by `siglax evaluate`.

`config.eval.tasks` is a tuple of tasks; a task is {"kind", "name", "data": a data spec, …the kind's
own fields}. docs/recipes/evaluation.md lists the kinds, their fields and their metrics.

A kind is a file with a `KIND` (kind.py says what that declares) and its place in KINDS; one of a
user's own file is registered with `KINDS.register`.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from typing import Callable

from ml_collections import ConfigDict
import numpy as np

from siglax.config import options
from siglax.config.parts import Registry
from siglax.evals import alignment
from siglax.evals import calibration
from siglax.evals import composed
from siglax.evals import compositionality
from siglax.evals import knn
from siglax.evals import linear_probe
from siglax.evals import loss as loss_lib
from siglax.evals import retrieval
from siglax.evals import zero_shot
from siglax.evals.kind import EACH
from siglax.evals.kind import Kind


class _Kinds(Registry[Kind]):
  """The better direction of a metric is known by its name, so all kinds agree on it."""

  def _add(self, part: Kind):
    for other in self.values():
      for metric in set(part.metrics) & set(other.metrics):
        if (metric in part.lower_is_better) != (metric in other.lower_is_better):
          raise ValueError(
            f"the evaluation kind {part.name!r} has the metric {metric!r} with another "
            f"lower_is_better than {other.name!r}; give it another name"
          )
    super()._add(part)


KINDS = _Kinds(
  "evaluation kind",
  (
    zero_shot.KIND,
    retrieval.KIND,
    loss_lib.KIND,
    linear_probe.KIND,
    knn.KIND,
    alignment.KIND,
    calibration.KIND,
    compositionality.KIND,
    composed.KIND,
  ),
)


def run(
  config: ConfigDict,
  embedder,
  open_task_data: Callable,
  loss: Callable | None = None,
  facts: dict[str, float] | None = None,
  each: dict[str, np.ndarray] | None = None,
) -> dict[str, float]:
  """{"eval/<name>/<metric>": value} of every task in config.eval.tasks. Global view: all processes
  call it together.

  embedder: .images(get, count) and .texts(list) → unit rows [n, d] in float32, .scale and .bias;
  the same arrays on every process, so every process returns the same metrics, and process 0 writes
  them.
  open_task_data: data spec → examples with len(), [i] → {"image", "captions", "label"},
  .captions(i), which decodes no image, .labels(), all labels or None, and .classnames.
  loss: the training loss, (zimg, ztxt, scale, bias, weights=, labels=) → scalar; needed by kinds
  that declare it.
  facts: a dict that is updated with {"eval/<name>/chance/<metric>": value} and
  {"eval/<name>/batch/<metric>": examples}.
  each: a dict that is updated with {"<name>/<metric>": the value of each example, [n]} of the
  metrics that are means over examples.
  Raises ValueError that starts with the task's field and name.
  """
  metrics = {}
  for i, task in enumerate(config.eval.tasks):
    kind = KINDS[task["kind"]]
    with _named(i, task):
      if loss is None and kind.needs_loss:
        raise ValueError(
          f'kind="{kind.name}" needs the training loss, which this caller did not give'
        )
      data, fields = _opened(kind, task, open_task_data)
      values = dict(kind.evaluate(data, embedder, config, loss, **fields))
      kind.check_values(values)
    prefix = f"eval/{task['name']}"
    metrics.update({f"{prefix}/{name}": float(values.pop(name)) for name in kind.metrics})
    of_each = {f"{EACH}/{name}" for name in kind.metrics} & values.keys()
    of_each = {name.removeprefix(f"{EACH}/"): values.pop(name) for name in sorted(of_each)}
    if each is not None:
      each.update({f"{task['name']}/{name}": value for name, value in of_each.items()})
    if facts is not None:
      facts.update({f"{prefix}/{name}": value for name, value in values.items()})
  return metrics


def check(config: ConfigDict, open_task_data: Callable):
  """Opens the data of every task and looks at a few examples of each, and at all labels that can be
  read without pictures: ValueError in one line, as of `run`, for what a task lacks there. Needs no
  model.
  """
  for i, task in enumerate(config.eval.tasks):
    kind = KINDS[task["kind"]]
    with _named(i, task):
      data, fields = _opened(kind, task, open_task_data)
      kind.check(data, config, **fields)


def show(config: ConfigDict, embedder, open_task_data: Callable) -> dict[str, str]:
  """{task: HTML of what is behind its metrics}, of the tasks whose kinds show it. Arguments, and
  who calls it, as of `run`.
  """
  found = {}
  for i, task in enumerate(config.eval.tasks):
    kind = KINDS[task["kind"]]
    if kind.show is not None:
      with _named(i, task):
        data, fields = _opened(kind, task, open_task_data)
        found[task["name"]] = kind.show(data, embedder, config, task["name"], **fields)
  return found


def _opened(kind: Kind, task, open_task_data: Callable):
  """(examples, fields) of a task; in a field that is a data spec stand its examples."""
  fields = kind.values(task)
  return open_task_data(task["data"]), {
    name: open_task_data(value) if name in kind.specs else value for name, value in fields.items()
  }


@contextlib.contextmanager
def _named(i: int, task):
  """Puts the task's field and name before the message of a ValueError."""
  try:
    yield
  except ValueError as e:
    raise ValueError(f"config.eval.tasks.{i} ({task['name']!r}): {e}") from e


def metric_names(config: ConfigDict) -> list[str]:
  """The keys that `run` returns."""
  return [
    f"eval/{task['name']}/{metric}"
    for task in config.eval.tasks
    for metric in KINDS[task["kind"]].metrics
  ]


def lower_is_better(name: str) -> bool:
  """Of a key that `run` returns."""
  metric = name.rpartition("/")[2]  # of which _Kinds knows one direction only
  return any(metric in kind.lower_is_better for kind in KINDS.values())


def in_training_batches(config: ConfigDict) -> bool:
  """Whether a task computes the training loss, and so needs config.batch_size to be divisible."""
  return any(KINDS[task["kind"]].needs_loss for task in config.eval.tasks)


def clip_benchmark_json(
  config: ConfigDict, metrics: dict[str, float], model: str, pretrained: str, language: str = "en"
) -> list[dict]:
  """The metrics of `run` as CLIP_benchmark's records, one a task, to merge with its result files.

  A record is {dataset, model, pretrained, task, metrics, language}; the dataset is the task's name,
  the task CLIP_benchmark's word for the kind, or the kind itself where it has none.
  """
  return [
    {
      "dataset": task["name"],
      "model": model,
      "pretrained": pretrained,
      "task": kind.clip_benchmark or kind.name,
      "metrics": {name: metrics[f"eval/{task['name']}/{name}"] for name in kind.metrics},
      "language": language,
    }
    for task in config.eval.tasks
    for kind in [KINDS[task["kind"]]]
  ]


def markdown() -> str:
  """The kinds, their metrics and fields, for docs/recipes/evaluation.md."""
  return "\n\n".join(_in_markdown(kind) for kind in KINDS.values())


def _in_markdown(kind: Kind) -> str:
  lower = " (the lower, the better)"
  metrics = [f"`{name}`{lower * (name in kind.lower_is_better)}" for name in kind.metrics]
  return f"`{kind.name}`: {kind.doc}. {', '.join(metrics)}.\n\n{options.table(kind.fields)}"


def validate_tasks(config: ConfigDict):
  """Checks config.eval.tasks, their data specs and config.checkpoint.keep_best without reading
  data.
  """
  names = []
  for i, task in enumerate(config.eval.tasks):
    _validate_task(task, f"config.eval.tasks.{i}")
    if task["name"] in names:
      raise ValueError(
        f"config.eval.tasks.{i}.name={task['name']!r} is also the name of "
        f"config.eval.tasks.{names.index(task['name'])}; change one"
      )
    names.append(task["name"])
  best, known = config.checkpoint.keep_best, metric_names(config)
  if best is not None and best not in known:
    near = difflib.get_close_matches(best, known, n=1, cutoff=0.0)
    raise ValueError(
      f"config.checkpoint.keep_best={best!r} is no metric of config.eval.tasks"
      + (f"; did you mean {near[0]!r}?" if near else ", which is empty")
    )


def _validate_task(task, field: str):
  from siglax import data  # late: it opens files and pictures, which an evaluation's maths does not

  if not hasattr(task, "items"):
    raise ValueError(
      f'{field}={task!r} must be a dict such as {{"kind": "loss", "name": "val", "data": {{…}}}}'
    )
  kind = task.get("kind")
  if not isinstance(kind, str) or kind not in KINDS:
    raise ValueError(f"{field}.kind={kind!r} is unknown; known are {', '.join(KINDS)}")
  KINDS[kind].values(task, f"{field}.")
  name = task.get("name")
  if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
    raise ValueError(
      f"{field}.name={name!r} must be letters, digits, '_', '.' or '-'; it names "
      "eval/<name>/<metric>"
    )
  if "data" not in task:
    raise ValueError(f'{field}.data is missing; give a spec such as {{"source": "shapes"}}')
  for spec in ("data", *KINDS[kind].specs):
    data.validate_spec(task[spec], f"{field}.{spec}")
    if not data.SOURCES[source := task[spec]["source"]].pictures:
      raise ValueError(f'{field}.{spec}.source="{source}" has no pictures; name where these are')
