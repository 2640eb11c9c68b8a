"""Folders of open_clip in: open_clip_config.json as a config, its arrays as they are."""

from __future__ import annotations

import pathlib

from siglax import config as config_lib
from siglax import models
from siglax.config import recipes
from siglax.interop import files
from siglax.interop import layout
from siglax.interop import open_clip_names as names
from siglax.interop import texts
from siglax.interop.checkpoint import Checkpoint
from siglax.models import resnet

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"


def open_folder(folder: pathlib.Path) -> Checkpoint:
  """A folder that `siglax export --format open_clip` wrote, or its like.

  Raises ValueError for an image tower that is none of timm's SigLIP, open_clip's own ViT and CLIP's
  RN50 or RN101, or a text tower with other options.
  """
  config, table = described(folder / CONFIG)
  arrays = files.Safetensors(folder, WEIGHTS)
  if "logit_bias" in arrays.shapes:
    config.loss.bias_init = -10.0
  else:
    config.loss.name = "softmax"
  tokenizer = _tokenizer(config, folder, is_clip=table is not names.TRUNK)
  return Checkpoint(arrays, table, config, models.TOWERS, tokenizer)


def described(file: pathlib.Path):
  """(config, table) of the towers that an open_clip_config.json describes."""
  found = files.read_json(file)
  config = config_lib.default()
  try:
    model = _Section(file, "model_cfg", found["model_cfg"])
    preprocess = _Section(file, "preprocess_cfg", found.get("preprocess_cfg") or {})
    vision, text = (
      _Section(file, f"model_cfg.{name}", model[name]) for name in ("vision_cfg", "text_cfg")
    )
    config.model.embed_dim = model.get("embed_dim", int)
    if vision.there("timm_model_name"):
      table = _open_trunk(config, vision, text, file)
    elif vision.is_list("layers"):
      table = _open_resnet(config, model, vision, text, file)
    else:
      table = _open_vit(config, model, vision, text, file)
    _open_text(config, model, text)
    if table is not names.TRUNK:
      model.only(_MODEL_OPTIONS, _NO_MATTER["model"])
      text.only(_TEXT_OPTIONS, _NO_MATTER["text"])
    image = config.image
    image.mean = preprocess.channels("mean", recipes.CLIP_MEAN)
    image.std = preprocess.channels("std", recipes.CLIP_STD, positive=True)
    image.resize = preprocess.one_of(
      "interpolation", {name: name for name in ("bicubic", "bilinear")}
    )
    image.fit = preprocess.one_of("resize_mode", {"shortest": "crop", "squash": "squash"})
  except KeyError as e:
    raise ValueError(f"{file} does not describe towers of open_clip: KeyError {e}") from None
  return config, table


class _Section:
  """A JSON object of open_clip_config.json, whose values are checked as they are taken; errors name
  the file and the key.
  """

  def __init__(self, file, name, values):
    self._file, self._name = file, name
    self._values = files.checked(file, name, values, {})
    self._taken = set()

  def __getitem__(self, key):
    self._taken.add(key)
    return self._values[key]

  def there(self, key) -> bool:
    return self._values.get(key) is not None

  def is_list(self, key) -> bool:
    return isinstance(self._values.get(key), list)

  def only(self, options: dict[str, tuple], no_matter: tuple[str, ...]):
    """ValueError for an option that makes another tower: one in `options` that is none of the
    values there, or one that nobody has taken and that is not in `no_matter`.
    """
    for key, value in self._values.items():
      if key in options and value not in options[key]:
        has = f"it has {' or '.join(map(repr, options[key]))}"
      elif value in (None, False) or key in {*options, *no_matter, *self._taken}:
        continue
      else:
        has = "it knows no such option"
      raise ValueError(
        f"{self._file}: {self._name}.{key}={value!r:.80} makes a tower that siglax does not have; "
        f"{has}"
      )

  def get(self, key, like):
    """Its value, of the type of `like`; `like` itself where it is left out, and KeyError where
    `like` is a type.
    """
    self._taken.add(key)
    value, like = (
      (self._values[key], like(1))
      if isinstance(like, type)
      else (self._values.get(key, like), like)
    )
    return files.checked(self._file, f"{self._name}.{key}", value, like)

  def section(self, key) -> _Section:
    """The object in it, {} where it is left out."""
    self._taken.add(key)
    return _Section(self._file, f"{self._name}.{key}", self._values.get(key) or {})

  def channels(self, key, default, positive=False):
    """A number for each of red, green and blue."""
    value = self._values.get(key, default)
    return files.channels(self._file, f"{self._name}.{key}", value, positive)

  def one_of(self, key, values: dict):
    """What its value stands for; the first where it is left out."""
    self._taken.add(key)
    value = self._values.get(key, next(iter(values)))
    if not isinstance(value, str) or value not in values:
      raise ValueError(
        f"{self._file}: {self._name}.{key}={value!r} is none that siglax has; it has "
        f"{', '.join(values)}"
      )
    return values[value]


def _open_text(config, model, text):
  """The fields that the text tower has beside any image tower."""
  tower = config.model.text
  tower.width, tower.heads, tower.depth = (
    text.get(name, default) for name, default in (("width", 512), ("heads", 8), ("layers", 12))
  )
  tower.mlp_dim = int(tower.width * text.get("mlp_ratio", 4.0))
  tower.vocab_size, config.text.length = (
    text.get("vocab_size", 49_408),
    text.get("context_length", 77),
  )
  tower.eos_id = text.get("eos_id", 2)
  tower.activation, tower.norm_eps = _functions(model, text)


def _functions(model, section) -> tuple[str, float]:
  """(activation, epsilon of the norms) of one of open_clip's own towers."""
  epsilon = section.section("norm_kwargs").get("eps", 1e-5)
  if model.get("quick_gelu", False):
    return "quick_gelu", epsilon
  tanh = section.section("act_kwargs").get("approximate", "none") == "tanh"
  return "gelu_tanh" if tanh else "gelu", epsilon


def _open_own_text(config, text):
  """The fields that a SigLIP fixes, of the text tower beside one of open_clip's own image towers;
  its kind of head.
  """
  tower = config.model.text
  tower.causal = not text.get("no_causal_mask", False)
  tower.pool = text.one_of("pool_type", {pool: pool for pool in names.POOLS})
  tower.head = "linear" if text.get("proj_bias", False) else "linear_no_bias"
  return tower.head


# What an option must be for siglax to have the tower, and options that change nothing of what it
# computes: of open_clip's CLIPVisionCfg and CLIPTextCfg.
_BLOCKS = {
  "ls_init_value": (None,),
  "block_type": (None, "default"),
  **dict.fromkeys(
    ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"),
    (False,),
  ),
}
_VISION_OPTIONS = {
  **_BLOCKS,
  "attentional_pool": (False,),
  "pos_embed_type": ("learnable",),
  "pool_type": ("tok",),
}
_TEXT_OPTIONS = {
  **_BLOCKS,
  "embed_cls": (False,),
  "proj_type": ("linear",),
  "hf_model_name": (None,),
}
_MODEL_OPTIONS = {"custom_text": (False,)}
# Options that change nothing of what these towers compute.
_NO_MATTER = {
  "model": ("init_logit_scale", "init_logit_bias", "nonscalar_logit_scale"),
  "vision": (
    *("output_tokens", "final_ln_after_pool", "patch_dropout"),
    *("attn_pooler_queries", "attn_pooler_heads", "timm_model_pretrained", "timm_pool"),
    *("timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path"),
  ),
  "text": (
    *("output_tokens", "final_ln_after_pool", "pad_id", "tokenizer_mode", "tokenizer_kwargs"),
    *("hf_tokenizer_name", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type"),
  ),
}


def _open_vit(config, model, vision, text, file) -> layout.Table:
  """The fields of open_clip's own ViT, and those of the text tower that a SigLIP fixes."""
  image = config.model.image
  image.width, image.depth = vision.get("width", 768), vision.get("layers", 12)
  config.image.size, image.patch = vision.get("image_size", 224), vision.get("patch_size", 16)
  head_width = vision.get("head_width", 64)
  if image.width % head_width:
    raise ValueError(
      f"{file}: model_cfg.vision_cfg.width={image.width} is not divisible by "
      f"head_width={head_width}"
    )
  image.heads = image.width // head_width
  image.mlp_dim = int(image.width * vision.get("mlp_ratio", 4.0))
  image.activation, image.norm_eps = _functions(model, vision)
  image.pool, image.patch_bias, image.head = "cls", False, "linear_no_bias"
  image.pre_norm = not vision.get("no_ln_pre", False)
  vision.only(_VISION_OPTIONS, _NO_MATTER["vision"])
  return names.VITS[_open_own_text(config, text)]


def _open_resnet(config, model, vision, text, file) -> layout.Table:
  """The image tower's fields, and those of the text tower that a SigLIP fixes."""
  layers = str(vision["layers"])
  sizes = {str(list(layers)): size for size, (_, layers, _) in resnet.SIZES.items()}
  heads = vision.get("head_width", 64)
  if layers not in sizes or heads != 64:
    raise ValueError(
      f"{file}: siglax reads open_clip's ResNets of layers {' or '.join(sizes)} with heads of 64"
    )
  image = config.model.image
  image.variant, image.width, config.image.size = (
    sizes[layers],
    vision.get("width", int),
    vision.get("image_size", int),
  )
  return names.RESNETS[_open_own_text(config, text)]


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


def _tokenizer(config, folder: pathlib.Path, is_clip: bool) -> pathlib.Path | None:
  """config.text and the path of the tokenizer in a folder, whose open_clip_config.json has been
  read. Without a name for AutoTokenizer open_clip takes its own for CLIP, which pads with token 0.
  """
  text = files.read_json(folder / CONFIG)["model_cfg"]["text_cfg"]
  path = texts.read(config, folder, is_clip=is_clip)
  if path and not text.get("hf_tokenizer_name"):
    config.text.pad = "zero"
  clean = text.get("tokenizer_kwargs") or {}
  if path and isinstance(clean, dict) and clean.get("clean") == "canonicalize":
    config.text.lowercase = config.text.strip_punctuation = True
  return path
