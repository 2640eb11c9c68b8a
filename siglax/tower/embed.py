"""`siglax embed`: the embeddings of a dataset, made once, to train a text tower on or to search in.

A file is made in parts (siglax/data/parts.py) in a folder beside it, which the processes share;
then process 0 joins them. Each part is embedded by itself, so it is the same bytes whoever makes
it, and whatever was made before.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from typing import Any

import jax
import numpy as np
import pyarrow as pa

from siglax import tower as tower_lib
from siglax.config import versions
from siglax.data import captions as captions_lib
from siglax.data import embedding_files
from siglax.data import embeddings
from siglax.data import filters
from siglax.data import parts as parts_lib
from siglax.data import sources as sources_lib
from siglax.data import storage
from siglax.data import uploads
from siglax.data.broken import NOT_BROKEN
from siglax.data.broken import reason
from siglax.data.source import COMMON_FIELDS
from siglax.devices import distributed
from siglax.devices import mesh as mesh_lib
from siglax.runs import digest
from siglax.tower import embed_parts

# Of the folder of parts: what is made, and the description of the file once it is written.
ABOUT, DONE = "embedding.json", "description.json"
# A part is so many batches, but few data still make so many parts, and rows with image tokens are
# large, so that one batch is enough.
PART_BATCHES, LEAST_PARTS = 8, 64
# Examples that tell one dataset from another.
SAMPLE = 16
# Rows that are joined at a time.
ROWS_AT_ONCE = 1024


def embed(
  source,
  spec: dict,
  out,
  *,
  pictures=True,
  texts=False,
  tokens=False,
  batch_size: int | None = None,
  dtype="float32",
  shard: tuple[int, int] = (0, 1),
) -> dict:
  """Embeds the examples of a dataset with the towers at `source` into a file; returns its
  description, with "file". All processes call together, and each embeds a part of the examples.

  source: as of siglax.load. out: the file, a path or a URL. spec: a data spec. pictures, texts,
  tokens: whether these are embedded: the pictures, their captions, and the image tokens; with
  pictures=False captions alone, and no picture is decoded.
  batch_size: examples at a time over the devices of a process; None takes that of evaluation.
  dtype: what is stored. Pictures are prepared as in evaluation. shard: (i, n) embeds the i-th of n
  equal parts of the data, into a file of that name, `shard_name`.
  Started again after any end, it goes on, and the file is the same bytes. Nothing is at `out` until
  all is written. The description is {"siglax": version, "tower": source, "digest": the
  image tower's (siglax/runs/digest.py), "text_digest": the text tower's, each None where it was not
  used, "width": d, "dtype", "tokens": [patches, width] or None, "image": {size, mean, std, resize,
  fit}, "classnames": list or None, "examples", "skipped", "filtered"};
  siglax/data/embedding_files.py tells how the file holds it.
  Raises ValueError in one line for an `out` that exists, cannot hold the dtype or was begun with
  something else, a tower or a tokenizer that is not there, and more broken examples than the spec's
  max_bad_fraction.
  """
  _check(pictures, tokens, batch_size)
  out = shard_name(str(out), shard)
  make_writer = _writer(out, dtype)
  parts = parts_lib.Parts(f"{out}.parts", ABOUT, "{:05}.array_record".format)
  if (done := parts.read(DONE)) is None:
    uploads.check_new(out)
  dataset = _opened(spec, pictures)
  texts = texts or not pictures
  tower = _load(source, pictures, texts)
  limit = spec.get("max_bad_fraction")
  limit = sources_lib.MAX_BAD_FRACTION if limit is None else limit
  size = batch_size or tower.config.eval.batch_size
  size = -(-size // tower.mesh.size) * tower.mesh.size
  wanted = embed_parts.Wanted(pictures, texts, tokens, dtype, size, limit)
  spans = _spans(len(dataset), shard, wanted)
  about = _about(tower, dataset, spec, wanted, shard)
  distributed.check_same(about, "--from, --data and flags")
  with _stopped(parts, out, len(spans)):
    _begin(parts, out, about, len(spans))
    if done is not None and uploads.exists(out):  # all was done but this
      description = done
      distributed.in_shares(lambda go_on: None, lambda: parts.remove() or {})
    else:
      mine = dict(list(enumerate(spans))[jax.process_index() :: jax.process_count()])
      make = lambda go_on: embed_parts.make(tower, dataset, wanted, parts, mine, go_on)
      begun = _description(tower, source, about, dataset)
      join = lambda: _join(parts, len(spans), make_writer, out, begun)
      description = distributed.in_shares(make, join)
  return {**description, "file": out}


@contextlib.contextmanager
def _stopped(parts: parts_lib.Parts, out: str, count: int):
  """After an error: says where the parts stay, and leaves nothing where there is none."""
  try:
    yield
  except BaseException as e:
    stay = ended = False
    with contextlib.suppress(OSError):
      stay = jax.process_count() > 1 or any(parts.records(range(count)))
      ended = parts.read(ABOUT) is None and uploads.exists(out)
      if not stay:
        parts.remove()
    if ended and isinstance(e, Exception):  # whatever a part that is gone makes a library raise
      raise ValueError(
        f"--out {out}: another siglax embed has written it meanwhile, and removed {parts.folder}"
      ) from e
    if isinstance(e, storage.Unreachable) or not isinstance(e, (OSError, pa.ArrowException)):
      raise
    going_on = f"; the parts in {parts.folder} stay, and the same command goes on" if stay else ""
    said = getattr(e, "strerror", None) or e
    raise ValueError(f"--out {out} cannot be written: {said}{going_on}") from e


def shard_name(out: str, shard: tuple[int, int]) -> str:
  """The file of job i of n: a.npz is a-00002-of-00008.npz, of one job itself."""
  stem, ending = os.path.splitext(out)
  return out if shard[1] == 1 else f"{stem}-{shard[0]:05}-of-{shard[1]:05}{ending}"


def _check(pictures: bool, tokens: bool, batch_size: int | None):
  if tokens and not pictures:
    raise ValueError("--tokens are of pictures, and --texts-only embeds none; leave one out")
  if batch_size is not None and batch_size < 1:
    raise ValueError(f"--batch-size {batch_size} must be at least 1")


def _opened(spec, pictures: bool):
  """The examples of a data spec."""
  sources_lib.validate_spec(spec, "--data")
  if pictures and not sources_lib.SOURCES[spec["source"]].pictures:
    raise ValueError(f'--data: source "{spec["source"]}" has no pictures to embed')
  captions_lib.refuse_weights(spec, "--data")
  return sources_lib.open_source(spec, "--data")


def _load(source, pictures: bool, texts: bool):
  """The tower, on the devices of this process; ValueError where it lacks what is to be embedded."""
  tower = tower_lib.load(source)
  if pictures and "image" not in tower.params:
    raise ValueError(f"--from {source} has no image tower")
  if texts and ("text" not in tower.params or tower.text is None):
    lacking = "tokenizer" if "text" in tower.params else "text tower"
    flag = "--texts" if pictures else "--texts-only"
    raise ValueError(f"{flag} needs the captions' embeddings, but --from {source} has no {lacking}")
  if jax.process_count() == 1:
    return tower
  mesh = mesh_lib.local()
  params = mesh_lib.to_local(mesh, tower.params)
  return tower_lib.Tower(tower.config, params, tower.text, mesh, tower.model)


def _writer(out: str, dtype: str):
  suffix = os.path.splitext(out)[1]
  if suffix not in embedding_files.WRITERS:
    raise ValueError(f"--out {out} must end in {', '.join(embedding_files.WRITERS)}")
  make_writer = embedding_files.WRITERS[suffix]
  if dtype not in make_writer.dtypes:
    able = [ending for ending, writer in embedding_files.WRITERS.items() if dtype in writer.dtypes]
    raise ValueError(
      f"--dtype {dtype} has no place in {suffix}, which holds {', '.join(make_writer.dtypes)}"
      + (f"; {', '.join(able)} does" if able else "")
    )
  return make_writer


def _spans(count: int, shard: tuple[int, int], wanted: embed_parts.Wanted) -> list[range]:
  """The examples of each part of a job's file, in order."""
  i, n = shard
  first, end = i * count // n, (i + 1) * count // n
  if n > count:
    raise ValueError(f"--shard {i}/{n}: the data has {count} examples; take at most {count} jobs")
  most = 1 if wanted.tokens else PART_BATCHES
  size = wanted.batch * max(1, min(most, (end - first) // (LEAST_PARTS * wanted.batch)))
  return [range(start, min(start + size, end)) for start in range(first, end, size)]


def _about(tower, dataset, spec: dict, wanted: embed_parts.Wanted, shard) -> dict[str, Any]:
  """What the bytes of the parts depend on."""
  config = tower.config
  digests = {"digest": None, "text_digest": None}
  if wanted.pictures:
    digests["digest"] = digest.image_tower(tower.model, tower.params, tower.mesh)
  if wanted.texts:
    digests["text_digest"] = digest.text_tower(tower.model, tower.params, tower.mesh)
  fields = (*embeddings.PICTURE_FIELDS, "max_bytes", "max_pixels")
  kept = {"source", *filters.FIELDS}
  return digests | {
    "image": {name: config.image[name] for name in fields} if wanted.pictures else None,
    "compute": config.train.dtype,
    "spec": {k: v for k, v in spec.items() if k in kept or k not in COMMON_FIELDS},
    "filtered": getattr(dataset, "filtered", 0),
    "examples": len(dataset),
    "sample": _sample(dataset, wanted.pictures, tower.text if wanted.texts else None),
    "tokens": wanted.tokens,
    "dtype": wanted.dtype,
    "batch_size": wanted.batch,
    "shard": list(shard),
  }


def _sample(dataset, pictures: bool, text) -> str:
  """A digest of examples that are spread over the data, and of their tokens."""
  found = hashlib.sha256()
  for i in np.linspace(0, len(dataset) - 1, min(SAMPLE, len(dataset))).astype(int).tolist():
    try:
      captions = getattr(dataset, "captions", None)
      example = (
        dataset[i] if pictures or captions is None else {"captions": captions(i), "image": b""}
      )
      found.update(repr(example["captions"]).encode(errors="replace"))
      if pictures:
        found.update(np.ascontiguousarray(np.frombuffer(example["image"], np.uint8)))
      if text is not None:
        found.update(text(list(example["captions"])))
    except NOT_BROKEN:
      raise
    except Exception as e:  # whatever a source raises of a broken example
      found.update(reason(e).encode())
  return found.hexdigest()[:16]


def _begin(parts: parts_lib.Parts, out: str, about: dict, count: int):
  """ValueError where parts of something else are there."""
  if (other := parts.begin(about)) is None:
    return
  if any(parts.records(range(count))) or uploads.exists(out):
    raise ValueError(
      f"--out {out}: {parts.folder} holds parts of another embedding, of {other}; give another "
      "path, or delete that folder"
    )
  parts.write(ABOUT, about)


def _description(tower, source, about: dict, dataset) -> dict:
  names, image = sources_lib.classnames(dataset), about["image"]
  return {
    "siglax": versions.SIGLAX,
    "tower": str(source),
    "dtype": about["dtype"],
    "digest": about["digest"],
    "text_digest": about["text_digest"],
    "image": image
    and {
      name: list(x) if isinstance(x := image[name], tuple) else x
      for name in embeddings.PICTURE_FIELDS
    },
    "classnames": names and list(names),
    "filtered": about["filtered"],
  }


def _join(parts: parts_lib.Parts, count: int, make_writer, out: str, description: dict) -> dict:
  """Writes the file from its parts, which it removes; the whole description."""
  records = parts.records(range(count))
  missing = [k for k, record in enumerate(records) if record is None]
  if missing:
    raise ValueError(
      f"--out {out}: {len(missing)} of the {count} parts in {parts.folder} are not to be seen in "
      "process 0; name a disk that all processes share, or a bucket"
    )
  rows = next((record for record in records if record["examples"]), None)
  if rows is None:
    parts.remove()
    examples = sum(record["filtered"] for record in records)
    examples += sum(found["count"] for record in records for found in record["skipped"])
    raise ValueError(f"--data: all {examples} examples are broken or filtered out")
  description |= {
    "width": rows["width"],
    "tokens": rows["tokens"],
    "examples": sum(record["examples"] for record in records),
    "skipped": sum(found["count"] for record in records for found in record["skipped"]),
    "filtered": description["filtered"] + sum(record["filtered"] for record in records),
  }
  with uploads.replacing(out) as temporary:
    writer = make_writer(temporary)
    for number in range(count):
      with parts.local(number) as file:
        for found in embedding_files.rows_of(file, ROWS_AT_ONCE):
          writer.write(found)
    writer.close(description)
    parts.write(DONE, description)
  parts.remove()
  return description
