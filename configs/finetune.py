"""Fine-tuning of any towers that siglax.load opens, on pairs of yours: a run, an export, a released
model.

    siglax train --config configs/finetune.py:init=runs/x,train=PATH,test=PATH --workdir runs/tuned

Towers, preprocessing, tokenizer and loss are those of the checkpoint; tokenizer=FILE gives one that
it lacks. The loss is that of pretraining, which is also the better one for classes, written as
captions (Goyal et al., FLYP, arXiv 2212.00638). Batch, lr and weight decay are those of FLYP's code
for a CLIP B/16 on ImageNet; b2 is CLIP's. A fresh Adam takes its first steps by the sign of one
gradient; so the first twentieth only collects its moments, at frozen weights (TuneCLIP, arXiv
2601.09859), and the next one warms the learning rate up. The hold costs its twentieth; whether it
gains anything was not seen here (docs/towers.md), and --config.optim.hold_steps=0 leaves it out.
Part of what the towers could do before comes back when the weights of before and after are averaged
(Wortsman et al., WiSE-FT, arXiv 2109.01903):

    siglax average runs/x runs/tuned --weight 0.5 --out runs/both
"""

from siglax import config as config_lib
from siglax.config import lookups
from siglax.config import recipes
from siglax.tower import origin


def get_config(
  init: str = "runs/siglip_b16",
  train: str = "train-*.parquet",
  test: str = "",
  tokenizer: str = "",
  epochs: float = 5,
  smoke: bool = False,
):
  c = origin.config_from(init, tokenizer)
  c.batch_size = 512
  config_lib.set_duration(c, "total", epochs=epochs)
  c.data = (lookups.spec_of(train),)
  if test:
    data = lookups.spec_of(test)
    c.eval.tasks = ({"kind": "retrieval", "name": "test", "data": data, "examples": 1000},)
  config_lib.set_duration(c, "eval.every", epochs=1)
  config_lib.set_duration(c, "checkpoint.every", epochs=1)
  c.optim.lr = 1e-5
  c.optim.b2 = 0.98
  c.optim.weight_decay = 0.1
  c.optim.clip_norm = 1.0
  config_lib.set_duration(c, "optim.hold", epochs=epochs / 20)
  config_lib.set_duration(c, "optim.warmup", epochs=epochs / 20)
  if smoke:
    recipes.shorten(c)
    config_lib.set_duration(c, "optim.hold", steps=1)
  return c
