"""Hugging Face folders: SiglipModel, Siglip2Model and CLIPModel, or one tower of them, as
config.json and safetensors.

SigLIP 2 at fixed resolution is a SiglipModel with a larger vocabulary; a Siglip2Model is NaFlex.
What the towers are chooses which of the three goes out.
"""

from __future__ import annotations

import math
import pathlib

import numpy as np

from siglax import config as config_lib
from siglax import models
from siglax.config import recipes
from siglax.interop import fields
from siglax.interop import files
from siglax.interop import huggingface_files
from siglax.interop import huggingface_names as names
from siglax.interop import output
from siglax.interop.checkpoint import Checkpoint
from siglax.interop.format import Format
from siglax.interop.huggingface_files import ACTIVATIONS
from siglax.interop.huggingface_files import OLD_EOS
from siglax.interop.huggingface_files import RESAMPLE
from siglax.models import naflex
from siglax.models import transformer

# What transformers takes for a field that config.json leaves out.
_TOWER = {
  "hidden_size": 768,
  "intermediate_size": 3072,
  "num_hidden_layers": 12,
  "num_attention_heads": 12,
}
_VISION = {**_TOWER, "image_size": 224, "num_channels": 3}
_SIGLIP = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
_CLIP = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_SIGLIP_VISION = {**_SIGLIP, "patch_size": 16, "vision_use_head": True}
_WORDS = {"max_position_embeddings": 64, "vocab_size": 32_000, "projection_size": None}
_SIGLIP_TEXT = {**_TOWER, **_SIGLIP, **_WORDS}
DEFAULTS = {
  "siglip": {"vision": {**_VISION, **_SIGLIP_VISION}, "text": _SIGLIP_TEXT},
  "siglip2": {
    "vision": {**_TOWER, **_SIGLIP_VISION, "num_channels": 3, "num_patches": 256},
    "text": _SIGLIP_TEXT,
  },
  "clip": {
    "vision": {**_VISION, **_CLIP, "patch_size": 32},
    "text": {
      **_TOWER,
      **_CLIP,
      "hidden_size": 512,
      "intermediate_size": 2048,
      "num_attention_heads": 8,
      "max_position_embeddings": 77,
      "vocab_size": 49_408,
      "eos_token_id": 49_407,
    },
  },
}


def open_folder(folder: pathlib.Path) -> Checkpoint:
  """A folder; the config describes the towers and their preprocessing.

  Raises ValueError for another architecture, or a field that siglax has no equal for.
  """
  file = folder / "config.json"
  hf = files.read_json(file)
  kind = hf.get("model_type")
  if not isinstance(kind, str) or kind not in names.KINDS:
    raise ValueError(
      f"{file}: model_type={kind!r} is none that siglax reads; it reads {', '.join(names.KINDS)}"
    )
  family, towers = names.KINDS[kind].family, names.KINDS[kind].towers
  vision, text = _sections(file, hf, family, towers)
  arrays = files.Safetensors(folder)
  config = config_lib.default()
  if vision:
    _image_tower(config, vision, family, file)
    _preprocessing(config, folder, family)
  if text:
    _text_tower(config, text, family, file)
  if family == "clip":
    config.model.embed_dim = files.checked(
      file, "projection_dim", hf.get("projection_dim", 512), 512
    )
    config.loss.name = "softmax"
  else:
    config.model.embed_dim = (
      (text["projection_size"] or text["hidden_size"]) if text else vision["hidden_size"]
    )
    config.loss.bias_init = -10.0  # there is a bias; its value is in the file
  tokenizer = next((folder / name for name in files.TOKENIZERS if (folder / name).is_file()), None)
  if tokenizer:
    _tokenization(config, folder, tokenizer)
  return Checkpoint(arrays, names.TABLES[family], config, towers, tokenizer)


def _sections(file, hf, family, towers):
  """The vision and text sections with their defaults, each value of the type of its default; None
  for that of a tower which is not there.
  """
  whole = len(towers) == 1  # then all of the file is the section of that tower
  given = {name: hf if whole else hf.get(f"{name}_config", {}) for name in ("vision", "text")}
  found = {}
  for name, defaults in DEFAULTS[family].items():
    if {"vision": "image"}.get(name, name) not in towers:
      found[name] = None
      continue
    if not isinstance(given[name], dict):
      raise ValueError(f"{file}: {name}_config is no JSON object")
    section = {k: given[name].get(k, default) for k, default in defaults.items()}
    for k, value in section.items():
      if value is not None or defaults[k] is not None:
        section[k] = files.checked(file, f"{name}_config.{k}", value, defaults[k])
    found[name] = section
  return found["vision"], found["text"]


def _tower(tower, section, file):
  """The fields that both towers have."""
  if section["hidden_act"] not in ACTIVATIONS:
    raise ValueError(
      f"{file}: hidden_act={section['hidden_act']!r} is unknown; known are {', '.join(ACTIVATIONS)}"
    )
  tower.width, tower.depth = section["hidden_size"], section["num_hidden_layers"]
  tower.heads, tower.mlp_dim = section["num_attention_heads"], section["intermediate_size"]
  tower.activation, tower.norm_eps = ACTIVATIONS[section["hidden_act"]], section["layer_norm_eps"]


def _image_tower(config, vision, family, file):
  image = config.model.image
  _tower(image, vision, file)
  if vision["num_channels"] != 3:
    raise ValueError(f"{file}: num_channels={vision['num_channels']}; siglax reads 3")
  image.patch = vision["patch_size"]
  if family == "siglip2":
    if not vision["vision_use_head"]:
      raise ValueError(f"{file}: vision_use_head=False; siglax reads NaFlex with its head")
    image.variant = "naflex-S"
    image.grid = _side(vision["num_patches"], "num_patches", file)
    config.image.size = image.grid * image.patch
    return
  config.image.size = vision["image_size"]
  if family == "clip":
    image.pool, image.pre_norm, image.patch_bias, image.head = "cls", True, False, "linear_no_bias"
  elif not vision["vision_use_head"]:
    # transformers pools nothing then; its classifier takes the mean of the patches.
    image.pool = "mean"


def _side(count, name: str, file) -> int:
  """Rows of a square grid of so many patches."""
  side = math.isqrt(max(files.checked(file, name, count, 1), 0))
  if not side or side * side != count:
    raise ValueError(f"{file}: {name}={count} is none that siglax has; it has square numbers")
  return side


def _text_tower(config, text, family, file):
  tower = config.model.text
  _tower(tower, text, file)
  tower.vocab_size, config.text.length = text["vocab_size"], text["max_position_embeddings"]
  tower.eos_id = 1
  if family == "clip":
    tower.causal, tower.head, tower.eos_id = True, "linear_no_bias", text["eos_token_id"]
    tower.pool = "argmax" if text["eos_token_id"] == OLD_EOS else "eos"


def _preprocessing(config, folder, family):
  """config.image of preprocessor_config.json, or what the family is preprocessed with."""
  image, file = config.image, folder / "preprocessor_config.json"
  image.resize, image.fit = "bicubic", "squash"
  if family == "siglip2":
    image.resize, image.fit = "bilinear", "native"
  if family == "clip":
    image.fit = "crop"
    image.mean, image.std = recipes.CLIP_MEAN, recipes.CLIP_STD
  if not file.is_file():
    return
  given = files.read_json(file)
  resample = given.get("resample", {theirs: n for n, theirs in RESAMPLE.items()}[image.resize])
  if type(resample) is not int or resample not in RESAMPLE:
    raise ValueError(
      f"{file}: resample={resample!r} is none that siglax has; it has 2, bilinear, and 3, bicubic"
    )
  image.resize = RESAMPLE[resample]
  for key in ("do_resize", "do_rescale", "do_normalize"):
    if given.get(key, True) is not True:
      raise ValueError(f"{file}: {key}={given[key]!r} is none that siglax has; it has true")
  if (factor := given.get("rescale_factor", 1 / 255)) != 1 / 255:
    raise ValueError(
      f"{file}: rescale_factor={factor!r} is none that siglax has; it has 1/255, {1 / 255!r}"
    )
  image.mean = files.channels(file, "image_mean", given.get("image_mean", image.mean))
  image.std = files.channels(file, "image_std", given.get("image_std", image.std), positive=True)
  if family != "siglip2":
    image.fit = _fit(given, image.size, family, file)
    return
  patch, most = config.model.image.patch, given.get("max_num_patches", 256)
  if (size := given.get("patch_size", 16)) != patch:
    raise ValueError(f"{file}: patch_size={size!r}, and the tower has patches of {patch}")
  image.size = patch * _side(most, "max_num_patches", file)


def _fit(given, side: int, family: str, file) -> str:
  """config.image.fit of what preprocessor_config.json says of sizes; an int is what it was before
  transformers 4.24. ValueError for what does not give the squares of `side` that the tower takes.
  """
  square, shortest = {"height": side, "width": side}, {"shortest_edge": side}
  size, crop = given.get("size", side), given.get("crop_size", side)
  if type(size) is int:
    size = dict.fromkeys(shortest if family == "clip" else square, size)
  if type(crop) is int:
    crop = dict.fromkeys(square, crop)
  cuts = given.get("do_center_crop", "shortest_edge" in size if isinstance(size, dict) else False)
  if size == square and (cuts is False or crop == square):
    return "squash"
  if size == shortest and cuts is True and crop == square:
    return "crop"
  raise ValueError(
    f"{file}: size={size!r} with do_center_crop={cuts!r} and crop_size={crop!r} is none that "
    f"siglax has for an image size of {side}; it has a size of {square}, or of {shortest} with "
    "that crop"
  )


def _tokenization(config, folder, tokenizer):
  """config.text of tokenizer_config.json. SigLIP's tokenizer drops punctuation; SigLIP 2's only
  lower-cases.
  """
  file = folder / "tokenizer_config.json"
  given = files.read_json(file) if file.is_file() else {}
  first = str(given.get("tokenizer_class", "SiglipTokenizer")).startswith("SiglipTokenizer")
  token = lambda name: t.get("content") if isinstance(t := given.get(name, "</s>"), dict) else t
  config.text.tokenizer = str(tokenizer)
  config.text.lowercase = files.checked(
    file, "do_lower_case", given.get("do_lower_case", True), True
  )
  config.text.strip_punctuation = first
  config.text.pad = "eos" if token("pad_token") == token("eos_token") else "pad"


def _family(tower) -> str:
  """The family whose layout is that of these towers: CLIP's has a class token, and causal text."""
  model = tower.config.model
  if "image" in tower.params and tower.model.declared["image"] is naflex.TOWER:
    return "siglip2"
  is_clip = model.image.pool == "cls" if "image" in tower.params else model.text.causal
  return "clip" if is_clip else "siglip"


# What the models of a family are, and their preprocessor and tokenizer (fields.py).
_IMAGES = {
  **fields.any_value(
    "model.embed_dim", "model.image.patch", "model.image.norm_eps", "model.image.activation"
  ),
  **fields.any_value("image.size", "image.mean", "image.std", "image.resize"),
  **fields.sizes("image"),
  **fields.plain_vit(),
}
_TEXTS = {
  **fields.any_value(
    "model.embed_dim",
    "model.text.vocab_size",
    "model.text.eos_id",
    "model.text.norm_eps",
    "model.text.activation",
  ),
  **fields.sizes("text"),
  "model.text.variant": tuple(transformer.SIZES),
}
CARRIES = {
  "siglip": {
    **_IMAGES,
    **fields.any_value("model.image.head"),
    "model.image.pool": ("map",),
    "image.fit": ("squash",),
  },
  "siglip2": {
    **_IMAGES,
    **fields.any_value("model.image.grid"),
    "model.image.variant": tuple(naflex.VARIANTS),
    "model.image.pool": ("map",),
    "model.image.head": ("auto",),
    "image.fit": ("native",),
  },
  "clip": {
    **_IMAGES,
    "image.fit": ("crop", "squash"),
    "model.image.pool": ("cls",),
    "model.image.pre_norm": (True,),
    "model.image.patch_bias": (False,),
    "model.image.head": ("linear_no_bias",),
  },
}
TEXT_CARRIES = {
  "siglip": {
    **_TEXTS,
    **fields.any_value("text.tokenizer", "text.length", "text.lowercase"),
    "model.text.pool": ("last",),
    "model.text.causal": (False,),
    "model.text.head": ("linear",),
    "text.strip_punctuation": (True,),
    "text.pad": ("eos",),
  },
  "clip": {
    **_TEXTS,
    **fields.any_value("text.length"),
    **fields.left_out("text.tokenizer", "text.lowercase", "text.strip_punctuation", "text.pad"),
    "model.text.pool": ("eos", "argmax"),
    "model.text.causal": (True,),
    "model.text.head": ("linear_no_bias",),
  },
}
TEXT_CARRIES["siglip2"] = TEXT_CARRIES["siglip"]


def _carries(tower, towers: tuple[str, ...]) -> dict:
  """What the layout of these towers has a place for."""
  tables = {"image": CARRIES, "text": TEXT_CARRIES}
  return {k: v for name in towers for k, v in tables[name][_family(tower)].items()}


def _problem(tower, towers: tuple[str, ...]) -> str | None:
  """What else the layout of these towers cannot express."""
  if _family(tower) != "clip":
    return output.head_problem(tower) if "image" in towers else None
  c = tower.config
  if towers == models.TOWERS and "bias" in tower.params:
    return f"the bias that config.loss.name={c.loss.name!r} trains; a CLIPModel has none"
  text = c.model.text
  if "text" in towers and text.pool == "eos" and text.eos_id == OLD_EOS:
    return (
      f"config.model.text.pool='eos' with config.model.text.eos_id={OLD_EOS}, of which "
      "transformers pools the highest token; it needs another end token"
    )
  return None


def _write(tower, folder, dtype, source, towers: tuple[str, ...]):
  family = _family(tower)
  kind = names.model_type(family, towers)
  arrays = dict(output.arrays(tower, names.TABLES[family], towers, dtype))
  if towers == models.TOWERS and family != "clip":
    # A SiglipModel always has a bias; a softmax loss has none, which is a bias of 0.
    arrays.setdefault("logit_bias", lambda: np.zeros(1, output.DTYPES[dtype]))
  folder.mkdir()
  files.write_safetensors(folder / files.WEIGHTS, arrays.items())
  output.write_json(folder / "config.json", huggingface_files.config_json(tower, kind, dtype))
  if "image" in towers:
    output.write_json(
      folder / "preprocessor_config.json", huggingface_files.preprocessor_json(tower.config, family)
    )
  if "text" in towers and family != "clip":
    huggingface_files.save_tokenizer(tower, folder)
  (folder / "README.md").write_text(huggingface_files.card(tower, kind, source))


def _holds(path: pathlib.Path, towers: tuple[str, ...]) -> bool:
  """Whether its config.json is of a model with these towers; with both, also of another
  architecture, which `open_folder` names.
  """
  file = path / "config.json"
  found = files.read_json(file) if file.is_file() else {}
  if "model_type" not in found:
    return False
  known = [kind.towers for name, kind in names.KINDS.items() if name == found["model_type"]]
  return (*known, models.TOWERS)[0] == towers


def _format(name: str, doc: str, towers: tuple[str, ...]) -> Format:
  """That of these towers, in the layout of their family."""
  return Format(
    name=name,
    doc=doc,
    recognises=lambda path: _holds(path, towers),
    open=open_folder,
    write=lambda tower, folder, dtype, source: _write(tower, folder, dtype, source, towers),
    carries=lambda tower: _carries(tower, towers),
    towers=towers,
    problem=lambda tower: _problem(tower, towers),
  )


HF = _format("hf", "a SiglipModel or CLIPModel with its preprocessing and tokenizer", models.TOWERS)
HF_VISION = _format(
  "hf-vision",
  "its image tower alone, a SiglipVisionModel or CLIPVisionModelWithProjection",
  ("image",),
)
HF_TEXT = _format(
  "hf-text", "its text tower alone, a SiglipTextModel or CLIPTextModelWithProjection", ("text",)
)
