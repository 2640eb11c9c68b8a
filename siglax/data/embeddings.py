"""Whether the embeddings of config.data fit a config, a model and its image tower."""

from __future__ import annotations

import logging

from siglax.config import values
from siglax.data.sources import SOURCES

logger = logging.getLogger("siglax")
# What the parts of one dataset, and a file and the run that reads it, must share.
PICTURE_FIELDS = ("size", "mean", "std", "resize", "fit")
# What training does to pictures, and cannot do to embeddings: {field: the value that does nothing}.
AUGMENTATION = {
  "image.crop_min_area": 1.0,
  "image.pad": 0,
  "image.flip": False,
  "image.jitter": 0.0,
  "image.grey_probability": 0.0,
}


def given(config) -> bool:
  """Whether config.data holds precomputed embeddings in place of pictures."""
  return any(not SOURCES[spec["source"]].pictures for spec in config.data)


def validate(config):
  """Checks what needs neither data nor parameters when config.data holds embeddings; ValueError in
  one line.

  All specs must, nothing may change the image tower, and there must be one to start from.
  """
  if not given(config):
    return
  embedded = next(spec["source"] for spec in config.data if not SOURCES[spec["source"]].pictures)
  for i, spec in enumerate(config.data):
    if SOURCES[spec["source"]].pictures:
      raise ValueError(
        f"config.data.{i}.source={spec['source']!r} has pictures, another spec of config.data has "
        "embeddings; a batch holds the one or the other"
      )
  for field, value, needed in (
    ("model.image.dropout", config.model.image.dropout, 0.0),
    ("train.patch_drop", config.train.patch_drop, 0.0),
    ("model.image.lora_rank", config.model.image.lora_rank, 0),
  ):
    if value != needed:
      raise ValueError(
        f"config.{field}={value} changes the image tower, but config.data with "
        f'source "{embedded}" is past it; it must be {needed}'
      )
  if config.model.init_from is None:
    raise ValueError(
      f'config.model.init_from=None, but config.data has source "{embedded}"; give the image '
      "tower that made them, as siglax embed --from had it"
    )


def plain(value):
  """A value of config.image as a description has it, which JSON holds."""
  return list(value) if isinstance(value, tuple) else value


def check(config, sources, embed_dim: int):
  """ValueError when the embeddings do not fit the model, or their pictures were prepared otherwise
  than in evaluation. The log says what of config.image has no effect.
  """
  given = {field: values.get(config, field) for field in AUGMENTATION}
  idle = [f"config.{f}={value}" for f, value in given.items() if value != AUGMENTATION[f]]
  if idle:
    logger.warning("without effect, since config.data holds embeddings: %s", ", ".join(idle))
  for i, source in enumerate(sources):
    made, field = source.description, f"config.data.{i}.path"
    if made["width"] != embed_dim:
      raise ValueError(
        f"{field}: its embeddings are {made['width']} wide, but config.model.embed_dim is "
        f"{embed_dim}"
      )
    for name in PICTURE_FIELDS:
      here = plain(config.image[name])
      if (there := made["image"].get(name)) != here:
        raise ValueError(
          f"{field}: its pictures were embedded with image.{name}={there}, config.image.{name} is "
          f"{here}"
        )


def check_tower(sources, digest: str):
  """ValueError when the embeddings were made by another image tower than the one with this digest
  (siglax/runs/digest.py).
  """
  for i, source in enumerate(sources):
    made = source.description
    if made["digest"] != digest:
      raise ValueError(
        f"config.data.{i}.path: its embeddings are of another image tower ({made.get('tower')}, "
        f"{made['digest']}) than "
        f"this run's ({digest}); set config.model.init_from to that one, or run siglax embed "
        "--from this one"
      )
