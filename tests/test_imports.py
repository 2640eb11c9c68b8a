"""Parts from a file outside of the package, by --import: trained, recorded in the run folder, and
asked for when it is opened.
"""

import errno
import json
import os
import pathlib
import pickle
import subprocess
import sys

import conftest
import numpy as np
import pytest

from siglax.commands import COMMANDS
from siglax.commands import cli
from siglax.config import imports
from siglax.config import parts
from siglax.devices import errors
from siglax.runs import imports as run_imports

del conftest  # it sets up the devices
ROOT = pathlib.Path(__file__).parent.parent
MINE = """
import jax.numpy as jnp
from siglax import config, losses
power = config.Field(2.0, "Of the distance.", above=0)
formula = lambda x, p, power: jnp.abs(jnp.tanh(x) - p) ** power
losses.pairwise("mine", formula, fields={"power": power})
"""


def siglax(folder, *words):
  """Exit code and stderr of a command in its own process, as its imports stay with it."""
  env = os.environ | {"PYTHONPATH": str(ROOT)}
  done = subprocess.run(
    [sys.executable, "-m", "siglax.commands.cli", *words],
    cwd=folder,
    env=env,
    capture_output=True,
    text=True,
    timeout=300,
  )
  return done.returncode, done.stderr


def train(folder, *words):
  small = (
    "--config.eval.tasks=()",
    "--config.loss.impl=ring",
    "--config.loss.tile=2",
    "--config.log.tensorboard=False",
  )
  return siglax(
    folder, "train", "--config", f"{ROOT}/tests/tiny.py:steps=4", "--workdir", "run", *small, *words
  )


MY_LOSS = ("--config.loss.name=mine", "--config.loss.power=3.0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """With a run of a loss of one's own on eight devices."""
  folder = tmp_path_factory.mktemp("imports")
  (folder / "my_parts.py").write_text(MINE)
  code, said = train(folder, "--import", "my_parts.py", *MY_LOSS)
  assert code == 0, said
  return folder


def test_a_loss_from_outside_is_trained_on_the_ring(folder):
  import jax

  from siglax import config as config_lib
  from siglax import data as data_lib
  from siglax import models
  from siglax.runs import folder as folder_lib

  import tiny

  config = tiny.get_config(steps=4)
  text = folder_lib.text_processor(config)
  config = config_lib.resolve(config, text)
  batch = next(data_lib.train_batches(config, text))
  model = models.build(config.model)
  params = model.init(jax.random.key(config.seed))
  zimg, ztxt = model.embed_image(params, batch["image"]), model.embed_text(params, batch["tokens"])
  x = 10 * np.float64(zimg) @ np.float64(ztxt).T - np.log(16)
  want = (np.abs(np.tanh(x) - np.eye(16)) ** 3).sum() / 16
  first = json.loads((folder / "run" / "metrics.jsonl").read_text().splitlines()[0])
  assert abs(first["loss"] / want - 1) <= 1e-5


def test_the_run_keeps_name_digest_and_copy(folder):
  (record,) = json.loads((folder / "run" / run_imports.FILE).read_text())
  assert record["name"] == "my_parts.py" and record["parts"] == [["loss", "mine"]]
  assert (folder / "run" / record["copy"]).read_text() == MINE
  assert (
    record["sha256"]
    == subprocess.run(
      ["sha256sum", folder / "my_parts.py"], capture_output=True, text=True, check=True
    ).stdout.split()[0]
  )


NEEDS = "needs my_parts.py, which adds the loss 'mine': give --import my_parts.py"


@pytest.mark.parametrize(
  "words", [MY_LOSS, ("--config.total_steps=6",)], ids=["unknown field", "another loss"]
)
def test_training_goes_on_with_the_file_only(folder, words):
  code, said = train(folder, *words)
  assert (
    code == 1
    and NEEDS in said
    and "its copy is run/imports/my_parts.py" in said
    and len(said.splitlines()) == 1
  )


def test_training_refuses_another_content_and_takes_the_copy(folder):
  (folder / "changed.py").write_text(MINE.replace("** power", "** power * 2"))
  code, said = train(folder, "--import", "changed.py", *MY_LOSS)
  assert (
    code == 1
    and "is not the file that the run in run was made with" in said
    and len(said.splitlines()) == 1
  )
  code, said = train(folder, "--import", "run/imports/my_parts.py", *MY_LOSS)
  assert code == 0, said


def test_opening_asks_for_the_file_and_executes_no_copy(folder, tmp_path):
  """The copies and what a checkpoint holds are as someone else may have sent them."""
  trap = tmp_path / "executed"
  copy = folder / "run" / "imports" / "my_parts.py"
  copy.write_text(f"open({str(trap)!r}, 'w')\n{MINE}")
  try:
    code, said = siglax(folder, "evaluate", "--from", "run")
    assert code == 1 and NEEDS in said and len(said.splitlines()) == 1
    code, said = siglax(
      folder, "export", "--from", "run", "--format", "hf", "--out", "out", "--import", "my_parts.py"
    )
    assert code == 0, said
    assert not trap.exists()
  finally:
    copy.write_text(MINE)


# Without a process of their own.


@pytest.fixture
def here(monkeypatch):
  """Forgets what a test imports."""

  monkeypatch.setattr(imports, "_imported", {})
  before = len(parts.registered)
  yield
  parts.withdraw(parts.registered[before:])


def test_each_file_is_executed_once_and_named(here, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  pathlib.Path("twice.py").write_text(MINE)
  pathlib.Path("again.py").write_text(MINE)
  assert imports.import_parts("twice.py") is imports.import_parts("./again.py")
  assert [(file.name, file.parts) for file in imports.imported()] == [
    ("twice.py", (("loss", "mine"),))
  ]


def test_a_module_by_its_name(here, tmp_path, monkeypatch):
  (tmp_path / "some_module_of_mine.py").write_text(MINE)
  monkeypatch.syspath_prepend(tmp_path)
  imports.import_parts("some_module_of_mine")
  (file,) = imports.imported()
  assert file.content.decode() == MINE and file.parts == (("loss", "mine"),)


def test_a_config_file_may_register_and_is_loaded_again(here, tmp_path):
  from siglax import config as config_lib

  file = tmp_path / "c.py"
  file.write_text(
    MINE + "\ndef get_config():\n  c = config.default()\n  c.loss.name = 'mine'\n  return c\n"
  )
  for value in (3.0, 4.0):
    assert config_lib.load(str(file), {"loss.power": str(value)}).loss.power == value
  assert len(imports.imported()) == 1


def test_its_fields_are_fields_of_the_config(here, tmp_path, capsys):
  (tmp_path / "mine.py").write_text(MINE)
  words = ("--config", f"{ROOT}/tests/tiny.py", "--import", f"{tmp_path}/mine.py")
  assert cli.main(["config", *words, "--config.loss.power=3.0", "loss.power"]) == 0
  said = " ".join(capsys.readouterr().out.split())
  assert said.endswith("loss.power 3.0 command line Of the distance. (float, positive)")


@pytest.mark.parametrize(
  "content, message",
  [
    ("x = 1\ny = x / 0\n", "--import bad.py, line 2: ZeroDivisionError: division by zero"),
    ("x = 1\n\nif:\n", "--import bad.py, line 3: SyntaxError"),
    (
      "from siglax import losses\nlosses.pairwise('hinge', lambda x, p: x)\n",
      "--import bad.py, line 2: there is a loss 'hinge' already",
    ),
    ("raise SystemExit('a\\nb')", "--import bad.py, line 1: SystemExit: a b"),
  ],
)
def test_an_error_in_it_is_one_line_with_file_and_line(
  here, tmp_path, monkeypatch, content, message
):
  monkeypatch.chdir(tmp_path)
  pathlib.Path("bad.py").write_text(content)
  with pytest.raises(ValueError) as error:
    imports.import_parts("bad.py")
  assert str(error.value).startswith(message) and "\n" not in str(error.value)


CLASHES = """
from siglax import losses
from siglax.config import Field
from siglax.training.optimizer import Optimizer
from siglax.training.optimizers import OPTIMIZERS
losses.pairwise("mine", lambda x, p: x)
OPTIMIZERS.register(Optimizer("own", "", print, fields={"lr": Field(1.0, "")}))
"""


@pytest.mark.parametrize(
  "content, message",
  [
    (MINE + "\n1 / 0\n", "ZeroDivisionError"),
    (CLASHES, "an optimizer declares the field 'lr', which config.optim has already"),
  ],
)
def test_a_file_that_fails_leaves_nothing(here, tmp_path, content, message):
  (tmp_path / "half.py").write_text(content)
  (tmp_path / "whole.py").write_text(MINE)
  before = list(parts.registered), set(sys.modules)
  for _ in range(2):  # it fails alike when it is tried again
    with pytest.raises(ValueError, match=message):
      imports.import_parts(str(tmp_path / "half.py"))
    assert (list(parts.registered), imports.imported()) == (before[0], ())
    assert not {name for name in set(sys.modules) - before[1] if name.startswith("siglax_imported")}
  imports.import_parts(str(tmp_path / "whole.py"))  # whose loss has the same name
  assert parts.registered[-1] == ("loss", "mine")


def test_a_file_that_fails_keeps_what_it_imported_whole(here, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  pathlib.Path("whole.py").write_text(MINE)
  pathlib.Path("half.py").write_text(
    "from siglax import config, losses\nconfig.import_parts('whole.py')\n"
    "losses.pairwise('other', lambda x, p: x)\n1 / 0\n"
  )
  with pytest.raises(ValueError, match="--import half.py, line 4"):
    imports.import_parts("half.py")
  assert parts.registered[-1] == ("loss", "mine")
  assert imports.import_parts("whole.py").__name__ in sys.modules


def test_a_worker_does_not_import_a_module_that_has_changed(here, tmp_path, monkeypatch):
  file = tmp_path / "a_module_that_changes.py"
  file.write_text(MINE)
  monkeypatch.syspath_prepend(tmp_path)
  imports.import_parts("a_module_that_changes")
  code = (
    "import pickle, sys; from siglax.config import imports\n"
    "imports.import_again(pickle.load(sys.stdin.buffer)); print(len(imports.imported()))"
  )

  def worker():
    return subprocess.run(
      [sys.executable, "-c", code],
      env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
      input=pickle.dumps(imports.contents()),
      capture_output=True,
    )

  assert worker().stdout == b"1\n"
  file.write_text(MINE + "# changed\n")
  assert b"--import a_module_that_changes: the module has changed since" in worker().stderr


def test_what_is_not_there(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  pathlib.Path("there.py").write_text("")
  for name, message in (
    ("absent.py", "--import absent.py: no such file"),
    ("absent", "--import absent: no such Python module"),
    ("there", "write --import there.py for the file"),
    ("gs://a/b.py", "is a URL"),
  ):
    with pytest.raises(ValueError, match=message):
      imports.import_parts(name)


def test_every_command_has_the_flag():
  for command in COMMANDS:
    with pytest.raises(SystemExit):
      cli.parse([command.name, "--import"])  # it asks for its value


@pytest.mark.parametrize(
  "content",
  [
    b"",
    b"{}",
    b"[1]",
    b'[{"name": 1}]',
    b'[{"name": "a", "sha256": "b", "copy": "c", "parts": [1]}]',
  ],
)
def test_a_damaged_record_is_one_line(tmp_path, content):
  (tmp_path / run_imports.FILE).write_bytes(content)
  with pytest.raises(ValueError, match="imports.json") as error:
    run_imports.check(tmp_path)
  assert "\n" not in str(error.value)
  assert "remove it and give --import the files in imports/" in str(error.value)


def test_a_disk_that_fails_for_a_moment_is_asked_again(tmp_path, monkeypatch):
  (tmp_path / run_imports.FILE).write_text("[]")
  monkeypatch.setattr(errors, "RETRY_SECONDS", (0.01,))
  read, failures = pathlib.Path.read_bytes, [OSError(errno.EIO, os.strerror(errno.EIO))]

  def fails_once(self):
    if failures:
      raise failures.pop()
    return read(self)

  monkeypatch.setattr(pathlib.Path, "read_bytes", fails_once)
  run_imports.check(tmp_path)
  assert not failures
