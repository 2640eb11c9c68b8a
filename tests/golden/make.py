"""Makes the files of this folder with torch 2.13.0 and transformers 5.x: `python tests/golden/make.py`.

Tiny SiglipModel and CLIPModel folders with all parameters random, their outputs, and torch's bicubic interpolation.
"""

import pathlib

import numpy as np
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


if __name__ == "__main__":
  main()
