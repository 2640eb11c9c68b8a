"""`siglax report`: what a folder of runs shows, as files and as one page."""

from __future__ import annotations

import pathlib
import re

from siglax.data import page
from siglax.devices import disk
from siglax.devices import streams
from siglax.studies import comparison as comparison_lib
from siglax.studies import figures as figures_lib
from siglax.studies import folder as folder_lib
from siglax.studies import found as found_lib
from siglax.studies import plots
from siglax.studies import tables

# How many of the resolved differences the page says in words.
MAX_SENTENCES = 12


def report(folder, baseline: str | None = None, out=None) -> pathlib.Path:
  """Writes the folder `out`, FOLDER/report/ where there is none given, and prints the means and the
  differences; returns the page.

  baseline: "field=value,…" of the settings that the others are compared with; None takes the
  study's. ValueError in one line for what is wrong with the folder or the baseline.
  """
  found = found_lib.read(folder)
  c = comparison_lib.Comparison(found, comparison_lib.baseline(found, baseline))
  figures = figures_lib.Figures(c)
  told = [tables.of_means(c, c.headline, "means")]
  if any(map(c.baseline_of, c.settings)):
    told.append(tables.of_differences(c, c.headline, "differences"))
  if (learned := tables.of_learned(c)).rows:
    told.append(learned)
  main = [*told, tables.of_costs(c)]
  every = []
  if c.metrics != c.headline:
    every = [tables.of_means(c, c.metrics, "all-metrics")]
    if any(map(c.baseline_of, c.settings)):
      every.append(tables.of_differences(c, c.metrics, "all-differences"))
  others = tables.of_others(c)
  to = pathlib.Path(folder) / folder_lib.REPORT if out is None else pathlib.Path(out)
  content = {
    "results.csv": tables.runs_csv(c).encode(),
    "results.json": tables.results_json(c, list(map(_fit, figures.fits))).encode(),
    "tables.md": "\n".join(t.markdown() for t in [*main, *every, others] if t.rows).encode(),
    "tables.tex": "\n".join(t.latex() for t in [*main, *every] if t.rows).encode(),
  }
  for figure in figures.all:
    content |= {f"plots/{name}": data for name, data in plots.files(figure).items()}
  content["index.html"] = _page(c, main, every, others, figures).encode()
  (to / "plots").mkdir(parents=True, exist_ok=True)
  for name, data in content.items():
    disk.write_atomic(to / name, data)
  streams.say("\n".join(t.markdown() for t in [*told, others] if t.rows))
  streams.say(f"wrote {to / 'index.html'}")
  return to / "index.html"


def _page(c, main, every, others, figures) -> str:
  parts = [page.paragraph(_of_what(c)), _resolved(c)]
  if others.rows:
    parts += [page.heading("Not finished, or not whole"), _table(others)]
  parts.append(page.heading("Results"))
  parts += map(_table, main)
  if every:
    parts.append(page.folded("All metrics", "\n".join(map(_table, every))))
  for number, figure in enumerate(figures.all):
    parts += [page.heading(figure.title), plots.inline(figure, number)]
  if figures.fits:
    parts.append(_table(_fits(figures.fits)))
  found = c.found
  parts += [
    page.heading("Fields that differ"),
    page.table(
      ["field", "values"],
      [
        [page.escaped(f), page.escaped(", ".join(map(comparison_lib.shown, v)))]
        for f, v in found.fields.items()
      ],
      2,
    ),
    page.heading("Environment"),
    page.table(
      ["what", "value"],
      [
        [page.escaped(k), page.escaped(comparison_lib.shown(v))]
        for k, v in found.environment.items()
      ],
      2,
    ),
    page.heading("To repeat it"),
    page.commands(found.commands),
  ]
  return page.document(f"siglax report of {found.folder}", "\n".join(parts))


def _of_what(c) -> str:
  rows, found = c.found.rows, c.found
  finished = len(found.of(folder_lib.FINISHED))
  seeds = sorted({row["seed"] for row in found.of(folder_lib.FINISHED)})
  equal = f" All runs have equal {found.equal}." if found.equal else ""
  return (
    f"{finished} of {len(rows)} runs have finished: {len(c.settings)} settings, seeds "
    f"{', '.join(map(str, seeds))}.{equal} Intervals are of 95%: those of means over seeds by "
    "Student's t, those of differences with the variance of the paired bootstrap over seeds and "
    "examples. "
    "An interval of one seed knows nothing of other seeds."
  )


def _resolved(c) -> str:
  """In words, which differences to the baseline the runs resolve."""
  compared = [
    (s, m, d) for m in c.headline for s in c.settings if (d := c.difference(s, m)) is not None
  ]
  if not compared:
    return ""
  resolved = [(s, m, d) for s, m, d in compared if d.better is not None]
  told = (
    f"Of {len(compared)} differences to {tables.baseline_in_words(c)} these runs resolve "
    f"{len(resolved)}: their interval leaves 0 out. Where there is no difference at all, about one "
    "in twenty would."
  )
  lines = [
    f"{c.name(s)}, {tables.label(m)}: {tables.difference_in_words(d, m)}, {d.verdict} "
    f"({d.seeds} seeds{f', {d.examples:,} examples' if d.examples else ''})"
    for s, m, d in resolved
  ]
  return page.paragraph(told) + (page.bullets(lines[:MAX_SENTENCES]) if lines else "")


def _table(table: tables.Table) -> str:
  bold = lambda i, k, cell: f"<b>{cell}</b>" if (i, k) in table.strong else cell
  rows = [
    [bold(i, k, page.escaped(cell)) for k, cell in enumerate(row)]
    for i, row in enumerate(table.rows)
  ]
  # An arrow and its unit stay beside the last word.
  head = [re.sub(" (?=[↑↓%])", "\N{NO-BREAK SPACE}", name) for name in table.head]
  return page.table(head, rows, table.left, table.caption)


def _fits(fits: list[figures_lib.Fit]) -> tables.Table:
  rows = []
  for fit in fits:
    mean, low, high = (f"{x:+.3f}".replace("-", "−") for x in fit.law.exponent)
    rows.append(
      [
        fit.line,
        figures_lib.error_label(fit.metric),
        f"{mean} [{low}, {high}]",
        f"{fit.law.r2:.2f}",
      ]
    )
  caption = f"Exponents of {fits[0].field}, and the share of the variance that the law explains."
  return tables.Table("power-laws", caption, ["runs", "of", "exponent", "R²"], rows, 2)


def _fit(fit: figures_lib.Fit) -> dict:
  exponent = dict(zip(("exponent", "low", "high"), fit.law.exponent))
  of = {"field": fit.field, "line": fit.line, "metric": fit.metric, "factor": fit.law.factor}
  return {**of, **exponent, "r2": fit.law.r2}
