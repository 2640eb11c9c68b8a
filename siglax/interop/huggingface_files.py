"""What a Hugging Face folder holds beside its arrays: config, preprocessing, tokenizer and card."""

from __future__ import annotations

import pathlib

from siglax.interop import files
from siglax.interop import output
from siglax.models import transformer
from siglax.runs import records

ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "quick_gelu": "quick_gelu"}
RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def config_json(tower, dtype: str, vision_only: bool) -> dict:
  """config.json of a SiglipModel, or of its image tower alone."""
  text, c = tower.text, tower.config
  vision = {
    "model_type": "siglip_vision_model",
    **_sizes(tower, "image"),
    "image_size": c.image.size,
    "patch_size": c.model.image.patch,
    "num_channels": 3,
    "vision_use_head": True,
  }
  if vision_only:
    return {"architectures": ["SiglipVisionModel"], **vision, "dtype": dtype}
  eos = c.model.text.eos_id if text is None else text.eos_id
  words = {
    "model_type": "siglip_text_model",
    **_sizes(tower, "text"),
    "vocab_size": c.model.text.vocab_size,
    "max_position_embeddings": c.text.length,
    "projection_size": tower.model.embed_dim,
    "bos_token_id": None,
    "eos_token_id": eos,
    "pad_token_id": eos,
  }
  return {
    "architectures": ["SiglipModel"],
    "model_type": "siglip",
    "initializer_factor": 1.0,
    "text_config": words,
    "vision_config": vision,
    "dtype": dtype,
  }


def _sizes(tower, name) -> dict:
  shape = transformer.Shape.of(tower.model.config[name])
  return {
    "hidden_size": shape.width,
    "num_hidden_layers": shape.depth,
    "num_attention_heads": shape.heads,
    "intermediate_size": shape.mlp_dim,
    "layer_norm_eps": shape.norm_eps,
    "attention_dropout": 0.0,
    "hidden_act": {ours: theirs for theirs, ours in ACTIVATIONS.items()}[shape.activation],
  }


def preprocessor_json(config) -> dict:
  """preprocessor_config.json: the resize of evaluation, and the mean and std of the model."""
  return {
    "image_processor_type": "SiglipImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"height": config.image.size, "width": config.image.size},
    "resample": {name: number for number, name in RESAMPLE.items()}[config.image.resize],
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": list(config.image.mean),
    "image_std": list(config.image.std),
  }


def tokenizer_json(text) -> dict:
  """tokenizer_config.json of a SiglipTokenizer. It gives no attention mask: SigLIP attends to
  padding too.
  """
  end, unknown = text.piece(text.eos_id), text.piece(text.unk_id)
  return {
    "tokenizer_class": "SiglipTokenizer",
    "model_input_names": ["input_ids"],
    "model_max_length": text.length,
    "do_lower_case": text.lowercase,
    "padding_side": "right",
    "eos_token": end,
    "pad_token": end,
    "unk_token": unknown,
  }


def save_tokenizer(tower, folder: pathlib.Path):
  """The sentencepiece model and tokenizer_config.json, where there is a tokenizer."""
  if tower.text is not None:
    tower.text.save(folder / files.TOKENIZERS[0])
    output.write_json(folder / "tokenizer_config.json", tokenizer_json(tower.text))


_USE = {
  "hf": """import torch
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer
kinds = AutoModel, AutoImageProcessor, AutoTokenizer
model, images, texts = (kind.from_pretrained(".") for kind in kinds)
tokens = texts(["a caption"], padding="max_length", truncation=True, return_tensors="pt")
print(torch.sigmoid(model(**images(picture, return_tensors="pt"), **tokens).logits_per_image))""",
  "hf-vision": """from transformers import AutoImageProcessor, AutoModel
model, images = (auto.from_pretrained(".") for auto in (AutoModel, AutoImageProcessor))
out = model(**images(picture, return_tensors="pt"))
out.pooler_output      # embedding, not yet normalised
out.last_hidden_state  # patch tokens""",
}


def card(tower, form, source) -> str:
  """README.md: use, preprocessing and the last evaluation of the run."""
  c = tower.config
  task = "zero-shot-image-classification" if form == "hf" else "image-feature-extraction"
  lines = [
    "---",
    "library_name: transformers",
    f"pipeline_tag: {task}",
    "tags: [siglip, siglax]",
    "---",
    "",
    f"# {source.resolve().name}",
    "",
    f"{'Image and text towers' if form == 'hf' else 'Image tower'} trained with siglax "
    f"({c.loss.name} loss).",
    "",
    "```python",
    *_USE[form].splitlines(),
    "```",
    "",
    "## Preprocessing",
    "",
    f"Pictures: squashed to {c.image.size}×{c.image.size} ({c.image.resize}, antialiased), of "
    "pixels in 0..1 minus "
    f"{tuple(c.image.mean)}, divided by {tuple(c.image.std)}.",
  ]
  if form == "hf":
    case = "lower-cased, " if c.text.lowercase else ""
    lines.append(
      f"Texts: {case}ASCII punctuation removed, cut and padded to {c.text.length} tokens with the "
      "end token; "
      "no attention mask."
    )
  if evaluated := _last_evaluation(source):
    lines += ["", "## Evaluation", "", "| metric | value |", "|---|---|"]
    lines += [
      f"| {name.removeprefix('eval/')} | {value:.4g} |" for name, value in evaluated.items()
    ]
  return "\n".join(lines) + "\n"


def _last_evaluation(source) -> dict[str, float]:
  """The newest eval/… metrics of a run folder; none for other sources."""
  if not (source / "metrics.jsonl").is_file():
    return {}
  found = (
    {k: v for k, v in line.items() if k.startswith("eval/")}
    for line in reversed(records.read(source))
  )
  return next(filter(None, found), {})
