"""What is exported, opened by the libraries that it is for: pictures and texts to unit embeddings.

Each reader takes a folder or file, normalised pixels [N, S, S, 3], uint8 pixels of the same
pictures, texts, and their tokens, for a folder without a tokenizer. It returns {"image": rows,
"text": rows, "tokens": its own tokens of the texts}, as far as the format has them, and "mended",
which texts the library changes before its tokenizer sees them.
"""

import json

import jax
from jax import export as jax_export
import numpy as np
import pytest

import oracles


def _numpy(x):
  return x.detach().numpy()


def _padded(tokenizer, texts):
  found = tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="np")
  assert list(found) == ["input_ids"]
  return found["input_ids"]


def transformers(folder, floats, pixels, texts, tokens):
  """By AutoModel, AutoProcessor and AutoTokenizer; by its own class what AutoModel does not know: a
  text tower alone, and a CLIP's tower with its projection.
  """
  del pixels
  library, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
  config = json.loads((folder / "config.json").read_text())
  (name,) = config["architectures"]
  is_known = not ("Text" in name or "Projection" in name)
  kind = library.AutoModel if is_known else getattr(library, name)
  model, info = kind.from_pretrained(folder, output_loading_info=True)
  assert type(model).__name__ == name and not any(info.values()), info
  given = {}
  if (folder / "preprocessor_config.json").is_file():
    given["pixel_values"] = torch.tensor(floats.transpose(0, 3, 1, 2))
  if (folder / "tokenizer_config.json").is_file():
    tokens = _padded(library.AutoTokenizer.from_pretrained(folder), texts)
    if given:  # both
      processor = library.AutoProcessor.from_pretrained(folder)
      np.testing.assert_array_equal(_padded(processor.tokenizer, texts), tokens)
  if "text_config" in config or "pixel_values" not in given:
    given["input_ids"] = torch.tensor(np.asarray(tokens), dtype=torch.int64)
  with torch.no_grad():
    out = model.eval()(**given)
  found = {"tokens": tokens} if "input_ids" in given else {}
  if len(given) == 2:
    return found | {"image": _numpy(out.image_embeds), "text": _numpy(out.text_embeds)}
  tower = "text" if "input_ids" in given else "image"
  rows = out[f"{tower}_embeds"] if f"{tower}_embeds" in out else out.pooler_output
  return found | {tower: oracles.unit(_numpy(rows))}


def open_clip(folder, floats, pixels, texts, tokens):
  """By create_model_and_transforms and get_tokenizer of local-dir:. It mends mojibake and HTML
  first.
  """
  del pixels
  library, torch = pytest.importorskip("open_clip"), pytest.importorskip("torch")
  model, _, _ = library.create_model_and_transforms(f"local-dir:{folder}")
  if (folder / "tokenizer_config.json").is_file():
    tokens = library.get_tokenizer(f"local-dir:{folder}")(list(texts)).numpy()
  model.eval()
  with torch.no_grad():
    zimg = model.encode_image(torch.tensor(floats.transpose(0, 3, 1, 2)), normalize=True)
    ztxt = model.encode_text(torch.tensor(tokens), normalize=True)
  clean = library.tokenizer.get_clean_fn("whitespace")
  mended = np.array([clean(text) != " ".join(text.split()) for text in texts])
  return {"image": _numpy(zimg), "text": _numpy(ztxt), "tokens": tokens, "mended": mended}


def stablehlo(folder, floats, pixels, texts, tokens):
  """By jax.export, as docs/towers.md has it, and the tokens by the folder's own lines."""
  del floats
  config = json.loads((folder / "config.json").read_text())
  found = {}
  for name, tower in (("embed_image", "image"), ("embed_text", "text")):
    function = config["functions"][name]
    arrays = np.load(folder / function["params"])
    params = {k: x.view(config["dtype"]) for k, x in arrays.items()}
    call = jax.jit(jax_export.deserialize((folder / function["file"]).read_bytes()).call)
    given = pixels if tower == "image" else np.asarray(tokens, np.int32)
    found[tower] = np.asarray(call(params, given))
  return found | {"tokens": _tokens_by_readme(folder, texts)}


def onnx(folder, floats, pixels, texts, tokens):
  """By onnxruntime, and the tokens by the folder's own lines."""
  del floats
  runtime = pytest.importorskip("onnxruntime")
  found = {"tokens": _tokens_by_readme(folder, texts)}
  for tower, name, given in (("image", "pixels", pixels), ("text", "tokens", tokens)):
    session = runtime.InferenceSession(folder / f"{tower}.onnx")
    (found[tower],) = session.run(None, {name: given})
  return found


def _tokens_by_readme(folder, texts):
  """By the lines of an exported folder's README.md."""
  code = (folder / "README.md").read_text().split("## Texts")[1]
  names = {"np": np}
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)
    exec(code.split("```python\n")[1].split("```")[0], names)
  return names["tokens"](list(texts))


def big_vision(file, floats, pixels, texts, tokens):
  """By numpy in float64, with the names and shapes of models/vit.py and
  models/proj/image_text/text_transformer.py.
  """
  del pixels, texts
  arrays = {k.removeprefix("params/"): np.float64(x) for k, x in np.load(file).items()}
  x = np.float64(floats)
  patch = arrays["img/embedding/kernel"].shape[0]
  rows = x.shape[1] // patch
  x = x.reshape(len(x), rows, patch, rows, patch, 3).transpose(0, 1, 3, 2, 4, 5)
  x = x.reshape(len(x), rows * rows, -1) @ arrays["img/embedding/kernel"].reshape(patch**2 * 3, -1)
  x = x + arrays["img/embedding/bias"] + arrays["img/pos_embedding"]
  x = _big_vision_encoder(x, arrays, "img/Transformer")
  head, heads = _big_vision_block(arrays, "img/MAPHead_0")
  norm = {k: arrays[f"img/MAPHead_0/LayerNorm_0/{k}"] for k in ("scale", "bias")}
  zimg = oracles.map_head(x, {**head, "norm": norm, "probe": arrays["img/MAPHead_0/probe"]}, heads)
  y = arrays["txt/Embed_0/embedding"][tokens] + arrays["txt/pos_embedding"]
  y = _big_vision_encoder(y, arrays, "txt/Encoder_0")[:, -1]
  ztxt = y @ arrays["txt/head/kernel"] + arrays["txt/head/bias"]
  return {"image": oracles.unit(zimg), "text": oracles.unit(ztxt)}


def _big_vision_block(arrays, name):
  """({"attention", "mlp"} as tests/oracles.py has them, number of heads)."""
  attention = f"{name}/MultiHeadDotProductAttention_0"
  width, heads, _ = arrays[f"{attention}/query/kernel"].shape
  flat = lambda part, *shape: {
    "kernel": arrays[f"{attention}/{part}/kernel"].reshape(*shape),
    "bias": arrays[f"{attention}/{part}/bias"].reshape(-1),
  }
  parts = {part: flat(part, width, -1) for part in ("query", "key", "value")}
  dense = lambda i: {k: arrays[f"{name}/MlpBlock_0/Dense_{i}/{k}"] for k in ("kernel", "bias")}
  mlp = {"fc1": dense(0), "fc2": dense(1)}
  return {"attention": {**parts, "out": flat("out", -1, width)}, "mlp": mlp}, heads


def _big_vision_encoder(x, arrays, name):
  norm = lambda part: {k: arrays[f"{name}/{part}/{k}"] for k in ("scale", "bias")}
  depth = sum(k.startswith(name) and k.endswith("/LayerNorm_0/scale") for k in arrays)
  for i in range(depth):
    block, heads = _big_vision_block(arrays, f"{name}/encoderblock_{i}")
    y = oracles.layer_norm(x, norm(f"encoderblock_{i}/LayerNorm_0"))
    x = x + oracles.attention(y, y, block["attention"], heads)
    y = oracles.layer_norm(x, norm(f"encoderblock_{i}/LayerNorm_1"))
    x = x + oracles.mlp(y, block["mlp"])
  return oracles.layer_norm(x, norm("encoder_norm"))


def small_timm(patch, size):
  """timm's name of a SigLIP trunk of width 16, which it then knows."""
  timm = pytest.importorskip("timm")
  name = f"vit_base_patch{patch}_siglip_{size}"

  def make(pretrained=False, *, num_classes, global_pool, **options):
    del pretrained, options
    sizes = {"embed_dim": 16, "depth": 1, "num_heads": 2, "mlp_ratio": 2}
    return timm.models.vision_transformer.VisionTransformer(
      img_size=size,
      patch_size=patch,
      **sizes,
      class_token=False,
      act_layer="gelu_tanh",
      num_classes=num_classes,
      global_pool=global_pool,
    )

  make.__name__, make.__module__ = name, "timm.models.vision_transformer"
  timm.models.register_model(make)
  return name


READERS = {
  "hf": transformers,
  "hf-vision": transformers,
  "hf-text": transformers,
  "open_clip": open_clip,
  "big_vision": big_vision,
  "stablehlo": stablehlo,
  "onnx": onnx,
}
