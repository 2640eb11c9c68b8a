"""siglax.data.sources: what is written is read, in any order, and bad files are refused in one
line.
"""

import concurrent.futures
import json
import os
import pathlib
import pickle

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from siglax import config as config_lib
from siglax.data import files as files_lib
from siglax.data import order
from siglax.data import pipeline
from siglax.data import reading
from siglax.data import tables
from siglax.data.examples import EvalExamples
from siglax.data.sources import open_source
from siglax.data.sources import validate_spec

IMAGE = pa.array([b"one", b"", b"three", None, b"five"], pa.binary())
CAPTIONS = ["a", "b", None, "d", "e"]
ROWS = len(IMAGE)


def write(path, row_group_size=2, metadata=None, write_page_checksum=False, **columns):
  table = pa.table(columns).replace_schema_metadata(metadata)
  pq.write_table(
    table, path, row_group_size=row_group_size, write_page_checksum=write_page_checksum
  )
  return str(path)


def parquet(path, **fields):
  return open_source({"source": "parquet", "path": path, **fields}, "config.data.0")


def test_rows_come_back_in_any_order(tmp_path):
  path = write(
    tmp_path / "a.parquet",
    image=IMAGE,
    caption=CAPTIONS,
    label=pa.array([3, None, 1, 0, 2], pa.int8()),
    weight=[0.5, 1, 1, None, 2],
    key=list("vwxyz"),
    metadata={"classes": "cat, dog,cow,hen"},
  )
  source = parquet(path)
  assert len(source) == ROWS and source.classnames == ("cat", "dog", "cow", "hen")
  assert source[4] == {"image": b"five", "captions": ["e"], "label": 2, "weight": 2.0, "key": "z"}
  assert source[0] == {"image": b"one", "captions": ["a"], "label": 3, "weight": 0.5, "key": "v"}
  assert source[1] == {"image": b"", "captions": ["b"], "weight": 1.0, "key": "w"}
  assert source[3] == {"image": None, "captions": ["d"], "label": 0, "key": "y"}
  assert source[2]["captions"] == ["a photo of a dog."]
  assert parquet(path, template=None)[2]["captions"] == []
  for i in (-1, ROWS):
    with pytest.raises(IndexError):
      source[i]


def test_lists_of_captions_structs_of_bytes_and_named_columns(tmp_path):
  picture = [{"bytes": b"one", "path": "1.jpg"}, {"bytes": None, "path": "2.jpg"}, None]
  texts = pa.array([["a", "b"], [], [None, "c"]], pa.list_(pa.string()))
  path = write(
    tmp_path / "a.parquet", picture=picture, texts=texts, kind=[1, 2, 3], share=[1, 2, 3]
  )
  source = parquet(path, image="picture", caption="texts", label="kind", weights="share")
  assert source.classnames is None
  assert [source[i] for i in range(3)] == [
    {"image": b"one", "captions": ["a", "b"], "label": 1, "weight": 1.0},
    {"image": None, "captions": [], "label": 2, "weight": 2.0},
    {"image": None, "captions": ["c"], "label": 3, "weight": 3.0},
  ]


def test_captions_of_the_other_arrow_types(tmp_path):
  large = pa.array([["a"], ["b", "c"]], pa.large_list(pa.large_string()))
  path = write(
    tmp_path / "a.parquet", image=pa.array([b"1", b"2"], pa.large_binary()), captions=large
  )
  assert parquet(path)[1] == {"image": b"2", "captions": ["b", "c"]}
  path = write(
    tmp_path / "b.parquet", image=[b"1", b"2"], caption=pa.array(["x", "x"]).dictionary_encode()
  )
  assert parquet(path)[1] == {"image": b"2", "captions": ["x"]}


def test_several_files_follow_each_other(tmp_path):
  for name in "ecadb":
    write(tmp_path / f"{name}.parquet", image=[name.encode()] * 2, caption=[f"{name}0", f"{name}1"])
  read = lambda path: [parquet(path)[i]["captions"][0] for i in range(len(parquet(path)))]
  assert read(f"{tmp_path}/*.parquet") == [
    "a0",
    "a1",
    "b0",
    "b1",
    "c0",
    "c1",
    "d0",
    "d1",
    "e0",
    "e1",
  ]
  assert read(f"{tmp_path}/c.parquet, {tmp_path}/[ab].parquet") == [
    "c0",
    "c1",
    "a0",
    "a1",
    "b0",
    "b1",
  ]
  assert read((tmp_path / "b.parquet", tmp_path / "a.parquet")) == ["b0", "b1", "a0", "a1"]


def test_reads_alike_from_threads_and_after_pickling(tmp_path):
  n = 3000  # more than one batch of rows
  path = write(
    tmp_path / "a.parquet",
    700,
    image=[b"%d" % i for i in range(n)],
    caption=[f"c{i}" for i in range(n)],
  )
  source = parquet(path)
  want = [{"image": b"%d" % i, "captions": [f"c{i}"]} for i in range(n)]
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    assert list(pool.map(source.__getitem__, range(n))) == want
  copy = pickle.loads(pickle.dumps(source))
  assert [copy[i] for i in range(0, n, 131)] == want[::131]


def test_large_data_is_mapped_from_an_arrow_file_written_once(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  picture = [{"bytes": b"%d" % i, "path": "x"} for i in range(50)]
  path = write(
    tmp_path / "a.parquet",
    image=picture,
    caption=[f"c{i}" for i in range(50)],
    unread=["y" * 99] * 50,
  )
  in_memory = parquet(path)
  assert not (tmp_path / "cache").exists()
  monkeypatch.setattr(files_lib, "MEMORY_BYTES", 0)

  def parquet_at_random(path):
    examples = parquet(path)
    examples.prepare_random_access()
    return examples

  mapped = parquet_at_random(path)
  assert [mapped[i] for i in range(50)] == [in_memory[i] for i in range(50)]
  (cache,) = (tmp_path / "cache/siglax").iterdir()
  written = cache.stat().st_mtime_ns
  assert parquet_at_random(path)[7] == in_memory[7] and cache.stat().st_mtime_ns == written
  write(path, image=picture[::-1], caption=CAPTIONS * 10)  # another file of the same name
  assert parquet_at_random(path)[0] == {"image": b"49", "captions": ["a"]}
  assert len(list((tmp_path / "cache/siglax").iterdir())) == 2


def counted_reads(monkeypatch) -> list:
  """(file, row group) of each row group that is decompressed from here on."""
  reads, of_group = [], files_lib.Columns.of_group

  def counted(self, path, file, group):
    reads.append((pathlib.Path(path).stem, group))
    return of_group(self, path, file, group)

  monkeypatch.setattr(files_lib.Columns, "of_group", counted)
  return reads


def test_of_large_data_row_groups_are_read_when_they_are_asked_for(tmp_path, monkeypatch):
  picture = lambda i: bytes([i]) * 1000
  for name, first in (("a", 0), ("b", 60)):
    write(
      tmp_path / f"{name}.parquet",
      10,
      image=[picture(i) for i in range(first, first + 60)],
      caption=[f"c{i}" for i in range(first, first + 60)],
    )
  want = [{"image": picture(i), "captions": [f"c{i}"]} for i in range(120)]
  # Pages of one byte repeated are dictionaries: a row group states less than its rows take.
  monkeypatch.setattr(files_lib, "MEMORY_BYTES", 40_000)
  reads = counted_reads(monkeypatch)
  examples = parquet(f"{tmp_path}/*.parquet")
  assert not reads and examples.shard_sizes.tolist() == [10] * 12
  assert [examples[i] for i in range(120)] == want
  assert reads == [(name, group) for name in "ab" for group in range(6)]  # in a row, each once
  reads.clear()
  for i in (5, 35, 7, 36, 9, 34):
    assert examples[i] == want[i]
  assert reads == [("a", 0), ("a", 3)]
  # Memory holds three of them at 10 kB; the one that was used last stays.
  for i in (45, 55, 45, 65, 75, 45, 55):
    examples[i]
  assert reads[2:] == [("a", 4), ("a", 5), ("b", 0), ("b", 1), ("a", 5)]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    assert list(pool.map(examples.__getitem__, range(120))) == want
  copy = pickle.loads(pickle.dumps(examples))
  assert [copy[i] for i in range(0, 120, 17)] == want[::17]


def test_a_damaged_row_group_is_named_with_its_place(tmp_path, monkeypatch, caplog):
  noise = [os.urandom(500) for _ in range(40)]
  path = tmp_path / "a.parquet"
  write(path, 10, image=noise, caption=[f"c{i}" for i in range(40)], write_page_checksum=True)
  start = pq.ParquetFile(path).metadata.row_group(2).column(0).dictionary_page_offset
  data = bytearray(path.read_bytes())
  data[start + 2500] ^= 1
  path.write_bytes(data)
  message = f"path='{path}' is damaged in row group 2, which begins at byte "
  refused(message, str(path))
  refused("skip_damaged_shards=True", str(path))
  kept = parquet(str(path), skip_damaged_shards=True)
  assert [kept[i]["image"] for i in range(30)] == noise[:20] + noise[30:]
  assert len(kept) == 30 and kept.shard_sizes.tolist() == [10, 10, 0, 10]
  assert f"{message}" in caplog.text and "10 of its rows are left out" in caplog.text


def test_a_damaged_row_group_that_is_read_late_ends_the_training_or_is_skipped(
  tmp_path, monkeypatch, caplog
):
  """As above, of data that memory does not hold, in either order."""
  pictures = [cv2.imencode(".png", noise(i))[1].tobytes() for i in range(40)]
  path = tmp_path / "a.parquet"
  write(path, 10, image=pictures, caption=[f"c{i}" for i in range(40)], write_page_checksum=True)
  start = pq.ParquetFile(path).metadata.row_group(2).column(0).dictionary_page_offset
  data = bytearray(path.read_bytes())
  data[start + 1000] ^= 1
  path.write_bytes(data)
  monkeypatch.setattr(files_lib, "MEMORY_BYTES", 0)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  message = f"path='{path}' is damaged in row group 2, which begins at byte {start}: "
  reads = counted_reads(monkeypatch)
  on_demand = parquet(str(path))
  for i in (20, 29):
    with pytest.raises(files_lib.DamagedGroup, match="is damaged in row group 2"):
      on_demand[i]
  assert on_demand[30]["image"] == pictures[30] and reads == [("a", 2), ("a", 3)]
  with pytest.raises(files_lib.DamagedGroup):
    list(reading.read_ahead(on_demand.__getitem__, range(40), 4))
  with pytest.raises(files_lib.DamagedGroup):
    EvalExamples(on_demand, config_lib.default())[25]
  found = {}
  for way in ("shards", "global"):
    spec = {"source": "parquet", "path": str(path), "order": way, "shuffle_shards": 1}
    spec["max_bad_fraction"] = 1
    with pytest.raises(ValueError) as e:
      drawn(spec, 40)
    said = str(e.value)
    assert said.startswith(f"config.data.0.{message}") and "\n" not in said
    assert "skip_damaged_shards=True" in said
    assert not any("broken" in record.getMessage() for record in caplog.records)
    caplog.clear()
    for threads in (1, 3):
      images, counts = drawn(spec | {"skip_damaged_shards": True}, 40, threads=threads)
      told = [r.getMessage() for r in caplog.records if "rows are left out" in r.getMessage()]
      assert len(told) == (threads == 1 or way == "shards"), "a file in the cache has told it"
      assert all(message in line and "; 10 of its rows" in line for line in told)
      assert found.setdefault(way, (images, counts)) == (images, counts)
      caplog.clear()
    # Its rows are broken examples; all others are there, each once but for those in their place.
    assert counts["bad"][0] >= 10 and set(images) == set(range(20)) | set(range(30, 40))


def noise(i: int):
  picture = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
  picture[0, 0] = i
  return picture


def drawn(spec, count: int, threads: int = 1) -> tuple[list[int], dict]:
  """(numbers of the pictures of `noise` that training draws, counts)."""
  config = config_lib.default()
  config.data, config.batch_size, config.image.size = (spec,), 1, 8
  config.loader.threads = threads
  text = lambda texts: np.zeros((len(texts), 4), np.int32)
  batches = pipeline.train_batches(config, text)
  try:
    return [int(next(batches)["image"][0, 0, 0, 0]) for _ in range(count)], batches.counts
  finally:
    batches.close()


def test_missing_and_cut_files_may_be_left_out(tmp_path, caplog):
  for name in "ab":
    write(tmp_path / f"{name}.parquet", image=IMAGE, caption=CAPTIONS)
  (tmp_path / "b.parquet").write_bytes((tmp_path / "b.parquet").read_bytes()[:-9])
  names = [str(tmp_path / f"{name}.parquet") for name in "abc"]
  kept = parquet(names, skip_damaged_shards=True)
  assert len(kept) == len(IMAGE)
  assert "b.parquet" in caplog.text and "c.parquet" in caplog.text
  refused("has no file that can be read", names[1:], skip_damaged_shards=True)


def test_class_names_of_hugging_faces_features(tmp_path):
  features = {
    "label": {"names": ["cat", "dog"], "_type": "ClassLabel"},
    "other": {"names": ["a"], "_type": "ClassLabel"},
    "caption": {"dtype": "string", "_type": "Value"},
  }
  table = pa.table({"image": IMAGE, "caption": CAPTIONS, "label": [0] * 5, "other": [0] * 5})
  metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
  pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "a.parquet")
  assert parquet(str(tmp_path / "a.parquet")).classnames == ("cat", "dog")
  assert parquet(str(tmp_path / "a.parquet"), label="other").classnames == ("a",)
  damaged = {b"huggingface": b'{"info": 3'}
  pq.write_table(table.replace_schema_metadata(damaged), tmp_path / "b.parquet")
  assert parquet(str(tmp_path / "b.parquet")).classnames is None


def test_memory_is_judged_by_the_columns_read(tmp_path):
  noise = lambda size: [os.urandom(size) for _ in range(20)]
  path = write(
    tmp_path / "a.parquet", 20, image=noise(1000), caption=["c"] * 20, imagery=noise(100_000)
  )
  files = {path: pq.ParquetFile(path)}
  schemas = {path: files[path].schema_arrow}
  columns = tables.ImageText(schemas, "image", None, None, None, None, None)
  assert 20_000 <= columns.bytes(files) <= 25_000


def refused(message, path, **fields):
  with pytest.raises(ValueError) as e:
    parquet(path, **fields)
  assert message in str(e.value) and "\n" not in str(e.value)
  assert str(e.value).startswith("config.data.0.")


def test_bad_files_are_refused_in_one_line(tmp_path):
  good = write(tmp_path / "good.parquet", image=IMAGE, caption=CAPTIONS)
  refused("path='/nowhere/a.parquet': no such file", "/nowhere/a.parquet")
  refused("no such file", f"{tmp_path}/*.nothing")
  refused(f"use '{tmp_path}/*.parquet'", str(tmp_path))
  refused("is of type int; it needs str | tuple", 3)
  refused("must be a file, a glob, or a tuple", [good, 3])
  refused("path='a\\x00.parquet' has a NUL byte", "a\0.parquet")
  (tmp_path / "gone").mkdir()
  (tmp_path / "gone/a.parquet").symlink_to(tmp_path / "nothing")
  refused("gone/a.parquet': No such file or directory", f"{tmp_path}/gone/*.parquet")
  (tmp_path / "empty.parquet").write_bytes(b"")
  refused("empty.parquet' is empty (0 bytes)", f"{tmp_path}/empty.parquet")
  refused(
    "has no rows",
    write(tmp_path / "rows.parquet", image=IMAGE[:0], caption=pa.array([], pa.string())),
  )
  data = (tmp_path / "good.parquet").read_bytes()
  for size in (3, len(data) // 2, len(data) - 1):
    (tmp_path / "cut.parquet").write_bytes(data[:size])
    refused(f"({size} bytes) is not a Parquet file, or is cut short", f"{tmp_path}/cut.parquet")
  (tmp_path / "rows.x").write_text("not parquet at all")
  refused("parquet file; if it is of another kind, name its source", f"{tmp_path}/rows.x")
  (tmp_path / "text.parquet").write_text("not parquet at all")
  refused("is not a Parquet file", f"{good},{tmp_path}/text.parquet")
  # A page that is overwritten, the footer whole.
  (tmp_path / "damaged.parquet").write_bytes(data[:4] + b"\xff" * 60 + data[64:])
  refused("damaged.parquet' is damaged", f"{tmp_path}/damaged.parquet")


def test_a_flipped_bit_is_noticed_where_pages_have_checksums(tmp_path):
  table = pa.table({"image": [os.urandom(40) for _ in range(50)], "caption": ["c"] * 50})
  for checksums in (True, False):
    pq.write_table(
      table,
      tmp_path / "a.parquet",
      write_page_checksum=checksums,
      compression="none",
      use_dictionary=False,
    )
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[data.index(sorted(table["image"].to_pylist())[25])] ^= 1  # least and most are in headers
    (tmp_path / "a.parquet").write_bytes(data)
    if checksums:
      message = "a.parquet' is damaged in row group 0, which begins at byte 4: "
      refused(message, str(tmp_path / "a.parquet"))
    else:  # then nothing can tell
      assert len(parquet(str(tmp_path / "a.parquet"))) == 50


def test_missing_or_unfit_columns_are_refused_by_field(tmp_path):
  path = write(
    tmp_path / "a.parquet", picture=IMAGE, text=CAPTIONS, number=[1] * ROWS, caption=CAPTIONS
  )
  refused("config.data.0.image='image': no such column", path)
  refused("but picture, text, number, caption; name one", path)
  refused("image='number': the column of", path, image="number")
  refused("holds int64, it must hold bytes", path, image="number")
  refused("caption='captoin': no such column", path, image="picture", caption="captoin")
  refused("it must hold strings", path, image="picture", caption="number")
  refused("label='class': no such column", path, image="picture", label="class")
  refused("it must hold whole numbers", path, image="picture", label="text")
  refused("it must hold numbers", path, image="picture", weights="text")
  pq.write_table(
    pa.table([IMAGE, CAPTIONS, CAPTIONS], ["image", "caption", "caption"]),
    tmp_path / "twice.parquet",
  )
  refused("caption='caption': ", str(tmp_path / "twice.parquet"))
  refused("has several columns called so; rename them", str(tmp_path / "twice.parquet"))
  path = write(tmp_path / "b.parquet", image=IMAGE, text=CAPTIONS)
  refused("caption=None: no column 'captions' or 'caption' in ", path)
  refused("b.parquet but image, text; name one", path)
  assert len(parquet(path, caption="text")) == ROWS


def test_files_with_other_classes_are_refused(tmp_path):
  for name, classes in (("a", "cat,dog"), ("b", "dog,cat")):
    write(
      tmp_path / f"{name}.parquet", image=IMAGE, caption=CAPTIONS, metadata={"classes": classes}
    )
  refused("differ in the class names of the schema's metadata", f"{tmp_path}/*.parquet")


@pytest.mark.parametrize(
  "spec, message",
  [
    ("shapes", "config.data.0='shapes' must be a dict"),
    ({}, "config.data.0.source=None is unknown; known are shapes, parquet"),
    ({"source": "parqet"}, "config.data.0.source='parqet' is unknown; known are shapes, parquet"),
    ({"source": "parquet"}, "config.data.0.path is missing; source 'parquet' needs it"),
    (
      {"source": "parquet", "path": "x", "captions": "y"},
      "data.0.captions is unknown; did you mean caption?",
    ),
    ({"source": "shapes", "path": "x"}, "source 'shapes' has split, examples, image_size"),
    ({"source": "shapes", "weight": 0}, "config.data.0.weight=0 must be positive, or None"),
    ({"source": "shapes", "weight": "1"}, "weight='1' is of type str; it needs float, or None"),
    (
      {"source": "shapes", "max_bad_fraction": 1.5},
      "max_bad_fraction=1.5 must be at most 1, or None",
    ),
  ],
)
def test_specs_are_checked_without_reading(spec, message):
  with pytest.raises(ValueError) as e:
    validate_spec(spec, "config.data.0")
  assert message in str(e.value) and "\n" not in str(e.value)


def test_a_source_s_own_errors_name_the_field():
  with pytest.raises(ValueError, match=r"^config\.data\.1\.examples=0 must be"):
    open_source({"source": "shapes", "examples": 0}, "config.data.1")
  with pytest.raises(ValueError, match=r"^examples=0 must be"):
    open_source({"source": "shapes", "examples": 0})
  source = open_source(
    {"source": "shapes", "examples": 3, "weight": 2.0, "max_bad_fraction": 0}, "config.data.1"
  )
  assert len(source) == 3 and source.classnames


def test_the_order_keeps_to_the_shards_that_memory_holds(tmp_path, monkeypatch):
  noise = [os.urandom(1000) for _ in range(60)]
  path = write(tmp_path / "a.parquet", 10, image=noise, caption=[f"c{i}" for i in range(60)])
  spec = {"source": "parquet", "path": path, "order": "shards", "shuffle_shards": 5}
  monkeypatch.setattr(files_lib, "MEMORY_BYTES", 45_000)
  reads = counted_reads(monkeypatch)
  with pytest.raises(ValueError) as e:
    order.shuffled(open_source(spec), spec, 0, "config.data.0")
  assert str(e.value) == (
    "config.data.0.shuffle_shards=5: there is room for 3 of the shards of source='parquet' at a "
    "time; set it to 3 or less"
  )
  examples, spec = open_source(spec), spec | {"shuffle_shards": 3}
  shuffled = order.shuffled(examples, spec, 0, "config.data.0")
  drawn = [shuffled[k] for k in range(60)]
  assert [examples[i]["image"] for i in drawn] == [noise[i] for i in drawn]
  assert sorted(drawn) == list(range(60)) and sorted(reads) == [("a", g) for g in range(6)]
