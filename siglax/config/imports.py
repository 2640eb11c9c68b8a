"""Files of a user's own, which register parts from outside the package: a loss, a tower, a source
of data, and so on.

A file is given as `--import my_parts.py`, or `--import package.module`, to a command, or to
`import_parts` in a config file or in Python; a config file may also register parts itself. It is
executed once, from where its user has it: a run folder keeps a copy (siglax/runs/imports.py) to be
read, which nothing executes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import importlib.util
import os
import pathlib
import sys
import traceback
import types

from siglax.config import parts
from siglax.config import versions
from siglax.config.values import check_local
from siglax.config.values import one_line


@dataclasses.dataclass(frozen=True)
class Imported:
  """A file that was executed: the name it was given by, its content, and (kind, name) of the parts
  it registered.
  """

  name: str
  content: bytes
  parts: tuple[tuple[str, str], ...]
  module: types.ModuleType

  @property
  def digest(self) -> str:
    return _digest(self.content)


def _digest(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()


PREFIX = "siglax_imported_"  # of the names of the modules
_imported: dict[str, Imported] = {}  # by digest


def imported() -> tuple[Imported, ...]:
  """The files that this process has imported, in their order."""
  return tuple(_imported.values())


def import_parts(name: str) -> types.ModuleType:
  """Executes a file that registers parts, `my_parts.py`, or a module by its name, unless that was
  done before.

  Raises ValueError in one line, with file and line, for any error in it.
  """
  check_local("--import", name)
  if _is_file(name):
    return execute(name, "--import", always_kept=True)
  before = len(parts.registered)
  with in_one_line("--import", name):
    spec = importlib.util.find_spec(name)
  if spec is None or not str(spec.origin).endswith(".py"):
    hint = (
      f"; write --import {name}.py for the file" if pathlib.Path(f"{name}.py").is_file() else ""
    )
    raise ValueError(f"--import {name}: no such Python module{hint}")
  with _whole_or_not(), in_one_line("--import", name, spec.origin):
    module = importlib.import_module(name)
    _check_fields()
  _keep(Imported(name, pathlib.Path(spec.origin).read_bytes(), _since(before), module))
  return module


def execute(path: str, flag: str, always_kept: bool = False) -> types.ModuleType:
  """The module of a Python file. One that has registered parts is not executed again.

  flag: what a message begins with. always_kept: it counts as imported even where it has registered
  nothing.
  """
  file = pathlib.Path(path)
  if not file.is_file():
    raise ValueError(f"{flag} {path}: no such file")
  content = file.read_bytes()
  return _execute(path, content, flag, always_kept)


def contents() -> tuple[tuple[str, bytes], ...]:
  """(name, content) of each file that this process has imported, for `import_again`."""
  return tuple((file.name, file.content) for file in imported())


def import_again(files: tuple[tuple[str, bytes], ...]):
  """Imports in a worker process what its parent had imported, whatever the files hold by now.

  What they compute meanwhile, such as the check of a loss, is kept off the parent's accelerator.
  """
  missing = [file for file in files if _digest(file[1]) not in _imported]
  if missing:
    os.environ["JAX_PLATFORMS"] = "cpu"
    if (jax := sys.modules.get("jax")) is not None:  # which read that when it was imported
      jax.config.update("jax_platforms", "cpu")
  for name, content in missing:
    if _is_file(name):
      _execute(name, content, "--import", always_kept=True, check=False)
    else:
      import_parts(name)
      if _digest(content) not in _imported:
        raise ValueError(
          f"--import {name}: the module has changed since the start of the command; start it again"
        )


def _is_file(name: str) -> bool:
  return name.endswith(".py") or pathlib.Path(name).parent != pathlib.Path(".")


def _execute(
  path: str, content: bytes, flag: str, always_kept: bool, check: bool = True
) -> types.ModuleType:
  digest = _digest(content)
  if (known := _imported.get(digest)) is not None:
    return known.module
  before = len(parts.registered)
  # The same name in every process, by which pickle finds the file's classes.
  module = types.ModuleType(f"{PREFIX}{digest[:16]}_{pathlib.Path(path).stem}")
  module.__file__ = path
  with _whole_or_not(), in_one_line(flag, path):
    sys.modules[module.__name__] = module  # where dataclasses and pickle look for it
    exec(compile(content, path, "exec"), module.__dict__)
    if check:
      _check_fields()
  if always_kept or _since(before):
    _keep(Imported(path, content, _since(before), module))
  return module


@contextlib.contextmanager
def _whole_or_not():
  """A file that fails leaves behind neither parts nor its module."""
  before, modules = len(parts.registered), set(sys.modules)
  try:
    yield
  except BaseException:
    parts.withdraw(_since(before))
    kept = {file.module.__name__ for file in imported()}  # of files that it imported in turn
    for name in set(sys.modules) - modules - kept:
      if name.startswith(PREFIX):
        del sys.modules[name]
    raise


def _check_fields():
  """ValueError where a part declares a field that its group of the config has already."""
  from siglax.config import declared  # late: it asks the rooms above for their parts

  for group in declared.GROUPS:
    group.fields()


def _since(before: int) -> tuple[tuple[str, str], ...]:
  """(kind, name) of the parts registered after the first `before`, but for those of a file that was
  imported meanwhile.
  """
  of_others = {part for file in imported() for part in file.parts}
  return tuple(part for part in parts.registered[before:] if part not in of_others)


def _keep(file: Imported):
  _imported.setdefault(file.digest, file)


@contextlib.contextmanager
def in_one_line(flag: str, name: str, path: str | None = None):
  """Turns any error of a user's file into one line with its name and the line in it. path: where it
  is, if not `name`.
  """
  path = path or name
  try:
    yield
  except (Exception, SystemExit) as error:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename.endswith(path)]
    if isinstance(error, SyntaxError) and (error.filename or "").endswith(path):
      lines = [error.lineno]
    line = f", line {lines[-1]}" if lines else ""
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    raise ValueError(
      f"{flag} {name}{line}: {kind}{versions.of_old_key(str(error)) or one_line(error)}"
    ) from error
