"""`siglax embed`: the embeddings of a dataset's pictures, made once, to train a text tower on or to
search in.
"""

from __future__ import annotations

import itertools
import logging
import os
from typing import Iterator

import jax
import numpy as np
import pyarrow as pa

from siglax import tower as tower_lib
from siglax.config import values
from siglax.config import versions
from siglax.data import captions as captions_lib
from siglax.data import embedding_files
from siglax.data import embeddings
from siglax.data import filters
from siglax.data import images as images_lib
from siglax.data import reading
from siglax.data import sources as sources_lib
from siglax.data import storage
from siglax.data import uploads
from siglax.devices import mesh as mesh_lib
from siglax.runs import digest
from siglax.tower import embedder

logger = logging.getLogger("siglax")


def embed(
  source,
  spec: dict,
  out,
  *,
  texts=False,
  tokens=False,
  batch_size: int | None = None,
  dtype="float32",
) -> dict:
  """Embeds every picture of a dataset with the image tower at `source` into the file `out`; returns
  its description.

  source: as of siglax.load. out: a path or a URL. spec: a data spec. texts: also the captions'
  embeddings; tokens: also the image tokens.
  batch_size: pictures at a time over all devices; None takes that of evaluation. dtype: what is
  stored. Pictures are prepared as in evaluation. The description is {"siglax": version, "tower":
  source, "digest": the image tower's (siglax/runs/digest.py), "width": d, "dtype", "tokens":
  [patches, width] or None, "image": {size, mean, std, resize, fit}, "classnames": list or None,
  "examples", "skipped", "filtered"}; siglax/data/embedding_files.py tells how the file holds it.
  Nothing is there until all is written. Raises ValueError in one line for an `out` that exists or
  cannot hold the dtype, a tower or a tokenizer that is not there, and more broken pictures than the
  spec's max_bad_fraction.
  """
  out = str(out)
  make_writer = _writer(out, dtype)
  if batch_size is not None and batch_size < 1:
    raise ValueError(f"--batch-size {batch_size} must be at least 1")
  dataset = _opened(spec)
  tower = _load(source, texts)
  limit = spec.get("max_bad_fraction")
  readable = Readable(
    dataset, tower.config.image, sources_lib.MAX_BAD_FRACTION if limit is None else limit
  )
  try:
    with uploads.replacing(out) as temporary:
      writer, progress, first = make_writer(temporary), reading.Progress(len(dataset)), None
      for rows in _rows(tower, readable, texts, tokens, batch_size, embedding_files.DTYPES[dtype]):
        first = first or rows[0]
        writer.write(rows)
        progress.add(len(rows))
      if first is None:
        raise ValueError(f"--data: all {len(dataset)} examples are broken or filtered out")
      names = sources_lib.classnames(dataset)
      description = {
        **_description(tower, source, dtype, first),
        "classnames": names and list(names),
        "examples": progress.done,
        "skipped": readable.bad,
        "filtered": readable.filtered,
      }
      writer.close(description)
  except storage.Unreachable:
    raise
  except (OSError, pa.ArrowException) as e:
    raise ValueError(f"--out {out} cannot be written: {getattr(e, 'strerror', None) or e}") from e
  return description


def _opened(spec):
  """The examples of a data spec."""
  sources_lib.validate_spec(spec, "--data")
  if not sources_lib.SOURCES[spec["source"]].pictures:
    raise ValueError(f'--data: source "{spec["source"]}" has no pictures to embed')
  captions_lib.refuse_weights(spec, "--data")
  return sources_lib.open_source(spec, "--data")


def _load(source, texts: bool):
  """The tower; ValueError where it lacks what is to be embedded. texts: the captions too."""
  tower = tower_lib.load(source)
  if "image" not in tower.params:
    raise ValueError(f"--from {source} has no image tower")
  if texts and ("text" not in tower.params or tower.text is None):
    lacking = "tokenizer" if "text" in tower.params else "text tower"
    raise ValueError(
      f"--texts needs the captions' embeddings, but --from {source} has no {lacking}"
    )
  return tower


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
  if uploads.exists(out):
    raise ValueError(f"--out {out} exists; give a path that does not")
  return make_writer


def _description(tower, source, dtype, row) -> dict:
  image = tower.config.image
  return {
    "siglax": versions.SIGLAX,
    "tower": str(source),
    "dtype": dtype,
    "digest": digest.image_tower(tower.model, tower.params, tower.mesh),
    "width": row["image_embedding"].shape[0],
    "tokens": list(row["image_tokens"].shape) if "image_tokens" in row else None,
    "image": {
      name: list(x) if isinstance(x := image[name], tuple) else x
      for name in embeddings.PICTURE_FIELDS
    },
  }


class Readable:
  """The examples of a source that can be read, in order, their pictures prepared as in evaluation;
  the broken ones are named and skipped.

  bad, filtered: how many were skipped, and how many the filters of its spec left out. Raises
  ValueError when more than `limit` of all are broken.
  """

  def __init__(self, source, image_config, limit: float):
    self._source, self._limit, self.bad = source, limit, 0
    self.filtered = getattr(source, "filtered", 0)
    self._image_config = image_config

  def batches(self, size: int) -> Iterator[list[dict]]:
    """Lists of `size` examples, fewer in the last: {"image": uint8 [S, S, 3], "captions", …}."""
    batch = []
    for i, example in reading.read_ahead(self._read, range(len(self._source)), 2 * size):
      if isinstance(example, filters.FilteredOut):
        self.filtered += 1
      elif isinstance(example, Exception):
        self._skip(filters.number(self._source, i), example)
      else:
        batch.append(example)
      if len(batch) == size or batch and i == len(self._source) - 1:
        yield batch
        batch = []

  def _read(self, i: int) -> dict:
    example = self._source[i]
    "".join(example["captions"]).encode()  # raises for what no file of text can hold
    image = images_lib.prepare(example["image"], self._image_config)
    row = {"image": image, "captions": list(example["captions"])}
    kinds = {"label": int, "weight": float, "key": str}
    return row | {
      name: kind(example[name]) for name, kind in kinds.items() if example.get(name) is not None
    }

  def _skip(self, i: int, error: Exception):
    reason = values.one_line(error)
    self.bad += 1
    logger.warning("--data: example %d is broken and skipped: %s", i, reason)
    if self.bad > self._limit * len(self._source):
      raise ValueError(
        f"--data: {self.bad} of the first {i + 1} examples are broken, the last, example {i}: "
        f"{reason}; repair the data, or raise max_bad_fraction={self._limit} (of "
        f"{len(self._source)}) in --data DATA:max_bad_fraction=0.1"
      )


def _rows(tower, readable: Readable, texts, tokens, batch_size, dtype) -> Iterator[list[dict]]:
  """The embedded examples in batches."""
  mesh, model = tower.mesh, tower.model
  size = -(-(batch_size or tower.config.eval.batch_size) // mesh.size) * mesh.size

  def outputs(params, images):
    found = {"image_embedding": model.embed_image(params, images)}
    if tokens:
      found["image_tokens"] = model.image_tokens(params, images)
    return jax.tree.map(lambda x: x.astype(dtype), found)

  run = jax.jit(outputs, out_shardings=mesh_lib.replicated(mesh))
  # The last batch repeats its last example up to the full size, so that one program serves all.
  batches = (
    (examples, np.stack([e["image"] for e in examples + examples[-1:] * (size - len(examples))]))
    for examples in readable.batches(size)
  )
  for examples, found in embedder.in_turn(lambda x: run(tower.params, x), mesh, batches):
    rows = [{k: v for k, v in example.items() if k != "image"} for example in examples]
    for name, x in found.items():
      for row, value in zip(rows, x):
        row[name] = value
    if texts:
      captions = [row["captions"] for row in rows]
      ztxt = tower.embed_texts(list(itertools.chain(*captions)), size).astype(dtype)
      parts = np.split(ztxt.reshape(-1, model.embed_dim), np.cumsum(list(map(len, captions)))[:-1])
      for row, part in zip(rows, parts):
        row["text_embeddings"] = part
    yield rows
