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
import jax.numpy as jnp
import numpy as np

from siglax import models
from siglax.config import versions
from siglax.devices import paths
from siglax.interop import fields
from siglax.interop import files
from siglax.interop import output
from siglax.interop.format import Format

KIND = "siglax-stablehlo"  # config.json's field "format"
FUNCTIONS = {"embed_image": "image", "image_tokens": "image", "embed_text": "text"}
SUFFIX = ".jax_export"
PLATFORMS = ("cpu", "cuda", "tpu")
# The functions are the model, whatever its options; config.json and the README tell what comes
# before them (fields.py).
CARRIES = fields.any_value(
  "model.*",
  "image.size",
  "image.mean",
  "image.std",
  "image.resize",
  "text.tokenizer",
  "text.length",
  "text.lowercase",
  "text.strip_punctuation",
  "text.pad",
) | {"image.fit": ("squash", "crop")}


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
  config = tower.config
  (b,) = jax_export.symbolic_shape("b")
  inputs = {
    "image": jax.ShapeDtypeStruct((b, config.image.size, config.image.size, 3), jnp.uint8),
    "text": jax.ShapeDtypeStruct((b, config.model.text.length), jnp.int32),
  }
  exported = {}
  for name, of in FUNCTIONS.items():
    if of in tower.params:
      shapes = {
        k: jax.ShapeDtypeStruct(x.shape, dtype) for k, x in paths.flatten(tower.params[of]).items()
      }
      exported[name] = jax_export.export(
        jax.jit(_function(tower.model, name)), platforms=PLATFORMS
      )(shapes, inputs[of])
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
  """config.json: the functions and their shapes, scale and bias, and what pictures and texts go
  through before.
  """
  c, text = tower.config, tower.text
  config = {
    "format": KIND,
    "siglax_version": versions.SIGLAX,
    "jax_version": jax.__version__,
    "platforms": list(PLATFORMS),
    "dtype": dtype,
    "embed_dim": tower.model.embed_dim,
  }
  if "log_scale" in tower.params:
    scale, bias = models.scale_and_bias(tower.params)
    config |= {"loss": c.loss.name, "scale": float(scale), "bias": float(bias)}
  if "image" in tower.params:
    patches, width = exported["image_tokens"].out_avals[0].shape[1:]
    config["image"] = {
      "size": c.image.size,
      "resize": c.image.resize,
      "fit": c.image.fit,
      "mean": list(c.image.mean),
      "std": list(c.image.std),
      "patches": patches,
      "width": width,
    }
  if "text" in tower.params:
    config["text"] = {
      "length": c.model.text.length,
      "vocab_size": c.model.text.vocab_size,
      "tokenizer": text and text.file,
    }
    if text is not None:
      config["text"] |= {
        "lowercase": text.lowercase,
        "strip_punctuation": text.strip_punctuation,
        "eos_id": text.eos_id,
        "pad_id": text.pad_id,
      }
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
_OPEN = """  picture = ImageOps.exif_transpose(Image.open(file))
  if picture.mode.startswith("I"):  # 16 bits become 8
    picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
  picture = picture.convert("RGB")
"""
_PICTURES = {
  "squash": """from PIL import Image, ImageOps

def pixels(file):
{open}  return np.asarray(picture.resize(({size}, {size}), Image.Resampling.{resample}))
""",
  "crop": """from PIL import Image, ImageOps

def pixels(file):
{open}  width, height = ({size} * side // min(picture.size) for side in picture.size)
  left, top = (width - {size}) // 2, (height - {size}) // 2
  picture = picture.resize((width, height), Image.Resampling.{resample})
  return np.asarray(picture.crop((left, top, left + {size}, top + {size})))
""",
}
_JSON_TEXTS = """from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("{tokenizer}")  # cuts and pads to {length} tokens

def tokens(texts):
  return np.array([tokenizer.encode(text).ids for text in texts], np.int32)
"""
_TEXTS = """import {imports}
import sentencepiece

pieces = sentencepiece.SentencePieceProcessor(model_file="{tokenizer}")

def tokens(texts):
  rows = np.full((len(texts), {length}), {pad_id}, np.int32)
  for row, text in zip(rows, texts):{canonical}
    ids = pieces.encode(re.sub(r"\\s+", " ", text).strip())[: {last}]
    row[: len(ids) + 1] = [*ids, {eos_id}]
  return rows
"""


def readme(config: dict, name: str) -> str:
  """README.md of a config.json: the lines that run the functions, and those that make
  their inputs.
  """
  image, text, row = config.get("image"), config.get("text"), f"[2, {config['embed_dim']}]"
  use, inputs = [_LOAD], []
  if image:
    pixels = f"np.zeros((2, {image['size']}, {image['size']}, 3), np.uint8)"
    use.append(f'zimg = load("embed_image")({pixels})  # unit rows {row}')
    use.append(
      f'patches = load("image_tokens")({pixels})  # [2, {image["patches"]}, {image["width"]}]'
    )
    picture = _PICTURES[image["fit"]].format(
      open=_OPEN, size=image["size"], resample=image["resize"].upper()
    )
    inputs += [
      "",
      "## Pictures",
      "",
      "The mean and std are inside the functions. For pixels:",
      "",
      *_python(picture),
    ]
  if text:
    use.append(
      f'ztxt = load("embed_text")(np.zeros((2, {text["length"]}), np.int32))  # unit rows {row}'
    )
    inputs += ["", "## Texts", "", *_texts(text)]
  if "scale" in config:
    use.append('logits = config["scale"] * zimg @ ztxt.T + config["bias"]')
  towers = " and ".join(tower for tower in models.TOWERS if tower in config)
  return (
    "\n".join(
      [
        f"# {name}",
        "",
        f"The {towers} tower of siglax as functions that jax runs on {', '.join(PLATFORMS)}, for "
        "any number of rows, without "
        "siglax: `pip install jax flatbuffers`.",
        "",
        *_python("\n".join(use)),
        "",
        "`load` in two halves, `export.deserialize(…).call(params, x)`, is differentiable once in "
        "both, and takes rows that "
        "are split over devices.",
        "",
        f"Written by jax {config['jax_version']}. jax promises that its versions of the next six "
        "months read the functions; "
        "export again for later ones. The .npz files do not age.",
        *inputs,
      ]
    )
    + "\n"
  )


def _texts(text) -> list[str]:
  if text["tokenizer"] is None:
    return [
      f"int32 tokens [N, {text['length']}] below {text['vocab_size']}, of the tower's own "
      "tokenizer."
    ]
  if text["tokenizer"].endswith(".json"):
    return _python(_JSON_TEXTS.format(**text))
  steps, imports = "", "re"
  if text["lowercase"]:
    steps += "\n    text = text.lower()"
  if text["strip_punctuation"]:
    steps += '\n    text = text.translate(str.maketrans("", "", string.punctuation))'
    imports += ", string"
  return _python(_TEXTS.format(imports=imports, canonical=steps, last=text["length"] - 1, **text))


def _python(code: str) -> list[str]:
  return ["```python", *code.splitlines(), "```"]


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


def _recognises(path) -> bool:
  file = path / "config.json"
  return file.is_file() and files.read_json(file).get("format") == KIND


FORMAT = Format(
  name="stablehlo",
  doc="functions that jax runs without siglax",
  recognises=_recognises,
  write=_write,
  carries=lambda tower: CARRIES,
  packages=("flatbuffers",),
)
