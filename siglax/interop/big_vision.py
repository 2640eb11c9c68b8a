"""big_vision .npz checkpoints, with their blocks in a loop or scanned; the file says all sizes by
its shapes.

Names: big_vision's models/vit.py, models/proj/image_text/{two_towers,text_transformer}.py.
"""

from __future__ import annotations

import math
import pathlib

from siglax import config as config_lib
from siglax import models
from siglax.interop import fields
from siglax.interop import files
from siglax.interop import layout
from siglax.interop import output
from siglax.interop.checkpoint import Checkpoint
from siglax.interop.format import Format
from siglax.interop.layout import LEAD
from siglax.interop.layout import Row
from siglax.interop.layout import View
from siglax.interop.layout import linear
from siglax.interop.layout import norm
from siglax.models import transformer

PREFIX = "params/"
_NAMES = ("kernel", "bias")
_PLAIN = {"names": _NAMES, "views": (layout.SAME, layout.SAME)}
_INTO_HEADS = {"names": _NAMES, "views": (View(heads=1), View(heads=0))}
_OUT_OF_HEADS = {"names": _NAMES, "views": (View(heads=0), layout.SAME)}


def _attention_and_mlp(ours: str, theirs: str) -> tuple[Row, ...]:
  attention = f"{theirs}/MultiHeadDotProductAttention_0"
  return (
    *(
      row
      for name in ("query", "key", "value")
      for row in linear(f"{ours}/attention/{name}", f"{attention}/{name}/", **_INTO_HEADS)
    ),
    *linear(f"{ours}/attention/out", f"{attention}/out/", **_OUT_OF_HEADS),
    *linear(f"{ours}/mlp/fc1", f"{theirs}/MlpBlock_0/Dense_0/", **_PLAIN),
    *linear(f"{ours}/mlp/fc2", f"{theirs}/MlpBlock_0/Dense_1/", **_PLAIN),
  )


def _encoder(ours: str, theirs: str) -> tuple[Row, ...]:
  block, layer = f"{ours}/encoder/blocks/{{i}}", f"{theirs}/encoderblock_{{i}}"
  return (
    *norm(f"{block}/norm1", f"{layer}/LayerNorm_0/", scale="scale"),
    *norm(f"{block}/norm2", f"{layer}/LayerNorm_1/", scale="scale"),
    *_attention_and_mlp(block, layer),
    *norm(f"{ours}/norm", f"{theirs}/encoder_norm/", scale="scale"),
  )


def _map_head(ours: str, theirs: str) -> tuple[Row, ...]:
  return (
    Row(f"{ours}/pool/probe", f"{theirs}/MAPHead_0/probe"),
    *norm(f"{ours}/pool/norm", f"{theirs}/MAPHead_0/LayerNorm_0/", scale="scale"),
    *_attention_and_mlp(f"{ours}/pool", f"{theirs}/MAPHead_0"),
  )


TABLE = layout.Table(
  (
    *linear("image/stem/embedding", "img/embedding/", **_PLAIN),
    Row("image/pos_embedding", "img/pos_embedding", LEAD),
    *_encoder("image", "img/Transformer"),
    *_map_head("image", "img"),
    *linear("image/head", "img/head/", **_PLAIN),
    Row("text/embedding", "txt/Embed_0/embedding"),
    Row("text/pos_embedding", "txt/pos_embedding", LEAD),
    *_encoder("text", "txt/Encoder_0"),
    *_map_head("text", "txt"),
    *linear("text/head", "txt/head/", **_PLAIN),
    Row("log_scale", "t", LEAD),
    Row("bias", "b", LEAD),
  ),
  {"image": ("img/",), "text": ("txt/",)},
)


def open_file(file: pathlib.Path) -> Checkpoint:
  """An .npz; it carries no tokenizer.

  The file cannot say how the text was pooled: without an attention head it is from the last
  position, as in SigLIP. Raises ValueError when it holds no such towers.
  """
  arrays = files.Npz(file, PREFIX)
  towers = tuple(
    t for t, name in zip(models.TOWERS, ("img", "txt")) if f"{name}/pos_embedding" in arrays.shapes
  )
  if not towers:
    raise ValueError(
      f"{file} holds no towers of big_vision: it has neither img/pos_embedding nor "
      "txt/pos_embedding"
    )
  config = config_lib.default()
  if "image" in towers:
    _image_tower(config, arrays)
  if "text" in towers:
    _text_tower(config, arrays)
  config.loss.name = "sigmoid" if "b" in arrays.shapes else "softmax"
  config.loss.bias_init = -10.0 if "b" in arrays.shapes else None
  return Checkpoint(arrays, TABLE, config, towers, None)


def _image_tower(config, arrays):
  image = config.model.image
  _tower(arrays, image, "img/Transformer")
  patch, _, _, width = _shape(arrays, "img/embedding/kernel", 4)
  _, positions, _ = _shape(arrays, "img/pos_embedding", 3)
  image.patch, config.image.size = patch, patch * math.isqrt(positions)
  image.pool = "map" if "img/MAPHead_0/probe" in arrays.shapes else "mean"
  has_head = "img/head/kernel" in arrays.shapes
  image.head = "linear" if has_head else "auto"
  config.model.embed_dim = _shape(arrays, "img/head/kernel", 2)[1] if has_head else width


def _text_tower(config, arrays):
  text = config.model.text
  _tower(arrays, text, "txt/Encoder_0")
  text.vocab_size, _ = _shape(arrays, "txt/Embed_0/embedding", 2)
  text.eos_id = 1
  _, config.text.length, _ = _shape(arrays, "txt/pos_embedding", 3)
  text.pool = "map" if "txt/MAPHead_0/probe" in arrays.shapes else "last"
  config.model.embed_dim = _shape(arrays, "txt/head/kernel", 2)[1]


def _tower(arrays, tower, encoder):
  scanned = any(name.startswith(f"{encoder}/encoderblock/") for name in arrays.shapes)
  first = f"{encoder}/encoderblock" if scanned else f"{encoder}/encoderblock_0"
  *depth, tower.width, tower.heads, _ = _shape(
    arrays, f"{first}/MultiHeadDotProductAttention_0/query/kernel", 3 + scanned
  )
  *_, tower.mlp_dim = _shape(arrays, f"{first}/MlpBlock_0/Dense_0/kernel", 2 + scanned)
  last = "/MlpBlock_0/Dense_0/kernel"
  blocks = [
    name
    for name in arrays.shapes
    if name.startswith(f"{encoder}/encoderblock_") and name.endswith(last)
  ]
  tower.depth = depth[0] if scanned else len(blocks)


def _shape(arrays, name, rank) -> tuple[int, ...]:
  shape = arrays.shapes.get(name)
  if shape is None or len(shape) != rank:
    found = (
      "is missing"
      if shape is None
      else f"has the shape {list(shape)}; it must have {rank} dimensions"
    )
    raise ValueError(f"{arrays.name}: {name} {found}")
  return shape


# What two_towers.py with models.vit and text_transformer is, and its value_range(-1, 1) and resize.
# The .npz has no place for other values of these fields, nor for a tokenizer; `open_file` reads it
# as what it means here.
CARRIES = {
  **fields.any_value("model.embed_dim", "model.image.patch", "image.size"),
  **fields.sizes("image"),
  **fields.plain_vit(),
  "model.image.pool": ("map", "mean"),
  "model.image.activation": ("gelu_tanh",),
  "model.image.norm_eps": (1e-6,),
  "model.image.head": ("auto", "linear"),
  "image.mean": ((0.5, 0.5, 0.5),),
  "image.std": ((0.5, 0.5, 0.5),),
  "image.resize": ("bilinear",),
  "image.fit": ("squash",),
}
TEXT_CARRIES = {
  **fields.any_value("model.text.vocab_size", "text.length"),
  **fields.sizes("text"),
  "model.text.variant": tuple(transformer.SIZES),
  "model.text.eos_id": (1,),
  "model.text.pool": ("last", "map"),
  "model.text.causal": (False,),
  "model.text.activation": ("gelu_tanh",),
  "model.text.norm_eps": (1e-6,),
  "model.text.head": ("linear",),
  "text.tokenizer": fields.LEFT_OUT,
  "text.lowercase": (True,),
  "text.strip_punctuation": (True,),
  "text.pad": ("eos",),
}


def _write(tower, file, dtype, source):
  del source
  arrays = output.arrays(tower, TABLE, FORMAT.needed(tower), dtype)
  files.write_npz(file, ((PREFIX + name, make) for name, make in arrays))


FORMAT = Format(
  name="big_vision",
  doc="an .npz file",
  recognises=lambda path: path.is_file() and path.suffix == ".npz",
  open=open_file,
  write=_write,
  carries=lambda tower: CARRIES | TEXT_CARRIES,
  suffix=".npz",
)
