"""Towers out: the file is the one that was read, tensor for tensor, and what a format cannot
express is named.
"""

import json
import pathlib
import re
import shutil
import types

import jax
import numpy as np
import pytest
import safetensors.numpy
from test_interop_big_vision import renamed

import siglax
from siglax import config as config_lib
from siglax import interop
from siglax import models
from siglax import tower
from siglax.commands import cli
from siglax.data.text import TextProcessor
from siglax.devices import mesh
from siglax.interop import fields
from siglax.interop import open_clip_names
from siglax.models import naflex
from siglax.models import resnet
from siglax.models import transformer
from siglax.models import vit
from siglax.tower import export
from siglax.training import initial

GOLDEN = pathlib.Path(__file__).parent / "golden"
SHAPES = pathlib.Path(siglax.__file__).parent / "data" / "shapes.model"
PIECES = TextProcessor().vocab_size


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """The SigLIP folder with a vocabulary for the built-in tokenizer, and a log of evaluations as a
  run has.
  """
  folder = tmp_path_factory.mktemp("hf") / "source"
  shutil.copytree(GOLDEN / "hf_siglip", folder)
  tensors = safetensors.numpy.load_file(folder / "model.safetensors")
  tensors["text_model.embeddings.token_embedding.weight"] = (
    np.random.default_rng(0).normal(size=(PIECES, 12)).astype(np.float32)
  )
  safetensors.numpy.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
  config = json.loads((folder / "config.json").read_text())
  config["text_config"]["vocab_size"] = PIECES
  (folder / "config.json").write_text(json.dumps(config))
  shutil.copy(SHAPES, folder / "spiece.model")
  (folder / "metrics.jsonl").write_text(
    '{"step": 1, "eval/classes/acc1": 0.25}\n{"step": 2, "loss": 1.0}\n'
  )
  return folder


@pytest.fixture
def bilinear(tmp_path_factory):
  """The SigLIP folder resized as big_vision means it; one without a preprocessor_config.json is
  bicubic.
  """
  folder = tmp_path_factory.mktemp("bilinear") / "hf"
  shutil.copytree(GOLDEN / "hf_siglip", folder)
  (folder / "preprocessor_config.json").write_text('{"resample": 2}')
  return folder


def exported(folder, form, out, *more):
  assert (
    cli.main(["export", "--from", str(folder), "--format", form, "--out", str(out), *more]) == 0
  )
  return out


def same(a, b):
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name, strict=True)


def test_hf_is_the_folder_that_transformers_wrote(folder, tmp_path):
  out = exported(folder, "hf", tmp_path / "a" / "hf")
  with safetensors.safe_open(out / "model.safetensors", "numpy") as f:
    assert f.metadata() == {"format": "pt"}
  same(*(safetensors.numpy.load_file(x / "model.safetensors") for x in (out, folder)))
  ours, theirs = (json.loads((x / "config.json").read_text()) for x in (out, folder))
  assert (
    ours["model_type"] == theirs["model_type"] and ours["architectures"] == theirs["architectures"]
  )
  for section in ("text_config", "vision_config"):
    assert ours[section] == theirs[section] | (
      {"bos_token_id": None} if section == "text_config" else {}
    )
  images = json.loads((out / "preprocessor_config.json").read_text())
  assert images["size"] == {"height": 16, "width": 16} and images["resample"] == 3
  texts = json.loads((out / "tokenizer_config.json").read_text())
  assert texts["model_input_names"] == ["input_ids"] and (
    texts["eos_token"],
    texts["unk_token"],
  ) == ("</s>", "<unk>")
  assert "classes/acc1 | 0.25" in (out / "README.md").read_text()
  pictures = list(np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), np.uint8))
  a, b = siglax.load(folder), siglax.load(out)
  np.testing.assert_array_equal(a.embed_images(pictures), b.embed_images(pictures))
  np.testing.assert_array_equal(a.embed_texts(["A red disc."]), b.embed_texts(["A red disc."]))


def test_hf_vision_is_the_image_tower_alone(tmp_path):
  out = exported(GOLDEN / "hf_siglip", "hf-vision", tmp_path / "v")
  whole = safetensors.numpy.load_file(GOLDEN / "hf_siglip" / "model.safetensors")
  same(
    safetensors.numpy.load_file(out / "model.safetensors"),
    {k: v for k, v in whole.items() if k.startswith("vision_model")},
  )
  assert json.loads((out / "config.json").read_text())["model_type"] == "siglip_vision_model"
  jax.tree.map(
    np.testing.assert_array_equal,
    siglax.load(out).params["image"],
    siglax.load(GOLDEN / "hf_siglip").params["image"],
  )
  again = exported(out, "hf-vision", tmp_path / "w")
  assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_big_vision_is_the_file_renamed_by_hand(bilinear, tmp_path):
  out = exported(bilinear, "big_vision", tmp_path / "x.npz")
  same(dict(np.load(out)), renamed())
  half = exported(f"{GOLDEN / 'hf_siglip'}:txt", "big_vision", tmp_path / "txt.npz")
  same(dict(np.load(half)), {k: v for k, v in renamed().items() if k.startswith("params/txt/")})


@pytest.mark.parametrize("form", ["hf", "big_vision"])
def test_bfloat16_is_rounded_once(form, bilinear, tmp_path):
  out = exported(bilinear, form, tmp_path / "x.npz", "--dtype", "bfloat16")
  want = siglax.load(GOLDEN / "hf_siglip").params
  rounded = jax.tree.map(
    lambda x: np.asarray(x).astype(jax.numpy.bfloat16).astype(np.float32), want
  )
  jax.tree.map(np.testing.assert_array_equal, siglax.load(out).params, rounded)


@pytest.mark.parametrize("scan", [True, False])
def test_any_encoder_goes_out_and_comes_back(scan, tmp_path, monkeypatch):
  c = siglax.load(GOLDEN / "hf_siglip").config
  c.model.image.scan = c.model.text.scan = scan
  c.model.bias_init, c.image.resize = None, "bilinear"
  model = models.build(c.model)
  rng = np.random.default_rng(3)
  random = lambda x: jax.numpy.asarray(rng.normal(size=x.shape), x.dtype)
  params = jax.tree.map(random, model.shapes)
  monkeypatch.setattr(tower, "load", lambda _: tower.Tower(c, params, None))
  back = {}
  for form in ("hf", "big_vision"):
    out = export.export("run", form, tmp_path / f"{form}.npz")
    back[form] = initial.initial_params(out, model, mesh.make())
  for found in back.values():
    jax.tree.map(np.testing.assert_array_equal, found, params)
  assert safetensors.numpy.load_file(tmp_path / "hf.npz" / "model.safetensors")["logit_bias"] == 0


@pytest.mark.parametrize(
  "form, changed, message",
  [
    (
      "hf",
      {"model.image.stem": "conv"},
      "config.model.image.stem='conv'; it needs 'patch'; formats that carry it: stablehlo",
    ),
    (
      "hf",
      {"model.image.pool": "mean"},
      "config.model.image.pool='mean'; it needs 'map'; formats that carry it: big_vision, "
      "stablehlo",
    ),
    (
      "hf",
      {"text.strip_punctuation": False},
      "config.text.strip_punctuation=False; it needs True; formats that carry it: stablehlo",
    ),
    (
      "hf",
      {"text.pad": "pad"},
      "config.text.pad='pad'; it needs 'eos'; formats that carry it: stablehlo",
    ),
    (
      "hf",
      {"image.fit": "crop"},
      "config.image.fit='crop'; it needs 'squash'; formats that carry it: open_clip, stablehlo",
    ),
    (
      "hf",
      {"model.text.causal": True},
      "config.model.text.causal=True; it needs False; formats that carry it: stablehlo",
    ),
    (
      "hf-vision",
      {"model.image.head": "linear"},
      "config.model.embed_dim=16 with a head on an image tower of width 16; it needs the two to be "
      "the same, and no head; "
      "formats that carry it: big_vision, stablehlo",
    ),
    (
      "hf-vision",
      {"image.fit": "crop"},
      "config.image.fit='crop'; it needs 'squash'; formats that carry it: open_clip, stablehlo",
    ),
    (
      "open_clip",
      {"text.pad": "pad"},
      "config.text.pad='pad'; it needs 'eos'; formats that carry it: stablehlo",
    ),
    (
      "open_clip",
      {"model.image.norm_eps": 1e-5},
      "config.model.image.norm_eps=1e-05; it needs 1e-06; formats that carry it: hf, stablehlo",
    ),
    (
      "big_vision",
      {"model.text.norm_eps": 1e-5},
      "config.model.text.norm_eps=1e-05; it needs 1e-06; formats that carry it: hf, open_clip, "
      "stablehlo",
    ),
    (
      "big_vision",
      {"model.image.pool": "cls"},
      "config.model.image.pool='cls'; it needs 'map' or 'mean'; formats that carry it: stablehlo",
    ),
    (
      "big_vision",
      {"image.mean": (0.4, 0.5, 0.5)},
      "config.image.mean=(0.4, 0.5, 0.5); it needs (0.5, 0.5, 0.5); formats that carry it: hf, "
      "open_clip, stablehlo",
    ),
    (
      "big_vision",
      {"image.std": (0.5, 0.5, 0.2)},
      "config.image.std=(0.5, 0.5, 0.2); it needs (0.5, 0.5, 0.5); formats that carry it: hf, "
      "open_clip, stablehlo",
    ),
    (
      "big_vision",
      {"image.resize": "bicubic"},
      "config.image.resize='bicubic'; it needs 'bilinear'; formats that carry it: hf, open_clip, "
      "stablehlo",
    ),
    (
      "big_vision",
      {"image.fit": "crop"},
      "config.image.fit='crop'; it needs 'squash'; formats that carry it: open_clip, stablehlo",
    ),
    (
      "big_vision",
      {"text.lowercase": False},
      "config.text.lowercase=False; it needs True; formats that carry it: hf, open_clip, stablehlo",
    ),
    (
      "big_vision",
      {"text.strip_punctuation": False},
      "config.text.strip_punctuation=False; it needs True; formats that carry it: stablehlo",
    ),
    (
      "big_vision",
      {"text.pad": "pad"},
      "config.text.pad='pad'; it needs 'eos'; formats that carry it: stablehlo",
    ),
    (
      "big_vision",
      {"model.text.eos_id": 2},
      "config.model.text.eos_id=2; it needs 1; formats that carry it: hf, open_clip, stablehlo",
    ),
  ],
)
def test_what_a_format_cannot_express_is_named(form, changed, message, tmp_path, monkeypatch):
  monkeypatch.setitem(transformer.SIZES, "B", (16, 2, 2, 24))
  monkeypatch.setitem(open_clip_names.TRUNKS, ("base", 8), {"gelu_tanh": (16,)})
  c = siglax.load(GOLDEN / "hf_siglip").config
  c.image.resize = "bilinear"
  for field, value in changed.items():
    config_lib.override(c, field, str(value))
  params = models.build(c.model).shapes
  monkeypatch.setattr(tower, "load", lambda _: tower.Tower(c, params, None))
  with pytest.raises(ValueError) as e:
    export.export("run", form, tmp_path / ("out.npz" if form == "big_vision" else "out"))
  # onnx, the last of the formats, has a place for all of these.
  assert str(e.value) == f"--format {form} cannot express {message}, onnx"
  assert not list(tmp_path.iterdir())


# Formats of two layouts, by the pool of their image tower.
LAYOUTS = {"map": " of a SigLIP", "cls": " of a CLIP"}


def of_towers(declared, config):
  model, text = types.SimpleNamespace(declared={"image": declared}), TextProcessor()
  config_lib.fill_text(config, text)
  return types.SimpleNamespace(
    model=model, config=config, params=dict.fromkeys(models.TOWERS), text=text
  )


def tables():
  """{(format, its layout): its table}; one tower alone has its part of that of both."""
  found = {}
  for form, pools in (
    ("hf", LAYOUTS),
    ("big_vision", ("map",)),
    ("open_clip", LAYOUTS),
    ("stablehlo", ("map",)),
    ("onnx", ("map",)),
  ):
    for pool in pools:
      c = config_lib.default()
      c.model.image.pool = pool
      tower = of_towers(vit.TOWER, c)
      found[form, LAYOUTS[pool] if len(pools) > 1 else ""] = interop.FORMATS[form].carries(tower)
      for alone in ("hf-vision", "hf-text"):
        both, one = (interop.FORMATS[name].carries(tower) for name in ("hf", alone))
        assert one.items() < both.items()
  of_naflex = of_towers(naflex.TOWER, config_lib.default())
  found["hf", " of NaFlex"] = interop.FORMATS["hf"].carries(of_naflex)
  assert {form for form, _ in found} | {"hf-vision", "hf-text"} == set(interop.written())
  return found


def test_every_field_goes_out_or_is_refused_in_every_format_as_docs_say():
  described = fields.describing(config_lib.default(), models.TOWERS)
  rows = {}
  for field in described:
    cells = []
    for (form, _), table in tables().items():
      assert field in table or "model.*" in table and field.startswith("model."), (
        f"{form} does not say what it does with {field}"
      )
      values = fields.carried(table, field)
      names = values in (
        tuple(transformer.SIZES),
        tuple(naflex.VARIANTS),
        (*transformer.SIZES, *resnet.SIZES),
      )
      cells.append(
        "yes"
        if values == fields.ANY or names
        else "left out"
        if values == fields.LEFT_OUT
        else ", ".join(map(repr, values))
      )
    rows.setdefault(tuple(cells), []).append(field)
  lines = [
    f"| {', '.join(f'`{name}`' for name in names)} | {' | '.join(cells)} |"
    for cells, names in rows.items()
  ]
  text = "\n".join(
    [
      f"| field | {' | '.join(f'`{form}`{layout}' for form, layout in tables())} |",
      "|---" * (len(tables()) + 1) + "|",
      *lines,
    ]
  )
  assert text in (pathlib.Path(__file__).parents[1] / "docs" / "towers.md").read_text(), text


def test_a_new_option_is_refused_until_a_table_names_it():
  c = siglax.load(GOLDEN / "hf_siglip").config
  c.image.resize, c.model.image.pool = "bilinear", "mean"
  others = (LAYOUTS["cls"], " of NaFlex")
  of_a_siglip = {key: table for key, table in tables().items() if key[1] not in others}
  for (form, _), table in of_a_siglip.items():
    lacking = {name: values for name, values in table.items() if name != "model.image.pool"}
    # The default
    want = None if form == "stablehlo" else "config.model.image.pool='mean'; it needs 'map'"
    assert fields.refused(lacking, c, ("image",)) == want


def test_big_vision_says_that_it_leaves_the_tokenizer_out(folder, tmp_path, capsys):
  source = shutil.copytree(folder, tmp_path / "source")
  (source / "preprocessor_config.json").write_text('{"resample": 2}')
  back = siglax.load(exported(source, "big_vision", tmp_path / "x.npz"))
  assert (
    f"--format big_vision has no place for the tokenizer: keep {source}, whose texts need it"
    in capsys.readouterr().err
  )
  with pytest.raises(ValueError, match="has no tokenizer"):
    back.embed_texts(["a"])


def test_odd_pictures_come_out_as_they_went_in(tmp_path):
  hf = exported(GOLDEN / "hf_siglip_odd", "hf", tmp_path / "hf")
  written = json.loads((hf / "preprocessor_config.json").read_text())
  assert (
    written["image_mean"] == [0.11, 0.42, 0.73]
    and written["image_std"] == [0.31, 0.24, 0.57]
    and written["resample"] == 2
  )
  config = json.loads((hf / "config.json").read_text())
  for section in ("text_config", "vision_config"):
    assert (config[section]["hidden_act"], config[section]["layer_norm_eps"]) == ("gelu", 1e-3)
  z = np.load(GOLDEN / "hf_siglip_odd" / "io.npz")
  for path in (GOLDEN / "hf_siglip_odd", hf):
    np.testing.assert_allclose(
      siglax.load(path).embed_images(list(z["pictures"])), z["zpictures"], atol=1e-5
    )


def test_nothing_is_overwritten_and_wrong_inputs_are_one_line(tmp_path, capsys):
  (tmp_path / "there").mkdir()
  run = lambda *words: cli.main(["export", *words])
  assert (
    run("--from", str(GOLDEN / "hf_siglip"), "--format", "hf", "--out", str(tmp_path / "there"))
    == 1
  )
  assert run("--from", str(tmp_path / "none"), "--format", "hf", "--out", str(tmp_path / "x")) == 1
  assert (
    run(
      "--from", f"{GOLDEN / 'hf_siglip'}:txt", "--format", "hf-vision", "--out", str(tmp_path / "x")
    )
    == 1
  )
  assert (
    run("--from", str(GOLDEN / "hf_siglip"), "--format", "big_vision", "--out", str(tmp_path / "x"))
    == 1
  )
  lines = capsys.readouterr().err.splitlines()
  assert [line.partition(": ")[2] for line in lines] == [
    f"--out {tmp_path / 'there'} exists; give a path that does not",
    f"{tmp_path / 'none'}: no such file or folder",
    "--format hf-vision needs the image tower, which is not there",
    f"--out {tmp_path / 'x'} must end in .npz, as big_vision's files do",
  ]


def test_the_help_of_the_command_lists_the_formats_that_are_written(capsys):
  with pytest.raises(SystemExit):
    cli.main(["export", "--help"])
  said = " ".join(capsys.readouterr().out.split())
  for name, form in interop.FORMATS.items():
    assert (f"{name}, {form.doc}" in said) == (form.write is not None)


def test_docs_list_which_formats_are_read_and_written():
  text = (pathlib.Path(__file__).parents[1] / "docs" / "towers.md").read_text()
  rows = re.findall(r"^\| .* \| (yes|no) \| (?:`([\w-]+)`|no)(?: \(\w+\))? \|$", text, re.MULTILINE)
  written = {name: read == "yes" for read, name in rows if name}
  assert written == {name: interop.FORMATS[name].open is not None for name in interop.written()}
  assert len(rows) == len(interop.FORMATS)  # those that are read only too
