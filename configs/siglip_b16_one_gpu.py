"""SigLIP B/16 with its batch of 32k on one GPU: embedded 512 examples at a time, one loss over all
of them, exact.

    siglax train --config configs/siglip_b16_one_gpu.py:train=PATH,tokenizer=FILE.model \\
      --workdir runs/siglip_b16

The recipe of configs/siglip_b16.py with config.train.microbatch. Each example is embedded twice:
once for the loss, once more for its gradient. examples is what one GPU can do; siglip_b16's 40B are
for many.
"""

from siglax.config import recipes


def get_config(
  train: str = "train-*.parquet",
  tokenizer: str = "tokenizer.model",
  zero_shot: str = "",
  examples: int = 100_000_000,
  smoke: bool = False,
):
  c = recipes.siglip(train, tokenizer, zero_shot, examples)
  c.train.remat.image = c.train.remat.text = "dots"
  c.eval.batch_size = 512
  if smoke:
    recipes.shrink(c)
  c.train.microbatch = 2 if smoke else 512
  return c
