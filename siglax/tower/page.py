"""Pictures that were found, as one HTML file with their thumbnails in it."""

from __future__ import annotations

import base64
from collections.abc import Callable
import html
import io

import numpy as np

from siglax.devices.streams import shown

THUMBNAIL = 320  # pixels of its longer side

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --line: #8883; --quiet: #767676; }}
@media (prefers-color-scheme: dark) {{ :root {{ --quiet: #a0a0a0; }} }}
body {{ font: 15px/1.4 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto; }}
body {{ padding: 0 1rem; }}
h1 {{ font-size: 1.1rem; font-weight: 400; color: var(--quiet); }}
h2 {{ font-size: 1.4rem; margin: 2rem 0 .8rem; overflow-wrap: anywhere; }}
.grid {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: 1rem; }}
figure {{ margin: 0; border: 1px solid var(--line); border-radius: .5rem; overflow: hidden; }}
img {{ display: block; width: 100%; aspect-ratio: 1; object-fit: contain; }}
img {{ background: var(--line); }}
h2 + img {{ width: 11rem; margin-bottom: 1rem; }}
figcaption {{ padding: .4rem .6rem; overflow-wrap: anywhere; }}
figcaption {{ font-size: .8rem; color: var(--quiet); }}
figcaption b {{ display: block; font-size: .95rem; color: CanvasText; }}
figcaption b {{ font-variant-numeric: tabular-nums; }}
</style>
</head>
<body>
<h1>{title}</h1>
{sections}
</body>
</html>
"""


def page(
  title: str, queries: list[tuple[str, np.ndarray | None]], found: list, picture: Callable
) -> str:
  """HTML that needs no other file: a heading for each query, and what was found with its cosines.

  queries: what was asked for, with its picture where it is one. found: [(cosine, its name, place)]
  of each query, best first. picture: place → uint8 [H, W, 3]; None where there is none.
  """
  thumbnails, sections = {}, []
  for (query, asked), matches in zip(queries, found):
    figures = []
    for cosine, name, place in matches:
      if place not in thumbnails:
        thumbnails[place] = _thumbnail(picture(place), name)
      caption = f"<figcaption><b>{cosine:.3f}</b>{html.escape(shown(name))}</figcaption>"
      figures.append(f"<figure>{thumbnails[place]}{caption}</figure>")
    sections.append(
      f'<h2>{html.escape(shown(query))}</h2>\n{_thumbnail(asked, query)}<div class="grid">\n'
      + "\n".join(figures)
      + "\n</div>"
    )
  return _PAGE.format(title=html.escape(title), sections="\n".join(sections))


def _thumbnail(image: np.ndarray | None, name: str) -> str:
  """A small JPEG of a picture as an HTML element; nothing of None."""
  from PIL import Image

  if image is None:
    return ""
  small = Image.fromarray(image)
  small.thumbnail((THUMBNAIL, THUMBNAIL))
  data = io.BytesIO()
  small.save(data, "JPEG", quality=80)
  source = "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
  return f'<img src="{source}" alt="{html.escape(shown(name))}">'
