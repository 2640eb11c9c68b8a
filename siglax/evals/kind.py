"""What a kind of evaluation declares of itself. siglax/evals/__init__.py lists the kinds."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np

from siglax.config import options
from siglax.config import versions
from siglax.config.parts import Field

# Of every task, whatever its kind.
COMMON_FIELDS = ("kind", "name", "data")
# Before the name of a metric: its value of each example.
EACH = "each"
# In an array that a kind makes on the host at a time.
MAX_NUMBERS = 2**24


def any_data(data, config, **fields):
  """The check of a kind that takes all data."""
  del data, config, fields


def means(of_each: Mapping[str, np.ndarray]) -> dict:
  """{metric: its mean over examples, "each/<metric>": the value of each example} of the latter."""
  return {
    **{name: float(np.mean(values)) for name, values in of_each.items()},
    **{f"{EACH}/{name}": np.asarray(values, np.float32) for name, values in of_each.items()},
  }


@dataclasses.dataclass(frozen=True)
class Kind:
  """A kind of evaluation: how it is computed, and what a config, a run and the docs need to know.

  name: in the `kind` of a task of config.eval.tasks. doc: one sentence.
  metrics: names of what it measures; a run writes them as eval/<task>/<metric>. Of each, more is
  better but of those in lower_is_better.
  evaluate: (data, embedder, config, loss, **fields) → {metric: float}, and what is known whatever
  the model: "chance/<metric>", the value that guessing gets, and "batch/<metric>", the examples in
  a block on which the metric depends. Of a metric that is a mean over examples also
  "each/<metric>": the values of all of them, [n] (`means` makes both). data, embedder and loss are
  those of `siglax.evals.run`, config the run's. Global view: all processes call it together and get
  the same.
  check: (data, config, **fields) → None, or a ValueError for data that evaluate could not do with;
  it needs no model, looks at a few examples, and at all labels that can be read without pictures.
  fields: those of its tasks, beside kind, name and data; evaluate and check get the value of each.
  specs: those of its fields that are data specs too, of which both get the examples, as of data.
  show: (data, embedder, config, name, **fields) → HTML of what is behind the metrics, for a page
  (siglax/evals/showing.py); name: the task's. It embeds again. Global view, as evaluate.
  needs_texts: it embeds texts, so an image tower alone cannot be evaluated by it.
  needs_loss: it computes the training loss, in blocks of config.batch_size examples.
  clip_benchmark: the kind's name in CLIP_benchmark's result files, None where there is none.
  """

  name: str
  doc: str
  metrics: tuple[str, ...]
  evaluate: Callable[..., dict[str, Any]]
  check: Callable[..., None] = any_data
  fields: Mapping[str, Field] = dataclasses.field(default_factory=dict)
  specs: tuple[str, ...] = ()
  show: Callable[..., str] | None = None
  lower_is_better: tuple[str, ...] = ()
  needs_texts: bool = True
  needs_loss: bool = False
  clip_benchmark: str | None = None

  def __post_init__(self):
    if wrong := [metric for metric in self.metrics if "/" in metric]:
      raise ValueError(
        f"the evaluation kind {self.name!r} has the metric {wrong[0]!r}; a name has no '/', which "
        "stands before it in eval/<task>/<metric>"
      )
    if not self.metrics or not set(self.lower_is_better) <= set(self.metrics):
      raise ValueError(
        f"the evaluation kind {self.name!r} has metrics={self.metrics!r} and "
        f"lower_is_better={self.lower_is_better!r}; it needs a metric, and the latter among them"
      )
    options.refuse_taken(f"the evaluation kind {self.name!r}", self.fields, COMMON_FIELDS, "task")

  def values(self, task: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """The value of each of its fields in a task. where: what stands before a field's name in a
    message. Raises ValueError in one line for what the declarations do not allow.
    """
    given = {name: value for name, value in task.items() if name not in COMMON_FIELDS}
    return options.filled(given, self.fields, self.name, where, versions.TASK)

  def check_values(self, values: Mapping[str, Any]):
    """ValueError where evaluate gave other values than are declared."""
    more = {f"{what}/{name}" for what in ("chance", "batch", EACH) for name in self.metrics}
    for name in self.metrics:
      if name not in values:
        raise ValueError(f'kind="{self.name}" declares the metric {name!r}, but gave none')
    for name in values.keys() - more - set(self.metrics):
      raise ValueError(
        f'kind="{self.name}" gave {name!r}, which is none of its metrics {", ".join(self.metrics)}'
      )
    for name in self.metrics:
      each = values.get(f"{EACH}/{name}")
      if each is not None and not _is_mean(values[name], np.asarray(each)):
        raise ValueError(
          f'kind="{self.name}" gave each/{name} of shape {np.shape(each)}, whose mean must be '
          f"{name}={values[name]}: one value an example"
        )


def _is_mean(value: float, each: np.ndarray) -> bool:
  """Whether it is the mean of a row of numbers, or not finite as they are."""
  return each.ndim == 1 and bool(
    np.isclose(np.mean(each, dtype=np.float64), value, rtol=1e-5, atol=1e-6, equal_nan=True)
  )


EXAMPLES = Field(
  None, "evaluates the first so many examples; None all", kind=int, optional=True, least=1
)
