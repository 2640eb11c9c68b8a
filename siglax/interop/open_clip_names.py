"""open_clip's names: of the arrays of its two kinds of towers, and of timm's SigLIP trunks.

Sources: open_clip's timm_model.py, modified_resnet.py and transformer.py, timm's
vision_transformer.py.
"""

from __future__ import annotations

from siglax.interop import layout
from siglax.interop.layout import CONV
from siglax.interop.layout import LEAD
from siglax.interop.layout import Row
from siglax.interop.layout import linear
from siglax.interop.layout import norm
from siglax.models import resnet

# (size, patch): {activation: image sizes} of timm 1.0.31's vit_{size}_patch{patch}_siglip_{image
# size}.
TRUNKS = {
  ("base", 32): {"gelu_tanh": (256,)},
  ("base", 16): {"gelu": (224, 256, 384, 512)},
  ("large", 16): {"gelu": (256, 384), "gelu_tanh": (512,)},
  ("so400m", 14): {"gelu": (224, 378, 384)},
  ("so400m", 16): {"gelu_tanh": (256, 384, 512)},
  ("giantopt", 16): {"gelu_tanh": (256, 384)},
}
SIZES = {"base": "B", "large": "L", "so400m": "So400m", "giantopt": "g-opt"}

RESNET_POOLS = ("last", "eos", "argmax")  # of texts beside a ResNet
_QKV = ("query", "key", "value")
_BLOCK, _TRUNK = "image/encoder/blocks/{i}", "visual.trunk.blocks.{i}"
_TEXT_BLOCK = "text/encoder/blocks/{i}"
_POOL = "visual.trunk.attn_pool"
_IN_PROJ = ("in_proj_weight", "in_proj_bias")


def _fused(ours, parts, theirs, **options) -> tuple[Row, ...]:
  """The rows of projections that are one array there."""
  return tuple(
    row
    for part, name in enumerate(parts)
    for row in linear(f"{ours}/{name}", theirs, part=part, parts=len(parts), **options)
  )


def _text_rows(prefix: str) -> tuple[Row, ...]:
  """All but the head."""
  block = f"{prefix}transformer.resblocks.{{i}}"
  return (
    Row("text/embedding", f"{prefix}token_embedding.weight"),
    Row("text/pos_embedding", f"{prefix}positional_embedding"),
    *norm(f"{_TEXT_BLOCK}/norm1", f"{block}.ln_1."),
    *_fused(f"{_TEXT_BLOCK}/attention", _QKV, f"{block}.attn.", names=_IN_PROJ),
    *linear(f"{_TEXT_BLOCK}/attention/out", f"{block}.attn.out_proj."),
    *norm(f"{_TEXT_BLOCK}/norm2", f"{block}.ln_2."),
    *linear(f"{_TEXT_BLOCK}/mlp/fc1", f"{block}.mlp.c_fc."),
    *linear(f"{_TEXT_BLOCK}/mlp/fc2", f"{block}.mlp.c_proj."),
    *norm("text/norm", f"{prefix}ln_final."),
  )


TRUNK = layout.Table(
  (
    Row("image/stem/embedding/kernel", "visual.trunk.patch_embed.proj.weight", CONV),
    Row("image/stem/embedding/bias", "visual.trunk.patch_embed.proj.bias"),
    Row("image/pos_embedding", "visual.trunk.pos_embed", LEAD),
    *norm(f"{_BLOCK}/norm1", f"{_TRUNK}.norm1."),
    *_fused(f"{_BLOCK}/attention", _QKV, f"{_TRUNK}.attn.qkv."),
    *linear(f"{_BLOCK}/attention/out", f"{_TRUNK}.attn.proj."),
    *norm(f"{_BLOCK}/norm2", f"{_TRUNK}.norm2."),
    *linear(f"{_BLOCK}/mlp/fc1", f"{_TRUNK}.mlp.fc1."),
    *linear(f"{_BLOCK}/mlp/fc2", f"{_TRUNK}.mlp.fc2."),
    *norm("image/norm", "visual.trunk.norm."),
    Row("image/pool/probe", f"{_POOL}.latent"),
    *linear("image/pool/attention/query", f"{_POOL}.q."),
    *_fused("image/pool/attention", ("key", "value"), f"{_POOL}.kv."),
    *linear("image/pool/attention/out", f"{_POOL}.proj."),
    *norm("image/pool/norm", f"{_POOL}.norm."),
    *linear("image/pool/mlp/fc1", f"{_POOL}.mlp.fc1."),
    *linear("image/pool/mlp/fc2", f"{_POOL}.mlp.fc2."),
    *_text_rows("text."),
    *linear("text/head", "text.text_projection."),
    Row("log_scale", "logit_scale"),
    Row("bias", "logit_bias"),
  ),
  {"image": ("visual.",), "text": ("text.",)},
)


def _conv_norm(ours: str, conv: str, bn: str) -> tuple[Row, ...]:
  """The rows of a convolution and its batch norm."""
  return (
    Row(f"{ours}/conv/kernel", f"visual.{conv}.weight", CONV),
    *norm(f"{ours}/norm", f"visual.{bn}."),
    Row(f"{ours}/norm/mean", f"visual.{bn}.running_mean"),
    Row(f"{ours}/norm/var", f"visual.{bn}.running_var"),
  )


def _bottleneck(stage: int, block: int) -> tuple[Row, ...]:
  ours, theirs = f"image/stages/{stage}/{block}", f"layer{stage + 1}.{block}"
  convs = (_conv_norm(f"{ours}/conv{i}", f"{theirs}.conv{i}", f"{theirs}.bn{i}") for i in (1, 2, 3))
  shortcut = _conv_norm(f"{ours}/shortcut", f"{theirs}.downsample.0", f"{theirs}.downsample.1")
  return (*(row for rows in convs for row in rows), *shortcut)


# Where the image tower is a ResNet the text tower has no prefix, and its head without a bias is a
# matrix of its own.
_RESNET_ROWS = (
  *(row for i in (1, 2, 3) for row in _conv_norm(f"image/stem/conv{i}", f"conv{i}", f"bn{i}")),
  *(
    row
    for stage, counts in enumerate(zip(*(layers for _, layers, _ in resnet.SIZES.values())))
    for block in range(max(counts))
    for row in _bottleneck(stage, block)
  ),
  Row("image/pos_embedding", "visual.attnpool.positional_embedding"),
  *(
    row
    for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "c"))
    for row in linear(f"image/pool/{ours}", f"visual.attnpool.{theirs}_proj.")
  ),
  *_text_rows(""),
  Row("log_scale", "logit_scale"),
  Row("bias", "logit_bias"),
)
_RESNET_PREFIXES = {
  "image": ("visual.",),
  "text": (
    "token_embedding.",
    "positional_embedding",
    "transformer.",
    "ln_final.",
    "text_projection",
  ),
}
RESNETS = {
  "linear": layout.Table(
    (*_RESNET_ROWS, *linear("text/head", "text_projection.")), _RESNET_PREFIXES
  ),
  "linear_no_bias": layout.Table(
    (*_RESNET_ROWS, Row("text/head/kernel", "text_projection")), _RESNET_PREFIXES
  ),
}
