"""Towers as ONNX, which onnxruntime and other runtimes run without jax and siglax: image.onnx and
text.onnx, for any number of rows.

The graphs are written out from the parameters (onnx_towers.py), and onnxruntime has to give what
the towers give before anything is there.
"""

from __future__ import annotations

import pathlib

import jax
from ml_collections import ConfigDict
import numpy as np

from siglax import models
from siglax.devices import paths
from siglax.interop import fields
from siglax.interop import output
from siglax.interop import standalone
from siglax.interop.format import Format
from siglax.models import resnet
from siglax.models import text
from siglax.models import vit

KIND = "siglax-onnx"  # config.json's field "format"
TOLERANCE = 1e-4  # of an element of an embedding in onnxruntime, at BATCHES rows at once
BATCHES = (1, 7)
# Of each tower: its function, and what it takes and makes there.
FUNCTIONS = {
  "image": ("embed_image", "pixels", "zimg"),
  "text": ("embed_text", "tokens", "ztxt"),
}
# What the graphs have: a new option or a new tower is refused until onnx_towers.py has it too.
_TRANSFORMER = ("width", "depth", "heads", "mlp_dim", "norm_eps", "activation", "head", "pool")
_IMAGE = (*_TRANSFORMER, "patch", "stem", "position", "patch_bias", "pre_norm")
_TEXT = (*_TRANSFORMER, "causal", "vocab_size", "eos_id")
CARRIES = {
  **fields.any_value("model.embed_dim"),
  **fields.any_value(*(f"model.image.{name}" for name in _IMAGE)),
  **fields.any_value(*(f"model.text.{name}" for name in _TEXT)),
  # Of NaFlex, whose towers have no graph.
  "model.image.grid": (16,),
  "model.image.variant": (*vit.TOWER.variants, *resnet.TOWER.variants),
  "model.text.variant": tuple(text.TOWER.variants),
  **standalone.PREPROCESSING,
}


def _save(tower, name: str, file: pathlib.Path):
  """Writes one tower."""
  from siglax.interop import onnx_graph
  from siglax.interop import onnx_towers

  _, given, made = FUNCTIONS[name]
  graph = onnx_graph.Graph(paths.flatten(tower.params[name]))
  config, x = tower.model.config[name], standalone.inputs(tower)[name]
  onnx_towers.GRAPHS[tower.model.declared[name].name](graph, given, config, made)
  graph.save(
    file,
    onnx_graph.tensor(given, x.dtype, x.shape),
    onnx_graph.tensor(made, np.float32, [tower.model.embed_dim]),
  )


def _examples(tower, name: str, count: int) -> np.ndarray:
  """Random inputs of a tower. Texts but the first have an end token, each at another place."""
  rng, x = np.random.default_rng(0), standalone.inputs(tower)[name]
  config, shape = tower.model.config, (count, *x.shape)
  if name == "image":
    return rng.integers(0, 256, shape, np.uint8)
  tokens = rng.integers(0, config.text.vocab_size, shape, np.int32)
  for i in range(1, count):
    tokens[i, i * config.text.length // count] = config.text.eos_id
  return tokens


def _check(tower, name: str, file: pathlib.Path):
  """ValueError in one line where onnxruntime makes other embeddings than the tower in float32."""
  import onnxruntime

  config = ConfigDict(tower.model.config)
  config[name].dtype = "float32"
  function = getattr(models.build(config, (name,)), FUNCTIONS[name][0])
  x = _examples(tower, name, max(BATCHES))
  with jax.default_matmul_precision("highest"):
    want = np.asarray(jax.jit(function)({name: tower.params[name]}, x))
  session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
  for count in BATCHES:
    found = session.run(None, {FUNCTIONS[name][1]: x[:count]})[0]
    difference = np.abs(found - want[:count]).max()
    # A NaN is refused too.
    if not difference <= TOLERANCE:
      raise ValueError(
        f"--format onnx: {file.name} in onnxruntime {onnxruntime.__version__} differs by "
        f"{difference:.1e} from the {name} tower at batch {count}; it needs {TOLERANCE:.0e}; "
        "--format stablehlo has the tower's own arithmetic"
      )


_LOAD = """import json

import numpy as np
import onnxruntime

config = json.load(open("config.json"))

def load(name):
  function = config["functions"][name]
  # Or another provider before it, such as "CUDAExecutionProvider".
  session = onnxruntime.InferenceSession(function["file"], providers=["CPUExecutionProvider"])
  return lambda x: session.run(None, {function["input"]: x})[0]
"""
_CUT = """import onnx.utils

onnx.utils.extract_model("image.onnx", "float.onnx", ["normalized_pixels"], ["zimg"])
onnx.utils.extract_model("image.onnx", "patches.onnx", ["pixels"], ["image_tokens"])
"""


def config_json(tower) -> dict:
  """config.json: the files with the names and shapes of what goes in and out, beside what
  standalone.config_json has.
  """
  from siglax.interop import onnx_graph

  config = standalone.config_json(tower, KIND, "float32", opset=onnx_graph.OPSET)
  config["functions"] = {}
  for name in FORMAT.needed(tower):
    (function, given, made), x = FUNCTIONS[name], standalone.inputs(tower)[name]
    config["functions"][function] = {
      "file": f"{name}.onnx",
      "input": given,
      "output": made,
      "from": f"{x.dtype}[n,{','.join(map(str, x.shape))}]",
      "to": f"float32[n,{tower.model.embed_dim}]",
    }
  return config


def readme(config: dict, name: str) -> str:
  """README.md of a config.json: the lines that run the files, and those that make their inputs."""
  lines = [
    f"# {name}",
    "",
    f"The {standalone.towers(config)} tower of siglax as ONNX, opset {config['opset']}, for any "
    "number of rows: `pip install onnxruntime`.",
    "",
    *standalone.python("\n".join([_LOAD, *standalone.use(config)])),
    *standalone.preparation(config, "the graph"),
  ]
  if "image" in config:
    lines += [
      "",
      "## Float pixels and patch tokens",
      "",
      "The same graph from (pixels / 255 - mean) / std on, and up to the patch tokens "
      f"[n, {config['image']['patches']}, {config['image']['width']}] before pooling: "
      "`pip install onnx`.",
      "",
      *standalone.python(_CUT),
    ]
  return "\n".join(lines) + "\n"


def _write(tower, folder, dtype, source):
  del dtype  # float32, the only one of FORMAT
  folder.mkdir()
  for name in FORMAT.needed(tower):
    file = folder / f"{name}.onnx"
    _save(tower, name, file)
    _check(tower, name, file)
  if tower.text is not None:
    tower.text.save(folder / tower.text.file, padded=True)
  config = config_json(tower)
  output.write_json(folder / "config.json", config)
  (folder / "README.md").write_text(readme(config, source.resolve().name))


FORMAT = Format(
  name="onnx",
  doc="graphs that onnxruntime runs without jax",
  recognises=lambda path: standalone.recognises(path, KIND),
  write=_write,
  carries=lambda tower: CARRIES,
  packages=("onnx", "onnxruntime"),
  dtypes=("float32",),
)
