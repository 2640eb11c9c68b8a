"""What single examples of an evaluation got: a run folder's each.npz.

Its keys are <task>/<metric>, of metrics that are a mean over examples; the values float32 [n], in
the order of the task's examples. Runs that see the same examples can be compared one by one.
"""

from __future__ import annotations

import io
import logging
import os
import pathlib
import zipfile
import zlib

import numpy as np

from siglax.devices import disk

logger = logging.getLogger("siglax")

FILE = "each.npz"


def encode(each: dict[str, np.ndarray]) -> bytes:
  """The file; equal arrays give equal bytes."""
  data = io.BytesIO()
  np.savez_compressed(data, **each)
  return data.getvalue()


def write(folder: str | os.PathLike, each: dict[str, np.ndarray]):
  """Into a run folder. No training ends for this file: a warning says what failed."""
  path = pathlib.Path(folder) / FILE
  try:
    disk.write_atomic(path, encode(each))
  except OSError as e:
    logger.warning("%s cannot be written (%s): no report compares its examples", path, e.strerror)


def read(folder: str | os.PathLike) -> dict[str, np.ndarray]:
  """The arrays of a run folder; none where it has no such file. ValueError for a damaged one."""
  path = pathlib.Path(folder) / FILE
  if not path.is_file():
    return {}
  try:
    if not zipfile.is_zipfile(path):
      raise ValueError("no .npz, or cut short")
    with np.load(path, allow_pickle=False) as arrays:
      each = {name: arrays[name] for name in arrays}
    for name, values in each.items():
      if values.dtype.kind != "f" or values.ndim != 1:
        raise ValueError(f"{name} is {values.dtype}{list(values.shape)}, not float32[n]")
    return each
  except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as e:
    raise ValueError(f"{path} cannot be read: {e}; run siglax evaluate again") from e
