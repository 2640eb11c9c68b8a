"""CLIP RN50 at 224 pixels, 102.0M parameters: softmax loss, batch 32,768, 32 epochs, for 32
devices.

    siglax train --config configs/clip_rn50.py:train=PATH,tokenizer=FILE.model \\
      --workdir runs/clip_rn50

Batch norm takes its statistics of the whole batch, over all devices. RN101:
--config.model.image.variant=RN101.
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
  c = recipes.clip(train, tokenizer, zero_shot, epochs, image="RN50")
  return recipes.shrink(c) if smoke else c
