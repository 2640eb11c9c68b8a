"""`siglax convert`: the examples of a source as shards of one size, by any number of jobs.

Shard k holds places k·E … (k+1)·E − 1 of the order, without the broken ones: a formula, so that
each shard is the same bytes whoever makes it. A shard appears whole, then a record of it in the
folder `shards`; one that has both is not made again. What is converted, and how, stands in
conversion.json from the start, and the manifest is written when all shards are there.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import os
import pathlib
import re
from typing import Any

import cv2
import numpy as np

from siglax.config import values
from siglax.data import captions as captions_lib
from siglax.data import filters
from siglax.data import images
from siglax.data import order as order_lib
from siglax.data import reading
from siglax.data import shards as shards_lib
from siglax.data import sources as sources_lib
from siglax.data import storage
from siglax.data.broken import Skipped
from siglax.data.broken import reason
from siglax.data.source import COMMON_FIELDS
from siglax.devices import cores
from siglax.devices import disk

logger = logging.getLogger("siglax")
CONVERSION, MANIFEST, RECORDS = "conversion.json", "manifest.json", "shards"
# Examples that a thread reads ahead.
AHEAD = 8
# Places of a shuffled order that are kept, to tell another one.
ORDER_KEPT = 16


@dataclasses.dataclass(frozen=True)
class Conversion:
  """What is written, and how. Two that are equal write the same bytes.

  spec: the data spec, without what the mix of a training reads. examples: of the source.
  short_side: None leaves the pictures as they are. shuffle: seed of the order, None for the
  source's own. first: the first places of a shuffled order. max_bytes, max_pixels: as of
  config.image. filtered: examples that were filtered out before these were counted. opencv: what
  resizes and encodes.
  """

  spec: dict
  examples: int
  format: str
  examples_per_shard: int
  short_side: int | None
  quality: int
  shuffle: int | None
  first: list[int] | None
  max_bytes: int
  max_pixels: int
  filtered: int = 0
  opencv: str = cv2.__version__

  @property
  def shards(self) -> int:
    return -(-self.examples // self.examples_per_shard)

  def file(self, shard: int) -> str:
    return f"{shard:05}.{self.format}"

  def places(self, shard: int) -> range:
    start = shard * self.examples_per_shard
    return range(start, min(start + self.examples_per_shard, self.examples))


def convert(
  spec: dict,
  folder,
  *,
  format: str = "array_record",
  examples_per_shard: int = 10_000,
  short_side: int | None = None,
  quality: int = 92,
  shuffle: int | None = None,
  job: tuple[int, int] = (0, 1),
  threads: int | None = None,
  image=None,
) -> dict | None:
  """Writes the shards of job i of n, those with the number i modulo n; returns the manifest, None
  while shards of other jobs are missing.

  spec: a data spec. format: of shards.WRITERS. short_side: pixels that the short side of a larger
  picture is shrunk to, encoded as JPEG of that quality; others keep their bytes. threads: None for
  one a core. image: as config.image, of which max_bytes and max_pixels are read.
  The manifest is {"conversion", "examples", "bytes", "resized", "skipped": {"examples", "reasons"},
  "filtered": examples that the spec's filters left out, "shards": [{"file", "examples", "bytes",
  "sha256"}, …]}. Raises ValueError in one line for a folder of something else, more broken examples
  than the spec's max_bad_fraction, and a disk that fails; the shards that are finished then stay.
  """
  sources_lib.validate_spec(spec, "SRC")
  if not sources_lib.SOURCES[spec["source"]].pictures:
    raise ValueError(f'SRC: source "{spec["source"]}" has no pictures to convert')
  captions_lib.refuse_weights(spec, "SRC")
  source = sources_lib.open_source(spec, "SRC")
  kept = {"source", *filters.FIELDS}
  order = _order(source, shuffle)
  conversion = Conversion(
    {k: v for k, v in spec.items() if k in kept or k not in COMMON_FIELDS},
    len(source),
    format,
    examples_per_shard,
    short_side,
    quality,
    shuffle,
    None if shuffle is None else [order(k) for k in range(min(ORDER_KEPT, len(source)))],
    image.max_bytes,
    image.max_pixels,
    getattr(source, "filtered", 0),
  )
  limit = spec.get("max_bad_fraction")
  limit = sources_lib.MAX_BAD_FRACTION if limit is None else limit
  folder = pathlib.Path(folder)
  try:
    _begin(folder, conversion, source)
    _write_missing(folder, conversion, source, order, limit, job, threads)
    return _finish(folder, conversion)
  except storage.Unreachable:
    raise
  except OSError as e:
    raise ValueError(
      f"DST {folder} cannot be written: {e.strerror or e}; the shards that are finished stay, and "
      "the same command goes on"
    ) from e


def _order(source, shuffle: int | None) -> Callable[[int], int]:
  """Place → example."""
  if shuffle is None:
    return lambda place: place
  if hasattr(source, "prepare_random_access"):
    source.prepare_random_access()
  return order_lib.Shuffle(len(source), shuffle).__getitem__


def _begin(folder: pathlib.Path, conversion: Conversion, source):
  """Makes the folder what this conversion is written to; ValueError where it is something else."""
  folder.mkdir(parents=True, exist_ok=True)
  file = folder / CONVERSION
  others = sorted(name for name in os.listdir(folder) if not name.startswith("."))
  # Another job may have begun since.
  if not file.exists():
    if others:
      raise ValueError(
        f"DST {folder} holds {others[0]} and no {CONVERSION}; give a folder that is empty or new"
      )
    disk.write_atomic(file, _json(dataclasses.asdict(conversion)))
  found = json.loads(file.read_bytes())
  # As JSON gives it back: a tuple is a list.
  for name, value in json.loads(json.dumps(dataclasses.asdict(conversion))).items():
    if found.get(name) != value:
      raise ValueError(
        f"DST {folder} holds another conversion, of {name}={values.shown(found.get(name))} and not "
        f"{values.shown(value)}; give another folder, or do as {file} says"
      )
  (folder / RECORDS).mkdir(exist_ok=True)
  for name, lines in (
    (captions_lib.CLASSNAMES, sources_lib.classnames(source)),
    (captions_lib.TEMPLATES, getattr(source, "templates", None)),
  ):
    if lines:
      disk.write_atomic(folder / name, "".join(f"{line}\n" for line in lines).encode())


def _write_missing(folder, conversion, source, order, limit, job, threads):
  """Writes the job's shards that are not there yet."""
  skipped, todo, count = Skipped(), [], 0
  for shard in range(job[0], conversion.shards, job[1]):
    count += len(conversion.places(shard))
    record = _record(folder, conversion, shard)
    if record is None:
      todo.append(shard)
    else:
      for found in record["skipped"]:
        skipped.add(found["first"], found["reason"], found["count"])
  places = itertools.chain.from_iterable(map(conversion.places, todo))
  read = functools.partial(_read, source, conversion)
  rows = reading.read_ahead(
    lambda place: read(order(place)), places, AHEAD * (threads or cores.usable()), threads
  )
  progress = reading.Progress(sum(len(conversion.places(shard)) for shard in todo))

  def sound(rows: Iterator[tuple[int, Any]], of_shard: Skipped, filtered: list[int]):
    for place, example in rows:
      progress.add(1)
      if not isinstance(example, Exception):
        yield place, example
        continue
      i, said = filters.number(source, order(place)), reason(example)
      if isinstance(example, filters.FilteredOut):
        filtered.append(i)
        continue
      of_shard.add(i, said)
      skipped.add(i, said)
      logger.warning("SRC: example %d is broken and left out: %s", i, said)
      if skipped.total > limit * count:
        raise ValueError(
          f"SRC: {skipped.total} of {count} examples are broken, the last, example {i}: {said}; "
          f"repair the data, or raise max_bad_fraction={limit} in SRC:max_bad_fraction=0.1"
        )

  for shard in todo:
    of_shard, filtered = Skipped(), []
    taken = itertools.islice(rows, len(conversion.places(shard)))
    made = _write(folder / conversion.file(shard), conversion, sound(taken, of_shard, filtered))
    made |= {"skipped": of_shard.listed(), "filtered": len(filtered)}
    disk.write_atomic(folder / RECORDS / f"{shard:05}.json", _json(made))


def _read(source, conversion: Conversion, i: int) -> dict:
  """An example as it is written; raises what a broken one raises."""
  example = source[i]
  captions = [caption for caption in example["captions"] if caption.strip()]
  "".join(captions).encode()  # raises for what no file of text can hold
  kinds = {"label": int, "weight": float, "key": str}
  more = {k: kind(example[k]) for k, kind in kinds.items() if example.get(k) is not None}
  if not captions and "label" not in more:
    raise ValueError("no caption and no label")
  data = example["image"]
  picture = images.decode(data, conversion)
  small = (
    picture if conversion.short_side is None else images.shrink(picture, conversion.short_side)
  )
  resized = small is not picture
  if resized:
    data = images.encode(small, ".jpg", cv2.IMWRITE_JPEG_QUALITY, conversion.quality)
  elif isinstance(data, np.ndarray) or images.read_header(data).format not in shards_lib.ENDINGS:
    data = images.encode(picture, ".png")
  return {"image": bytes(data), "captions": captions, "resized": resized} | more


def _write(file: pathlib.Path, conversion: Conversion, rows) -> dict:
  """Writes a shard; its record, without what was skipped."""
  examples = resized = 0
  with disk.replacing(file) as temporary:
    writer = shards_lib.WRITERS[conversion.format](temporary)
    for place, example in rows:
      writer.write(place, example)
      examples += 1
      resized += example["resized"]
    writer.close()
    with temporary.open("rb+") as written:
      digest = hashlib.file_digest(written, "sha256").hexdigest()
      size = written.tell()
      os.fsync(written.fileno())
  return {
    "file": file.name,
    "examples": examples,
    "bytes": size,
    "sha256": digest,
    "resized": resized,
  }


def _record(folder: pathlib.Path, conversion: Conversion, shard: int) -> dict | None:
  """The record of a shard that is whole."""
  try:
    record = json.loads((folder / RECORDS / f"{shard:05}.json").read_bytes())
    size = (folder / conversion.file(shard)).stat().st_size
  except FileNotFoundError:
    return None
  return record if record["bytes"] == size else None


def _finish(folder: pathlib.Path, conversion: Conversion) -> dict | None:
  """Writes the manifest where all shards are there."""
  records = []
  for shard in range(conversion.shards):
    if (record := _record(folder, conversion, shard)) is None:
      return None
    records.append(record)
  examples = sum(record["examples"] for record in records)
  if not examples:
    raise ValueError(f"SRC: all {conversion.examples} examples are broken or filtered out")
  skipped = Skipped()
  for record in records:
    for found in record["skipped"]:
      skipped.add(found["first"], found["reason"], found["count"])
  manifest = {
    "conversion": dataclasses.asdict(conversion),
    "examples": examples,
    "bytes": sum(record["bytes"] for record in records),
    "resized": sum(record["resized"] for record in records),
    "skipped": {"examples": skipped.total, "reasons": skipped.listed()},
    "filtered": conversion.filtered + sum(record["filtered"] for record in records),
    "shards": [
      {k: record[k] for k in ("file", "examples", "bytes", "sha256")} for record in records
    ],
  }
  disk.write_atomic(folder / MANIFEST, _json(manifest))
  # What killed jobs left.
  for left in [*folder.iterdir(), *(folder / RECORDS).iterdir()]:
    if re.fullmatch(r"\.\w+\.[0-9a-f]{16}\.\w+", left.name):
      left.unlink(missing_ok=True)
  return manifest


def _json(value) -> bytes:
  return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
