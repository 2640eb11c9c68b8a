"""Hugging Face folders: SiglipModel, SiglipVisionModel and CLIPModel as config.json and
safetensors.

SigLIP 2 at fixed resolution is a SiglipModel with a larger vocabulary. Names: transformers'
modeling_siglip.py and modeling_clip.py.
"""

from __future__ import annotations

import pathlib

import numpy as np

from siglax import config as config_lib
from siglax import models
from siglax.config import recipes
from siglax.interop import fields
from siglax.interop import files
from siglax.interop import huggingface_files
from siglax.interop import layout
from siglax.interop import output
from siglax.interop.checkpoint import Checkpoint
from siglax.interop.format import Format
from siglax.interop.huggingface_files import ACTIVATIONS
from siglax.interop.huggingface_files import RESAMPLE
from siglax.interop.layout import CONV
from siglax.interop.layout import LEAD
from siglax.interop.layout import TRANSPOSED
from siglax.interop.layout import Row
from siglax.interop.layout import linear
from siglax.interop.layout import norm
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
DEFAULTS = {
  "siglip": {
    "vision": {**_VISION, **_SIGLIP, "patch_size": 16, "vision_use_head": True},
    "text": {
      **_TOWER,
      **_SIGLIP,
      "max_position_embeddings": 64,
      "vocab_size": 32_000,
      "projection_size": None,
    },
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


def _encoder(ours: str, theirs: str) -> tuple[Row, ...]:
  block = f"{ours}/encoder/blocks/{{i}}"
  layer = f"{theirs}.encoder.layers.{{i}}"
  attention = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
  return (
    *norm(f"{block}/norm1", f"{layer}.layer_norm1."),
    *norm(f"{block}/norm2", f"{layer}.layer_norm2."),
    *(
      row
      for a, b in attention.items()
      for row in linear(f"{block}/attention/{a}", f"{layer}.self_attn.{b}.")
    ),
    *linear(f"{block}/mlp/fc1", f"{layer}.mlp.fc1."),
    *linear(f"{block}/mlp/fc2", f"{layer}.mlp.fc2."),
  )


_SHARED = (
  Row("image/stem/embedding/kernel", "vision_model.embeddings.patch_embedding.weight", CONV),
  Row("image/stem/embedding/bias", "vision_model.embeddings.patch_embedding.bias"),
  Row("image/pos_embedding", "vision_model.embeddings.position_embedding.weight"),
  *_encoder("image", "vision_model"),
  *norm("image/norm", "vision_model.post_layernorm."),
  Row("text/embedding", "text_model.embeddings.token_embedding.weight"),
  Row("text/pos_embedding", "text_model.embeddings.position_embedding.weight"),
  *_encoder("text", "text_model"),
  *norm("text/norm", "text_model.final_layer_norm."),
)
_IN_PROJ = ("in_proj_weight", "in_proj_bias")
SIGLIP = layout.Table(
  (
    *_SHARED,
    Row("image/pool/probe", "vision_model.head.probe"),
    *(
      row
      for part, name in enumerate(("query", "key", "value"))
      for row in linear(
        f"image/pool/attention/{name}",
        "vision_model.head.attention.",
        names=_IN_PROJ,
        part=part,
        parts=3,
      )
    ),
    *linear("image/pool/attention/out", "vision_model.head.attention.out_proj."),
    *norm("image/pool/norm", "vision_model.head.layernorm."),
    *linear("image/pool/mlp/fc1", "vision_model.head.mlp.fc1."),
    *linear("image/pool/mlp/fc2", "vision_model.head.mlp.fc2."),
    *linear("text/head", "text_model.head."),
    Row("log_scale", "logit_scale", LEAD),
    Row("bias", "logit_bias", LEAD),
  ),
  {"image": ("vision_model.",), "text": ("text_model.",)},
)
CLIP = layout.Table(
  (
    *_SHARED,
    Row("image/cls", "vision_model.embeddings.class_embedding"),
    *norm("image/pre_norm", "vision_model.pre_layrnorm."),  # sic
    Row("image/head/kernel", "visual_projection.weight", TRANSPOSED),
    Row("text/head/kernel", "text_projection.weight", TRANSPOSED),
    Row("log_scale", "logit_scale"),
  ),
  {"image": ("vision_model.", "visual_projection."), "text": ("text_model.", "text_projection.")},
)
MODELS = {
  "siglip": ("siglip", SIGLIP, models.TOWERS),
  "siglip_vision_model": ("siglip", SIGLIP, ("image",)),
  "clip": ("clip", CLIP, models.TOWERS),
}


def open_folder(folder: pathlib.Path) -> Checkpoint:
  """A folder; the config describes the towers and their preprocessing.

  Raises ValueError for another architecture, or a field that siglax has no equal for.
  """
  file = folder / "config.json"
  hf = files.read_json(file)
  kind = hf.get("model_type")
  if not isinstance(kind, str) or kind not in MODELS:
    raise ValueError(
      f"{file}: model_type={kind!r} is none that siglax reads; it reads {', '.join(MODELS)}"
    )
  family, table, towers = MODELS[kind]
  vision, text = _sections(file, hf, family, towers)
  arrays = files.Safetensors(folder)
  config = config_lib.default()
  _image_tower(config, vision, family, file)
  if "text" in towers:
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
  _preprocessing(config, folder, family)
  tokenizer = next((folder / name for name in files.TOKENIZERS if (folder / name).is_file()), None)
  if tokenizer:
    _tokenization(config, folder, tokenizer)
  return Checkpoint(arrays, table, config, towers, tokenizer)


def _sections(file, hf, family, towers):
  """The vision and text sections with their defaults, each value of the type of its default."""
  given = {
    "vision": hf if towers == ("image",) else hf.get("vision_config", {}),
    "text": hf.get("text_config", {}),
  }
  found = []
  for name, defaults in DEFAULTS[family].items():
    if not isinstance(given[name], dict):
      raise ValueError(f"{file}: {name}_config is no JSON object")
    section = {k: given[name].get(k, default) for k, default in defaults.items()}
    for k, value in section.items():
      if value is not None or defaults[k] is not None:
        section[k] = files.checked(file, f"{name}_config.{k}", value, defaults[k])
    found.append(section)
  return found[0], found[1] if "text" in towers else None


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
  config.image.size, image.patch = vision["image_size"], vision["patch_size"]
  if family == "clip":
    image.pool, image.pre_norm, image.patch_bias, image.head = "cls", True, False, "linear_no_bias"
  elif not vision["vision_use_head"]:
    image.pool = (
      "mean"  # transformers pools nothing then; its classifier takes the mean of the patches
    )


def _text_tower(config, text, family, file):
  tower = config.model.text
  _tower(tower, text, file)
  tower.vocab_size, config.text.length = text["vocab_size"], text["max_position_embeddings"]
  tower.eos_id = 1
  if family == "clip":
    tower.causal, tower.head, tower.eos_id = True, "linear_no_bias", text["eos_token_id"]
    # transformers reads the configs of before 2023 in this way.
    tower.pool = "argmax" if text["eos_token_id"] == 2 else "eos"


def _preprocessing(config, folder, family):
  """config.image of preprocessor_config.json, or what the family is preprocessed with."""
  image, file = config.image, folder / "preprocessor_config.json"
  image.resize, image.fit = "bicubic", "squash"
  if family == "clip":
    image.fit = "crop"
    image.mean, image.std = recipes.CLIP_MEAN, recipes.CLIP_STD
  if not file.is_file():
    return
  given = files.read_json(file)
  resample = given.get("resample", 3)
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
  if isinstance(size := given.get("size"), dict):
    image.fit = "crop" if "shortest_edge" in size else "squash"


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


# What a SiglipModel is, and its preprocessor and tokenizer (fields.py).
CARRIES = {
  **fields.any_value(
    "model.embed_dim", "model.image.patch", "model.image.norm_eps", "model.image.activation"
  ),
  **fields.any_value("model.image.head", "image.size", "image.mean", "image.std", "image.resize"),
  **fields.sizes("image"),
  **fields.plain_vit(),
  "model.image.pool": ("map",),
  "image.fit": ("squash",),
}
TEXT_CARRIES = {
  **fields.any_value(
    "model.text.vocab_size", "model.text.eos_id", "model.text.norm_eps", "model.text.activation"
  ),
  **fields.any_value("text.tokenizer", "text.length", "text.lowercase"),
  **fields.sizes("text"),
  "model.text.variant": tuple(transformer.SIZES),
  "model.text.pool": ("last",),
  "model.text.causal": (False,),
  "model.text.head": ("linear",),
  "text.strip_punctuation": (True,),
  "text.pad": ("eos",),
}


def _write(tower, folder, dtype, source, form: Format):
  arrays = dict(output.arrays(tower, SIGLIP, form.towers, dtype))
  if form is HF:
    # A SiglipModel always has a bias; a softmax loss has none, which is a bias of 0.
    arrays.setdefault("logit_bias", lambda: np.zeros(1, output.DTYPES[dtype]))
  folder.mkdir()
  files.write_safetensors(folder / files.WEIGHTS, arrays.items())
  output.write_json(
    folder / "config.json",
    huggingface_files.config_json(tower, dtype, vision_only=form is HF_VISION),
  )
  output.write_json(
    folder / "preprocessor_config.json", huggingface_files.preprocessor_json(tower.config)
  )
  if form is HF:
    huggingface_files.save_tokenizer(tower, folder)
  (folder / "README.md").write_text(huggingface_files.card(tower, form.name, source))


def _is(path: pathlib.Path, fits) -> bool:
  """Whether its config.json has a model_type that fits."""
  file = path / "config.json"
  found = files.read_json(file) if file.is_file() else {}
  return "model_type" in found and fits(found["model_type"])


HF = Format(
  name="hf",
  doc="a SiglipModel with its preprocessing and tokenizer",
  # Those of other architectures too, which `open_folder` names.
  recognises=lambda path: _is(path, lambda kind: kind not in ("siglip_vision_model", "clip")),
  open=open_folder,
  write=lambda tower, folder, dtype, source: _write(tower, folder, dtype, source, HF),
  carries=lambda tower: CARRIES | TEXT_CARRIES,
  towers=models.TOWERS,
  problem=output.head_problem,
)
HF_VISION = Format(
  name="hf-vision",
  doc="its image tower alone, a SiglipVisionModel",
  recognises=lambda path: _is(path, lambda kind: kind == "siglip_vision_model"),
  open=open_folder,
  write=lambda tower, folder, dtype, source: _write(tower, folder, dtype, source, HF_VISION),
  carries=lambda tower: CARRIES,
  towers=("image",),
  problem=output.head_problem,
)
HF_CLIP = Format(
  name="hf-clip",
  doc="a CLIPModel, which is read only",
  recognises=lambda path: _is(path, lambda kind: kind == "clip"),
  open=open_folder,
)
