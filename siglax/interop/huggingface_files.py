"""What a Hugging Face folder holds beside its arrays: config, preprocessing, tokenizer and card."""

from __future__ import annotations

from siglax.interop import huggingface_names as names
from siglax.interop import texts
from siglax.runs import records

ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "quick_gelu": "quick_gelu"}
RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
OLD_EOS = 2  # of a CLIP's config.json of before 2023: its end token is then the highest of a text


def config_json(tower, kind: str, dtype: str) -> dict:
  """config.json of a model of transformers. kind: its model_type, of huggingface_names.KINDS."""
  what = names.KINDS[kind]
  sections = {
    name: {
      "model_type": names.model_type(what.family, (name,)),
      **_sizes(tower, name),
      **make(tower, what.family),
    }
    for name, make in (("text", _text_json), ("image", _vision_json))
    if name in what.towers
  }
  first, last = {"architectures": [what.architecture]}, {"dtype": dtype}
  if len(sections) == 1:
    return first | next(iter(sections.values())) | last
  family = {"projection_dim": tower.model.embed_dim} if what.family == "clip" else {}
  both = {"text_config": sections["text"], "vision_config": sections["image"]}
  return {**first, "model_type": kind, "initializer_factor": 1.0, **family, **both, **last}


def _vision_json(tower, family: str) -> dict:
  c = tower.config
  size = {"image_size": c.image.size}
  of_family = {
    "siglip": lambda: size | {"vision_use_head": True},
    "siglip2": lambda: {"num_patches": c.model.image.grid**2, "vision_use_head": True},
    "clip": lambda: size | {"projection_dim": tower.model.embed_dim},
  }
  return {
    "patch_size": c.model.image.patch,
    "num_channels": 3,
    **of_family[family](),
  }


def _text_json(tower, family: str) -> dict:
  c, text = tower.config, tower.text
  eos = c.model.text.eos_id if text is None else text.eos_id
  if family == "clip" and c.model.text.pool == "argmax":
    eos = OLD_EOS
  return {
    "vocab_size": c.model.text.vocab_size,
    "max_position_embeddings": c.text.length,
    "projection_dim" if family == "clip" else "projection_size": tower.model.embed_dim,
    "bos_token_id": None,
    "eos_token_id": eos,
    "pad_token_id": eos if text is None or text.pad == "zero" else text.pad_id,
  }


def _sizes(tower, name) -> dict:
  shape = tower.model.declared[name].shape(tower.model.config[name])
  return {
    "hidden_size": shape.width,
    "num_hidden_layers": shape.depth,
    "num_attention_heads": shape.heads,
    "intermediate_size": shape.mlp_dim,
    "layer_norm_eps": shape.norm_eps,
    "attention_dropout": 0.0,
    "hidden_act": {ours: theirs for theirs, ours in ACTIVATIONS.items()}[shape.activation],
  }


def preprocessor_json(config, family: str) -> dict:
  """preprocessor_config.json: the resize of evaluation, and the mean and std of the model."""
  square = {"height": config.image.size, "width": config.image.size}
  crop = config.image.fit == "crop"
  size = {"size": {"shortest_edge": config.image.size} if crop else square}
  patch = config.model.image.patch
  kinds = {
    "siglip": {"image_processor_type": "SiglipImageProcessor", **size},
    "siglip2": {
      "image_processor_type": "Siglip2ImageProcessor",
      "patch_size": patch,
      "max_num_patches": (config.image.size // patch) ** 2,
    },
    "clip": {
      "image_processor_type": "CLIPImageProcessor",
      "do_center_crop": crop,
      "crop_size": square,
      **size,
    },
  }
  return {
    **kinds[family],
    "do_convert_rgb": True,
    "do_resize": True,
    "resample": {name: number for number, name in RESAMPLE.items()}[config.image.resize],
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": list(config.image.mean),
    "image_std": list(config.image.std),
  }


# By model_type.
_USE = {
  "siglip": """import torch
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer
kinds = AutoModel, AutoImageProcessor, AutoTokenizer
model, images, texts = (kind.from_pretrained(".") for kind in kinds)
tokens = texts(["a caption"], padding="max_length", truncation=True, return_tensors="pt")
print(torch.sigmoid(model(**images(picture, return_tensors="pt"), **tokens).logits_per_image))""",
  "siglip_vision_model": """from transformers import AutoImageProcessor, AutoModel
model, images = (auto.from_pretrained(".") for auto in (AutoModel, AutoImageProcessor))
out = model(**images(picture, return_tensors="pt"))
out.pooler_output      # embedding, not yet normalised
out.last_hidden_state  # patch tokens""",
  "siglip_text_model": """from transformers import AutoTokenizer, SiglipTextModel
model, texts = (kind.from_pretrained(".") for kind in (SiglipTextModel, AutoTokenizer))
tokens = texts(["a caption"], padding="max_length", truncation=True, return_tensors="pt")
model(**tokens).pooler_output  # embedding, not yet normalised""",
  "clip": """from transformers import AutoImageProcessor, AutoModel
model, images = (auto.from_pretrained(".") for auto in (AutoModel, AutoImageProcessor))
out = model(**images(picture, return_tensors="pt"), input_ids=tokens)
print(out.logits_per_image.softmax(-1))""",
  "clip_vision_model": """from transformers import AutoImageProcessor, CLIPVisionModelWithProjection
kinds = CLIPVisionModelWithProjection, AutoImageProcessor
model, images = (kind.from_pretrained(".") for kind in kinds)
out = model(**images(picture, return_tensors="pt"))
out.image_embeds       # embedding, not yet normalised
out.last_hidden_state  # class token and patch tokens, before model.vision_model.post_layernorm""",
  "clip_text_model": """from transformers import CLIPTextModelWithProjection
model = CLIPTextModelWithProjection.from_pretrained(".")
model(input_ids=tokens).text_embeds  # embedding, not yet normalised""",
}
_USE |= {
  kind.replace("siglip", "siglip2"): use.replace("SiglipText", "Siglip2Text")
  for kind, use in _USE.items()
  if kind.startswith("siglip")
}
# Before the uses that need `tokens`, where there is a tokenizer.
_TOKENS = """from transformers import AutoTokenizer
texts = AutoTokenizer.from_pretrained(".")
tokens = texts(["a caption"], padding="max_length", truncation=True, return_tensors="pt").input_ids
"""
# By its towers: what is in the folder, and its pipeline_tag on the hub.
_TITLES = {
  ("image", "text"): ("Image and text towers", "zero-shot-image-classification"),
  ("image",): ("Image tower", "image-feature-extraction"),
  ("text",): ("Text tower", "feature-extraction"),
}


def card(tower, kind: str, source) -> str:
  """README.md: use, preprocessing and the last evaluation of the run. kind: its model_type."""
  what = names.KINDS[kind]
  title, task = _TITLES[what.towers]
  use = _TOKENS + _USE[kind] if "=tokens" in _USE[kind] else _USE[kind]
  lines = [
    "---",
    "library_name: transformers",
    f"pipeline_tag: {task}",
    f"tags: [{what.family}, siglax]",
    "---",
    "",
    f"# {source.resolve().name}",
    "",
    f"{title} trained with siglax ({tower.config.loss.name} loss).",
    "",
    "```python",
    *(use if texts.is_written(tower) else _USE[kind]).splitlines(),
    "```",
    "",
    "## Preprocessing",
    "",
    *(said(tower) for name, said in _PREPROCESSING.items() if name in what.towers),
  ]
  if evaluated := _last_evaluation(source):
    lines += ["", "## Evaluation", "", "| metric | value |", "|---|---|"]
    lines += [
      f"| {name.removeprefix('eval/')} | {value:.4g} |" for name, value in evaluated.items()
    ]
  return "\n".join(lines) + "\n"


def _pictures(tower) -> str:
  c = tower.config
  square = f"{c.image.size}×{c.image.size} ({c.image.resize}, antialiased)"
  fit = f"squashed to {square}"
  if c.image.fit == "native":
    fit = f"at their own aspect ratio, in as many patches of {c.image.patch} pixels as {square} has"
  if c.image.fit == "crop":
    fit = f"the shorter side resized and the middle cut out, to {square}"
  return (
    f"Pictures: {fit}, of pixels in 0..1 minus {tuple(c.image.mean)}, divided by "
    f"{tuple(c.image.std)}."
  )


def _texts(tower) -> str:
  c = tower.config
  if tower.text is None:
    return f"Texts: {c.text.length} tokens each, by a tokenizer that was not with the towers."
  case = "lower-cased, " if c.text.lowercase else ""
  punctuation = "ASCII punctuation removed, " if c.text.strip_punctuation else ""
  pad = {"eos": "the end token", "pad": "the padding token", "zero": "token 0"}[c.text.pad]
  return (
    f"Texts: {case}{punctuation}cut and padded to {c.text.length} tokens with {pad}; no "
    "attention mask."
  )


_PREPROCESSING = {"image": _pictures, "text": _texts}


def _last_evaluation(source) -> dict[str, float]:
  """The newest eval/… metrics of a run folder; none for other sources."""
  if not (source / "metrics.jsonl").is_file():
    return {}
  found = (
    {k: v for k, v in line.items() if k.startswith("eval/")}
    for line in reversed(records.read(source))
  )
  return next(filter(None, found), {})
