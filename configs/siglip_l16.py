"""SigLIP L/16 at 256 pixels, 652.2M parameters: batch 32k, for 64 devices.

    siglax train --config configs/siglip_l16.py:train=PATH,tokenizer=FILE.model \\
      --workdir runs/siglip_l16

Sources: siglax/config/recipes.py; towers as big_vision's released webli_en_l16_256 checkpoint.
"""

from siglax.config import recipes


def get_config(
  train: str = "train-*.parquet",
  tokenizer: str = "tokenizer.model",
  zero_shot: str = "",
  examples: int = 40_000_000_000,
  smoke: bool = False,
):
  c = recipes.siglip(train, tokenizer, zero_shot, examples)
  c.model.image.variant = c.model.text.variant = "L"
  return recipes.shrink(c) if smoke else c
