"""The source webdataset: what Python's tarfile reads of a tar is read, from any offset, and no tar
does harm.
"""

import concurrent.futures
import io
import json
import os
import pickle
import re
import tarfile

import cv2
import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from siglax import evals
from siglax.data import EvalExamples
from siglax.data import index as index_lib
from siglax.data import storage
from siglax.data import tar
from siglax.data.sources import open_source

import tiny

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def write(path, members, format=tarfile.USTAR_FORMAT, **options):
  """A tar of (name, bytes) or TarInfos, made by Python's tarfile."""
  with tarfile.open(path, "w", format=format, **options) as out:
    for member in members:
      if isinstance(member, tarfile.TarInfo):
        out.addfile(member)
        continue
      name, content = member
      info = tarfile.TarInfo(name)
      info.size = len(content)
      out.addfile(info, io.BytesIO(content))
  return str(path)


def pairs(names, size=100):
  rng = np.random.default_rng(0)
  for name in names:
    yield f"{name}.jpg", rng.bytes(size)
    yield f"{name}.txt", f"caption of {name}".encode()


def webdataset(path, **fields):
  return open_source({"source": "webdataset", "path": path, **fields}, "config.data.0")


def refused(message, path, **fields):
  with pytest.raises(ValueError) as e:
    webdataset(str(path), **fields)
  assert re.search(message, str(e.value)) and "\n" not in str(e.value), str(e.value)
  assert str(e.value).startswith("config.data.0.")


def oracle(path):
  """The examples of a tar by tarfile."""
  found = {}
  with tarfile.open(path) as file:
    for member in file:
      name, _, ending = member.name.rpartition(".")
      if member.isfile():
        found.setdefault(name, {})[ending] = file.extractfile(member).read()
  return [
    {"image": parts["jpg"], "captions": parts["txt"].decode().splitlines(), "key": key}
    for key, parts in found.items()
  ]


@pytest.mark.parametrize("format", FORMATS)
def test_what_tarfile_reads_is_read(tmp_path, format):
  deep = "d" * 90 + "/" + "e" * 60  # in ustar's prefix
  names = ["a", "train/b", deep, "é/ü", *(f"{i:03}" for i in range(50))]
  if format != tarfile.USTAR_FORMAT:
    names += ["n" * 300, "p/" * 200 + "q"]
  path = write(tmp_path / "a.tar", pairs(names), format, encoding="utf-8")
  source, want = webdataset(path), oracle(path)
  assert len(want) == len(names) == len(source)
  assert [source[i] for i in range(len(source))] == want
  for i in (-1, len(names)):
    with pytest.raises(IndexError):
      source[i]
  assert path in repr(source)
  assert source._spans._starts.nbytes <= 4 * (len(source) + 1)


def test_layouts_of_an_example(tmp_path):
  folder = tarfile.TarInfo("d")
  folder.type = tarfile.DIRTYPE
  record = {"caption": "in json", "other": ["x", "y"], "class": 7}
  members = [
    folder,
    ("d/0.json", json.dumps(record).encode()),
    ("d/0.seg.png", b"a mask"),
    ("d/0.PNG", b"picture 0"),
    ("d/._0.txt", b"of a Mac"),
    ("d/0.txt", "\ufeffone\r\n\n two \n".encode()),
    ("README", b"nothing"),
    ("__meta__/x.txt", b"nothing"),
    ("d/1.webp", b"picture 1"),
    ("d/1.json", b'["a", "b"]'),
    ("d/1.cls", b"3\n"),
  ]
  path = write(tmp_path / "a.tar", members, tarfile.PAX_FORMAT, pax_headers={"comment": "x"})
  read = lambda **fields: [webdataset(path, **fields)[i] for i in range(2)]
  first, second = read()
  assert first == {"image": b"picture 0", "captions": ["one", "two"], "key": "d/0"}
  assert second == {"image": b"picture 1", "captions": ["a", "b"], "key": "d/1", "label": 3}
  first, _ = read(caption="other", label="class")
  assert first["captions"] == ["x", "y"] and first["label"] == 7
  assert read(caption="caption")[0]["captions"] == ["in json"]
  assert read(caption="txt")[1]["captions"] == []


def test_broken_examples_are_told_and_the_others_are_sound(tmp_path):
  link = tarfile.TarInfo("l.jpg")
  link.type, link.linkname = tarfile.LNKTYPE, "a.jpg"
  members = [
    *pairs(["a"]),
    ("alone.txt", b"no picture"),
    link,
    ("l.txt", b"x"),
    ("twice.jpg", b"1"),
    ("twice.jpg", b"2"),
    ("latin.jpg", b"1"),
    ("latin.txt", "ä".encode("latin-1")),
    ("label.jpg", b"1"),
    ("label.cls", b"cat"),
    ("json.jpg", b"1"),
    ("json.json", b'{"caption": '),
    ("deep.jpg", b"1"),
    ("deep.json", b"[" * 100_000),
    ("number.jpg", b"1"),
    ("number.json", b'{"caption": 5}'),
    *pairs(["z"]),
  ]
  source = webdataset(write(tmp_path / "a.tar", members))
  for i, message in {
    1: "alone has .txt and no picture; the members of an example must follow each other",
    2: "l.jpg is a link to a.jpg; write the tar with tar --dereference",
    3: r"twice has two members .jpg",
    4: "latin.txt is not UTF-8 at byte 0",
    5: "label.cls='cat.*' is no whole number",
    6: "json.json: Expecting value",
    7: "deep.json: ",
    8: "number.json: caption=5 is no string",
  }.items():
    with pytest.raises(ValueError, match=message) as e:
      source[i]
    assert str(e.value).startswith(f"'{tmp_path}/a.tar', byte ") and "\n" not in str(e.value)
  assert source[0]["key"] == "a" and source[9]["key"] == "z" and len(source) == 10


def test_several_tars_threads_and_pickling(tmp_path, monkeypatch):
  monkeypatch.setattr(storage, "MAX_OPEN", 2)
  paths = [
    write(tmp_path / f"{k:02}.tar", pairs(f"{k}-{i}" for i in range(k + 1))) for k in range(6)
  ]
  want = [example for path in paths for example in oracle(path)]
  source = webdataset(f"{tmp_path}/{{00..05}}.tar")
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    assert list(pool.map(source.__getitem__, range(len(source)))) == want
  copy = pickle.loads(pickle.dumps(source))
  assert [copy[i] for i in range(len(copy))] == want
  assert source.shard_sizes.dtype == np.int64 and source.shard_sizes.tolist() == [1, 2, 3, 4, 5, 6]
  assert len(webdataset(str(tmp_path))) == len(want)
  assert webdataset([paths[3], paths[0]])[4] == oracle(paths[0])[0]


def test_tars_put_together_by_cat(tmp_path):
  first, second = (write(tmp_path / f"{n}.tar", pairs([n])) for n in "ab")
  both = tmp_path / "both.tar"
  both.write_bytes(open(first, "rb").read() + open(second, "rb").read())
  source = webdataset(str(both))
  assert [source[i]["key"] for i in range(len(source))] == ["a", "b"]


def test_the_index_is_kept_where_it_can_be(tmp_path, monkeypatch, caplog):
  made = []
  make = tar.index
  monkeypatch.setattr(tar, "index", lambda path, size: made.append(path) or make(path, size))
  monkeypatch.setattr(index_lib, "MIN_BYTES", 0)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  path = write(tmp_path / "a.tar", pairs("abc"))
  beside = tmp_path / f"a.tar{storage.INDEX_ENDING}"
  want = oracle(path)

  def times_made():
    source, before = webdataset(path), len(made)
    assert [source[i] for i in range(len(source))] == want
    del made[:]
    return before

  assert times_made() == 1 and beside.exists() and times_made() == 0
  sound = beside.read_bytes()
  for damaged in (b"", sound[:40], sound[:-3], sound[:-1] + b"\xff", b"{}\n", b"[" * 99_999):
    beside.write_bytes(damaged)
    assert times_made() == 1 and beside.read_bytes() == sound
  write(path, pairs("dcba"))  # another tar of the same name
  want = oracle(path)
  assert times_made() == 1 and times_made() == 0
  beside.unlink()
  beside.mkdir()  # as good as a folder in which nothing can be written
  assert times_made() == 1 and times_made() == 0
  assert len(os.listdir(tmp_path / "cache/siglax")) == 1
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a.tar"))
  assert times_made() == 1 and "the index is not kept" in caplog.text


def test_a_damaged_tar_is_one_line_or_skipped(tmp_path, caplog):
  whole = write(tmp_path / "0.tar", pairs(f"{i}" for i in range(10)))
  data = open(whole, "rb").read()
  cut = tmp_path / "1.tar"
  for size, left, where in (
    (9 * 1024, 4, 9216),
    (9 * 1024 + 100, 4, 9216),
    (512 * 3, 0, 1024),
    (512 * 3 - 500, 0, 1024),
  ):
    cut.write_bytes(data[:size])
    refused(rf"^config.data.0.path='{cut}' is cut short or damaged at byte {where}: ", cut)
    if left:
      source = webdataset(str(tmp_path / "{1,0}.tar"), skip_damaged_shards=True)
      assert source.shard_sizes.tolist() == [left, 10]
      assert [source[i] for i in range(left)] == oracle(whole)[:left]
      assert source[left] == oracle(whole)[0]
      lost = size - left * 2048
      assert f"{left} examples before it are used, {lost} bytes are lost" in caplog.text
  for damaged in (data[:4096] + b"x" * 512 + data[4608:], data[:4096] + b"\xff" * 9000):
    cut.write_bytes(damaged)
    refused("damaged at byte 4096: no header of a tar stands there", cut)
    assert len(webdataset(str(tmp_path / "{1,0}.tar"), skip_damaged_shards=True)) == 11
  caplog.clear()
  source = webdataset(str(tmp_path / "{0..3}.tar"), skip_damaged_shards=True)
  assert source.shard_sizes.tolist() == [10, 1, 0, 0] and "3 of 4 tars are damaged" in caplog.text
  assert "2.tar' No such file or directory" in caplog.text
  refused("no such file '.*2.tar'", tmp_path / "{0..3}.tar")
  cut.write_bytes(b"")
  refused(r"1.tar' is empty \(0 bytes\)", cut)
  cut.write_bytes(data + bytes(2**24))
  refused("bytes are zeros, as of a download that stopped", cut)
  refused("no examples", write(tmp_path / "none.tar", [("x", b"")]))


def header(name=b"a.jpg", size=b"00000000005\0", kind=b"0"):
  """One that tarfile would not write."""
  block = bytearray(512)
  block[: len(name)], block[124 : 124 + len(size)], block[156:157] = name, size, kind
  block[257:265], block[148:156] = b"ustar\x0000", b" " * 8
  block[148:156] = b"%06o\0 " % sum(block)
  return bytes(block)


@pytest.mark.parametrize(
  "data, message",
  [
    (header(size=b"-0000000005\0"), "a member of -5 bytes"),
    (header(size=b"\xff" * 12), "a member of -1 bytes"),
    (header(size=b"77777777777\0"), "'a.jpg' has 8589934591 bytes, 1536 are left"),
    (header(size=b"\x80" + b"\xff" * 11), "1536 are left"),
    (header(size=b"12345678\0"), "no header of a tar stands there"),
    (header(kind=b"L", size=b"77777777777\0"), "a name or PAX records of 8589934591 bytes"),
    (header(kind=b"x", size=b"00000000011\0") + b"9 size=-1".ljust(512), "PAX records begin with"),
    (
      header(kind=b"x", size=b"00000000012\0") + b"10 size=1x\n".ljust(512, b"\0"),
      "PAX records begin with|a PAX size of",
    ),
    (header(kind=b"S"), "no header of a tar|are left|ends past"),
  ],
)
def test_absurd_headers_are_refused(tmp_path, data, message):
  (tmp_path / "a.tar").write_bytes(data.ljust(2048, b"\1"))
  refused(message, tmp_path / "a.tar")


def test_names_are_names_and_no_paths(tmp_path):
  names = ["../../etc/x", "/abs/y", "a\nb"]
  source = webdataset(write(tmp_path / "a.tar", pairs(names), tarfile.PAX_FORMAT))
  assert [source[i]["key"] for i in range(3)] == names


def test_sparse_members_are_told(tmp_path):
  sparse = header(b"a.jpg", kind=b"S")
  data = sparse + b"12345".ljust(512, b"\0") + header(b"b.jpg") + b"bbbbb".ljust(512, b"\0")
  (tmp_path / "a.tar").write_bytes(data + bytes(1024))
  source = webdataset(str(tmp_path / "a.tar"))
  with pytest.raises(ValueError, match="a.jpg is stored as a sparse file"):
    source[0]
  assert source[1]["image"] == b"bbbbb"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
  members = [*pairs(["a", "n" * 120]), ("b.jpg", b"x"), ("b.json", b'{"caption": "y"}')]
  path = write(tmp_path_factory.mktemp("tar") / "a.tar", members, tarfile.GNU_FORMAT)
  return open(path, "rb").read()[:8192]


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(data=st.data())
def test_any_change_of_a_tar_is_read_or_refused(sound, tmp_path_factory, data):
  """With ValueErrors of one line, and nothing else."""
  changed = bytearray(sound)
  for at in data.draw(st.lists(st.integers(0, len(sound) - 1), max_size=4)):
    changed[at] = data.draw(st.integers(0, 255))
  path = tmp_path_factory.getbasetemp() / "changed.tar"
  path.write_bytes(changed[: data.draw(st.integers(0, len(sound)))])
  for skip in (False, True):
    try:
      source = webdataset(str(path), skip_damaged_shards=skip)
    except ValueError as e:
      assert "\n" not in str(e)
      continue
    for i in range(len(source)):
      try:
        assert isinstance(source[i]["image"], bytes)
      except ValueError as e:
        assert "\n" not in str(e)


def test_compressed_tars_say_how_they_are_unpacked(tmp_path):
  for mode, ending, begins in (("gz", "tar.gz", "gzip -dc"), ("xz", "tgz", "xz -dc")):
    with tarfile.open(tmp_path / f"my a.{ending}", f"w:{mode}") as out:
      out.addfile(tarfile.TarInfo("a.jpg"))
    command = f"{begins} '{tmp_path}/my a.{ending}' > '{tmp_path}/my a.tar'"
    refused(re.escape(command), tmp_path / f"my a.{ending}")
  refused("is compressed", tmp_path)


def test_a_folder_of_clip_benchmark_opens_as_it_is(tmp_path):
  encoded = [cv2.imencode(".png", np.full((8, 8, 3), 80 * k, np.uint8))[1] for k in range(3)]
  (tmp_path / "test").mkdir()
  members = lambda k: [(f"s{k}.png", encoded[k].tobytes()), (f"s{k}.cls", b"%d" % k)]
  for shard in range(11):
    write(tmp_path / f"test/{shard}.tar", members(shard % 3))
  (tmp_path / "test/nshards.txt").write_text("11\n")
  (tmp_path / "classnames.txt").write_text("cat\nhot dog\nold cow\n")
  (tmp_path / "zeroshot_classification_templates.txt").write_text("a {c}.\nmy {c}, a pet\n")
  source = webdataset(str(tmp_path))
  assert source.classnames == ("cat", "hot dog", "old cow")
  assert source.templates == ("a {}.", "my {}, a pet")
  assert [source[i]["label"] for i in range(11)] == [k % 3 for k in range(11)]
  assert source[1]["captions"] == ["a photo of a hot dog."]
  assert webdataset(str(tmp_path), template=None)[1]["captions"] == []

  texts, config = [], tiny.get_config()
  task = {"kind": "zero_shot", "name": "x", "data": {"source": "webdataset", "path": "x"}}
  config.eval.tasks = (task,)

  class Embedder:
    """Embeds a picture by its grey, and a text by its class."""

    def images(self, image, n):
      return np.eye(3, dtype=np.float32)[[int(image(i)[0, 0, 0]) // 80 for i in range(n)]]

    def texts(self, words):
      texts.extend(words)
      of = [next(k for k, name in enumerate(source.classnames) if name in w) for w in words]
      return np.eye(3, dtype=np.float32)[of]

  found = evals.run(config, Embedder(), lambda spec: EvalExamples(source, config))
  assert texts[:2] == ["a cat.", "my cat, a pet"] and len(texts) == 6
  assert found["eval/x/acc1"] == 1.0

  (tmp_path / "test/7.tar").unlink()
  refused("7.tar' No such file", tmp_path)
  (tmp_path / "train").mkdir()
  write(tmp_path / "train/0.tar", members(0))
  refused(
    f"is a folder with tars in test, train; use one of them, such as '{tmp_path}/test'", tmp_path
  )


def test_a_weight_that_is_no_number_is_named(tmp_path):
  members = [
    member
    for name, value in (("a", "2"), ("b", "true"), ("c", '"2"'), ("d", "null"))
    for member in (
      (f"{name}.jpg", b"x"),
      (f"{name}.txt", b"x"),
      (f"{name}.json", b'{"w": %s}' % value.encode()),
    )
  ]
  found = webdataset(write(tmp_path / "x.tar", members), weights="w")
  assert found[0]["weight"] == 2.0 and "weight" not in found[3]
  for i, said in ((1, "b.json: w=True is no number"), (2, "c.json: w='2' is no number")):
    with pytest.raises(ValueError, match=said):
      found[i]
