"""Towers as StableHLO: what jax.export serialises, which jax runs without siglax, on any platform
and batch size.

A function's parameters are its first argument, beside it in an .npz for each tower: two functions
share them, nothing of them is compiled as a constant, and numpy still reads them when jax no longer
reads the function.
"""

from __future__ import annotations

import contextlib

import jax
from jax import export as jax_export
from ml_collections import ConfigDict
import numpy as np

from siglax import models
from siglax.devices import paths
from siglax.interop import fields
from siglax.interop import output
from siglax.interop import standalone
from siglax.interop.format import Format

KIND = "siglax-stablehlo"  # config.json's field "format"
FUNCTIONS = {"embed_image": "image", "image_tokens": "image", "embed_text": "text"}
SUFFIX = ".jax_export"
PLATFORMS = ("cpu", "cuda", "tpu")
# The functions are the model, whatever its options.
CARRIES = fields.any_value("model.*") | standalone.PREPROCESSING


def params(tower, name: str, dtype) -> dict[str, np.ndarray]:
  """The parameters of one tower, {"encoder/blocks/norm1/scale": array}."""
  return {
    k: np.asarray(jax.device_get(x)).astype(dtype)
    for k, x in paths.flatten(tower.params[name]).items()
  }


@contextlib.contextmanager
def _without_paths():
  """What is lowered in here holds no traceback into this machine's folders."""
  option = "jax_traceback_in_locations_limit"
  before = getattr(jax.config, option)
  jax.config.update(option, 0)
  try:
    yield
  finally:
    jax.config.update(option, before)


@_without_paths()
def functions(tower, dtype) -> dict[str, jax_export.Exported]:
  """embed_image, image_tokens and embed_text, as far as there are towers for them.

  Each takes the parameters of its tower (see `params`) and uint8 pixels [b, S, S, 3] or int32
  tokens [b, L] for any b, on one device or with b split over many. Shapes alone are traced, outside
  of any mesh.
  """
  (b,) = jax_export.symbolic_shape("b")
  inputs = {
    name: jax.ShapeDtypeStruct((b, *x.shape), x.dtype)
    for name, x in standalone.inputs(tower).items()
  }
  # One program for all platforms; a fused kernel runs on one.
  config = ConfigDict(tower.model.config)
  for of in tower.model.towers:
    config[of].attention = "xla"
  model, exported = models.build(config, tower.model.towers), {}
  for name, of in FUNCTIONS.items():
    if of in tower.params:
      shapes = {
        k: jax.ShapeDtypeStruct(x.shape, dtype) for k, x in paths.flatten(tower.params[of]).items()
      }
      exported[name] = jax_export.export(jax.jit(_function(model, name)), platforms=PLATFORMS)(
        shapes, inputs[of]
      )
  return exported


def _function(model, name):
  def call(params, x):
    return getattr(model, name)({FUNCTIONS[name]: paths.unflatten(params)}, x)

  call.__name__ = name  # what profiles call it
  return call


@_without_paths()
def serialize(function: jax_export.Exported) -> bytes:
  """With its gradient, so that a tower can be trained on where siglax is not."""
  return bytes(function.serialize(vjp_order=1))


def config_json(tower, exported: dict, dtype: str) -> dict:
  """config.json: the functions and their shapes beside what standalone.config_json has."""
  config = standalone.config_json(
    tower, KIND, dtype, jax_version=jax.__version__, platforms=list(PLATFORMS)
  )
  config["functions"] = {
    name: {
      "file": name + SUFFIX,
      "params": f"{FUNCTIONS[name]}.npz",
      "from": str(function.in_avals[-1]),
      "to": str(function.out_avals[0]),
    }
    for name, function in exported.items()
  }
  return config


_LOAD = """import json

import jax
from jax import export
import numpy as np

config = json.load(open("config.json"))

def load(name):
  function = config["functions"][name]
  arrays = np.load(function["params"])
  params = jax.device_put({k: x.view(config["dtype"]) for k, x in arrays.items()})
  call = jax.jit(export.deserialize(open(function["file"], "rb").read()).call)
  return lambda x: call(params, x)
"""


def readme(config: dict, name: str) -> str:
  """README.md of a config.json: the lines that run the functions, and those that make
  their inputs.
  """
  lines = [
    f"# {name}",
    "",
    f"The {standalone.towers(config)} tower of siglax as functions that jax runs on "
    f"{', '.join(PLATFORMS)}, for any number of rows, without siglax: "
    "`pip install jax flatbuffers`.",
    "",
    *standalone.python("\n".join([_LOAD, *standalone.use(config)])),
    "",
    "`load` in two halves, `export.deserialize(…).call(params, x)`, is differentiable once in "
    "both, and takes rows that are split over devices.",
    "",
    f"Written by jax {config['jax_version']}. jax promises that its versions of the next six "
    "months read the functions; export again for later ones. The .npz files do not age.",
    *standalone.preparation(config, "the functions"),
  ]
  return "\n".join(lines) + "\n"


def _write(tower, folder, dtype, source):
  exported = functions(tower, output.DTYPES[dtype])
  config = config_json(tower, exported, dtype)
  folder.mkdir()
  for name, function in exported.items():
    (folder / config["functions"][name]["file"]).write_bytes(serialize(function))
  for name in FORMAT.needed(tower):
    np.savez(folder / f"{name}.npz", **params(tower, name, output.DTYPES[dtype]))
  if tower.text is not None:
    tower.text.save(folder / tower.text.file, padded=True)
  output.write_json(folder / "config.json", config)
  (folder / "README.md").write_text(readme(config, source.resolve().name))


FORMAT = Format(
  name="stablehlo",
  doc="functions that jax runs without siglax",
  recognises=lambda path: standalone.recognises(path, KIND),
  write=_write,
  carries=lambda tower: CARRIES,
  packages=("flatbuffers",),
)
