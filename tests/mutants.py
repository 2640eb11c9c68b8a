"""A mutation tester: which small faults in siglax would the tests let through?

    python tests/mutants.py --count 200 --seed 0 [--room losses] [--jobs 2] [--resume results.jsonl]

Draws faults of one expression or statement each, by seed, from the rooms of ROOMS, puts one at a
time into a copy of the tree, and runs the tests that reach its function, cheapest first, then the
rest of the room's test files. A fault that no test notices is printed as a diff. Which test reaches
which function is traced once and kept with --map; a test file that changed is traced again.
--resume goes on with a file of results. mutmut and cosmic-ray run a whole suite for each fault,
which here are minutes of compilation.
"""

import argparse
import ast
import collections
import concurrent.futures
import contextlib
import cProfile
import hashlib
import itertools
import json
import os
import pathlib
import queue
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
# room → (its files, its test files by their names, cheapest first)
ROOMS = {
  "losses": ("siglax/losses/*.py", "losses step six_steps processes"),
  "step": ("siglax/training/step.py", "step six_steps resnet embed faults/nonfinite plan train"),
  "optim": ("siglax/training/optim.py", "optim finetune step six_steps"),
  "adafactor": ("siglax/training/adafactor.py", "optim step six_steps"),
  "schedules": ("siglax/training/schedules.py", "optim train"),
  "checkpoint": (
    "siglax/runs/checkpoint.py",
    "checkpoint six_steps faults/ends faults/folder faults/nonfinite train",
  ),
  "stored": (
    "siglax/runs/stored.py",
    "checkpoint six_steps faults/ends faults/folder faults/nonfinite train",
  ),
  "digest": ("siglax/runs/digest.py", "checkpoint faults/nonfinite six_steps embed tower"),
  "errors": ("siglax/devices/errors.py", "checkpoint faults/ends"),
  **{
    name: (f"siglax/data/{name}.py", "pipeline sources train")
    for name in ("pipeline", "loading", "order", "labels", "broken", "examples")
  },
  "images": ("siglax/data/images.py", "images hostile pipeline"),
  "text": ("siglax/data/text.py", "text pipeline tower"),
  "evals": ("siglax/evals/*.py", "evals six_steps use embed"),
  "interop": (
    "siglax/interop/*.py",
    "interop_export interop_big_vision interop_huggingface interop_open_clip interop_stablehlo "
    "interop_onnx "
    "tower resnet",
  ),
}
# Of compiled programs, and next to it which test reaches which function; from run to run.
CACHE = pathlib.Path(tempfile.gettempdir()) / f"siglax-mutants-{os.getuid()}"
# (file, the line, the line with the fault) → why it changes nothing that is promised
EQUIVALENT = {
  (
    "siglax/losses/ring.py",
    "def meet(texts, hops, row_state, paired=False):",
    "def meet(texts, hops, row_state, paired=True):",
  ): "indices of other devices are compared too, and never match",
  (
    "siglax/losses/pairs.py",
    'row_state |= {"dbias": zeros(zimg_bd[:, 0]), "dimg": zeros(zimg_bd)}',
    'row_state |= {"dbias": zeros(zimg_bd[:, 1]), "dimg": zeros(zimg_bd)}',
  ): "another column of the same length",
  (
    "siglax/runs/checkpoint.py",
    "groups, size = [[]], 0",
    "groups, size = [[]], 1",
  ): "one byte of a limit of 256 MiB",
  (
    "siglax/evals/ranking.py",
    "MAX_SIMILARITIES = 2**24",
    "MAX_SIMILARITIES = 2**25",
  ): "128 MiB at a time instead of 64",
  (
    "siglax/training/step.py",
    "params, running = trainable_lib.merge(trainable, fixed), {}",
    "params, running = trainable_lib.merge(fixed, trainable), {}",
  ): "two parts of one tree, without a leaf in both",
  (
    "siglax/training/step.py",
    "_, pull_back = jax.vjp(lambda trainable: embed(trainable, fixed, examples)[0], trainable)",
    "_, pull_back = jax.vjp(lambda trainable: embed(fixed, trainable, examples)[0], trainable)",
  ): "two parts of one tree, without a leaf in both",
  (
    "siglax/runs/digest.py",
    "index += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * np.uint32(stride % 2**32)",
    "index += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * np.uint32(stride % 2**33)",
  ): "the same below 2³² elements in one row of an array",
  (
    "siglax/data/images.py",
    "WHOLE_BYTES = 2**25",
    "WHOLE_BYTES = 2**26",
  ): "decoded whole up to 64 MiB instead of 32",
  (
    "siglax/runs/stored.py",
    "time.sleep(delay if failed else 0)",
    "time.sleep(delay if failed else 1)",
  ): "a second between two readings of what looks damaged",
  (
    "siglax/losses/pairs.py",
    "return jnp.float32(len(batch.zimg) * transport.size)",
    "return len(batch.zimg) * transport.size",
  ): "a number of Python in place of the same in float32",
  (
    "siglax/data/text.py",
    "minloglevel=2,",
    "minloglevel=3,",
  ): "how much sentencepiece prints",
  (
    "siglax/evals/ranking.py",
    "LOOKED_AT = 32",
    "LOOKED_AT = 33",
  ): "one example more is looked at before the training",
  (
    "siglax/losses/pairs.py",
    "return 0.0",
    "return 1.0",
  ): "a constant on all logits, which a softmax does not see",
}

OPPOSITE = {
  ast.Lt: (ast.LtE, ast.GtE),
  ast.LtE: (ast.Lt, ast.Gt),
  ast.Gt: (ast.GtE, ast.LtE),
  ast.GtE: (ast.Gt, ast.Lt),
  ast.Eq: (ast.NotEq,),
  ast.NotEq: (ast.Eq,),
  ast.Is: (ast.IsNot,),
  ast.IsNot: (ast.Is,),
  ast.In: (ast.NotIn,),
  ast.NotIn: (ast.In,),
}
ARITHMETIC = {
  ast.Add: ast.Sub,
  ast.Sub: ast.Add,
  ast.Mult: ast.Div,
  ast.Div: ast.Mult,
  ast.FloorDiv: ast.Mult,
  ast.Mod: ast.FloorDiv,
  ast.Pow: ast.Mult,
  ast.BitAnd: ast.BitOr,
  ast.BitOr: ast.BitAnd,
}
# Calls whose arguments may be swapped, or where that could only be an error.
UNORDERED = (
  "min",
  "max",
  "jnp.minimum",
  "jnp.maximum",
  "np.maximum",
  "jnp.logical_or",
  "isinstance",
  "getattr",
  "hasattr",
)
Fault = collections.namedtuple("Fault", "room file function line start end new kind")


def faults_of(node, function=""):
  """(node, its text with a fault, kind, function) of everything below a node but messages,
  annotations and docstrings.
  """
  if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
    if node.name in ("__repr__", "__str__"):
      return
    scope = f"{function}.{node.name}".lstrip(".")
    parts = [(child, scope) for child in node.body] + [
      (child, scope) for child in node.decorator_list
    ]
    if isinstance(node, ast.FunctionDef):
      parts += [
        (child, scope)
        for child in (*node.args.defaults, *node.args.kw_defaults)
        if child is not None
      ]
  elif isinstance(node, (ast.JoinedStr, ast.Import, ast.ImportFrom)) or _is_log(node):
    return
  else:
    yield from ((node, text, kind, function) for text, kind in faults_at(node))
    parts = [(child, function) for child in ast.iter_child_nodes(node)]
    if isinstance(node, ast.Raise):
      return
    if isinstance(node, ast.AnnAssign):
      parts = [(node.value, function)] if node.value else []
    if isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant):
      parts = []
  for child, scope in parts:
    yield from faults_of(child, scope)


def faults_at(node):
  """(text, kind) of each fault of one node."""
  text = ast.unparse
  swapped = lambda **fields: f"({text(type(node)(**{**dict(ast.iter_fields(node)), **fields}))})"
  if isinstance(node, ast.Compare):
    for i, op in enumerate(node.ops):
      for other in OPPOSITE[type(op)]:
        yield swapped(ops=[*node.ops[:i], other(), *node.ops[i + 1 :]]), "comparison"
  elif (
    isinstance(node, ast.BinOp)
    and type(node.op) in ARITHMETIC
    and not any(map(_is_text, (node.left, node.right)))
  ):
    yield swapped(op=ARITHMETIC[type(node.op)]()), "arithmetic"
  elif isinstance(node, ast.BoolOp):
    yield swapped(op=ast.Or() if isinstance(node.op, ast.And) else ast.And()), "and/or"
  elif isinstance(node, ast.UnaryOp) and not isinstance(node.op, ast.UAdd):
    yield f"({text(node.operand)})", "not" if isinstance(node.op, ast.Not) else "sign"
  elif isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
    x = node.value
    yield (
      repr(not x if isinstance(x, bool) else x + 1 if isinstance(x, int) else 2 * x or 1.0),
      "constant",
    )
  elif (
    isinstance(node, ast.keyword)
    and node.arg == "axis"
    and isinstance(node.value, ast.Constant)
    and node.value.value == 1
  ):
    yield "axis=0", "axis"
  elif isinstance(node, (ast.If, ast.While, ast.IfExp)):
    if not isinstance(node.test, ast.Compare):  # which has an opposite
      yield node.test, "condition"
  elif isinstance(node, ast.Call) and len(node.args) > 1 and text(node.func) not in UNORDERED:
    if text(node.args[0]) != text(node.args[1]) and not any(
      isinstance(x, ast.Starred) for x in node.args[:2]
    ):
      yield (
        text(ast.Call(node.func, [node.args[1], node.args[0], *node.args[2:]], node.keywords)),
        "swapped arguments",
      )
  elif isinstance(node, ast.Return) and isinstance(node.value, ast.Call) and node.value.args:
    if not isinstance(node.value.args[0], (ast.Starred, ast.GeneratorExp)):
      yield f"return {text(node.value.args[0])}", "returned argument"
  elif (
    isinstance(node, (ast.AugAssign, ast.Raise))
    or isinstance(node, ast.Expr)
    and isinstance(node.value, (ast.Call, ast.Yield))
  ):
    yield "pass", "dropped"
  elif isinstance(node, ast.Assign) and isinstance(
    node.value, (ast.Call, ast.BinOp, ast.Subscript, ast.IfExp)
  ):
    names = lambda tree: {x.id for x in ast.walk(tree) if isinstance(x, ast.Name)}
    if names(node.targets[0]) & names(node.value):  # or what follows could not run
      yield "pass", "dropped"


def _is_text(node):
  return (
    isinstance(node, ast.JoinedStr)
    or isinstance(node, ast.Constant)
    and isinstance(node.value, str)
  )


def _is_log(node):
  return isinstance(node, ast.Call) and ast.unparse(node.func).startswith("logger.")


def all_faults(rooms):
  for room in rooms:
    for path in sorted(ROOT.glob(ROOMS[room][0])):
      source = path.read_bytes()
      lines = [0, *(m.end() for m in re.finditer(b"\n", source))]
      for node, new, kind, function in faults_of(ast.parse(source)):
        if isinstance(new, ast.expr):  # a condition, negated in place
          node, new = new, f"(not ({ast.unparse(new)}))"
        start, end = (
          lines[node.lineno - 1] + node.col_offset,
          lines[node.end_lineno - 1] + node.end_col_offset,
        )
        yield Fault(room, str(path.relative_to(ROOT)), function, node.lineno, start, end, new, kind)


def with_fault(fault) -> bytes:
  source = (ROOT / fault.file).read_bytes()
  return source[: fault.start] + fault.new.encode() + source[fault.end :]


def diff(fault) -> tuple[str, str]:
  """The lines that the fault changes, before and after."""
  cut = lambda source, end: source[
    source.rfind(b"\n", 0, fault.start) + 1 : source.find(b"\n", end)
  ].decode()
  join = lambda text: " ".join(text.split())
  return join(cut((ROOT / fault.file).read_bytes(), fault.end)), join(
    cut(with_fault(fault), fault.start + len(fault.new.encode()))
  )


class Reach:
  """A pytest plugin that writes {test: {"seconds", "reached"}} of the tests that passed, fixtures
  included.

  reached: functions of siglax, "file:function", and "*" where the test starts processes, which may
  reach any.
  """

  def __init__(self, out):
    self._out, self._tests, self._of_fixture, self._codes = out, {}, {}, set()
    self._profile = cProfile.Profile(builtins=False)  # of this thread, in C
    self._profile.enable()
    threading.setprofile(
      lambda frame, event, _: self._add(frame.f_code) if event == "call" else None
    )
    sys.addaudithook(
      lambda event, _: (
        self._codes.add("*") if event in ("subprocess.Popen", "os.fork", "os.posix_spawn") else None
      )
    )

  def _add(self, code):
    if not isinstance(code, str) and code.co_filename.startswith(str(ROOT / "siglax")):
      self._codes.add(code)

  def _collect(self):
    self._profile.disable()
    for entry in self._profile.getstats():
      self._add(entry.code)
    self._profile.clear()
    self._profile.enable()

  @contextlib.contextmanager
  def _watched(self):
    self._collect()
    outer, self._codes, since, found = self._codes, set(), time.perf_counter(), []
    try:
      yield found
    finally:
      self._collect()
      found += self._codes, time.perf_counter() - since
      self._codes = outer

  @pytest.hookimpl(wrapper=True)
  def pytest_fixture_setup(self, fixturedef):
    with self._watched() as found:
      result = yield
    self._of_fixture[fixturedef] = found
    return result

  @pytest.hookimpl(wrapper=True)
  def pytest_runtest_call(self, item):
    with self._watched() as found:
      result = yield
    parts = [
      found,
      *(self._of_fixture[f] for f in item._request._fixture_defs.values() if f in self._of_fixture),
    ]
    reached = {code if code == "*" else _name(code) for codes, _ in parts for code in codes}
    self._tests[item.nodeid] = {
      "seconds": sum(seconds for _, seconds in parts),
      "reached": sorted(reached),
    }
    return result

  def pytest_sessionfinish(self):
    self._profile.disable()
    pathlib.Path(self._out).write_text(json.dumps(self._tests))


def _name(code) -> str:
  function = re.sub(r"[.]?<[a-z]+>", "", code.co_qualname)
  return f"{pathlib.Path(code.co_filename).relative_to(ROOT)}:{function}"


def test_files(room) -> list[str]:
  return [
    "tests/" + "/".join([*folders, f"test_{name}.py"])
    for *folders, name in (n.split("/") for n in ROOMS[room][1].split())
  ]


def reach(file, rooms) -> dict:
  """{test: {"seconds", "reached"}} of the rooms' test files, those that are new or changed traced
  now and added to `file`.
  """
  known = json.loads(file.read_text()) if file.exists() else {}
  paths = dict.fromkeys(path for room in rooms for path in test_files(room))
  digest = {path: hashlib.sha256((ROOT / path).read_bytes()).hexdigest() for path in paths}
  script = (
    "import sys, pytest, mutants; pytest.main(sys.argv[2:], plugins=[mutants.Reach(sys.argv[1])])"
  )
  for path in paths:
    if known.get(path, {}).get("sha256") != digest[path]:
      print(f"tracing {path}", file=sys.stderr, flush=True)
      with tempfile.NamedTemporaryFile("r") as out:
        status, _ = run_pytest(["-c", script, out.name, path], ROOT)
        if not (written := out.read()):
          sys.exit(f"tracing {path} ended with status {status}; start again")
        known[path] = {"sha256": digest[path], "tests": json.loads(written)}
      file.write_text(json.dumps(known))
  return {test: of for path in paths for test, of in known[path]["tests"].items()}


def run_pytest(command, folder, timeout=None):
  """(exit status, None after the timeout; the test that failed) of a Python command; what it
  started ends with it.
  """
  environment = {
    **os.environ,
    "JAX_COMPILATION_CACHE_DIR": str(CACHE),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    "PYTHONPATH": os.pathsep.join([str(folder), str(folder / "tests")]),
  }
  with tempfile.TemporaryFile("w+") as out:
    process = subprocess.Popen(
      [sys.executable, *command, "-n", "0", "-q", "-p", "no:cacheprovider", "--tb=no"],
      cwd=folder,
      env=environment,
      stdout=out,
      stderr=out,
      start_new_session=True,
    )
    try:
      status = process.wait(timeout)
    except subprocess.TimeoutExpired:
      status = None
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    out.seek(0)
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", out.read(), re.MULTILINE)
  return status, failed and failed[1]


def chosen(fault, tests) -> list[list[str]]:
  """Tests in two goes: those that reach the function, cheapest file and test first; those that may
  all the same.

  A test may through a process it starts, or through what another test of its file left in a cache.
  """
  key = f"{fault.file}:{fault.function}"
  inside = key + "." if fault.function else key  # all of the file, for a line that runs on import
  file_of = lambda test: test.partition("::")[0]
  of_room = set(test_files(fault.room))
  tests = {test: of for test, of in tests.items() if file_of(test) in of_room}
  reach = lambda key, inside: {
    test
    for test, of in tests.items()
    if any(n == key or n.startswith(inside) for n in of["reached"])
  }
  # A function that runs on import alone
  reaching = reach(key, inside) or reach(fault.file, f"{fault.file}:")
  rest = {
    test
    for test, of in tests.items()
    if "*" in of["reached"] or file_of(test) in map(file_of, reaching)
  } - reaching

  def in_order(some):
    cost = {test: tests[test]["seconds"] for test in some}
    cheapest = {
      file: min(cost[test] for test in some if file_of(test) == file) for file in map(file_of, some)
    }
    return sorted(some, key=lambda test: (cheapest[file_of(test)], file_of(test), cost[test]))

  return [in_order(reaching), in_order(rest)]


def drawn(rooms, count, seed) -> list[Fault]:
  """As many from each room, or all that it has; from seed to seed others, for a larger
  count more.
  """
  draw = random.Random(seed)
  shuffled = [
    draw.sample(faults, len(faults))
    for room in rooms
    if (faults := sorted(set(all_faults([room]))))
  ]
  return [fault for turn in itertools.zip_longest(*shuffled) for fault in turn if fault][:count]


def judge(fault, tests, folder, number) -> dict:
  """Puts the fault into the copy of the tree, tests it, takes it out again; the record of what
  became of it.
  """
  before, after = diff(fault)
  file, since, status, by = folder / fault.file, time.monotonic(), "survived", None
  file.write_bytes(with_fault(fault))
  os.utime(file, (number, number))  # compiled files are known by the second
  for some in chosen(fault, tests):
    if some and status == "survived":
      limit = 120 + 5 * sum(tests[t]["seconds"] for t in some)
      code, by = run_pytest(["-m", "pytest", "-x", *some], folder, limit)
      # XLA gives up on its collectives where the cores are busy: not for the fault
      if code is not None and code < 0:
        code, by = run_pytest(["-m", "pytest", "-x", *some], folder, limit)
      status = "survived" if code == 0 else "timeout" if code is None else "killed"
  shutil.copyfile(ROOT / fault.file, file)
  return {
    **fault._asdict(),
    "before": before,
    "after": after,
    "status": status,
    "by": by,
    "seconds": round(time.monotonic() - since, 1),
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--count", type=int, default=200)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument(
    "--room", action="append", choices=ROOMS, help="one room, may be repeated; all by default"
  )
  parser.add_argument("--jobs", type=int, default=1)
  parser.add_argument(
    "--resume", type=pathlib.Path, help="JSON lines of results, read and added to"
  )
  parser.add_argument(
    "--map", type=pathlib.Path, default=CACHE.with_suffix(".json"), help="which test reaches what"
  )
  parser.add_argument(
    "--survivors", action="store_true", help="test again those of --resume that survived"
  )
  args = parser.parse_args()
  rooms = args.room or list(ROOMS)
  tests = reach(args.map, rooms)
  faults = drawn(rooms, args.count, args.seed)
  results = {}
  if args.resume and args.resume.exists():
    results = {
      (r["file"], r["before"], r["after"], r["kind"]): r
      for r in map(json.loads, args.resume.read_text().splitlines())
    }
  name = lambda fault: (fault.file, *diff(fault), fault.kind)
  todo = [
    f
    for f in faults
    if name(f) not in results or args.survivors and results[name(f)]["status"] == "survived"
  ]
  folders, numbers, lock = queue.SimpleQueue(), iter(range(10**9, 2 * 10**9)), threading.Lock()

  def one(fault):
    folder = folders.get()
    try:
      result = judge(fault, tests, folder, next(numbers))
    finally:
      folders.put(folder)
    with lock:
      results[name(fault)] = result
      print(
        f"{result['status']:>8} {result['seconds']:6.1f} s  {fault.file}:{fault.line} {fault.kind}",
        file=sys.stderr,
        flush=True,
      )
      if args.resume:
        with args.resume.open("a") as file:
          file.write(json.dumps(result) + "\n")

  with tempfile.TemporaryDirectory(prefix="siglax-mutants-") as temporary:
    for job in range(args.jobs):
      folder = pathlib.Path(temporary) / str(job) / "main"
      shutil.copytree(
        ROOT, folder, ignore=shutil.ignore_patterns(".git", "__pycache__", ".*_cache")
      )
      if (ROOT.parent / "shared").exists():
        (folder.parent / "shared").symlink_to(ROOT.parent / "shared")
      folders.put(folder)
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
      list(pool.map(one, todo))
  report([results[name(f)] for f in faults])


def report(results):
  equivalent = [
    (r, why)
    for r in results
    if r["status"] == "survived" and (why := EQUIVALENT.get((r["file"], r["before"], r["after"])))
  ]
  for r, why in equivalent:
    print(f"{r['file']}:{r['line']} equivalent: {why}\n- {r['before']}\n+ {r['after']}")
  left = [r for r in results if not any(r is x for x, _ in equivalent)]
  for r in left:
    if r["status"] == "survived":
      print(
        f"{r['file']}:{r['line']} {r['function']} survived: {r['kind']}\n- {r['before']}\n+ "
        f"{r['after']}"
      )
  for room in [*dict.fromkeys(r["room"] for r in left), "all"]:
    of = [r["status"] != "survived" for r in left if room in (r["room"], "all")]
    print(f"{room:<11} {sum(of):4} of {len(of):4} killed, {sum(of) / max(len(of), 1):.0%}")
  print(f"{'equivalent':<11} {len(equivalent):4}")


if __name__ == "__main__":
  main()
