"""The tables of a report, in Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
import csv
import dataclasses
import io
import json
import math
import re

from siglax import evals
from siglax.costs import table
from siglax.studies import comparison as comparison_lib
from siglax.studies import folder as folder_lib

COSTS = {"examples": "examples", "flops": "FLOPs", "seconds": "seconds", "peak_bytes": "memory"}
# What a metric is called in a table, where that is shorter than its name.
WORDS = {"text_retrieval_recall": "image → text R", "image_retrieval_recall": "text → image R"}
ABSENT = "–"
LATEX = {
  "\\": r"\textbackslash{}",
  "~": r"\textasciitilde{}",
  "^": r"\textasciicircum{}",
  "±": r"$\pm$",
  "−": r"$-$",
  "→": r"$\to$",
  "↑": r"$\uparrow$",
  "↓": r"$\downarrow$",
  "–": "--",
  # Behind the end of a row it would be an argument.
  "[": "{[}",
  "]": "{]}",
  **{c: f"${c}$" for c in "<>|"},
  **{c: rf"\{c}" for c in "&%$#_{}"},
}


@dataclasses.dataclass(frozen=True)
class Table:
  """name: of its part in a file. strong: (row, column) of the cells in bold. left: how many of the
  first columns hold text.
  """

  name: str
  caption: str
  head: Sequence[str]
  rows: Sequence[Sequence[str]]
  left: int
  strong: frozenset[tuple[int, int]] = frozenset()

  def markdown(self) -> str:
    lines = [list(self.head), ["---"] * self.left + ["---:"] * (len(self.head) - self.left)]
    lines += [
      [f"**{cell}**" if (i, k) in self.strong else cell for k, cell in enumerate(row)]
      for i, row in enumerate(self.rows)
    ]
    text = "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in x) + " |" for x in lines)
    return f"{self.caption}\n\n{text}\n"

  def latex(self) -> str:
    """A tabular with the rules of booktabs."""
    bold = lambda i, k, cell: (
      rf"\textbf{{{_latex(cell)}}}" if (i, k) in self.strong else _latex(cell)
    )
    rows = [" & ".join(bold(i, k, c) for k, c in enumerate(row)) for i, row in enumerate(self.rows)]
    lines = [
      r"\begin{table}",
      r"\centering",
      rf"\caption{{{_latex(self.caption)}}}",
      rf"\begin{{tabular}}{{{'l' * self.left}{'r' * (len(self.head) - self.left)}}}",
      r"\toprule",
      " & ".join(map(_latex, self.head)) + r" \\",
      r"\midrule",
      *(row + r" \\" for row in rows),
      r"\bottomrule",
      r"\end{tabular}",
      r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def of_means(c: comparison_lib.Comparison, metrics: Sequence[str], name: str) -> Table:
  """Mean ± standard deviation over seeds."""
  rows = [
    [*_fields(c, s), str(len(s.runs)), *(mean(c.statistic(s, m), m) for m in metrics)]
    for s in c.settings
  ]
  return Table(
    name,
    "Mean ± standard deviation over seeds.",
    [*c.found.fields, "seeds", *map(label, metrics)],
    rows,
    len(c.found.fields),
  )


def of_differences(c: comparison_lib.Comparison, metrics: Sequence[str], name: str) -> Table:
  """The paired difference to the baseline with its interval, bold where that leaves 0 out."""
  rows, strong = [], set()
  for setting in (s for s in c.settings if c.baseline_of(s)):
    found = [c.difference(setting, m) for m in metrics]
    for k, difference in enumerate(found):
      if difference is not None and difference.better is not None:
        strong.add((len(rows), len(c.found.fields) + 1 + k))
    seeds = {d.seeds for d in found if d is not None}
    rows.append(
      [
        *_fields(c, setting),
        ABSENT if not seeds else "–".join(map(str, sorted({min(seeds), max(seeds)}))),
        *map(difference_in_words, found, metrics),
      ]
    )
  return Table(
    name,
    f"Difference to {baseline_in_words(c)}, of the same seeds and examples, with its 95% interval; "
    "bold where that leaves 0 out.",
    [*c.found.fields, "seeds", *map(label, metrics)],
    rows,
    len(c.found.fields),
    frozenset(strong),
  )


def of_costs(c: comparison_lib.Comparison) -> Table:
  """What a run of each setting took, mean over seeds."""
  rows = [
    [*_fields(c, s), str(len(s.runs)), *(_cost(c.cost(s, name), name) for name in COSTS)]
    for s in c.settings
  ]
  return Table(
    "costs",
    "What a run took: examples seen, model FLOPs, seconds (mean ± standard deviation), and the "
    "memory that a device needs for a step.",
    [*c.found.fields, "seeds", *COSTS.values()],
    rows,
    len(c.found.fields),
  )


def of_learned(c: comparison_lib.Comparison) -> Table:
  """Scale and bias of the losses that learn them, mean ± standard deviation over seeds."""
  found = [[c.learned(s, name) for name in folder_lib.LEARNED] for s in c.settings]
  rows = [
    [*_fields(c, s), str(len(s.runs)), *(_mean_in_words(x, "{:.3f}".format) for x in of_setting)]
    for s, of_setting in zip(c.settings, found)
    if any(of_setting)
  ]
  return Table(
    "scale-and-bias",
    "Scale and bias that the loss has learned, as they were logged last: mean ± standard deviation "
    "over seeds.",
    [*c.found.fields, "seeds", *folder_lib.LEARNED],
    rows,
    len(c.found.fields),
  )


def of_others(c: comparison_lib.Comparison) -> Table:
  """The runs that have not finished, which are in no mean, and what finished ones lack."""
  rows = []
  for row in c.found.rows:
    why = [row["error"] or ""]
    if row["status"] == folder_lib.FINISHED:
      why = [f"{m} is not finite" for m, x in row["metrics"].items() if x is None]
      why += [c.unread[row["name"]]] if row["name"] in c.unread else []
    rows += [[row["name"], row["status"], text] for text in why]
  caption = "Runs that are in no mean, and values that finished ones lack."
  return Table("others", caption, ["run", "status", "why"], rows, 3)


def runs_csv(c: comparison_lib.Comparison) -> str:
  """A line a run, with all that is known of it."""
  out = io.StringIO()
  fields = list(c.found.fields)
  writer = csv.writer(out, lineterminator="\n")
  told = [*c.metrics, *folder_lib.LEARNED, *COSTS]
  writer.writerow(["run", *fields, "seed", "status", "error", *told])
  for row in c.found.rows:
    values = [row["values"].get(field) for field in fields]
    writer.writerow(
      [row["name"], *(x if x is None else comparison_lib.exact(x) for x in values)]
      + [row["seed"], row["status"], row["error"]]
      + [row["metrics"].get(m) for m in c.metrics]
      + [row["learned"].get(name) for name in folder_lib.LEARNED]
      + [row["costs"].get(name) for name in COSTS]
    )
  return out.getvalue()


def results_json(c: comparison_lib.Comparison, fits: list[dict]) -> str:
  """Runs, means and differences of settings, and power laws."""
  settings = [
    {
      "values": s.values,
      "seeds": sorted(s.runs),
      "metrics": {m: _of_metric(c, s, m) for m in c.metrics},
      "learned": {name: _mean(c.learned(s, name)) for name in folder_lib.LEARNED},
      "costs": {name: _mean(c.cost(s, name)) for name in COSTS},
    }
    for s in c.settings
  ]
  report = {"baseline": c.baseline, "level": 0.95, "settings": settings, "power_laws": fits}
  return json.dumps({**report, "runs": c.found.rows}, indent=1)


def _of_metric(c, setting, metric) -> dict | None:
  found, difference = c.statistic(setting, metric), c.difference(setting, metric)
  if found is None:
    return None
  told = {"mean": found.mean, "sd": _number(found.sd), "values": found.values}
  if difference is not None:
    told["difference"] = {
      **dict(zip(("mean", "low", "high"), map(_number, difference.interval))),
      "seeds": difference.seeds,
      "examples": difference.examples,
      "verdict": difference.verdict,
    }
  return told


def label(metric: str) -> str:
  """ "captions image → text R@1 ↑ %" of "eval/captions/text_retrieval_recall@1"."""
  _, task, name = metric.split("/", 2)
  for long, short in WORDS.items():
    name = name.replace(long, short)
  arrow = "↓" if evals.lower_is_better(metric) else "↑"
  return f"{task} {name.replace('_', ' ')} {arrow}" + " %" * comparison_lib.in_percent(metric)


def number(x: float, metric: str) -> str:
  """A value of a metric, in percent where it is a share."""
  text = f"{100 * x:.1f}" if comparison_lib.in_percent(metric) else f"{x:.4f}"
  return text.replace("-", "−")


def mean(found: comparison_lib.Statistic | None, metric: str) -> str:
  return _mean_in_words(found, lambda x: number(x, metric))


def difference_in_words(found: comparison_lib.Difference | None, metric: str) -> str:
  if found is None:
    return ABSENT
  signed = lambda x: f"{'+' * (x >= 0)}{number(x, metric)}"
  mean, low, high = found.interval
  return signed(mean) + ("" if math.isnan(low) else f" [{signed(low)}, {signed(high)}]")


def baseline_in_words(c: comparison_lib.Comparison) -> str:
  return ", ".join(f"{f}={comparison_lib.shown(v)}" for f, v in (c.baseline or {}).items())


def _fields(c, setting) -> list[str]:
  values = setting.values
  return [comparison_lib.shown(values[f]) if f in values else ABSENT for f in c.found.fields]


def _cost(found: comparison_lib.Statistic | None, name: str) -> str:
  if found is None:
    return ABSENT
  if name == "seconds":
    return _mean_in_words(found, "{:,.1f}".format)
  if name == "peak_bytes":
    return table.gb(found.mean)
  if name == "flops":
    return f"{found.mean:.2e}"
  return f"{found.mean:,.0f}"


def _mean(found: comparison_lib.Statistic | None) -> float | None:
  return None if found is None else found.mean


def _mean_in_words(found: comparison_lib.Statistic | None, of: Callable[[float], str]) -> str:
  """Mean ± standard deviation, the mean alone of one seed."""
  if found is None:
    return ABSENT
  spread = "" if math.isnan(found.sd) else f" ± {of(found.sd)}"
  return f"{of(found.mean)}{spread}".replace("-", "−")


def _number(x: float) -> float | None:
  return float(x) if math.isfinite(x) else None


def _latex(text: str) -> str:
  return re.sub("|".join(map(re.escape, LATEX)), lambda m: LATEX[m[0]], text)
