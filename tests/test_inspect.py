"""`siglax inspect`: its counts are those of the data as they were made, and its sheets show what
training draws.
"""

import io
import json
import re

import numpy as np
from PIL import Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from siglax import config as config_lib
from siglax.commands import cli
from siglax.data import sheet
from siglax.data import survey
from siglax.data import text as text_lib
from siglax.data import train_batches
from siglax.data.order import Mix

SIZES = [(20, 30), (64, 33), (40, 500)]


def picture(width, height, seed, kind="JPEG"):
  noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
  out = io.BytesIO()
  Image.fromarray(noise).save(out, kind)
  return out.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """Parquet of 30 pictures: 3 that cannot be decoded, one without caption, two copies of others."""
  rows = [
    {
      "image": picture(*SIZES[i % 3], i, ("JPEG", "PNG")[i % 2]),
      "captions": [" ".join(["word"] * (i + 1))] * (1 + i % 2),
    }
    for i in range(30)
  ]
  for i, broken in ((4, b"no picture"), (9, rows[9]["image"][:60]), (12, b"")):
    rows[i]["image"] = broken
  rows[21]["captions"] = []
  rows[25]["image"], rows[29]["image"] = rows[1]["image"], rows[1]["image"]
  path = tmp_path_factory.mktemp("data") / "data.parquet"
  pq.write_table(pa.Table.from_pylist(rows), path)
  return str(path), rows


CONFIG = """
import tiny
from siglax import config as config_lib

def get_config():
  c = tiny.get_config(steps=5)
  shapes = {"source": "shapes", "examples": 64, "image_size": 16, "weight": 3}
  broken = {"source": "parquet", "path": DATA, "weight": 1, "max_bad_fraction": 0.9}
  c.data, c.eval.tasks, c.image.flip = (shapes, broken), (), True
  return c
"""


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
  """A run of 5 steps of 16 examples, 12 of the shapes and 4 of the data with broken ones."""
  folder = tmp_path_factory.mktemp("run")
  (folder / "x.py").write_text(f"DATA = {data[0]!r}\n{CONFIG}")
  assert (
    cli.main(["train", "--config", str(folder / "x.py"), "--workdir", str(folder / "run")]) == 0
  )
  return folder / "run"


def inspect(capsys, *words, code=0):
  assert cli.main(["inspect", *map(str, words)]) == code
  found = capsys.readouterr()
  return found.out if code == 0 else found.err.strip().splitlines()[-1]


def test_counts_are_those_of_the_data(data, capsys):
  path, rows = data
  report = json.loads(inspect(capsys, path, "--json"))
  sound = [i for i in range(30) if i not in (4, 9, 12, 21)]
  assert (report["examples"], report["read"], report["labelled"]) == (30, 30, 0)
  assert report["captions"] == {
    str(n): sum(len(rows[i]["captions"]) == n for i in sound) for n in (1, 2)
  }
  words = [len(c.split()) for i in sound for c in rows[i]["captions"]]
  assert report["words"] == {
    str(low): sum(low <= n < 2 * low for n in words) for low in (1, 2, 4, 8, 16)
  }
  sizes = [sorted(Image.open(io.BytesIO(rows[i]["image"])).size) for i in sound]
  for name, of in (
    ("short_side", lambda s, _: 16 if s < 32 else 32),
    ("long_by_short", lambda s, l: l // s),
  ):
    want = [of(*size) for size in sizes]
    assert report[name] == {str(k): want.count(k) for k in sorted(set(want))}
  formats = [Image.open(io.BytesIO(rows[i]["image"])).format for i in sound]
  assert report["formats"] == {k: formats.count(k) for k in sorted(set(formats))}
  assert report["bytes"] == sum(len(rows[i]["image"]) for i in sound)
  assert report["duplicates"] == {"pictures": 2, "first": [[1, 25], [25, 29]]}
  assert report["broken_examples"] == [4, 9, 12, 21]
  assert [(b["count"], b["first"]) for b in report["broken"]] == [(2, 4), (1, 12), (1, 21)]


def test_the_text_tells_the_same(data, capsys):
  out = inspect(capsys, data[0])
  for line in (
    "30 examples",
    r"short side, pixels\n\s+16–31  +\d+  █+\n\s+32–63  +\d+  █+\n",
    r"words a caption\n\s+1  ",
    "2 pictures are copies of another one",
    "example 25 is example 1",
    "4 examples are broken",
    "2, first example 4: the image",
    "the first: 4, 9, 12, 21",
  ):
    assert re.search(line, out), (line, out)


def test_bytes_are_of_the_pictures_that_are_left(data, capsys):
  spec = f"{data[0]}:max_pixels=700"
  report = json.loads(inspect(capsys, spec, "--json"))
  left = sum(report["formats"].values())
  assert report["filtered"] and left + report["filtered"] < report["read"]
  assert f"{report['bytes'] / left:,.0f} bytes a picture: " in inspect(capsys, spec)
  assert "0 bytes a picture: none read" in inspect(capsys, f"{data[0]}:max_pixels=1")


def test_some_examples_are_evenly_spaced(data, capsys):
  report = json.loads(inspect(capsys, data[0], "--examples", "10", "--json"))
  assert report["read"] == 10 and report["broken_examples"] == [9, 12, 21]
  assert list(survey.indices(7, 3)) == [0, 2, 4] and list(survey.indices(2, 5)) == [0, 1]


def cells(png, columns, count):
  """The pictures of a sheet, in their order, each a square of its column's width."""
  image = np.asarray(Image.open(png).convert("RGB"))
  width = (image.shape[1] - sheet.GAP) // columns - sheet.GAP
  height = (image.shape[0] - sheet.GAP) // -(-count // columns) - sheet.GAP
  for k in range(count):
    x = sheet.GAP + k % columns * (width + sheet.GAP)
    y = sheet.GAP + k // columns * (height + sheet.GAP)
    yield image[y : y + width, x : x + width]


def test_a_sheet_of_a_step_shows_its_very_batch(run, tmp_path, capsys):
  out = tmp_path / "sheet.png"
  inspect(capsys, "--run", run, "--step", "4", "--out", out)
  config = config_lib.from_json((run / "config.json").read_text())
  batches = train_batches(config, text_lib.TextProcessor(run / "tokenizer.model", length=12))
  for _ in range(4):
    rows = next(batches)
  batches.close()
  shown = list(cells(out, 4, 16))
  for picture, cell in zip(rows["image"], shown, strict=True):
    np.testing.assert_array_equal(cell, picture.repeat(12, 0).repeat(12, 1))


def test_a_sheet_with_a_config_shows_views_and_tokenized_captions(data, tmp_path, capsys, run):
  out = tmp_path / "sheet.png"
  words = ["--config", run.parent / "x.py", "--config.image.size=48", "--pictures", "4"]
  inspect(capsys, data[0], "--out", out, *words)
  first = out.read_bytes()
  assert all(np.ptp(cell) > 100 for cell in cells(out, 2, 4))
  assert Image.open(out).format == "PNG"
  inspect(capsys, data[0], "--out", tmp_path / "again.png", *words)
  assert (tmp_path / "again.png").read_bytes() == first
  inspect(capsys, data[0], "--out", tmp_path / "raw.png", "--pictures", "4")
  raw = next(cells(tmp_path / "raw.png", 2, 4))
  want = Image.open(io.BytesIO(data[1][0]["image"]))
  middle = raw[6:186, 36:156]  # 20 × 30 pixels, six times as large
  assert np.abs(middle[::6, ::6].astype(int) - np.asarray(want, int)).max() <= 2


def test_decoding_gives_the_caption_that_the_model_gets():
  text = text_lib.TextProcessor("shapes", length=8)
  tokens = text(["  A LARGE, red circle!", "a red circle " * 20])
  assert text.decode(tokens[0]) == "a large red circle"
  cut = text.decode(tokens[1])
  assert ("a red circle " * 20).startswith(cut) and 0 < len(cut) < 60


def test_the_position_of_a_run(run, capsys):
  report = json.loads(inspect(capsys, "--run", run, "--json"))
  assert (report["step"], report["batch_size"]) == (5, 16)
  shapes, broken = report["data"]
  assert (shapes["examples"], shapes["elements"], shapes["epoch"]) == (64, 60, 60 / 64)
  assert (broken["examples"], broken["elements"], broken["epoch"]) == (30, 20, 20 / 30)
  assert shapes["drawn"] == 60 and shapes["broken"] == 0
  assert broken["broken"] > 0 and broken["drawn"] == 20 + broken["broken"]
  out = inspect(capsys, "--run", run)
  assert "epoch 1, example 60 of 64" in out and "epoch 1, example 20 of 30" in out


@pytest.mark.parametrize("shares", [[3, 1], [1, 1, 1], [7, 2, 5], [1]])
def test_counts_of_a_mix_are_those_of_its_elements(shares):
  mix = Mix(shares)
  sources = [mix[k][0] for k in range(50)]
  for k in range(51):
    assert mix.counts(k) == [sources[:k].count(s) for s in range(len(shares))]


def test_captions_are_wrapped_and_cut():
  fits = lambda text: len(text) <= 10
  assert sheet.wrap("one two three  four", fits) == ["one two", "three four"]
  assert sheet.wrap("", fits) == []
  assert sheet.wrap("x" * 25, fits) == ["x" * 10, "x" * 10, "x" * 5]
  long = sheet.wrap("word " * 99, fits)
  assert len(long) == sheet.LINES and long[-1].endswith("…") and all(map(fits, long))


def test_bad_flags_are_one_line(data, run, tmp_path, capsys):
  path, out = data[0], tmp_path / "x.png"
  (tmp_path / "there.png").write_bytes(b"")
  for words, message in (
    ([], "give DATA or --run DIR"),
    ([path, "--run", run], "give DATA or --run DIR"),
    ([path, "--step", "3"], "--step has no use without --run"),
    ([path, "--config.image.size=3"], "--config.image.size has no use"),
    (["--run", run, "--config", "x.py"], "--config has no use with --run"),
    (["--run", run, "--step", "3"], "--step N and --out SHEET.png together"),
    (
      ["--run", run, "--step", "0", "--out", out],
      f"--step 0 must lie in 1 … 5, the steps of {run}",
    ),
    (
      ["--run", run, "--step", "6", "--out", out],
      f"--step 6 must lie in 1 … 5, the steps of {run}",
    ),
    (["--run", tmp_path], "is no run folder"),
    ([path, "--examples", "0"], "--examples 0 must lie in 1"),
    ([path, "--out", tmp_path / "there.png"], "there.png exists; give a path that does not"),
    ([path, "--out", tmp_path / "x.jpg"], "x.jpg must end in .png"),
    (["shapes:examples=0"], "examples=0"),
  ):
    said = inspect(capsys, *words, code=1)
    assert message in said and said.startswith("siglax inspect: "), said
  assert not out.exists()
