"""`siglax classify` and `siglax search` on a tower of random parameters: what they print and write
is what numpy finds.
"""

import base64
import html.parser
import json
import os

import cv2
import fsspec
import jax
import numpy as np
import pytest
from test_interop_export import GOLDEN  # noqa: F401, the SigLIP folder with a tokenizer
from test_interop_export import folder  # noqa: F401, the SigLIP folder with a tokenizer

import siglax
from siglax import tower as tower_lib
from siglax.commands import cli
from siglax.data import images
from siglax.tower import embedder
from siglax.tower import search

LABELS = ["red disc", "blue square", "green ring"]
TEMPLATES = ("a {}.", "the {}")


@pytest.fixture(scope="module")
def tower(folder):  # noqa: F811
  return siglax.load(folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
  """Ten pictures of several kinds, some in a folder below, two broken, and a file that is none."""
  there = tmp_path_factory.mktemp("pictures")
  (there / "<i>below").mkdir()
  rng = np.random.default_rng(0)
  names = ["a.png", "b.JPG", "c.webp", "d.bmp", "[red] e.jpeg", "i.png", "j.png", "k.png"]
  names += ["<i>below/f & g.png", "<i>below/h.png"]
  for name in names:
    low = rng.integers(0, 256, (3, 4, 3), np.uint8)
    pixels = cv2.resize(
      low, (700, 400) if name == "a.png" else (40, 30), interpolation=cv2.INTER_NEAREST
    )
    (there / name).write_bytes(cv2.imencode(os.path.splitext(name)[1].lower(), pixels)[1])
  (there / "broken.jpg").write_bytes(b"no picture")
  (there / "cut.png").write_bytes((there / "a.png").read_bytes()[:200])
  (there / "notes.txt").write_text("no picture either")
  return there, sorted(there / name for name in names)


def embeddings(tower, paths):
  """Unit rows of pictures by the model alone."""
  c = tower.config.image
  pixels = [
    images.resize(images.decode(path.read_bytes()), c.size, c.resize, c.fit) for path in paths
  ]
  return np.asarray(jax.jit(tower.model.embed_image)(tower.params, np.stack(pixels)), np.float64)


def ztxt(tower, texts):
  return np.asarray(jax.jit(tower.model.embed_text)(tower.params, tower.text(texts)), np.float64)


def probabilities(tower, paths, softmax):
  means = (
    ztxt(tower, [t.format(n) for n in LABELS for t in TEMPLATES])
    .reshape(len(LABELS), len(TEMPLATES), -1)
    .mean(axis=1)
  )
  means /= np.linalg.norm(means, axis=1, keepdims=True)
  x = np.exp(float(tower.params["log_scale"])) * embeddings(tower, paths) @ means.T
  if softmax:
    return np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
  return 1 / (1 + np.exp(-x - float(tower.params["bias"])))


def classify(*words):
  templates = [word for template in TEMPLATES for word in ("--template", template)]
  return cli.main(
    ["classify", "--from", "run", *map(str, words), "--labels", ",".join(LABELS), *templates]
  )


@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
def test_classify(tower, pictures, loss, monkeypatch, capsys):
  paths = pictures[1][:3]
  params = {k: v for k, v in tower.params.items() if k != "bias" or loss == "sigmoid"}
  monkeypatch.setattr(
    tower_lib, "load", lambda _: tower_lib.Tower(tower.config, params, tower.text)
  )
  assert classify(*paths, "--json") == 0
  report = json.loads(capsys.readouterr().out)
  assert report["probability"] == loss and report["templates"] == list(TEMPLATES)
  want = probabilities(tower, paths, loss == "softmax")
  for picture, path, row in zip(report["pictures"], paths, want, strict=True):
    assert picture["path"] == str(path)
    assert list(picture["labels"]) == [LABELS[i] for i in np.argsort(-row)]
    np.testing.assert_allclose([picture["labels"][name] for name in LABELS], row, rtol=1e-4)
  assert classify(*paths) == 0
  lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]
  assert f"({loss}, " in lines[0] or f"({loss} over these labels)" in lines[0]
  firsts = [line for line in lines if line.startswith(str(pictures[0]))]
  for line, path, row in zip(firsts, paths, want, strict=True):
    assert line.split() == [*str(path).split(), *LABELS[row.argmax()].split(), f"{row.max():.3g}"]


class Page(html.parser.HTMLParser):
  """The tags of a page, the sources of its pictures and its text."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.attributes, self.text = [], [], []
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    self.tags.append(tag)
    self.attributes += [(tag, *attribute) for attribute in attributes]

  def handle_data(self, data):
    self.text += [data.strip()] if data.strip() else []


def test_search(tower, folder, pictures, tmp_path, monkeypatch, capsys):  # noqa: F811
  there, paths = pictures
  queries = ["a red disc", "<script>alert('&')</script> blue"]
  batches, in_turn = [], embedder.in_turn

  def counted(compute, mesh, found):
    yield from in_turn(lambda x: batches.append(x.shape[:-2]) or compute(x), mesh, found)

  # On the 8 devices of the tests.
  monkeypatch.setattr(search, "BATCH", 8)
  monkeypatch.setattr(embedder, "in_turn", counted)
  out = tmp_path / "found.html"
  assert (
    cli.main(
      [
        "search",
        "--from",
        str(folder),
        "--images",
        str(there),
        *queries,
        "--top",
        "7",
        "--out",
        str(out),
      ]
    )
    == 0
  )
  printed = capsys.readouterr()
  assert [shape for shape in batches if shape] == [(8, 16)] * 2  # never more pictures at once
  named = [line.split(": ")[0] for line in printed.err.splitlines()]
  assert named == [
    f"left out {there / 'broken.jpg'}",
    f"left out {there / 'cut.png'}",
    "2 of 12 pictures were left out",
  ]

  cosines = embeddings(tower, paths) @ ztxt(tower, queries).T
  best = [np.argsort(-column)[:7] for column in cosines.T]
  lines = printed.out.splitlines()
  assert [lines[0], lines[8], lines[16]] == [*queries, f"wrote {out}"]
  for q, start in enumerate((1, 9)):
    for line, i in zip(lines[start:], best[q]):
      assert line == f"  {cosines[i, q]:6.3f}  {paths[i]}"

  page = Page(out.read_text())
  assert (
    page.tags.count("h2") == 2
    and page.tags.count("img") == 14
    and not {"script", "i", "link"} & set(page.tags)
  )
  assert set(queries) <= set(page.text)
  shown = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
  assert shown == [str(paths[i].relative_to(there)) for q in (0, 1) for i in best[q]]
  assert set(shown) <= set(page.text) and f"{cosines[best[0][0], 0]:.3f}" in page.text
  sources = [value for _, name, value in page.attributes if name in ("src", "href")]
  assert (
    len(sources) == 14 and "//" not in out.read_text().replace(";base64,", "").split("<body>")[0]
  )
  for source, name in zip(sources, shown):
    kind, _, data = source.partition(";base64,")
    small = images.decode(base64.b64decode(data))
    assert kind == "data:image/jpeg" and max(small.shape) <= 320
    whole = images.decode((there / name).read_bytes())
    assert small.shape[1] / small.shape[0] == pytest.approx(
      whole.shape[1] / whole.shape[0], abs=0.02
    )
    assert np.abs(small.mean(axis=(0, 1)) - whole.mean(axis=(0, 1))).max() < 4


def test_a_page_in_a_bucket(folder, pictures, tmp_path, capsys):  # noqa: F811
  there, _ = pictures
  for out in (tmp_path / "x.html", "memory://bucket/made/x.html"):
    search.search(folder, there, search.Queries(["a red disc"], [], 3, str(out)))
  filesystem = fsspec.filesystem("memory")
  assert filesystem.cat("/bucket/made/x.html") == (tmp_path / "x.html").read_bytes()
  command = ["search", "--from", str(folder), "--images", str(there), "x", "--out", str(out)]
  assert cli.main(command) == 1
  assert f"--out {out} exists; give a path that does not" in capsys.readouterr().err
  filesystem.store.clear()


def test_wrong_inputs_are_one_line(folder, pictures, tmp_path, capsys):  # noqa: F811
  there, paths = pictures
  (tmp_path / "empty").mkdir()
  (tmp_path / "bad").mkdir()
  (tmp_path / "bad" / "a.png").write_bytes(b"no picture")
  out = tmp_path / "out.html"
  out.write_text("mine")
  one = f"{GOLDEN / 'hf_siglip'}:img"
  search = lambda *words, source=folder: ["search", "--from", str(source), *map(str, words)]
  named = lambda *words, source=folder: ["classify", "--from", str(source), *map(str, words)]
  empty, bad, below = tmp_path / "empty", tmp_path / "bad", tmp_path / "no" / "x"
  broken, undecodable = (
    there / "broken.jpg",
    "the image (10 bytes) cannot be decoded: not an image, cut short, or damaged",
  )
  cases = [
    (
      search("--images", empty, "x"),
      f"--images {empty} has no pictures in it (jpg, jpeg, png, webp, gif, bmp, tif, "
      "tiff, avif, jp2, ppm)",
    ),
    (search("--images", tmp_path / "none", "x"), f"--images {tmp_path / 'none'} is no folder"),
    (search("--images", bad, "x"), f"--images {bad}: none of its 1 pictures can be read"),
    (search("--images", there, "x", "--top", 0), "--top 0 must be at least 1"),
    (
      search("--images", there, "x", "--out", out),
      f"--out {out} exists; give a path that does not",
    ),
    (
      search("--images", there, "x", "--out", below),
      f"--out {below}: there is no folder {below.parent}",
    ),
    (
      search("--images", there, "x", source=one),
      "there is no text tower here; load a checkpoint that has one",
    ),
    (
      named(paths[0], "--labels", "a,"),
      "--labels a, has an empty label; write names with commas between them: cat,dog",
    ),
    (named(paths[0], "--labels", "cat, cat"), "--labels names cat twice"),
    (
      named(paths[0], "--labels", "a", "--template", "{x}"),
      "--template '{x}' must have one {}, where the label goes",
    ),
    (named(tmp_path / "x.jpg", "--labels", "cat"), f"{tmp_path / 'x.jpg'}: no such file"),
    (named(broken, "--labels", "cat"), f"{broken}: {undecodable}"),
  ]
  for words, want in cases:
    assert cli.main(words) == 1
    assert capsys.readouterr().err.splitlines()[-1].partition(": ")[2] == want
  assert out.read_text() == "mine" and len(list(tmp_path.iterdir())) == 3
