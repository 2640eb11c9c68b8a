"""Files made to do harm, or merely broken: each is read, or refused in one line that names it; none
is executed.
"""

import io
import json
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib

import hypothesis
from hypothesis import strategies as st
import numpy as np
from PIL import Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers as tokenizers_lib

from siglax import config as config_lib
from siglax import interop
from siglax.data import embedding_files
from siglax.data import files as files_lib
from siglax.data import images
from siglax.data import loading
from siglax.data import sources
from siglax.data import text as text_lib
from siglax.data.examples import EvalExamples
from siglax.data.sources.embeddings import Embeddings
from siglax.devices import mesh
from siglax.interop import files as interop_files

MAX_GROWTH = 300 * 2**20
KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


# Files, by what reads them: {family: generator of (name, bytes)}.


def encode(image, kind, **options):
  file = io.BytesIO()
  Image.fromarray(image).save(file, kind, **options)
  return file.getvalue()


def png(width, height, depth=1, colour=0, data=b"", chunks=()):
  """A PNG of these bytes of pixels, whatever its header says."""
  header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
  parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
  join = lambda name, body: (
    struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
  )
  return b"\x89PNG\r\n\x1a\n" + b"".join(join(*part) for part in parts)


def lying(kind, width=50_000, height=60_000):
  """A small picture whose header says that it is large."""
  small = bytearray(
    encode(np.zeros((9, 7, 3), np.uint8), kind, **({"lossless": True} if kind == "WEBP" else {}))
  )
  if kind == "JPEG":
    at = small.index(b"\xff\xc0") + 5
    small[at : at + 4] = struct.pack(">HH", height, width)
  elif kind == "WEBP":
    at = small.index(b"VP8L") + 9
    small[at : at + 4] = struct.pack("<I", (2**14 - 1) | (2**14 - 1) << 14)
  elif kind == "GIF":
    small[6:10] = struct.pack("<HH", width, height)
  elif kind == "BMP":
    small[18:26] = struct.pack("<II", width, height)
  elif kind == "TIFF":
    at = int.from_bytes(small[4:8], "little")
    for k in range(int.from_bytes(small[at : at + 2], "little")):
      entry = at + 2 + 12 * k
      if int.from_bytes(small[entry : entry + 2], "little") in (256, 257):
        small[entry + 2 : entry + 12] = struct.pack("<HII", 4, 1, 60_000)
  else:
    return png(width, height, 8, 2, bytes(1000))
  return bytes(small)


def damaged(whole: bytes, rng) -> bytes:
  """Cut, with flipped bits, with a part overwritten, repeated or left out."""
  data, how = bytearray(whole), rng.integers(5)
  at, to = sorted(rng.integers(0, len(data) + 1, 2).tolist())
  if how == 0:
    del data[at:]
  elif how == 1:
    for i in rng.integers(0, len(data), rng.integers(1, 9)):
      data[i] ^= 1 << rng.integers(8)
  elif how == 2:
    data[at : at + 16] = rng.bytes(16)
  elif how == 3:
    data[at:at] = data[at:to]
  else:
    del data[at:to]
  return bytes(data)


def pictures(rng):
  for kind in KINDS:
    yield f"header of a bomb, {kind}", lying(kind)
  # 12,000² pixels in 18 kB.
  yield "bomb, PNG", png(12_000, 12_000, data=bytes(12_000 * 1501))
  for kind in ("JPEG", "GIF", "WEBP"):
    yield (
      f"bomb, {kind}",
      encode(np.zeros((7100, 7100), np.uint8), kind, **({"method": 0} if kind == "WEBP" else {})),
    )
  progressive = encode(np.zeros((60, 60, 3), np.uint8), "JPEG", progressive=True)
  last = progressive[progressive.rindex(b"\xff\xda") : -2]
  yield "bomb of scans, JPEG", progressive[:-2] + 100 * last + progressive[-2:]
  yield (
    "text that unpacks, PNG",
    png(4, 4, data=bytes(8), chunks=[(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**26)))]),
  )
  yield "no pixels, PNG", png(0, 0)
  yield "empty", b""
  yield "a script", b"#!/bin/sh\ntouch gone_off\n"
  yield (
    "postscript",
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9999 9999\n(gone_off) (w) file closefile\n",
  )
  yield "a pickle", pickle.dumps(Fuse())
  whole = [
    encode(rng.integers(0, 256, (30, 40, 3), np.uint8), kind)
    for kind in (*KINDS, "AVIF", "JPEG2000", "PPM")
  ]
  while True:
    yield "damaged", damaged(whole[rng.integers(len(whole))], rng)


class Fuse:
  """Leaves a file behind when it is unpickled."""

  def __reduce__(self):
    return pathlib.Path.touch, (pathlib.Path("gone_off"),)


def parquet(**columns):
  file = io.BytesIO()
  metadata = columns.pop("metadata", None)
  pq.write_table(pa.table(columns).replace_schema_metadata(metadata), file)
  return file.getvalue()


def tables(rng):
  picture = encode(rng.integers(0, 256, (20, 20, 3), np.uint8), "PNG")
  image = pa.array([picture] * 6, pa.binary())
  yield "images are numbers", parquet(image=[1.5] * 6, caption=["a"] * 6)
  yield "no type", parquet(image=pa.nulls(6), caption=["a"] * 6)
  yield "captions without a type", parquet(image=image, caption=pa.nulls(6))
  yield (
    "nulls",
    parquet(image=pa.array([None] * 6, pa.binary()), caption=pa.array([None] * 6, pa.string())),
  )
  yield "captions in lists in lists", parquet(image=image, captions=[[["a"]]] * 6)
  yield "captions in structs", parquet(image=image, caption=[{"a": "b"}] * 6)
  yield (
    "images in structs in structs",
    parquet(image=[{"bytes": {"bytes": picture}}] * 6, caption=["a"] * 6),
  )
  yield "a struct without bytes", parquet(image=[{"path": "/etc/passwd"}] * 6, caption=["a"] * 6)
  yield (
    "megabytes of captions",
    parquet(
      image=image,
      caption=["word " * 200_000, "x" * 10**6, "\0" * 10**6, " " * 10**6, "é" * 500_000, "\n"],
    ),
  )
  not_text = pa.Array.from_buffers(
    pa.string(), 6, pa.array([b"\xed\xa0\x80\xff"] * 6, pa.binary()).buffers()
  )
  yield (
    "bomb of strings that are one",
    parquet(image=[picture] * 600, caption=pa.array(["x" * 2**15] * 600)),
  )
  yield (
    "bomb of a dictionary",
    parquet(image=[picture] * 600, caption=pa.array(["x" * 2**15] * 600).dictionary_encode()),
  )
  yield "bomb of zeros", parquet(image=pa.array([bytes(2**24)]), caption=["a"])
  yield "captions that are no UTF-8", parquet(image=image, caption=not_text)
  yield (
    "class names that are no UTF-8",
    parquet(image=image, caption=["a"] * 6, metadata={"classes": b"\xff,\xfe"}),
  )
  yield (
    "huge labels",
    parquet(image=image, caption=["a"] * 6, label=pa.array([2**63] * 6, pa.uint64())),
  )
  yield (
    "negative labels, odd weights",
    parquet(
      image=image,
      caption=["a"] * 6,
      label=[-(2**63)] * 6,
      weight=[1e300, -1, float("nan"), float("inf"), 0, -0.0],
    ),
  )
  yield "no columns", parquet()
  yield "no rows", parquet(image=image[:0], caption=pa.array([], pa.string()))
  for name, content in zip(range(6), pictures(rng)):
    yield (
      f"a picture: {content[0]}",
      parquet(image=pa.array([content[1]], pa.binary()), caption=["a"]),
    )
  whole = [
    parquet(image=image, caption=["a", "b"] * 3, label=[1] * 6),
    parquet(image=[{"bytes": picture, "path": "a"}] * 6, captions=[["a"]] * 6),
  ]
  while True:
    yield "damaged", damaged(whole[rng.integers(2)], rng)


def write_embeddings(folder, ending, rows=5):
  writer = embedding_files.WRITERS[ending](folder / f"whole{ending}")
  writer.write(
    [
      {"image_embedding": np.ones(4, np.float32), "captions": ["a"], "label": i, "key": "b"}
      for i in range(rows)
    ]
  )
  writer.close({"digest": "x", "width": 4, "image": {}, "classnames": None})
  return (folder / f"whole{ending}").read_bytes()


def npz(arrays, headers=(), level=zipfile.ZIP_DEFLATED):
  """arrays by name; headers: of arrays that have another shape than they say."""
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", level) as z:
    for name, array in arrays.items():
      with z.open(f"{name}.npy", "w") as member:
        np.lib.format.write_array(member, array)
    for name, shape in headers:
      header = io.BytesIO()
      np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": shape}
      )
      z.writestr(f"{name}.npy", header.getvalue() + bytes(64))
  return file.getvalue()


def archives(rng):
  """Of embeddings, and of parameters."""
  text = lambda value: np.frombuffer(json.dumps(value).encode(), np.uint8)
  good = {
    "siglax": text({"digest": "x", "width": 4, "image": {}, "classnames": None}),
    "image_embedding": np.ones((2, 4), np.float32),
    "label": np.zeros(2, np.int64),
    "weight": np.ones(2),
    "captions": text([["a"], ["b"]]),
    "key": text([None, None]),
    "params/img/pos_embedding": np.ones((1, 4, 8), np.float32),
  }
  for name in good:
    yield f"bomb in {name}", npz({**good, name: np.zeros(2**25, np.uint8)})
    rest = {k: v for k, v in good.items() if k != name}
    yield f"without {name}", npz(rest)
    yield f"pickle in {name}", npz({**rest, name: np.array([Fuse()], object)})
    yield f"header of a bomb in {name}", npz(rest, [(name, (2**20, 2**20))])
    yield f"negative sizes in {name}", npz(rest, [(name, (-4, -4))])
    yield f"one number in {name}", npz({**rest, name: np.float32(3)})
  for name, value in (
    ("siglax", [1]),
    ("siglax", {"width": "4"}),
    ("captions", {}),
    ("captions", [[1], [2]]),
    ("key", [["a"]] * 2),
    ("captions", [["a"]]),
  ):
    yield f"{name} is {value}", npz({**good, name: text(value)})
  yield (
    "JSON in JSON in JSON",
    npz({**good, "siglax": np.frombuffer(b"[" * 100_000, np.uint8)}, level=zipfile.ZIP_STORED),
  )
  yield "other rows", npz({**good, "label": np.zeros(3, np.int64)})
  yield "other width", npz({**good, "image_embedding": np.ones((2, 5), np.float32)})
  yield "code in a header", npz(good).replace(b"'descr'", b"exit(1)")
  whole = npz(good), npz(good, level=zipfile.ZIP_STORED)
  while True:
    yield "damaged", damaged(whole[rng.integers(2)], rng)


def word_piece() -> bytes:
  """A tokenizer.json of three tokens."""
  tokenizer = tokenizers_lib.Tokenizer(
    tokenizers_lib.models.WordPiece({"[UNK]": 0, "a": 1, "[SEP]": 2}, unk_token="[UNK]")
  )
  tokenizer.post_processor = tokenizers_lib.processors.TemplateProcessing(
    "$A [SEP]", special_tokens=[("[SEP]", 2)]
  )
  return tokenizer.to_str().encode()


def tokenizer_jsons(rng):
  whole = word_piece()
  yield "empty", b""
  yield "noise", rng.bytes(1000)
  yield "a list", b"[" * 10**6
  yield "another model", whole.replace(b"WordPiece", b"Pickle")
  yield (
    "a pattern that takes long",
    whole.replace(
      b'"normalizer":null',
      b'"normalizer":{"type":"Replace","pattern":{"Regex":"(a+)+$"},"content":""}',
    ),
  )
  yield (
    "a pattern that is none",
    whole.replace(
      b'"normalizer":null', b'"normalizer":{"type":"Replace","pattern":{"Regex":"("},"content":""}'
    ),
  )
  yield "ids beyond any", whole.replace(b'"a":1', b'"a":99999999999')
  yield "a negative id", whole.replace(b'"a":1', b'"a":-1')
  while True:
    yield "damaged", damaged(whole, rng)


def tokenizers(rng):
  whole = text_lib.SHIPPED["shapes"].read_bytes()
  yield "empty", b""
  yield "noise", rng.bytes(1000)
  yield "zeros", bytes(10**6)
  yield "a length without an end", b"\x0a" + b"\xff" * 9 + b"\x01" + whole
  yield "a pickle", pickle.dumps(Fuse())
  yield "text", b"a red ring\n" * 1000
  yield "a field that repeats", whole * 50
  while True:
    yield "damaged", damaged(whole, rng)


def records(rng):
  with tempfile.TemporaryDirectory() as folder:
    whole = write_embeddings(pathlib.Path(folder), ".array_record")
  yield "empty", b""
  yield "noise", rng.bytes(70_000)
  yield "zeros", bytes(2**16)
  while True:
    yield "damaged", damaged(whole, rng)


# What reads them, as training, evaluation and `siglax.load` do.


def config():
  c = config_lib.default()
  c.data, c.image.size, c.image.crop_min_area, c.image.flip = ({"source": "shapes"},), 16, 0.5, True
  return c


class Folder:
  """One picture from a file, with a caption."""

  classnames = None

  def __init__(self, path):
    self._path = path

  def __len__(self):
    return 1

  def __getitem__(self, i):
    return {"image": images.read(self._path, config().image), "captions": ["a red ring"]}

  def __repr__(self):
    return f"Folder({self._path!r})"


TEXT = text_lib.TextProcessor(length=8)


def read_rows(source):
  """Rows as training sees them, which counts the broken ones and says why, and as
  evaluation does.
  """
  load, examples = (
    loading.ExampleLoader(0, source, 0, False, config().image, TEXT),
    EvalExamples(source, config()),
  )
  for i in range(min(len(source), 20)):
    load.why_bad(i)
  if not isinstance(source, Embeddings):
    for i in range(min(len(source), 20)):
      TEXT(examples[i]["captions"])


def read_picture(path):
  read_rows(Folder(path))


def read_table(path):
  read_rows(sources.open_source({"source": "parquet", "path": path}, "config.data.0"))


def read_embeddings(path):
  read_rows(sources.open_source({"source": "embeddings", "path": path}, "config.data.0"))


def read_parameters(path):
  if (found := interop.find(path)) is not None:
    found.read(found.model(), mesh.make())


def read_tokenizer(path):
  text_lib.TextProcessor(path, length=8)(["a red ring", "\0", "é" * 1000])


# {family: (files, ending, readers)}
FAMILIES = {
  "picture": (pictures, "", (read_picture,)),
  "table": (tables, ".parquet", (read_table, read_embeddings)),
  "archive": (archives, ".npz", (read_embeddings, read_parameters)),
  "tokenizer": (tokenizers, ".model", (read_tokenizer,)),
  "tokenizer.json": (tokenizer_jsons, ".json", (read_tokenizer,)),
  "records": (records, ".array_record", (read_embeddings,)),
}


def write_files(family, count, seed, folder) -> list[tuple[str, str, str]]:
  """(family, name, path) of so many files."""
  generator, ending, _ = FAMILIES[family]
  made, files = generator(np.random.default_rng(seed)), []
  for k, (name, content) in zip(range(count), made):
    path = folder / f"{family}{k}{ending}"
    path.write_bytes(content)
    files.append((family, name, str(path)))
  return files


def attack(files):
  """(name, path, reader, error or None) of each file and each of its readers."""
  for family, name, path in files:
    for read in FAMILIES[family][2]:
      error = None
      try:
        read(path)
      except BaseException as e:
        error = e
      yield name, path, read.__name__, error


def complaint(path, error) -> str | None:
  """What is wrong with an error: it must be of one line that names the file, or the field that does
  not fit it.
  """
  named = error is None or path in str(error) or str(error).startswith("config.")
  return (
    None
    if named and type(error) in (type(None), ValueError) and "\n" not in str(error)
    else repr(error)
  )


@pytest.mark.parametrize(
  "family, count",
  [("picture", 20), ("table", 40), ("archive", 60), ("tokenizer", 12), ("records", 8)],
)
def test_files_are_read_or_refused_in_one_line(family, count, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(files_lib, "SMALL_BYTES", 2**23)  # so that small bombs do
  results = list(attack(write_files(family, count, 0, tmp_path)))
  assert [
    (name, reader, wrong)
    for name, path, reader, error in results
    if (wrong := complaint(path, error))
  ] == []
  assert not (tmp_path / "gone_off").exists()  # nothing was executed
  assert all(error is not None for name, *_, error in results if "bomb" in name)
  assert sum(error is not None for *_, error in results) > count // 2


def peak() -> int:
  """The most memory this process has held since `reset_peak`, in bytes."""
  lines = dict(
    line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines()
  )
  return int(lines["VmHWM"].split()[0]) * 1024


def reset_peak():
  pathlib.Path("/proc/self/clear_refs").write_text("5")


def attacked():
  """A process of its own: files as JSON on stdin → a line of JSON for each file and reader on
  stdout.
  """
  files = json.load(sys.stdin)
  for _ in attack(files["warm_up"]):  # what the readers load at their first use is theirs
    pass
  for file in files["files"]:
    reset_peak()
    before, start = peak(), time.perf_counter()
    for name, path, reader, error in attack([file]):
      seconds, grown = time.perf_counter() - start, peak() - before
      reset_peak()
      before, start = peak(), time.perf_counter()
      print(json.dumps([name, path, reader, complaint(path, error), seconds, grown]), flush=True)


@pytest.mark.slow
@pytest.mark.skipif(
  not os.access("/proc/self/clear_refs", os.W_OK), reason="only Linux tells a process's peak memory"
)
def test_500_files_take_little_memory_and_do_not_hang(tmp_path):
  (tmp_path / "files").mkdir(), (tmp_path / "good").mkdir()
  counts = {"picture": 150, "table": 120, "archive": 120, "tokenizer": 30, "records": 50}
  counts["tokenizer.json"] = 30
  files = [
    file
    for family, count in counts.items()
    for file in write_files(family, count, 1, tmp_path / "files")
  ]
  warm_up = [(family, "good", path) for family, path in good_files(tmp_path / "good").items()]
  child = subprocess.run(
    [sys.executable, "-c", "import test_hostile; test_hostile.attacked()"],
    cwd=tmp_path,
    text=True,
    capture_output=True,
    input=json.dumps({"files": files, "warm_up": warm_up}),
    timeout=600,  # a hang, not a limit of speed
    env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
  )
  results = [json.loads(line) for line in child.stdout.splitlines()]
  assert child.returncode == 0, f"ended after {results[-1:]}: {child.stderr[-2000:]}"
  assert len(results) == sum(len(FAMILIES[family][2]) for family, *_ in files) and len(files) == 500
  worst = max(results, key=lambda result: result[4])
  largest = max(results, key=lambda result: result[5])
  print(
    f"slowest: {worst[0]} by {worst[2]}, {worst[4]:.2f} s; largest: {largest[0]} by {largest[2]}, "
    f"{largest[5] / 2**20:.0f} MiB"
  )
  assert [result for result in results if result[3]] == []
  assert largest[5] <= MAX_GROWTH, largest
  assert not (tmp_path / "gone_off").exists()


def good_files(folder) -> dict[str, str]:
  """A sound file of each family."""
  picture = encode(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8), "PNG")
  (folder / "good.png").write_bytes(picture)
  (folder / "good.parquet").write_bytes(parquet(image=[picture], caption=["a"]))
  for ending in (".npz", ".array_record"):
    write_embeddings(folder, ending)
  names = {
    "picture": "good.png",
    "table": "good.parquet",
    "archive": "whole.npz",
    "records": "whole.array_record",
    "tokenizer.json": "tokenizer.json",
  }
  (folder / "tokenizer.json").write_bytes(word_piece())
  return {family: str(folder / name) for family, name in names.items()} | {
    "tokenizer": str(text_lib.SHIPPED["shapes"])
  }


def test_sound_files_of_all_families_are_read(tmp_path):
  for family, path in good_files(tmp_path).items():
    FAMILIES[family][2][0](path)


# Of arguments and of bytes, whatever hypothesis thinks of.

BRIEF = hypothesis.settings(
  max_examples=60,
  derandomize=True,
  database=None,
  deadline=None,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
ANYTHING = st.recursive(
  st.none()
  | st.booleans()
  | st.integers()
  | st.floats()
  | st.text(max_size=8)
  | st.binary(max_size=8),
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    | st.tuples(inner)
  ),
  max_leaves=5,
)


def one_line(function, *arguments, names="config.data.0"):
  """Calls it; an error must be a ValueError of one line that begins with `names`."""
  try:
    return function(*arguments)
  except ValueError as e:
    assert type(e) is ValueError and str(e).startswith(names) and "\n" not in str(e), repr(e)


PATHS = st.text(max_size=12).filter(lambda path: not path.startswith("/")) | st.sampled_from(
  [
    "",
    " ",
    ",",
    "*",
    "**",
    "[",
    "[!",
    "a\0b",
    "\ud800",
    "\ud800*",
    "x" * 5000,
    "x" * 5000 + "*",
    ".",
    "..",
    "~",
    "gs://b/x",
    "//",
    "dir",
    "dir/*",
    "fifo",
  ]
)


@BRIEF
@hypothesis.given(
  st.dictionaries(
    st.sampled_from(
      [*sources.COMMON_FIELDS, "path", "image", "caption", "label", "weights", "classes"]
    ),
    ANYTHING,
    max_size=4,
  )
  | st.fixed_dictionaries(
    {"source": st.sampled_from(["parquet", "embeddings"]), "path": PATHS | ANYTHING},
    optional={"image": ANYTHING, "caption": ANYTHING},
  )
  | st.fixed_dictionaries(
    {"source": st.just("shapes")},
    optional={
      name: ANYTHING | st.integers(1, 50)
      for name in (
        "examples",
        "split",
        "image_size",
        "objects",
        "detail",
        "pairs",
        "seed",
        "captions",
        "arrangements",
      )
    },
  )
  | ANYTHING
)
def test_any_data_spec_is_opened_or_refused_in_one_line(tmp_path_factory, spec):
  folder = tmp_path_factory.getbasetemp() / "specs"
  (folder / "dir").mkdir(parents=True, exist_ok=True)
  if not (folder / "good.parquet").exists():
    good_files(folder)
    os.mkfifo(folder / "fifo")
  before = os.getcwd()
  os.chdir(folder)
  try:
    one_line(sources.open_source, spec, "config.data.0")
    if isinstance(spec, dict):
      one_line(
        sources.open_source,
        {
          "source": "parquet",
          "path": "good.parquet",
          **{k: v for k, v in spec.items() if k != "path"},
        },
        "config.data.0",
      )
  finally:
    os.chdir(before)


@BRIEF
@hypothesis.given(st.text(max_size=30) | st.text("parquet:shsize=.,0123456789", max_size=30))
def test_any_word_is_a_spec_or_refused_in_one_line(word):
  try:
    spec = sources.parse_spec(word)
  except ValueError as e:
    assert "must be field=value" in str(e) or "is a URL" in str(e)
  else:
    assert spec["source"] in sources.SOURCES


@pytest.mark.parametrize("family", FAMILIES)
@BRIEF
@hypothesis.given(data=st.data())
def test_any_change_of_a_sound_file_is_read_or_refused(tmp_path_factory, family, data):
  folder = tmp_path_factory.getbasetemp() / "changed"
  folder.mkdir(exist_ok=True)
  whole = bytearray(pathlib.Path(good_files(folder)[family]).read_bytes())
  at = data.draw(st.integers(0, len(whole)))
  whole[at : at + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=40))
  path = folder / f"changed{FAMILIES[family][1]}"
  path.write_bytes(whole[: data.draw(st.integers(0, len(whole)) | st.just(len(whole)))])
  assert [
    wrong
    for _, path, _, error in attack([(family, "changed", str(path))])
    if (wrong := complaint(path, error))
  ] == []


def test_an_index_that_names_a_number_is_refused(tmp_path):
  (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": 3}}))
  with pytest.raises(
    ValueError, match="model.safetensors.index.json: 3 is no file name in this folder"
  ):
    interop_files.Safetensors(tmp_path)
