"""Data in buckets: fsspec's memory:// and a real S3 server on this machine, moto's."""

import io
import json
import os
import pickle
import tarfile
import threading
import time
import types
import zlib

from conftest import free_port
import cv2
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from siglax import config as config_lib
from siglax.commands import cli
from siglax.data import blocks
from siglax.data import buckets
from siglax.data import index as index_lib
from siglax.data import listing
from siglax.data import pipeline
from siglax.data import remote
from siglax.data import sources
from siglax.data import storage
from siglax.data import text as text_lib
from siglax.data import uploads
from siglax.data.shapes import Shapes

import servers
import tiny

ROWS, SHARDS = 48, 4


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """A folder with the same examples as tars, as pictures with .txt, as Parquet, as ArrayRecord and
  as datasets saves them.
  """
  root = tmp_path_factory.mktemp("data")
  (root / "tars").mkdir()
  (root / "folder/in").mkdir(parents=True)
  examples, rows = Shapes(examples=ROWS, image_size=24), []
  for i in range(ROWS):
    picture = cv2.imencode(".png", examples[i]["image"])[1].tobytes()
    rows.append((f"{i:03}", picture, examples[i]["captions"][0]))
  for shard in range(SHARDS):
    with tarfile.open(root / f"tars/{shard}.tar", "w") as out:
      for key, picture, caption in rows[shard::SHARDS]:
        for ending, content in (("png", picture), ("txt", caption.encode())):
          info = tarfile.TarInfo(f"{key}.{ending}")
          info.size = len(content)
          out.addfile(info, io.BytesIO(content))
  for key, picture, caption in rows:
    (root / f"folder/in/{key}.png").write_bytes(picture)
    (root / f"folder/in/{key}.txt").write_text(caption)
  lines = "".join(f"folder/in/{key}.png,{caption}\n" for key, _, caption in rows)
  (root / "a.csv").write_text(f"image,caption\n{lines}")
  _, pictures, captions = zip(*rows)
  table = pa.table({"image": pictures, "caption": captions})
  pq.write_table(table, root / "a.parquet")
  convert = ["convert", str(root / "a.csv"), str(root / "records"), "--examples-per-shard", "20"]
  assert cli.main(convert) == 0
  (root / "hf").mkdir()
  with pa.ipc.new_stream(root / "hf/data.arrow", table.schema) as out:
    out.write_table(table)
  (root / "hf/state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
  return root


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  """A cache folder of the test's own; small blocks, so that a file has several; no long pauses."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setattr(blocks, "BLOCK", 2**12)
  monkeypatch.setattr(buckets, "FIRST_PAUSE", 0.001)
  buckets._remembered.clear()
  storage._blocks.cache_clear()
  yield tmp_path / "cache"
  storage._blocks.cache_clear()


@pytest.fixture
def memory(data):
  """The URL of a copy in fsspec's memory."""
  filesystem = fsspec.filesystem("memory")
  filesystem.store.clear()
  filesystem.put(f"{data}/", "/bucket/data", recursive=True)
  yield "memory://bucket/data"
  filesystem.store.clear()


@pytest.fixture(scope="module")
def s3_server(data):
  with servers.s3() as server:
    servers.s3fs().put(f"{data}/", "bucket/data", recursive=True)
    yield server


@pytest.fixture
def s3(s3_server):
  """(server, URL of the data)."""
  s3_server.asked.clear()
  yield s3_server, "s3://bucket/data"
  s3_server.fail = lambda environ: None


def batches(spec, count=9, **loader):
  """(the batches of three epochs, examples that were broken)."""
  config = config_lib.default()
  config.data = (sources.parse_spec(spec),)
  config.batch_size, config.image.size, config.image.crop_min_area = 16, 16, 0.5
  config.loader.update(loader)
  it = pipeline.train_batches(config, text_lib.TextProcessor(length=12))
  found = [next(it) for _ in range(count)]
  it.close()
  return found, it.counts["bad"][0]


def same(a, b):
  for x, y in zip(*map(lambda found: found[0], (a, b)), strict=True):
    assert x.keys() == y.keys()
    for name in x:
      np.testing.assert_array_equal(x[name], y[name])
  assert a[1] == b[1] == 0


PATHS = (
  "tars",
  "tars/*.tar",
  "tars/{0..3}.tar",
  "folder",
  "a.csv",
  "a.parquet",
  "records",
  "hf:path=hf",
)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("place", ["memory", "s3"])
def test_batches_are_those_of_a_local_copy(path, place, data, request):
  bucket = request.getfixturevalue(place)
  url = bucket if place == "memory" else bucket[1]
  start, _, name = path.rpartition("=")
  start = start and f"{start}="
  local, far = f"{start}{data}/{name}", f"{start}{url}/{name}"
  same(batches(local, threads=1), batches(far, threads=4))
  if path != "folder":
    shards = f"{',' if start else ':'}order=shards,shuffle_shards=2"
    same(batches(local + shards), batches(far + shards, threads=4))


def test_each_block_is_fetched_once(s3, data):
  server, url = s3
  spec = f"{url}/tars:order=shards,shuffle_shards=2"
  batches(spec, threads=4)
  fetched = [path for method, path in server.asked if method == "GET" and path.endswith(".tar")]
  sizes = [os.path.getsize(data / f"tars/{k}.tar") for k in range(SHARDS)]
  # Each tar's first bytes are looked at too: is it compressed?
  assert len(fetched) == SHARDS + sum(-(-size // blocks.BLOCK) for size in sizes)
  server.asked.clear()
  buckets._remembered.clear()
  batches(spec, threads=4)
  assert not [path for method, path in server.asked if method == "GET" and path.endswith(".tar")]


def test_failing_requests_change_nothing_but_a_count(s3, data, caplog):
  server, url = s3
  seen = set()

  def fail(environ):
    """Of every third request the first try."""
    asked = tuple(environ.get(name) for name in ("REQUEST_METHOD", "PATH_INFO", "HTTP_RANGE"))
    first = asked not in seen
    seen.add(asked)
    return "503 Slow Down" if first and zlib.crc32(repr(asked).encode()) % 3 == 0 else None

  server.fail, before = fail, buckets.failures()
  for order in ("global", "shards"):
    spec = f":order={order}"
    same(batches(f"{data}/tars{spec}"), batches(f"{url}/tars{spec}", threads=4))
  assert buckets.failures() - before > 5
  assert "requests failed and were made again" in caplog.text


def test_a_server_that_fails_stops_a_run_and_breaks_no_example(s3):
  server, url = s3
  source = sources.open_source(sources.parse_spec(f"{url}/tars"))
  source.prepare_random_access()
  server.asked.clear()
  server.fail = lambda environ: "500 Internal Server Error"
  with pytest.raises(buckets.Unreachable, match=r"^'s3://bucket/data/tars/0.tar': tried 6 times"):
    source[0]
  assert len(server.asked) == buckets.TRIES
  config = config_lib.default()
  config.data, config.batch_size = ({"source": "webdataset", "path": f"{url}/tars"},), 16
  it = pipeline.train_batches(config, text_lib.TextProcessor(length=12), sources=[source])
  with pytest.raises(buckets.Unreachable, match="tried 6 times in .*, and the last time: .*Error$"):
    next(it)
  assert it.counts["bad"] == [0]


def test_an_answer_that_was_cut_is_asked_for_again(s3):
  server, url = s3
  path, whole = f"{url}/tars/0.tar", storage.read_all(f"{url}/tars/0.tar")
  buckets.forget(path)
  answer, cut = server._app, []

  def app(environ, start):
    body = b"".join(answer(environ, start))  # its length is told before
    if environ["REQUEST_METHOD"] == "GET" and len(cut) < 2:
      cut.append(len(body))
      return [body[: len(body) // 2]]
    return [body]

  server._app = app
  try:
    assert buckets.fetch(path, 0, len(whole)) == whole and len(cut) == 2
  finally:
    server._app = answer


def test_a_server_on_the_web_that_fails_is_no_missing_file(monkeypatch):
  monkeypatch.setattr(buckets, "TRIES", 2)
  with pytest.raises(buckets.Unreachable, match="tried 2 times in .*: ClientConnectorError: "):
    buckets.look(f"http://127.0.0.1:{free_port()}/a.csv")


def test_a_bucket_that_is_not_there_is_said_so(s3):
  with pytest.raises(
    buckets.Unreachable, match="^'s3://no-bucket/a' cannot be written: there is no"
  ):
    uploads.put("s3://no-bucket/a", b"")


def test_after_an_error_nothing_else_is_begun():
  begun, failed = [], threading.Event()

  def work(k):
    begun.append(k)
    if k == 1:
      failed.set()
      raise ValueError("1")
    failed.wait(30)
    time.sleep(0.05)

  # The first is slow: its result is not waited for before the error of the second is seen.
  with pytest.raises(ValueError, match="1"):
    listing.in_threads(work, range(1000), 2)
  assert len(begun) < 10


def test_what_is_refused_is_not_asked_for_again(s3):
  server, url = s3
  source = sources.open_source(sources.parse_spec(f"{url}/tars"))
  source.prepare_random_access()
  server.fail = lambda environ: "403 Forbidden"
  server.asked.clear()
  with pytest.raises(buckets.Unreachable, match=r"^'s3://bucket/data/tars/0.tar': the server ref"):
    source[0]
  assert len(server.asked) == 1


def refused(message, spec):
  with pytest.raises(ValueError) as e:
    sources.open_source(sources.parse_spec(spec), "config.data.0")
  assert message in str(e.value) and "\n" not in str(e.value), str(e.value)
  assert str(e.value).startswith("config.data.0.")


@pytest.mark.parametrize("place", ["memory", "s3"])
def test_what_is_missing_is_one_line(place, request):
  bucket = request.getfixturevalue(place)
  url = bucket if place == "memory" else bucket[1]
  refused(f"path='{url}/9.tar': no such file", f"{url}/9.tar")
  refused(f"no such file '{url}/tars/4.tar'", f"{url}/tars/{{0..4}}.tar")
  refused(f"path='{url}/x/*.tar': no such file", f"{url}/x/*.tar")
  refused(f"path='{url}/tars' is a folder that holds 4 .tar", f"csv:path={url}/tars")


def test_urls_that_cannot_be_opened():
  refused("path='nothing://a/b.tar' cannot be opened: Pro", "webdataset:path=nothing://a/b.tar")
  for source in ("array_record", "embeddings", "hf"):
    refused("path='memory://a/b': no such file", f"{source}:path=memory://a/b")


def test_a_copy_for_which_there_is_no_room_is_one_line(memory, monkeypatch):
  full = types.SimpleNamespace(free=100)
  monkeypatch.setattr(remote.shutil, "disk_usage", lambda folder: full)
  refused("bytes are more than the 100 that are free; make room", f"{memory}/records")


def test_another_content_is_read_anew(memory, data):
  path = f"{memory}/tars/0.tar"
  first = storage.read(path, 0, 600)
  stamp = storage.stamp(path)
  other = (data / "tars/1.tar").read_bytes()
  fsspec.filesystem("memory").pipe_file("/bucket/data/tars/0.tar", other)
  buckets._remembered.clear()
  assert storage.stamp(path) != stamp
  assert storage.read(path, 0, 600) == other[:600] != first


def test_reads_of_any_offset(memory, data):
  content, path = (data / "a.parquet").read_bytes(), f"{memory}/a.parquet"
  rng = np.random.default_rng(0)
  for alone in (False, True):
    for _ in range(30):
      offset = int(rng.integers(len(content)))
      length = int(rng.integers(len(content) - offset + 1))
      assert storage.read(path, offset, length, alone) == content[offset : offset + length]
    with pytest.raises(ValueError, match="ends at byte"):
      storage.read(path, len(content) - 1, 2, alone)
  assert storage.read_all(path) == content
  with pytest.raises(ValueError, match="more than 9"):
    storage.read_all(path, 9)


def test_blocks_keep_to_their_limit(memory, data, cache, monkeypatch):
  content = (data / "a.parquet").read_bytes()
  monkeypatch.setenv(blocks.VARIABLE, str(2 * blocks.BLOCK))
  for _ in range(3):
    for offset in range(0, len(content) - 9, 999):
      assert storage.read(f"{memory}/a.parquet", offset, 9) == content[offset : offset + 9]
  monkeypatch.setattr(blocks, "AHEAD", 0)
  storage.read(f"{memory}/folder/in/000.png", 0, 9)
  held = sum(file.stat().st_size for file in (cache / "siglax/blocks").rglob("*") if file.is_file())
  assert held <= (2 + blocks.AHEAD) * blocks.BLOCK
  monkeypatch.setenv(blocks.VARIABLE, "much")
  with pytest.raises(ValueError, match="SIGLAX_CACHE_BYTES='much' must be a whole number"):
    blocks.limit(cache)


def test_a_block_that_was_cut_short_is_fetched_again(memory, data, cache):
  content = (data / "a.parquet").read_bytes()
  storage.read(f"{memory}/a.parquet", 0, 9)
  for file in (cache / "siglax/blocks").glob("*/*"):
    file.write_bytes(b"")
  assert storage.read(f"{memory}/a.parquet", 0, 9) == content[:9]


def test_more_shards_than_the_disk_holds_are_refused(memory, monkeypatch):
  monkeypatch.setenv(blocks.VARIABLE, str(200_000))
  config = config_lib.default()
  config.data, config.batch_size = (sources.parse_spec(f"{memory}/tars:order=shards"),), 16
  with pytest.raises(ValueError, match=r"config.data.0.shuffle_shards=64: there is room for 2 of"):
    pipeline.train_batches(config, text_lib.TextProcessor(length=12))


def test_an_index_is_kept_on_this_machine(memory, cache, monkeypatch):
  first = sources.open_source(sources.parse_spec(f"{memory}/tars"))
  assert len(list((cache / "siglax").glob(f"*{storage.INDEX_ENDING}"))) == SHARDS
  monkeypatch.setattr(index_lib, "_keep", None)
  again = sources.open_source(sources.parse_spec(f"{memory}/tars"))
  assert [again[i] for i in range(ROWS)] == [first[i] for i in range(ROWS)]
  assert pickle.loads(pickle.dumps(again))[5] == first[5]


def test_a_tokenizer_in_a_bucket(memory, data):
  url = f"{memory}/shapes.model"
  model = text_lib.TextProcessor()
  fsspec.filesystem("memory").pipe_file(
    "/bucket/data/shapes.model", text_lib.SHIPPED["shapes"].read_bytes()
  )
  other = text_lib.TextProcessor(url)
  np.testing.assert_array_equal(other(["a red square"]), model(["a red square"]))
  with pytest.raises(
    ValueError, match=f"^config.text.tokenizer='{memory}/x.model': .*No such file"
  ):
    text_lib.TextProcessor(f"{memory}/x.model")


def test_copies_of_folders(memory, data):
  copy = remote.copied(f"{memory}/folder")
  assert sorted(os.listdir(f"{copy}/in")) == sorted(os.listdir(data / "folder/in"))
  for name in os.listdir(f"{copy}/in"):
    assert open(f"{copy}/in/{name}", "rb").read() == (data / "folder/in" / name).read_bytes()
  assert remote.copied(f"{memory}/folder/") == copy
  assert remote.copied(str(data)) == str(data)


def train(workdir, data, *more, steps=20):
  """The losses of a run on tars."""
  spec = {"source": "webdataset", "path": f"{data}/tars", "order": "shards", "shuffle_shards": 2}
  flags = ("--config", tiny.__file__, "--workdir", str(workdir), "--config.eval.tasks=()")
  flags += (f"--config.total_steps={steps}", f"--config.data=({spec},)")
  assert cli.main(["train", *flags, *more]) == 0
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [line["loss"] for line in map(json.loads, lines) if "loss" in line]


@pytest.mark.slow
def test_training_from_s3_is_training_from_the_disk(s3, data, tmp_path):
  """Parameters to start from, too; while one of twenty requests fails."""
  server, url = s3
  rng, lock = np.random.default_rng(1), threading.Lock()

  def fail(environ):
    with lock:
      return "500 Internal Server Error" if rng.random() < 0.05 else None

  train(tmp_path / "first", data, steps=2)
  servers.s3fs().put(str(tmp_path / "first"), "bucket/data/run", recursive=True)
  server.fail = fail
  want = train(tmp_path / "a", data, f"--config.model.init_from={tmp_path}/first")
  got = train(tmp_path / "b", url, f"--config.model.init_from={url}/run")
  assert len(want) == 20 and want == got


def test_commands_write_to_buckets_what_they_do_to_disks(memory, data, tmp_path, capsys):
  filesystem = fsspec.filesystem("memory")
  for command, ending in (
    (["tokenizer", "--from", str(data / "a.csv"), "--vocab-size", "60"], ".model"),
    (["inspect", str(data / "a.csv"), "--pictures", "4"], ".png"),
  ):
    url = f"memory://bucket/made/x{ending}"
    for out in (str(tmp_path / f"x{ending}"), url):
      assert cli.main([*command, "--out", out]) == 0, capsys.readouterr().err
    assert filesystem.cat(f"/bucket/made/x{ending}") == (tmp_path / f"x{ending}").read_bytes()
    assert cli.main([*command, "--out", url]) == 1
    assert f"--out {url} exists; give a path that does not" in capsys.readouterr().err
  assert text_lib.TextProcessor(url.replace(".png", ".model"), length=9)("red").shape == (1, 9)
