"""Tars in WebDataset's layout, as img2dataset and CLIP_benchmark write them."""

from __future__ import annotations

import concurrent.futures
import json
import logging
import os

import numpy as np

from siglax.config import values
from siglax.config.parts import Field
from siglax.data import captions as captions_lib
from siglax.data import index as index_lib
from siglax.data import names as names_lib
from siglax.data import paths
from siglax.data import storage
from siglax.data import tar
from siglax.data.source import SKIP_DAMAGED
from siglax.data.source import Source

# What makes an index another one.
KIND = "tar 1"
# Tars that are indexed at a time; more would only wait for the disk.
INDEXED_AT_ONCE = 8
MAX_SHARDS = 10**7
logger = logging.getLogger("siglax")


class WebDataset:
  """Examples of tars, in the order of the tars: {"image": bytes, "captions": [str, …], "label",
  "weight", "key"}.

  Members in a row that share their name up to the first dot are an example, and that name is its
  key. Its picture is the member .jpg, .png and so on; its captions are the lines of the .txt, or a
  field of the .json; its label is the .cls; its weight is a field of the .json. One read gets it
  all. An example costs 4 bytes of memory; names are in the tars alone.
  Its arguments are the fields of SOURCE. classnames, templates: of the files classnames.txt and
  zeroshot_classification_templates.txt beside the tars or one folder up, else None. shard_sizes:
  int64 [tars], the examples of each, in their order.

  Raises ValueError, beginning with the argument, for a tar that is missing, compressed or damaged.
  """

  def __init__(self, path, caption, caption_weights, label, weights, template, skip_damaged_shards):
    self._path, self._label, self._weight = path, label, weights
    # The names of the captions; () takes what there is.
    self._names = () if caption is None else names_lib.split(caption)
    self._weights = None if caption_weights is None else names_lib.numbers(caption_weights)
    self._caption_templates = captions_lib.read_templates(template)
    files = paths.find(path, "webdataset", missing=skip_damaged_shards, in_folder=_tars)
    with concurrent.futures.ThreadPoolExecutor(INDEXED_AT_ONCE) as pool:
      indices = list(pool.map(_index, files))
    _report_damage(path, files, indices, skip_damaged_shards)
    self._spans = index_lib.Spans(files, indices, tar.BLOCK)
    self.shard_sizes, self.open_shards = self._spans.sizes, self._spans.most_open
    self.read_ahead = self._spans.read_ahead
    if not len(self):
      raise ValueError(f"path={path!r} has no examples: no member of the tars is named as NAME.jpg")
    self.classnames = captions_lib.beside(files, captions_lib.CLASSNAMES)
    self.templates = captions_lib.templates(files)

  def __len__(self) -> int:
    return len(self._spans)

  def __getitem__(self, i: int) -> dict:
    file, start, _ = self._spans[i]
    data, found = self._spans.read(i), {}
    try:
      for member in tar.members(lambda at, n: data[at : at + n], 0, len(data)):
        name, ending = tar.split(member.name)
        if name and ending in found:
          raise ValueError(f"{_shown(name)} has two members .{_shown(ending)}")
        if name:
          found[ending] = member
      return self._example(found, data)
    except tar.Damaged as e:
      raise ValueError(f"{file!r}, byte {start + e.offset}: {e}") from None
    except ValueError as e:
      raise ValueError(f"{file!r}, byte {start}: {e}") from None

  def prepare_random_access(self):
    """Examples in any order are read one by one from here on."""
    self._spans.random = True

  def __repr__(self):
    return f"WebDataset({self._path!r})"

  def _example(self, found: dict[bytes, tar.Member], data: bytes) -> dict:
    def content(ending):
      member = found[ending]
      if member.kind != "file":
        raise ValueError(_no_file(member))
      return data[member.offset : member.offset + member.size]

    key = _shown(tar.split(next(iter(found.values())).name)[0])
    picture = next((ending for ending in _PICTURES if ending in found), None)
    if picture is None:
      names = ", ".join("." + _shown(ending) for ending in found)
      raise ValueError(
        f"{key} has {names} and no picture; the members of an example must follow each other"
      )
    fields = _json(content(b"json"), key) if self._reads_json(found) else None
    label = content(b"cls") if b"cls" in found else None
    if self._label is not None:
      label = fields.get(self._label) if isinstance(fields, dict) else None
    elif label is not None:
      label = captions_lib.text(label, f"{key}.cls")
    label = captions_lib.label(label, f"{key}.{self._label or 'cls'}")
    names = self._names or ("txt" if b"txt" in found else "caption",)
    captions = captions_lib.of_example(
      [self._captions(name, found, content, fields, key) for name in names],
      self._weights,
      label,
      self.classnames,
      self._caption_templates,
    )
    example = {"image": content(picture), **captions, "key": key}
    if label is not None:
      example["label"] = label
    weight = fields.get(self._weight) if isinstance(fields, dict) and self._weight else None
    return example if weight is None else example | {"weight": _number(weight, self._weight, key)}

  def _reads_json(self, found) -> bool:
    captions = self._names != ("txt",) if self._names else b"txt" not in found
    return b"json" in found and (captions or bool(self._label or self._weight))

  def _captions(self, name, found, content, fields, key) -> list[str]:
    """Those of the .txt, or of a field of the .json."""
    if name == "txt" and b"txt" in found:
      return captions_lib.lines(content(b"txt"), f"{key}.txt")
    if isinstance(fields, dict):
      fields = fields.get(name)
    return captions_lib.listed(fields, f"{key}.json: {name}")


_PICTURES = tuple(ending.encode() for ending in paths.PICTURE_ENDINGS)


def _index(file: str) -> index_lib.Index:
  """Of a tar; one that is missing or empty is damaged at its first byte."""
  try:
    if not storage.size(file):
      raise ValueError(f"{file!r} is empty (0 bytes)")
  except ValueError as e:
    said = str(e).removeprefix(repr(file)).removeprefix(":").strip()
    return index_lib.Index(np.zeros(1, np.uint32), 0, (0, said))
  return index_lib.of_file(file, KIND, _indexed)


def _indexed(file: str, size: int) -> index_lib.Index:
  paths.refuse_compressed(file)
  return tar.index(file, size)


def _report_damage(path, files, indices, skip: bool):
  damaged = [(file, index) for file, index in zip(files, indices) if index.damage]
  for file, index in damaged:
    said = f"path={file!r} {index.damage[1]}"
    if not skip:
      raise ValueError(
        f"{said}; mend it, or set skip_damaged_shards=True to use the {len(index):,} examples "
        "before it and the other tars"
      )
    lost = index.size - int(index.starts[-1]) * tar.BLOCK
    logger.warning("%s; %d examples before it are used, %d bytes are lost", said, len(index), lost)
  if damaged:
    logger.warning("path=%r: %d of %d tars are damaged", path, len(damaged), len(files))


def _tars(folder: str) -> list[str]:
  """The tars of a folder; of CLIP_benchmark's, by the number in nshards.txt."""
  tars = storage.glob_in(folder, "*.tar")
  numbered = os.path.join(folder, "nshards.txt")
  if storage.exists(numbered) and os.path.join(folder, "0.tar") in tars:
    count = storage.read_all(numbered, 2**10).strip()
    if not count.isdigit() or int(count) > MAX_SHARDS:
      raise ValueError(f"path={folder!r}: nshards.txt holds {count[:20]!r}, no number of tars")
    return [os.path.join(folder, f"{k}.tar") for k in range(int(count))]
  if tars:
    return tars
  if compressed := storage.glob_in(folder, "*.tar.*") + storage.glob_in(folder, "*.tgz"):
    return compressed
  folders = sorted({os.path.dirname(file) for file in storage.glob_in(folder, "*/*.tar")})
  if len(folders) == 1:
    return _tars(folders[0])
  if folders:
    raise ValueError(
      f"path={folder!r} is a folder with tars in {', '.join(map(os.path.basename, folders))}; use "
      f"one of them, such as {folders[0]!r}, or {os.path.join(folder, '*/*.tar')!r} for all"
    )
  return paths.refuse_folder(folder, "webdataset")


def _json(data: bytes, key: str):
  try:
    return json.loads(captions_lib.text(data, f"{key}.json"))
  except (ValueError, RecursionError) as e:
    raise ValueError(f"{key}.json: {values.one_line(e)}") from None


def _number(value, field: str, key: str) -> float:
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    raise ValueError(f"{key}.json: {field}={values.shown(value)} is no number")
  return float(value)


def _no_file(member: tar.Member) -> str:
  if member.kind == "link":
    return (
      f"{_shown(member.name)} is a link to {_shown(member.target)}; write the tar with "
      "tar --dereference --hard-dereference"
    )
  if member.kind == "sparse":
    return f"{_shown(member.name)} is stored as a sparse file; write the tar without --sparse"
  return f"{_shown(member.name)} is no file"


def _shown(name: bytes) -> str:
  return name.decode("utf-8", "replace")


SOURCE = Source(
  "webdataset",
  "tars in WebDataset's layout: a.jpg with a.txt, a.json or a.cls, then b.jpg, and so on",
  WebDataset,
  check=names_lib.check,
  endings=("tar", "tar.gz", "tar.bz2", "tar.xz", "tar.zst"),
  fields={
    "path": Field(
      None,
      "a tar, a folder of tars, a glob, braces, a tuple of them, or the same with commas: "
      '"{00000..00041}.tar,more"',
      kind=str | tuple,
      check=paths.path_problem,
    ),
    **names_lib.caption(
      'what holds the captions: "txt", a caption a line, or a field of the .json, a string or a '
      'list; None takes the .txt where there is one, or else the field "caption"'
    ),
    "label": Field(
      None,
      "field of the .json with the class index; None takes the .cls where there is one",
      kind=str,
      optional=True,
    ),
    "weights": Field(
      None,
      "field of the .json with the weight of an example in the loss; siglax convert writes "
      '"weight". None: all weigh 1',
      kind=str,
      optional=True,
    ),
    "template": captions_lib.TEMPLATE,
    "skip_damaged_shards": SKIP_DAMAGED,
  },
)
