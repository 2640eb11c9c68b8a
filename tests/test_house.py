"""The house itself: who may import whom, and how large a room, a file and a function may be."""

import ast
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "siglax").rglob("*.py"))
# Those that a stranger reads: the package, and what is beside it.
ALL = [
  *FILES,
  *sorted(p for d in ("configs", "benchmarks", "tests") for p in (ROOT / d).rglob("*.py")),
]


def test_rooms_import_those_below_them():
  """The contracts are in pyproject.toml."""
  # In a process of its own: import-linter turns the loggers of others off.
  program = (
    "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
  )
  done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr


def test_the_package_shows_at_most_15_entries():
  entries = [p.name for p in (ROOT / "siglax").iterdir() if p.name != "__pycache__"]
  assert len(entries) <= 15, entries


def test_no_file_is_over_400_lines():
  long = {
    str(p.relative_to(ROOT)): n for p in FILES if (n := len(p.read_text().splitlines())) > 400
  }
  assert not long


def test_no_function_is_over_60_lines():
  functions = (
    (p, node)
    for p in FILES
    for node in ast.walk(ast.parse(p.read_text()))
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
  )
  long = {
    f"{p.relative_to(ROOT)}: {node.name}": n
    for p, node in functions
    if (n := node.end_lineno - node.lineno + 1) > 60
  }
  assert not long


def test_files_that_the_recipes_print_have_no_line_over_100_columns():
  long = []
  for file in (ROOT / "CONTRIBUTING.md", *(ROOT / "docs" / "recipes").glob("*.md")):
    for code in re.findall(r"^```python\n(.*?)^```$", file.read_text(), re.M | re.S):
      long += [(file.name, line) for line in code.splitlines() if len(line) > 100]
  assert not long


def test_no_line_is_over_100_columns():
  long = [
    f"{p.relative_to(ROOT)}:{i}"
    for p in ALL
    for i, line in enumerate(p.read_text().splitlines(), 1)
    if len(line) > 100
  ]
  assert not long
