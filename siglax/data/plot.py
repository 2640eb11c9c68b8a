"""Plots of matplotlib, as files and as parts of a page (page.py), in one style."""

from __future__ import annotations

import io
import re
from typing import Any

from siglax.data import page

# Okabe and Ito's colours, told apart with every kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# Colours that a page shows as those of its text and its lines.
INK, GRID = "#1b1c1d", "#d9dadb"
SETTINGS = {
  "svg.hashsalt": "siglax",  # equal plots give equal files
  "axes.edgecolor": INK,
  "axes.labelcolor": INK,
  "text.color": INK,
  "xtick.color": INK,
  "ytick.color": INK,
  "font.size": 10,
}


def canvas(inches: tuple[float, float]) -> tuple[Any, Any]:
  """(a context in which to draw and save, an empty figure of matplotlib)."""
  import matplotlib
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=inches, layout="constrained")
  FigureCanvasAgg(figure)
  return matplotlib.rc_context(SETTINGS), figure


def tidy(axes):
  """Lines across behind the data, and no frame above and on the right."""
  axes.grid(axis="y", color=GRID, linewidth=0.6)
  axes.set_axisbelow(True)
  for side in ("top", "right"):
    axes.spines[side].set_visible(False)


def saved(figure, kind: str) -> bytes:
  """The content of a file, "png" or "svg"; call it in the context of `canvas`."""
  out = io.BytesIO()
  options = {"dpi": 150} if kind == "png" else {"metadata": {"Date": None}, "transparent": True}
  figure.savefig(out, format=kind, **options)
  return out.getvalue()


def in_page(figure, name: str, title: str) -> str:
  """SVG in the page's colours, as wide as its cell. name: no other plot of the page has it; title:
  for who does not see it. Call it in the context of `canvas`.
  """
  import matplotlib

  with matplotlib.rc_context({"svg.fonttype": "none"}):  # letters, and not their outlines
    svg = saved(figure, "svg").decode()
  svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.S)
  svg = re.sub(r'\bid="', f'id="{name}-', svg).replace("xlink:href", "href")
  svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)
  svg = svg.replace(INK, "currentColor").replace(GRID, "var(--line)")
  size = re.search(r'viewBox="([^"]*)"', svg)[1]
  label = f'<svg class="plot" role="img" aria-label="{page.escaped(title)}" viewBox="{size}">'
  return re.sub(r"<svg[^>]*>", lambda _: label, svg, count=1)
