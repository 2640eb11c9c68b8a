"""The towers of siglax/models as ONNX graphs, each with the layers it has in common with others.

A layer is a function of a graph, the name of a tensor and the path of its parameters; it gives the
name of what comes out. Everything is float32. Shapes: n examples, which no node fixes, l positions,
d width, h heads. Source of the operators: https://onnx.ai/onnx/operators, opset 20.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from siglax.interop.onnx_graph import Graph
from siglax.models import resnet
from siglax.models import text
from siglax.models import transformer
from siglax.models import vit

MASKED = -1e9  # added to a logit of attention, whose weight is then 0
ACTIVATIONS = {
  "gelu_tanh": lambda g, x: g.op("Gelu", x, approximate="tanh"),
  "gelu": lambda g, x: g.op("Gelu", x),
  "quick_gelu": lambda g, x: g.op("Mul", x, g.op("Sigmoid", g.op("Mul", x, 1.702))),
}


def linear(g: Graph, x: str, path: str) -> str:
  x = g.op("MatMul", x, g.param(f"{path}/kernel"))
  return g.op("Add", x, g.param(f"{path}/bias")) if f"{path}/bias" in g else x


def layer_norm(g: Graph, x: str, path: str, epsilon: float, output: str | None = None) -> str:
  scale, bias = (g.param(f"{path}/{name}") for name in ("scale", "bias"))
  return g.op("LayerNormalization", x, scale, bias, epsilon=epsilon, output=output)


def conv(g: Graph, x: str, path: str, stride: int, pad: int) -> str:
  """[n, c, H, W] → [n, features, H', W']."""
  kernel = g.array(f"{path}/kernel").transpose(3, 2, 0, 1)
  inputs = [x, g.named(f"{path}/kernel", kernel)]
  if f"{path}/bias" in g:
    inputs.append(g.param(f"{path}/bias"))
  return g.op("Conv", *inputs, strides=[stride, stride], pads=[pad] * 4)


def attention(g: Graph, queries: str, x: str, path: str, heads: int, mask=None) -> str:
  """transformer.Attention of queries [n, q, d] or [1, q, d] over x [n, l, d]. mask: [q, l], which
  is added to the logits.
  """
  width = g.array(f"{path}/query/kernel").shape[-1]

  def split(y, name, order):
    y = g.op("Reshape", linear(g, y, f"{path}/{name}"), [0, 0, heads, width // heads])
    return g.op("Transpose", y, perm=order)

  query = g.op("Mul", split(queries, "query", [0, 2, 1, 3]), (width // heads) ** -0.5)
  logits = g.op("MatMul", query, split(x, "key", [0, 2, 3, 1]))
  if mask is not None:
    logits = g.op("Add", logits, mask)
  y = g.op("MatMul", g.op("Softmax", logits), split(x, "value", [0, 2, 1, 3]))
  y = g.op("Reshape", g.op("Transpose", y, perm=[0, 2, 1, 3]), [0, 0, width])
  return linear(g, y, f"{path}/out")


def mlp(g: Graph, x: str, path: str, activation: str) -> str:
  return linear(g, ACTIVATIONS[activation](g, linear(g, x, f"{path}/fc1")), f"{path}/fc2")


def encoder(g: Graph, x: str, shape: transformer.Shape, mask=None) -> str:
  for block in (f"encoder/blocks/{i}" for i in range(shape.depth)):
    y = layer_norm(g, x, f"{block}/norm1", shape.norm_eps)
    x = g.op("Add", x, attention(g, y, y, f"{block}/attention", shape.heads, mask))
    y = layer_norm(g, x, f"{block}/norm2", shape.norm_eps)
    x = g.op("Add", x, mlp(g, y, f"{block}/mlp", shape.activation))
  return x


def map_head(g: Graph, x: str, shape: transformer.Shape) -> str:
  """transformer.MapHead: [n, l, d] → [n, d]."""
  y = attention(g, g.param("pool/probe"), x, "pool/attention", shape.heads)
  z = mlp(g, layer_norm(g, y, "pool/norm", shape.norm_eps), "pool/mlp", shape.activation)
  return g.op("Gather", g.op("Add", y, z), 0, axis=1)


def unit(g: Graph, x: str, output: str) -> str:
  """x / ‖x‖ by row."""
  squares = g.op("ReduceSum", g.op("Mul", x, x), [-1])
  return g.op("Div", x, g.op("Sqrt", g.op("Max", squares, 1e-24)), output=output)


def normalized(g: Graph, pixels: str, config) -> str:
  """uint8 [n, H, W, 3] → float32 [n, 3, H, W], through "normalized_pixels", [n, H, W, 3]."""
  x = g.op("Div", g.op("Cast", pixels, to=TensorProto.FLOAT), 255.0)
  x = g.op("Sub", x, list(config.mean))
  x = g.op("Div", x, list(config.std), output="normalized_pixels")
  size = config.image_size
  return g.op("Transpose", g.shape(x, size, size, 3), perm=[0, 3, 1, 2])


def stem(g: Graph, x: str, config, shape: transformer.Shape) -> str:
  """vit.PatchStem or vit.ConvStem: [n, 3, H, W] → [n, patches, d]."""
  if config.stem == "patch":
    x = conv(g, x, "stem/embedding", config.patch, 0)
    return g.op("Transpose", g.op("Reshape", x, [0, shape.width, -1]), perm=[0, 2, 1])
  for i in range(config.patch.bit_length() - 1):
    x = g.op("Transpose", conv(g, x, f"stem/convs/{i}", 2, 1), perm=[0, 2, 3, 1])
    x = layer_norm(g, x, f"stem/norms/{i}", shape.norm_eps)
    x = g.op("Transpose", ACTIVATIONS["gelu_tanh"](g, x), perm=[0, 3, 1, 2])
  x = linear(g, g.op("Transpose", x, perm=[0, 2, 3, 1]), "stem/embedding")
  return g.op("Reshape", x, [0, -1, shape.width])


def vision_transformer(g: Graph, pixels: str, config, output: str):
  """vit.VisionTransformer; "image_tokens" are the patches before pooling."""
  shape, has_cls = transformer.Shape.of(config), config.pool == "cls"
  side = config.image_size // config.patch
  positions = (
    g.array("pos_embedding")
    if config.position == "learned"
    else np.pad(vit.sincos_2d(side, side, shape.width), [(int(has_cls), 0), (0, 0)])
  )
  x = stem(g, normalized(g, pixels, config), config, shape)
  x = g.op("Add", x, g.named("positions", positions[int(has_cls) :]))
  if has_cls:
    cls = g.named("cls", (g.array("cls") + positions[0])[None, None])
    count = g.op("Shape", x, start=0, end=1)
    cls = g.op("Expand", cls, g.op("Concat", count, [1, shape.width], axis=0))
    x = g.op("Concat", cls, x, axis=1)
  if config.pre_norm:
    x = layer_norm(g, x, "pre_norm", shape.norm_eps)
  last = None if has_cls else "image_tokens"
  x = layer_norm(g, encoder(g, x, shape), "norm", shape.norm_eps, last)
  if has_cls:
    g.op("Slice", x, [1], [side * side + 1], [1], output="image_tokens")
  g.shape("image_tokens", side * side, shape.width)
  if config.pool == "map":
    x = map_head(g, x, shape)
  elif config.pool == "cls":
    x = g.op("Gather", x, 0, axis=1)
  else:
    x = g.op("ReduceMean", x, [1], keepdims=0)
  unit(g, linear(g, x, "head") if "head/kernel" in g else x, output)


def conv_norm(g: Graph, x: str, path: str, stride: int = 1) -> str:
  """resnet.ConvNorm, with its running statistics."""
  pad = g.array(f"{path}/conv/kernel").shape[0] // 2
  norm = [g.param(f"{path}/norm/{name}") for name in ("scale", "bias", "mean", "var")]
  x = conv(g, x, f"{path}/conv", stride, pad)
  return g.op("BatchNormalization", x, *norm, epsilon=resnet.EPSILON)


def average_pool(g: Graph, x: str, stride: int) -> str:
  if stride == 1:
    return x
  return g.op("AveragePool", x, kernel_shape=[stride, stride], strides=[stride, stride])


def bottleneck(g: Graph, x: str, path: str, stride: int) -> str:
  y = g.op("Relu", conv_norm(g, x, f"{path}/conv1"))
  y = g.op("Relu", conv_norm(g, y, f"{path}/conv2"))
  y = conv_norm(g, average_pool(g, y, stride), f"{path}/conv3")
  if f"{path}/shortcut/conv/kernel" in g:
    x = conv_norm(g, average_pool(g, x, stride), f"{path}/shortcut")
  return g.op("Relu", g.op("Add", x, y))


def clip_resnet(g: Graph, pixels: str, config, output: str):
  """resnet.ResNet; "image_tokens" are its last feature map."""
  shape, x = resnet.Shape.of(config), normalized(g, pixels, config)
  for i in (1, 2, 3):
    x = g.op("Relu", conv_norm(g, x, f"stem/conv{i}", 2 if i == 1 else 1))
  x = average_pool(g, x, 2)
  for stage, count in enumerate(shape.layers):
    for block in range(count):
      x = bottleneck(g, x, f"stages/{stage}/{block}", 2 if stage and not block else 1)
  places, features = g.array("pos_embedding").shape
  x = g.op("Reshape", x, [0, features, -1])
  x = g.op("Transpose", x, perm=[0, 2, 1], output="image_tokens")
  g.shape(x, places - 1, features)
  x = g.op("Concat", g.op("ReduceMean", x, [1]), x, axis=1)
  x = g.op("Add", x, g.param("pos_embedding"))
  mean = g.op("Slice", x, [0], [1], [1])
  x = attention(g, mean, x, "pool", shape.width // 2)
  unit(g, g.op("Gather", x, 0, axis=1), output)


def first_end(g: Graph, tokens: str, config) -> str:
  """The first position of the end token [n, 1]; the last position of a text without one."""
  is_end = g.op("Equal", tokens, np.int32(config.eos_id))
  is_end = g.op("Cast", is_end, to=TensorProto.INT32)
  any_end = g.op("Cast", g.op("ReduceMax", is_end, [1]), to=TensorProto.BOOL)
  return g.op("Where", any_end, g.op("ArgMax", is_end, axis=1), config.length - 1)


def text_transformer(g: Graph, tokens: str, config, output: str):
  """text.TextTransformer."""
  shape, length = transformer.Shape.of(config), config.length
  x = g.op("Gather", g.param("embedding"), tokens)
  x = g.op("Add", x, g.param("pos_embedding"))
  mask = np.triu(np.full((length, length), MASKED, np.float32), 1)
  x = encoder(g, x, shape, g.named("causal", mask) if config.causal else None)
  x = layer_norm(g, x, "norm", shape.norm_eps)
  if config.pool == "map":
    x = map_head(g, x, shape)
  elif config.pool == "last":
    x = g.op("Gather", x, length - 1, axis=1)
  elif config.pool == "mean":
    real = g.op("LessOrEqual", np.arange(length), first_end(g, tokens, config))
    real = g.op("Unsqueeze", g.op("Cast", real, to=TensorProto.FLOAT), [2])
    total = g.op("ReduceSum", g.op("Mul", x, real), [1], keepdims=0)
    x = g.op("Div", total, g.op("ReduceSum", real, [1], keepdims=0))
  else:
    end = first_end(g, tokens, config) if config.pool == "eos" else g.op("ArgMax", tokens, axis=1)
    x = g.op("GatherND", x, end, batch_dims=1)
  unit(g, linear(g, x, "head"), output)


# By the name of a declared tower. Each takes a graph, the name of its input, config.model.image or
# config.model.text, and the name of its output.
GRAPHS = {
  vit.TOWER.name: vision_transformer,
  resnet.TOWER.name: clip_resnet,
  text.TOWER.name: text_transformer,
}
