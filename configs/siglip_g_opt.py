"""SigLIP 2's largest towers, g-opt/16 at 256 pixels with So400m's text tower, 1.87B parameters:
batch 32k, for 256 devices.

    siglax train --config configs/siglip_g_opt.py:train=PATH,tokenizer=gemma.model \\
      --workdir runs/siglip_g_opt

Source: Tschannen et al., arXiv 2502.14786, section 2.1: Adam, lr 1e-3, decoupled weight decay 1e-4
(0.1 here, see siglax/config/recipes.py), Gemma's tokenizer of 256k pieces, lower case. Of its
losses this is the sigmoid alone; captioning, self-distillation and masked prediction are not here.
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
  c.model.image.variant = "g-opt"
  c.model.text.variant = "So400m"
  c.model.text.vocab_size = 256_000
  c.text.lowercase, c.text.strip_punctuation = True, False
  c.optim.name = "adamw"
  c.mesh.fsdp = 16  # 30 GB of parameters, gradients and moments in float32
  return recipes.shrink(c) if smoke else c
