"""Draws the figures of a report: files to take along, and panels of SVG inside a page."""

from __future__ import annotations

from matplotlib import ticker
import numpy as np

from siglax.data import page
from siglax.data import plot
from siglax.studies import figures

# By turns: lines of one colour differ in their markers and dashes.
MARKERS = ("o", "s", "^", "D")
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)))
INCHES = (4.2, 3.1)  # of a panel
COLUMNS = 3
LEGEND_LINE, LEGEND_LETTER = 0.6, 0.075  # inches of a legend's entry


class _Plain(ticker.LogFormatter):
  """Labels where LogFormatter has one, as 0.2 and not as 2e-01."""

  def __call__(self, x, pos=None):
    return f"{x:g}" if super().__call__(x, pos) else ""


def files(figure: figures.Figure) -> dict[str, bytes]:
  """{file name: content}: the whole figure as PNG and SVG, with its legend."""
  columns = min(COLUMNS, len(figure.panels))
  rows = -(-len(figure.panels) // columns)
  context, canvas = plot.canvas((INCHES[0] * columns, INCHES[1] * rows + 0.4))
  with context:
    axes = list(canvas.subplots(rows, columns, squeeze=False).flat)
    for one, panel in zip(axes, figure.panels):
      _draw(one, panel)
    for empty in axes[len(figure.panels) :]:
      empty.remove()
    handles = {
      handle.get_label(): handle
      for one in canvas.axes
      for handle in one.get_legend_handles_labels()[0]
    }
    if len(handles) > 1:
      canvas.legend(
        handles=list(handles.values()),
        loc="outside lower center",
        ncols=_legend_columns(handles, INCHES[0] * columns),
        frameon=False,
        fontsize=9,
      )
    png = plot.saved(canvas, "png")
    canvas.set_layout_engine("none")  # it stays as it is, which takes half the time
    return {f"{figure.name}.png": png, f"{figure.name}.svg": plot.saved(canvas, "svg")}


def _legend_columns(labels, inches: float) -> int:
  """As many as have room for the longest label and its line, five at most."""
  entry = LEGEND_LINE + LEGEND_LETTER * max(map(len, labels))
  return max(1, min(5, len(labels), int(inches / entry)))


def inline(figure: figures.Figure, number: int) -> str:
  """The figure as HTML: its legend, and each panel as SVG in the colours of the page. number: of
  the figure in the page.
  """
  cells = []
  for k, panel in enumerate(figure.panels):
    context, canvas = plot.canvas(INCHES)
    with context:
      _draw(canvas.subplots(), panel)
      cells.append(plot.in_page(canvas, f"f{number}p{k}", panel.title))
  keys = {line.label: line for panel in figure.panels for line in panel.lines}
  legend = "".join(
    f"<span>{_swatch(line.style)}{page.escaped(label)}</span>" for label, line in keys.items()
  )
  legend = f'<div class="keys">{legend}</div>' if len(keys) > 1 else ""
  return f"{page.paragraph(figure.caption, quiet=True)}\n{legend}\n{page.grid(cells, '19rem')}"


def _swatch(style: int) -> str:
  """A line of a legend, as `_draw` draws it."""
  colour, marker, dash = _style(style)
  on = "" if dash == "-" else f' stroke-dasharray="{" ".join(str(2 * x) for x in dash[1])}"'
  shape = {
    "o": '<circle cx="16" cy="6" r="3.5"/>',
    "s": '<rect x="13" y="3" width="6" height="6"/>',
    "^": '<path d="M16 2l4 7h-8z"/>',
    "D": '<path d="M16 1.5l4.5 4.5l-4.5 4.5l-4.5-4.5z"/>',
  }[marker]
  return (
    f'<svg viewBox="0 0 32 12" fill="{colour}" aria-hidden="true"><path d="M0 6h32" '
    f'stroke="{colour}" stroke-width="2"{on}/>{shape}</svg>'
  )


def _style(k: int):
  n = len(plot.COLOURS)
  return plot.COLOURS[k % n], MARKERS[k % len(MARKERS)], DASHES[k // n % len(DASHES)]


def _draw(axes, panel: figures.Panel):
  for line in panel.lines:
    _line(axes, line, spread=not line.marked)
  axes.set_title(panel.title, loc="left", fontsize=10)
  axes.set_xlabel(panel.x)
  if panel.log_x:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.xaxis.set_minor_locator(ticker.NullLocator())
  if panel.log_y:
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(_Plain())
    axes.yaxis.set_minor_formatter(_Plain(minor_thresholds=(1, 0.5)))
  if panel.names:
    axes.set_xticks(range(len(panel.names)), panel.names, rotation=30, ha="right", fontsize=8)
    axes.set_xlim(-0.5, len(panel.names) - 0.5)
  elif panel.x == "examples":
    axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
  plot.tidy(axes)


def _line(axes, line: figures.Line, spread: bool):
  """spread: its interval is a band, and not a bar at each point."""
  colour, marker, dash = _style(line.style)
  x, y = np.asarray(line.x, np.float64), np.asarray(line.y, np.float64)
  axes.plot(
    x,
    y,
    color=colour,
    label=line.label,
    linewidth=1.6,
    linestyle="--" if line.dashed else dash,
    marker=marker if line.marked else None,
    markersize=4.5,
  )
  if line.low is not None:
    low, high = np.asarray(line.low), np.asarray(line.high)
    if spread:
      axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    else:
      axes.errorbar(
        x, y, [y - low, high - y], fmt="none", ecolor=colour, elinewidth=1.2, capsize=2.5
      )
  if line.dots:
    xs, ys = zip(*line.dots)
    axes.plot(
      xs,
      ys,
      linestyle="none",
      marker=marker if line.dashed else ".",
      color=colour,
      markersize=4.5 if line.dashed else 3,
      alpha=1 if line.dashed else 0.55,
    )
