"""Columns of captions drawn by weights, and templates of classes: the same of all sources."""

import collections
import io
import json
import tarfile

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from siglax import config as config_lib
from siglax import data
from siglax.data import sources
from siglax.data.sources import open_source
from siglax.data.text import TextProcessor

ROWS = 12
PICTURES = [
  cv2.imencode(".png", np.full((4, 4, 3), 20 * i, np.uint8))[1].tobytes() for i in range(ROWS)
]
# Of the rows i % 4: both; two synthetic ones; none written, one blank; the written one alone.
WRITTEN = [[f"red {i}", f"red {i}", None, f"red {i}"][i % 4] for i in range(ROWS)]
SYNTHETIC = [
  [[f"blue {i}"], [f"blue {i}", f"green {i}"], [" ", f"blue {i}"], []][i % 4] for i in range(ROWS)
]
FIELDS = {"caption": "written,synthetic", "caption_weights": "1,3"}


@pytest.fixture(scope="module")
def specs(tmp_path_factory):
  """{source: spec} of the same rows."""
  folder = tmp_path_factory.mktemp("rows")
  columns = {"image": PICTURES, "written": WRITTEN, "synthetic": SYNTHETIC}
  pq.write_table(pa.table(columns), folder / "a.parquet")
  for i, picture in enumerate(PICTURES):
    (folder / f"{i}.png").write_bytes(picture)
  rows = [
    {"image": f"{i}.png", "written": WRITTEN[i], "synthetic": SYNTHETIC[i]} for i in range(ROWS)
  ]
  (folder / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
  with tarfile.open(folder / "a.tar", "w") as tar:
    for i, row in enumerate(rows):
      members = {"png": PICTURES[i], "json": json.dumps(row).encode()}
      if row["written"] is not None:
        members["txt"] = row["written"].encode()
      for ending, content in members.items():
        info = tarfile.TarInfo(f"{i:02}.{ending}")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
  _save(folder / "hf", columns)
  _records(folder / "a.array_record", rows)
  found = {
    source: {"source": source, "path": str(folder / name), **FIELDS}
    for source, name in (
      ("parquet", "a.parquet"),
      ("jsonl", "a.jsonl"),
      ("webdataset", "a.tar"),
      ("hf", "hf"),
      ("array_record", "a.array_record"),
    )
  }
  found["webdataset"]["caption"] = ("txt", "synthetic")
  return found


def _save(folder, columns):
  folder.mkdir()
  table = pa.table(columns)
  with pa.ipc.new_stream(str(folder / "data.arrow"), table.schema) as writer:
    writer.write_table(table)
  state = {"_data_files": [{"filename": "data.arrow"}]}
  (folder / "state.json").write_text(json.dumps(state))


def _records(file, rows):
  from array_record.python import array_record_module
  from tensorflow_datasets.proto import tf_example_pb2

  writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1,uncompressed")
  for picture, row in zip(PICTURES, rows):
    example = tf_example_pb2.Example()
    values = {
      "image": [picture],
      "written": [row["written"].encode()] if row["written"] else [],
      "synthetic": [text.encode() for text in row["synthetic"]],
    }
    for name, found in values.items():
      example.features.feature[name].bytes_list.value.extend(found)
    writer.write(example.SerializeToString())
  writer.close()


def batches(spec, steps, seed=0, **loader):
  config = config_lib.default()
  config.data, config.batch_size, config.seed = (spec,), ROWS, seed
  config.image.size, config.loader.threads = 4, 1
  config.loader.update(loader)
  made = data.train_batches(config, TextProcessor(length=12), start_step=loader.get("start", 0))
  try:
    return [(next(made), made.last[1]) for _ in range(steps)]
  finally:
    made.close()


def drawn(spec, steps):
  """Captions drawn of each example."""
  text, found = TextProcessor(length=12), collections.defaultdict(collections.Counter)
  for batch, indices in batches(spec, steps):
    for i, tokens in zip(indices, batch["tokens"]):
      found[i][text.decode(tokens)] += 1
  return found


def test_all_sources_read_the_same_columns(specs):
  for source, spec in specs.items():
    examples = open_source(spec)
    for i in range(ROWS):
      example = examples[i]
      written = [WRITTEN[i]] if WRITTEN[i] else []
      synthetic = [text for text in SYNTHETIC[i] if text.strip()]
      assert example["captions"] == written + synthetic, source
      weights = [1.0] * len(written) + [3 / len(synthetic) for _ in synthetic]
      assert example["caption_weights"] == pytest.approx(weights), source


@pytest.mark.slow
def test_all_sources_draw_the_same_captions_by_their_weights(specs):
  want = batches(specs["parquet"], 3)
  for spec in specs.values():
    for (got, _), (batch, _) in zip(batches(spec, 3), want):
      np.testing.assert_array_equal(got["tokens"], batch["tokens"])
  found = drawn(specs["parquet"], 400)
  both, several = found[0], found[1]
  # Binomial of 400: five deviations are 43 at ¼, 48 at ⅜.
  assert abs(both["red 0"] - 100) < 43 and both["red 0"] + both["blue 0"] == 400
  assert abs(several["red 1"] - 100) < 43 and abs(several["green 1"] - 150) < 48
  assert found[2] == {"blue 2": 400} and found[3] == {"red 3": 400}
  alike = drawn({k: v for k, v in specs["parquet"].items() if k != "caption_weights"}, 400)
  # Each column as often, whatever it holds: five deviations are 50.
  assert abs(alike[1]["red 1"] - 200) < 50


def test_the_choice_is_that_of_the_seed_the_epoch_and_the_example(specs):
  whole = batches(specs["jsonl"], 6)
  for loader in ({"threads": 3}, {"workers": 1, "threads": 2}):
    for (got, _), (want, _) in zip(batches(specs["jsonl"], 6, **loader), whole):
      np.testing.assert_array_equal(got["tokens"], want["tokens"])
  config = config_lib.default()
  config.data, config.batch_size, config.image.size = (specs["jsonl"],), ROWS, 4
  resumed = data.train_batches(config, TextProcessor(length=12), start_step=4)
  np.testing.assert_array_equal(next(resumed)["tokens"], whole[4][0]["tokens"])
  resumed.close()
  text = TextProcessor(length=12)
  of_0 = [text.decode(b["tokens"][i.index(0)]) for b, i in batches(specs["jsonl"], 30)]
  assert set(of_0) == {"red 0", "blue 0"}


def test_a_spec_may_stand_on_a_command_line(specs):
  path = specs["jsonl"]["path"]
  spec = sources.parse_spec(f"{path}:caption=written,synthetic,caption_weights=1,3")
  assert spec == specs["jsonl"]
  as_tuples = {**spec, "caption": ("written", "synthetic"), "caption_weights": (1, 3.0)}
  assert open_source(as_tuples)[1] == open_source(spec)[1]


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"caption": "written,here"}, "caption='here': no such column in "),
    ({"caption": "written,written"}, "caption='written,written' names one twice"),
    ({"caption": ()}, "caption=() must be names, such as 'caption,synthetic'"),
    ({"caption_weights": "1,x"}, "caption_weights='1,x' must be positive numbers, such as '1,3'"),
    ({"caption_weights": (1, 0)}, "caption_weights=(1, 0) must be positive numbers"),
    ({"caption_weights": "1,2,3"}, "has 3 numbers, caption='written,synthetic' has 2 names"),
    ({"caption": None}, "caption_weights='1,3' has 2 numbers, caption=None has 0 names"),
  ],
)
def test_what_does_not_fit_is_one_line(specs, fields, message):
  with pytest.raises(ValueError) as e:
    open_source({**specs["parquet"], **fields}, "config.data.0")
  assert message in str(e.value) and "\n" not in str(e.value)


def test_only_captions_have_several_names(specs):
  with pytest.raises(ValueError, match="image='image,written': no such column"):
    open_source({**specs["parquet"], "image": "image,written"})


def test_a_name_with_a_comma_is_that_of_a_column(tmp_path):
  file = str(tmp_path / "a.parquet")
  pq.write_table(pa.table({"image": PICTURES, "a,b": [f"x {i}" for i in range(ROWS)]}), file)
  example = open_source({"source": "parquet", "path": file, "caption": "a,b"})[2]
  assert example["captions"] == ["x 2"] and "caption_weights" not in example


# Templates


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
  """A folder of classes, and a Parquet file of the same."""
  folder = tmp_path_factory.mktemp("classes")
  for i, picture in enumerate(PICTURES):
    place = folder / "red" if i % 2 else folder / "blue"
    place.mkdir(exist_ok=True)
    (place / f"{i:02}.png").write_bytes(picture)
  table = pa.table({"image": PICTURES, "label": [i % 2 for i in range(ROWS)]})
  table = table.replace_schema_metadata({"classes": "blue,red"})
  pq.write_table(table, folder.parent / "classes.parquet")
  return folder


def test_training_draws_one_of_the_templates(classes, tmp_path):
  lines = "a {c} circle\nthe {c} square\n\na small {c} one\n"
  file = tmp_path / "zeroshot_classification_templates.txt"
  file.write_text(lines)
  texts = ("a {} circle", "the {} square", "a small {} one")
  by_file = {"source": "folder", "path": str(classes), "template": str(file)}
  found = drawn(by_file, 300)
  for i, counts in found.items():
    name = "blue" if i < ROWS // 2 else "red"
    assert set(counts) == {text.format(name) for text in texts}
    # Binomial of 300 at ⅓: five deviations are 41.
    assert max(abs(count - 100) for count in counts.values()) < 41
  assert drawn({**by_file, "template": texts}, 5) == drawn(by_file, 5)
  parquet = {
    "source": "parquet",
    "path": str(classes.parent / "classes.parquet"),
    "template": texts,
  }
  assert open_source(parquet)[3]["captions"] == [text.format("red") for text in texts]
  assert open_source({**parquet, "template": "{}"})[2]["captions"] == ["blue"]


@pytest.mark.parametrize(
  "template, message",
  [
    (
      "a cat",
      "template='a cat' must be a text with {} for the name of the class, or a file of such",
    ),
    (("{}", "a cat"), "must be a text with {} for the name of the class, several, or a file"),
    ((), "must be a text with {}"),
    ("FILE", "each line must have {} for the name of the class"),
  ],
)
def test_templates_without_a_place_for_the_name_are_refused(classes, tmp_path, template, message):
  if template == "FILE":
    (tmp_path / "t.txt").write_text("a {}\nb\n")
    template = str(tmp_path / "t.txt")
  with pytest.raises(ValueError) as e:
    open_source({"source": "folder", "path": str(classes), "template": template}, "config.data.0")
  assert message in str(e.value) and "\n" not in str(e.value)
