"""The same pictures and captions in every kind of file give the same batches and the same counts of
broken ones.
"""

import csv
import io
import json
import tarfile

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from siglax import config as config_lib
from siglax.commands import cli
from siglax.data import pipeline
from siglax.data.shapes import Shapes
from siglax.data.sources import parse_spec
from siglax.data.text import TextProcessor

ROWS, BATCHES = 48, 12
SOURCES = ("folder", "tars", "a.csv", "a.tsv", "a.jsonl", "a.parquet")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """{name: a path}; every tenth picture cannot be decoded, and every ninth has no caption."""
  root = tmp_path_factory.mktemp("same")
  examples, rows = Shapes(examples=ROWS, image_size=24), []
  for i in range(ROWS):
    picture = cv2.imencode(".png", examples[i]["image"])[1].tobytes()
    picture = picture[:50] if i % 10 == 3 else picture
    rows.append((f"{i:03}", picture, [] if i % 9 == 4 else examples[i]["captions"][:1]))
  for name in ("folder", "tars"):
    (root / name).mkdir()
  for shard in range(3):
    with tarfile.open(root / f"tars/{shard}.tar", "w") as out:
      for key, picture, captions in rows[shard * 16 : (shard + 1) * 16]:
        members = [("png", picture), *(("txt", text.encode()) for text in captions)]
        for ending, content in members:
          info = tarfile.TarInfo(f"{key}.{ending}")
          info.size = len(content)
          out.addfile(info, io.BytesIO(content))
  for key, picture, captions in rows:
    (root / f"folder/{key}.png").write_bytes(picture)
    for text in captions:
      (root / f"folder/{key}.txt").write_text(text)
  named = [(f"folder/{key}.png", *(captions or [""])) for key, _, captions in rows]
  for name, separator in (("a.csv", ","), ("a.tsv", "\t")):
    with open(root / name, "w", newline="") as file:
      csv.writer(file, delimiter=separator).writerows([("image", "caption"), *named])
  (root / "a.jsonl").write_text(
    "".join(json.dumps({"image": name, "caption": text}) + "\n" for name, text in named)
  )
  table = {"image": [row[1] for row in rows], "captions": [row[2] for row in rows]}
  pq.write_table(pa.table(table), root / "a.parquet")
  return {name: str(root / name) for name in SOURCES}


def batches(path, **loader):
  config = config_lib.default()
  config.data = (parse_spec(path) | {"max_bad_fraction": 1.0},)
  config.batch_size, config.image.size, config.image.crop_min_area = 8, 16, 0.5
  config.loader.update(loader)
  it = pipeline.train_batches(config, TextProcessor(length=12))
  found = [next(it) for _ in range(BATCHES)]
  it.close()
  return found, it.counts


def test_every_source_gives_the_same_batches(data):
  want, counts = batches(data["a.parquet"], threads=1)
  assert counts["bad"][0] > 0
  for name in SOURCES:
    got, counted = batches(data[name], threads=4)
    assert counted == counts, name
    for a, b in zip(want, got):
      assert a.keys() == b.keys()
      for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=name)


@pytest.mark.parametrize("name", SOURCES[:2])
def test_worker_processes_read_the_same(data, name):
  want, counts = batches(data[name], threads=1)
  got, counted = batches(data[name], threads=1, workers=1)
  assert counted == counts
  for a, b in zip(want, got):
    for key in a:
      np.testing.assert_array_equal(a[key], b[key])


def test_a_recipe_takes_the_source_that_a_path_suits(data):
  for config in ("siglip_b16", "cifar10_captions"):
    for name, source in (("folder", "folder"), ("tars", "webdataset"), ("a.csv", "csv")):
      c = config_lib.load(f"configs/{config}.py:train={data[name]}")
      assert c.data == ({"source": source, "path": data[name]},)


def test_a_tokenizer_leaves_broken_examples_out(data, tmp_path, capsys):
  path = tmp_path / "a.jsonl"
  lines = open(data["a.jsonl"]).read().replace("folder/", data["folder"] + "/")
  path.write_text(f'nothing\n{{"image": "gone.png", "caption": "x"}}\n{lines}')
  out = str(tmp_path / "a.model")
  assert cli.main(["tokenizer", "--from", str(path), "--out", out, "--vocab-size", "60"]) == 0
  said = capsys.readouterr().out
  assert "left out 2 broken examples, first example 0: " in said and "no JSON" in said
