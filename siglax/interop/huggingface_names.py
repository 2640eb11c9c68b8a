"""Hugging Face's models that siglax reads and writes, and the names of their arrays.

Sources: transformers' modeling_siglip.py, modeling_siglip2.py and modeling_clip.py.
"""

from __future__ import annotations

import dataclasses

from siglax import models
from siglax.interop import layout
from siglax.interop.layout import CONV
from siglax.interop.layout import LEAD
from siglax.interop.layout import TRANSPOSED
from siglax.interop.layout import Row
from siglax.interop.layout import linear
from siglax.interop.layout import norm


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
# NaFlex: the patches come cut, so their embedding is a linear map.
SIGLIP2 = layout.Table(
  (
    *linear("image/embedding", "vision_model.embeddings.patch_embedding."),
    *(row for row in SIGLIP.rows if not row.ours.startswith("image/stem/")),
  ),
  SIGLIP.prefixes,
)
TABLES = {"siglip": SIGLIP, "siglip2": SIGLIP2, "clip": CLIP}


@dataclasses.dataclass(frozen=True)
class Kind:
  """A class of transformers that holds towers. family: of TABLES."""

  architecture: str
  family: str
  towers: tuple[str, ...]


# By model_type, as config.json calls them.
KINDS = {
  "siglip": Kind("SiglipModel", "siglip", models.TOWERS),
  "siglip_vision_model": Kind("SiglipVisionModel", "siglip", ("image",)),
  "siglip_text_model": Kind("SiglipTextModel", "siglip", ("text",)),
  "siglip2": Kind("Siglip2Model", "siglip2", models.TOWERS),
  "siglip2_vision_model": Kind("Siglip2VisionModel", "siglip2", ("image",)),
  "siglip2_text_model": Kind("Siglip2TextModel", "siglip2", ("text",)),
  "clip": Kind("CLIPModel", "clip", models.TOWERS),
  "clip_vision_model": Kind("CLIPVisionModelWithProjection", "clip", ("image",)),
  "clip_text_model": Kind("CLIPTextModelWithProjection", "clip", ("text",)),
}


def model_type(family: str, towers: tuple[str, ...]) -> str:
  """The key of KINDS for these towers of a family."""
  return next(k for k, kind in KINDS.items() if (kind.family, kind.towers) == (family, towers))
