"""What a format declares of itself. siglax/interop/__init__.py lists the formats."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import importlib.util
import pathlib
from typing import Any

from siglax import models
from siglax.interop import fields
from siglax.interop import output
from siglax.interop.checkpoint import Checkpoint


@dataclasses.dataclass(frozen=True)
class Format:
  """A file or a folder that holds towers for another library, read, written, or both.

  name: in `siglax export --format`. doc: what is written, in a few words.
  recognises: (path that exists) → whether it is one of these; it reads little and executes nothing.
  open: (path) → Checkpoint; None for a format that siglax does not read back. It raises ValueError
  in one line for what is damaged or of another architecture.
  write: (tower, path, dtype, source) writes `tower`, a siglax.tower.Tower, to the path, which does
  not exist; dtype is a name in output.DTYPES, source the path that the tower is from. None for a
  format that siglax only reads.
  carries: (tower) → what it has a place for, a table as of fields.py: an option that it does not
  name goes out with its default only.
  towers: those that it needs; () takes what is there.
  problem: (tower) → what else it cannot express, None where there is nothing.
  suffix: of its file; "" for a folder.
  packages: those that it imports and siglax does not require.
  dtypes: those of parameters that its files can have, names in output.DTYPES.
  """

  name: str
  doc: str
  recognises: Callable[[pathlib.Path], bool] = lambda path: False
  open: Callable[[pathlib.Path], Checkpoint] | None = None
  write: Callable[[Any, pathlib.Path, str, pathlib.Path], None] | None = None
  carries: Callable[[Any], dict] = lambda tower: {}
  towers: tuple[str, ...] = ()
  problem: Callable[[Any], str | None] = lambda tower: None
  suffix: str = ""
  packages: tuple[str, ...] = ()
  dtypes: tuple[str, ...] = tuple(output.DTYPES)

  def needed(self, tower) -> tuple[str, ...]:
    """The towers of `tower` that it writes."""
    return self.towers or tuple(name for name in models.TOWERS if name in tower.params)

  def refuses(self, tower) -> str | None:
    """The first thing of these towers that it has no place for, None where it can express all."""
    refused = fields.refused(self.carries(tower), tower.config, self.needed(tower))
    return refused or self.problem(tower)

  def check_packages(self):
    """ValueError that names the packages which are not installed."""
    found = lambda package: importlib.util.find_spec(package.partition(".")[0]) is not None
    if missing := [package for package in self.packages if not found(package)]:
      raise ValueError(
        f"the format {self.name} needs {' and '.join(missing)}: pip install {' '.join(missing)}"
      )
