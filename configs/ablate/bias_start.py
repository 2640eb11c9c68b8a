"""Where scale and bias begin, an absolute or a relative bias, a trained or a locked image tower.

    siglax ablate --config configs/ablate/bias_start.py --workdir studies/bias_start
    siglax ablate --config configs/ablate/bias_start.py:init=runs/x:img --workdir studies/bias_lit

The paper (SigLIP, arXiv 2303.15343, section 4.9; B/16, batch 8k, 900M examples, ImageNet
zero-shot): scale 10 and bias −10 63.0; without a bias 62.0; bias 0 61.7; scale 1 and bias −10 61.0;
scale 1 and bias 0 53.7: a bias near the prior log(1 / batch size) keeps the many negatives from
ruling the first steps. None is that prior here. The relative bias (arXiv 2509.18552), logits t·(s −
r), keeps its margin when t grows, and helps most with a locked tower: init=RUN:img begins from that
image tower, frozen, as LiT does.
"""

from siglax import studies
from siglax.studies import bases

STARTS = ((10.0, None), (10.0, -10.0), (10.0, 0.0), (1.0, -10.0), (1.0, 0.0))
# The bias stays 0: there is none.
NO_BIAS = (("bias", None),)


def get_study(scale: str = "small", data: str = "shapes", init: str = "", **paths):
  base, fields = bases.base(scale, data, **paths)
  frozen = ()
  if init:
    fields["model.init_from"], frozen = init, (("image/.*", None),)
  trained = {"loss.relative_bias": False, "optim.lr_multipliers": (*frozen, (".*", 1.0))}
  settings = [
    {"loss.scale_init": scale_init, "loss.bias_init": bias_init, **trained}
    for scale_init, bias_init in STARTS
  ]
  settings += [{**setting, "loss.relative_bias": True} for setting in settings[:2]]
  none = {"optim.lr_multipliers": (*frozen, *NO_BIAS, (".*", 1.0))}
  settings.append({**trained, "loss.scale_init": 10.0, "loss.bias_init": 0.0, **none})
  return studies.Study(
    base,
    set={**fields, "loss.name": "sigmoid"},
    settings=settings,
    baseline=settings[0],
  )
