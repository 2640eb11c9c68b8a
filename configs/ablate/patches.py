"""Patches left out and smaller pictures, at equal FLOPs.

    siglax ablate --config configs/ablate/patches.py --workdir studies/patches

The papers: FLIP (Li et al., arXiv 2212.00794) leaves out half of the patches, or three quarters,
and is ahead of whole pictures at equal time; a short end of the training that sees all patches
helps, and more so where more were left out. CLIPA (arXiv 2305.07017) finds smaller pictures a
better way to fewer tokens than random patches, and the more so the larger the model. At equal FLOPs
a run with fewer tokens sees more examples: docs/ablations.md says how its length follows. Every run
is evaluated on whole pictures of its own size. The last runs are in two stages: smaller pictures
for three quarters or nine tenths of the FLOPs, then whole ones from those parameters.
"""

from siglax import config as config_lib
from siglax import studies
from siglax.studies import bases


def get_study(scale: str = "small", data: str = "shapes", **paths):
  base, fields = bases.base(scale, data, **{"size": 48, **paths})
  config = config_lib.load(base)
  size, patch = config.image.size, config.model.image.patch
  sizes = dict.fromkeys(s - s % patch for s in (size, size * 2 // 3, size // 2))
  dropped = [
    {"image.size": size, "train.patch_drop": drop, "train.unmasked_steps": unmasked}
    for drop in (0.5, 0.75)
    for unmasked in ((0, 100) if scale == "small" else (0, 5000))
  ]
  whole = [{"image.size": s, "train.patch_drop": 0.0} for s in sizes]
  # Smaller pictures for most of the training, whole ones at its end.
  stages = [
    {**whole[0], "first.image.size": s, "first.share": share}
    for s in list(sizes)[1:]
    for share in (0.75, 0.9)
  ]
  return studies.Study(
    base,
    set=fields,
    settings=[*whole, *dropped, *stages],
    equal="flops",
    baseline={"image.size": size, "train.patch_drop": 0.0, "first.share": None},
  )
