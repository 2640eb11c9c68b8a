"""CLIP ViT-B/32 at 224 pixels, 151.3M parameters: softmax loss, batch 32,768, 32 epochs, for 32
devices.

    siglax train --config configs/clip_b32.py:train=PATH,tokenizer=FILE.model \\
      --workdir runs/clip_b32

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
  c.model.image.patch = 32
  return recipes.shrink(c) if smoke else c
