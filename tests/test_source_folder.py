"""The source folder: pictures with text files, or with a folder a class."""

import os
import pickle
import re

import pytest

from siglax.data import sources
from siglax.data.sources import open_source


def folder(path, **fields):
  return open_source({"source": "folder", "path": path, **fields}, "config.data.0")


def refused(message, path, **fields):
  with pytest.raises(ValueError) as e:
    folder(path, **fields)
  assert re.search(message, str(e.value)) and "\n" not in str(e.value), str(e.value)
  assert str(e.value).startswith("config.data.0.")


def write(root, **files):
  for name, content in files.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
  return str(root)


def test_pictures_with_text_files(tmp_path):
  path = write(
    tmp_path,
    **{
      "b.JPG": b"2",
      "b.txt": b"two\n\n deux \n",
      "a.tar.png": b"1",
      "a.tar.txt": "\ufeffone".encode(),
      "notes.txt": b"of nobody",
      ".hidden.jpg": b"no",
      ".trash/c.jpg": b"no",
      "x/y/d.webp": b"3",
      "x/y/d.TXT": "drei ä".encode(),
    },
  )
  (tmp_path / "x/up").symlink_to(tmp_path)
  want = [
    {"image": b"1", "captions": ["one"], "key": "a.tar"},
    {"image": b"2", "captions": ["two", "deux"], "key": "b"},
    {"image": b"3", "captions": ["drei ä"], "key": "x/y/d"},
  ]
  source = folder(path)
  assert [source[i] for i in range(len(source))] == want and source.classnames is None
  copy = pickle.loads(pickle.dumps(source))
  assert [copy[i] for i in range(3)] == want and path in repr(copy)
  assert sources.parse_spec(f"{path}:weight=2") == {"source": "folder", "path": path, "weight": 2}
  for i in (-1, 3):
    with pytest.raises(IndexError):
      source[i]


def test_class_folders(tmp_path):
  files = {"dog/1.jpg": b"1", "dog/in/2.jpg": b"2", "big_cat/3.png": b"3", "big_cat/note.md": b""}
  path = write(tmp_path, **files)
  (tmp_path / "empty").mkdir()
  source = folder(path)
  assert source.classnames == ("big cat", "dog")
  assert [source[i] for i in range(3)] == [
    {"image": b"3", "captions": ["a photo of a big cat."], "label": 0, "key": "big_cat/3"},
    {"image": b"1", "captions": ["a photo of a dog."], "label": 1, "key": "dog/1"},
    {"image": b"2", "captions": ["a photo of a dog."], "label": 1, "key": "dog/in/2"},
  ]
  assert folder(path, template="{}!")[1]["captions"] == ["dog!"]
  assert folder(path, template=None)[1]["captions"] == []
  refused("template='dog' must be a text with {} for the name", path, template="dog")
  # A text file turns the folders into mere folders, unless one says otherwise.
  write(tmp_path, **{"dog/1.txt": b"a poodle"})
  source = folder(path)
  assert source.classnames is None and source[1]["captions"] == ["a poodle"]
  assert source[2]["captions"] == [] and "label" not in source[2]
  both = folder(path, classes=True)
  assert both[1]["captions"] == ["a poodle"] and both[1]["label"] == 1
  assert both[2]["captions"] == ["a photo of a dog."]


def test_several_folders(tmp_path):
  for name in ("p0", "p1", "q"):
    write(tmp_path / name, **{"cat/1.jpg": name.encode(), f"{name}/1.jpg": b"x"})
  source = folder(f"{tmp_path}/p{{0,1}},{tmp_path}/q*")
  assert source.classnames == ("cat", "p0", "p1", "q")
  assert [source[i]["image"] for i in (0, 2, 4)] == [b"p0", b"p1", b"q"]
  assert [source[i]["label"] for i in range(6)] == [0, 1, 0, 2, 0, 3]


def test_names_cost_their_bytes(tmp_path):
  path = write(tmp_path, **{f"{k}/{i:05}.jpg": b"" for k in "ab" for i in range(500)})
  state = folder(path).__dict__
  held = len(state["_names"]) + state["_ends"].nbytes + state["_folder_of"].nbytes
  assert held == 1000 * (len("00000.jpg") + 12) + 8


def test_what_cannot_be_read_is_one_line(tmp_path):
  flat = write(tmp_path / "flat", **{"a.jpg": b"1", "sub/b.jpg": b"2"})
  refused(f"path='{flat}' holds pictures and no captions: write those of a.jpg into a.txt", flat)
  refused("outside of its class folders", flat, classes=True)
  write(tmp_path / "flat", **{"metadata.csv": b""})
  refused(f"or use source csv with path='{flat}/metadata.csv'$", flat)
  parts = write(tmp_path / "parts", **{"train/cat/1.jpg": b"1", "val/cat/1.jpg": b"1"})
  refused(f"are parts and no classes; use one of them, such as '{parts}/train'", parts)
  beside = write(tmp_path / "beside", **{"i/1.jpg": b"1", "j/1.jpg": b"2", "metadata.jsonl": b""})
  refused(f"use source jsonl with path='{beside}/metadata.jsonl', or set classes=True", beside)
  assert folder(beside, classes=True).classnames == ("i", "j")
  no_pictures = write(tmp_path / "heic", **{"1.heic": b"1", "1.txt": b"1"})
  refused(r"holds 1 .heic and 1 .txt; source folder reads .jpg, .jpeg, .*\.ppm$", no_pictures)
  one = write(tmp_path / "one", **{"images/1.jpg": b"1"})
  refused("holds the pictures of one class, 'images', and no captions", one)
  refused("is a file; name the folder that holds it", f"{one}/images/1.jpg")
  refused("no such file", f"{tmp_path}/nowhere")
  os.mkdir(tmp_path / "empty")
  refused("is a folder that holds no files", f"{tmp_path}/empty")
  tars = write(tmp_path / "tars", **{f"{k}.tar": b"" for k in range(3)})
  refused("is a folder that holds 3 .tar: use source webdataset", tars)
  refused("0.tar' is a tar: use source webdataset", f"{tars}/0.tar")
  with pytest.raises(ValueError) as e:
    open_source({"source": "parquet", "path": one})
  assert str(e.value) == f"path={one!r} is a folder that holds 1 .jpg: use source folder"
  for i in range(2):
    write(tmp_path / "one/images", **{f"{i}.txt": b"x", f"{i}.jpg": b"x"})
  with pytest.raises(ValueError, match="holds 2 .jpg and 2 .txt: use source folder$"):
    open_source({"source": "webdataset", "path": one})
  with pytest.raises(ValueError, match=f"1.jpg' is a jpg: use source folder with path='{one}/ima"):
    open_source({"source": "parquet", "path": f"{one}/images/1.jpg"})


def test_a_broken_picture_does_not_break_its_neighbours(tmp_path):
  path = write(tmp_path, **{f"{n}.{e}": b"\xff" for n in "abcd" for e in ("jpg", "txt")})
  for n in "ad":
    write(tmp_path, **{f"{n}.txt": b"x"})
  (tmp_path / "c.txt").unlink()
  (tmp_path / "d.jpg").unlink()
  os.mkfifo(tmp_path / "d.jpg")
  source = folder(path)
  assert source[0]["captions"] == ["x"] and source[2]["captions"] == []
  for i, message in ((1, "b.txt' is not UTF-8 at byte 0"), (3, "is no file")):
    with pytest.raises(ValueError, match=message):
      source[i]
