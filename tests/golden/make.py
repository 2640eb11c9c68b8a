"""Makes the files of this folder with torch 2.13.0, transformers 5.x and open_clip 3.3: `python
tests/golden/make.py`.

Tiny SiglipModel and CLIPModel folders, one of open_clip's ResNets and one of its ViTs, with all
parameters random, their outputs, torch's bicubic interpolation, and what transformers takes for
fields that a config.json leaves out. big_vision_scan is a file that big_vision itself wrote (pool
map, blocks scanned) with its outputs: `python tests/golden/make.py PARITY/big_vision_siglip_scan`
packs the two again, of two pictures and texts.
"""

import json
import pathlib
import sys

import numpy as np
import PIL.Image
import safetensors.torch
import torch
import transformers

HERE = pathlib.Path(__file__).parent
# What pictures are normalised by.
CLIP = {
  "image_mean": [0.48145466, 0.4578275, 0.40821073],
  "image_std": [0.26862954, 0.26130258, 0.27577711],
}
SIGLIP = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
ODD = {"image_mean": [0.11, 0.42, 0.73], "image_std": [0.31, 0.24, 0.57]}
TOWER = {
  "hidden_size": 16,
  "intermediate_size": 24,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
}


def randomize(model):
  generator = torch.Generator().manual_seed(0)
  for name, p in model.named_parameters():
    if "logit" not in name:
      p.data += 0.2 * torch.randn(p.shape, generator=generator)


def save(name, model, pixels, ids, preprocessing):
  """A folder of transformers, and in io.npz its inputs and outputs; pictures are uint8, normalised
  by `preprocessing`.
  """
  randomize(model.eval())
  if name != "hf_clip":
    model.logit_scale.data.fill_(1.5)
    model.logit_bias.data.fill_(-2.0)
  model.save_pretrained(HERE / name)
  side = pixels.shape[-1]
  pictures = torch.randint(
    0, 256, (3, 3, 16, 16), generator=torch.Generator().manual_seed(4), dtype=torch.uint8
  )
  pictures = pictures.repeat_interleave(side // 16, 2).repeat_interleave(side // 16, 3)
  mean, std = (
    torch.tensor(preprocessing[key])[:, None, None] for key in ("image_mean", "image_std")
  )
  with torch.no_grad():
    out = model(pixel_values=pixels, input_ids=ids, return_loss=True)
    of_pictures = model(pixel_values=(pictures / 255 - mean) / std, input_ids=ids)
    tokens = of_pictures.vision_model_output.last_hidden_state
    if name == "hf_clip":  # the state before the last norm, with the class token
      tokens = model.vision_model.post_layernorm(tokens)[:, 1:]
    more = {} if side > 16 else at_another_resolution(model)
  last = lambda x: x.permute(0, 2, 3, 1).numpy()
  np.savez_compressed(
    HERE / name / "io.npz",
    pixels=last(pixels),
    ids=ids.numpy().astype(np.int32),
    zimg=out.image_embeds.numpy(),
    ztxt=out.text_embeds.numpy(),
    logits=out.logits_per_image.numpy(),
    loss=out.loss.numpy(),
    pictures=last(pictures),
    zpictures=of_pictures.image_embeds.numpy(),
    tokens=tokens.numpy(),
    **more,
  )


def at_another_resolution(model):
  large = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(2))
  resized = model.get_image_features(large, interpolate_pos_encoding=True).pooler_output
  return {
    "large": large.permute(0, 2, 3, 1).numpy(),
    "zlarge": torch.nn.functional.normalize(resized, dim=-1).numpy(),
  }


def minimal(text, vision):
  """config.json without the fields that it may leave out, here all but the sizes that would make
  the file large.
  """
  file = HERE / "hf_siglip_minimal" / "config.json"
  file.write_text(
    json.dumps({"model_type": "siglip", "text_config": text, "vision_config": vision}, indent=2)
    + "\n"
  )


def defaults():
  """Those of every field that siglax reads."""
  fields = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
    "image_size",
    "patch_size",
    "num_channels",
    "num_patches",
    "vocab_size",
    "max_position_embeddings",
    "projection_size",
    "eos_token_id",
  )
  found = {}
  for name, config in (
    ("siglip", transformers.SiglipConfig()),
    ("siglip2", transformers.Siglip2Config()),
    ("clip", transformers.CLIPConfig()),
  ):
    sections = {"vision": config.vision_config, "text": config.text_config}
    found[name] = {
      k: {f: getattr(c, f) for f in fields if hasattr(c, f)} for k, c in sections.items()
    }
    found[name]["projection_dim"] = getattr(config, "projection_dim", None)
  (HERE / "hf_defaults.json").write_text(json.dumps(found, indent=1) + "\n")


def big_vision(source):
  """What big_vision wrote there, compressed; the first two rows of its inputs and outputs."""
  folder = HERE / "big_vision_scan"
  folder.mkdir(exist_ok=True)
  np.savez_compressed(folder / "checkpoint.npz", **np.load(source / "checkpoint.npz"))
  # Of all rows
  rows = {
    k: x[:2] if x.ndim > 1 else x for k, x in np.load(source / "io.npz").items() if k != "loss"
  }
  np.savez_compressed(folder / "io.npz", **rows)


def positions():
  x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))

  def up(size):
    y = torch.nn.functional.interpolate(x, size=size, mode="bicubic", align_corners=False)
    return y[0].permute(1, 2, 0).numpy()

  np.savez_compressed(
    HERE / "positions.npz", x=x[0].permute(1, 2, 0).numpy(), square=up((24, 24)), odd=up((17, 31))
  )


def resnet():
  """An open_clip CLIP with the fewest blocks of a ResNet; outputs in both modes, and the running
  statistics after training.
  """
  import open_clip  # which needs torchvision

  config = {
    "embed_dim": 12,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": [2, 1, 1, 1], "width": 2, "patch_size": None},
    "text_cfg": {"context_length": 6, "vocab_size": 40, "width": 12, "heads": 2, "layers": 2},
  }
  model, generator = open_clip.CLIP(**config).eval(), torch.Generator().manual_seed(3)
  randomize(model)
  for name, x in model.named_buffers():
    if name.endswith("running_var"):
      x.uniform_(0.5, 1.5, generator=generator)
    elif name.endswith("running_mean"):
      x.normal_(0, 0.3, generator=generator)
  folder = HERE / "open_clip_resnet"
  folder.mkdir(exist_ok=True)
  preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3}
  (folder / "open_clip_config.json").write_text(
    json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}, indent=2) + "\n"
  )
  safetensors.torch.save_file(model.state_dict(), folder / "open_clip_model.safetensors")
  pixels = torch.randint(-8, 9, (3, 3, 64, 64), generator=generator) / 4  # few values compress well
  ids = torch.tensor([[5, 6, 7, 39, 0, 0], [8, 39, 0, 0, 0, 0], [9, 38, 11, 12, 13, 39]])
  with torch.no_grad():
    zimg, ztxt = model.encode_image(pixels, normalize=True), model.encode_text(ids, normalize=True)
    ztrain = model.train().encode_image(pixels, normalize=True)
  statistics = {
    name: x.numpy()
    for name, x in model.named_buffers()
    if name.endswith(("running_mean", "running_var"))
  }
  np.savez_compressed(
    folder / "io.npz",
    pixels=pixels.permute(0, 2, 3, 1).numpy(),
    ids=ids.numpy().astype(np.int32),
    zimg=zimg.numpy(),
    ztxt=ztxt.numpy(),
    ztrain=ztrain.numpy(),
    **statistics,
  )


def open_clip_vit():
  """An open_clip CLIP of its own ViT with a bias, its outputs, and those of the same weights under
  other options of its config.
  """
  import open_clip  # which needs torchvision

  vision = {"image_size": 16, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8}
  text = {"context_length": 6, "vocab_size": 40, "width": 12, "heads": 2, "layers": 2}
  config = {
    "embed_dim": 12,
    "init_logit_bias": -10,
    "vision_cfg": {**vision, "mlp_ratio": 1.5},
    "text_cfg": {**text, "mlp_ratio": 2.3},
  }
  model, generator = open_clip.CLIP(**config).eval(), torch.Generator().manual_seed(7)
  randomize(model)
  model.logit_bias.data.fill_(-2.5)
  folder = HERE / "open_clip_vit"
  folder.mkdir(exist_ok=True)
  preprocess = {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]}
  (folder / "open_clip_config.json").write_text(
    json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}, indent=2) + "\n"
  )
  safetensors.torch.save_file(model.state_dict(), folder / "open_clip_model.safetensors")
  pixels = torch.randint(-8, 9, (3, 3, 16, 16), generator=generator) / 4
  pictures = torch.randint(0, 256, (2, 20, 32, 3), generator=generator, dtype=torch.uint8).numpy()
  _, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{folder}")
  prepared = torch.stack([prepare(PIL.Image.fromarray(picture)) for picture in pictures])
  ids = torch.tensor([[5, 38, 7, 39, 0, 0], [8, 38, 39, 0, 0, 0], [9, 38, 11, 12, 38, 39]])

  def outputs(model):
    with torch.no_grad():
      zimg = model.encode_image(pixels, normalize=True)
      ztxt, logits = model.encode_text(ids, normalize=True), model.get_logits(pixels, ids)[0]
    return {"zimg": zimg.numpy(), "ztxt": ztxt.numpy(), "logits": logits.numpy()}

  found = outputs(model)
  tanh = {"act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-2}}
  for name, options in (
    ("quick", {"quick_gelu": True}),
    ("eos", {"text_cfg": {**config["text_cfg"], "pool_type": "eos", "eos_id": 38}}),
    ("tanh", {"vision_cfg": {**config["vision_cfg"], **tanh}}),
    ("last", {"text_cfg": {**config["text_cfg"], "pool_type": "last", "no_causal_mask": True}}),
  ):
    other = open_clip.CLIP(**config | options).eval()
    other.load_state_dict(model.state_dict())
    found |= {f"{key}_{name}": value for key, value in outputs(other).items()}
  with torch.no_grad():
    zpictures = model.encode_image(prepared, normalize=True).numpy()
  np.savez_compressed(
    folder / "io.npz",
    pixels=pixels.permute(0, 2, 3, 1).numpy(),
    ids=ids.numpy().astype(np.int32),
    pictures=pictures,
    zpictures=zpictures,
    **found,
  )


def naflex():
  """A Siglip2Model, and its outputs for pictures of several aspect ratios as its own image
  processor prepares them; in `grids` heights, widths, patches and budgets, with the rows and
  columns that it takes for them.
  """
  from transformers.models.siglip2 import image_processing_siglip2 as processing

  config = transformers.Siglip2Config(
    text_config={
      **{**TOWER, "hidden_size": 12, "vocab_size": 40, "max_position_embeddings": 6},
      **{"projection_size": 16, "bos_token_id": None, "eos_token_id": 1},
    },
    vision_config={**TOWER, "patch_size": 8, "num_patches": 9},
  )
  model, generator = transformers.Siglip2Model(config).eval(), np.random.default_rng(0)
  randomize(model)
  model.logit_scale.data.fill_(1.5)
  model.logit_bias.data.fill_(-2.0)
  folder = HERE / "hf_siglip2"
  model.save_pretrained(folder)
  prepare = transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=16)
  prepare.save_pretrained(folder)
  # Sides of whole patches, which no resampler changes, and two that are resized.
  sizes = [(32, 32), (16, 56), (64, 16), (8, 128), (24, 40), (50, 20), (9, 7)]
  pictures = {
    f"picture_{k}": generator.integers(0, 16, (h, w, 3), np.uint8) * 16
    for k, (h, w) in enumerate(sizes)
  }
  inputs = prepare(images=[PIL.Image.fromarray(x) for x in pictures.values()], return_tensors="pt")
  ids = torch.tensor([[5, 6, 7, 1, 1, 1], [8, 1, 1, 1, 1, 1], [9, 39, 11, 12, 13, 1]])
  with torch.no_grad():
    out = model(input_ids=ids, **inputs)
  asked = [
    (int(generator.integers(1, 3000)), int(generator.integers(1, 3000)), patch, most)
    for patch in (8, 14, 16, 32)
    for most in (16, 64, 256, 1024)
    for _ in range(20)
  ]
  sides = [processing.get_image_size_for_max_num_patches(*one) for one in asked]
  np.savez_compressed(
    folder / "io.npz",
    ids=ids.numpy().astype(np.int32),
    zimg=out.image_embeds.numpy(),
    ztxt=out.text_embeds.numpy(),
    logits=out.logits_per_image.numpy(),
    patches=inputs["pixel_values"].numpy(),
    shapes=inputs["spatial_shapes"].numpy().astype(np.int32),
    tokens=out.vision_model_output.last_hidden_state.numpy(),
    grids=np.array([(*a, h // a[2], w // a[2]) for a, (h, w) in zip(asked, sides)], np.int32),
    **pictures,
  )


def main():
  if len(sys.argv) > 1:
    big_vision(pathlib.Path(sys.argv[1]))
    return
  torch.manual_seed(0)
  pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
  text = {**TOWER, "hidden_size": 12, "vocab_size": 40, "max_position_embeddings": 6}
  vision = {**TOWER, "image_size": 16, "patch_size": 8}
  words = {**text, "projection_size": 16, "bos_token_id": None, "eos_token_id": 1}
  ids = torch.tensor([[5, 6, 7, 1, 1, 1], [8, 1, 1, 1, 1, 1], [9, 39, 11, 12, 13, 1]])
  siglip = transformers.SiglipConfig(text_config=words, vision_config=vision)
  save("hf_siglip", transformers.SiglipModel(siglip), pixels, ids, SIGLIP)
  clip = transformers.CLIPConfig(
    text_config={**text, "eos_token_id": 38, "bos_token_id": 37, "pad_token_id": 0},
    vision_config=vision,
    projection_dim=12,
  )
  ends = torch.tensor([[5, 6, 7, 38, 0, 0], [8, 38, 38, 0, 0, 0], [9, 39, 11, 12, 13, 38]])
  save("hf_clip", transformers.CLIPModel(clip), pixels, ends, CLIP)
  positions()
  resnet()
  open_clip_vit()
  naflex()

  odd = {"hidden_act": "gelu", "layer_norm_eps": 1e-3}
  siglip = transformers.SiglipConfig(text_config={**words, **odd}, vision_config={**vision, **odd})
  save("hf_siglip_odd", transformers.SiglipModel(siglip), pixels, ids, ODD)
  (HERE / "hf_siglip_odd" / "preprocessor_config.json").write_text(
    json.dumps({**ODD, "resample": 2}, indent=2) + "\n"
  )

  text, vision = (
    {"hidden_size": 12, "intermediate_size": 8, "vocab_size": 40},
    {"hidden_size": 12, "intermediate_size": 8},
  )
  siglip = transformers.SiglipConfig(
    text_config={**text, "projection_size": 12}, vision_config=vision
  )
  coarse = torch.randint(-4, 5, (3, 3, 28, 28), generator=torch.Generator().manual_seed(5)) / 4
  coarse = coarse.repeat_interleave(8, 2).repeat_interleave(8, 3)
  ids = torch.randint(2, 40, (3, 64), generator=torch.Generator().manual_seed(6))
  save("hf_siglip_minimal", transformers.SiglipModel(siglip), coarse, ids, SIGLIP)
  minimal(text, vision)
  defaults()


if __name__ == "__main__":
  main()
