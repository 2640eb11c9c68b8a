"""Which fields of config describe a tower in use, and what a format carries of them.

A format has a table: field → ANY value, the tuple of values that its files can mean, or LEFT_OUT,
which they cannot say and whose loss is one line. A field that the table does not name can be
exported with its default only: a new option is refused until somebody has written down where it
goes.
"""

from __future__ import annotations

from siglax import config as config_lib
from siglax.models import transformer

ANY, LEFT_OUT = "any", "left out"
# How a tower is trained, how fast and how exactly it is computed, which files are refused: nothing
# of what it computes.
_TRAINING = {
  "image.crop_min_area",
  "image.crop_max_aspect",
  "image.pad",
  "image.flip",
  "image.jitter",
  "image.jitter_probability",
  "image.grey_probability",
  "image.max_pixels",
  "image.max_bytes",
  "text.captions",
  "model.init_from",
  "model.scale_init",
  "model.bias_init",
  "model.relative_bias",
  "model.image.patch_drop",
  *(
    f"model.{tower}.{name}"
    for tower in ("image", "text")
    for name in ("dropout", "lora_rank", "scan", "remat", "dtype", "attention")
  ),
}
# These are config.image's and config.text's.
_REFERENCES = {
  *("model.image.image_size", "model.image.mean", "model.image.std", "model.text.length"),
  "image.patch",
}


def describing(config, towers) -> dict[str, object]:
  """{field: value} of all that says what these towers compute of a picture or a text; the model's
  come first.
  """
  other = tuple(
    f"{group}{name}."
    for name in ("image", "text")
    if name not in towers
    for group in ("", "model.")
  )
  return {
    field: value
    for group in ("model", "image", "text")
    for field, value in config_lib.flatten(config[group], group).items()
    if field not in _TRAINING | _REFERENCES and not field.startswith(other)
  }


def carried(table: dict, field: str):
  """What a table says of a field: ANY, LEFT_OUT, or a tuple of values. "model.*" stands for all of
  them.
  """
  default = (config_lib.get(config_lib.default(), field),)
  return table.get(field, table.get(f"{field.partition('.')[0]}.*", default))


def refused(table: dict, config, towers) -> str | None:
  """The first field whose value the table has no place for, "config.FIELD=VALUE; it needs …"; None
  where there is none.
  """
  described = describing(config, towers).items()
  # A tower of another kind is the reason for all other fields.
  for field, value in sorted(described, key=lambda item: not item[0].endswith(".variant")):
    values = carried(table, field)
    if values not in (ANY, LEFT_OUT) and value not in values:
      return f"config.{field}={value!r}; it needs {' or '.join(repr(v) for v in values)}"
  return None


def any_value(*names: str) -> dict[str, str]:
  return dict.fromkeys(names, ANY)


def left_out(*names: str) -> dict[str, str]:
  return dict.fromkeys(names, LEFT_OUT)


def sizes(tower: str) -> dict[str, str]:
  """The four sizes of a transformer."""
  return any_value(*(f"model.{tower}.{name}" for name in ("width", "depth", "heads", "mlp_dim")))


def plain_vit() -> dict[str, tuple]:
  """What a Vision Transformer of Dosovitskiy et al. 2021 has, whatever its sizes, pool and head."""
  return {
    "model.image.variant": tuple(transformer.SIZES),
    "model.image.stem": ("patch",),
    "model.image.patch_bias": (True,),
    "model.image.position": ("learned",),
    "model.image.pre_norm": (False,),
    "model.image.grid": (16,),
  }


def preprocessing(config, towers) -> dict[str, object]:
  """{field: value} of what pictures and texts go through before the model."""
  return {
    field: value
    for field, value in describing(config, towers).items()
    if not field.startswith("model.")
  }
