"""big_vision .npz in: the towers of tests/golden/hf_siglip, renamed by hand, and files that are
wrong.
"""

import io
import math
import pathlib
import pickle
import zipfile

import jax
import numpy as np
import pytest
import safetensors.numpy

import siglax
from siglax import models
from siglax.devices import mesh
from siglax.interop import files
from siglax.training import initial

GOLDEN = pathlib.Path(__file__).parent / "golden"
HEADS = 2


def renamed():
  """The SigLIP folder's tensors under big_vision's names, each converted by hand."""
  hf = safetensors.numpy.load_file(GOLDEN / "hf_siglip" / "model.safetensors")
  bv = {}

  def dense(name, source):
    bv[f"{name}/kernel"], bv[f"{name}/bias"] = hf[f"{source}.weight"].T, hf[f"{source}.bias"]

  def norm(name, source):
    bv[f"{name}/scale"], bv[f"{name}/bias"] = hf[f"{source}.weight"], hf[f"{source}.bias"]

  def attention(name, qkv, out):
    for kind, (weight, bias) in zip(("query", "key", "value"), qkv):
      bv[f"{name}/{kind}/kernel"] = weight.T.reshape(weight.shape[1], HEADS, -1)
      bv[f"{name}/{kind}/bias"] = bias.reshape(HEADS, -1)
    bv[f"{name}/out/kernel"] = hf[f"{out}.weight"].T.reshape(
      HEADS, -1, hf[f"{out}.weight"].shape[0]
    )
    bv[f"{name}/out/bias"] = hf[f"{out}.bias"]

  def encoder(name, source, last):
    for i in range(2):
      block, layer = f"{name}/encoderblock_{i}", f"{source}.encoder.layers.{i}"
      norm(f"{block}/LayerNorm_0", f"{layer}.layer_norm1")
      norm(f"{block}/LayerNorm_1", f"{layer}.layer_norm2")
      qkv = [
        (hf[f"{layer}.self_attn.{k}_proj.weight"], hf[f"{layer}.self_attn.{k}_proj.bias"])
        for k in "qkv"
      ]
      attention(f"{block}/MultiHeadDotProductAttention_0", qkv, f"{layer}.self_attn.out_proj")
      dense(f"{block}/MlpBlock_0/Dense_0", f"{layer}.mlp.fc1")
      dense(f"{block}/MlpBlock_0/Dense_1", f"{layer}.mlp.fc2")
    norm(f"{name}/encoder_norm", last)

  vision, text = "vision_model", "text_model"
  bv["img/embedding/kernel"] = hf[f"{vision}.embeddings.patch_embedding.weight"].transpose(
    2, 3, 1, 0
  )
  bv["img/embedding/bias"] = hf[f"{vision}.embeddings.patch_embedding.bias"]
  bv["img/pos_embedding"] = hf[f"{vision}.embeddings.position_embedding.weight"][None]
  encoder("img/Transformer", vision, f"{vision}.post_layernorm")
  head = "img/MAPHead_0"
  bv[f"{head}/probe"] = hf[f"{vision}.head.probe"]
  fused = zip(
    *(np.split(hf[f"{vision}.head.attention.in_proj_{k}"], 3) for k in ("weight", "bias"))
  )
  attention(f"{head}/MultiHeadDotProductAttention_0", fused, f"{vision}.head.attention.out_proj")
  norm(f"{head}/LayerNorm_0", f"{vision}.head.layernorm")
  dense(f"{head}/MlpBlock_0/Dense_0", f"{vision}.head.mlp.fc1")
  dense(f"{head}/MlpBlock_0/Dense_1", f"{vision}.head.mlp.fc2")
  bv["txt/Embed_0/embedding"] = hf[f"{text}.embeddings.token_embedding.weight"]
  bv["txt/pos_embedding"] = hf[f"{text}.embeddings.position_embedding.weight"][None]
  encoder("txt/Encoder_0", text, f"{text}.final_layer_norm")
  dense("txt/head", f"{text}.head")
  bv["t"], bv["b"] = hf["logit_scale"], hf["logit_bias"]
  return {f"params/{k}": v for k, v in bv.items()}


def scanned(bv):
  """Its blocks stacked over depth."""
  first = {k: v for k, v in bv.items() if "encoderblock_0" in k}
  rest = {k: v for k, v in bv.items() if "encoderblock_" not in k}
  return rest | {
    k.replace("encoderblock_0", "encoderblock"): np.stack(
      [v, bv[k.replace("encoderblock_0", "encoderblock_1")]]
    )
    for k, v in first.items()
  }


def half_scanned():
  """big_vision scans each tower by its own option."""
  loop, scan = renamed(), scanned(renamed())
  return {k: v for k, v in loop.items() if "/txt/" in k} | {
    k: v for k, v in scan.items() if "/txt/" not in k
  }


@pytest.mark.parametrize("layout", [renamed, lambda: scanned(renamed()), half_scanned])
def test_both_layouts_give_what_transformers_gives(layout, tmp_path):
  np.savez(tmp_path / "x.npz", **layout(), **{"opt/step": np.int64(3)})
  z = np.load(GOLDEN / "hf_siglip" / "io.npz")
  t = siglax.load(tmp_path / "x.npz")
  embed = jax.jit(lambda p: (t.model.embed_image(p, z["pixels"]), t.model.embed_text(p, z["ids"])))
  zimg, ztxt = (np.asarray(x) for x in embed(t.params))
  np.testing.assert_allclose(zimg, z["zimg"], atol=1e-5)
  np.testing.assert_allclose(ztxt, z["ztxt"], atol=1e-5)
  np.testing.assert_allclose(t.logits(zimg, ztxt), z["logits"], atol=1e-5)
  same = siglax.load(GOLDEN / "hf_siglip").params
  jax.tree.map(np.testing.assert_array_equal, t.params, same)


def looped(bv):
  """Its blocks one by one, under the names that big_vision gives them without scan."""
  apart = {}
  for name, x in bv.items():
    if "/encoderblock/" in name:
      apart |= {
        name.replace("/encoderblock/", f"/encoderblock_{i}/"): layer for i, layer in enumerate(x)
      }
    else:
      apart[name] = x
  return apart


@pytest.mark.parametrize("layout", [dict, looped])
def test_a_file_of_big_vision_gives_what_big_vision_gives(layout, tmp_path):
  np.savez_compressed(
    tmp_path / "x.npz", **layout(np.load(GOLDEN / "big_vision_scan" / "checkpoint.npz"))
  )
  t, z = siglax.load(tmp_path / "x.npz"), np.load(GOLDEN / "big_vision_scan" / "io.npz")
  m = t.model
  embed = lambda p: (
    m.embed_image(p, z["image"]),
    m.embed_text(p, z["labels"]),
    m.image_tokens(p, z["image"]),
  )
  zimg, ztxt, encoded = jax.jit(embed)(t.params)
  np.testing.assert_allclose(zimg, z["zimg"], atol=1e-5)
  np.testing.assert_allclose(ztxt, z["ztxt"], atol=1e-5)
  np.testing.assert_allclose(encoded, z["img_encoded"], atol=1e-5)
  np.testing.assert_allclose([t.scale, t.bias], [z["t"][0], z["b"][0]], rtol=1e-6)


def test_one_tower_and_its_layouts_into_either_encoder(tmp_path):
  bv = renamed()
  np.savez(tmp_path / "loop.npz", **bv)
  np.savez(tmp_path / "scan.npz", **scanned(bv))
  want = siglax.load(tmp_path / "loop.npz").params
  image, text = (siglax.load(f"{tmp_path / 'scan.npz'}:{name}") for name in ("img", "txt"))
  assert set(image.params) == {"image"} and set(text.params) == {"text"}
  jax.tree.map(
    np.testing.assert_array_equal,
    {**image.params, **text.params},
    {k: want[k] for k in ("image", "text")},
  )
  config = image.config
  config.model.image.scan = False
  apart = initial.initial_params(
    f"{tmp_path / 'scan.npz'}:img", models.build(config.model, ("image",)), mesh.make()
  )
  for i in range(2):
    np.testing.assert_array_equal(
      apart["image"]["encoder"]["blocks"][str(i)]["mlp"]["fc1"]["kernel"],
      want["image"]["encoder"]["blocks"]["mlp"]["fc1"]["kernel"][i],
    )


class Bomb:
  """Leaves a file behind when it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return pathlib.Path.touch, (self.path,)


def test_a_pickle_is_never_executed(tmp_path):
  bv, fuse = renamed(), tmp_path / "went off"
  bv["params/txt/head/bias"] = np.array([Bomb(fuse)], object)
  np.savez(tmp_path / "x.npz", **bv)
  with pytest.raises(ValueError, match="x.npz: txt/head/bias is a pickle, which is never read"):
    siglax.load(tmp_path / "x.npz")
  (tmp_path / "y.npz").write_bytes(pickle.dumps(Bomb(fuse)))
  with pytest.raises(ValueError, match="y.npz is no .npz file"):
    siglax.load(tmp_path / "y.npz")
  assert not fuse.exists()


@pytest.mark.parametrize(
  "change, match",
  [
    (
      lambda p: p["params/img/Transformer/encoderblock_1/LayerNorm_1/scale"].fill(np.inf),
      "img/Transformer/encoderblock_1/LayerNorm_1/scale holds values that are not finite",
    ),
    (
      lambda p: p.pop("params/txt/pos_embedding") is p.pop("params/img/pos_embedding"),
      "holds no towers of big_vision",
    ),
    (lambda p: p.pop("params/txt/head/kernel"), "txt/head/kernel is missing"),
    (lambda p: p.pop("params/t"), "lacks t$"),
    (
      lambda p: p.update({"params/img/cls": np.zeros((1, 1, 16), np.float32)}),
      "unused are img/cls$",
    ),
    (
      lambda p: p.update({"params/txt/Embed_0/embedding": np.zeros((40, 13), np.float32)}),
      r"txt/Embed_0/embedding has the shape \[40, 13\]; these towers need \[40, 12\]",
    ),
    (
      lambda p: p.update({"params/txt/Embed_0/embedding": np.zeros(40, np.float32)}),
      "must have 2 dimensions",
    ),
  ],
)
def test_wrong_files_are_named(tmp_path, change, match):
  bv = {k: np.array(v) for k, v in renamed().items()}
  change(bv)
  np.savez(tmp_path / "x.npz", **bv)
  with pytest.raises(ValueError, match=match) as e:
    siglax.load(tmp_path / "x.npz")
  assert "\n" not in str(e.value) and "x.npz" in str(e.value)


def test_files_cut_short(tmp_path):
  file = tmp_path / "x.npz"
  bv = renamed()
  np.savez(file, **bv)
  whole = file.read_bytes()
  for length in (0, 100, len(whole) - 30):
    file.write_bytes(whole[:length])
    with pytest.raises(ValueError, match="x.npz is no .npz file, or is damaged"):
      siglax.load(file)
  flipped = bytearray(whole)
  flipped[whole.index(bv["params/txt/Embed_0/embedding"].tobytes()) + 100] ^= 1
  file.write_bytes(flipped)
  with pytest.raises(ValueError, match="x.npz .*damaged: .*txt/Embed_0/embedding"):
    siglax.load(file)


def header(shape, dtype="<f4"):
  out = io.BytesIO()
  np.lib.format.write_array_header_1_0(
    out, {"descr": dtype, "fortran_order": False, "shape": shape}
  )
  return out.getvalue()


@pytest.mark.parametrize(
  "shape, data, match",
  [
    (
      (10**12, 12),
      b"\0" * 48,
      r"declares \[1000000000000, 12\] of float32, 48000000000000 bytes, and has 48$",
    ),
    ((40, 12), b"\0" * 48, r"declares \[40, 12\] of float32, 1920 bytes, and has 48$"),
    ((-1, 12), b"\0" * 48, r"declares \[-1, 12\] of float32, -48 bytes, and has 48$"),
    ((2**22, 12), None, r"it unpacks to \d+ bytes, more than 16 times its size"),
    ((2**16, 12), None, r"it unpacks to \d+ bytes, more than 16 times its size"),
  ],
)
def test_arrays_that_lie_about_their_size_are_not_read(shape, data, match, tmp_path, monkeypatch):
  np.savez(tmp_path / "x.npz", **{k: v for k, v in renamed().items() if "Embed_0" not in k})
  with zipfile.ZipFile(tmp_path / "x.npz", "a", zipfile.ZIP_DEFLATED) as z:
    z.writestr(
      "params/txt/Embed_0/embedding.npy",
      header(shape) + (bytes(math.prod(shape) * 4) if data is None else data),
    )
  monkeypatch.setattr(files.Npz, "read", lambda *_: pytest.fail("an array was read"))
  with pytest.raises(ValueError, match=match) as e:
    siglax.load(tmp_path / "x.npz")
  subject = "it" if data is None else "txt/Embed_0/embedding"
  assert str(e.value).startswith(f"{tmp_path / 'x.npz'}: {subject} ") and "\n" not in str(e.value)


def test_shapes_are_compared_with_the_towers_before_anything_is_read(tmp_path, monkeypatch):
  bv = renamed()
  bv["params/txt/head/bias"] = np.zeros(17, np.float32)  # the last of the table but scale and bias
  np.savez(tmp_path / "x.npz", **bv)
  monkeypatch.setattr(files.Npz, "read", lambda *_: pytest.fail("an array was read"))
  with pytest.raises(
    ValueError, match=r"txt/head/bias has the shape \[17\]; these towers need \[16\]"
  ):
    siglax.load(tmp_path / "x.npz")
