"""How much noise of images, texts and pairs a loss bears.

    siglax ablate --config configs/ablate/noise.py --workdir studies/noise

The paper (SigLIP, arXiv 2303.15343, section 4.10; 3.6B examples at batch 16k): with a growing
probability of random pixels, random tokens or shuffled pairs both losses fall, and the sigmoid loss
stays above the softmax loss in each case, by more where there is more noise. Here the shares are
exact, and the same examples are spoilt in every epoch (docs/data.md), so that a training may learn
them by heart; with the million shapes there are fewer than one epoch.
"""

from siglax import studies
from siglax.studies import bases

KINDS = {
  "images": ("images",),
  "texts": ("texts",),
  "pairs": ("pairs",),
  "all": ("images", "texts", "pairs"),
}


def get_study(scale: str = "small", data: str = "shapes", **paths):
  base, fields = bases.base(scale, data, **paths)
  shares = (0.1, 0.3, 0.5) if scale == "small" else (0.1, 0.2, 0.3, 0.4, 0.5)
  noises = [(names, share) for names in KINDS.values() for share in shares]
  spoilt = [{f"data.0.noise_{name}": share for name in names} for names, share in noises]
  return studies.Study(
    base,
    set=fields,
    settings=[{"data.0.noise_pairs": 0.0}, *spoilt],
    grid={"loss.name": ("sigmoid", "softmax")},
    baseline={"loss.name": "softmax"},
  )
