"""Pages of HTML that need no other file: what `siglax search --out`, `siglax evaluate --html` and
`siglax report` write. No script runs in them, and nothing is loaded from elsewhere.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from collections.abc import Sequence
import html
import io

import numpy as np
from PIL import Image

from siglax.devices.streams import shown

THUMBNAIL = 320  # pixels of the longer side of a picture
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --line: #8883; --quiet: #6b6b6b; --good: #1a7f37; }}
@media (prefers-color-scheme: dark) {{ :root {{ --quiet: #a0a0a0; --good: #57c278; }} }}
body {{ font: 15px/1.45 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto; }}
body {{ padding: 0 1rem; }}
h1 {{ font-size: 1.1rem; font-weight: 400; color: var(--quiet); overflow-wrap: anywhere; }}
h2 {{ font-size: 1.4rem; margin: 2rem 0 .8rem; overflow-wrap: anywhere; }}
h3 {{ font-size: 1.05rem; margin: 1.6rem 0 .5rem; overflow-wrap: anywhere; }}
p, li {{ max-width: 48rem; overflow-wrap: anywhere; }}
ul {{ padding-left: 1.2rem; }}
p.quiet, caption, summary {{ color: var(--quiet); }}
.grid {{ display: grid; gap: 1rem; }}
.grid {{ grid-template-columns: repeat(auto-fill, minmax(min(var(--cell, 11rem), 100%), 1fr)); }}
figure {{ margin: 0; border: 1px solid var(--line); border-radius: .5rem; overflow: hidden; }}
figure.true {{ border: 2px solid var(--good); }}
img {{ display: block; width: 100%; aspect-ratio: 1; object-fit: contain; }}
img {{ background: var(--line); }}
figcaption {{ padding: .4rem .6rem; overflow-wrap: anywhere; }}
figcaption {{ font-size: .8rem; color: var(--quiet); }}
figcaption b {{ display: block; font-size: .95rem; color: CanvasText; }}
figcaption b {{ font-variant-numeric: tabular-nums; }}
figcaption ol {{ padding-left: 1.2rem; margin: .3rem 0 0; color: CanvasText; }}
li.true {{ color: var(--good); font-weight: 600; }}
.shade {{ display: block; margin: -.3rem -.7rem; padding: .3rem .7rem; min-height: 1.45em; }}
.shade {{ background: color-mix(in srgb, #0072B2 var(--share), transparent); }}
svg.plot {{ display: block; width: 100%; height: auto; }}
.keys {{ display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: .6rem 0; font-size: .85rem; }}
.keys svg {{ width: 2rem; height: .8rem; margin-right: .4rem; vertical-align: -1px; }}
.box {{ overflow-x: auto; margin: .8rem 0; }}
table {{ border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }}
caption {{ text-align: left; padding-bottom: .4rem; }}
th, td {{ padding: .3rem .7rem; border-bottom: 1px solid var(--line); white-space: nowrap; }}
th {{ font-weight: 600; vertical-align: bottom; white-space: normal; min-width: 4rem; }}
th, td {{ text-align: right; }}
.text {{ text-align: left; }}
.matrix th {{ writing-mode: vertical-rl; transform: rotate(180deg); white-space: nowrap; }}
.matrix th {{ min-width: 0; padding: .6rem .2rem; font-weight: 400; border: 0; }}
.matrix th, .matrix caption {{ text-align: left; }}
.matrix td {{ padding: .15rem .35rem; text-align: center; }}
.matrix td.text {{ text-align: right; }}
.matrix .shade {{ margin: -.15rem -.35rem; padding: .15rem .35rem; min-width: 1.2em; }}
pre {{ overflow-x: auto; background: var(--line); padding: .6rem .8rem; border-radius: .4rem; }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


def document(title: str, body: str) -> str:
  """A page with its title as the first line. body: HTML, of the functions below."""
  return _PAGE.format(title=escaped(title), body=body)


def escaped(text) -> str:
  """Any text as HTML shows it."""
  return html.escape(shown(text))


def heading(text: str, level: int = 2) -> str:
  return f"<h{level}>{escaped(text)}</h{level}>"


def paragraph(text: str, quiet: bool = False) -> str:
  mark = ' class="quiet"' * quiet
  return f"<p{mark}>{escaped(text)}</p>"


def bullets(lines: Iterable[str]) -> str:
  return "<ul>" + "\n".join(f"<li>{escaped(line)}</li>" for line in lines) + "</ul>"


def grid(cells: Iterable[str], width: str = "11rem") -> str:
  """Cells of HTML beside each other, as many as fit. width: the least of a cell."""
  return f'<div class="grid" style="--cell: {width}">\n' + "\n".join(cells) + "\n</div>"


def figure(source: str | None, name: str, score: str, true: bool = False) -> str:
  """A picture with a score and its name below. source: a data URI, or None for no picture. true:
  marks the right one.
  """
  name, mark = escaped(name), ' class="true"' * true
  caption = f"<figcaption><b>{escaped(score)}</b>{name}</figcaption>"
  image = "" if source is None else f'<img src="{source}" alt="{name}">'
  return f"<figure{mark}>{image}{caption}</figure>"


def listed(source: str, name: str, lines: Iterable[tuple[str, bool]]) -> str:
  """A picture with lines of text below. lines: (text, whether it is a right one)."""
  items = "".join(
    f"<li{' class=true' * true}>{escaped(text)}{' ✓' * true}</li>" for text, true in lines
  )
  caption = f"<figcaption>{escaped(name)}<ol>{items}</ol></figcaption>"
  return f'<figure><img src="{source}" alt="{escaped(name)}">{caption}</figure>'


def shaded(text: str, share: float) -> str:
  """The content of a cell of a table, on a ground that is the darker the larger its share of 1."""
  return f'<span class="shade" style="--share: {100 * share:.0f}%">{escaped(text)}</span>'


def table(
  head: Sequence[str], rows: Iterable[Sequence[str]], left: int, caption="", matrix: bool = False
) -> str:
  """A table that scrolls in its box where it is wider than the page. rows: of HTML; left: how many
  columns, from the first, hold text. matrix: of numbers, under upright names.
  """
  text = lambda k: ' class="text"' * (k < left)
  top = "".join(f"<th{text(k)}>{escaped(cell)}</th>" for k, cell in enumerate(head))
  lines = "\n".join(
    "<tr>" + "".join(f"<td{text(k)}>{cell}</td>" for k, cell in enumerate(row)) + "</tr>"
    for row in rows
  )
  mark = ' class="matrix"' * matrix
  said = f"<caption>{escaped(caption)}</caption>" if caption else ""
  body = f"<thead><tr>{top}</tr></thead>\n<tbody>\n{lines}\n</tbody>"
  return f'<div class="box"><table{mark}>{said}\n{body}</table></div>'


def commands(lines: Iterable[str]) -> str:
  return f"<pre>{escaped(chr(10).join(lines))}</pre>"


def folded(title: str, body: str) -> str:
  """HTML that is shown on a click."""
  return f"<details><summary>{escaped(title)}</summary>\n{body}\n</details>"


def thumbnail(picture: np.ndarray, side: int = THUMBNAIL) -> str:
  """A small JPEG of a uint8 picture [H, W, 3] as a data URI."""
  image = Image.fromarray(picture)
  image.thumbnail((side, side))
  data = io.BytesIO()
  image.save(data, "JPEG", quality=80)
  return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
