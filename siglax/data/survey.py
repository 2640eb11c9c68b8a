"""What a source holds: its captions, its pictures, and what is broken or there twice."""

from __future__ import annotations

import array
import collections
import hashlib

import numpy as np

from siglax.data import filters
from siglax.data import images
from siglax.data import reading
from siglax.data import sources as sources_lib
from siglax.data.broken import Skipped
from siglax.data.broken import reason
from siglax.devices import cores

# Of what is listed one by one.
LISTED = 10
BAR = 40


def survey(source, image, examples: int | None = None) -> dict:
  """Reads and decodes the examples of a source, or so many of them, evenly spaced.

  image: as config.image, of which max_bytes and max_pixels are read. Returns {"examples": of the
  source, "read": of them, "classes": their number, "labelled": examples, "captions": {number of
  captions: examples}, "words": {words of a caption: captions}, "short_side": {pixels: pictures},
  "long_by_short": {whole part of long side / short side: pictures}, "formats": {format: pictures},
  "bytes": of all pictures, "duplicates": {"pictures": copies of another one, "first": [[example,
  its copy], …]}, "broken": [{"count", "first", "reason"}, …], "broken_examples": the first
  numbers, "filtered": examples that the filters of its spec leave out: before the "examples" were
  counted, and of those that were read}. Words and pixels are the lower end of a range that reaches
  to the next power of two. Memory: 16 bytes an example that is read.
  """
  count = len(source)
  read = indices(count, examples)
  counts = {
    name: collections.Counter()
    for name in ("captions", "words", "short_side", "long_by_short", "formats")
  }
  skipped, broken = Skipped(), []
  digests, numbers = array.array("Q"), array.array("q")
  labelled = size = 0
  filtered = getattr(source, "filtered", 0)
  progress = reading.Progress(len(read))
  for i, found in reading.read_ahead(
    lambda i: _measured(source[i], image), read, 8 * cores.usable()
  ):
    progress.add(1)
    number = filters.number(source, i)
    if isinstance(found, filters.FilteredOut):
      filtered += 1
      continue
    if isinstance(found, Exception):
      skipped.add(number, reason(found))
      broken += [number] if len(broken) < LISTED else []
      continue
    for name, counter in counts.items():
      counter.update(found[name])
    labelled += found["labelled"]
    size += found["bytes"]
    digests.append(found["digest"])
    numbers.append(number)
  names = sources_lib.classnames(source)
  return {
    "examples": count,
    "read": len(read),
    "classes": len(names or ()),
    "labelled": labelled,
    **{name: dict(sorted(counter.items())) for name, counter in counts.items()},
    "bytes": size,
    "duplicates": _duplicates(np.array(digests, np.uint64), np.array(numbers, np.int64)),
    "broken": skipped.listed(),
    "broken_examples": broken,
    "filtered": filtered,
  }


def indices(count: int, examples: int | None) -> list[int] | range:
  """So many of 0 … count − 1, evenly spaced; all for None."""
  if examples is None or examples >= count:
    return range(count)
  return [k * count // examples for k in range(examples)]


def _measured(example: dict, image) -> dict:
  """What is counted of an example; raises what a broken one raises."""
  data = example["image"]
  pixels = images.decode(data, image)
  captions = [caption for caption in example["captions"] if caption.strip()]
  if not captions and example.get("label") is None:
    raise ValueError("no caption and no label")
  is_array = isinstance(data, np.ndarray)
  raw = data.tobytes() if is_array else bytes(data)
  short, long = sorted(pixels.shape[:2])
  return {
    "captions": [len(captions)],
    "words": [_power(len(caption.split())) for caption in captions],
    "short_side": [_power(short)],
    "long_by_short": [long // short],
    "formats": ["array" if is_array else images.read_header(data).format],
    "labelled": example.get("label") is not None,
    "bytes": len(raw),
    "digest": int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little"),
  }


def _power(value: int) -> int:
  """The power of two below or at a value."""
  return 1 << (value.bit_length() - 1) if value else 0


def _duplicates(digests: np.ndarray, numbers: np.ndarray) -> dict:
  order = np.argsort(digests, kind="stable")
  same = np.flatnonzero(digests[order][1:] == digests[order][:-1])
  pairs = np.stack([numbers[order][same], numbers[order][same + 1]], axis=1)
  return {"pictures": len(same), "first": sorted(pairs.tolist(), key=lambda p: p[1])[:LISTED]}


def lines(report: dict) -> list[str]:
  """A survey as text."""
  read, copies = report["read"], report["duplicates"]
  broken = sum(found["count"] for found in report["broken"])
  decoded = sum(report["formats"].values())  # neither broken nor filtered out
  found = [
    f"{report['examples']:,} examples"
    + ("" if read == report["examples"] else f", of which {read:,} were read"),
    f"{report['bytes'] / max(decoded, 1):,.0f} bytes a picture: "
    + (", ".join(f"{count:,} {name}" for name, count in report["formats"].items()) or "none read"),
    f"{report['labelled']:,} have a label, of {report['classes']:,} named classes",
  ]
  up_to = lambda low: f"{low}" if low < 2 else f"{low}–{2 * low - 1}"
  found += _histogram("captions an example", report["captions"], str)
  found += _histogram("words a caption", report["words"], up_to)
  found += _histogram("short side, pixels", report["short_side"], up_to)
  found += _histogram("long side / short side", report["long_by_short"], lambda k: f"{k}–{k + 1}")
  found.append(f"{copies['pictures']:,} pictures are copies of another one, byte by byte")
  found += [f"  example {j} is example {i}" for i, j in copies["first"]]
  if report["filtered"]:
    found.append(f"{report['filtered']:,} examples are filtered out")
  found.append(f"{broken:,} examples are broken")
  found += [
    f"  {b['count']:,}, first example {b['first']}: {b['reason']}" for b in report["broken"]
  ]
  if broken:
    found.append(f"  the first: {', '.join(map(str, report['broken_examples']))}")
  return found


def _histogram(title: str, counts: dict, name) -> list[str]:
  most, names = max(counts.values(), default=1), [name(key) for key in counts]
  width = max(map(len, names), default=0)
  digits = max((len(f"{count:,}") for count in counts.values()), default=0)
  return [title] + [
    f"  {name:>{width}}  {count:>{digits},}  {'█' * -(-BAR * count // most)}"
    for name, count in zip(names, counts.values())
  ]
