"""Filters of a data spec: when a source is opened, where it knows, or else when it is read."""

import collections
import json
import logging
import pickle

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from siglax import config as config_lib
from siglax import data
from siglax.commands import cli
from siglax.data import conversion
from siglax.data import files
from siglax.data import filters
from siglax.data import loading
from siglax.data import order
from siglax.data.sources import open_source
from siglax.data.sources import parse_spec
from siglax.data.text import TextProcessor

ROWS = 40
LABELS = [None if i % 10 == 9 else i % 4 for i in range(ROWS)]
CAPTIONS = [[f"red {i}", f"a red circle {i}"][: 1 + i % 2] for i in range(ROWS)]
SIDES = [4 if i % 3 else 20 for i in range(ROWS)]
PICTURES = [
  cv2.imencode(".png", np.full((side, side, 3), 6 * i, np.uint8))[1].tobytes()
  for i, side in enumerate(SIDES)
]
BROKEN = 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """The same rows as Parquet, lines of JSON, a saved dataset and tars; row 7 has no picture."""
  made = tmp_path_factory.mktemp("filtered")
  pictures = [b"none" if i == BROKEN else picture for i, picture in enumerate(PICTURES)]
  columns = {"image": pictures, "captions": CAPTIONS, "label": LABELS}
  pq.write_table(pa.table(columns), made / "a.parquet", row_group_size=12)
  for i, picture in enumerate(pictures):
    (made / f"{i}.png").write_bytes(picture)
  rows = [{"image": f"{i}.png", "captions": CAPTIONS[i], "label": LABELS[i]} for i in range(ROWS)]
  (made / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
  (made / "hf").mkdir()
  table = pa.table(columns)
  with pa.ipc.new_stream(str(made / "hf" / "data.arrow"), table.schema) as writer:
    writer.write_table(table, max_chunksize=9)
  (made / "hf" / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
  assert (
    cli.main(
      ["convert", f"{made / 'a.jsonl'}:max_bad_fraction=1", str(made / "tars"), "--format", "tar"]
    )
    == 0
  )
  return made


def spec_of(folder, source, **fields):
  path = {"parquet": "a.parquet", "jsonl": "a.jsonl", "hf": "hf", "webdataset": "tars"}[source]
  return {"source": source, "path": str(folder / path), **fields}


def want(min_caption_words=None, label_in=None, max_pixels=None):
  """The rows that are left, computed here."""
  left = []
  for i in range(ROWS):
    long = min_caption_words is None or any(
      len(text.split(" ")) >= min_caption_words for text in CAPTIONS[i]
    )
    known = label_in is None or LABELS[i] in label_in
    small = max_pixels is None or SIDES[i] ** 2 <= max_pixels
    if long and known and small:
      left.append(i)
  return left


FILTERS = [
  {"label_in": (1, 3)},
  {"min_caption_words": 3},
  {"label_in": (1, 2), "min_caption_words": 4},
]


@pytest.mark.parametrize("fields", FILTERS)
@pytest.mark.parametrize("source", ["parquet", "jsonl", "hf"])
def test_what_the_source_knows_is_filtered_when_it_is_opened(
  folder, source, fields, monkeypatch, caplog
):
  caplog.set_level(logging.INFO, "siglax")
  for memory in (files.MEMORY_BYTES, 0):  # Parquet in memory, or a row group at a time
    monkeypatch.setattr(files, "MEMORY_BYTES", memory)
    found = open_source(spec_of(folder, source, **fields), "config.data.0")
    left = want(**fields)
    assert [found.number(i) for i in range(len(found))] == left
    for examples in (found, pickle.loads(pickle.dumps(found))):
      for i, number in enumerate(left):
        if number != BROKEN:
          words = fields.get("min_caption_words", 0)
          long = [text for text in CAPTIONS[number] if len(text.split()) >= words]
          assert examples[i]["captions"] == long and examples[i]["image"] == PICTURES[number]
    assert found.shard_sizes.sum() == len(left) and found.filtered == ROWS - len(left)
    with pytest.raises(IndexError):
      found[len(left)]
  said = f": {ROWS - len(left)} of {ROWS} examples are filtered out"
  assert (
    said in caplog.text and "config.data.0.min_caption" in caplog.text or "label_in=" in caplog.text
  )


def batches(spec, steps, start=0, seed=3, batch_size=8, **loader):
  config = config_lib.default()
  config.data, config.batch_size, config.seed, config.image.size = (spec,), batch_size, seed, 4
  config.loader.update(threads=1, **loader)
  made = data.train_batches(config, TextProcessor(length=12), start_step=start)
  try:
    found = [(next(made), made.last[1]) for _ in range(steps)]
  finally:
    made.close()
  return found, made


def test_an_epoch_holds_what_is_left_once_in_both_orders(folder):
  spec = spec_of(folder, "hf", label_in=(0, 2), max_bad_fraction=1)
  left = want(label_in=(0, 2))
  assert len(left) == 20 and BROKEN not in left
  for fields in ({}, {"order": "shards", "shuffle_shards": 2}):
    found, made = batches(spec | fields, 8, batch_size=5)
    indices = [i for _, of in found for i in of]
    for epoch in (indices[:20], indices[20:]):
      assert sorted(epoch) == left
    assert made.counts == {"bad": [0], "drawn": [40], "filtered": [0]}


@pytest.mark.parametrize(
  "source, fields", [("webdataset", FILTERS[0]), ("parquet", {"max_pixels": 100})]
)
def test_what_only_an_example_tells_is_replaced_and_counted_apart(folder, source, fields, caplog):
  caplog.set_level(logging.INFO, "siglax")
  # No broken example is allowed, and filtered ones are none.
  spec = spec_of(folder, source, max_bad_fraction=0.0 if source == "webdataset" else 1, **fields)
  whole, made = batches(spec, 10)
  drawn = [i for _, of in whole for i in of]
  # Of the tars the broken one is gone, so that numbers behind it are one less.
  numbers = [i + (i >= BROKEN) for i in drawn] if source == "webdataset" else drawn
  assert set(numbers) <= set(want(**fields))
  assert made.filtered[0] > 10 and made.drawn[0] == 80 + made.bad[0]
  assert caplog.text.count("replaced by others, and counted") == 1
  for start, loader in (
    (0, {"workers": 1}),
    (4, {}),
    (0, {"buffer": 4}),
  ):
    again, _ = batches(spec, 6, start, **loader)
    for (got, of), (batch, indices) in zip(again, whole[start:]):
      assert of == indices
      for name in batch:
        np.testing.assert_array_equal(got[name], batch[name])


def test_pixels_are_counted_before_anything_is_decoded(folder, monkeypatch):
  found = open_source(spec_of(folder, "parquet", max_pixels=16))
  monkeypatch.setattr(cv2, "imdecode", None)
  for i in range(ROWS):
    if i == BROKEN:
      with pytest.raises(ValueError, match="cannot be decoded"):
        found[i]
    elif SIDES[i] == 4:
      found[i]
    else:
      with pytest.raises(filters.FilteredOut, match=r"20 × 20 pixels, max_pixels=16"):
        found[i]
  with pytest.raises(filters.FilteredOut):
    filters.Rule(max_pixels=11).kept({"image": np.zeros((3, 4, 3), np.uint8), "captions": []})


def test_folders_of_classes_are_filtered_by_their_names_alone(tmp_path):
  for i, picture in enumerate(PICTURES):
    place = tmp_path / ["bird", "cat", "dog"][i % 3]
    place.mkdir(exist_ok=True)
    (place / f"{i}.png").write_bytes(picture)
  found = open_source({"source": "folder", "path": str(tmp_path), "label_in": "0,2"})
  labels = [found[i]["label"] for i in range(len(found))]
  assert collections.Counter(labels) == {0: 14, 2: 13} and found.classnames == (
    "bird",
    "cat",
    "dog",
  )
  (tmp_path / "cat" / "1.txt").write_text("a cat")
  spec = {"source": "folder", "path": str(tmp_path), "classes": True, "label_in": 1}
  assert open_source(spec).at_reading == ["label_in"]


def test_broken_examples_are_left_and_stay_broken(tmp_path):
  """A label without a class, and a line that is no JSON: training names them."""
  columns = {"image": PICTURES, "caption": [None] * ROWS, "label": [i % 3 for i in range(ROWS)]}
  table = pa.table(
    columns, pa.schema([("image", pa.binary()), ("caption", pa.string()), ("label", pa.int64())])
  )
  file = tmp_path / "a.parquet"
  pq.write_table(table.replace_schema_metadata({"classes": "cat,dog"}), file, row_group_size=10)
  found = open_source({"source": "parquet", "path": str(file), "label_in": 0})
  assert len(found) == sum(i % 3 in (0, 2) for i in range(ROWS))
  with pytest.raises(ValueError, match="label=2 is none of the 2 classes"):
    found[1]
  assert found[0]["captions"] == ["a photo of a cat."]
  lines = [json.dumps({"image": "x.png", "caption": "red", "label": i % 2}) for i in range(6)]
  (tmp_path / "a.jsonl").write_text("\n".join([*lines[:3], "{none", *lines[3:]]))
  found = open_source({"source": "jsonl", "path": str(tmp_path / "a.jsonl"), "label_in": (1,)})
  assert [found.number(i) for i in range(len(found))] == [1, 3, 4, 6]


def test_rows_of_a_damaged_row_group_stay_broken(tmp_path, monkeypatch):
  monkeypatch.setattr(files, "MEMORY_BYTES", 0)
  captions = [f"red circle number {i}" for i in range(ROWS)]
  columns = {"image": PICTURES, "caption": captions, "label": [i % 2 for i in range(ROWS)]}
  file = tmp_path / "a.parquet"
  plain = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
  pq.write_table(pa.table(columns), file, row_group_size=10, write_statistics=False, **plain)
  content = bytearray(file.read_bytes())
  content[content.index(captions[15].encode())] ^= 1
  file.write_bytes(content)
  spec = {"source": "parquet", "path": str(file), "label_in": 1}
  with pytest.raises(ValueError, match=r"^config.data.0.path=.* damaged in row group 1.*; mend it"):
    open_source(spec, "config.data.0")
  found = open_source({**spec, "skip_damaged_shards": True})
  left = [i for i in range(ROWS) if i % 2 or 10 <= i < 20]
  assert [found.number(i) for i in range(len(found))] == left
  assert found[0]["captions"] == [captions[1]]
  with pytest.raises(ValueError, match="is damaged in row group 1"):
    found[left.index(12)]


def test_short_captions_leave_their_share_to_the_others(folder):
  texts = {"captions": ["red", "a red one", "blue two"], "caption_weights": [1.0, 1.5, 1.5]}
  kept = filters.Rule(min_caption_words=2).kept(texts)
  assert kept == {"captions": ["a red one", "blue two"], "caption_weights": [1.5, 1.5]}


def test_filters_that_leave_nothing_or_next_to_nothing_are_one_line(folder, monkeypatch):
  with pytest.raises(
    ValueError, match=r"^config\.data\.0\.label_in=\(77,\): none of the 40 examples"
  ):
    open_source(spec_of(folder, "jsonl", label_in=(77,)), "config.data.0")
  monkeypatch.setattr(loading, "MAX_FILTERED", 50)
  with pytest.raises(ValueError) as e:
    batches(spec_of(folder, "webdataset", label_in=(77,)), 1)
  assert "config.data.0: 50 examples in a row are filtered out, the last because its label" in str(
    e.value
  )
  assert "\n" not in str(e.value)


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"label_in": "x"}, "label_in='x' must be whole numbers, such as '0,3'"),
    ({"label_in": ()}, "label_in=() must be whole numbers"),
    ({"label_in": (1, -1)}, "label_in=(1, -1) must be whole numbers"),
    ({"max_pixels": 0}, "max_pixels=0 must be at least 1"),
    ({"min_caption_words": 1.5}, "min_caption_words=1.5 is of type float"),
  ],
)
def test_bad_filters_are_one_line(folder, fields, message):
  with pytest.raises(ValueError) as e:
    open_source(spec_of(folder, "parquet", **fields), "config.data.0")
  assert message in str(e.value) and "\n" not in str(e.value)


def test_an_evaluation_filters_only_what_is_known_when_it_opens(folder):
  config = config_lib.default()
  found = data.EvalExamples(open_source(spec_of(folder, "parquet", label_in=(2,))), config)
  assert len(found) == len(want(label_in=(2,))) and found[0]["label"] == 2
  with pytest.raises(ValueError, match="max_pixels can only be told of an example that is read"):
    data.EvalExamples(open_source(spec_of(folder, "parquet", max_pixels=100)), config)


def test_commands_count_what_is_filtered(folder, tmp_path, capsys):
  words = f"{folder / 'a.parquet'}:label_in=1,3,max_pixels=100,max_bad_fraction=1"
  assert parse_spec(words)["label_in"] == "1,3"
  left = want(label_in=(1, 3), max_pixels=100)
  assert cli.main(["inspect", words, "--json"]) == 0
  report = json.loads(capsys.readouterr().out)
  assert report["examples"] == len(want(label_in=(1, 3)))
  assert report["filtered"] == ROWS - len(left) - 0 and report["broken_examples"] == [BROKEN]
  assert cli.main(["inspect", words]) == 0
  assert f"{ROWS - len(left)} examples are filtered out" in capsys.readouterr().out
  assert cli.main(["convert", words, str(tmp_path / "shards")]) == 0
  assert f"{ROWS - len(left)} filtered out" in capsys.readouterr().out
  manifest = json.loads((tmp_path / "shards" / "manifest.json").read_text())
  assert manifest["filtered"] == ROWS - len(left) and manifest["skipped"]["examples"] == 1
  written = open_source(parse_spec(str(tmp_path / "shards")))
  found = [written[i]["image"] for i in range(len(written))]
  assert found == [PICTURES[i] for i in left if i != BROKEN]
  other = f"{folder / 'a.parquet'}:label_in=1,max_pixels=100,max_bad_fraction=1"
  assert cli.main(["convert", other, str(tmp_path / "shards")]) == 1
  assert "holds another conversion" in capsys.readouterr().err
  weighted = spec_of(folder, "parquet", caption="captions", caption_weights=(1,))
  with pytest.raises(
    ValueError, match=r"SRC: caption_weights=\(1,\) has no place in what is written"
  ):
    conversion.convert(weighted, tmp_path / "weighted", image=config_lib.default().image)


def test_the_order_of_what_is_left_is_a_formula(folder):
  config = config_lib.default()
  config.data = (spec_of(folder, "jsonl", label_in=(0, 1)),)
  sources_of = data.open_data(config)
  (shuffled,) = order.of_sources(config, sources_of)
  assert len(shuffled) == len(want(label_in=(0, 1))) == data.num_examples(sources_of)
  first = order.Fingerprint(config, sources_of)(3)
  assert first == order.Fingerprint(config, data.open_data(config))(3)
  # As many others are another order.
  config.data = (spec_of(folder, "jsonl", label_in=(0, 3)),)
  others = data.open_data(config)
  assert len(others[0]) == len(want(label_in=(0, 3)))
  assert order.Fingerprint(config, others)(3)["examples"] != first["examples"]
