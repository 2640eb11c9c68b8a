"""The loss recipe of CONTRIBUTING.md as printed, inside a copy of the package and outside of it;
what setup.py declares; `siglax --version`.
"""

import ast
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

import siglax

ROOT = pathlib.Path(__file__).parent.parent
SMALL = (
  "--config=configs/x.py:steps=2",
  "--config.eval.tasks=()",
  "--config.loss.impl=ring",
  "--config.loss.tile=2",
  "--config.log.tensorboard=False",
)
# The module that a distribution is imported as, where its name is another one.
MODULES = {
  "opencv-python-headless": "cv2",
  "orbax-checkpoint": "orbax",
  "pillow": "PIL",
}
NOT_IMPORTED = {"flatbuffers", "protobuf"}  # setup.py says why
OPTIONAL = {"wandb", "transformers", "onnx", "onnxruntime"}  # of functions that say what to install


def recipe(title: str) -> list[tuple[str, str]]:
  """(language, text) of the blocks below a heading."""
  below = (ROOT / "CONTRIBUTING.md").read_text().split(f"### {title}\n")[1]
  return re.findall(r"^```(\w*)\n(.*?)^```$", re.split(r"^##", below, flags=re.M)[0], re.S | re.M)


def run(folder, *words: str, **environment) -> str:
  """What Python prints, with the siglax of a folder."""
  done = subprocess.run(
    [sys.executable, *words],
    cwd=folder,
    env=os.environ | {"PYTHONPATH": str(folder), "JAX_PLATFORMS": "cpu"} | environment,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


def losses(folder, command: str) -> list[float]:
  """Those of a short training by a command, with the siglax of a folder."""
  (words,) = (shlex.split(line) for line in command.splitlines())
  assert words[:2] == ["siglax", "train"]
  run(folder, "-m", "siglax.commands.cli", *words[1:], *SMALL)
  workdir = words[words.index("--workdir") + 1]
  lines = (folder / workdir / "metrics.jsonl").read_text().splitlines()
  return [record["loss"] for record in map(json.loads, lines) if "loss" in record]


@pytest.fixture
def copy(tmp_path):
  """Makes a fresh copy of the tree, with a small config."""

  def make(name: str) -> pathlib.Path:
    folder = tmp_path / name
    shutil.copytree(
      ROOT / "siglax", folder / "siglax", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copytree(ROOT / "docs", folder / "docs")
    (folder / "configs").mkdir()
    shutil.copy(ROOT / "tests" / "tiny.py", folder / "configs" / "x.py")
    return folder

  return make


def apply(file: pathlib.Path, diff: str):
  """Each hunk must fit in one place."""
  text = file.read_text()
  for hunk in diff.split("@@\n"):
    lines = hunk.splitlines(keepends=True)
    old = "".join(line[1:] for line in lines if line[0] in " -")
    new = "".join(line[1:] for line in lines if line[0] in " +")
    assert text.count(old) == 1, old
    text = text.replace(old, new)
  file.write_text(text)


@pytest.mark.slow
def test_the_loss_recipe_inside_and_outside_of_the_package(copy):
  (_, mine), (_, command) = recipe("Outside of siglax")
  outside = copy("outside")
  (outside / "my_parts.py").write_text(mine)
  (_, new), (language, diff), (_, generate), (_, command_inside) = recipe("Inside of siglax")
  inside = copy("inside")
  (inside / "siglax" / "losses" / "square.py").write_text(new)
  assert language == "diff"
  apply(inside / "siglax" / "losses" / "__init__.py", diff)
  python, *script = shlex.split(generate)
  assert python == "python"
  run(inside, *script)
  assert "square" in (inside / "docs" / "config.md").read_text()
  run(inside, *script, "--check")
  found = losses(inside, command_inside)
  assert len(found) == 2 and found == losses(outside, command)
  for folder, prepare in (
    (inside, ""),
    (outside, "from siglax import config; config.import_parts('my_parts.py')"),
  ):
    errors = run(folder, "-c", f"{prepare}\n{COMPARE}", JAX_NUM_CPU_DEVICES="4")
    assert max(map(float, errors.split())) < 1e-5


# The loss and its gradients on a ring of four devices, less those of the formula in float64.
COMPARE = """
import jax, numpy as np
from jax.sharding import AxisType
from siglax import config, losses

n, t, b = 16, 3.0, -0.5
rng = np.random.default_rng(0)
x, y = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in rng.normal(size=(2, n, 8)))
c = config.default().loss
c.name, c.impl, c.tile = "square", "ring", 2
loss = losses.make(c, jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,)))
value, gradients = jax.value_and_grad(loss, (0, 1, 2, 3))(*map(np.float32, (x, y, t, b)))
error = x @ y.T * t + b - np.eye(n)
d = 2 * error / n
want = d @ y * t, d.T @ x * t, (d * (x @ y.T)).sum(), d.sum()
print(abs(value - np.square(error).sum() / n))
for got, right in zip(gradients, want):
  print(np.abs(got - right).max())
"""


def imported() -> set[str]:
  """The modules that siglax imports, at the top of a file or in a function."""
  names = set()
  for file in (ROOT / "siglax").rglob("*.py"):
    for node in ast.walk(ast.parse(file.read_text())):
      if isinstance(node, ast.Import):
        names |= {alias.name.split(".")[0] for alias in node.names}
      elif isinstance(node, ast.ImportFrom) and not node.level:
        names.add(node.module.split(".")[0])
  return names - set(sys.stdlib_module_names) - {"siglax"}


def test_setup_declares_what_is_imported(monkeypatch):
  import setuptools

  given = {}
  monkeypatch.setattr(setuptools, "setup", lambda **arguments: given.update(arguments))
  exec(compile((ROOT / "setup.py").read_text(), "setup.py", "exec"), {})
  declared = {re.split("[>=[]", line)[0] for line in given["install_requires"]} - NOT_IMPORTED
  modules = {MODULES.get(name, name.replace("-", "_")) for name in declared}
  assert modules == imported() - OPTIONAL
  cited = re.search("^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.M)[1]
  assert given["version"] == cited == siglax.__version__


def test_version_imports_no_jax():
  code = (
    "import sys; from siglax.commands import cli\n"
    "try: cli.main(['--version'])\n"
    "finally: assert not {'jax', 'numpy'} & set(sys.modules)"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
  )
  assert (done.returncode, done.stdout) == (0, f"siglax {siglax.__version__}\n"), done.stderr
