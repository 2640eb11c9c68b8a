"""CLIP's ViTs in and out: Hugging Face's CLIPModel and its towers alone, open_clip's own layout.

The numbers are transformers' and open_clip's own (tests/golden/make.py, and ../shared/parity where
that is there); where the libraries are installed, they open what is exported.
"""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

import siglax
from siglax import config as config_lib
from siglax import models
from siglax.commands import cli
from siglax.interop import open_clip_names
from siglax.interop import open_clip_read
from siglax.models import trainable as trainable_lib

ROOT = pathlib.Path(__file__).resolve().parents[1]
PARITY = ROOT.parent / "shared" / "parity"
GOLDEN = pathlib.Path(__file__).parent / "golden"
HF, VIT = GOLDEN / "hf_clip", GOLDEN / "open_clip_vit"
OPEN_CLIP = "open_clip_config.json"


def exported(source, form, out):
  assert cli.main(["export", "--from", str(source), "--format", form, "--out", str(out)]) == 0
  return out


def refused(source, form, tmp_path, capsys):
  """The line that an export ends with; nothing is written."""
  out = tmp_path / "refused"
  assert cli.main(["export", "--from", str(source), "--format", form, "--out", str(out)]) == 1
  assert not out.exists()
  return capsys.readouterr().err.strip().splitlines()[-1]


def tensors(folder):
  """All tensors of a folder of either library."""
  (file,) = folder.glob("*.safetensors")
  return safetensors.numpy.load_file(file)


def same(found, want):
  assert found.keys() == want.keys()
  for name in want:
    np.testing.assert_array_equal(found[name], want[name], err_msg=name, strict=True)


def copied(source, to, options=None, change=lambda found: found):
  """A copy of a folder; `options` go into the JSON of its config, each at a path such as
  "model_cfg.quick_gelu"; `change` is called with its tensors.
  """
  shutil.copytree(source, to)
  (config,) = (to / name for name in ("config.json", OPEN_CLIP) if (to / name).is_file())
  value = json.loads(config.read_text())
  for path, option in (options or {}).items():
    *groups, last = path.split(".")
    group = value
    for name in groups:
      group = group[name]
    group[last] = option
  config.write_text(json.dumps(value))
  (file,) = to.glob("*.safetensors")
  found = safetensors.numpy.load_file(file)
  change(found)
  safetensors.numpy.save_file(found, file)
  return to


def embedded(tower, pixels, ids):
  return (
    np.asarray(jax.jit(tower.model.embed_image)(tower.params, pixels)),
    np.asarray(jax.jit(tower.model.embed_text)(tower.params, ids)),
  )


def unit(x):
  return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.skipif(not PARITY.is_dir(), reason="no ../shared/parity")
@pytest.mark.parametrize("name", ["hf_clip", "hf_clip_bpe", "open_clip_vit"])
def test_released_layouts_give_the_numbers_of_their_libraries(name, tmp_path):
  z = np.load(PARITY / name / "io.npz")
  pixels, ids = z["pixel_values"].transpose(0, 2, 3, 1), z["input_ids"].astype(np.int32)
  form = "open_clip" if name.startswith("open_clip") else "hf"
  back = exported(PARITY / name, form, tmp_path / "back")
  same(tensors(back), tensors(PARITY / name))
  for folder in (PARITY / name, back):
    zimg, ztxt = embedded(siglax.load(folder), pixels, ids)
    np.testing.assert_allclose(zimg, unit(z["image_embeds"]), atol=1e-5)
    np.testing.assert_allclose(ztxt, unit(z["text_embeds"]), atol=1e-5)


TANH = {"act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-2}}
# By the ending of their names in io.npz: options of open_clip's config, and fields of ours.
OPTIONS = {
  "": ({}, {"image.activation": "gelu", "text.activation": "gelu", "text.pool": "argmax"}),
  "_quick": ({"quick_gelu": True}, {"image.activation": "quick_gelu"}),
  "_eos": ({"text_cfg.pool_type": "eos", "text_cfg.eos_id": 38}, {"text.pool": "eos"}),
  "_tanh": (
    {f"vision_cfg.{key}": value for key, value in TANH.items()},
    {"image.activation": "gelu_tanh", "text.activation": "gelu", "image.norm_eps": 1e-2},
  ),
  "_last": (
    {"text_cfg.pool_type": "last", "text_cfg.no_causal_mask": True},
    {"text.pool": "last", "text.causal": False},
  ),
}


@pytest.mark.parametrize("ending", OPTIONS)
def test_open_clips_vit_under_each_of_its_options(ending, tmp_path):
  options, want = OPTIONS[ending]
  options = {f"model_cfg.{path}": value for path, value in options.items()}
  source = copied(VIT, tmp_path / "source", options)
  z, back = np.load(VIT / "io.npz"), exported(source, "open_clip", tmp_path / "back")
  same(tensors(back), tensors(VIT))
  for folder in (source, back):
    tower = siglax.load(folder)
    assert {field: config_lib.get(tower.config.model, field) for field in want} == want
    zimg, ztxt = embedded(tower, z["pixels"], z["ids"])
    np.testing.assert_allclose(zimg, z["zimg" + ending], atol=1e-5)
    np.testing.assert_allclose(ztxt, z["ztxt" + ending], atol=1e-5)
    np.testing.assert_allclose(tower.logits(zimg, ztxt), z["logits" + ending], atol=1e-4)


def test_pictures_are_prepared_as_open_clip_prepares_them(tmp_path):
  z, back = np.load(VIT / "io.npz"), exported(VIT, "open_clip", tmp_path / "back")
  for folder in (VIT, back):
    c = siglax.load(folder).config.image
    assert (c.resize, c.fit, c.mean) == ("bicubic", "crop", (0.48, 0.46, 0.41))
    zimg = siglax.load(folder).embed_images(list(z["pictures"]))
    np.testing.assert_allclose(zimg, z["zpictures"], atol=1e-5)


def without_bias(found):
  del found["logit_bias"]


def test_a_clip_goes_from_library_to_library_and_back(tmp_path):
  source = copied(VIT, tmp_path / "source", change=without_bias)
  hf = exported(source, "hf", tmp_path / "hf")
  config = json.loads((hf / "config.json").read_text())
  assert (config["architectures"], config["projection_dim"]) == (["CLIPModel"], 12)
  # This is how transformers is told to pool at the highest token.
  assert config["text_config"]["eos_token_id"] == 2
  assert config["vision_config"]["hidden_act"] == "gelu"
  z = np.load(VIT / "io.npz")
  zimg, ztxt = embedded(siglax.load(hf), z["pixels"], z["ids"])
  np.testing.assert_allclose(zimg, z["zimg"], atol=1e-5)
  np.testing.assert_allclose(ztxt, z["ztxt"], atol=1e-5)
  same(tensors(exported(hf, "open_clip", tmp_path / "oc")), tensors(source))
  oc = exported(HF, "open_clip", tmp_path / "oc2")
  text = json.loads((oc / OPEN_CLIP).read_text())["model_cfg"]["text_cfg"]
  assert (text["pool_type"], text["eos_id"]) == ("eos", 38)
  same(tensors(exported(oc, "hf", tmp_path / "hf2")), tensors(HF))


@pytest.mark.parametrize(
  "source, form, start, kind, architecture",
  [
    (HF, "hf-vision", "vis", "clip_vision_model", "CLIPVisionModelWithProjection"),
    (HF, "hf-text", "text", "clip_text_model", "CLIPTextModelWithProjection"),
    (GOLDEN / "hf_siglip", "hf-text", "text", "siglip_text_model", "SiglipTextModel"),
  ],
)
def test_one_tower_alone(source, form, start, kind, architecture, tmp_path):
  alone = exported(source, form, tmp_path / "alone")
  config = json.loads((alone / "config.json").read_text())
  assert (config["model_type"], config["architectures"]) == (kind, [architecture])
  same(tensors(alone), {k: x for k, x in tensors(source).items() if k.startswith(start)})
  tower, z = siglax.load(alone), np.load(source / "io.npz")
  if start == "vis":
    zimg = jax.jit(tower.model.embed_image)(tower.params, z["pixels"])
    np.testing.assert_allclose(zimg, z["zimg"], atol=1e-5)
  else:
    ztxt = jax.jit(tower.model.embed_text)(tower.params, z["ids"])
    np.testing.assert_allclose(ztxt, z["ztxt"], atol=1e-5)
  same(tensors(exported(alone, form, tmp_path / "again")), tensors(alone))


@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_the_fit_of_pictures_goes_out_to_transformers_and_comes_back(fit, tmp_path):
  source = copied(VIT, tmp_path / "source", change=without_bias)
  config = json.loads((source / OPEN_CLIP).read_text())
  config["preprocess_cfg"]["resize_mode"] = {"crop": "shortest", "squash": "squash"}[fit]
  config["preprocess_cfg"]["interpolation"] = "bilinear"
  (source / OPEN_CLIP).write_text(json.dumps(config))
  hf = exported(source, "hf", tmp_path / "hf")
  given = json.loads((hf / "preprocessor_config.json").read_text())
  assert given["image_processor_type"] == "CLIPImageProcessor"
  assert given["do_center_crop"] == (fit == "crop") and given["resample"] == 2
  c = siglax.load(hf).config.image
  assert (c.fit, c.resize, c.std) == (fit, "bilinear", (0.27, 0.26, 0.28))


@pytest.mark.parametrize(
  "given, fit",
  [
    ({"size": 16, "crop_size": 16, "do_center_crop": True}, "crop"),  # as OpenAI's folders
    ({"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}, "crop"),
    ({"size": {"height": 16, "width": 16}, "do_center_crop": False}, "squash"),
    ({"size": {"shortest_edge": 20}, "crop_size": 16}, None),
    ({"size": {"shortest_edge": 16}, "do_center_crop": False}, None),
    ({"size": {"height": 16, "width": 20}}, None),
    ({"size": {"height": 16, "width": 16}, "crop_size": 8, "do_center_crop": True}, None),
    ({"size": "small"}, None),
  ],
)
def test_the_sizes_of_a_preprocessor(given, fit, tmp_path):
  folder = copied(HF, tmp_path / "hf")
  (folder / "preprocessor_config.json").write_text(json.dumps(given))
  if fit:
    assert siglax.load(folder).config.image.fit == fit
    return
  with pytest.raises(ValueError, match=r"size=.* is none that siglax has for an image size of 16"):
    siglax.load(folder)


def test_what_a_layout_cannot_express_is_named(tmp_path, capsys):
  line = refused(VIT, "hf", tmp_path, capsys)
  assert line.endswith(
    "--format hf cannot express the bias that config.loss.name='sigmoid' trains; a CLIPModel has "
    "none; formats that carry it: open_clip, stablehlo, onnx"
  )
  options = {"model_cfg.text_cfg.pool_type": "eos", "model_cfg.text_cfg.eos_id": 2}
  source = copied(VIT, tmp_path / "two", options, without_bias)
  assert "config.model.text.eos_id=2, of which transformers pools the highest token" in refused(
    source, "hf", tmp_path, capsys
  )
  source = copied(HF, tmp_path / "mixed", {"text_config.hidden_act": "gelu"})
  assert (
    "config.model.image.activation='quick_gelu' beside config.model.text.activation='gelu'; "
    "quick_gelu is of both towers or of none; formats that carry it: hf, stablehlo, onnx"
  ) in refused(source, "open_clip", tmp_path, capsys)
  source = copied(VIT, tmp_path / "last", {"model_cfg.text_cfg.pool_type": "last"}, without_bias)
  assert (
    "config.model.text.pool='last'; it needs 'eos' or 'argmax'; formats that carry it: open_clip, "
    "stablehlo, onnx"
  ) in refused(source, "hf", tmp_path, capsys)


FOREIGN = {
  "vision_cfg.pool_type": ("avg", "vision_cfg.pool_type='avg' makes a tower .* it has 'tok'"),
  "vision_cfg.attentional_pool": (True, "attentional_pool=True makes a tower .* it has False"),
  "vision_cfg.pos_embed_type": ("sin_cos_2d", "pos_embed_type='sin_cos_2d' .* it has 'learnable'"),
  "vision_cfg.ls_init_value": (1e-4, "vision_cfg.ls_init_value=0.0001 .* it has None"),
  "vision_cfg.qk_norm": (True, "qk_norm=True"),
  "vision_cfg.rope": ("2d", "vision_cfg.rope='2d' .* it knows no such option"),
  "vision_cfg.patch_size": ([8, 8], r"patch_size=\[8, 8\] is not a positive int"),
  "vision_cfg.head_width": (7, "width=16 is not divisible by head_width=7"),
  "text_cfg.hf_model_name": ("roberta-base", "text_cfg.hf_model_name='roberta-base' .* has None"),
  "text_cfg.embed_cls": (True, "embed_cls=True"),
  "text_cfg.pool_type": ("first", "pool_type='first' is none that siglax has; it has argmax, eos"),
  "multimodal_cfg": ({"width": 8}, "model_cfg.multimodal_cfg={'width': 8} .* no such option"),
  "custom_text": (True, "model_cfg.custom_text=True .* it has False"),
}


@pytest.mark.parametrize("path", FOREIGN)
def test_foreign_architectures_are_named(path, tmp_path):
  value, match = FOREIGN[path]
  source = copied(VIT, tmp_path / "source", {f"model_cfg.{path}": value})
  with pytest.raises(ValueError, match=match) as e:
    siglax.load(source)
  assert str(source / OPEN_CLIP) in str(e.value) and "\n" not in str(e.value)


def test_options_that_change_nothing_are_read(tmp_path):
  options = {"patch_dropout": 0.5, "output_tokens": True, "final_ln_after_pool": True}
  source = copied(
    VIT, tmp_path / "source", {f"model_cfg.vision_cfg.{k}": v for k, v in options.items()}
  )
  jax.tree.map(np.testing.assert_array_equal, siglax.load(source).params, siglax.load(VIT).params)


def test_a_pickle_is_never_read_and_the_line_that_converts_it_is_given(tmp_path):
  folder = copied(VIT, tmp_path / "oc")
  shutil.move(folder / "open_clip_model.safetensors", folder / "epoch_32.pt")
  convert = (
    rf"epoch_32.pt is a pickle, which is never read; convert it: python -c .*"
    rf"torch.load\('{folder}/epoch_32.pt', 'cpu', weights_only=True\).*"
    rf"'{folder}/open_clip_model.safetensors'"
  )
  for path in (folder, folder / "epoch_32.pt"):
    with pytest.raises(ValueError, match=convert) as e:
      siglax.load(path)
    assert "\n" not in str(e.value)


VISION, TEXT = {"image_size": 224}, {"context_length": 77, "vocab_size": 49408}
# open_clip's model_configs, and the counts that open_clip publishes.
PUBLISHED = {
  "ViT-B-32": (
    {"layers": 12, "width": 768, "patch_size": 32},
    {"width": 512, "heads": 8, "layers": 12},
    512,
    151_277_313,
  ),
  "ViT-B-16": (
    {"layers": 12, "width": 768, "patch_size": 16},
    {"width": 512, "heads": 8, "layers": 12},
    512,
    149_620_737,
  ),
  "ViT-L-14": (
    {"layers": 24, "width": 1024, "patch_size": 14},
    {"width": 768, "heads": 12, "layers": 12},
    768,
    427_616_513,
  ),
  "ViT-H-14": (
    {"layers": 32, "width": 1280, "head_width": 80, "patch_size": 14},
    {"width": 1024, "heads": 16, "layers": 24},
    1024,
    986_109_441,
  ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_sizes_of_open_clip_have_their_published_counts(name, tmp_path):
  vision, text, width, count = PUBLISHED[name]
  file = tmp_path / OPEN_CLIP
  towers = {"vision_cfg": {**VISION, **vision}, "text_cfg": {**TEXT, **text}}
  file.write_text(json.dumps({"model_cfg": {"embed_dim": width, **towers}}))
  config, table = open_clip_read.described(file)
  config.loss.name = "softmax"
  assert table is open_clip_names.VITS["linear_no_bias"]
  params = models.build(config.model).shapes
  assert trainable_lib.count(params) == count


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run of configs/clip_b32.py, trained for 4 steps."""
  folder = tmp_path_factory.mktemp("run") / "clip_b32"
  config = f"{ROOT / 'configs' / 'clip_b32'}.py:smoke=True"
  assert cli.main(["train", "--config", config, "--workdir", str(folder)]) == 0
  return folder


@pytest.fixture(scope="module")
def folders(run, tmp_path_factory):
  """{format: folder} of the run."""
  there = tmp_path_factory.mktemp("exported")
  return {
    form: exported(run, form, there / form) for form in ("hf", "hf-vision", "hf-text", "open_clip")
  }


def test_a_clip_that_siglax_trained_comes_back_bit_for_bit(run, folders):
  want = siglax.load(run)
  stacked = models.stack_blocks(want.params, siglax.load(folders["hf"]).config.model)
  for form, folder in folders.items():
    back = siglax.load(folder)
    jax.tree.map(
      np.testing.assert_array_equal, back.params, {name: stacked[name] for name in back.params}
    )
    for field in ("image.size", "image.mean", "image.std", "image.resize", "image.fit"):
      if form != "hf-text":
        assert config_lib.get(back.config, field) == config_lib.get(want.config, field)


def inputs(tower, seed=0):
  """Pixels and tokens: random ones, with an end."""
  rng, c = np.random.default_rng(seed), tower.config
  pixels = rng.normal(size=(3, c.image.size, c.image.size, 3)).astype(np.float32)
  ids = rng.integers(3, c.model.text.vocab_size, (3, c.text.length)).astype(np.int32)
  ids[:, -3:] = c.model.text.eos_id
  return pixels, ids


@pytest.mark.parametrize("source", ["run", "siglip", "argmax"])
def test_transformers_opens_what_is_exported(source, folders, tmp_path):
  transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
  forms = ("hf", "hf-vision", "hf-text")
  if source == "siglip":
    folders = {form: exported(GOLDEN / "hf_siglip", form, tmp_path / form) for form in forms}
  elif source == "argmax":
    clip = copied(VIT, tmp_path / "source", change=without_bias)
    folders = {form: exported(clip, form, tmp_path / form) for form in forms}
  tower = siglax.load(folders["hf"])
  pixels, ids = inputs(tower)
  want = embedded(tower, pixels, ids)
  given = {
    "hf": {
      "pixel_values": torch.tensor(pixels.transpose(0, 3, 1, 2)),
      "input_ids": torch.tensor(ids),
    }
  }
  for form, name in (("hf-vision", "pixel_values"), ("hf-text", "input_ids")):
    given[form] = {name: given["hf"][name]}
  for form in forms:
    (name,) = json.loads((folders[form] / "config.json").read_text())["architectures"]
    kind = getattr(transformers, name)
    model, info = kind.from_pretrained(folders[form], output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad():
      out = model.eval()(**given[form])
    embeds = {"hf": ("image_embeds", "text_embeds"), "hf-vision": ("image_embeds",)}
    embeds = embeds.get(form, ("text_embeds",))
    if source == "siglip" and form != "hf":
      embeds = ("pooler_output",)
    towers = want if form == "hf" else want[:1] if form == "hf-vision" else want[1:]
    for found, z in zip(embeds, towers, strict=True):
      np.testing.assert_allclose(unit(out[found].numpy()), z, atol=1e-5)
    if form == "hf":
      logits = out.logits_per_image.numpy()
      np.testing.assert_allclose(logits, tower.logits(*want), atol=1e-4)


def test_transformers_prepares_pictures_as_siglax_does(folders):
  transformers = pytest.importorskip("transformers")
  pytest.importorskip("torch")
  tower = siglax.load(folders["hf"])
  size = tower.config.image.size
  pictures = list(np.random.default_rng(1).integers(0, 256, (2, size + 20, size + 37, 3), np.uint8))
  images = transformers.AutoImageProcessor.from_pretrained(folders["hf"], backend="pil")
  found = images(pictures, return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
  want = tower.model.normalize(np.stack([tower.pixels(picture) for picture in pictures]))
  np.testing.assert_allclose(found, want, atol=1e-5)


@pytest.mark.parametrize("source", ["run", *OPTIONS])
def test_open_clip_opens_what_is_exported(source, folders, tmp_path):
  open_clip, torch = pytest.importorskip("open_clip"), pytest.importorskip("torch")
  folder = folders["open_clip"]
  if source != "run":
    options = {f"model_cfg.{path}": value for path, value in OPTIONS[source][0].items()}
    there = copied(VIT, tmp_path / "source", options)
    folder = exported(there, "open_clip", tmp_path / "oc")
  tower = siglax.load(folder)
  pixels, ids = inputs(tower)
  zimg, ztxt = embedded(tower, pixels, ids)
  model, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{folder}")
  model.eval()
  with torch.no_grad():
    x, words = torch.tensor(pixels.transpose(0, 3, 1, 2)), torch.tensor(ids)
    found = model.encode_image(x, normalize=True), model.encode_text(words, normalize=True)
    logits = model.get_logits(x, words)[0]
  for a, b in zip(found, (zimg, ztxt), strict=True):
    np.testing.assert_allclose(a.numpy(), b, atol=1e-5)
  np.testing.assert_allclose(logits.numpy(), tower.logits(zimg, ztxt), atol=1e-4)
  assert tuple(prepare.transforms[-1].mean) == tower.config.image.mean
