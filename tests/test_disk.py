"""Files that appear whole or not at all."""

import os
import resource
import time

import pytest

from siglax.devices import disk


def test_what_a_killed_process_left_is_removed_when_it_is_old(tmp_path):
  old, young, other = (tmp_path / f".a[1].{digit * 16}.json" for digit in ("0", "1", "f"))
  unlike = tmp_path / ".a[1].json", tmp_path / f".b.{'0' * 16}.json"
  for path in (old, young, *unlike):
    path.write_text("half")
  other.mkdir()  # a folder that was being made
  (other / "x").write_text("half")
  past = time.time() - disk.STALE_SECONDS - 60
  for path in (old, other, *unlike):
    os.utime(path, (past, past))
  disk.write_atomic(tmp_path / "a[1].json", b"whole")
  assert (tmp_path / "a[1].json").read_bytes() == b"whole"
  assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "a[1].json", young, *unlike])


def test_an_error_leaves_the_old_file_and_no_other(tmp_path):
  path = tmp_path / "a.json"
  disk.write_atomic(path, b"old")
  with pytest.raises(KeyboardInterrupt), disk.replacing(path) as temporary:
    temporary.write_bytes(b"new")
    raise KeyboardInterrupt
  assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_names_the_file(tmp_path):
  """The limit of a file's size fails as a full disk does, without a name of its own."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
  try:
    with pytest.raises(OSError) as e:
      disk.write_atomic(tmp_path / "a.json", bytes(2000))
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert e.value.filename == str(tmp_path / "a.json") and not list(tmp_path.iterdir())
