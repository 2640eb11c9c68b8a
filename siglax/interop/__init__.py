"""Towers in and out of other libraries' checkpoints.

A format is a file with a declaration (format.py says what that holds) and its place in FORMATS;
`FORMATS.register` adds one of one's own from outside the package. `find` opens what is not a run of
siglax. Each format is a table of names (layout.py) and its config; reading and writing arrays are
the same for all.
"""

from __future__ import annotations

import dataclasses
import pathlib

from siglax import config as config_lib
from siglax import models
from siglax.config import parts
from siglax.data import buckets
from siglax.data import remote
from siglax.interop import big_vision
from siglax.interop import files
from siglax.interop import huggingface
from siglax.interop import onnx
from siglax.interop import open_clip
from siglax.interop import stablehlo
from siglax.interop.checkpoint import Checkpoint
from siglax.interop.checkpoint import changes
from siglax.interop.checkpoint import check_same
from siglax.interop.checkpoint import differences
from siglax.interop.format import Format
from siglax.runs import bucket

FORMATS: parts.Registry[Format] = parts.Registry(
  "format",
  (
    huggingface.HF,
    huggingface.HF_VISION,
    huggingface.HF_TEXT,
    big_vision.FORMAT,
    open_clip.FORMAT,
    stablehlo.FORMAT,
    onnx.FORMAT,
  ),
)
ONE_TOWER = {"img": ("image",), "txt": ("text",)}


def written() -> tuple[str, ...]:
  """The names of the formats that siglax writes."""
  return tuple(form.name for form in FORMATS.values() if form.write is not None)


def split(path) -> tuple[pathlib.Path, tuple[str, ...]]:
  """(path, towers) of `path`, `path:img` or `path:txt`."""
  start, colon, end = str(path).rpartition(":")
  return (
    (pathlib.Path(start), ONE_TOWER[end])
    if colon and end in ONE_TOWER
    else (pathlib.Path(path), models.TOWERS)
  )


def local(path) -> str:
  """`path`, `path:img` or `path:txt` as it is on this machine: of a run at a URL, the folder that
  stands for it; of another URL, a copy.
  """
  path, suffix = str(path), ""
  if path.endswith(tuple(f":{end}" for end in ONE_TOWER)):
    path, suffix = path[:-4], path[-4:]
  if buckets.is_url(path) and bucket.is_run(path):
    return str(bucket.opened(path)) + suffix
  return remote.copied(path) + suffix


def find(path) -> Checkpoint | None:
  """The checkpoint of another library at a path, with ":img" or ":txt" behind it for one of its
  towers; None for a run.

  Raises ValueError in one line when there is nothing, or it is none of the formats that siglax
  reads.
  """
  file, wanted = split(path)
  if not file.exists():
    raise ValueError(f"{file}: no such file or folder")
  if bucket.holds_run(file):  # whose config.json may be damaged
    return None
  if (form := _recognised(file)) is None:
    if file.is_dir():
      return None
    if file.suffix in files.PICKLES:
      weights = open_clip.WEIGHTS if open_clip.FORMAT.recognises(file.parent) else files.WEIGHTS
      raise ValueError(f"{files.never_read(file, weights)} and give the folder")
    raise ValueError(
      f"{file} is no checkpoint; siglax reads folders of runs, and the formats "
      f"{', '.join(form.name for form in FORMATS.values() if form.open is not None)}"
    )
  if form.open is None:
    both = [name for name in written() if FORMATS[name].open is not None]
    raise ValueError(
      f"{file} was written by --format {form.name}, which siglax does not read back; give what it "
      f"was exported from, or that in one of the formats {', '.join(both)}"
    )
  form.check_packages()
  found = form.open(file)
  if not set(found.towers) & set(wanted):
    raise ValueError(f"{path}: {file} has no {wanted[0]} tower")
  towers = tuple(t for t in found.towers if t in wanted)
  tokenizer = found.tokenizer if "text" in towers else None
  if tokenizer is None:
    config_lib.fill_text(found.config, None)
  found = dataclasses.replace(found, towers=towers, tokenizer=tokenizer)
  found.check_sizes()
  return found


def _recognised(file: pathlib.Path) -> Format | None:
  """The first format that recognises it. A user's own are asked before siglax's, which take any
  .npz.
  """
  own = [FORMATS[name] for kind, name in parts.registered if kind == FORMATS.kind]
  return next((form for form in (*own, *FORMATS.values()) if form.recognises(file)), None)
