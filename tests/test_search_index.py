"""`siglax search --index`: what it finds is what a sort of all cosines finds, in flat memory."""

import base64
import csv
import json
import pathlib
import re
import shutil
import tracemalloc

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from test_interop_export import folder  # noqa: F401, the SigLIP folder with a tokenizer
from test_use import Page

import siglax
from siglax.commands import cli
from siglax.data import embedding_files
from siglax.data import embedding_index
from siglax.data import images
from siglax.tower import search as search_lib

ENDINGS = (".npz", ".parquet", ".array_record")
ABOUT = {"digest": "x", "width": 6, "image": {}, "classnames": None}
# As JSON they look like the end of a row, or of all.
CAPTIONS = (["a, b", "[c]"], [], ['"], [', "é“\\"], ["a red disc"])


def write(file, z, **about):
  rows = [
    {"image_embedding": x, "captions": list(CAPTIONS[i % 4])} | ({"key": f"k{i}"} if i % 3 else {})
    for i, x in enumerate(z)
  ]
  writer = embedding_files.WRITERS[file.suffix](file)
  for start in range(0, len(rows), 50):
    writer.write(rows[start : start + 50])
  writer.close({**ABOUT, **about})


def unit(x):
  return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def brute_force(z, queries, top):
  """(cosine, row) in float64; of equal cosines the earlier row first."""
  cosines = np.asarray(queries, np.float64) @ np.asarray(z, np.float64).T
  return [[(row[i], i) for i in np.argsort(-row, kind="stable")[:top]] for row in cosines]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_nearest_equals_brute_force(ending, dtype, tmp_path, monkeypatch):
  monkeypatch.setattr(embedding_index, "BLOCK", 64)
  monkeypatch.setattr(embedding_files, "ROW_GROUP_BYTES", 3000)
  rng = np.random.default_rng(0)
  z, queries = unit(rng.normal(size=(300, 6))).astype(dtype), unit(rng.normal(size=(3, 6)))
  write(tmp_path / f"a{ending}", z[:170])
  write(tmp_path / f"b{ending}", z[170:])
  index = embedding_index.Index(f"{tmp_path}/*{ending}")
  assert len(index) == 300
  for top in (1, 7, 1000):
    want = brute_force(z, queries, top)
    for got, expected in zip(embedding_index.nearest(index, queries, top), want, strict=True):
      assert [i for _, i in got] == [i for _, i in expected]
      np.testing.assert_allclose([x for x, _ in got], [x for x, _ in expected], atol=1e-6)
  numbers = [299, 0, 171, 2, 170, 169]
  places = [129, 0, 1, 2, 0, 169]
  assert index.told(numbers) == [
    {"captions": list(CAPTIONS[i % 4]), "key": f"k{i}" if i % 3 else None} for i in places
  ]


@pytest.mark.parametrize("ending", ENDINGS)
def test_of_equal_cosines_the_earlier_row_comes_first(ending, tmp_path, monkeypatch):
  """Cosines of 0, ½ and 1 alone, exact in float32, over many blocks and at the edge of the top."""
  monkeypatch.setattr(embedding_index, "BLOCK", 16)
  monkeypatch.setattr(embedding_files, "ROW_GROUP_BYTES", 1000)
  levels = np.random.default_rng(3).integers(0, 3, 200) / 2
  z = np.zeros((200, 6), np.float32)
  z[:, 0] = levels
  write(tmp_path / f"a{ending}", z)
  index, queries = embedding_index.Index(str(tmp_path / f"a{ending}")), np.eye(6)[:1]
  for top in (1, 20, 100, 150):
    got = embedding_index.nearest(index, queries.astype(np.float32), top)
    assert got == brute_force(z, queries, top)


@pytest.mark.parametrize("ending", [".npz", ".array_record"])
def test_memory_does_not_grow_with_the_index(ending, tmp_path, monkeypatch):
  monkeypatch.setattr(embedding_index, "BLOCK", 128)
  z = unit(np.random.default_rng(0).normal(size=(4000, 256)))
  write(tmp_path / f"a{ending}", z, width=256)
  index = embedding_index.Index(str(tmp_path / f"a{ending}"))
  tracemalloc.start()
  embedding_index.nearest(index, z[:2], 10)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert z[:128].nbytes < peak < z.nbytes / 4


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):  # noqa: F811
  """A tower, and in the folder beside it a table of pictures, of which two are broken."""
  there = tmp_path_factory.mktemp("index")
  shutil.copytree(folder, there / "run")
  (there / "pictures").mkdir()
  rng, rows = np.random.default_rng(0), []
  for i in range(14):
    low = rng.integers(0, 256, (3, 4, 3), np.uint8)
    pixels = cv2.resize(low, (40, 30), interpolation=cv2.INTER_NEAREST)
    cv2.imwrite(str(there / f"pictures/{i}.png"), pixels)
    if i in (4, 9):
      (there / f"pictures/{i}.png").write_bytes(b"no picture")
    rows.append((f"pictures/{i}.png", "a <red> disc" if i % 2 else "a blue square"))
  with (there / "table.csv").open("w") as f:
    csv.writer(f).writerows([("image", "caption"), *rows])
  return there


@pytest.fixture(scope="module")
def index(run):
  """What siglax embed made of the table."""
  words = f"embed --from {run}/run --data {run}/table.csv:max_bad_fraction=0.5"
  assert cli.main([*words.split(), "--out", str(run / "a.npz")]) == 0
  return run / "a.npz"


def search(*words):
  return cli.main(["search", "--from", "run", *map(str, words)])


def test_search_in_an_index(run, index, monkeypatch, capsys):
  monkeypatch.chdir(run)  # the keys are paths from there
  queries = ["a red disc", "a blue square"]
  asked = "pictures/7.png"
  words = ["--index", index, *queries, "--query-image", asked, "--top", 5, "--out", "found.html"]
  assert search(*words) == 0
  lines = capsys.readouterr().out.splitlines()
  tower = siglax.load("run")
  sound = [i for i in range(14) if i not in (4, 9)]
  zimg = tower.embed_images([f"pictures/{i}.png" for i in sound])
  z = np.concatenate([tower.embed_texts(queries), zimg[sound.index(7)][None]])
  want = brute_force(zimg, z, 5)
  assert lines[::6] == [*queries, asked, "wrote found.html"][: len(lines[::6])]
  assert lines[-1] == "wrote found.html" and len(lines) == 3 * 6 + 1
  names = []
  for query, matches in enumerate(want):
    for line, (cosine, row) in zip(lines[6 * query + 1 :], matches):
      told, _, name = line.strip().partition("  ")
      assert float(told) == pytest.approx(cosine, abs=6e-4)
      caption = "a <red> disc" if sound[row] % 2 else "a blue square"
      assert name == f"pictures/{sound[row]}.png: {caption}"
      names.append(name)
  assert lines[13].split() == ["1.000", *f"{asked}: a <red> disc".split()]
  page = Page(pathlib.Path("found.html").read_text())
  alts = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
  assert alts == [*names[:10], asked, *names[10:]] and "red" not in page.tags


def decoded(file):
  """The pictures of a page: their mean colours, by name."""
  found = re.findall(r'base64,([^"]*)" alt="([^":]*)', pathlib.Path(file).read_text())
  return {name: images.decode(base64.b64decode(data)).mean((0, 1)) for data, name in found}


def test_data_give_the_pictures_where_keys_are_no_paths(run, index, tmp_path, monkeypatch, capsys):
  """In another folder: by key, as two examples are no rows."""
  monkeypatch.chdir(tmp_path)
  words = ["search", "--from", run / "run", "--index", index, "a red disc", "--top", 20]
  words = [*map(str, words), "--out"]
  assert cli.main([*words, "none.html"]) == 0
  assert not decoded("none.html") and "pictures/13.png" in pathlib.Path("none.html").read_text()
  assert cli.main([*words, "all.html", "--data", f"{run}/table.csv"]) == 0
  colours = decoded("all.html")
  assert set(colours) == {f"pictures/{i}.png" for i in range(14) if i not in (4, 9)}
  for name, colour in colours.items():
    assert np.abs(colour - search_lib.decode(run / name).mean((0, 1))).max() < 4
  with (run / "table.csv").open() as f:
    lines = f.read().splitlines()
  # Of as many examples, each is the row of its place, unless its captions are others.
  kept = [line for line in lines if not line.startswith(("pictures/4.", "pictures/9."))]
  kept[3] = kept[3].replace("blue", "green")
  (run / "sound.csv").write_text("\n".join(kept))
  capsys.readouterr()
  assert cli.main([*words, "most.html", "--data", f"{run}/sound.csv"]) == 0
  assert set(decoded("most.html")) == set(colours) - {"pictures/2.png"}
  assert "row 2 has no picture: example 2 of --data has other captions" in capsys.readouterr().err


def test_wrong_inputs_are_one_line(run, index, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  shutil.copytree(run / "run", "run")
  shutil.copy(index, "a.npz")
  good = json.loads(np.load(index)["siglax"].tobytes())
  z = unit(np.random.default_rng(0).normal(size=(5, good["width"])))
  write(tmp_path / "narrow.npz", z[:, :6], digest=good["digest"])
  write(tmp_path / "other.parquet", z, width=good["width"])
  write(tmp_path / "nan.npz", np.where(np.arange(5)[:, None] == 3, np.nan, z), **good)
  write(tmp_path / "crop.npz", z, **{**good, "image": good["image"] | {"size": 99}})
  (tmp_path / "cut.npz").write_bytes(index.read_bytes()[:-300])
  damaged = bytearray(index.read_bytes())
  damaged[300] ^= 1
  (tmp_path / "damaged.npz").write_bytes(damaged)
  for ending in ENDINGS:
    writer = embedding_files.WRITERS[ending](tmp_path / f"texts{ending}")
    texts = {"captions": ["a"], "text_embeddings": z[:1]}
    writer.write([texts])
    writer.close({**ABOUT, "digest": None, "image": None})
  (tmp_path / "few.csv").write_text("image,caption\na.png,a\n")
  cases = [
    (("--index", "no.npz", "x"), "--index: path='no.npz': no such file"),
    (("--index", "narrow.npz", "x"), "are 6 wide, those of --from run are 16; search with the"),
    (("--index", "other.parquet", "x"), "of another image tower (None, x) than that of --from run"),
    (
      ("--index", "nan.npz", "x"),
      "--index: path='nan.npz': row 3 is not finite; run siglax embed again",
    ),
    (("--index", "crop.npz", "--query-image", "p.png"), "image.size=99, but --from run has 16"),
    (("--index", "cut.npz", "x"), "is no .npz of siglax embed, or is cut short"),
    (("--index", "damaged.npz", "x"), "Bad CRC-32 for file 'image_embedding.npy'"),
    (("--index", "a.npz"), "there is nothing to search for; give a QUERY or --query-image"),
    (("--index", "a.npz", "--query-image", "q.png"), "--query-image q.png is no file"),
    (("--index", "a.npz", "x", "--data", "few.csv"), "--data gives the pictures of a page; give"),
    (
      ("--index", "a.npz", "x", "--out", "o.html", "--data", "few.csv"),
      "--data has 1 examples, but --index has 12 rows; give the data that siglax embed had",
    ),
    (("--images", ".", "x", "--data", "few.csv"), "--data goes with --index; --images has its"),
    *(
      (("--index", f"texts{ending}", "x"), "holds embeddings of texts alone, and none of pictures")
      for ending in ENDINGS
    ),
  ]
  shutil.copy(run / "pictures/1.png", "p.png")
  for words, want in cases:
    assert search(*words) == 1, words
    assert want in capsys.readouterr().err.splitlines()[-1]
  assert not pathlib.Path("o.html").exists()
  # A text tower alone has nothing to compare with the index but its width.
  assert cli.main(["search", "--from", "run:txt", "--index", "a.npz", "x"]) == 0
  assert "has no image tower to compare with that of --index" in capsys.readouterr().err


def test_compressed_and_transposed_arrays(tmp_path):
  """Files of others: savez_compressed is read, columns one by one are refused."""
  z = unit(np.random.default_rng(0).normal(size=(40, 6)))
  write(tmp_path / "a.npz", z)
  arrays = dict(np.load(tmp_path / "a.npz"))
  np.savez_compressed(tmp_path / "b.npz", **arrays)
  found = embedding_index.nearest(embedding_index.Index(str(tmp_path / "b.npz")), z[:1], 3)
  assert [i for _, i in found[0]] == [i for _, i in brute_force(z, z[:1], 3)[0]]
  np.savez(tmp_path / "c.npz", **arrays | {"image_embedding": np.asfortranarray(z)})
  with pytest.raises(ValueError, match="c.npz' is damaged: image_embedding lies column by column"):
    embedding_index.nearest(embedding_index.Index(str(tmp_path / "c.npz")), z[:1], 3)


def test_a_damaged_row_group_is_named(tmp_path):
  z = unit(np.random.default_rng(0).normal(size=(400, 6)))
  write(tmp_path / "a.parquet", z)
  start = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(0).column(0).data_page_offset
  data = bytearray((tmp_path / "a.parquet").read_bytes())
  data[start + 60] ^= 255
  (tmp_path / "b.parquet").write_bytes(data)
  with pytest.raises(ValueError, match=r"^path='.*b.parquet' is damaged in row group 0"):
    embedding_index.nearest(embedding_index.Index(str(tmp_path / "b.parquet")), z[:1], 3)


@pytest.mark.parametrize(
  ("spoilt", "message"),
  [
    ({"captions": None}, "is damaged: .*captions is not a file"),
    ({"captions": np.frombuffer(b"{nope", np.uint8)}, "is damaged: its captions or keys end"),
    ({"key": np.frombuffer(b"[null, null]", np.uint8)}, "is damaged: .* end before row 2"),
    ({"captions": np.frombuffer(b"[1, 2, 3, 4, 5, 6]", np.uint8)}, "is damaged: "),
    ({"image_embedding": np.full((6, 6), np.nan, np.float32)}, "row 0 is not finite"),
  ],
)
def test_rows_that_do_not_go_together_are_one_line(spoilt, message, tmp_path):
  """Captions and keys are read after the search, for what was found alone."""
  z = unit(np.random.default_rng(0).normal(size=(6, 6)))
  write(tmp_path / "a.npz", z)
  arrays = {**np.load(tmp_path / "a.npz"), **spoilt}
  np.savez(tmp_path / "b.npz", **{name: x for name, x in arrays.items() if x is not None})
  index = embedding_index.Index(str(tmp_path / "b.npz"))
  with pytest.raises(ValueError, match=f"^path='.*b.npz'.*{message}"):
    found = embedding_index.nearest(index, z[:1], 6)
    index.told([row for _, row in found[0]])
