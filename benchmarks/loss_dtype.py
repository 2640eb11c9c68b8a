"""What config.loss.dtype=bfloat16 does to the gradients of a loss.
configs/ablate/loss_dtype.py is a study of what it does to trained models.

    python benchmarks/loss_dtype.py

Of the losses that may be computed in bfloat16, at the scales 10 and 100, the error of the value, of
the gradients of the embeddings (relative to their largest element, and to their norm) and of the
scale, against the same in float32, the largest of five batches of 256 unit embeddings of width 256
near a subspace of 6 dimensions, where negatives are hard. "embeddings of bfloat16 towers" is what
the towers' own rounding does to the same gradients: the embeddings are computed with activations of
bfloat16 and of float32, and the loss in float32.
"""

import argparse
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np

from siglax import config as config_lib
from siglax import losses
from siglax import models

B, WIDTH, RANK, BATCHES = 256, 256, 6, 5
QUICKSTART = pathlib.Path(__file__).parent.parent / "configs" / "quickstart.py"


def embeddings(seed: int):
  """Unit images and texts, which lean towards their images."""
  rng = np.random.default_rng(seed)
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  inside = rng.normal(size=(RANK, WIDTH))
  draw = lambda: unit(rng.normal(size=(B, RANK)) @ inside) + 0.1 * unit(rng.normal(size=(B, WIDTH)))
  zimg = unit(draw())
  return jnp.float32(zimg), jnp.float32(unit(zimg + draw()))


def compute(name: str, dtype: str):
  """(zimg, ztxt, scale) → the loss and its gradients, on the ring's program of one device."""
  config = config_lib.default().loss
  config.update(name=name, dtype=dtype, impl="ring")
  loss = losses.make(config)
  of = lambda zimg, ztxt, scale: loss(zimg, ztxt, scale, -5.0)
  return jax.jit(jax.value_and_grad(of, (0, 1, 2)))


def errors(got, want) -> list[float]:
  """Of the value, of the larger of both gradients of embeddings by its largest element and by its
  norm, of the gradient of the scale.
  """
  (value, (*dz, dscale)), (true_value, (*true_dz, true_dscale)) = got, want
  largest = max(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in zip(dz, true_dz))
  norm = max(float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b)) for a, b in zip(dz, true_dz))
  # The scale of the global loss is fixed, its gradient 0.
  relative = lambda a, b: 0.0 if a == b else abs(float(a) / float(b) - 1)
  return [relative(value, true_value), largest, norm, relative(dscale, true_dscale)]


def gradients():
  """Prints the table."""
  heads = ("value", "gradient, largest", "gradient, norm", "gradient of the scale")
  print(f"| loss | scale | rounded | {' | '.join(heads)} |\n|---|---|---|{'---|' * len(heads)}")
  rounded = _towers()
  batches = [embeddings(seed) for seed in range(BATCHES)]
  for name, loss in losses.LOSSES.items():
    options = loss.options(config_lib.default().loss)
    if loss.needs_float32(**options):
      continue
    exact, half = compute(name, "float32"), compute(name, "bfloat16")
    for scale in (10.0, 100.0):
      of_loss = [errors(half(*z, scale), exact(*z, scale)) for z in batches]
      _row(name, scale, "loss.dtype", np.max(of_loss, axis=0))
      if name in ("sigmoid", "softmax"):
        of_towers = errors(exact(*rounded["bfloat16"], scale), exact(*rounded["float32"], scale))
        _row(name, scale, "embeddings of bfloat16 towers", of_towers)


def _row(name, scale, what, values):
  cells = " | ".join(f"{value:.1e}" for value in values)
  print(f"| {name} | {scale:g} | {what} | {cells} |", flush=True)


def _towers() -> dict:
  """The embeddings of fresh towers of the quickstart's size, by the dtype of the activations."""
  found = {}
  for dtype in ("float32", "bfloat16"):
    config = runpy.run_path(str(QUICKSTART))["get_config"](steps=1)
    config.train.dtype = dtype
    config.model.text.vocab_size, config.model.text.eos_id = 128, 1
    model = models.build(config.model)
    params = model.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (B, config.image.size, config.image.size, 3), np.uint8)
    tokens = rng.integers(2, 128, (B, config.text.length), np.int32)
    found[dtype] = (
      jax.jit(model.embed_image)(params, images),
      jax.jit(model.embed_text)(params, tokens),
    )
  return found


def main():
  argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  ).parse_args()
  print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}\n")
  gradients()


if __name__ == "__main__":
  main()
