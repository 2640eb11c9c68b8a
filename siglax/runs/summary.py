"""A run's outcome, made of its metrics.jsonl and starts.jsonl."""

from __future__ import annotations

import math
import os
import statistics

from ml_collections import ConfigDict

from siglax import evals
from siglax.devices import streams
from siglax.runs import bucket
from siglax.runs import history
from siglax.runs import records as records_lib

# A validation loss that is above its lowest by this share, this many evaluations later, has risen
# for more than noise.
RISE, RISE_EVALUATIONS = 0.01, 2


def evaluations(records: list[dict]) -> dict[str, list[tuple[int, float]]]:
  """{"eval/<name>/<metric>": [(step, value)]} in the order of the last evaluation, which is that of
  config.eval.tasks and of each kind's metrics; NaN where a value is not finite.
  """
  found = {}
  for record in reversed(records):
    for k, v in record.items():
      if records_lib.is_metric(k):
        found.setdefault(k, []).insert(0, (record["step"], math.nan if v is None else v))
  return found


def best(name: str, points: list[tuple[int, float]]) -> list[tuple[int, float]]:
  """The first (step, value) of a metric's best value; none where no value is finite."""
  sign = 1 if evals.lower_is_better(name) else -1
  return sorted(
    (point for point in points if not math.isnan(point[1])), key=lambda point: sign * point[1]
  )[:1]


def fact_in_words(name: str, facts: dict) -> str:
  """ ", chance 0.1000" or ", batch 128" of a metric with such a fact, else ""."""
  task, _, metric = name.rpartition("/")
  chance, batch = facts.get(f"{task}/chance/{metric}"), facts.get(f"{task}/batch/{metric}")
  return (
    f", chance {chance:.4f}"
    if chance is not None
    else f", batch {batch:,}"
    if batch is not None
    else ""
  )


def summary(folder: str | os.PathLike, config: ConfigDict) -> list[tuple[str, str]]:
  """Rows (name, value) of a run's outcome, from its metrics.jsonl and starts.jsonl. Losses come
  with their batch size, without which they compare with nothing.
  """
  records, starts = records_lib.read(folder), history.read(folder)
  rows = []
  if records:
    rows = [
      ("steps", f"{records[-1]['step']:,}"),
      ("examples", f"{records[-1]['step'] * config.batch_size:,}"),
    ]
  if starts:
    lost, seconds = history.account(starts)
    total = sum(seconds.values())
    again = (
      f" over {len(starts)} starts, with {lost:,} steps lost to stops" if len(starts) > 1 else ""
    )
    rows.append(("time", streams.clock(total) + again))
  if rates := [r["examples_per_sec"] for r in records if r.get("examples_per_sec")]:
    rows.append(("examples/s (median)", f"{statistics.median(rates):,.4g}"))
  if train := [r["loss"] for r in records if r.get("loss") is not None]:
    rows.append(("final loss", f"{train[-1]:.4f}, batch {config.batch_size:,}"))
  if starts and total:
    rows.append(
      (
        "goodput",
        "  ".join(
          f"{phase} {s / total:.1%}" for phase, s in seconds.items() if s or phase != history.LOST
        ),
      )
    )
  facts = {k: v for r in records for k, v in r.items() if records_lib.is_fact(k)}
  for name, points in evaluations(records).items():
    step, last = points[-1]
    values = [
      f"{last:.4f} at step {step:,}" if math.isfinite(last) else f"not finite at step {step:,}"
    ]
    values += [f"best {value:.4f} at step {step:,}" for step, value in best(name, points)]
    rows.append((name, ", ".join(values) + fact_in_words(name, facts)))
  return [*rows, *_rises(records), ("files", bucket.shown(folder))]


def _rises(records):
  for name, points in evaluations(records).items():
    for step, lowest in best(name, points) if evals.lower_is_better(name) else ():
      last, since = points[-1][1], sum(s > step for s, _ in points)
      if since >= RISE_EVALUATIONS and last - lowest > RISE * abs(lowest):
        yield (
          name,
          f"it has risen since step {step:,} (best {lowest:.4f}, now {last:.4f}), where lower is "
          "better: the model overfits",
        )
