"""CLIP ViT-B/16 at 224 pixels, 149.6M parameters: softmax loss, batch 32,768, 32 epochs, for 32
devices.

    siglax train --config configs/clip_b16.py:train=PATH,tokenizer=FILE.model \\
      --workdir runs/clip_b16

Sources and differences: siglax/config/recipes.py.
"""

from siglax.config import recipes


def get_config(
  train: str = "train-*.parquet",
  tokenizer: str = "tokenizer.model",
  zero_shot: str = "",
  epochs: float = 32,
  smoke: bool = False,
):
  c = recipes.clip(train, tokenizer, zero_shot, epochs)
  c.model.image.patch = 16
  return recipes.shrink(c) if smoke else c
