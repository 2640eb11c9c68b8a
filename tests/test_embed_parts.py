"""`siglax embed` in parts: killed and started again, by several jobs and processes, of texts alone,
in a bucket.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

from conftest import free_port
import cv2
import numpy as np
import pytest
import safetensors.numpy
from test_interop_export import folder  # noqa: F401, the SigLIP folder with a tokenizer

import siglax
from siglax.commands import cli
from siglax.data import embedding_files
from siglax.data import parts as parts_lib
from siglax.data import prepared
from siglax.data.sources import open_source
from siglax.data.sources import parse_spec

import servers
import tiny

# Pictures that take a while, one of them broken: 64 in 8 parts.
SLOW = """
import time
from siglax.data import SOURCES, Source
from siglax.data.shapes import dataset

class Slow(dataset.Shapes):
  def __getitem__(self, i):
    time.sleep({seconds})
    if i == 9:
      raise ValueError("no picture")
    return super().__getitem__(i)

SOURCES.register(Source("slow", "pictures that take a while", lambda: Slow("train", examples=64,
  image_size=16)))
"""
DATA = "slow:max_bad_fraction=0.5"


def words(folder, out, *more, data=DATA, seconds="0"):
  part = folder.parent / f"slow{seconds}.py"
  part.write_text(SLOW.format(seconds=seconds))
  flags = ["embed", "--from", folder, "--data", data, "--out", out, "--batch-size", "8", *more]
  return [*map(str, flags), "--import", str(part)]


def start(*arguments):
  return subprocess.Popen(
    [sys.executable, "-m", "siglax.commands.cli", *arguments],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(started):
  outputs = [process.communicate(timeout=150)[0] for process in started]
  return [process.returncode for process in started], outputs


def parts_of(out) -> set[str]:
  found = pathlib.Path(f"{out}.parts/shards")
  return {p.name for p in found.glob("[!.]*.json")} if found.exists() else set()


def wait_for_parts(out, count, started):
  deadline = time.monotonic() + 150
  while len(parts_of(out)) < count:
    assert all(p.poll() is None for p in started) and time.monotonic() < deadline, finish(started)
    time.sleep(0.01)


def refused(message, capsys, arguments):
  assert cli.main(arguments) == 1
  line = capsys.readouterr().err.strip().splitlines()[-1]
  assert message in line, line


def opened(path):
  return open_source({"source": "embeddings", "path": str(path)})


@pytest.fixture(scope="module")
def whole(folder):
  """The file of a run that nothing stopped, with texts."""
  out = folder.parent / "whole.array_record"
  assert cli.main(words(folder, out, "--texts")) == 0
  return out


@pytest.fixture(scope="module")
def killed(folder):
  """A folder of parts that a process left which was killed with SIGKILL."""
  out = folder.parent / "killed.array_record"
  process = start(*words(folder, out, "--texts", seconds="0.05"))
  wait_for_parts(out, 2, [process])
  process.kill()
  process.wait()
  assert 2 <= len(parts_of(out)) < 8 and not out.exists()
  return pathlib.Path(f"{out}.parts")


def test_killed_and_started_again_the_bytes_are_the_same(folder, whole, killed, tmp_path, capsys):
  out = tmp_path / "x.array_record"
  shutil.copytree(killed, f"{out}.parts")
  there = len(parts_of(out))
  assert cli.main(words(folder, out, "--texts")) == 0
  printed = capsys.readouterr()
  assert f"going on: {there} of 8 parts are there" in printed.err
  assert "63 embeddings of width 16, 1 skipped" in printed.out
  assert out.read_bytes() == whole.read_bytes()
  assert [p.name for p in tmp_path.iterdir()] == [out.name]
  assert opened(out).description["skipped"] == 1
  # Killed when the file was there, and its parts were not yet removed.
  about = json.loads((killed / "embedding.json").read_text())
  shutil.copytree(killed, f"{out}.parts")
  (pathlib.Path(f"{out}.parts") / "description.json").write_text(
    json.dumps({"width": 16, "examples": 63, "skipped": 1, "filtered": about["filtered"]})
  )
  assert cli.main(words(folder, out, "--texts")) == 0
  assert "63 embeddings of width 16, 1 skipped" in capsys.readouterr().out
  assert [p.name for p in tmp_path.iterdir()] == [out.name]
  assert out.read_bytes() == whole.read_bytes()
  refused(f"--out {out} exists; give a path", capsys, words(folder, out, "--texts"))


def test_the_file_of_another_that_ran_at_the_same_time_stays(
  folder, whole, tmp_path, monkeypatch, capsys
):
  """The other one ends, and removes the parts, while this one joins them."""
  out, local = tmp_path / "x.array_record", parts_lib.Parts.local

  def after_the_other(self, number):
    shutil.rmtree(self.folder, ignore_errors=True)
    shutil.copy(whole, out)
    return local(self, number)

  monkeypatch.setattr(parts_lib.Parts, "local", after_the_other)
  refused("another siglax embed has written it", capsys, words(folder, out, "--texts"))
  assert [p.name for p in tmp_path.iterdir()] == [out.name]
  assert out.read_bytes() == whole.read_bytes()


def test_another_tower_data_or_flag_is_no_resume(folder, killed, tmp_path, capsys):
  out = tmp_path / "x.array_record"
  shutil.copytree(killed, f"{out}.parts")
  other = tmp_path / "other"
  shutil.copytree(folder, other)
  arrays = safetensors.numpy.load_file(other / "model.safetensors")
  name = "vision_model.encoder.layers.0.mlp.fc1.weight"
  arrays[name] = np.nextafter(arrays[name], np.float32(1))
  safetensors.numpy.save_file(arrays, other / "model.safetensors", {"format": "pt"})
  before = sorted(p.name for p in pathlib.Path(f"{out}.parts").rglob("*"))
  for more, said in (
    (["--texts", "--dtype", "float16"], "of dtype='float32' and not 'float16'"),
    (["--texts", "--from", other], "of digest='"),
    ([], "of text_digest='"),
    (["--texts", "--data", "shapes:examples=64,image_size=16"], "of spec={'source': 'slow'}"),
    (["--texts", "--data", "slow:min_caption_words=99,max_bad_fraction=1"], "of spec={'source"),
  ):
    refused(
      f"{out}.parts holds parts of another embedding, {said}", capsys, words(folder, out, *more)
    )
  assert sorted(p.name for p in pathlib.Path(f"{out}.parts").rglob("*")) == before
  assert not out.exists()


def test_jobs_without_a_word_make_files_that_open_together(
  folder, whole, tmp_path, monkeypatch, capsys
):
  page = (pathlib.Path(__file__).parent.parent / "docs/towers.md").read_text()
  (printed,) = re.findall(r"^ *`sbatch .*--wrap 'siglax embed (.*)'`$", page, re.M)
  monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "3")
  for i in (2, 0, 1):
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(i))
    *_, flag, shard = os.path.expandvars(printed).split()
    assert cli.main(words(folder, tmp_path / "x.npz", flag, shard)) == 0
    assert f"wrote {tmp_path}/x-0000{i}-of-00003.npz: " in capsys.readouterr().out
  assert len(list(tmp_path.iterdir())) == 3
  found, want = opened(tmp_path / "x-*.npz"), opened(whole)
  assert len(found) == len(want) == 63
  for got, row in zip(found, want):
    np.testing.assert_allclose(got["image_embedding"], row["image_embedding"], atol=2e-6)
    assert got["captions"] == row["captions"]
  refused(
    "--shard 1/99: the data has 64 examples; take at most 64 jobs",
    capsys,
    words(folder, tmp_path / "y.npz", "--shard", "1/99"),
  )


def group(count):
  port = free_port()
  return [
    ["--coordinator", f"127.0.0.1:{port}", "--processes", str(count), "--process-id", str(i)]
    for i in range(count)
  ]


@pytest.mark.slow
def test_processes_share_the_parts_and_one_file_comes_out(folder, whole, killed, tmp_path):
  out = tmp_path / "x.array_record"
  shutil.copytree(killed, f"{out}.parts")
  codes, outputs = finish([start(*words(folder, out, "--texts", *more)) for more in group(2)])
  assert codes == [0, 0], outputs
  assert out.read_bytes() == whole.read_bytes()
  assert "63 embeddings" in outputs[0] and "embeddings" not in outputs[1]
  assert [p.name for p in tmp_path.iterdir()] == [out.name]


@pytest.mark.slow
def test_a_process_that_fails_ends_the_others(folder, tmp_path):
  """Both are told: of a flag that differs, and of broken examples that one of them meets."""
  out = tmp_path / "x.npz"
  more = group(2)
  codes, outputs = finish(
    [
      start(*words(folder, out, *more[0])),
      start(*words(folder, out, *more[1], "--dtype", "float16")),
    ]
  )
  assert codes == [1, 1] and all("dtype is 'float32' in process 0" in text for text in outputs)
  data = "slow:max_bad_fraction=0.001"
  codes, outputs = finish([start(*words(folder, out, *more, data=data)) for more in group(2)])
  assert codes == [1, 1], outputs
  assert all("the last, example 9: no picture" in text for text in outputs), outputs
  assert not out.exists()


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_one_goes_on(folder, whole, tmp_path):
  out = tmp_path / "x.array_record"
  started = [start(*words(folder, out, "--texts", *more, seconds="0.1")) for more in group(2)]
  wait_for_parts(out, 2, started)
  started[1].kill()
  codes, outputs = finish(started)
  assert codes[0] != 0 and not out.exists(), outputs
  assert cli.main(words(folder, out, "--texts")) == 0
  assert out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("ending", [".npz", ".parquet", ".array_record"])
def test_texts_alone_need_no_pictures(folder, whole, ending, tmp_path, capsys):
  """Of a table that names pictures which are not there, or has none."""
  captions = [[f"a red circle {i}", "blue"][: 1 + i % 2] if i != 4 else [] for i in range(11)]
  lines = [{"image": f"{i}.jpg", "caption": texts} for i, texts in enumerate(captions)]
  data = f"{tmp_path}/a.jsonl"
  if ending == ".npz":
    lines, data = [{"caption": texts} for texts in captions], f"{data}:image=caption"
  (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  out = tmp_path / f"t{ending}"
  flags = ["--out", str(out), "--texts-only", "--batch-size", "8"]
  arguments = ["embed", "--from", f"{folder}:txt", "--data", data, *flags]
  assert cli.main(arguments) == 0
  assert "11 examples with text embeddings of width 16" in capsys.readouterr().out
  want = siglax.load(f"{folder}:txt").embed_texts([text for texts in captions for text in texts])
  if ending == ".npz":
    with np.load(out) as f:
      found, about = f["text_embeddings"], json.loads(f["siglax"].tobytes())
      assert "image_embedding" not in f and json.loads(f["captions"].tobytes()) == captions
      assert about["digest"] is None and len(about["text_digest"]) == 16
  elif ending == ".array_record":
    (rows,) = embedding_files.rows_of(out, 99)
    assert [row["captions"] for row in rows] == captions
    found = np.concatenate([row["text_embeddings"] for row in rows])
  else:
    import pyarrow.parquet as pq

    table = pq.read_table(out)
    assert table["captions"].to_pylist() == captions and "image_embedding" not in table.column_names
    found = np.array([z for row in table["text_embeddings"].to_pylist() for z in row])
  np.testing.assert_allclose(found, want, atol=2e-6)
  with pytest.raises(ValueError, match=f"t{ending}' holds embeddings of texts alone, and none of"):
    opened(out)


def test_texts_of_a_file_of_embeddings(folder, whole, tmp_path, capsys):
  out = tmp_path / "t.array_record"
  command = lambda tower, *more: ["embed", "--from", f"{folder}{tower}", "--out", str(out), *more]
  data = ["--data", f"embeddings:path={whole}", "--batch-size", "8"]
  for tower, more, said in (
    (":img", ["--texts-only"], "--texts-only needs the captions' embeddings, but --from "),
    ("", ["--texts-only", "--tokens"], "--tokens are of pictures, and --texts-only embeds none"),
    ("", [], '--data: source "embeddings" has no pictures to embed'),
  ):
    refused(said, capsys, command(tower, *data, *more))
  assert cli.main(command(":txt", *data, "--texts-only")) == 0
  (rows,), (want,) = (list(embedding_files.rows_of(file, 99)) for file in (out, whole))
  assert "image_embedding" in want[0] and "image_embedding" not in rows[0]
  for got, row in zip(rows, want, strict=True):
    assert (got["captions"], got.get("label")) == (row["captions"], row.get("label"))
    np.testing.assert_allclose(got["text_embeddings"], row["text_embeddings"], atol=2e-6)


def test_workers_prepare_what_threads_do(tmp_path):
  """Pictures and what else examples have; broken ones and those that are filtered out."""
  for i in range(11):
    cv2.imwrite(str(tmp_path / f"{i:02}.png"), np.full((20 + i, 16, 3), 20 * i, np.uint8))
    (tmp_path / f"{i:02}.txt").write_text("one two three" if i % 3 else "one")
  (tmp_path / "05.png").write_bytes(b"no picture")
  source = open_source(parse_spec(f"{tmp_path}:max_pixels=450"))
  config = tiny.get_config()
  read = prepared.Examples(source, config.image, len_of)
  made = {}
  for workers in (0, 2):
    found = list(prepared.batches(read, [range(2, 7), range(7, 11)], 2, threads=2, workers=workers))
    made[workers] = found
    assert [len(rests) for _, rests in found] == [2, 2, 1, 2, 2]
  for (images, rests), (others, also) in zip(made[0], made[2], strict=True):
    np.testing.assert_array_equal(images[: len(rests)], others[: len(also)])
    assert [str(rest) for rest in rests] == [str(rest) for rest in also]
  rests = [rest for _, rests in made[2] for rest in rests]
  assert rests[0]["captions"] == ["one two three"] and rests[0]["tokens"].tolist() == [[13]]
  assert "cannot be decoded" in rests[3].said and rests[-1] == prepared.LeftOut()


def len_of(texts):
  """Stands for a tokenizer; a function of this file, which a worker can import."""
  return np.array([[len(text)] for text in texts], np.int32).reshape(len(texts), 1)


def test_parts_in_a_bucket(folder, whole, tmp_path, monkeypatch, capsys):
  """A server that refuses one of the parts ends it with one line, and then it goes on."""
  from siglax.data import buckets

  monkeypatch.setattr(buckets, "FIRST_PAUSE", 0.001)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  with servers.s3() as server:
    out = "s3://bucket/made/x.array_record"
    arguments = words(folder, out, "--texts")
    of_part = lambda e: e["REQUEST_METHOD"] == "PUT" and "00003.array_record" in e["PATH_INFO"]
    server.fail = lambda environ: "403 Forbidden" if of_part(environ) else None
    refused("00003.array_record': the server refuses", capsys, arguments)
    server.fail = lambda environ: None
    server.asked.clear()
    assert cli.main(arguments) == 0
    put = {path for method, path in server.asked if method == "PUT" and path.endswith("_record")}
    assert "/bucket/made/x.array_record.parts/00003.array_record" in put
    assert not any("00002" in path for path in put)
    filesystem = servers.s3fs()
    assert filesystem.find("bucket") == ["bucket/made/x.array_record"]
    assert filesystem.cat("bucket/made/x.array_record") == whole.read_bytes()
    refused("exists; give a path that does not", capsys, arguments)
    filesystem.put(str(whole), "bucket/in.array_record")
    data = "embeddings:path=s3://bucket/in.array_record"
    out = tmp_path / "t.npz"
    assert cli.main(words(folder, out, "--texts-only", data=data)) == 0
    with np.load(out) as f:
      assert len(f["text_embeddings"]) == sum(len(row["captions"]) for row in opened(whole))
