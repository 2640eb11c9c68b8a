"""What tests read of a page that siglax writes."""

import html.parser
import re


class Page(html.parser.HTMLParser):
  """Its tags, attributes, and the cells of its tables."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.attributes, self.tables = [], [], []
    self._cell = None
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    self.tags.append(tag)
    self.attributes += attributes
    if tag == "table":
      self.tables.append([])
    elif tag == "tr":
      self.tables[-1].append([])
    elif tag in ("td", "th"):
      self._cell = ""

  def handle_endtag(self, tag):
    if tag in ("td", "th"):
      self.tables[-1][-1].append(self._cell)
      self._cell = None

  def handle_data(self, data):
    if self._cell is not None:
      self._cell += data


def is_alone(text):
  """Whether a page asks for nothing: no script, and no address but of itself and of data."""
  page = Page(text)
  asked = [v for k, v in page.attributes if k in ("src", "href", "xlink:href", "srcset", "data")]
  asked += re.findall(r"url\(([^)]*)\)", text)
  assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
  assert not re.search(r"@import|http-equiv=\"refresh\"|\son\w+=", text)
  return all(v.startswith(("#", "data:")) for v in asked)
