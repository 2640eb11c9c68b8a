"""Folders of open_clip in: open_clip_config.json as a config, its arrays as they are."""

from __future__ import annotations

import pathlib

from siglax import config as config_lib
from siglax import models
from siglax.interop import files
from siglax.interop import layout
from siglax.interop import open_clip_names as names
from siglax.interop.checkpoint import Checkpoint
from siglax.models import resnet

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"


def open_folder(folder: pathlib.Path) -> Checkpoint:
  """A folder that `siglax export --format open_clip` wrote, or its like.

  Raises ValueError for an image tower that is neither timm's SigLIP nor CLIP's RN50 or RN101, or a
  text tower with other options.
  """
  file = folder / CONFIG
  found = files.read_json(file)
  config = config_lib.default()
  try:
    model, preprocess = (
      _Section(file, name, found[name]) for name in ("model_cfg", "preprocess_cfg")
    )
    vision, text = (
      _Section(file, f"model_cfg.{name}", model[name]) for name in ("vision_cfg", "text_cfg")
    )
    config.model.embed_dim = model.get("embed_dim", int)
    if vision.there("timm_model_name"):
      table = _open_trunk(config, vision, text, file)
    else:
      table = _open_resnet(config, model, vision, text, file)
    _open_text(config, model, text)
    image = config.image
    image.mean = files.channels(file, "preprocess_cfg.mean", preprocess["mean"])
    image.std = files.channels(file, "preprocess_cfg.std", preprocess["std"], positive=True)
    image.resize = preprocess.one_of(
      "interpolation", {name: name for name in ("bicubic", "bilinear")}
    )
    image.fit = preprocess.one_of("resize_mode", {"shortest": "crop", "squash": "squash"})
  except KeyError as e:
    raise ValueError(
      f"{file} does not describe a SigLIP or ResNet of open_clip: KeyError {e}"
    ) from None
  arrays = files.Safetensors(folder, WEIGHTS)
  if "logit_bias" in arrays.shapes:
    config.loss.bias_init = -10.0
  else:
    config.loss.name = "softmax"
  tokenizer = next((folder / n for n in files.TOKENIZERS if (folder / n).is_file()), None)
  if tokenizer:
    config.text.tokenizer = str(tokenizer)
    config.text.lowercase = _lowercase(folder / "tokenizer_config.json")
  return Checkpoint(arrays, table, config, models.TOWERS, tokenizer)


class _Section:
  """A JSON object of open_clip_config.json, whose values are checked as they are taken; errors name
  the file and the key.
  """

  def __init__(self, file, name, values):
    self._file, self._name = file, name
    self._values = files.checked(file, name, values, {})

  def __getitem__(self, key):
    return self._values[key]

  def there(self, key) -> bool:
    return self._values.get(key) is not None

  def get(self, key, like):
    """Its value, of the type of `like`; `like` itself where it is left out, and KeyError where
    `like` is a type.
    """
    value, like = (
      (self._values[key], like(1))
      if isinstance(like, type)
      else (self._values.get(key, like), like)
    )
    return files.checked(self._file, f"{self._name}.{key}", value, like)

  def section(self, key) -> _Section:
    """The object in it, {} where it is left out."""
    return _Section(self._file, f"{self._name}.{key}", self._values.get(key) or {})

  def one_of(self, key, values: dict):
    """What its value stands for; the first where it is left out."""
    value = self._values.get(key, next(iter(values)))
    if not isinstance(value, str) or value not in values:
      raise ValueError(
        f"{self._file}: {self._name}.{key}={value!r} is none that siglax has; it has "
        f"{', '.join(values)}"
      )
    return values[value]


def _open_text(config, model, text):
  """The fields that the text tower has beside either image tower."""
  tower = config.model.text
  tower.width, tower.depth, tower.heads = (
    text.get(name, int) for name in ("width", "layers", "heads")
  )
  tower.mlp_dim = int(tower.width * text.get("mlp_ratio", 4.0))
  tower.vocab_size, config.text.length = (
    text.get("vocab_size", 49_408),
    text.get("context_length", 77),
  )
  tower.eos_id = text.get("eos_id", 2)
  options = {name: text.section(name) for name in ("norm_kwargs", "act_kwargs")}
  tower.norm_eps = options["norm_kwargs"].get("eps", 1e-5)
  if model.get("quick_gelu", False):
    tower.activation = "quick_gelu"
  else:
    tower.activation = (
      "gelu_tanh" if options["act_kwargs"].get("approximate", "none") == "tanh" else "gelu"
    )


def _open_resnet(config, model, vision, text, file) -> layout.Table:
  """The image tower's fields, and those of the text tower that a SigLIP fixes."""
  layers, pool = str(vision["layers"]), text.get("pool_type", "argmax")
  sizes = {str(list(layers)): size for size, (_, layers, _) in resnet.SIZES.items()}
  heads = vision.get("head_width", 64)
  if (
    layers not in sizes
    or model.get("custom_text", False)
    or heads != 64
    or pool not in names.RESNET_POOLS
  ):
    raise ValueError(
      f"{file}: siglax reads open_clip's ResNets of layers {' or '.join(sizes)} with heads of 64 "
      "and text without "
      f"custom_text, pooled by {', '.join(names.RESNET_POOLS)}"
    )
  image, tower = config.model.image, config.model.text
  image.variant, image.width, config.image.size = (
    sizes[layers],
    vision.get("width", int),
    vision.get("image_size", int),
  )
  tower.causal, tower.pool = not text.get("no_causal_mask", False), pool
  tower.head = "linear" if text.get("proj_bias", False) else "linear_no_bias"
  return names.RESNETS[tower.head]


def _open_trunk(config, vision, text, file) -> layout.Table:
  """The image tower's fields, of the name that timm gives it."""
  trunks = {
    f"vit_{name}_patch{patch}_siglip_{size}": (name, patch, size, activation)
    for (name, patch), kinds in names.TRUNKS.items()
    for activation, sizes in kinds.items()
    for size in sizes
  }
  trunk = vision.get("timm_model_name", str)
  if trunk not in trunks or (text["pool_type"], text["no_causal_mask"]) != ("last", True):
    raise ValueError(
      f"{file}: siglax reads timm's vit_*_siglip_* with text pooled from its last position"
    )
  name, config.model.image.patch, config.image.size, config.model.image.activation = trunks[trunk]
  config.model.image.variant = names.SIZES[name]
  return names.TRUNK


def _lowercase(file) -> bool:
  given = files.read_json(file) if file.is_file() else {}
  return files.checked(file, "do_lower_case", given.get("do_lower_case", True), True)
