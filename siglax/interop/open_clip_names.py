"""open_clip's names: of the arrays of its three kinds of towers, and of timm's SigLIP trunks.

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

POOLS = ("argmax", "eos", "last")  # of texts beside a ResNet or open_clip's own ViT
_QKV = ("query", "key", "value")
_BLOCK, _TRUNK = "image/encoder/blocks/{i}", "visual.trunk.blocks.{i}"
_POOL = "visual.trunk.attn_pool"
_IN_PROJ = ("in_proj_weight", "in_proj_bias")


def _fused(ours, parts, theirs, **options) -> tuple[Row, ...]:
  """The rows of projections that are one array there."""
  return tuple(
    row
    for part, name in enumerate(parts)
    for row in linear(f"{ours}/{name}", theirs, part=part, parts=len(parts), **options)
  )


def _own_encoder(tower: str, prefix: str) -> tuple[Row, ...]:
  """The blocks of open_clip's own transformer."""
  ours, theirs = f"{tower}/encoder/blocks/{{i}}", f"{prefix}transformer.resblocks.{{i}}"
  return (
    *norm(f"{ours}/norm1", f"{theirs}.ln_1."),
    *_fused(f"{ours}/attention", _QKV, f"{theirs}.attn.", names=_IN_PROJ),
    *linear(f"{ours}/attention/out", f"{theirs}.attn.out_proj."),
    *norm(f"{ours}/norm2", f"{theirs}.ln_2."),
    *linear(f"{ours}/mlp/fc1", f"{theirs}.mlp.c_fc."),
    *linear(f"{ours}/mlp/fc2", f"{theirs}.mlp.c_proj."),
  )


def _text_rows(prefix: str) -> tuple[Row, ...]:
  """All but the head."""
  return (
    Row("text/embedding", f"{prefix}token_embedding.weight"),
    Row("text/pos_embedding", f"{prefix}positional_embedding"),
    *_own_encoder("text", prefix),
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


# Where the image tower is open_clip's own the text tower has no prefix.
_OWN_PREFIXES = {
  "image": ("visual.",),
  "text": (
    "token_embedding.",
    "positional_embedding",
    "transformer.",
    "ln_final.",
    "text_projection",
  ),
}


def _with_texts(image: tuple[Row, ...]) -> dict[str, layout.Table]:
  """{head of the text tower: table}: a head without a bias is a matrix of its own."""
  logits = (Row("log_scale", "logit_scale"), Row("bias", "logit_bias"))
  heads = {
    "linear": linear("text/head", "text_projection."),
    "linear_no_bias": (Row("text/head/kernel", "text_projection"),),
  }
  return {
    name: layout.Table((*image, *_text_rows(""), *head, *logits), _OWN_PREFIXES)
    for name, head in heads.items()
  }


RESNETS = _with_texts(
  (
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
  )
)
VITS = _with_texts(
  (
    Row("image/stem/embedding/kernel", "visual.conv1.weight", CONV),
    Row("image/cls", "visual.class_embedding"),
    Row("image/pos_embedding", "visual.positional_embedding"),
    *norm("image/pre_norm", "visual.ln_pre."),
    *_own_encoder("image", "visual."),
    *norm("image/norm", "visual.ln_post."),
    Row("image/head/kernel", "visual.proj"),
  )
)
