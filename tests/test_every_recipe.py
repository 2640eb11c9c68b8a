"""Each recipe of configs/, as small as smoke=True makes it: trained, written in every format that
has a place for it, opened there by the format's own library with pictures and texts, and read back
bit for bit.

    pytest -n 0 -m slow -s tests/test_every_recipe.py

prints a line for each: the largest difference of an element of an embedding, by format. Without
transformers, timm and open_clip those formats are only read back.
"""

import importlib.util
import pathlib

import jax
import libraries
import numpy as np
import pytest
from test_sentencepiece_json import TEXTS
from test_sentencepiece_json import train_gemma

import siglax
from siglax import interop
from siglax.commands import cli
from siglax.interop import open_clip_names
from siglax.models import transformer
from siglax.tower import export

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
INSTALLED = all(importlib.util.find_spec(name) for name in ("transformers", "open_clip", "timm"))
HF = ("hf", "hf-vision", "hf-text")
FUNCTIONS = ("stablehlo", "onnx")
OF_SIGLIP = (*HF, "big_vision", "open_clip", *FUNCTIONS)
OF_CLIP = (*HF, "open_clip", *FUNCTIONS)
# What has a place for each, and how it is trained beside smoke=True.
FITS = {
  "quickstart": FUNCTIONS,  # a stem of convolutions, the mean of all tokens
  "cifar10_captions": FUNCTIONS,
  "siglip_b16": OF_SIGLIP,
  "siglip_b16_one_gpu": OF_SIGLIP,
  "siglip_b16_384": OF_SIGLIP,
  "siglip_l16": OF_SIGLIP,
  "siglip_so400m": OF_SIGLIP,
  "siglip_g_opt": (*HF, "open_clip", *FUNCTIONS),  # its texts keep their punctuation
  "lit_b16": OF_SIGLIP,
  "finetune": OF_SIGLIP,
  "clip_b32": OF_CLIP,
  "clip_b16": OF_CLIP,
  "clip_rn50": ("open_clip", *FUNCTIONS),
}
WITHOUT_A_TOKENIZER = ("big_vision", "hf-vision")
# Those of their papers; the others, clip_b16 among them, take the built-in sentencepiece model.
TOKENIZERS = {"siglip_g_opt": "gemma.model", "clip_b32": "clip.json", "clip_rn50": "clip.json"}
START = {"siglip_b16_384": "", "lit_b16": ":img", "finetune": ""}


def run(*words):
  assert cli.main(list(map(str, words))) == 0


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """What some recipes need: a first stage, tokenizers as CLIP's and Gemma's, a table."""
  folder = tmp_path_factory.mktemp("made")
  data = "shapes:examples=64,image_size=32"
  config = f"{CONFIGS / 'siglip_b16'}.py:smoke=True"
  run("train", "--config", config, "--workdir", folder / "first")
  words = ("--kind", "bpe", "--vocab-size", 560)
  run("tokenizer", "--from", data, *words, "--out", folder / "clip.json")
  train_gemma(folder / "gemma.model")
  run("convert", data, folder / "pictures.parquet")
  return folder


def arguments(name, made) -> list[str]:
  """Of `siglax train`, in float32: stablehlo has the arithmetic of the training, in bfloat16 two
  programs of one tower would differ by its rounding.
  """
  if name == "quickstart":
    return [f"{CONFIGS / name}.py:steps=2", "--config.batch_size=16", "--config.eval.tasks=()"]
  if name == "cifar10_captions":
    table = made / "pictures.parquet"
    config = f"{CONFIGS / name}.py:train={table},test={table},epochs=0.25"
    more = ("batch_size=16", "eval.tasks=()", "optim.warmup_steps=1")
    return [config, *(f"--config.{field}" for field in more)]
  start = f",init={made / 'first'}{START[name]}" if name in START else ""
  more = [f"--config.text.tokenizer={made / TOKENIZERS[name]}"] if name in TOKENIZERS else []
  return [f"{CONFIGS / name}.py:smoke=True{start}", "--config.train.dtype=float32", *more]


def as_large_as_timms(tower, monkeypatch):
  """Makes the tower's sizes those of a trunk of timm, where it is a SigLIP's."""
  c = tower.config
  if c.model.image.pool == "map" and c.model.image.width == 16:
    monkeypatch.setitem(transformer.SIZES, "B", (16, 1, 2, 32))
    there = {"gelu_tanh": (c.image.size,)}
    monkeypatch.setitem(open_clip_names.TRUNKS, ("base", c.model.image.patch), there)
    if INSTALLED:
      libraries.small_timm(c.model.image.patch, c.image.size)


def same(back, tower, towers):
  """The parameters of both, bit for bit."""
  for name in towers:
    jax.tree.map(np.testing.assert_array_equal, back.params[name], tower.params[name])
  if len(towers) == 2:
    assert back.scale == tower.scale and back.bias == tower.bias


def compare(form, out, tower, back):
  """What the format's own library makes of pictures and texts is what siglax makes of them; returns
  the largest difference of an element of an embedding.
  """
  rng, size = np.random.default_rng(0), tower.config.image.size
  pixels = rng.integers(0, 256, (2, size, size, 3), np.uint8)
  floats = np.asarray(tower.model.normalize(pixels))
  tokens = tower.text(TEXTS)
  found = libraries.READERS[form](out, floats, pixels, TEXTS, tokens)
  alike = ~found.pop("mended", np.zeros(len(TEXTS), bool))
  assert alike.mean() > 0.7
  wanted = {"hf-vision": {"image"}, "hf-text": {"text", "tokens"}, "big_vision": {"image", "text"}}
  assert set(found) == wanted.get(form, {"image", "text", "tokens"})
  if "tokens" in found:
    np.testing.assert_array_equal(found["tokens"][alike], tokens[alike])
  pairs = []
  if "image" in found:
    pairs.append((found["image"], jax.jit(back.model.embed_image)(back.params, floats)))
  if "text" in found:
    want = np.asarray(jax.jit(back.model.embed_text)(back.params, tokens))
    pairs.append((found["text"][alike], want[alike]))
  for theirs, ours in pairs:
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-5)
  return max(np.abs(theirs - ours).max() for theirs, ours in pairs)


def test_every_recipe_and_every_format_is_here():
  assert FITS.keys() == {file.stem for file in CONFIGS.glob("*.py")}
  assert set(libraries.READERS) == set(interop.written())
  assert {form for forms in FITS.values() for form in forms} == set(libraries.READERS)


@pytest.mark.slow
@pytest.mark.parametrize("name", FITS)
def test_a_recipe_is_trained_and_opened_elsewhere(name, made, tmp_path, monkeypatch):
  config, *more = arguments(name, made)
  run("train", "--config", config, "--workdir", tmp_path / "run", *more)
  tower = siglax.load(tmp_path / "run")
  as_large_as_timms(tower, monkeypatch)
  fits = [form for form in interop.written() if interop.FORMATS[form].refuses(tower) is None]
  assert sorted(fits) == sorted(FITS[name])
  differences = {}
  for form in fits:
    out = tmp_path / f"out{interop.FORMATS[form].suffix}"
    export.export(tmp_path / "run", form, out)
    back = tower
    if interop.FORMATS[form].open is not None:
      back = siglax.load(out)
      same(back, tower, interop.FORMATS[form].needed(tower))
      assert (back.text is None) == (form in WITHOUT_A_TOKENIZER)
      if back.text is not None:
        np.testing.assert_array_equal(back.text(TEXTS), tower.text(TEXTS))
    if INSTALLED or form not in (*HF, "open_clip"):
      differences[form] = compare(form, out, tower, back)
    out.rename(tmp_path / form)
  print(f"\n{name}:", ", ".join(f"{form} {x:.1e}" for form, x in differences.items()))
