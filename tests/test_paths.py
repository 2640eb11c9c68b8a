"""siglax.data.paths and storage: what a path means, as a shell says, and what a mistaken one is
told.
"""

import concurrent.futures
import os
import pathlib
import re
import resource
import subprocess

import pytest

from siglax import config as config_lib
from siglax.config import values
from siglax.data import broken
from siglax.data import paths
from siglax.data import sources
from siglax.data import storage
from siglax.devices import errors


@pytest.mark.parametrize(
  "pattern",
  [
    "{00000..00041}.tar",
    "a-{8..12}-{x,y}.tar",
    "{a,b{1,2},}c",
    "{5..3}",
    "{007..9}",
    "{a}{b,c}",
    "{,x}{",
    "}{a,b}{1..}",
    "plain",
  ],
)
def test_braces_are_a_shell_s(pattern):
  said = subprocess.run(["bash", "-c", f"printf '%s\\n' {pattern}"], capture_output=True, text=True)
  assert paths._expand(pattern) == said.stdout.splitlines()


def test_a_path_means_files_in_its_order(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  names = ["a.parquet", "b.parquet", "b1.parquet", "c,d.parquet", "{x,y}.parquet", "[1].parquet"]
  for name in names:
    (tmp_path / name).write_text(name)
  find = lambda path: paths.find(path, "parquet")
  assert find("b*.parquet, a.parquet") == ["b.parquet", "b1.parquet", "a.parquet"]
  assert find("{b,a}.parquet,b1.parquet") == ["b.parquet", "a.parquet", "b1.parquet"]
  for literal in ("c,d.parquet", "{x,y}.parquet", "[1].parquet"):
    assert find(literal) == [literal]
    assert find([tmp_path / literal, "a.parquet"]) == [str(tmp_path / literal), "a.parquet"]
  (tmp_path / f"a.parquet{storage.INDEX_ENDING}").write_text("")
  assert find("a*") == ["a.parquet"]
  for pattern in ("{a,z}.parquet", "z.parquet", "z*.parquet"):
    started = rf"^path='{re.escape(pattern)}': no such file.* from '{tmp_path}' on$"
    with pytest.raises(ValueError, match=started):
      find(pattern)
  assert paths.find("{a,z}.parquet", "parquet", missing=True) == ["a.parquet", "z.parquet"]
  with pytest.raises(ValueError, match="no such file"):
    paths.find("z*.parquet", "parquet", missing=True)
  for many in ("{1..99999999}", "{1..9999}{1..9999}"):
    with pytest.raises(ValueError, match="stands for more than 1,000,000 files"):
      find(many)
  with pytest.raises(ValueError, match="path has more than 100 braces"):
    find("{a," * 5000 + "}" * 5000)


def test_a_mistaken_path_is_told_what_is_there(tmp_path):
  def refused(path):
    with pytest.raises(ValueError) as e:
      sources.open_source({"source": "parquet", "path": str(path)}, "config.data.0")
    return str(e.value).removeprefix("config.data.0.")

  (tmp_path / "empty").mkdir()
  assert refused(tmp_path / "empty").endswith("holds no files; source parquet reads .parquet")
  (tmp_path / "deep/er").mkdir(parents=True)
  (tmp_path / "deep/er/a.parquet").write_text("")
  assert refused(tmp_path / "deep").endswith(f"is a folder; use '{tmp_path}/deep/**/*.parquet'")
  (tmp_path / "rows").mkdir()
  for name in ("a.npz", "b.npz"):
    (tmp_path / "rows" / name).write_text("")
  assert refused(tmp_path / "rows").endswith(
    f"is a folder that holds 2 .npz: use source embeddings with path='{tmp_path}/rows/*.npz'"
  )
  assert refused(tmp_path / "rows/a.npz").endswith("is a npz: use source embeddings")


@pytest.mark.parametrize(
  "text, parts",
  [
    ("train=a.parquet,b.parquet", ["train=a.parquet,b.parquet"]),
    ("train={a,b}.tar,smoke=True", ["train={a,b}.tar", "smoke=True"]),
    ("a=1,b=2,3,c=4,", ["a=1", "b=2,3", "c=4"]),
    ("x,a=1", ["x", "a=1"]),
    ("", []),
  ],
)
def test_a_value_may_hold_commas(text, parts):
  assert values.arguments(text) == parts


def test_arguments_of_a_config_and_of_a_spec_may_hold_commas(tmp_path):
  (tmp_path / "c.py").write_text(
    "from siglax import config\ndef get_config(train, seed=0):\n  c = config.default()\n"
    "  c.data = ({'source': 'parquet', 'path': train},)\n  c.seed = seed\n  return c\n"
  )
  c = config_lib.load(f"{tmp_path}/c.py:train=a.parquet,b-{{1,2}}.parquet,seed=3")
  assert c.data[0]["path"] == "a.parquet,b-{1,2}.parquet" and c.seed == 3
  assert sources.parse_spec("parquet:path=a.parquet,b.parquet,weight=2") == {
    "source": "parquet",
    "path": "a.parquet,b.parquet",
    "weight": 2,
  }


def test_an_argument_of_a_config_may_have_fields(tmp_path):
  (tmp_path / "c.py").write_text(
    "from siglax import config\nfrom siglax.config import lookups\n"
    "def get_config(train, test='', smoke=False):\n  c = config.default()\n"
    "  c.data = (lookups.spec_of(train),)\n  c.seed = int(smoke)\n  return c\n"
  )
  c = config_lib.load(f"{tmp_path}/c.py:train=a.csv:caption=x,y,weight=2,smoke=True")
  spec = {"source": "csv", "path": "a.csv", "caption": "x,y", "weight": 2}
  assert dict(c.data[0]) == spec and c.seed == 1
  for words in ("train=a.csv,weight=2", "weight=2,train=a.csv:caption=x"):
    with pytest.raises(ValueError, match="weight=2: arguments are train=…, test=…, smoke=…$"):
      config_lib.load(f"{tmp_path}/c.py:{words}")


def test_the_source_of_several_paths_is_that_of_the_first(tmp_path):
  for name in ("a", "b:c", "b:c/d"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "1.jpg").write_bytes(b"")
    (tmp_path / name / "1.txt").write_bytes(b"x")
  (tmp_path / "tars").mkdir()
  (tmp_path / "tars/1.tar").write_bytes(b"")
  a, t = str(tmp_path / "a"), str(tmp_path / "tars")
  for path in (a, f"{a},{t}", f"{tmp_path}/{{a,b:c}}", f"{tmp_path}/a*", f"{tmp_path}/b:c"):
    assert sources.parse_spec(path) == {"source": "folder", "path": path}
  assert sources.parse_spec(f"{tmp_path}/b:c/d:weight=2")["path"] == f"{tmp_path}/b:c/d"
  assert sources.parse_spec(f"{t},{a}")["source"] == "webdataset"
  assert sources.parse_spec("a.json")["source"] == "jsonl"
  with pytest.raises(ValueError, match="'title' must be field=value"):
    sources.parse_spec("a.csv:title")


def test_files_are_read_from_threads_and_few_are_open(tmp_path, monkeypatch):
  monkeypatch.setattr(storage, "MAX_OPEN", 8)
  names = [str(tmp_path / str(i)) for i in range(60)]
  for i, name in enumerate(names):
    (tmp_path / str(i)).write_bytes(b"%04d" % i * 1000)
  read = lambda k: storage.read(names[k % 60], 4 * (k % 999), 4)
  before = len(os.listdir("/proc/self/fd"))
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    found = list(pool.map(read, range(6000)))
  assert found == [b"%04d" % (k % 60) for k in range(6000)]
  assert len(os.listdir("/proc/self/fd")) <= before + 8
  with pytest.raises(ValueError, match="ends at byte 4000, before 4001"):
    storage.read(names[0], 3999, 2)
  os.replace(names[1], names[0])  # another file of the name, once it is looked at
  assert storage.size(names[0]) == 4000 and storage.read(names[0], 0, 4) == b"0001"


def test_a_process_with_few_descriptors_reads_many_files(tmp_path):
  names = [str(tmp_path / str(i)) for i in range(100)]
  for name in names:
    pathlib.Path(name).write_text(name)
  limits = resource.getrlimit(resource.RLIMIT_NOFILE)
  few = max(map(int, os.listdir("/proc/self/fd"))) + 10
  resource.setrlimit(resource.RLIMIT_NOFILE, (few, limits[1]))
  try:
    assert [storage.read(name, 0, len(name)).decode() for name in names] == names
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("number", errors.PASSING)
def test_a_machine_that_fails_is_asked_again_and_breaks_no_example(number, tmp_path, monkeypatch):
  monkeypatch.setattr(errors, "RETRY_SECONDS", (0.0, 0.0))
  (tmp_path / "a").write_text("x")
  open_file, left = os.open, [2]

  def fails(*arguments, **options):
    left[0] -= 1
    if left[0] >= 0:
      raise OSError(number, os.strerror(number))
    return open_file(*arguments, **options)

  monkeypatch.setattr(os, "open", fails)
  assert storage.read_all(str(tmp_path / "a")) == b"x"
  left[0] = 99
  with pytest.raises(storage.Unreachable, match=f"a': {os.strerror(number)}; no file can be read"):
    storage.read_all(str(tmp_path / "a"))
  assert issubclass(storage.Unreachable, broken.NOT_BROKEN) and MemoryError in broken.NOT_BROKEN


def test_what_is_no_file_is_refused_at_once(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  (tmp_path / "large").write_bytes(b"12345")
  for call, name, said in (
    (storage.read_all, "pipe", "is no file"),
    (storage.size, "pipe", "is no file"),
    (storage.read_all, "gone", "No such file"),
    (storage.read_all, "nul\0", "null byte"),
    (lambda path: storage.read_all(path, 4), "large", "has 5 bytes, more than 4"),
  ):
    with pytest.raises(ValueError, match=said):
      call(str(tmp_path / name))


def test_folders_are_walked_once_and_in_order(tmp_path):
  for name in ("b/2", "b/1", "a/x/1", "top", ".hidden/1", "a/.2"):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("")
  (tmp_path / "a/up").symlink_to(tmp_path)
  (tmp_path / "c").symlink_to(tmp_path / "b")
  (tmp_path / "gone").symlink_to(tmp_path / "nothing")
  (tmp_path / "b/itself").symlink_to(tmp_path / "b/itself")
  assert list(storage.walk(str(tmp_path))) == [
    ("", ["gone", "top"]),
    ("a", []),
    ("a/x", ["1"]),
    ("b", ["1", "2", "itself"]),
  ]
