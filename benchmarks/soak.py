"""A training that is attacked again and again, and must end as if nothing had been.

    python benchmarks/soak.py --minutes 30 --every 20 --seed 0        the quickstart's model
    python benchmarks/soak.py --tiny --counts kill=60,full=20,double=10
    python benchmarks/soak.py --tiny --processes 2 --faults kill,term,hup,damage
    python benchmarks/soak.py --here --counts damage=200,transient=40,nonfinite=200

A supervisor trains one config again and again, in a new folder each time. It injects a fault,
seeded, every --every seconds, and starts the same command again after each end, as a cluster does.
It checks that no failure hangs for more than END_SECONDS or leaves a traceback, that no checkpoint
is lost but by its damage, and that the parameters at the end of each training are bit for bit those
of a run which nothing disturbed. It prints a table of the faults, and of the memory and the
descriptors of long starts. --here runs short trainings inside of this process instead: many more an
hour. Faults that need to mount a small tmpfs (full, inodes, readonly) are left out without the
right to.
"""

import argparse
import collections
import contextlib
import json
import logging
import os
import pathlib
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
CHILD = ROOT / "tests" / "faults" / "child.py"
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "faults")]

END_SECONDS = 30
START_SECONDS = 600
WAIT_SECONDS = 60  # of a group's processes for each other at the start
TMPFS_MIB, TMPFS_INODES = 96, 3000
LONG_SECONDS = 20  # of a start whose memory is worth a line
MOMENTS = ("start-up", "step", "save", "deletion", "evaluation", "last step")
KINDS = ("EIO", "ESTALE", "ETIMEDOUT", "EMFILE", "memory", "exhausted")


class Failed(Exception):
  """The run did not do what it promises."""


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--minutes", type=float, default=30)
  parser.add_argument(
    "--every", type=float, default=20, metavar="SECONDS", help="between two faults"
  )
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument(
    "--faults", help=f"names, separated by commas; all by default: {', '.join(FAULTS)}"
  )
  parser.add_argument(
    "--counts", help="fault=number, separated by commas: so many of each, instead of --minutes"
  )
  parser.add_argument(
    "--tiny", action="store_true", help="tests/tiny.py instead of the quickstart's model"
  )
  parser.add_argument("--steps", type=int, help="of each training")
  parser.add_argument("--processes", type=int, default=1)
  parser.add_argument(
    "--here", action="store_true", help=f"short trainings in this process, with {', '.join(HERE)}"
  )
  arguments = parser.parse_args()
  for name in ("siglax", "absl"):
    logging.getLogger(name).setLevel(logging.CRITICAL)
  counts = {
    name: int(number)
    for name, _, number in (
      item.partition("=") for item in (arguments.counts or "").split(",") if item
    )
  }
  known = HERE if arguments.here else FAULTS
  names = list(counts) or (arguments.faults.split(",") if arguments.faults else list(known))
  if unknown := set(names) - set(known):
    parser.error(f"unknown faults: {', '.join(unknown)}; known are {', '.join(known)}")
  print(f"{platform.platform()}, {os.cpu_count()} CPUs, seed {arguments.seed}", flush=True)
  with tempfile.TemporaryDirectory(prefix="siglax-soak-") as folder:
    table = (
      run_here(counts, arguments.seed, pathlib.Path(folder))
      if arguments.here
      else Soak(arguments, names, counts, pathlib.Path(folder)).run()
    )
  print_table(table)
  sys.exit(any(row["failed"] for row in table.values()))


def print_table(table):
  print(f"\n{'fault':<22}{'tried':>7}{'survived':>10}{'lost steps':>17}{'recovery s':>17}")
  for name, row in sorted((name, row) for name, row in table.items() if row["tried"]):
    spans = [
      f"{np.median(x):.0f} (max {max(x):.0f})" if x else "" for x in (row["lost"], row["recovery"])
    ]
    survived = row["tried"] - len(row["failed"])
    print(f"{name:<22}{row['tried']:>7}{survived:>10}{spans[0]:>17}{spans[1]:>17}")
  for name, row in table.items():
    for reason in row["failed"]:
      print(f"FAILED {name}: {reason}")


def empty_table():
  return collections.defaultdict(lambda: {"tried": 0, "failed": [], "lost": [], "recovery": []})


class Start:
  """One start of the command: its processes, their output, and their memory and descriptors over
  time.
  """

  def __init__(self, soak, folder, faults=None):
    self.folder, self.log = folder, soak.scratch / f"start-{soak.starts}.log"
    soak.starts += 1
    self.begin, self.samples, self.processes = time.monotonic(), [], []
    self.hit = None  # (time, step) of the last signal
    with socket.socket() as s:
      s.bind(("127.0.0.1", 0))
      port = s.getsockname()[1]
    for i in range(soak.count):
      group = (
        [
          "--coordinator",
          f"127.0.0.1:{port}",
          "--processes",
          str(soak.count),
          "--process-id",
          str(i),
          "--wait",
          str(WAIT_SECONDS),
        ]
        if soak.count > 1
        else []
      )
      command = [
        sys.executable,
        str(CHILD),
        json.dumps(faults or {}),
        *soak.command,
        "--workdir",
        str(folder),
        *group,
      ]
      with self.log.with_suffix(f".{i}").open("wb") as out:
        self.processes.append(
          subprocess.Popen(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=soak.environment,
            start_new_session=True,
          )
        )

  def output(self) -> str:
    return "".join(
      self.log.with_suffix(f".{i}").read_text(errors="replace") for i in range(len(self.processes))
    )

  def ended(self) -> bool:
    return all(p.poll() is not None for p in self.processes)

  def codes(self):
    return [p.poll() for p in self.processes]

  def step(self) -> int:
    """Of the last whole lines of the run's metrics; 0 before the first."""
    try:
      lines = (self.folder / "metrics.jsonl").read_bytes().rpartition(b"\n")[0].splitlines()[-3:]
      return max((json.loads(line)["step"] for line in lines), default=0)
    except (OSError, ValueError, KeyError):
      return 0

  def trains(self) -> bool:
    return "\nstep " in self.output() or self.output().startswith("step ")

  def sample(self):
    for p in self.processes[:1]:
      with contextlib.suppress(OSError, IndexError, ValueError):
        status = pathlib.Path(f"/proc/{p.pid}/status").read_text()
        rss = int(status.split("VmRSS:")[1].split()[0]) / 1024
        self.samples.append(
          (time.monotonic() - self.begin, rss, len(os.listdir(f"/proc/{p.pid}/fd")), self.step())
        )

  def signal(self, number, which=None):
    self.hit = time.monotonic(), self.step()
    for p in self.processes if which is None else [self.processes[which]]:
      with contextlib.suppress(ProcessLookupError):
        p.send_signal(number)

  def wait(self, condition, seconds: float, pause: float = 0.01) -> bool:
    """Until condition() or the end of all processes; whether the condition came true. Samples the
    memory meanwhile.
    """
    deadline, sampled = time.monotonic() + seconds, 0.0
    while time.monotonic() < deadline:
      if condition():
        return True
      if self.ended():
        return condition()
      if time.monotonic() - sampled > 1:
        self.sample()
        sampled = time.monotonic()
      time.sleep(pause)
    return condition()


class Soak:
  """The supervisor."""

  def __init__(self, arguments, names, counts, scratch):
    self.scratch, self.count, self.rng = (
      scratch,
      arguments.processes,
      np.random.default_rng(arguments.seed),
    )
    self.left, self.names, self.every = dict(counts), names, 0.3 if counts else arguments.every
    self.deadline = None if counts else time.monotonic() + 60 * arguments.minutes
    self.starts = self.trainings = 0
    self.long_starts, self.table = [], empty_table()
    self.mounted = self._mount()
    if not self.mounted:
      print("no right to mount a tmpfs: full, inodes and readonly are left out", flush=True)
      self.names = [name for name in self.names if name not in ("full", "inodes", "readonly")]
      self.left = {name: number for name, number in self.left.items() if name in self.names}
    steps = arguments.steps or (400 if arguments.tiny else 1400)
    config = ROOT / ("tests/tiny.py" if arguments.tiny else "configs/quickstart.py")
    self.command = ["train", "--config", f"{config}:steps={steps}"]
    self.saved_every = steps // 40
    self.command += [
      f"--config.checkpoint.every_steps={self.saved_every}",
      f"--config.eval.every_steps={steps // 4}",
      "--config.log.every_steps=1",
    ]
    if arguments.tiny:
      self.command += [
        "--config.data.0.examples=2048",
        "--config.eval.tasks=({'kind':'loss','name':'test','examples':16,"
        "'data':{'source':'shapes','split':'test','image_size':16}},)",
      ]
    if "worker" in names:
      self.command += ["--config.loader.workers=1"]
    self.steps = steps
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(scratch / "cache"))
    self.environment = {
      **os.environ,
      "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu"),
      "JAX_COMPILATION_CACHE_DIR": cache,
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }

  def run(self):
    try:
      self.want = self._undisturbed()
      while not self._over():
        self._training()
    finally:
      if self.mounted:
        subprocess.run(["umount", "-l", str(self.disk)], check=False)
    self._print_memory()
    return self.table

  def _mount(self) -> bool:
    self.disk = self.scratch / "disk"
    self.disk.mkdir()
    options = f"size={TMPFS_MIB}m,nr_inodes={TMPFS_INODES}"
    return (
      subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.disk)], capture_output=True
      ).returncode
      == 0
    )

  def _over(self) -> bool:
    return time.monotonic() > self.deadline if self.deadline else not any(self.left.values())

  def _undisturbed(self):
    begin = time.monotonic()
    start = Start(self, self.scratch / "undisturbed")
    start.wait(start.ended, START_SECONDS)
    if start.codes() != [0] * self.count:
      raise SystemExit(f"the undisturbed run failed: {start.output()[-3000:]}")
    print(f"undisturbed: {self.steps} steps in {time.monotonic() - begin:.0f} s", flush=True)
    self._remember(start)
    return final_state(start.folder)

  def _training(self):
    """From the first step to the last, with a fault every now and then."""
    folder = self.disk / f"run-{self.trainings}"
    self.trainings += 1
    self.damaged = set()  # steps of the checkpoints that a fault damaged
    start, next_fault = (
      Start(self, folder),
      time.monotonic() + self.every * self.rng.uniform(0.5, 1.5),
    )
    while True:
      if start.ended():
        self._remember(start)
        if start.codes() == [0] * self.count and newest(folder) == self.steps:
          break
        start = Start(self, folder)
      elif time.monotonic() >= next_fault and not self._over():
        start = self._fault(start)
        next_fault = time.monotonic() + self.every * self.rng.uniform(0.5, 1.5)
      start.wait(lambda: time.monotonic() >= next_fault, 5)
    different = differences(final_state(folder), self.want)
    self.table["(final parameters)"]["tried"] += 1
    if different:
      self.table["(final parameters)"]["failed"].append(f"{different[:3]} differ")
    shutil.rmtree(folder)

  def _fault(self, start) -> Start:
    """Injects one; returns the start that goes on."""
    names = [name for name in self.names if self.left.get(name, 0)] if self.left else self.names
    name = str(self.rng.choice(names))
    row, before = (
      None,
      {"step": start.step(), "steps": steps_of(start.folder), "at": time.monotonic()},
    )
    try:
      following, moment = FAULTS[name](self, start)
      row = self.table[name if moment is None else f"{name} ({moment})"]
      if following is not start:
        at, before["step"] = start.hit or (before["at"], before["step"])
        self._recovered(following, before | {"at": at}, row)
    except Missed:
      return start
    except Failed as e:
      row = row or self.table[name]
      row["failed"].append(f"{e}; {self.trainings - 1} {start.log}")
      keep = pathlib.Path(tempfile.mkdtemp(prefix="siglax-soak-failed-"))
      shutil.copytree(start.folder, keep / "run", ignore_dangling_symlinks=True)
      (keep / "log").write_text(start.output())
      print(f"FAILED {name}: {e}; kept in {keep}", flush=True)
      start.signal(signal.SIGKILL)
      start.wait(start.ended, END_SECONDS)
      following = Start(self, start.folder)
    row["tried"] += 1
    if self.left:
      self.left[name] -= 1
    print(
      f"{name} at step {before['step']}, {time.monotonic() - before['at']:.0f} s; left {self.left}",
      flush=True,
    )
    return following

  def _recovered(self, start, before, row):
    """Waits until the run goes on, and counts what it lost."""
    begin = before["at"]
    if not start.wait(start.trains, START_SECONDS) and start.codes() != [0] * self.count:
      raise Failed(f"the next start did not train: {start.codes()} {start.output()[-600:]!r}")
    resumed = start.output().partition("resuming at step ")[2].split()
    resumed = int(resumed[0]) if resumed else 0
    good = max(set(before["steps"]) - self.damaged, default=0)
    if resumed < good:
      raise Failed(f"resumed at step {resumed} although step {good} was on disk")
    row["lost"].append(max(0, before["step"] - resumed))
    row["recovery"].append(time.monotonic() - begin)

  def end(self, start, allowed, seconds=END_SECONDS):
    """Waits for the end of all processes; it must come in time, with one of these codes and no
    traceback.
    """
    if not start.wait(start.ended, seconds):
      raise Failed(f"not ended within {seconds} s: {start.codes()} {start.output()[-300:]!r}")
    self._remember(start)
    if not set(start.codes()) <= set(allowed):
      raise Failed(f"ended with {start.codes()}: {start.output()[-600:]!r}")
    if "Traceback" in start.output() and start.trains():
      raise Failed(f"a traceback: {start.output()[-1500:]!r}")

  def again(self, start, faults=None) -> Start:
    return Start(self, start.folder, faults)

  def victim(self):
    return int(self.rng.integers(self.count)) if self.count > 1 else None

  def _remember(self, start):
    if start.samples and start.samples[-1][0] > LONG_SECONDS:
      self.long_starts.append(start.samples)

  def _print_memory(self):
    print(
      f"\n{'long start':<12}{'seconds':>9}{'steps':>14}{'RSS MiB':>18}"
      f"{'growth MiB':>12}{'descriptors':>14}"
    )
    for i, samples in enumerate(self.long_starts):
      trained = [s for s in samples if s[3] > samples[0][3] + self.steps // 20] or samples[-1:]
      first, last = trained[0], trained[-1]
      print(
        f"{i:<12}{last[0]:>9.0f}{f'{first[3]}…{last[3]}':>14}"
        f"{f'{first[1]:.0f}…{last[1]:.0f}':>18}{last[1] - first[1]:>12.1f}"
        f"{f'{first[2]}…{last[2]}':>14}"
      )


class Missed(Exception):
  """The moment did not come before the end of the run."""


def at_moment(soak, start, moment: str):
  """Waits until a start is where a fault is to hit it."""
  checkpoints = start.folder / "checkpoints"

  def any_there(pattern):
    with contextlib.suppress(OSError):
      return any(checkpoints.glob(pattern))
    return False

  if moment == "start-up":
    if not start.trains():
      time.sleep(soak.rng.uniform(0, 6))
    return
  if not start.wait(start.trains, START_SECONDS):
    raise Missed
  conditions = {
    "step": lambda begin=time.monotonic(), wait=soak.rng.uniform(0, 0.5): (
      time.monotonic() > begin + wait
    ),
    "save": lambda: any_there("*.orbax-checkpoint-tmp*"),
    "deletion": lambda: any_there(".deleting-*"),
    "evaluation": lambda: start.step() % (soak.steps // 4) == 0 and start.step() > 0,
    "last step": lambda: start.step() >= soak.steps - 1,
  }
  if not start.wait(conditions[moment], START_SECONDS, pause=0.0005) or start.ended():
    raise Missed
  time.sleep(soak.rng.uniform(0, 0.02))


def kill(soak, start):
  moment = str(soak.rng.choice(MOMENTS))
  at_moment(soak, start, moment)
  if start.ended():
    raise Missed
  which = soak.victim()
  start.signal(signal.SIGKILL, which)
  # The others notice a silent process after the heartbeat of siglax/devices/distributed.py, one
  # that has not joined after --wait.
  patience = 0 if soak.count == 1 else 20 if start.trains() else WAIT_SECONDS
  if not start.wait(start.ended, END_SECONDS + patience):
    raise Failed(f"the others of a killed process did not end: {start.codes()}")
  soak._remember(start)
  return soak.again(start), moment


def stop_signal(number):

  def send(soak, start):
    moment = str(soak.rng.choice(("start-up", "step", "save", "evaluation")))
    at_moment(soak, start, moment)
    if start.ended():
      raise Missed
    ready = "parameters: image" in start.output()
    start.signal(number, soak.victim())
    # Before python has set a handler the system's default ends the process.
    soak.end(start, {0} if ready else {0, -number, 130, 1})
    return soak.again(start), None

  return send


def stop_and_continue(soak, start):
  at_moment(soak, start, "step")
  start.signal(signal.SIGSTOP, 0)
  time.sleep(soak.rng.uniform(1, 12))
  second = None if soak.count > 1 else soak.again(start)
  if second is not None:  # a stopped process of this machine holds its folder
    soak.end(second, {1}, START_SECONDS)
    if "is in use" not in second.output():
      raise Failed(f"a second start beside a stopped one: {second.output()[-300:]!r}")
  before = start.step()
  start.signal(signal.SIGCONT, 0)
  if not start.wait(lambda: start.step() > before or start.step() == soak.steps, START_SECONDS):
    raise Failed(
      f"stopped and continued, it does not train: {start.codes()} {start.output()[-300:]!r}"
    )
  return start, None


def fill(soak, start, how):
  at_moment(soak, start, "step")
  ballast, failed = soak.disk / "ballast", lambda: start.output().count("failed, attempt")
  before = failed()
  ballast.mkdir()
  try:
    if how == "full":
      with contextlib.suppress(OSError), (ballast / "file").open("wb") as file:
        while True:
          file.write(bytes(2**12))
          file.flush()
    elif how == "inodes":
      with contextlib.suppress(OSError):
        for i in range(10**6):
          (ballast / str(i)).touch()
    else:
      subprocess.run(["mount", "-o", "remount,ro", str(soak.disk)], capture_output=True)
    start.wait(lambda: failed() > before, 10)
    time.sleep(soak.rng.uniform(0, 1))
  finally:
    if how == "readonly":
      subprocess.run(["mount", "-o", "remount,rw", str(soak.disk)], check=True, capture_output=True)
    shutil.rmtree(ballast)
  step = start.step()
  if start.wait(lambda: start.step() > step, END_SECONDS) and not start.ended():
    return start, None
  soak.end(start, {0, 1})
  return soak.again(start), None


def worker(soak, start):
  at_moment(soak, start, "step")
  children = subprocess.run(
    ["pgrep", "-aP", str(start.processes[0].pid)], capture_output=True, text=True
  ).stdout.splitlines()
  # Python's own tracker of shared memory does no work of the run; without it Python prints a
  # traceback of its own at the end.
  workers = [child.split()[0] for child in children if "resource_tracker" not in child]
  if not workers:
    raise Missed
  os.kill(int(soak.rng.choice(workers)), signal.SIGKILL)
  step = start.step()
  if start.wait(lambda: start.step() > step + 10, END_SECONDS) and not start.ended():
    return start, None
  soak.end(start, {0, 1})
  return soak.again(start), None


def killed(soak, start):
  """A start that trained for a while and was killed."""
  at_moment(soak, start, "step")
  start.wait(lambda: len(steps_of(start.folder)) >= 2, END_SECONDS)
  start.signal(signal.SIGKILL)
  start.wait(start.ended, END_SECONDS)


def damage(soak, start):
  killed(soak, start)
  if len(steps_of(start.folder)) < 2:
    raise Missed
  soak.damaged.add(newest(start.folder))
  damage_newest(start.folder, soak.rng)
  return soak.again(start), None


def swap(soak, start):
  killed(soak, start)
  steps = steps_of(start.folder)
  if len(steps) < 3:
    raise Missed
  soak.damaged.update(steps[-2:])
  a, b = (start.folder / "checkpoints" / str(step) for step in steps[-2:])
  a.rename(soak.disk / "held")
  b.rename(a)
  (soak.disk / "held").rename(b)
  return soak.again(start), None


def transient(soak, start):
  killed(soak, start)
  faults = {
    "kind": str(soak.rng.choice(KINDS)),
    "times": int(soak.rng.integers(1, 4)),
    "where": str(soak.rng.choice(("state", "meta", "list"))),
  }
  return soak.again(start, {"failing_reads": faults}), None


def double(soak, start):
  dead = soak.rng.random() < 0.5
  if dead:  # both find the lock of a dead process
    killed(soak, start)
    first, second = soak.again(start), soak.again(start)
    first.wait(lambda: second.ended() or second.trains() or first.trains(), START_SECONDS)
    winner, loser = (second, first) if first.ended() else (first, second)
  else:
    at_moment(soak, start, "step")
    winner, loser = start, soak.again(start)
  loser.wait(loser.ended, START_SECONDS)
  if (
    loser.codes() != [1] * soak.count
    or "is in use" not in loser.output()
    and "taken the run folder over" not in loser.output()
  ):
    if winner.ended() and winner.codes() == [0] * soak.count and not dead:
      raise Missed  # it was over before the second had read the lock
    raise Failed(f"the second of two starts: {loser.codes()} {loser.output()[-600:]!r}")
  return winner, "a dead lock" if dead else "a live lock"


def cut(soak, start):
  killed(soak, start)
  file = start.folder / "metrics.jsonl"
  content = file.read_bytes()
  file.write_bytes(content[: -int(soak.rng.integers(1, 40))])
  return soak.again(start), None


FAULTS = {
  "kill": kill,
  "term": stop_signal(signal.SIGTERM),
  "int": stop_signal(signal.SIGINT),
  "hup": stop_signal(signal.SIGHUP),
  "stop": stop_and_continue,
  "full": lambda soak, start: fill(soak, start, "full"),
  "inodes": lambda soak, start: fill(soak, start, "inodes"),
  "readonly": lambda soak, start: fill(soak, start, "readonly"),
  "worker": worker,
  "damage": damage,
  "swap": swap,
  "transient": transient,
  "double": double,
  "cut": cut,
}


def steps_of(folder) -> list[int]:
  with contextlib.suppress(OSError):
    return sorted(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdecimal())
  return []


def newest(folder) -> int:
  return max(steps_of(folder), default=0)


def final_state(folder) -> dict:
  """What orbax itself reads of the newest checkpoint, by path."""
  import short_runs

  return short_runs.state(folder, newest(folder))


def differences(got: dict, want: dict) -> list[str]:
  return [
    k
    for k in want.keys() | got.keys()
    if k not in got or k not in want or got[k].tobytes() != want[k].tobytes()
  ]


def damage_newest(folder, rng) -> str:
  """One of many kinds of damage to one file of the newest checkpoint, or to all of it; its name."""
  step = newest(folder)
  top = folder / "checkpoints" / str(step)
  files = sorted(p for p in top.rglob("*") if p.is_file())
  file, kind = (
    files[rng.integers(len(files))],
    str(rng.choice(("flip", "truncate", "empty", "zeros", "garbage", "delete", "folder", "step"))),
  )
  data = bytearray(file.read_bytes())
  if kind == "delete":
    file.unlink()
  elif kind == "folder":
    shutil.rmtree(top / str(rng.choice(("state", "meta", "state/d"))))
  elif kind == "step":
    meta = top / "meta" / "metadata"
    meta.write_text(
      meta.read_text()
      .replace(f'"step": {step}', f'"step": {step - 1}')
      .replace(f'"step":{step}', f'"step":{step - 1}')
    )
  else:
    at = int(rng.integers(max(1, len(data))))
    if kind == "flip" and data:
      data[at] ^= 1 << int(rng.integers(8))
    elif kind == "garbage":
      data[at : at + 64] = rng.bytes(len(data[at : at + 64]))
    file.write_bytes(
      {"truncate": data[:at], "empty": b"", "zeros": bytes(len(data))}.get(kind, data)
    )
  return kind


def damage_here(runs, folder, rng):
  damage_newest(folder, rng)
  before = {p.name for p in folder.joinpath("checkpoints").iterdir()}
  runs.train(folder)
  gone = before - {
    p.name.removeprefix("damaged-") for p in folder.joinpath("checkpoints").iterdir()
  }
  if gone:
    raise Failed(f"{gone} are gone")


def transient_here(runs, folder, rng):
  import inject

  kind, where = str(rng.choice(KINDS)), str(rng.choice(("state", "meta", "list")))
  begin = newest(folder)
  with inject.failing_reads(kind, times=int(rng.integers(1, 4)), where=where):
    resumed = runs.train(folder)
  if resumed != begin:
    raise Failed(f"{kind} in a read of {where}: resumed at {resumed}, not at {begin}")


def nonfinite_here(runs, folder, rng):
  import inject
  import short_runs

  place, value = str(rng.choice(inject.PLACES)), str(rng.choice(list(inject.VALUES)))
  step = int(rng.integers(newest(folder), short_runs.STEPS))
  try:
    runs.train(folder, inject.nonfinite(place, step, value, leaf=int(rng.integers(30))))
  except FloatingPointError as e:
    if "the last good checkpoint is of step" not in str(e):
      raise Failed(str(e)) from e
  else:
    raise Failed(f"{value} in a {place} after update {step} went through")
  for kept in steps_of(folder):
    if bad := short_runs.nonfinite_leaves(short_runs.state(folder, kept)):
      raise Failed(f"{value} in a {place} after update {step}: checkpoint {kept} has {bad[0]}")
  runs.train(folder)


HERE = {"damage": damage_here, "transient": transient_here, "nonfinite": nonfinite_here}


def run_here(counts, seed, scratch):
  """Each trial: a copy of a run that stopped at step 8, a fault, and the run to its end."""
  import contextlib as c
  import io

  import jax

  from siglax.devices import errors
  from siglax.runs import checkpoint

  import inject
  import short_runs

  class Runs:
    resumed = None

    def train(self, folder, fault=None):
      with (
        c.redirect_stderr(io.StringIO()),
        c.redirect_stdout(io.StringIO()),
        fault or inject.nonfinite(),
      ):
        short_runs.run(folder, checkpoint__keep_latest=3)
      return self.resumed

  runs, table = Runs(), empty_table()
  restore = checkpoint.Checkpoints.restore

  def counted(self, *args):
    found = restore(self, *args)
    runs.resumed = 0 if found is None else found[1]["step"]
    return found

  checkpoint.Checkpoints.restore = counted
  errors.RETRY_SECONDS = (0.01,) * 4
  short_runs.share_programs(setattr)
  jax.config.update("jax_disable_most_optimizations", True)
  runs.train(scratch / "undisturbed")
  want = short_runs.state(scratch / "undisturbed")
  shutil.copytree(scratch / "undisturbed", scratch / "stopped")
  shutil.rmtree(scratch / "stopped" / "checkpoints" / str(short_runs.STEPS))
  for name, number in counts.items():
    row = table[name]
    for i in range(number):
      rng, folder, begin = (
        np.random.default_rng([seed, i]),
        scratch / f"{name}-{i}",
        time.monotonic(),
      )
      shutil.copytree(scratch / "stopped", folder)
      row["tried"] += 1
      try:
        HERE[name](runs, folder, rng)
        if different := differences(short_runs.state(folder), want):
          raise Failed(f"{different[:3]} differ at the end")
        if time.monotonic() - begin > END_SECONDS * 2:
          raise Failed(f"took {time.monotonic() - begin:.0f} s")
        row["lost"].append(8 - (runs.resumed or 0))
        row["recovery"].append(time.monotonic() - begin)
      # pylint: disable=broad-exception-caught; a trial that fails is a row of the table
      except Exception as e:
        row["failed"].append(f"trial {i}: {type(e).__name__}: {str(e)[:300]}")
        print("FAILED", name, row["failed"][-1], flush=True)
      shutil.rmtree(folder, ignore_errors=True)
    print(f"{name}: {number} tried, {len(row['failed'])} failed", flush=True)
  return table


if __name__ == "__main__":
  main()
