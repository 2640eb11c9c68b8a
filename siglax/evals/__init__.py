"""Evaluations: what a run measures besides its training loss, in training and by `siglax evaluate`.

`config.eval.tasks` is a tuple of tasks; a task is {"kind", "name", "data": a data spec, …the kind's
own fields}:

    zero_shot  classnames, templates, examples              → acc1, acc5, mean_per_class_recall
    retrieval  examples, distinct, captions_per_image       → {text,image}_retrieval_recall@{1,5,10}
    loss       examples                                     → loss

A new kind is a module with METRICS and two functions, evaluate and check: their positional
parameters are what `run` provides (data, embedder, config, loss; of check data and config),
evaluate's keyword-only ones are the task's fields, which check takes too. check raises ValueError
for data that evaluate could not do with. Metrics are shares in 0..1, of which more is better, but
for LOWER_IS_BETTER. Beside them evaluate returns what is known of a metric whatever the
model: chance/<metric>, the value that guessing gets, and batch/<metric>, on which the metric
depends.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import re
from typing import Callable

from ml_collections import ConfigDict

from siglax.config import versions
from siglax.evals import loss as loss_lib
from siglax.evals import retrieval
from siglax.evals import zero_shot

KINDS = {
  "zero_shot": zero_shot.evaluate,
  "retrieval": retrieval.evaluate,
  "loss": loss_lib.evaluate,
}
DATA_CHECKS = {"zero_shot": zero_shot.check, "retrieval": retrieval.check, "loss": loss_lib.check}
METRICS = {"zero_shot": zero_shot.METRICS, "retrieval": retrieval.METRICS, "loss": loss_lib.METRICS}
LOWER_IS_BETTER = loss_lib.LOWER_IS_BETTER
# The task's name in CLIP_benchmark's result files; the loss has none there.
CLIP_BENCHMARK_TASKS = {"zero_shot": "zeroshot_classification", "retrieval": "zeroshot_retrieval"}


def run(
  config: ConfigDict,
  embedder,
  open_task_data: Callable,
  loss: Callable | None = None,
  facts: dict[str, float] | None = None,
) -> dict[str, float]:
  """{"eval/<name>/<metric>": value} of every task in config.eval.tasks. Global view: all processes
  call it together.

  embedder: .images(get, count) and .texts(list) → unit rows [n, d] in float32, .scale and .bias;
  the same arrays on every process, so every process returns the same metrics, and process 0 writes
  them.
  open_task_data: data spec → examples with len(), [i] → {"image", "captions", "label"} and
  .classnames.
  loss: the training loss, (zimg, ztxt, scale, bias, weights=, labels=) → scalar; needed by the kind
  "loss" only.
  facts: a dict that is updated with {"eval/<name>/chance/<metric>": value} and
  {"eval/<name>/batch/<metric>": examples}. Raises ValueError that starts with the task's field and
  name.
  """
  metrics = {}
  for i, task in enumerate(config.eval.tasks):
    function = KINDS[task["kind"]]
    provided = {"embedder": embedder, "config": config, "loss": loss}
    with _named(i, task):
      if loss is None and "loss" in _parameters(function, inspect.Parameter.POSITIONAL_OR_KEYWORD):
        raise ValueError(
          f'kind="{task["kind"]}" needs the training loss, which this caller did not give'
        )
      provided["data"] = open_task_data(task["data"])
      positional = [
        provided[k] for k in _parameters(function, inspect.Parameter.POSITIONAL_OR_KEYWORD)
      ]
      values = function(*positional, **_fields(task))
    known = values.keys() - METRICS[task["kind"]]
    metrics.update({f"eval/{task['name']}/{k}": v for k, v in values.items() if k not in known})
    if facts is not None:
      facts.update({f"eval/{task['name']}/{k}": v for k, v in values.items() if k in known})
  return metrics


def check(config: ConfigDict, open_task_data: Callable):
  """Opens the data of every task and looks at a few examples of each: ValueError in one line, as of
  `run`, for what a task lacks there. Needs no model.
  """
  for i, task in enumerate(config.eval.tasks):
    with _named(i, task):
      DATA_CHECKS[task["kind"]](open_task_data(task["data"]), config, **_fields(task))


@contextlib.contextmanager
def _named(i: int, task):
  """Puts the task's field and name before the message of a ValueError."""
  try:
    yield
  except ValueError as e:
    raise ValueError(f"config.eval.tasks.{i} ({task['name']!r}): {e}") from e


def _fields(task) -> dict:
  """The fields of the task's kind."""
  return {k: v for k, v in task.items() if k not in ("kind", "name", "data")}


def metric_names(config: ConfigDict) -> list[str]:
  """The keys that `run` returns."""
  return [f"eval/{task['name']}/{k}" for task in config.eval.tasks for k in METRICS[task["kind"]]]


def lower_is_better(name: str) -> bool:
  """Of a key that `run` returns."""
  return name.rpartition("/")[2] in LOWER_IS_BETTER


def clip_benchmark_json(
  config: ConfigDict, metrics: dict[str, float], model: str, pretrained: str, language: str = "en"
) -> list[dict]:
  """The metrics of `run` as CLIP_benchmark's records, one a task, to merge with its result files.

  A record is {dataset, model, pretrained, task, metrics, language}; the dataset is the task's name.
  """
  return [
    {
      "dataset": task["name"],
      "model": model,
      "pretrained": pretrained,
      "task": CLIP_BENCHMARK_TASKS[task["kind"]],
      "metrics": {k: metrics[f"eval/{task['name']}/{k}"] for k in METRICS[task["kind"]]},
      "language": language,
    }
    for task in config.eval.tasks
    if task["kind"] in CLIP_BENCHMARK_TASKS
  ]


def validate_tasks(config: ConfigDict):
  """Checks config.eval.tasks, their data specs and config.checkpoint.keep_best without reading
  data.
  """
  from siglax import data  # late: it imports the sources

  names = []
  for i, task in enumerate(config.eval.tasks):
    field = f"config.eval.tasks.{i}"
    if not hasattr(task, "items"):
      raise ValueError(
        f'{field}={task!r} must be a dict such as {{"kind": "loss", "name": "val", "data": {{…}}}}'
      )
    if not isinstance(task.get("kind"), str) or task["kind"] not in KINDS:
      raise ValueError(
        f"{field}.kind={task.get('kind')!r} is unknown; known are {', '.join(KINDS)}"
      )
    _validate_fields(task, field)
    name = task.get("name")
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
      raise ValueError(
        f"{field}.name={name!r} must be letters, digits, '_', '.' or '-'; it names "
        "eval/<name>/<metric>"
      )
    if name in names:
      raise ValueError(
        f"{field}.name={name!r} is also the name of config.eval.tasks.{names.index(name)}; change "
        "one"
      )
    names.append(name)
    if "data" not in task:
      raise ValueError(f'{field}.data is missing; give a spec such as {{"source": "shapes"}}')
    data.validate_spec(task["data"], f"{field}.data")
    if task["data"]["source"] == data.embeddings.SOURCE:
      raise ValueError(
        f'{field}.data.source="{data.embeddings.SOURCE}" has no pictures; name where these are'
      )
  best, known = config.checkpoint.keep_best, metric_names(config)
  if best is not None and best not in known:
    near = difflib.get_close_matches(best, known, n=1, cutoff=0.0)
    raise ValueError(
      f"config.checkpoint.keep_best={best!r} is no metric of config.eval.tasks"
      + (f"; did you mean {near[0]!r}?" if near else ", which is empty")
    )


def _validate_fields(task, field: str):
  known = _parameters(KINDS[task["kind"]], inspect.Parameter.KEYWORD_ONLY)
  for name, value in _fields(task).items():
    if name not in known:
      near = difflib.get_close_matches(name, [*known, "name", "data"], n=1, cutoff=0.75)
      hint = f"did you mean {near[0]}?" if near else f"{task['kind']} has {', '.join(known)}"
      if (new := versions.TASK.get(name)) in known:
        hint = f"it is called {new} now"
      raise ValueError(f"{field}.{name} is unknown; {hint}")
    right, needed = _CHECKS[name]
    if not (right(value) or value is None and known[name].default is None):
      raise ValueError(f"{field}.{name}={value!r} must be {needed}")


def _parameters(function, kind) -> dict[str, inspect.Parameter]:
  return {k: p for k, p in inspect.signature(function).parameters.items() if p.kind is kind}


def _is_count(value) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _are_texts(value) -> bool:
  return (
    isinstance(value, (tuple, list)) and len(value) > 0 and all(isinstance(x, str) for x in value)
  )


# What the fields of all kinds must be.
_CHECKS = {
  "examples": (_is_count, "a positive number of examples"),
  "captions_per_image": (_is_count, "a positive number of captions"),
  "distinct": (lambda value: isinstance(value, bool), "True or False"),
  "classnames": (_are_texts, "a tuple of names, one for each label"),
  "templates": (
    lambda value: _are_texts(value) and all(x.count("{}") == 1 for x in value),
    'a tuple of texts with one {} each, such as ("a photo of a {}.",)',
  ),
}
