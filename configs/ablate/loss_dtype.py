"""The loss in float32 or in bfloat16, of towers in bfloat16; and all in float32.

    siglax ablate --config configs/ablate/loss_dtype.py --workdir studies/loss_dtype

config.loss.dtype=bfloat16 rounds the embeddings where they enter the loss: they travel in half the
bytes, and their products are as fast as those of the towers; sums, logits and exponentials stay
float32. The paper on mixed precision (Micikevicius et al., arXiv 1710.03740, section 3.3) trains
with products in half precision and sums in float32, at the accuracy of float32. docs/losses.md has
the errors of a single loss; here is what is left of them after a training. The small scale has runs
in float32 throughout, too.
"""

from siglax import studies
from siglax.studies import bases


def get_study(scale: str = "small", data: str = "shapes", **paths):
  base, fields = bases.base(scale, data, **paths)
  types = [("bfloat16", "float32"), ("bfloat16", "bfloat16")]
  if scale == "small":
    types.append(("float32", "float32"))
  return studies.Study(
    base,
    # Each loss has its own, or none.
    set={**fields, "loss.bias_init": None},
    settings=[{"train.dtype": towers, "loss.dtype": loss} for towers, loss in types],
    grid={"loss.name": ("sigmoid", "softmax")},
    baseline={"train.dtype": "bfloat16", "loss.dtype": "float32"},
  )
