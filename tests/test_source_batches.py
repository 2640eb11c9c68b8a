"""The same pictures and captions in every kind of file give the same batches, byte for byte, and
the same counts of broken ones: in both orders, for any number of threads, workers and processes,
and after any resume.
"""

import csv
import io
import json
import pathlib
import tarfile

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from siglax import config as config_lib
from siglax.commands import cli
from siglax.data import pipeline
from siglax.data import shards
from siglax.data.shapes import Shapes
from siglax.data.sources import parse_spec
from siglax.data.text import TextProcessor

ROWS, SHARDS = 48, 3
# How each kind of file is found; all but the folder have the same shards.
SOURCES = {
  "folder": "folder",
  "webdataset": "tars",
  "csv": "*.csv",
  "tsv": "*.tsv",
  "jsonl": "*.jsonl",
  "parquet": "a.parquet",
  "array_record": "*.array_record",
  "hf": "hf",
}
WITHOUT_SHARDS = ("folder", "tfds")


@pytest.fixture(scope="module")
def rows():
  """(name, picture, captions); every tenth picture is cut short, every ninth has no caption."""
  examples, found = Shapes(examples=ROWS, image_size=24), []
  for i in range(ROWS):
    picture = cv2.imencode(".png", examples[i]["image"])[1].tobytes()
    picture = picture[:50] if i % 10 == 3 else picture
    found.append((f"{i:03}", picture, [] if i % 9 == 4 else examples[i]["captions"][:1]))
  return found


@pytest.fixture(scope="module")
def data(rows, tmp_path_factory):
  """{source: a data spec}, of the same rows in the same order."""
  root = tmp_path_factory.mktemp("same")
  for name in ("folder", "tars", "hf"):
    (root / name).mkdir()
  for key, picture, captions in rows:
    (root / f"folder/{key}.png").write_bytes(picture)
    for text in captions:
      (root / f"folder/{key}.txt").write_text(text)
  size = ROWS // SHARDS
  for k in range(SHARDS):
    write_shard(root, k, rows[k * size : (k + 1) * size])
  state = {"_data_files": [{"filename": f"{k}.arrow"} for k in range(SHARDS)]}
  (root / "hf/state.json").write_text(json.dumps(state))
  pq.write_table(table(rows), root / "a.parquet", row_group_size=size)
  found = {name: {"source": name, "path": str(root / path)} for name, path in SOURCES.items()}
  found["tsv"]["source"] = "csv"
  return found


def table(rows):
  _, pictures, captions = zip(*rows)
  return pa.table({"image": pictures, "captions": pa.array(captions, pa.list_(pa.string()))})


def write_shard(root, k: int, rows):
  with tarfile.open(root / f"tars/{k}.tar", "w") as out:
    for key, picture, captions in rows:
      for ending, content in [("png", picture), *(("txt", text.encode()) for text in captions)]:
        info = tarfile.TarInfo(f"{key}.{ending}")
        info.size = len(content)
        out.addfile(info, io.BytesIO(content))
  named = [(f"folder/{key}.png", *(captions or [""])) for key, _, captions in rows]
  for ending, separator in (("csv", ","), ("tsv", "\t")):
    with open(root / f"{k}.{ending}", "w", newline="") as file:
      csv.writer(file, delimiter=separator).writerows([("image", "caption"), *named])
  (root / f"{k}.jsonl").write_text(
    "".join(json.dumps({"image": name, "caption": text}) + "\n" for name, text in named)
  )
  writer = shards.ArrayRecordWriter(root / f"{k}.array_record")
  for i, (_, picture, captions) in enumerate(rows):
    writer.write(i, {"image": picture, "captions": captions})
  writer.close()
  with pa.ipc.new_stream(str(root / f"hf/{k}.arrow"), table(rows).schema) as writer:
    writer.write_table(table(rows))


@pytest.fixture(scope="module")
def prepared(rows, tmp_path_factory):
  """A data spec of TensorFlow Datasets, which has an order of its own."""
  import tensorflow_datasets as tfds

  class Same(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      features = {"image": tfds.features.Image(), "caption": tfds.features.Text()}
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
      return {"train": self._generate_examples()}

    def _generate_examples(self):
      for key, picture, captions in rows:
        yield key, {"image": io.BytesIO(picture), "caption": "".join(captions)}

  folder = tmp_path_factory.mktemp("tfds")
  Same(data_dir=folder, file_format="array_record").download_and_prepare()
  return {"source": "tfds", "name": "same", "data_dir": str(folder)}


def make_config(specs, order, batch_size, **loader):
  config = config_lib.default()
  config.data = tuple(
    {
      **spec,
      "order": "global" if spec["source"] in WITHOUT_SHARDS else order,
      "shuffle_shards": 2,
      "max_bad_fraction": 1.0,
    }
    for spec in specs
  )
  config.batch_size, config.image.size, config.image.crop_min_area = batch_size, 16, 0.5
  config.loader.update({"threads": 1, **loader})
  return config


def batches(config, count, sources=None, processes=1, start=0):
  """(batches, counts) of all processes together."""
  parts = []
  for process in range(processes):
    where = {"process_index": process, "process_count": processes, "start_step": start}
    made = pipeline.train_batches(config, TextProcessor(length=12), sources=sources, **where)
    parts.append(([next(made) for _ in range(count)], made.counts))
    made.close()
  steps = zip(*(found for found, _ in parts))
  found = [{key: np.concatenate([part[key] for part in step]) for key in step[0]} for step in steps]
  add = lambda key: np.sum([counts[key] for _, counts in parts], axis=0).tolist()
  return found, {"bad": add("bad"), "drawn": add("drawn")}


def assert_same(got, want):
  assert len(got) == len(want)
  for a, b in zip(got, want):
    assert {key: (x.dtype, x.shape, x.tobytes()) for key, x in a.items()} == {
      key: (x.dtype, x.shape, x.tobytes()) for key, x in b.items()
    }


@pytest.fixture(scope="module")
def of_parquet(data):
  """{order: (batches, counts)} of two epochs."""
  return {
    order: batches(make_config([data["parquet"]], order, 8), 12) for order in ("global", "shards")
  }


@pytest.mark.parametrize(
  "name, order",
  [(n, o) for n in SOURCES for o in ("global", "shards") if o == "global" or n != "folder"],
)
def test_every_source_gives_the_same_batches(name, order, data, of_parquet):
  want, counts = of_parquet[order]
  got, counted = batches(make_config([data[name]], order, 8, threads=4), 12)
  assert_same(got, want)
  assert counted == counts and counts["bad"][0] > 0


@pytest.fixture(scope="module", params=["global", "shards"])
def mix(request, data, prepared):
  """Of all sources at once, each as long as the others: (function to make the config, opened
  sources, batches, counts), a little more than an epoch.
  """
  specs = [*data.values(), prepared]
  make = lambda **loader: make_config(specs, request.param, 24, **loader)
  sources = pipeline.open_data(make())
  return make, sources, *batches(make(), 20, sources)


@pytest.mark.parametrize(
  "processes, loader", [(1, {"threads": 4}), (2, {"threads": 1}), (4, {"threads": 4, "buffer": 1})]
)
def test_threads_and_processes_do_not_change_the_batches(mix, processes, loader):
  make, sources, want, counts = mix
  got, counted = batches(make(**loader), 20, sources, processes)
  assert_same(got, want)
  assert counted == counts


def test_workers_open_every_source_anew_and_read_the_same(mix):
  make, sources, want, counts = mix
  got, counted = batches(make(workers=2), 20, sources)
  assert_same(got, want)
  assert counted == counts


def test_a_resume_at_any_step_on_any_number_of_processes_goes_on_the_same(mix):
  make, sources, want, _ = mix
  for step in range(1, 20):
    found, _ = batches(make(), min(2, 20 - step), sources, (1, 2, 4)[step % 3], step)
    assert_same(found, want[step : step + 2])


@pytest.mark.parametrize("ending", ["array_record", "tar"])
def test_what_is_converted_gives_the_same_batches(ending, rows, tmp_path):
  sound = [row for i, row in enumerate(rows) if i % 10 != 3 and i % 9 != 4]
  size, source = len(sound) // SHARDS, tmp_path / "a.parquet"
  pq.write_table(table(sound), source, row_group_size=size)
  words = ["--format", ending, "--examples-per-shard", str(size)]
  assert cli.main(["convert", str(source), str(tmp_path / "out"), *words]) == 0
  for order in ("global", "shards"):
    specs = [parse_spec(str(path)) for path in (source, tmp_path / "out")]
    want, counts = batches(make_config(specs[:1], order, 8), 12)
    got, counted = batches(make_config(specs[1:], order, 8, threads=4), 12)
    assert_same(got, want)
    assert counted == counts and counts["bad"] == [0]


def test_a_recipe_takes_the_source_that_a_path_suits(data):
  for config in ("siglip_b16", "cifar10_captions"):
    for source in ("folder", "webdataset", "csv", "hf"):
      path = data[source]["path"]
      c = config_lib.load(f"configs/{config}.py:train={path}")
      assert c.data == ({"source": source, "path": path},)


def test_a_tokenizer_reads_captions_alone_and_leaves_broken_ones_out(data, tmp_path, capsys):
  """Of pictures there are only the names."""
  folder = pathlib.Path(data["folder"]["path"])
  joined = lambda ending: "".join(
    (folder.parent / f"{k}.{ending}").read_text() for k in range(SHARDS)
  )
  lines = joined("jsonl")
  (tmp_path / "a.jsonl").write_text(f'nothing\n{{"image": "a.png", "caption": 3}}\n{lines}')
  table = "image,caption\n" + joined("csv").replace("image,caption\n", "")
  (tmp_path / "a.csv").write_text(table + "alone\nb,c,d\n")
  (tmp_path / "folder").mkdir()
  for text in folder.glob("*.txt"):
    (tmp_path / f"folder/{text.stem}.png").touch()
    (tmp_path / f"folder/{text.name}").write_bytes(text.read_bytes())
  for name in ("x", "y"):
    (tmp_path / f"folder/{name}.png").touch()
    (tmp_path / f"folder/{name}.txt").write_bytes(b"\xff")
  models = set()
  for name, first, why in (
    ("a.jsonl", 0, "no JSON"),
    ("a.csv", ROWS, "the row has 1 fields"),
    ("folder", None, "is not UTF-8"),
  ):
    out = tmp_path / f"{name}.model"
    words = ["--from", str(tmp_path / name), "--out", str(out), "--vocab-size", "60"]
    assert cli.main(["tokenizer", *words]) == 0
    said = capsys.readouterr().out
    first = "" if first is None else f"{first}: "
    assert f"left out 2 broken examples, first example {first}" in said and why in said
    models.add(out.read_bytes())
  assert len(models) == 1
