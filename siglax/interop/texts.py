"""The tokenizer in a folder of transformers or open_clip, in and out.

Both open it by transformers' AutoTokenizer: a sentencepiece model as a SiglipTokenizer, a
tokenizer.json by the tokenizers library. A sentencepiece model whose texts are not those of a
SiglipTokenizer goes out as a tokenizer.json.
"""

from __future__ import annotations

import pathlib

from siglax.data import text as text_lib
from siglax.interop import fields
from siglax.interop import files
from siglax.interop import output
from siglax.interop import sentencepiece_json

CONFIG = "tokenizer_config.json"
SENTENCEPIECE, JSON = "spiece.model", "tokenizer.json"
FIELDS = ("text.tokenizer", "text.lowercase", "text.strip_punctuation", "text.pad")


def read(config, folder: pathlib.Path, *, is_clip: bool) -> pathlib.Path | None:
  """Sets config.text to the tokenizer of a folder and what its tokenizer_config.json says; its
  path, None where there is none. What is left open there is the tokenizer's own, see
  config.fill_text. ValueError for what siglax has no equal for.
  """
  given = _given(folder)
  is_siglip = str(given.get("tokenizer_class", "SiglipTokenizer")).startswith("SiglipTokenizer")
  found = text_lib.names_in(str(folder), text_lib.KINDS)
  if not found:
    return None
  # A SiglipTokenizer is its sentencepiece model; the others have one beside for older versions.
  found.sort(key=lambda name: (name == JSON) == is_siglip)
  name = found[0]
  for key in ("padding_side", "truncation_side"):
    if (side := given.get(key, "right")) != "right":
      raise ValueError(f"{folder / CONFIG}: {key}={side!r} is none that siglax has; it has 'right'")
  text = config.text
  text.tokenizer = str(folder / name)
  if "do_lower_case" in given:
    text.lowercase = files.checked(folder / CONFIG, "do_lower_case", given["do_lower_case"], True)
  elif not is_clip:
    text.lowercase = True
  if is_clip and name == JSON:
    text.lowercase = None  # its normalizer does what CLIP's does
  text.strip_punctuation = None if name == JSON else is_siglip
  end, pad = (_content(given.get(key, "</s>")) for key in ("eos_token", "pad_token"))
  text.pad = "eos" if pad == end else "pad"
  return folder / name


def _given(folder) -> dict:
  """What the files beside a tokenizer say; tokenizer_config.json counts more."""
  given = {}
  for name in ("special_tokens_map.json", CONFIG):
    if (folder / name).is_file():
      given |= {k: v for k, v in files.read_json(folder / name).items() if v is not None}
  return given


def _content(token):
  """A special token, written as a str or as {"content": str}."""
  return token.get("content") if isinstance(token, dict) else token


def _padding_is_seen(tower) -> bool:
  """Whether embeddings depend on what pads a text: not where it is pooled before, and causal."""
  text = tower.config.model.text
  return not text.causal or text.pool not in ("eos", "argmax")


def _is_json(text) -> bool:
  return text.kind.names[0] == JSON


def _as_siglips(tower) -> bool:
  """Whether a sentencepiece model goes out as a SiglipTokenizer."""
  text = tower.text
  return text.strip_punctuation and (text.pad == "eos" or not _padding_is_seen(tower))


def carries(tower, otherwise: str | None = None) -> dict:
  """What AutoTokenizer's files can say of config.text (fields.py).

  otherwise: fields.LEFT_OUT lets towers go out without a tokenizer that has no place; None refuses
  them.
  """
  text, seen = tower.text, _padding_is_seen(tower)
  if text is not None and (_is_json(text) or sentencepiece_json.converts(text)):
    table = fields.any_value(*FIELDS)
    if seen and text.pad == "zero":
      table["text.pad"] = ("eos", "pad")
    return table
  table = fields.any_value("text.tokenizer", "text.lowercase") | {
    "text.strip_punctuation": (True,),
    "text.pad": ("eos",) if seen else fields.ANY,
  }
  if otherwise is not None and (text is None or _refused(table, tower.config)):
    return dict.fromkeys(FIELDS, otherwise)
  return table


def _refused(table: dict, config) -> bool:
  """Whether a field of config.text has a value that the table has no place for."""
  values = {field: config.text[field.removeprefix("text.")] for field in table}
  return any(v not in table[k] for k, v in values.items() if isinstance(table[k], tuple))


def is_written(tower) -> bool:
  """Whether there is a tokenizer that has a place."""
  table = carries(tower, fields.LEFT_OUT)
  return tower.text is not None and table["text.tokenizer"] != fields.LEFT_OUT


def write(tower, folder: pathlib.Path):
  """The tokenizer and tokenizer_config.json, where there is a tokenizer that has a place."""
  text = tower.text
  if not is_written(tower):
    return
  kind = "PreTrainedTokenizerFast"
  if _is_json(text):
    text.save(folder / JSON)
  elif _as_siglips(tower):
    kind = "SiglipTokenizer"
    text.save(folder / SENTENCEPIECE)
  else:
    (folder / JSON).write_bytes(sentencepiece_json.converted(text))
  output.write_json(folder / CONFIG, {"tokenizer_class": kind, **_config_json(text)})


def _config_json(text: text_lib.TextProcessor) -> dict:
  """tokenizer_config.json. It gives no attention mask: SigLIP attends to padding too, and of CLIP's
  causal towers it changes nothing.
  """
  end = text.piece(text.eos_id)
  return {
    "do_lower_case": text.lowercase,
    "model_input_names": ["input_ids"],
    "model_max_length": text.length,
    "padding_side": "right",
    "eos_token": end,
    # Token 0 pads only texts whose padding nobody sees.
    "pad_token": end if text.pad == "zero" else text.piece(text.pad_id),
    **({} if text.unk_id is None else {"unk_token": text.piece(text.unk_id)}),
  }
