"""β2 and spikes: how fast Adam's second moment forgets, at learning rates up to a high one.

    siglax ablate --config configs/ablate/beta2.py --workdir studies/beta2

The paper (SigLIP, arXiv 2303.15343, section 4.7): at large batches transformers
trained with β2 = 0.999 have spikes of the gradient's norm, which lead to spikes of the loss;
β2 = 0.95 removes them. Users of the peers see the same (open_clip #1125). So nothing clips the
gradient here: grad_norm and loss in each run's metrics.jsonl, and the curves of siglax report, show
the spikes. A run whose loss is no longer finite fails and is listed, which is a result too.
"""

from siglax import studies
from siglax.studies import bases


def get_study(scale: str = "small", data: str = "shapes", **paths):
  base, fields = bases.base(scale, data, **paths)
  fields["log.every_steps"] = 1  # a spike lasts a few steps
  if scale == "small":
    # The paper's: the quickstart's is Muon's, 0.8, with which AdamW at rate 0.01 takes almost one
    # percent of the weights a step.
    fields["optim.weight_decay"] = 1e-4
  rates = (3e-4, 1e-3, 3e-3, 1e-2) if scale == "small" else (1e-3, 3e-3)
  return studies.Study(
    base,
    set={**fields, "optim.name": "adamw", "optim.clip_norm": None},
    grid={"optim.b2": (0.9, 0.95, 0.99, 0.999), "optim.lr": rates},
    baseline={"optim.b2": 0.95},
  )
