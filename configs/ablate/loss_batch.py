"""Which loss at which batch size, at equal examples seen.

    siglax ablate --config configs/ablate/loss_batch.py --workdir studies/loss_batch

The paper (Zhai et al., SigLIP, arXiv 2303.15343; B/16, 3B examples of WebLI, ImageNet zero-shot):
sigmoid leads softmax by 3.8 points at batch 512 and by 2.0 at 8k; from 32k on
the two are equal (69.9), and larger batches gain nothing. On CC3M and CC12M (arXiv 2511.08417) they
differ by 0.3 to 0.7 points, and FastCLIP's global loss (arXiv 2407.01445) adds 2.5 to 2.9.
The learning rate is the same for all batch sizes, as in the paper, and all losses begin with the
same scale. A run of the shapes sees 32,000 examples; data=pictures,train=PATH,test=PATH takes your
own, and scale=full is for a cluster.
"""

from siglax import studies
from siglax.studies import bases


def get_study(scale: str = "small", data: str = "shapes", **paths):
  base, fields = bases.base(scale, data, **paths)
  settings = [{"loss.name": name} for name in ("sigmoid", "softmax", "focal", "hinge")]
  settings += [  # FastCLIP's v1 and v3
    {"loss.name": "global", "loss.temperature": kind, "loss.scale_init": round(1 / tau, 2)}
    for kind, tau in (("fixed", 0.03), ("learned", 0.07))
  ]
  sizes = (32, 128, 512, 2048) if scale == "small" else tuple(2**k for k in range(9, 17))
  return studies.Study(
    base,
    # Each loss has its own, or none.
    set={**fields, "loss.bias_init": None},
    settings=settings,
    grid={"batch_size": sizes},
    baseline={"loss.name": "sigmoid"},
  )
