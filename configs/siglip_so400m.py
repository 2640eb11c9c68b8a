"""SigLIP So400m/14 at 224 pixels, 877.4M parameters: batch 32k, for 128 devices.

    siglax train --config configs/siglip_so400m.py:train=PATH,tokenizer=FILE.model \\
      --workdir runs/siglip_so400m

Sources: siglax/config/recipes.py; towers as big_vision's released webli_en_so400m_224 checkpoint,
which reads 16 tokens. The shape is of Alabdulmohsin et al., arXiv 2305.13035.
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
  c.model.image.variant = c.model.text.variant = "So400m"
  c.model.image.patch = 14
  c.image.size = 224
  c.text.length = 16
  c.mesh.fsdp = 4
  return recipes.shrink(c) if smoke else c
