"""SigLIP B/16 at 256 pixels, 203.2M parameters: batch 32k, for 32 TPU v4 chips or what holds as
much.

    siglax train --config configs/siglip_b16.py:train=PATH,tokenizer=FILE.model \\
      --workdir runs/siglip_b16

Sources: siglax/config/recipes.py; towers as big_vision's released webli_en_b16_256 checkpoint. At
32k on 32 chips a chip holds 1024 examples.
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
  return recipes.shrink(c) if smoke else c
