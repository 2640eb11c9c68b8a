"""SigLIP B/16 at 384 pixels: the second stage of configs/siglip_b16.py, which takes its towers to
576 patches.

    siglax train \\
      --config configs/siglip_b16_384.py:init=runs/siglip_b16,train=PATH,tokenizer=FILE.model \\
      --workdir runs/siglip_b16_384

The position embeddings are resized (docs/towers.md). As SigLIP 2 makes its higher resolutions: the
last 5% of the training again from a checkpoint, at the new length (Tschannen et al., arXiv
2502.14786, section 2.5); here from the end of the first stage, at a tenth of its learning rate.
In small, 4 steps of each stage:

    siglax train --config configs/siglip_b16.py:smoke=True --workdir runs/smoke
    siglax train --config configs/siglip_b16_384.py:smoke=True,init=runs/smoke --workdir runs/smoke2
"""

from siglax import config as config_lib
from siglax.config import recipes


def get_config(
  init: str = "runs/siglip_b16",
  train: str = "train-*.parquet",
  tokenizer: str = "tokenizer.model",
  zero_shot: str = "",
  examples: int = 2_000_000_000,
  smoke: bool = False,
):
  c = recipes.siglip(train, tokenizer, zero_shot, examples)
  c.model.init_from = init
  c.image.size = 384
  c.optim.lr = 1e-4
  c.optim.weight_decay = 1e-4 / c.optim.lr
  config_lib.set_duration(c, "optim.warmup", examples=examples // 50)
  return recipes.shrink(c, rows=3) if smoke else c
