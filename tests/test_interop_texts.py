"""Tokenizers that come with a checkpoint: found, used, and written out so that other libraries open
them.
"""

import json
import pathlib
import types

import numpy as np
import pytest

import siglax
from siglax import config as config_lib
from siglax import interop
from siglax import models
from siglax.commands import cli
from siglax.data import shapes
from siglax.data import text as text_lib
from siglax.interop import texts as texts_lib
from siglax.models import vit
from siglax.training import initial

PARITY = pathlib.Path(__file__).resolve().parents[2] / "shared" / "parity"
TINY = str(pathlib.Path(__file__).with_name("tiny.py"))
CAPTIONS = [c for i in range(100) for c in shapes.Shapes("test", examples=100)[i]["captions"]]
TEXTS = ["a red ring", "A DOG, running!", "", "naïve 猫 🙂", "don't stop " * 20, "x<|endoftext|>y"]
CLIP = (
  *("model.image.pool=cls", "model.image.pre_norm=True", "model.image.patch_bias=False"),
  *("model.image.head=linear_no_bias", "model.text.head=linear_no_bias", "model.embed_dim=16"),
  *("model.text.causal=True", "model.text.pool=eos", "loss.name=softmax"),
)


def main(*arguments):
  assert cli.main(list(map(str, arguments))) == 0


def exported(source, form, out):
  main("export", "--from", source, "--format", form, "--out", out)
  return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """mine.json, a trained BPE."""
  folder = tmp_path_factory.mktemp("texts")
  data = "shapes:examples=100,image_size=16"
  out = folder / "mine.json"
  main("tokenizer", "--from", data, "--kind", "bpe", "--vocab-size", 560, "--out", out)
  return folder


@pytest.fixture(scope="module")
def run(folder):
  """A tiny CLIP, trained on its tokens."""
  fields = [f"--config.{field}" for field in CLIP]
  fields += [f"--config.text.tokenizer={folder / 'mine.json'}", "--config.eval.tasks=()"]
  main("train", "--config", f"{TINY}:steps=2", "--workdir", folder / "run", *fields)
  return folder / "run"


def test_a_run_keeps_its_tokenizer(folder, run, capsys):
  assert (run / "tokenizer.json").read_bytes() == (folder / "mine.json").read_bytes()
  tower = siglax.load(run)
  c = tower.config
  assert (c.text.lowercase, c.text.strip_punctuation, c.text.pad) == (True, False, "eos")
  assert (c.model.text.vocab_size, c.model.text.eos_id) == (560, 559)
  own = text_lib.TextProcessor(folder / "mine.json", length=12)
  np.testing.assert_array_equal(tower.text(TEXTS), own(TEXTS))
  fields = [f"--config.{field}" for field in CLIP] + ["--config.eval.tasks=()"]
  train = ["train", "--config", f"{TINY}:steps=2", "--workdir", str(run), *fields]
  other = f"--config.text.tokenizer={text_lib.SHIPPED['shapes']}"
  assert cli.main([*train, other, "--config.model.text.vocab_size=560"]) == 1
  assert "--workdir" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["hf", "hf-text", "open_clip"])
def test_it_goes_out_and_comes_back_bit_for_bit(run, tmp_path, form):
  out = exported(run, form, tmp_path / "out")
  assert (out / "tokenizer.json").read_bytes() == (run / "tokenizer.json").read_bytes()
  there, back = siglax.load(run), siglax.load(out)
  np.testing.assert_array_equal(back.text(TEXTS), there.text(TEXTS))
  np.testing.assert_array_equal(back.embed_texts(TEXTS), there.embed_texts(TEXTS))
  again = exported(out, form, tmp_path / "again")
  for file in ("tokenizer.json", "tokenizer_config.json"):
    assert (again / file).read_bytes() == (out / file).read_bytes()


def test_stablehlo_comes_with_lines_that_make_the_tokens(run, tmp_path, monkeypatch):
  out = exported(run, "stablehlo", tmp_path / "out")
  section = (out / "README.md").read_text().split("## Texts")[1]
  code = section.split("```python\n")[1].split("```")[0]
  monkeypatch.chdir(out)
  names = {"np": np}
  exec(code, names)
  np.testing.assert_array_equal(names["tokens"](TEXTS), siglax.load(run).text(TEXTS))


def test_init_from_says_nothing_of_the_same_tokenizer(run, tmp_path, capsys):
  out = exported(run, "hf", tmp_path / "out")
  config = config_lib.load(f"{TINY}:steps=2")
  for field in (*CLIP, f"text.tokenizer={out}"):
    config_lib.override(config, *field.split("=", 1))
  text = text_lib.TextProcessor(out, length=12)
  config = config_lib.resolve(config, text)
  mesh = siglax.load(out).mesh
  initial.initial_params(str(out), models.build(config.model), mesh, config)
  assert "text." not in capsys.readouterr().err
  config.text.tokenizer, config.text.strip_punctuation = "shapes", True
  initial.initial_params(str(out), models.build(config.model), mesh, config)
  said = capsys.readouterr().err
  assert "config.text.strip_punctuation is False there and True here" in said
  assert f"config.text.tokenizer is another one there ({out}/tokenizer.json)" in said


def test_transformers_opens_it(run, tmp_path):
  transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
  out, tower = exported(run, "hf", tmp_path / "out"), siglax.load(run)
  auto = transformers.AutoTokenizer.from_pretrained(out)
  processor = transformers.AutoProcessor.from_pretrained(out)
  for tokenizer in (auto, processor.tokenizer):
    found = tokenizer(TEXTS, padding="max_length", truncation=True, return_tensors="pt")
    assert list(found) == ["input_ids"]
    np.testing.assert_array_equal(found["input_ids"].numpy(), tower.text(TEXTS))
  picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
  with torch.no_grad():
    model = transformers.AutoModel.from_pretrained(out).eval()
    z = model(
      **processor(
        text=TEXTS, images=picture, padding="max_length", truncation=True, return_tensors="pt"
      )
    ).text_embeds
  np.testing.assert_allclose(z.numpy(), tower.embed_texts(TEXTS), atol=1e-5)


def test_open_clip_opens_it(run, tmp_path):
  open_clip, torch = pytest.importorskip("open_clip"), pytest.importorskip("torch")
  out, tower = exported(run, "open_clip", tmp_path / "out"), siglax.load(run)
  tokens = open_clip.get_tokenizer(f"local-dir:{out}")(TEXTS)
  np.testing.assert_array_equal(tokens.numpy(), tower.text(TEXTS))
  model = open_clip.create_model_and_transforms(f"local-dir:{out}")[0].eval()
  with torch.no_grad():
    z = model.encode_text(tokens, normalize=True).numpy()
  np.testing.assert_allclose(z, tower.embed_texts(TEXTS), atol=1e-5)


@pytest.mark.parametrize("name", ["hf_clip_bpe", "siglip2_fixed", "siglip2_naflex"])
def test_released_kinds_embed_texts_as_transformers_does(name, tmp_path):
  if not PARITY.is_dir():
    pytest.skip("needs ../shared/parity")
  z = np.load(PARITY / name / "io.npz")
  for folder in (PARITY / name, exported(PARITY / name, "hf", tmp_path / "out")):
    tower = siglax.load(folder)
    np.testing.assert_array_equal(tower.text(z["texts"].tolist()), z["input_ids"])
    want = z["text_embeds"] / np.linalg.norm(z["text_embeds"], axis=1, keepdims=True)
    np.testing.assert_allclose(tower.embed_texts(z["texts"].tolist()), want, atol=1e-5)
  mine = (tmp_path / "out" / "tokenizer.json").read_bytes()
  assert mine == (PARITY / name / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("name", ["hf_clip_bpe", "siglip2_fixed", "siglip2_naflex"])
def test_transformers_opens_released_kinds_again(name, tmp_path):
  transformers = pytest.importorskip("transformers")
  if not PARITY.is_dir():
    pytest.skip("needs ../shared/parity")
  z = np.load(PARITY / name / "io.npz")
  out = exported(PARITY / name, "hf", tmp_path / "out")
  tokenizer = transformers.AutoTokenizer.from_pretrained(out)
  found = tokenizer(z["texts"].tolist(), padding="max_length", truncation=True)
  np.testing.assert_array_equal(found["input_ids"], z["input_ids"])
  assert list(found) == ["input_ids"]


def read(folder, name="tokenizer.json", is_clip=False, **given):
  """config.text of a folder with a tokenizer's file and a tokenizer_config.json."""
  for file in folder.iterdir():
    file.unlink()
  for file in name.split():
    (folder / file).write_text("")
  (folder / "tokenizer_config.json").write_text(json.dumps(given))
  config = config_lib.default()
  assert texts_lib.read(config, folder, is_clip=is_clip)
  text = config.text
  file = pathlib.Path(text.tokenizer).name
  return file, text.lowercase, text.strip_punctuation, text.pad


def test_what_folders_say_of_their_texts(tmp_path):
  both, ends = "spiece.model tokenizer.json", {"eos_token": "<eos>", "pad_token": "<pad>"}
  siglip = {"tokenizer_class": "SiglipTokenizer", "eos_token": "</s>", "pad_token": "</s>"}
  assert read(tmp_path, both, **siglip) == ("spiece.model", True, True, "eos")
  gemma = {"tokenizer_class": "GemmaTokenizer", **ends}
  assert read(tmp_path, both, **gemma) == ("tokenizer.json", True, None, "pad")
  assert read(tmp_path, "tokenizer.model", **gemma) == ("tokenizer.model", True, False, "pad")
  assert read(tmp_path, do_lower_case=False, **gemma) == ("tokenizer.json", False, None, "pad")
  clip = {"do_lower_case": True, "eos_token": {"content": "<e>"}, "pad_token": "<e>"}
  assert read(tmp_path, is_clip=True, **clip) == ("tokenizer.json", None, None, "eos")
  with pytest.raises(ValueError, match="padding_side='left' is none that siglax has; it has"):
    read(tmp_path, padding_side="left", **gemma)


def tower(form, text, **fields):
  """As far as tables look at it."""
  c = config_lib.default()
  config_lib.fill_text(c, text)
  for field, value in {"text.pad": text.pad, **fields}.items():
    config_lib.override(c, field, str(value))
  model = types.SimpleNamespace(declared={"image": vit.TOWER})
  made = types.SimpleNamespace(
    model=model, config=c, params=dict.fromkeys(models.TOWERS), text=text
  )
  return made, interop.FORMATS[form].carries(made)


def test_what_has_no_place_is_refused_or_left_out(folder):
  siglip, clip = {"model.image.pool": "map"}, {"model.image.pool": "cls", "model.text.causal": True}
  clip["model.text.pool"] = "eos"
  bpe = lambda pad: text_lib.TextProcessor(folder / "mine.json", length=8, pad=pad)
  for form in ("hf", "open_clip"):
    assert tower(form, bpe("zero"), **siglip)[1]["text.pad"] == ("eos", "pad")
    assert tower(form, bpe("zero"), **clip)[1]["text.pad"] == interop.fields.ANY
    pieces = text_lib.TextProcessor(strip_punctuation=False)
    for towers in (siglip, clip):
      made, table = tower(form, pieces, **towers)
      assert table["text.strip_punctuation"] == interop.fields.ANY and texts_lib.is_written(made)
    made, table = tower(form, text_lib.TextProcessor(pad="zero"), **clip)
    assert table["text.pad"] == interop.fields.ANY and texts_lib.is_written(made)


def test_open_clip_without_a_name_for_its_tokenizer_pads_with_token_0(run, tmp_path):
  out = exported(run, "open_clip", tmp_path / "out")
  file = out / "open_clip_config.json"
  config = json.loads(file.read_text())
  del config["model_cfg"]["text_cfg"]["hf_tokenizer_name"]
  file.write_text(json.dumps(config))
  there, back = siglax.load(run), siglax.load(out)
  assert back.config.text.pad == "zero" and back.text("a red ring")[0, -1] == 0
  np.testing.assert_allclose(back.embed_texts(TEXTS), there.embed_texts(TEXTS), atol=1e-6)
