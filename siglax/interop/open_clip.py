"""Folders that open_clip opens as local-dir:PATH: a SigLIP image tower of timm, open_clip's own ViT
or a ResNet, and open_clip's text tower. What the image tower is chooses which.

open_clip builds a SigLIP tower by its timm name, which fixes patch, image size and activation;
names of other sizes do not exist.
"""

from __future__ import annotations

from siglax import models
from siglax.interop import fields
from siglax.interop import files
from siglax.interop import huggingface_files
from siglax.interop import layout
from siglax.interop import open_clip_names as names
from siglax.interop import output
from siglax.interop.format import Format
from siglax.interop.open_clip_read import CONFIG
from siglax.interop.open_clip_read import WEIGHTS
from siglax.interop.open_clip_read import open_folder
from siglax.models import resnet
from siglax.models import transformer

# What open_clip carries of any kind of image tower (fields.py).
_CARRIES = {
  **fields.any_value("model.embed_dim", "image.size", "image.mean", "image.std", "image.resize"),
  "image.fit": ("squash", "crop"),
  **fields.any_value("model.text.vocab_size", "model.text.eos_id", "model.text.norm_eps"),
  **fields.any_value("text.tokenizer", "text.length", "text.lowercase"),
  **fields.sizes("text"),
  "model.text.variant": tuple(transformer.SIZES),
  "text.strip_punctuation": (True,),
  "text.pad": ("eos",),
}
# Of the text tower beside open_clip's own image towers.
_OWN_TEXT = {
  **fields.any_value("model.text.causal", "model.text.activation"),
  "model.text.pool": names.POOLS,
  "model.text.head": ("linear", "linear_no_bias"),
}
CARRIES = {
  "resnet": {
    **_CARRIES,
    **_OWN_TEXT,
    **fields.any_value("model.image.width"),
    "model.image.variant": tuple(resnet.SIZES),
  },
  "vit": {
    **_CARRIES,
    **_OWN_TEXT,
    **fields.left_out("text.tokenizer", "text.lowercase", "text.strip_punctuation", "text.pad"),
    **fields.sizes("image"),
    **fields.plain_vit(),
    **fields.any_value("model.image.patch", "model.image.activation", "model.image.norm_eps"),
    **fields.any_value("model.image.pre_norm"),
    "model.image.pool": ("cls",),
    "model.image.patch_bias": (False,),
    "model.image.head": ("linear_no_bias",),
  },
  # Sizes, patch, activation and image size of a trunk are those of one of timm's names: see
  # `trunk_name`.
  "trunk": {
    **_CARRIES,
    **fields.sizes("image"),
    **fields.any_value("model.image.patch", "model.image.activation", "model.image.head"),
    **fields.plain_vit(),
    "model.image.pool": ("map",),
    "model.image.norm_eps": (1e-6,),
    "model.text.pool": ("last",),
    "model.text.causal": (False,),
    "model.text.activation": ("gelu", "gelu_tanh"),
    "model.text.head": ("linear",),
  },
}


def kind(tower) -> str:
  """The kind of image tower: "resnet"; "vit", open_clip's own, with a class token; or "trunk", of
  timm.
  """
  if tower.model.declared["image"] is resnet.TOWER:
    return "resnet"
  return "vit" if tower.config.model.image.pool == "cls" else "trunk"


def table(tower) -> layout.Table:
  """The names of two towers."""
  if (image := kind(tower)) == "trunk":
    return names.TRUNK
  return {"resnet": names.RESNETS, "vit": names.VITS}[image][tower.config.model.text.head]


def config_json(tower) -> dict:
  """open_clip_config.json of two towers."""
  c, text = tower.config, transformer.Shape.of(tower.model.config.text)
  words = {
    "context_length": c.text.length,
    "vocab_size": c.model.text.vocab_size,
    "hf_tokenizer_name": "local",
    "tokenizer_kwargs": {"clean": "whitespace"},
    "width": text.width,
    "heads": text.heads,
    "layers": text.depth,
    "mlp_ratio": _mlp_ratio(text),
    "no_causal_mask": not c.model.text.causal,
    "proj_bias": c.model.text.head == "linear",
    "pool_type": c.model.text.pool,
    "eos_id": c.model.text.eos_id,
    **_functions(text),
  }
  image = kind(tower)
  vision = {"resnet": _resnet_json, "vit": _vit_json, "trunk": _trunk_json}[image](tower)
  model = {
    "embed_dim": tower.model.embed_dim,
    "custom_text": image == "trunk",
    "quick_gelu": text.activation == "quick_gelu",
    "vision_cfg": {"image_size": c.image.size, **vision},
    "text_cfg": words,
  }
  if "bias" in tower.params:
    model["init_logit_bias"] = -10
  fit = {"squash": "squash", "crop": "shortest"}[c.image.fit]
  preprocess = {
    "mean": list(c.image.mean),
    "std": list(c.image.std),
    "interpolation": c.image.resize,
    "resize_mode": fit,
  }
  return {"model_cfg": model, "preprocess_cfg": preprocess}


def _resnet_json(tower) -> dict:
  shape = resnet.Shape.of(tower.model.config.image)
  return {"layers": list(shape.layers), "width": shape.width, "patch_size": None}


def _vit_json(tower) -> dict:
  shape = transformer.Shape.of(tower.model.config.image)
  return {
    "layers": shape.depth,
    "width": shape.width,
    "head_width": shape.width // shape.heads,
    "patch_size": tower.config.model.image.patch,
    "mlp_ratio": _mlp_ratio(shape),
    "no_ln_pre": not tower.config.model.image.pre_norm,
    **_functions(shape),
  }


def _trunk_json(tower) -> dict:
  return {
    "timm_model_name": trunk_name(tower),
    "timm_model_pretrained": False,
    "timm_pool": "map",
    "timm_proj": "none",
  }


def _mlp_ratio(shape: transformer.Shape) -> float:
  """Of which open_clip truncates the product with the width: half a unit more, where rounding would
  make it fall short.
  """
  exact = shape.mlp_dim / shape.width
  return exact if int(shape.width * exact) == shape.mlp_dim else exact + 0.5 / shape.width


def _functions(shape: transformer.Shape) -> dict:
  """The options of norms and activation; quick GELU is one of the whole model."""
  tanh = {"act_kwargs": {"approximate": "tanh"}} if shape.activation == "gelu_tanh" else {}
  return {"norm_kwargs": {"eps": shape.norm_eps}, **tanh}


def _trunk(tower) -> tuple[str | None, dict]:
  """timm's name of a trunk of these sizes, and its image sizes by activation; None and {} when
  there is none.
  """
  shape = transformer.Shape.of(tower.model.config.image)
  sizes = (shape.width, shape.depth, shape.heads, shape.mlp_dim)
  name = next((n for n, ours in names.SIZES.items() if transformer.SIZES[ours] == sizes), None)
  return name, names.TRUNKS.get((name or "", tower.config.model.image.patch), {})


def trunk_name(tower) -> str:
  """timm's name of the image tower, of which `trunk_problem` found nothing."""
  return (
    f"vit_{_trunk(tower)[0]}_patch{tower.config.model.image.patch}_siglip_{tower.config.image.size}"
  )


def trunk_problem(tower) -> str | None:
  """Which fields timm has no trunk for, and those it has; None for a trunk of timm."""
  image, size = tower.config.model.image, tower.config.image.size
  shape, (name, kinds) = transformer.Shape.of(tower.model.config.image), _trunk(tower)
  if not kinds:
    known = ", ".join(f"{names.SIZES[n]}/{patch}" for n, patch in names.TRUNKS)
    return (
      f"config.model.image of width {shape.width}, depth {shape.depth}, heads {shape.heads}, "
      f"mlp_dim {shape.mlp_dim} and patch {image.patch}; timm has {known}"
    )
  if size not in kinds.get(shape.activation, ()):
    known = " or ".join(
      f"{activation!r} with config.image.size in {sizes}" for activation, sizes in kinds.items()
    )
    return (
      f"config.model.image.activation={shape.activation!r} with config.image.size={size}; timm's "
      f"vit_{name}_patch{image.patch}_siglip has {known}"
    )
  return None


def _problem(tower) -> str | None:
  """What no table of fields says that open_clip has no place for."""
  image = kind(tower)
  if image == "trunk":
    return output.head_problem(tower) or trunk_problem(tower)
  activations = {name: tower.config.model[name].activation for name in models.TOWERS}
  if (
    image == "vit" and len(set(activations.values())) == 2 and "quick_gelu" in activations.values()
  ):
    return (
      f"config.model.image.activation={activations['image']!r} beside "
      f"config.model.text.activation={activations['text']!r}; quick_gelu is of both towers or of "
      "none"
    )
  return None


def _write(tower, folder, dtype, source):
  del source
  config = config_json(tower)
  arrays = list(output.arrays(tower, table(tower), models.TOWERS, dtype))
  folder.mkdir()
  files.write_safetensors(folder / WEIGHTS, arrays)
  output.write_json(folder / CONFIG, config)
  if kind(tower) != "vit":
    huggingface_files.save_tokenizer(tower, folder)


FORMAT = Format(
  name="open_clip",
  doc="a folder for open_clip's local-dir:PATH",
  recognises=lambda path: (path / CONFIG).is_file(),
  open=open_folder,
  write=_write,
  carries=lambda tower: CARRIES[kind(tower)],
  towers=models.TOWERS,
  problem=_problem,
)
