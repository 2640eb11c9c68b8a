"""The sources csv and jsonl: what Python's csv and json modules read is read, from any row."""

import concurrent.futures
import csv
import io
import json
import pickle
import re

import hypothesis
from hypothesis import strategies as st
import pytest

from siglax.data import captions
from siglax.data import index as index_lib
from siglax.data import rows
from siglax.data import storage
from siglax.data.sources import csv as csv_lib
from siglax.data.sources import jsonl as jsonl_lib
from siglax.data.sources import open_source
from siglax.data.sources import parse_spec

TEXTS = ["plain", 'a "quoted" one', "with, commas;\tand tabs", "two\nlines\r\nand", "ä ü 漢字", " "]


def opened(path, source="csv", **fields):
  return open_source({"source": source, "path": str(path), **fields}, "config.data.0")


def refused(message, path, source="csv", **fields):
  with pytest.raises(ValueError) as e:
    opened(path, source, **fields)
  assert re.search(message, str(e.value)) and "\n" not in str(e.value), str(e.value)
  assert str(e.value).startswith("config.data.0.")


@pytest.fixture
def pictures(tmp_path):
  (tmp_path / "in").mkdir()
  for i in range(20):
    (tmp_path / f"in/{i}.jpg").write_bytes(b"%d" % i)
  return tmp_path


def table(path, names, found, separator=",", **options):
  with open(path, "w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file, delimiter=separator, **options)
    writer.writerow(names)
    writer.writerows(found)
  return path


@pytest.mark.parametrize("separator", [",", "\t", ";"])
@pytest.mark.parametrize("options", [{}, {"quoting": csv.QUOTE_ALL, "lineterminator": "\n"}])
def test_what_the_csv_module_writes_is_read(pictures, monkeypatch, separator, options):
  monkeypatch.setattr(csv_lib, "CHUNK", 64)  # rows lie across pieces
  found = [(text, f"in/{i}.jpg", i) for i, text in enumerate(TEXTS * 3)]
  path = table(pictures / "a.csv", ["caption", "image", "label"], found, separator, **options)
  source = opened(path, **({"separator": ";"} if separator == ";" else {}))
  want = [
    {"image": b"%d" % i, "captions": [text], "key": f"in/{i}.jpg", "label": i}
    for i, (text, _, _) in enumerate(found)
  ]
  assert len(source) == len(want) and source.shard_sizes.tolist() == [len(want)]
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    assert list(pool.map(source.__getitem__, range(len(want)))) == want
  copy = pickle.loads(pickle.dumps(source))
  assert [copy[i] for i in range(len(want))] == want and str(path) in repr(copy)
  assert source._spans._starts.nbytes == 8 * (len(want) + 1)
  for i in (-1, len(want)):
    with pytest.raises(IndexError):
      source[i]


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(st.text('ab",\n\r\t ', max_size=60))
def test_rows_of_any_text_are_the_csv_module_s(tmp_path_factory, text):
  """Also where quotes stand in the middle of a field, or are never closed."""
  path = tmp_path_factory.getbasetemp() / "any.csv"
  path.write_bytes(("image,caption\n" + text).encode())
  want, reader = [], csv.reader(io.StringIO("image,caption\n" + text, newline="\n"))
  while True:
    try:
      row = next(reader)
    except StopIteration:
      break
    except csv.Error:
      row = None
    if row is None or len(row) > 1 or row and row[0].strip():
      want.append(row)
  index = csv_lib._index(str(path), path.stat().st_size, ",")
  spans = index_lib.Spans([str(path)], [index])
  assert len(spans) == len(want) - 1
  for i, row in enumerate(want[1:]):
    if row is not None:
      assert next(csv_lib._parsed(spans.read(i).decode(), ",")) == row


def test_names_of_open_clip_and_hugging_face(pictures):
  tsv = table(pictures / "a.tsv", ["filepath", "title"], [("in/1.jpg", "one, two")], "\t")
  assert opened(tsv)[0] == {"image": b"1", "captions": ["one, two"], "key": "in/1.jpg"}
  assert parse_spec(f"{tsv}:caption=title") == {
    "source": "csv",
    "path": str(tsv),
    "caption": "title",
  }
  path = table(pictures / "in/metadata.csv", ["file_name", "text"], [("2.jpg", "two")])
  assert opened(path)[0] == {"image": b"2", "captions": ["two"], "key": "2.jpg"}
  path = table(pictures / "b.csv", ["a", "b", "c"], [("3.jpg", "4", "")])
  example = opened(path, image="a", caption="c", label="b", root=str(pictures / "in"))[0]
  assert example == {"image": b"3", "captions": [], "key": "3.jpg", "label": 4}
  path = table(pictures / "c.csv", ["path", "label"], [(str(pictures / "in/5.jpg"), 1)])
  assert opened(path)[0]["captions"] == [] and opened(path)[0]["image"] == b"5"


def test_another_separator_is_named(pictures):
  path = table(pictures / "a.csv", ["image", "caption"], [("in/1.jpg", "x, y")], ";")
  with pytest.raises(ValueError, match="has ';' and no ','; set separator=';'$"):
    opened(path)
  assert opened(path, separator=";")[0]["captions"] == ["x, y"]


def test_files_follow_each_other(pictures):
  table(pictures / "a.csv", ["image", "caption"], [("in/1.jpg", "x"), ("in/2.jpg", "y")])
  table(pictures / "b.csv", ["title", "filepath"], [("z", "in/3.jpg")], "\t")
  source = opened(f"{pictures}/{{a,b}}.csv")
  assert [source[i]["captions"] for i in range(3)] == [["x"], ["y"], ["z"]]
  assert source.shard_sizes.tolist() == [2, 1]


def test_broken_rows_break_alone(pictures):
  lines = [
    b'\xef\xbb\xbf"image",caption,label',
    b"in/0.jpg,x,1",
    b"",
    b"in/1.jpg,\xff,1",
    b"in/2.jpg,x",
    b"in/3.jpg,x,cat",
    b",x,1",
    b"in/none.jpg,x,1",
    b"in/4.jpg\0,x,1",
    b"../../x/y,x,1",
    b"   ",
    b"in/5.jpg,%s,1" % (b"x" * 200_000),
    b"in/6.jpg,x,",
    b'in/7.jpg,"y',
  ]
  (pictures / "a.csv").write_bytes(b"\r\n".join(lines))
  source = opened(pictures / "a.csv")
  assert len(source) == 11
  assert source[0] == {"image": b"0", "captions": ["x"], "key": "in/0.jpg", "label": 1}
  assert source[9] == {"image": b"6", "captions": ["x"], "key": "in/6.jpg"}
  for i, message in {
    1: "the row is not UTF-8 at byte 9",
    2: "the row has 2 fields, the first line has 3",
    3: "label='cat' is no whole number",
    4: "image names no picture",
    5: "none.jpg': No such file",
    6: "null byte",
    7: "No such file",
    8: r"field larger than field limit \(131072\)",
    10: "the row has 2 fields",
  }.items():
    with pytest.raises(ValueError, match=message) as e:
      source[i]
    assert str(e.value).startswith(f"'{pictures}/a.csv', byte ") and "\n" not in str(e.value)


def test_lines_of_json(pictures, monkeypatch):
  monkeypatch.setattr(jsonl_lib, "CHUNK", 32)
  found = [
    {"image": f"in/{i}.jpg", "captions": TEXTS[: i + 1] if i % 2 else TEXTS[i], "label": i}
    for i in range(6)
  ]
  lines = "\n\n \r\n".join(json.dumps(row, ensure_ascii=False) for row in found)
  for text in (lines, f"\ufeff{lines}", f"\n \n{lines}\n", lines.replace("\n", "\r\n")):
    (pictures / "a.jsonl").write_text(text, encoding="utf-8", newline="")
    source = opened(pictures / "a.jsonl", "jsonl")
    assert [source[i] for i in range(len(source))] == [
      {
        "image": b"%d" % i,
        "captions": row["captions"] if i % 2 else [row["captions"]],
        "key": row["image"],
        "label": i,
      }
      for i, row in enumerate(found)
    ]
  copy = pickle.loads(pickle.dumps(source))
  assert copy[5] == source[5] and "a.jsonl" in repr(copy)
  assert parse_spec(f"{pictures}/a.jsonl")["source"] == "jsonl"


def test_broken_lines_break_alone(pictures, monkeypatch):
  lines = [
    b"nothing",
    b'{"image": "in/0.jpg", "caption": "x"}',
    b'{"image": "in/1.jpg", "caption": "\xff"}',
    b'{"image": "in/1.jpg", "caption": "x"',
    b"[" * 100_000,
    b"5",
    b'{"image": 5, "caption": "x"}',
    b'{"caption": "x"}',
    b'{"image": "in/2.jpg", "caption": {}}',
    b'{"image": "in/2.jpg", "caption": ["x", 5]}',
    b'{"image": "in/2.jpg", "caption": "x", "label": 1e400}',
    b'{"image": "in/2.jpg", "caption": "x", "label": true}',
    b'{"image": "in/2.jpg", "caption": "%s"}' % (b"x" * 300_000),
    b'{"image": "in/3.jpg", "caption": null, "label": 2.0}',
  ]
  monkeypatch.setattr(captions, "MAX_TEXT", 250_000)
  (pictures / "a.jsonl").write_bytes(b"\n".join(lines))
  source = opened(pictures / "a.jsonl", "jsonl")
  assert source[1] == {"image": b"0", "captions": ["x"], "key": "in/0.jpg"}
  assert source[13] == {"image": b"3", "captions": [], "key": "in/3.jpg", "label": 2}
  for i, message in {
    0: "no JSON: Expecting value",
    2: "the line is not UTF-8",
    3: "no JSON",
    4: "no JSON: maximum recursion",
    5: "the line holds 5; it must be an object",
    6: "image names no picture",
    7: "image names no picture",
    8: "caption={} is no string or list of strings",
    9: "is no string or list of strings",
    10: "label=inf is no whole number",
    11: "label=True is no whole number",
    12: "the line has 300,0.. bytes, more than 250,000",
  }.items():
    with pytest.raises(ValueError, match=message) as e:
      source[i]
    assert "\n" not in str(e.value)


def test_what_cannot_be_opened_is_one_line(pictures):
  a = pictures / "a.csv"
  refused("a.csv': no such file|no such file", a)
  a.write_bytes(b"")
  refused(r"is empty \(0 bytes\)", a)
  a.write_bytes(b"image,caption\n")
  refused("has no rows", a)
  a.write_text("image,caption\nx,y\n", encoding="utf-16")
  refused("is UTF-16; write it as UTF-8", a)
  a.write_bytes(b"image,caption\rx,y\r")
  refused(r"no line of names: new-line character .*; lines end in", a)
  a.write_bytes(b"x" * 200_000)
  refused("no line of names: field larger than field limit", a)
  a.write_bytes(b"\x1f\x8b123456")
  refused(re.escape(f"unpack it: gzip -dc {a} > {a}.unpacked"), a)
  table(a, ["url", "text"], [("https://host/a.jpg", "x")])
  refused("image=None: no name 'image' or 'filepath' or .* in .*a.csv but url, text; name one", a)
  refused("image='url': the rows of .* name URLs, such as 'https://host/a.jpg'", a, image="url")
  table(a, ["image", "text", "text"], [("x", "y", "z")])
  refused("caption='text': .*a.csv has several names called so; rename them", a)
  refused("caption='txt': no such name in .* but image, text, text; name one", a, caption="txt")
  table(a, ["image", "words"], [("x", "y")])
  refused("caption=None: no name 'captions' or 'caption' or 'title' or 'text' in .*a.csv", a)
  refused("separator=';;' must be one character", a, separator=";;")
  refused("a.csv' is a csv: use source csv", a, "jsonl")
  b = pictures / "b.jsonl"
  b.write_text('[{"image": "x"}]')
  refused("is one list; source jsonl needs an object a line: jq -c", b, "jsonl")
  b.write_text("5\n6\n")
  refused("no object in its first lines: the line holds 6", b, "jsonl")
  refused("b.jsonl' is a jsonl: use source jsonl", b)


def test_one_endless_line_is_never_held(pictures, monkeypatch):
  monkeypatch.setattr(captions, "MAX_TEXT", 1000)
  monkeypatch.setattr(csv_lib, "CHUNK", 100)
  largest = 0
  read = storage.read

  def watched(path, offset, length, alone=False):
    nonlocal largest
    largest = max(largest, length)
    return read(path, offset, length, alone)

  monkeypatch.setattr(storage, "read", watched)
  a = pictures / "a.csv"
  a.write_bytes(b"image,caption\nin/1.jpg,x\n" + b"y" * 50_000 + b"\nin/2.jpg,z\n")
  source = opened(a)
  assert largest <= 100
  assert source[0]["captions"] == ["x"] and source[len(source) - 1]["captions"] == ["z"]
  for i in range(1, len(source) - 1):
    with pytest.raises(ValueError):
      source[i]


def test_every_name_is_declared():
  assert set(rows.NAMES) < set(csv_lib.SOURCE.fields)
