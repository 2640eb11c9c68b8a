"""An ONNX graph as it is put together: its nodes, and its constants, most of them parameters."""

from __future__ import annotations

import pathlib

import numpy as np
import onnx
from onnx import helper
from onnx import numpy_helper

OPSET = 20  # the first one with Gelu; onnxruntime reads it from 1.17 on
INSIDE = 2**31 - 2**24  # bytes of constants in the .onnx file itself; protobuf ends at 2 GiB


class Graph:
  """Nodes and constants. params: a tower's, as {path: array}, stacked over depth or not."""

  def __init__(self, params: dict):
    self.params = params
    self.nodes, self.shapes = [], []
    self._constants, self._known = {}, {}

  def _place(self, path: str) -> tuple[str, int | None]:
    """Where a parameter is: "encoder/blocks/3/…" may be row 3 of "encoder/blocks/…"."""
    head, blocks, tail = path.partition("/blocks/")
    layer, _, rest = tail.partition("/")
    stacked = f"{head}{blocks}{rest}"
    return (stacked, int(layer)) if path not in self.params and blocks else (path, None)

  def __contains__(self, path: str) -> bool:
    return self._place(path)[0] in self.params

  def array(self, path: str) -> np.ndarray:
    """A parameter, on the host, in float32."""
    key, layer = self._place(path)
    x = self.params[key]
    return np.asarray(x if layer is None else x[layer], np.float32)

  def param(self, path: str) -> str:
    return self.named(path, self.array(path))

  def named(self, name: str, value: np.ndarray) -> str:
    """A constant under a name of its own."""
    self._constants[name] = np.asarray(value, order="C")
    return name

  def constant(self, value) -> str:
    """A small constant, there once however often it is used. int becomes int64, float float32."""
    value = np.asarray(value)
    value = value.astype(np.float32) if value.dtype == np.float64 else value
    key = (value.dtype, value.shape, value.tobytes())
    if key not in self._known:
      self._known[key] = self.named(f"constant_{len(self._known)}", value)
    return self._known[key]

  def op(self, kind: str, *inputs, output: str | None = None, **attributes) -> str:
    """A node of standard ONNX; inputs are names, or values that become constants."""
    names = [x if isinstance(x, str) else self.constant(x) for x in inputs]
    output = output or f"{kind}_{len(self.nodes)}"
    self.nodes.append(helper.make_node(kind, names, [output], name=output, **attributes))
    return output

  def shape(self, name: str, *sizes) -> str:
    """Writes down that a tensor is float32 [n, *sizes], so that a graph can be cut there."""
    self.shapes.append(tensor(name, np.float32, sizes))
    return name

  def save(self, file: pathlib.Path, given, made):
    """Writes it: `given` and `made` are its input and its output, as `tensor` describes them.

    Where the constants have more bytes than protobuf takes, the large ones are beside it, in
    FILE.data.
    """
    constants = self._constants.items()
    if sum(x.nbytes for x in self._constants.values()) <= INSIDE:
      initializers = [numpy_helper.from_array(x, name) for name, x in constants]
    else:
      with open(f"{file}.data", "wb") as data:
        initializers = [_beside(name, x, data) for name, x in constants]
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(
      helper.make_graph(
        self.nodes, file.stem, [given], [made], initializers, value_info=self.shapes
      ),
      opset_imports=[opset],
      ir_version=helper.find_min_ir_version_for([opset]),
      producer_name="siglax",
    )
    onnx.save_model(model, file)


def _beside(name: str, x: np.ndarray, data) -> onnx.TensorProto:
  """A constant whose bytes go to the end of a file, unless they are few."""
  if x.nbytes < 1024:
    return numpy_helper.from_array(x, name)
  kind = helper.np_dtype_to_tensor_dtype(x.dtype)
  made = onnx.TensorProto(name=name, dims=x.shape, data_type=kind)
  made.data_location = onnx.TensorProto.EXTERNAL
  place = {"location": pathlib.Path(data.name).name, "offset": data.tell(), "length": x.nbytes}
  for key, value in place.items():
    made.external_data.add(key=key, value=str(value))
  data.write(x.data)
  return made


def tensor(name: str, dtype, sizes) -> onnx.ValueInfoProto:
  """[n, *sizes], of any n."""
  kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
  return helper.make_tensor_value_info(name, kind, ["n", *sizes])
