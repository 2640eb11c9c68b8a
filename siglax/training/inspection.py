"""What `siglax inspect` looks at: pictures and captions as a model gets them, and how far a run has
come in its data. No device is used.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from siglax import config as config_lib
from siglax import data as data_lib
from siglax.data import broken
from siglax.data import filters
from siglax.data import images
from siglax.data import loading
from siglax.data import order
from siglax.data import sheet
from siglax.data import survey
from siglax.runs import bucket
from siglax.runs import folder as folder_lib
from siglax.runs import stored
from siglax.training import replay

Cells = Iterator[tuple[np.ndarray, str]]


def cells(source, image, pictures: int) -> Cells:
  """(picture, captions) of so many sound examples of a source, evenly spaced, as they are."""
  for i in survey.indices(len(source), pictures):
    try:
      example = source[i]
      picture = images.decode(example["image"], image)
    except broken.NOT_BROKEN:
      raise
    except Exception:  # the survey tells of it
      continue
    yield sheet.fitted(picture), f"{filters.number(source, i)}: " + " / ".join(example["captions"])


def augmented_cells(source, config, pictures: int) -> Cells:
  """(view, caption) of so many examples, evenly spaced, as training with this config makes them; of
  a broken example another one's, as there.
  """
  text = folder_lib.text_processor(config)
  load = loading.ExampleLoader(0, source, 0, False, config.image, text)
  for i in survey.indices(len(source), pictures):
    row = load(i, np.random.default_rng([config.seed % 2**64, i]))
    yield row["image"], f"{row['index']}: {text.decode(row['tokens'])}"


def position(folder) -> dict:
  """How far a run has come, by its newest checkpoint: {"step", "batch_size", "data": [{"source",
  "examples", "elements": that it gave, "epoch": elements / examples, "drawn": elements and those in
  place of broken ones, by process 0, "broken": of these, "filtered": those that filters left out
  when they were read}, …]}. ValueError for a folder that has no checkpoint.
  """
  given, folder = folder, bucket.opened(folder)
  folder_lib.read_config(folder)
  meta = stored.Stored(folder).newest_meta()
  if meta is None or "counts" not in meta.get("data", {}):
    raise ValueError(f"--run {given} has no checkpoint that tells of its data")
  config, data = config_lib.from_json(meta["config"]), meta["data"]
  lengths = data["examples"]
  weights = order.shares_of(config, [range(length) for length in lengths])
  elements = order.Mix(weights).counts(meta["step"] * config.batch_size)
  return {
    "step": meta["step"],
    "batch_size": config.batch_size,
    "data": [
      {
        "source": dict(spec),
        "examples": length,
        "elements": count,
        "epoch": count / length,
        "drawn": drawn,
        "broken": bad,
        "filtered": filtered,
      }
      for spec, length, count, drawn, bad, filtered in zip(
        config.data,
        lengths,
        elements,
        data["counts"]["drawn"],
        data["counts"]["bad"],
        data["counts"].get("filtered", [0] * len(lengths)),
      )
    ],
  }


def batch_cells(folder, step: int, pictures: int) -> Cells:
  """(view, caption) of the first rows of the batch of a step, as in metrics.jsonl from 1."""
  given, folder = folder, bucket.opened(folder)
  config = replay.config_of(folder, step)
  text = folder_lib.text_processor(config, folder)
  sources = data_lib.open_data(config)
  total = config_lib.duration_steps(config, "total", data_lib.num_examples(sources))
  replay.check_step(given, step, total)
  batches = data_lib.train_batches(config, text, start_step=step - 1, sources=sources)
  try:
    rows = next(batches)
  finally:
    batches.close()
  if "image" not in rows:
    raise ValueError(f"--run {given} is trained on embeddings, which are no pictures")
  for k, i, picture, tokens in list(zip(*batches.last, rows["image"], rows["tokens"]))[:pictures]:
    rows = tokens.reshape(-1, tokens.shape[-1])
    yield picture, f"{k}/{i}: " + " / ".join(text.decode(row) for row in rows)
