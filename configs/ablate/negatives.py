"""How many negatives a pair needs, and which: random, hardest or easiest.

    siglax ablate --config configs/ablate/negatives.py --workdir studies/negatives

The paper (SigLIP, arXiv 2303.15343, section 4.8; batch 16k): that a pair meets thousands of
negatives does no harm. With fewer random ones the result falls; the easiest alone teach almost
nothing; the hardest alone nearly keep the result, and improve it where the training is so much
longer that as many pairs are seen. The bias that is learned is lower, the more negatives there are.
This study is at equal examples; --config.amount makes its runs longer. A batch of 128 has 127
negatives a pair, and that many are all of them.
"""

from siglax import studies
from siglax.studies import bases


def get_study(scale: str = "small", data: str = "shapes", **paths):
  base, fields = bases.base(scale, data, **paths)
  counts = (1.0, 4.0, 16.0, 64.0) if scale == "small" else (1.6, 16.0, 164.0, 1638.0)
  masked = [
    {"loss.name": "sigmoid_masked", "loss.kept_negatives": kept, "loss.negatives_per_pair": count}
    for kept in ("random", "hardest", "easiest")
    for count in counts
  ]
  return studies.Study(
    base,
    set={**fields, "batch_size": 16_384 if scale == "full" else 128},
    settings=[{"loss.name": "sigmoid"}, *masked],
    baseline={"loss.name": "sigmoid"},
  )
