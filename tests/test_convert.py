"""`siglax convert`: what it writes is what the source gives, whole, and the same bytes however
often it is stopped.
"""

import errno
import hashlib
import io
import json
import os
import pathlib
import re
import resource
import subprocess
import sys
import tarfile

import fsspec
import numpy as np
from PIL import Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from siglax.commands import cli
from siglax.data import parts
from siglax.data.sources import open_source
from siglax.data.sources import parse_spec

ROOT = pathlib.Path(__file__).parent.parent
# Of the mixed source: an undecodable picture, one cut short, and one that nothing is said of.
BROKEN = (3, 11, 17)


def picture(width, height, seed, kind="JPEG"):
  """Smooth noise, so that two ways to shrink it agree."""
  small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
  image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
  out = io.BytesIO()
  image.save(out, kind)
  return out.getvalue()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
  """Parquet of 24 pictures of several sizes and formats, with all that an example may have."""
  sizes = [(90, 60), (30, 40), (64, 200), (20, 20)]
  rows = [
    {
      "image": picture(*sizes[i % 4], i, ("JPEG", "PNG", "WEBP")[i % 3]),
      "captions": [f"a caption {i}", "ein zweiter, größer"][: 1 + i % 2],
      "label": i % 2,
      "weight": 0.5 + i,
      "key": f"key/{i}.x",
    }
    for i in range(24)
  ]
  rows[0]["captions"] = ["two\nlines", " spaces "]
  rows[3]["image"] = b"no picture"
  rows[11]["image"] = rows[11]["image"][:100]
  rows[17] |= {"captions": ["  "], "label": None}
  rows[5]["captions"] = []
  path = tmp_path_factory.mktemp("mixed") / "mixed.parquet"
  table = pa.Table.from_pylist(rows).replace_schema_metadata({"classes": "cat,big dog"})
  pq.write_table(table, path)
  # Its label is enough.
  rows[5]["captions"] = ["a photo of a big dog."]
  return f"{path}:max_bad_fraction=0.2", rows


def convert(source, folder, *flags, code=0):
  assert cli.main(["convert", source, str(folder), *flags]) == code


def refused(message, capsys, source, folder, *flags):
  convert(source, folder, *flags, code=1)
  said = capsys.readouterr().err.strip().splitlines()[-1]
  assert re.search(message, said), said


def contents(folder):
  """{path: bytes} of all files below a folder, hidden ones too."""
  files = (p for p in pathlib.Path(folder).rglob("*") if p.is_file())
  return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def size(data):
  return Image.open(io.BytesIO(data)).size


def test_array_record_holds_what_the_source_gives(mixed, tmp_path):
  source, rows = mixed
  convert(source, tmp_path, "--examples-per-shard", "7")
  found = open_source(parse_spec(str(tmp_path)))
  sound = [row for i, row in enumerate(rows) if i not in BROKEN]
  assert found.classnames == ("cat", "big dog")
  assert found.shard_sizes.tolist() == [6, 6, 6, 3]
  for want, got in zip(sound, found, strict=True):
    assert got == want


def test_tar_holds_the_members_that_webdataset_names(mixed, tmp_path):
  source, rows = mixed
  convert(source, tmp_path, "--format", "tar", "--examples-per-shard", "10")
  members = {}
  for file in sorted(tmp_path.glob("*.tar")):
    with tarfile.open(file) as tar:
      for member in tar:
        assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
        members[member.name] = tar.extractfile(member).read()
  for i, row in enumerate(rows):
    of_row = {k[11:]: v for k, v in members.items() if k.startswith(f"{i:010}.")}
    if i in BROKEN:
      assert not of_row
      continue
    assert of_row[("jpg", "png", "webp")[i % 3]] == row["image"]
    assert int(of_row["cls"]) == row["label"]
    fields = json.loads(of_row["json"])
    assert fields["key"] == row["key"] and fields["weight"] == row["weight"]
    if i == 0:
      assert fields["caption"] == row["captions"] and "txt" not in of_row
    else:
      assert of_row["txt"].decode().splitlines() == row["captions"]
  found = open_source(parse_spec(str(tmp_path)))
  assert found.classnames == ("cat", "big dog") and len(found) == 21
  assert found[0]["captions"] == rows[0]["captions"] and "weight" not in found[0]
  weighed = open_source(parse_spec(f"{tmp_path}:weights=weight"))
  sound = [row["weight"] for i, row in enumerate(rows) if i not in BROKEN]
  assert [example["weight"] for example in weighed] == sound


def test_the_manifest_tells_bytes_digests_and_what_was_left_out(mixed, tmp_path):
  source, _ = mixed
  convert(source, tmp_path, "--examples-per-shard", "7", "--short-side", "40")
  manifest = json.loads((tmp_path / "manifest.json").read_bytes())
  for shard in manifest["shards"]:
    data = (tmp_path / shard["file"]).read_bytes()
    assert shard["bytes"] == len(data)
    assert shard["sha256"] == hashlib.sha256(data).hexdigest()
  assert manifest["bytes"] == sum(shard["bytes"] for shard in manifest["shards"])
  assert [shard["examples"] for shard in manifest["shards"]] == [6, 6, 6, 3]
  skipped = manifest["skipped"]
  assert manifest["examples"] == 21 and skipped["examples"] == 3
  assert [(r["count"], r["first"]) for r in skipped["reasons"]] == [(2, 3), (1, 17)]
  assert "cannot be decoded" in skipped["reasons"][0]["reason"]
  assert skipped["reasons"][1]["reason"] == "no caption and no label"


def test_short_side_shrinks_the_larger_ones_alone(mixed, tmp_path):
  source, rows = mixed
  convert(source, tmp_path, "--short-side", "40")
  by_key = {example["key"]: example["image"] for example in open_source(parse_spec(str(tmp_path)))}
  assert len(by_key) == 21
  for row in (row for row in rows if row["key"] in by_key):
    got, (width, height) = by_key[row["key"]], size(row["image"])
    if min(width, height) <= 40:
      assert got == row["image"]
      continue
    want = Image.open(io.BytesIO(row["image"])).convert("RGB")
    want = want.resize((60, 40) if width > height else (40, 125), Image.Resampling.BOX)
    found = Image.open(io.BytesIO(got))
    assert found.format == "JPEG" and found.size == want.size
    difference = np.abs(np.asarray(found, int) - np.asarray(want, int))
    assert difference.mean() < 4
  other = tmp_path / "other"
  convert(source, other, "--short-side", "40", "--quality", "30")
  small = sum(len(example["image"]) for example in open_source(parse_spec(str(other))))
  assert small < sum(map(len, by_key.values()))


@pytest.mark.parametrize("format", ["array_record", "tar"])
def test_threads_and_jobs_change_no_byte(mixed, tmp_path, format, capsys):
  source, _ = mixed
  flags = ["--format", format, "--examples-per-shard", "5", "--short-side", "40", "--shuffle", "7"]
  convert(source, tmp_path / "one", *flags, "--threads", "1")
  convert(source, tmp_path / "four", *flags, "--threads", "4")
  want = contents(tmp_path / "one")
  assert contents(tmp_path / "four") == want and "manifest.json" in want
  convert(source, tmp_path / "jobs", *flags, "--shard", "1/2")
  assert "those of other jobs are missing" in capsys.readouterr().out
  assert sorted(p.name for p in (tmp_path / "jobs").glob(f"*.{format}")) == [
    f"00001.{format}",
    f"00003.{format}",
  ]
  assert not (tmp_path / "jobs/manifest.json").exists()
  convert(source, tmp_path / "jobs", *flags, "--shard", "0/2")
  assert contents(tmp_path / "jobs") == want


def test_a_bucket_holds_what_a_folder_does(mixed, tmp_path, capsys):
  source, _ = mixed
  filesystem = fsspec.filesystem("memory")
  filesystem.store.clear()
  flags = ["--examples-per-shard", "5", "--short-side", "40", "--shuffle", "7"]
  convert(source, tmp_path / "one", *flags)
  convert(source, "memory://bucket/x", *flags, "--shard", "1/2")
  assert "those of other jobs are missing" in capsys.readouterr().out
  assert "/bucket/x/00001.array_record" in filesystem.store
  made = filesystem.modified("/bucket/x/00001.array_record")
  convert(source, "memory://bucket/x", *flags, "--shard", "0/2")
  assert filesystem.modified("/bucket/x/00001.array_record") == made
  want = {p.relative_to(tmp_path / "one").as_posix(): p for p in (tmp_path / "one").rglob("*")}
  found = {path.removeprefix("/bucket/x/"): path for path in filesystem.find("/bucket/x")}
  assert found.keys() == {name for name, path in want.items() if path.is_file()}
  assert all(filesystem.cat(path) == want[name].read_bytes() for name, path in found.items())
  refused(
    "holds another conversion, of quality=92",
    capsys,
    source,
    "memory://bucket/x",
    *flags,
    "--quality",
    "9",
  )
  filesystem.store.clear()


def test_shuffle_is_a_permutation_of_all(tmp_path):
  keys = {}
  for seed in (1, 2, None):
    folder = tmp_path / str(seed)
    flags = [] if seed is None else ["--shuffle", str(seed)]
    convert("shapes:examples=60,image_size=16", folder, *flags, "--examples-per-shard", "16")
    keys[seed] = [example["image"] for example in open_source(parse_spec(str(folder)))]
  assert keys[1] != keys[2] != keys[None] and keys[1] != keys[None]
  assert sorted(keys[1]) == sorted(keys[2]) == sorted(keys[None])
  assert keys[None] == keys[None] and set(keys[1][:16]) != set(keys[None][:16])


def test_arrays_are_written_without_loss(tmp_path):
  convert("shapes:examples=5,image_size=24", tmp_path)
  want = open_source({"source": "shapes", "examples": 5, "image_size": 24})
  found = open_source(parse_spec(str(tmp_path)))
  assert found.classnames == want.classnames
  for got, example in zip(found, want, strict=True):
    np.testing.assert_array_equal(Image.open(io.BytesIO(got["image"])), example["image"])
    assert got["captions"] == example["captions"] and got["label"] == example["label"]


def test_a_finished_shard_is_not_made_again_and_a_lost_one_is(tmp_path):
  flags = ["--examples-per-shard", "4"]
  convert("shapes:examples=12,image_size=16", tmp_path, *flags)
  want = contents(tmp_path)
  stamps = {p.name: p.stat().st_ino for p in tmp_path.glob("*.array_record")}
  lost, cut = tmp_path / "00000.array_record", tmp_path / "00002.array_record"
  lost.unlink()
  cut.write_bytes(cut.read_bytes()[:-5])
  convert("shapes:examples=12,image_size=16", tmp_path, *flags)
  assert contents(tmp_path) == want
  kept = tmp_path / "00001.array_record"
  assert kept.stat().st_ino == stamps[kept.name]


def test_a_folder_that_vanishes_meanwhile_is_no_success(tmp_path, capsys, monkeypatch):
  make = parts.Parts.make

  def loses(self, number, write):
    make(self, number, write)
    os.unlink(self.part(number))

  monkeypatch.setattr(parts.Parts, "make", loses)
  refused("00000.array_record was written and is gone", capsys, "shapes:examples=4", tmp_path / "a")


def test_a_second_start_that_was_overtaken_tells_what_there_is(tmp_path, monkeypatch):
  flags = ["shapes:examples=12,image_size=16", tmp_path, "--examples-per-shard", "4"]
  make = parts.Parts.make

  def overtaken(self, number, write):
    monkeypatch.setattr(parts.Parts, "make", make)
    convert(*flags)  # another one, which removes what it finds unfinished
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

  monkeypatch.setattr(parts.Parts, "make", overtaken)
  convert(*flags)
  assert json.loads((tmp_path / "manifest.json").read_bytes())["examples"] == 12


def test_a_folder_of_something_else_is_refused(mixed, tmp_path, capsys):
  data = "shapes:examples=12,image_size=16"
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine/a.txt").write_text("x")
  refused("holds a.txt and no conversion.json", capsys, data, tmp_path / "mine")
  assert os.listdir(tmp_path / "mine") == ["a.txt"]
  convert(data, tmp_path / "out")
  for more, name in (
    (["--format", "tar"], "format='array_record' and not 'tar'"),
    (["--examples-per-shard", "5"], "examples_per_shard=10000 and not 5"),
    (["--short-side", "4"], "short_side=None and not 4"),
    (["--quality", "50"], "quality=92 and not 50"),
    (["--shuffle", "0"], "shuffle=None and not 0"),
    (["--config.image.max_pixels=999"], "max_pixels=33554432 and not 999"),
  ):
    refused(f"holds another conversion, of {name}", capsys, data, tmp_path / "out", *more)
  refused("another conversion, of spec={'examples': 12", capsys, f"{data},seed=1", tmp_path / "out")


def test_bad_flags_are_one_line(mixed, tmp_path, capsys):
  data, out = "shapes:examples=12,image_size=16", tmp_path / "out"
  for flags, message in (
    (["--shard", "2/2"], "--shard 2/2 must be I/N"),
    (["--shard", "x"], "--shard x must be I/N"),
    (["--examples-per-shard", "0"], "--examples-per-shard 0 must lie in 1"),
    (["--quality", "101"], "--quality 101 must lie in 1 … 100"),
    (["--short-side", "0"], "--short-side 0 must lie in"),
    (["--config.image.size=3"], "--config.image.size has no use here"),
  ):
    refused(message, capsys, data, out, *flags)
  refused("DST='' is empty", capsys, data, "")
  source, _ = mixed
  refused(
    r"2 of 24 examples are broken, the last, example 11: .*raise max_bad_fraction=0.05",
    capsys,
    source.replace("0.2", "0.05"),
    out,
  )
  assert not list(out.glob("*.array_record"))
  refused(
    "SRC: all 24 examples are broken",
    capsys,
    source.replace("0.2", "1"),
    tmp_path / "none",
    "--config.image.max_pixels=9",
  )


@pytest.mark.parametrize("format", ["array_record", "tar"])
def test_a_full_disk_is_one_line_and_then_it_goes_on(tmp_path, capsys, format):
  # Noise, so that the shards are larger than what the writers hold back.
  rng = np.random.default_rng(0)
  (tmp_path / "in").mkdir()
  for i in range(8):
    noise = Image.fromarray(rng.integers(0, 256, (200, 200, 3), dtype=np.uint8))
    noise.save(tmp_path / f"in/{i}.png")
    (tmp_path / f"in/{i}.txt").write_text("noise")
  flags = ["--format", format, "--examples-per-shard", "4"]
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
  try:
    refused("DST .* cannot be written: ", capsys, str(tmp_path / "in"), tmp_path / "out", *flags)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert not [name for name in contents(tmp_path / "out") if name.endswith(format)]
  convert(str(tmp_path / "in"), tmp_path / "out", *flags)
  convert(str(tmp_path / "in"), tmp_path / "other", *flags)
  assert contents(tmp_path / "out") == contents(tmp_path / "other")


FAR = """
from siglax.data import SOURCES, Source, storage

class Far:
  def __len__(self):
    return 8

  def __getitem__(self, i):
    raise storage.Unreachable("s3://bucket/a.tar does not answer")

SOURCES.register(Source("far", "data of a server that does not answer", Far))
"""


def test_a_bucket_that_does_not_answer_makes_no_example_broken(tmp_path, capsys):
  (tmp_path / "far.py").write_text(FAR)
  far = ["--import", str(tmp_path / "far.py")]
  refused(
    "convert: s3://bucket/a.tar does not answer",
    capsys,
    "far:max_bad_fraction=1",
    tmp_path / "x",
    *far,
  )
  assert not list((tmp_path / "x").glob("*.array_record"))


def test_the_array_of_jobs_that_the_docs_print(mixed, tmp_path, monkeypatch):
  source, _ = mixed
  line = re.search(r"^sbatch .*--wrap '(.*)'$", (ROOT / "docs/data.md").read_text(), re.M)[1]
  monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
  more = ["--examples-per-shard", "5"]
  for task in "01":
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
    words = os.path.expandvars(line).split()
    assert words[:4] == ["siglax", "convert", "train.csv", "shards"]
    convert(source, tmp_path / "jobs", *words[4:], *more)
  convert(source, tmp_path / "one", "--short-side", "256", *more)
  assert contents(tmp_path / "jobs") == contents(tmp_path / "one")


# Converts in child processes, of which ten are killed at random moments.
KILLS = """
import os, random, signal, sys, time
from siglax.commands import cli
from siglax.data import conversion

source, folder, *flags = sys.argv[1:]
command = lambda out: ["convert", source, f"{folder}/{out}", *flags]

def child(out):
  pid = os.fork()
  if not pid:
    os._exit(cli.main(command(out)))
  return pid

begin = time.monotonic()
assert os.waitpid(child("whole"), 0)[1] == 0
seconds = time.monotonic() - begin
random.seed(0)
killed = out = 0
while True:
  pid = child(out)
  if killed < 10:
    time.sleep(random.random() * seconds / 2)
    os.kill(pid, signal.SIGKILL)
  status = os.waitpid(pid, 0)[1]
  if status:
    assert status == signal.SIGKILL, status
    killed += 1
    continue
  if killed == 10:
    break
  out += 1
"""


@pytest.mark.parametrize("format", ["array_record", "tar"])
def test_killed_ten_times_the_bytes_are_the_same(mixed, tmp_path, format):
  source, _ = mixed
  flags = ["--format", format, "--examples-per-shard", "2", "--short-side", "40"]
  done = subprocess.run(
    [sys.executable, "-c", KILLS, source, str(tmp_path), *flags],
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  want = contents(tmp_path / "whole")
  assert len([name for name in want if name.endswith(format)]) == 12
  others = [p for p in tmp_path.iterdir() if p.name != "whole"]
  assert others and all(contents(folder) == want for folder in others)
