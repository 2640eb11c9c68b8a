"""One writer at a time in a run folder, and no folder that stays locked."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from siglax.runs import lock

# Takes the lock, says so, and lets it go when its input ends. Times of the lock in seconds as
# arguments.
HOLDER = """
import sys
from siglax.runs import lock
lock.HEARTBEAT_SECONDS, lock.STALE_SECONDS = map(float, sys.argv[2:])
try:
  with lock.Lock(sys.argv[1]) as held:
    print("held", flush=True)
    sys.stdin.read()
    held.check()
except ValueError as e:
  print(e, flush=True)
"""


def start(folder, heartbeat=10.0, stale=60.0):
  command = [sys.executable, "-c", HOLDER, str(folder), str(heartbeat), str(stale)]
  return subprocess.Popen(
    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
  )


def elsewhere(folder, **changes):
  """Rewrites the lock as if its holder were on another host."""
  file = folder / lock.FILE
  file.write_text(json.dumps({**json.loads(file.read_text()), "host": "another", **changes}))


def age(folder, seconds):
  now = time.time()
  os.utime(folder / lock.FILE, (now - seconds, now - seconds))


def test_a_second_one_is_told_who_holds_it(tmp_path):
  with lock.Lock(tmp_path) as held:
    there = json.loads((tmp_path / lock.FILE).read_text())
    assert (there["host"], there["process"]) == (socket.gethostname(), os.getpid())
    with pytest.raises(
      ValueError,
      match=f"is in use: process {os.getpid()} on {socket.gethostname()} trains there since",
    ) as error:
      lock.Lock(tmp_path)
    assert "\n" not in str(error.value)
    held.check()
  assert list(tmp_path.iterdir()) == []
  with lock.Lock(tmp_path):
    pass


@pytest.mark.parametrize("reaped", [True, False])
def test_the_lock_of_a_dead_process_is_taken_over_at_once(reaped, tmp_path):
  holder = start(tmp_path)
  assert holder.stdout.readline() == "held\n"
  holder.send_signal(signal.SIGKILL)
  if reaped:
    holder.wait()
  else:  # a zombie, as in a container whose first process waits for nobody
    while "Z" not in open(f"/proc/{holder.pid}/stat").read().rpartition(")")[2]:
      time.sleep(0.01)
  with lock.Lock(tmp_path) as held:
    assert held.held()
  holder.wait()


def test_a_process_number_that_is_used_again_is_another_process(tmp_path):
  with lock.Lock(tmp_path):
    file = tmp_path / lock.FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), "process": 1, "key": "another"}))
    with lock.Lock(tmp_path) as held:
      assert held.held()


def test_of_another_host_a_touch_tells_that_it_lives(tmp_path, monkeypatch):
  monkeypatch.setattr(lock, "STALE_SECONDS", 60)
  holder = start(tmp_path, heartbeat=0.5)
  assert holder.stdout.readline() == "held\n"
  elsewhere(tmp_path)
  age(tmp_path, 30)
  with pytest.raises(ValueError, match="is in use: process [0-9]+ on another"):
    lock.Lock(tmp_path)
  holder.communicate()


@pytest.mark.parametrize("content", [None, "", "{", "[]", "null", "{}", '{"host": 3}', "\xff"])
def test_a_lock_that_is_old_or_broken_is_taken_over_once_it_is_stale(
  content, tmp_path, monkeypatch
):
  first = lock.Lock(tmp_path)
  if content is None:
    elsewhere(tmp_path, key="another")
  else:
    (tmp_path / lock.FILE).write_bytes(content.encode("latin-1"))
  age(tmp_path, lock.STALE_SECONDS + 1)
  with lock.Lock(tmp_path) as held:
    assert held.held() and not first.held()
    with pytest.raises(
      ValueError,
      match=f"no longer this process's: process {os.getpid()} on {socket.gethostname()} has taken "
      "the run folder over",
    ):
      first.check()
    first.release()  # which is no longer its own
    assert held.held()


def test_a_young_lock_of_another_host_is_waited_for(tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(lock, "STALE_SECONDS", 1.5)
  lock.Lock(tmp_path)
  elsewhere(tmp_path, key="another")
  begin = time.monotonic()
  with lock.Lock(tmp_path):
    assert time.monotonic() - begin >= 1.4
  assert "waiting up to" in caplog.text and "is dead; taking it over" in caplog.text


def test_a_lock_from_the_future_that_nobody_touches_is_taken_over(tmp_path, monkeypatch):
  monkeypatch.setattr(lock, "STALE_SECONDS", 1.5)
  lock.Lock(tmp_path)
  elsewhere(tmp_path, key="another")
  age(tmp_path, -7200)
  with lock.Lock(tmp_path) as held:
    assert held.held()


def test_the_clocks_of_hosts_may_differ(tmp_path, monkeypatch):
  """Ages are differences of two times of files."""
  monkeypatch.setattr(lock, "STALE_SECONDS", 3)
  holder = start(tmp_path, heartbeat=0.2)
  assert holder.stdout.readline() == "held\n"
  elsewhere(tmp_path)
  real = time.time
  monkeypatch.setattr(time, "time", lambda: real() + 3600)
  with pytest.raises(ValueError, match="is in use"):
    lock.Lock(tmp_path)
  holder.communicate()


def test_a_holder_that_was_stopped_finds_it_taken_over(tmp_path, monkeypatch):
  monkeypatch.setattr(lock, "STALE_SECONDS", 1)
  holder = start(tmp_path, heartbeat=0.2)
  assert holder.stdout.readline() == "held\n"
  elsewhere(tmp_path)
  holder.send_signal(signal.SIGSTOP)
  with lock.Lock(tmp_path) as held:
    holder.send_signal(signal.SIGCONT)
    out, _ = holder.communicate(timeout=60)
    assert (
      f"process {os.getpid()} on {socket.gethostname()} has taken the run folder over; this "
      "process saves nothing more" in out
    )
    assert held.held()


def test_of_two_starters_one_gets_it(tmp_path):
  """Ten pairs at once, each at a lock of a dead process or at none."""
  dead = start(tmp_path)
  dead.stdout.readline()
  dead.kill()
  dead.wait()
  content = (tmp_path / lock.FILE).read_bytes()
  for i in range(10):
    (tmp_path / str(i)).mkdir()
    if i % 2:
      (tmp_path / str(i) / lock.FILE).write_bytes(content)
  # Two processes go through the ten folders together; each line is of one folder.
  racer = """
import sys, time
from siglax.runs import lock
held = []
for i in range(10):
  time.sleep(max(0, float(sys.argv[2]) + 0.1 * i - time.time()))
  try:
    held.append(lock.Lock(f"{sys.argv[1]}/{i}"))
    print("held")
  except ValueError as e:
    print("is in use" in str(e) and "refused")
sys.stdout.flush()
sys.stdin.read()
"""
  at = str(time.time() + 2.5)
  racers = [
    subprocess.Popen(
      [sys.executable, "-c", racer, str(tmp_path), at],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    for _ in range(2)
  ]
  first, second = ([r.stdout.readline().strip() for _ in range(10)] for r in racers)
  assert [sorted(pair) for pair in zip(first, second)] == [["held", "refused"]] * 10
  for r in racers:
    r.communicate()


def test_a_lock_that_somebody_deleted_is_taken_again(tmp_path):
  with lock.Lock(tmp_path) as held:
    (tmp_path / lock.FILE).unlink()
    held.check()
    assert held.held()


def test_a_disk_that_fails_ends_nothing(tmp_path, monkeypatch, caplog):
  held = lock.Lock(tmp_path)

  def fails(path):
    raise OSError(5, "Input/output error")

  with monkeypatch.context() as patch:
    patch.setattr(lock.pathlib.Path, "read_bytes", fails)
    held.check()
    held.release()
  assert "cannot be read now: Input/output error" in caplog.text and held.held()
