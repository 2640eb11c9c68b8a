"""Makes the files of this folder with torch 2.13.0, transformers 5.x and open_clip 3.3: `python tests/golden/make.py`.

Tiny SiglipModel and CLIPModel folders and one of open_clip's ResNets with all parameters random, their outputs, and torch's
bicubic interpolation.
"""

import json
import pathlib

import numpy as np
import safetensors.torch
import torch
import transformers

HERE = pathlib.Path(__file__).parent
TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def randomize(model):
  generator = torch.Generator().manual_seed(0)
  for name, p in model.named_parameters():
    if "logit" not in name:
      p.data += 0.2 * torch.randn(p.shape, generator=generator)


def save(name, model, pixels, ids):
  randomize(model.eval())
  if name == "hf_siglip":
    model.logit_scale.data.fill_(1.5)
    model.logit_bias.data.fill_(-2.0)
  model.save_pretrained(HERE / name)
  with torch.no_grad():
    out = model(pixel_values=pixels, input_ids=ids, return_loss=True)
    large = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(2))
    resized = model.get_image_features(large, interpolate_pos_encoding=True).pooler_output
  np.savez_compressed(
      HERE / name / "io.npz", pixels=pixels.permute(0, 2, 3, 1).numpy(), ids=ids.numpy().astype(np.int32),
      zimg=out.image_embeds.numpy(), ztxt=out.text_embeds.numpy(), logits=out.logits_per_image.numpy(),
      loss=out.loss.numpy(), large=large.permute(0, 2, 3, 1).numpy(),
      zlarge=torch.nn.functional.normalize(resized, dim=-1).numpy(),
  )


def positions():
  x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))

  def up(size):
    y = torch.nn.functional.interpolate(x, size=size, mode="bicubic", align_corners=False)
    return y[0].permute(1, 2, 0).numpy()

  np.savez_compressed(HERE / "positions.npz", x=x[0].permute(1, 2, 0).numpy(), square=up((24, 24)), odd=up((17, 31)))


def resnet():
  """An open_clip CLIP with the fewest blocks of a ResNet; outputs in both modes, and the running statistics after training."""
  import open_clip  # which needs torchvision

  config = {
      "embed_dim": 12, "quick_gelu": True,
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
  (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}, indent=2) + "\n")
  safetensors.torch.save_file(model.state_dict(), folder / "open_clip_model.safetensors")
  pixels = torch.randint(-8, 9, (3, 3, 64, 64), generator=generator) / 4  # few values compress well
  ids = torch.tensor([[5, 6, 7, 39, 0, 0], [8, 39, 0, 0, 0, 0], [9, 38, 11, 12, 13, 39]])
  with torch.no_grad():
    zimg, ztxt = model.encode_image(pixels, normalize=True), model.encode_text(ids, normalize=True)
    ztrain = model.train().encode_image(pixels, normalize=True)
  statistics = {name: x.numpy() for name, x in model.named_buffers() if name.endswith(("running_mean", "running_var"))}
  np.savez_compressed(
      folder / "io.npz", pixels=pixels.permute(0, 2, 3, 1).numpy(), ids=ids.numpy().astype(np.int32), zimg=zimg.numpy(),
      ztxt=ztxt.numpy(), ztrain=ztrain.numpy(), **statistics,
  )


def main():
  torch.manual_seed(0)
  pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
  text = {**TOWER, "hidden_size": 12, "vocab_size": 40, "max_position_embeddings": 6}
  vision = {**TOWER, "image_size": 16, "patch_size": 8}
  siglip = transformers.SiglipConfig(
      text_config={**text, "projection_size": 16, "bos_token_id": None, "eos_token_id": 1}, vision_config=vision
  )
  ids = torch.tensor([[5, 6, 7, 1, 1, 1], [8, 1, 1, 1, 1, 1], [9, 39, 11, 12, 13, 1]])
  save("hf_siglip", transformers.SiglipModel(siglip), pixels, ids)
  clip = transformers.CLIPConfig(
      text_config={**text, "eos_token_id": 38, "bos_token_id": 37, "pad_token_id": 0}, vision_config=vision,
      projection_dim=12,
  )
  ids = torch.tensor([[5, 6, 7, 38, 0, 0], [8, 38, 38, 0, 0, 0], [9, 39, 11, 12, 13, 38]])
  save("hf_clip", transformers.CLIPModel(clip), pixels, ids)
  positions()
  resnet()


if __name__ == "__main__":
  main()
