"""What the folders share that run without siglax: a config.json with sizes and preprocessing, and a
README.md with the lines that make the inputs.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from siglax import models
from siglax.config import versions
from siglax.interop import fields
from siglax.interop import files

# config.json and README.md tell them.
PREPROCESSING = fields.any_value(
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


def recognises(path, kind: str) -> bool:
  """Whether it is a folder whose config.json has `kind` as its format."""
  file = path / "config.json"
  return file.is_file() and files.read_json(file).get("format") == kind


def inputs(tower) -> dict[str, jax.ShapeDtypeStruct]:
  """One example of each tower: {"image": uint8 [S, S, 3], "text": int32 [L]}."""
  size, length = tower.config.image.size, tower.config.model.text.length
  return {
    "image": jax.ShapeDtypeStruct((size, size, 3), jnp.uint8),
    "text": jax.ShapeDtypeStruct((length,), jnp.int32),
  }


def config_json(tower, kind: str, dtype: str, **versions_and_more) -> dict:
  """config.json but for its functions: scale and bias, and what pictures and texts go through
  before.

  versions_and_more: what the format adds.
  """
  c, text = tower.config, tower.text
  config = {
    "format": kind,
    "siglax_version": versions.SIGLAX,
    **versions_and_more,
    "dtype": dtype,
    "embed_dim": tower.model.embed_dim,
  }
  if "log_scale" in tower.params:
    scale, bias = models.scale_and_bias(tower.params)
    config |= {"loss": c.loss.name, "scale": float(scale), "bias": float(bias)}
  if "image" in tower.params:
    picture = jax.ShapeDtypeStruct((1, *inputs(tower)["image"].shape), jnp.uint8)
    tokens = jax.eval_shape(tower.model.image_tokens, tower.params, picture)
    config["image"] = {
      "size": c.image.size,
      "resize": c.image.resize,
      "fit": c.image.fit,
      "mean": list(c.image.mean),
      "std": list(c.image.std),
      "patches": tokens.shape[1],
      "width": tokens.shape[2],
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
  return config


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


def use(config: dict) -> list[str]:
  """Lines that call what `load(name)` returns, for each function of a config.json."""
  image, text, row = config.get("image"), config.get("text"), f"[2, {config['embed_dim']}]"
  lines = []
  if image:
    pixels = f"np.zeros((2, {image['size']}, {image['size']}, 3), np.uint8)"
    lines.append(f'zimg = load("embed_image")({pixels})  # unit rows {row}')
    if "image_tokens" in config["functions"]:
      lines.append(
        f'patches = load("image_tokens")({pixels})  # [2, {image["patches"]}, {image["width"]}]'
      )
  if text:
    lines.append(
      f'ztxt = load("embed_text")(np.zeros((2, {text["length"]}), np.int32))  # unit rows {row}'
    )
  if "scale" in config:
    lines.append('logits = config["scale"] * zimg @ ztxt.T + config["bias"]')
  return lines


def preparation(config: dict, inside: str) -> list[str]:
  """The sections of a README.md that make pixels of pictures and tokens of texts. inside: where the
  mean and std are.
  """
  image, text, lines = config.get("image"), config.get("text"), []
  if image:
    picture = _PICTURES[image["fit"]].format(
      open=_OPEN, size=image["size"], resample=image["resize"].upper()
    )
    lines += [
      "",
      "## Pictures",
      "",
      f"The mean and std are inside {inside}. For pixels:",
      "",
      *python(picture),
    ]
  if text:
    lines += ["", "## Texts", "", *_texts(text)]
  return lines


def towers(config: dict) -> str:
  """The names of the towers that are there."""
  return " and ".join(tower for tower in models.TOWERS if tower in config)


def _texts(text) -> list[str]:
  if text["tokenizer"] is None:
    return [
      f"int32 tokens [N, {text['length']}] below {text['vocab_size']}, of the tower's own "
      "tokenizer."
    ]
  if text["tokenizer"].endswith(".json"):
    return python(_JSON_TEXTS.format(**text))
  steps, imports = "", "re"
  if text["lowercase"]:
    steps += "\n    text = text.lower()"
  if text["strip_punctuation"]:
    steps += '\n    text = text.translate(str.maketrans("", "", string.punctuation))'
    imports += ", string"
  return python(_TEXTS.format(imports=imports, canonical=steps, last=text["length"] - 1, **text))


def python(code: str) -> list[str]:
  return ["```python", *code.splitlines(), "```"]
