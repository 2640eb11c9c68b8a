"""`siglax convert`: the examples of a source as shards of one size, by any number of jobs.

Shard k holds places k·E … (k+1)·E − 1 of the order, without the broken ones: a formula, so that
each shard is the same bytes whoever makes it. A shard appears whole, then a record of it in the
folder `shards` (siglax/data/parts.py). What is converted, and how, stands in conversion.json from
the start, and the manifest is written when all shards are there.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
import dataclasses
import functools
import itertools
import logging
import pathlib
from typing import Any

import cv2
import numpy as np

from siglax.data import captions as captions_lib
from siglax.data import filters
from siglax.data import images
from siglax.data import order as order_lib
from siglax.data import parts as parts_lib
from siglax.data import reading
from siglax.data import shards as shards_lib
from siglax.data import sources as sources_lib
from siglax.data import storage
from siglax.data import uploads
from siglax.data.broken import Skipped
from siglax.data.broken import reason
from siglax.data.source import COMMON_FIELDS
from siglax.devices import cores

logger = logging.getLogger("siglax")
CONVERSION, MANIFEST = "conversion.json", "manifest.json"
# Examples that a thread reads ahead.
AHEAD = 8
# Places of a shuffled order that are kept, to tell another one.
ORDER_KEPT = 16
# Fields of all sources that decide what is written; the others are of training.
KEPT = {"source", *filters.FIELDS}


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
  order = _order(source, shuffle)
  conversion = Conversion(
    {k: v for k, v in spec.items() if k in KEPT or k not in COMMON_FIELDS},
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
  parts = parts_lib.Parts(folder, CONVERSION, conversion.file)
  try:
    _begin(parts, conversion, source)
    _write_missing(parts, conversion, source, order, limit, job, threads)
    return _finish(parts, conversion, job)
  except storage.Unreachable:
    raise
  except OSError as e:
    # Another start of the command may have finished, and removed what this one was writing.
    if isinstance(e, FileNotFoundError) and (found := parts.read(MANIFEST)) is not None:
      return found
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


def _begin(parts: parts_lib.Parts, conversion: Conversion, source):
  """Makes the folder what this conversion is written to; ValueError where it is something else."""
  names = parts.names()
  if names and CONVERSION not in names:
    raise ValueError(
      f"DST {parts.folder} holds {names[0]} and no {CONVERSION}; give a folder that is empty or new"
    )
  if other := parts.begin(dataclasses.asdict(conversion)):
    raise ValueError(
      f"DST {parts.folder} holds another conversion, of {other}; give another folder, or do as "
      f"{parts.path(CONVERSION)} says"
    )
  for name, lines in (
    (captions_lib.CLASSNAMES, sources_lib.classnames(source)),
    (captions_lib.TEMPLATES, getattr(source, "templates", None)),
  ):
    if lines:
      uploads.write(parts.path(name), "".join(f"{line}\n" for line in lines).encode())


def _write_missing(parts, conversion, source, order, limit, job, threads):
  """Writes the job's shards that are not there yet."""
  skipped, todo, count = Skipped(), [], 0
  shards = range(job[0], conversion.shards, job[1])
  for shard, record in zip(shards, parts.records(shards)):
    count += len(conversion.places(shard))
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
    found = sound(taken, of_shard, filtered)
    # What is skipped is known once the shard is written.
    parts.make(
      shard,
      lambda file: (
        _write(file, conversion, found) | {"skipped": of_shard.listed(), "filtered": len(filtered)}
      ),
    )


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
  """Writes a shard; what its record says of the examples in it."""
  examples = resized = 0
  writer = shards_lib.WRITERS[conversion.format](file)
  for place, example in rows:
    writer.write(place, example)
    examples += 1
    resized += example["resized"]
  writer.close()
  return {"examples": examples, "resized": resized}


def _finish(parts: parts_lib.Parts, conversion: Conversion, job: tuple[int, int]) -> dict | None:
  """Writes the manifest where all shards are there; ValueError where one of the job's is gone."""
  records = parts.records(range(conversion.shards))
  for shard in range(job[0], conversion.shards, job[1]):
    if records[shard] is None:
      raise ValueError(
        f"DST {parts.part(shard)} was written and is gone, or is of another size now; the same "
        "command makes it again"
      )
  if None in records:
    return None
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
  parts.write(MANIFEST, manifest)
  parts.tidy()
  return manifest
