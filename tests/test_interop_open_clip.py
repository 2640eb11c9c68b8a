"""open_clip folders: the towers of tests/golden/hf_siglip, renamed by hand, out and in again; a
ResNet of open_clip's own.

timm knows a few sizes only; here the tiny tower stands for its B/32.
"""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

import siglax
from siglax.commands import cli
from siglax.interop import open_clip_names
from siglax.models import resnet
from siglax.models import transformer

GOLDEN = pathlib.Path(__file__).parent / "golden" / "hf_siglip"
RESNET = GOLDEN.parent / "open_clip_resnet"


@pytest.fixture
def tiny(monkeypatch):
  monkeypatch.setitem(transformer.SIZES, "B", (16, 2, 2, 24))
  monkeypatch.setitem(open_clip_names.TRUNKS, ("base", 8), {"gelu_tanh": (16,)})


def renamed():
  """The SigLIP folder's tensors under open_clip's names, each converted by hand."""
  hf = safetensors.numpy.load_file(GOLDEN / "model.safetensors")
  oc = {}

  def copy(name, source):
    for kind in ("weight", "bias"):
      oc[f"{name}.{kind}"] = hf[f"{source}.{kind}"]

  def qkv(source, kind):
    return np.concatenate([hf[f"{source}.self_attn.{k}_proj.{kind}"] for k in "qkv"])

  for i in range(2):
    block, layer = f"visual.trunk.blocks.{i}", f"vision_model.encoder.layers.{i}"
    copy(f"{block}.norm1", f"{layer}.layer_norm1")
    copy(f"{block}.norm2", f"{layer}.layer_norm2")
    copy(f"{block}.attn.proj", f"{layer}.self_attn.out_proj")
    copy(f"{block}.mlp.fc1", f"{layer}.mlp.fc1")
    copy(f"{block}.mlp.fc2", f"{layer}.mlp.fc2")
    oc[f"{block}.attn.qkv.weight"], oc[f"{block}.attn.qkv.bias"] = (
      qkv(layer, "weight"),
      qkv(layer, "bias"),
    )
    block, layer = f"text.transformer.resblocks.{i}", f"text_model.encoder.layers.{i}"
    copy(f"{block}.ln_1", f"{layer}.layer_norm1")
    copy(f"{block}.ln_2", f"{layer}.layer_norm2")
    copy(f"{block}.attn.out_proj", f"{layer}.self_attn.out_proj")
    copy(f"{block}.mlp.c_fc", f"{layer}.mlp.fc1")
    copy(f"{block}.mlp.c_proj", f"{layer}.mlp.fc2")
    oc[f"{block}.attn.in_proj_weight"], oc[f"{block}.attn.in_proj_bias"] = (
      qkv(layer, "weight"),
      qkv(layer, "bias"),
    )
  copy("visual.trunk.patch_embed.proj", "vision_model.embeddings.patch_embedding")
  oc["visual.trunk.pos_embed"] = hf["vision_model.embeddings.position_embedding.weight"][None]
  copy("visual.trunk.norm", "vision_model.post_layernorm")
  pool, head = "visual.trunk.attn_pool", "vision_model.head"
  oc[f"{pool}.latent"] = hf[f"{head}.probe"]
  for kind in ("weight", "bias"):
    fused = hf[f"{head}.attention.in_proj_{kind}"]
    oc[f"{pool}.q.{kind}"], oc[f"{pool}.kv.{kind}"] = fused[:16], fused[16:]
  copy(f"{pool}.proj", f"{head}.attention.out_proj")
  copy(f"{pool}.norm", f"{head}.layernorm")
  copy(f"{pool}.mlp.fc1", f"{head}.mlp.fc1")
  copy(f"{pool}.mlp.fc2", f"{head}.mlp.fc2")
  oc["text.token_embedding.weight"] = hf["text_model.embeddings.token_embedding.weight"]
  oc["text.positional_embedding"] = hf["text_model.embeddings.position_embedding.weight"]
  copy("text.ln_final", "text_model.final_layer_norm")
  copy("text.text_projection", "text_model.head")
  oc["logit_scale"], oc["logit_bias"] = hf["logit_scale"][0], hf["logit_bias"][0]
  return oc


def test_the_folder_is_as_renamed_by_hand_and_comes_back(tiny, tmp_path):
  out = tmp_path / "oc"
  assert (
    cli.main(["export", "--from", str(GOLDEN), "--format", "open_clip", "--out", str(out)]) == 0
  )
  found, want = safetensors.numpy.load_file(out / "open_clip_model.safetensors"), renamed()
  assert found.keys() == want.keys()
  for name in want:
    np.testing.assert_array_equal(found[name], want[name], err_msg=name, strict=True)
  config = json.loads((out / "open_clip_config.json").read_text())
  assert (
    config["preprocess_cfg"]["resize_mode"] == "squash"
    and config["preprocess_cfg"]["interpolation"] == "bicubic"
  )
  text = config["model_cfg"]["text_cfg"]
  assert int(text["width"] * text["mlp_ratio"]) == 24 and text["act_kwargs"] == {
    "approximate": "tanh"
  }
  there, back = siglax.load(GOLDEN), siglax.load(out)
  jax.tree.map(np.testing.assert_array_equal, back.params, there.params)
  assert back.config.model.text.activation == "gelu_tanh" and back.config.image.resize == "bicubic"


def test_what_timm_has_no_name_for_is_named(tiny, tmp_path, capsys):
  def refused(folder):
    assert (
      cli.main(
        ["export", "--from", str(folder), "--format", "open_clip", "--out", str(tmp_path / "x")]
      )
      == 1
    )
    return capsys.readouterr().err.strip()

  transformer.SIZES["B"] = (16, 3, 2, 24)
  assert (
    "config.model.image of width 16, depth 2, heads 2, mlp_dim 24 and patch 8; timm has B/32, B/16"
    in refused(GOLDEN)
  )
  transformer.SIZES["B"] = (16, 2, 2, 24)
  open_clip_names.TRUNKS["base", 8] = {"gelu": (16, 24)}
  assert (
    "activation='gelu_tanh' with config.image.size=16; timm's vit_base_patch8_siglip has 'gelu' "
    "with "
    "config.image.size in (16, 24)"
  ) in refused(GOLDEN)


def test_wrong_folders_are_named(tiny, tmp_path):
  (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {"vision_cfg": {}}}')
  with pytest.raises(
    ValueError,
    match="open_clip_config.json does not describe towers of open_clip: KeyError 'text_cfg'",
  ):
    siglax.load(tmp_path)
  cli.main(
    ["export", "--from", str(GOLDEN), "--format", "open_clip", "--out", str(tmp_path / "oc")]
  )
  shutil.move(tmp_path / "oc" / "open_clip_model.safetensors", tmp_path / "oc" / "model.bin")
  with pytest.raises(ValueError, match="has no open_clip_model.safetensors; model.bin is a pickle"):
    siglax.load(tmp_path / "oc")


def test_a_resnet_is_open_clips_in_both_modes_and_goes_back(monkeypatch, tmp_path, capsys):
  monkeypatch.setitem(resnet.SIZES, "RN50", (64, (2, 1, 1, 1), 1024))
  tower, io = siglax.load(RESNET), np.load(RESNET / "io.npz")
  # These are the defaults of open_clip.
  assert tower.config.image.fit == "crop" and tower.config.image.resize == "bicubic"
  model, params = tower.model, tower.params
  z, (ztrain, running) = jax.jit(
    lambda p, x: (model.embed_image(p, x), model.embed_image_in_training(p, x))
  )(params, io["pixels"])
  np.testing.assert_allclose(z, io["zimg"], atol=1e-5)
  np.testing.assert_allclose(ztrain, io["ztrain"], atol=1e-5)
  np.testing.assert_allclose(model.embed_text(params, io["ids"]), io["ztxt"], atol=1e-5)
  after = running["image"]["stages"]["1"]["0"]["shortcut"]["norm"]
  np.testing.assert_allclose(
    after["mean"], io["visual.layer2.0.downsample.1.running_mean"], rtol=1e-5, atol=1e-6
  )
  np.testing.assert_allclose(
    after["var"], io["visual.layer2.0.downsample.1.running_var"], rtol=1e-5
  )
  out = tmp_path / "oc"
  assert (
    cli.main(["export", "--from", str(RESNET), "--format", "open_clip", "--out", str(out)]) == 0
  )
  there, back = (
    safetensors.numpy.load_file(folder / "open_clip_model.safetensors") for folder in (RESNET, out)
  )
  assert back.keys() == {name for name in there if not name.endswith("num_batches_tracked")}
  for name, x in back.items():
    np.testing.assert_array_equal(x, there[name], err_msg=name)
  there, back = (
    json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    for folder in (RESNET, out)
  )
  assert (
    there["vision_cfg"].items() <= back["vision_cfg"].items()
    and back["quick_gelu"]
    and not back["custom_text"]
  )
  jax.tree.map(np.testing.assert_array_equal, siglax.load(out).params, params)
  for form in ("hf", "hf-vision", "big_vision"):
    assert (
      cli.main(
        ["export", "--from", str(RESNET), "--format", form, "--out", str(tmp_path / "x.npz")]
      )
      == 1
    )
    assert (
      f"--format {form} cannot express config.model.image.variant='RN50'; it needs 'Ti' or 'S'"
      in capsys.readouterr().err
    )
  config = json.loads((out / "open_clip_config.json").read_text())
  config["model_cfg"]["text_cfg"]["norm_kwargs"] = {"eps": "small"}
  (out / "open_clip_config.json").write_text(json.dumps(config))
  with pytest.raises(
    ValueError, match=r"open_clip_config\.json: model_cfg\.text_cfg\.norm_kwargs\.eps='small'"
  ):
    siglax.load(out)
