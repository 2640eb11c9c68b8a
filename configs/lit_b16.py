"""SigLiT B/16: the text tower learns to read a frozen image tower, taken from a run that has one.

    siglax train \\
      --config configs/lit_b16.py:init=runs/siglip_b16:img,train=PATH,tokenizer=FILE.model \\
      --workdir runs/lit_b16

or, without running the image tower in every step, from embeddings that it made once
(docs/towers.md):

    siglax embed --from runs/siglip_b16:img --data PATH --out embedded.array_record
    siglax train \\
      --config configs/lit_b16.py:init=runs/siglip_b16:img,embedded=embedded.array_record,… \\
      --workdir runs/lit_b16

Sources: Zhai et al. (LiT), arXiv 2111.07991; with the sigmoid loss arXiv 2303.15343, section 4.1;
freezing and a warmup of 3% as in big_vision's configs/proj/image_text/siglip_lit_coco.py. ":img"
takes the image tower alone, of whatever siglax.load opens; the text tower starts fresh. Frozen
parameters have no gradient, no optimizer state and no weight decay. smoke=True starts from a smoke
run of configs/siglip_b16.py, init=runs/smoke:img.
"""

from siglax import config as config_lib
from siglax.config import recipes


def get_config(
  init: str = "runs/siglip_b16:img",
  train: str = "train-*.parquet",
  tokenizer: str = "tokenizer.model",
  zero_shot: str = "",
  examples: int = 900_000_000,
  smoke: bool = False,
  embedded: str = "",
):
  c = recipes.siglip(train, tokenizer, zero_shot, examples)
  c.model.init_from = init
  if embedded:
    c.data = ({"source": "embeddings", "path": embedded},)
  c.optim.lr_multipliers = (("image/.*", None), (".*", 1.0))
  c.optim.name = "adamw"
  config_lib.set_duration(c, "optim.warmup", examples=examples * 3 // 100)
  return recipes.shrink(c) if smoke else c
