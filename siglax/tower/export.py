"""Towers out: what `siglax export` writes. Each format's table (layout.py) is the one that import
reads.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pathlib
import shutil
from typing import Callable

import ml_dtypes
import numpy as np

from siglax import models
from siglax import tower as tower_lib
from siglax.interop import big_vision
from siglax.interop import fields
from siglax.interop import files
from siglax.interop import huggingface
from siglax.interop import layout
from siglax.interop import open_clip
from siglax.interop import stablehlo
from siglax.models import transformer
from siglax.runs import records

logger = logging.getLogger("siglax")
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}


def export(source, form: str, out, dtype: str = "float32") -> pathlib.Path:
  """Writes the towers at `source` (see siglax.load) in the format `form` to the folder or file
  `out`; returns its path.

  form: hf | hf-vision | big_vision | open_clip | stablehlo. dtype: of the parameters; float32 is
  bit for bit what was trained. Nothing is there until all is written. Raises ValueError in one line
  that names the field which the format cannot express, what it needs and the formats that carry the
  tower, or an `out` that exists.
  """
  if form not in FORMATS:
    raise ValueError(f"--format {form} is unknown; known are {', '.join(FORMATS)}")
  out = pathlib.Path(out)
  if form == "big_vision" and out.suffix != ".npz":
    raise ValueError(f"--out {out} must end in .npz, as big_vision's files do")
  if out.exists():
    raise ValueError(f"--out {out} exists; give a path that does not")
  tower = tower_lib.load(source)
  _check(form, tower)
  if (
    tower.text and fields.carried(FORMATS[form].carries(tower), "text.tokenizer") == fields.LEFT_OUT
  ):
    logger.warning(
      "--format %s has no place for the tokenizer: keep %s, whose texts need it", form, source
    )
  temporary = out.with_name(f".{out.name}.{os.getpid()}")
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
    FORMATS[form].write(tower, temporary, dtype, pathlib.Path(source))
    os.replace(temporary, out)
  except OSError as e:
    raise ValueError(f"--out {out} cannot be written: {e.strerror or e}") from e
  finally:
    shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink(missing_ok=True)
  return out


def _check(form: str, tower):
  """ValueError that names the first thing which the format has no place for, and the formats that
  have.
  """
  needed = FORMATS[form].towers
  if lacking := [name for name in needed if name not in tower.params]:
    raise ValueError(f"--format {form} needs the {lacking[0]} tower, which is not there")
  if (problem := _problem(form, tower)) is None:
    return
  towers = set(needed) or set(models.TOWERS) & tower.params.keys()
  able = [
    other
    for other, kind in FORMATS.items()
    if set(kind.towers) <= tower.params.keys()
    and towers <= set(kind.towers or models.TOWERS)
    and not _problem(other, tower)
  ]
  raise ValueError(
    f"--format {form} cannot express {problem}; formats that carry it: {', '.join(able)}"
  )


def _problem(form: str, tower) -> str | None:
  kind = FORMATS[form]
  towers = kind.towers or tuple(name for name in models.TOWERS if name in tower.params)
  return fields.refused(kind.carries(tower), tower.config, towers) or kind.problem(tower)


def _arrays(tower, table: layout.Format, towers, dtype):
  """(name, function that makes it) of each array, so that one is on the host at a time."""
  for name, make in layout.arrays(table, tower.model, tower.params, towers):
    yield name, lambda make=make: make().astype(DTYPES[dtype], copy=False)


def _write_json(file: pathlib.Path, value: dict):
  file.write_text(json.dumps(value, indent=2) + "\n")


def _hf(tower, folder, dtype, source):
  _siglip(tower, folder, dtype, source, "hf")


def _hf_vision(tower, folder, dtype, source):
  _siglip(tower, folder, dtype, source, "hf-vision")


def _siglip(tower, folder, dtype, source, form):
  arrays = dict(_arrays(tower, huggingface.SIGLIP, FORMATS[form].towers, dtype))
  if form == "hf":
    # A SiglipModel always has a bias; a softmax loss has none, which is a bias of 0.
    arrays.setdefault("logit_bias", lambda: np.zeros(1, DTYPES[dtype]))
  folder.mkdir()
  files.write_safetensors(folder / files.WEIGHTS, arrays.items())
  _write_json(
    folder / "config.json", huggingface.config_json(tower, dtype, vision_only=form == "hf-vision")
  )
  _write_json(folder / "preprocessor_config.json", huggingface.preprocessor_json(tower.config))
  if form == "hf":
    _save_tokenizer(tower, folder)
  (folder / "README.md").write_text(_card(tower, form, source))


def _head(tower) -> str | None:
  """Why a format whose image tower has no head cannot hold this one."""
  if "head" not in tower.params["image"]:
    return None
  return (
    f"config.model.embed_dim={tower.model.embed_dim} with a head on an image tower of width "
    f"{transformer.Shape.of(tower.model.config.image).width}; it needs the two to be the same, and "
    "no head"
  )


def _save_tokenizer(tower, folder):
  if tower.text is not None:
    tower.text.save(folder / files.TOKENIZERS[0])
    _write_json(folder / "tokenizer_config.json", huggingface.tokenizer_json(tower.text))


def _open_clip(tower, folder, dtype, source):
  config = open_clip.config_json(tower)
  arrays = list(_arrays(tower, open_clip.table(tower), models.TOWERS, dtype))
  folder.mkdir()
  files.write_safetensors(folder / open_clip.WEIGHTS, arrays)
  _write_json(folder / open_clip.CONFIG, config)
  _save_tokenizer(tower, folder)


def _big_vision(tower, file, dtype, source):
  towers = tuple(name for name in models.TOWERS if name in tower.params)
  arrays = _arrays(tower, big_vision.FORMAT, towers, dtype)
  files.write_npz(file, ((big_vision.PREFIX + name, make) for name, make in arrays))


def _stablehlo(tower, folder, dtype, source):
  exported = stablehlo.functions(tower, DTYPES[dtype])
  config = stablehlo.config_json(tower, exported, dtype)
  folder.mkdir()
  for name, function in exported.items():
    (folder / config["functions"][name]["file"]).write_bytes(stablehlo.serialize(function))
  for name in set(models.TOWERS) & tower.params.keys():
    np.savez(folder / f"{name}.npz", **stablehlo.params(tower, name, DTYPES[dtype]))
  if tower.text is not None:
    tower.text.save(folder / stablehlo.TOKENIZER)
  _write_json(folder / "config.json", config)
  (folder / "README.md").write_text(stablehlo.readme(config, source.resolve().name))


@dataclasses.dataclass(frozen=True)
class Form:
  """write(tower, path, dtype, source). carries(tower): its table (fields.py). towers: those it
  needs; () takes what is there.

  problem(tower): what else it cannot express, or None.
  """

  write: Callable
  carries: Callable[..., dict]
  towers: tuple[str, ...] = ()
  problem: Callable[..., str | None] = lambda tower: None


FORMATS = {
  "hf": Form(_hf, lambda _: huggingface.CARRIES | huggingface.TEXT_CARRIES, models.TOWERS, _head),
  "hf-vision": Form(_hf_vision, lambda _: huggingface.CARRIES, ("image",), _head),
  "big_vision": Form(_big_vision, lambda _: big_vision.CARRIES | big_vision.TEXT_CARRIES),
  "open_clip": Form(
    _open_clip,
    open_clip.carries,
    models.TOWERS,
    lambda tower: _head(tower) or open_clip.trunk_problem(tower),
  ),
  "stablehlo": Form(_stablehlo, lambda _: stablehlo.CARRIES),
}

_USE = {
  "hf": """import torch
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer
model, images, texts = (auto.from_pretrained(".") for auto in (AutoModel, AutoImageProcessor, AutoTokenizer))
tokens = texts(["a caption"], padding="max_length", truncation=True, return_tensors="pt")
print(torch.sigmoid(model(**images(picture, return_tensors="pt"), **tokens).logits_per_image))""",
  "hf-vision": """from transformers import AutoImageProcessor, AutoModel
model, images = (auto.from_pretrained(".") for auto in (AutoModel, AutoImageProcessor))
out = model(**images(picture, return_tensors="pt"))
out.pooler_output      # embedding, not yet normalised
out.last_hidden_state  # patch tokens""",
}


def _card(tower, form, source) -> str:
  """README.md: use, preprocessing and the last evaluation of the run."""
  c = tower.config
  task = "zero-shot-image-classification" if form == "hf" else "image-feature-extraction"
  lines = [
    "---",
    "library_name: transformers",
    f"pipeline_tag: {task}",
    "tags: [siglip, siglax]",
    "---",
    "",
    f"# {source.resolve().name}",
    "",
    f"{'Image and text towers' if form == 'hf' else 'Image tower'} trained with siglax "
    f"({c.loss.name} loss).",
    "",
    "```python",
    *_USE[form].splitlines(),
    "```",
    "",
    "## Preprocessing",
    "",
    f"Pictures: squashed to {c.image.size}×{c.image.size} ({c.image.resize}, antialiased), of "
    "pixels in 0..1 minus "
    f"{tuple(c.image.mean)}, divided by {tuple(c.image.std)}.",
  ]
  if form == "hf":
    case = "lower-cased, " if c.text.lowercase else ""
    lines.append(
      f"Texts: {case}ASCII punctuation removed, cut and padded to {c.text.length} tokens with the "
      "end token; "
      "no attention mask."
    )
  if evaluated := _last_evaluation(source):
    lines += ["", "## Evaluation", "", "| metric | value |", "|---|---|"]
    lines += [
      f"| {name.removeprefix('eval/')} | {value:.4g} |" for name, value in evaluated.items()
    ]
  return "\n".join(lines) + "\n"


def _last_evaluation(source) -> dict[str, float]:
  """The newest eval/… metrics of a run folder; none for other sources."""
  if not (source / "metrics.jsonl").is_file():
    return {}
  found = (
    {k: v for k, v in line.items() if k.startswith("eval/")}
    for line in reversed(records.read(source))
  )
  return next(filter(None, found), {})
