"""Arrays in files of other libraries: safetensors and npz, read one at a time. Nothing here
executes a pickle.
"""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any
import zipfile
import zlib

import numpy as np

from siglax.config import values
from siglax.data import files as files_lib

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")  # as torch.save names its files
JSON_BYTES = 64 * 2**20  # of one file; the largest index of a checkpoint has a few MiB
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def never_read(pickle: pathlib.Path, weights: str = WEIGHTS) -> str:
  """What is said of a file of torch, with the line that makes safetensors of it: of a state dict,
  or of a checkpoint of open_clip's training, which has one inside.
  """
  program = (
    "import torch, safetensors.torch as s; "
    f"d = torch.load('{pickle}', 'cpu', weights_only=True); d = d.get('state_dict', d); "
    "s.save_file({k.removeprefix('module.'): v.clone() for k, v in d.items()}, "
    f"'{pickle.parent / weights}')"
  )
  return f'{pickle.name} is a pickle, which is never read; convert it: python -c "{program}"'


class Arrays:
  """shapes: {name: shape} of the arrays in a file; `read` reads one. name: as errors call
  the file.
  """

  name: str
  shapes: dict[str, tuple[int, ...]]

  def read(self, name: str, part: slice = slice(None)) -> np.ndarray:
    """One array, or a range of its first axis, as float32. ValueError when it is damaged or not
    finite.
    """
    x = np.asarray(self._read(name, part), np.float32)
    if x.size and not (math.isfinite(x.min()) and math.isfinite(x.max())):
      raise ValueError(f"{self.name}: {name} holds values that are not finite")
    return x

  def _read(self, name, part):
    raise NotImplementedError


class Safetensors(Arrays):
  """One file, or the shards of an index; mapped into memory while an array is read, and let go
  after it.

  A mapping that stays counts every page it has touched to the process: twice the checkpoint in the
  end.
  """

  def __init__(self, folder: pathlib.Path, weights: str = WEIGHTS):
    self.name = str(folder)
    self.shapes, self._files = {}, {}
    for file, names in _shards(folder, weights).items():
      with _open(file) as f:
        present = set(f.keys())
        if names is not None and names - present:
          raise ValueError(
            f"{file} lacks {sorted(names - present)[0]}, which {INDEX} says is in it"
          )
        for name in present if names is None else names:
          piece = f.get_slice(name)
          if piece.get_dtype() not in FLOATS:
            if name.endswith(("position_ids", "num_batches_tracked")):
              continue
            raise ValueError(
              f"{file}: {name} is of type {piece.get_dtype()}; parameters are {', '.join(FLOATS)}"
            )
          self.shapes[name], self._files[name] = tuple(piece.get_shape()), file

  def _read(self, name, part):
    with _open(self._files[name]) as f:
      return f.get_tensor(name) if part == slice(None) else f.get_slice(name)[part]


def _shards(folder, weights) -> dict[pathlib.Path, set[str] | None]:
  """{file: the names in it that count, or None for all}."""
  if (folder / weights).is_file():
    return {folder / weights: None}
  if not (folder / INDEX).is_file():
    pickles = sorted(file for file in folder.iterdir() if file.suffix in PICKLES)
    hint = f"; {never_read(pickles[0], weights)}" if pickles else ""
    raise ValueError(f"{folder} has no {weights}{hint}")
  index = read_json(folder / INDEX).get("weight_map")
  if not isinstance(index, dict) or not index:
    raise ValueError(f"{folder / INDEX} has no weight_map")
  shards = {}
  for name, file in index.items():
    if not isinstance(file, str) or pathlib.Path(file).name != file:
      raise ValueError(f"{folder / INDEX}: {file!r} is no file name in this folder")
    shards.setdefault(folder / file, set()).add(name)
  for file in shards:
    if not file.is_file():
      raise ValueError(f"{file} is missing; {INDEX} says that it holds {len(shards[file])} tensors")
  return shards


def _open(file: pathlib.Path):
  import safetensors  # late: training reads none

  try:
    return safetensors.safe_open(file, framework="numpy")
  except (safetensors.SafetensorError, OSError) as e:
    raise ValueError(
      f"{file} is no safetensors file, or is damaged: {values.one_line(e)}"
    ) from None


class Npz(Arrays):
  """A .npz whose arrays are read one at a time, always without pickle. prefix: what names start
  with, left out here.

  Arrays outside the prefix are not parameters (big_vision's optimizer state) and are not read.
  """

  def __init__(self, file: pathlib.Path, prefix: str):
    self.name = str(file)
    try:
      self._prefix, headers = files_lib.npz_headers(file, prefix)
    except (zipfile.BadZipFile, OSError, EOFError, zlib.error, RuntimeError) as e:
      raise ValueError(f"{file} is no .npz file, or is damaged: {values.one_line(e)}") from None
    except ValueError as e:
      raise ValueError(f"{file}: {values.one_line(e)}") from None
    for name, (_, dtype) in headers.items():
      if dtype.kind != "f" and dtype.str != "|V2":
        raise ValueError(f"{self.name}: {name} is of type {dtype}; parameters are floats")
    self.shapes = {name: shape for name, (shape, _) in headers.items()}

  def _read(self, name, part):
    try:
      with np.load(self.name, allow_pickle=False) as z:
        x = z[self._prefix + name]
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, zlib.error, RuntimeError) as e:
      raise ValueError(
        f"{self.name}: {name} cannot be read, the file is damaged: {values.one_line(e)}"
      ) from None
    if x.dtype.kind == "V":  # numpy stores bfloat16 as two bytes without a name
      import ml_dtypes

      x = x.view(ml_dtypes.bfloat16)
    return x[part]


def write_safetensors(file: pathlib.Path, arrays):
  """Writes (name, function that makes the array) pairs, one at a time: the library's own writer
  wants all at once.

  The header comes first and needs the sizes of all, so its room is kept free and filled in at the
  end.
  """
  arrays = list(arrays)
  room = 64 + sum(len(json.dumps(name)) + 200 for name, _ in arrays) // 8 * 8
  header, offset = {"__metadata__": {"format": "pt"}}, 0
  with file.open("wb") as f:
    f.seek(8 + room)
    for name, make in arrays:
      x = make()
      f.write(x.data if x.dtype.kind == "f" else x.tobytes())
      dtype = next(kind for kind, known in FLOATS.items() if known == x.dtype.name)
      header[name] = {"dtype": dtype, "shape": x.shape, "data_offsets": (offset, offset + x.nbytes)}
      offset += x.nbytes
    f.seek(0)
    f.write(room.to_bytes(8, "little") + json.dumps(header).encode().ljust(room))


def write_npz(file: pathlib.Path, arrays):
  """Writes (name, function that makes the array) pairs as numpy.savez does, one at a time."""
  with zipfile.ZipFile(file, "w") as z:
    for name, make in arrays:
      with z.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array(member, make(), allow_pickle=False)


def read_json(file: pathlib.Path) -> dict:
  """A JSON object. ValueError that names the file when it is none, or larger than any such
  file is.
  """
  try:
    if (size := file.stat().st_size) > JSON_BYTES:
      raise ValueError(f"it has {size} bytes, and at most {JSON_BYTES} are read")
    value = json.loads(file.read_text())
  except (OSError, ValueError, RecursionError) as e:
    raise ValueError(f"{file} cannot be read as JSON: {values.one_line(e)}") from None
  if not isinstance(value, dict):
    raise ValueError(f"{file} holds no JSON object")
  return value


def checked(file: pathlib.Path, name: str, value, like) -> Any:
  """A value of a JSON file, of the type of `like`: ints are positive, floats finite and positive.
  ValueError that names both.

  None is like an int.
  """
  kind = int if like is None else type(like)
  if kind is float and type(value) is int:
    value = float(value)
  if type(value) is not kind or kind in (int, float) and not 0 < value < math.inf:
    wanted = {
      int: "a positive int",
      float: "a positive number",
      list: "a list",
      dict: "a JSON object",
    }
    raise ValueError(f"{file}: {name}={value!r} is not {wanted.get(kind, f'a {kind.__name__}')}")
  return value


def channels(
  file: pathlib.Path, name: str, value, positive: bool = False
) -> tuple[float, float, float]:
  """A number for each of red, green and blue, of a JSON file. ValueError that names both."""
  numbers = value if isinstance(value, (list, tuple)) else ()
  fits = lambda x: type(x) in (int, float) and math.isfinite(x) and (x > 0 or not positive)
  if len(numbers) != 3 or not all(map(fits, numbers)):
    raise ValueError(
      f"{file}: {name}={value!r} is no list of three {'positive ' if positive else ''}numbers"
    )
  red, green, blue = map(float, numbers)
  return red, green, blue
