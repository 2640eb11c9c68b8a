"""What the studies in configs/ablate/ start from: small data on a laptop, or SigLIP B/16 on a
cluster.

In the package because a study file is loaded by its path, and cannot import the file next to it.
Paths of configs are those of the repository, where the commands of the docs are given.
"""

from __future__ import annotations

from typing import Any

# No room for what nobody looks at, in a study of a hundred runs.
LEAN = {"checkpoint.keep_latest": 1, "checkpoint.keep_one_in": None, "log.tensorboard": False}
DATA = ("shapes", "pictures")


def small(
  data: str, steps: int, size: int, train: str, test: str, epochs: float
) -> tuple[str, dict[str, Any]]:
  """(base, set) of a study on one machine.

  data: "shapes", the built-in pictures of `size` pixels, for `steps` of the quickstart's batch of
  64, few enough that a better setting shows; or "pictures", the data of train and test (CIFAR-10
  with captions, Flickr, your own) for so many epochs of configs/cifar10_captions.py, a sixth of
  them for the warmup.
  """
  if data not in DATA:
    raise ValueError(f"data={data!r} is unknown; known are {', '.join(DATA)}")
  if data == "shapes":
    return f"configs/quickstart.py:steps={steps},size={size}", dict(LEAN)
  base = f"configs/cifar10_captions.py:train={train},test={test},epochs={epochs}"
  return base, {**LEAN, "eval.every_epochs": epochs, "optim.warmup_epochs": epochs / 6}


def full(train: str, tokenizer: str, zero_shot: str, examples: int) -> tuple[str, dict[str, Any]]:
  """(base, set) of a study on a cluster: configs/siglip_b16.py, for so many examples."""
  words = [f"train={train}", f"tokenizer={tokenizer}", f"examples={examples}"]
  words += [f"zero_shot={zero_shot}"] if zero_shot else []
  return f"configs/siglip_b16.py:{','.join(words)}", {
    **LEAN,
    # The length of the study's runs, not of the released models'.
    "checkpoint.keep_every_steps": None,
  }


def base(
  scale: str,
  data: str = "shapes",
  *,
  steps: int = 500,
  size: int = 32,
  epochs: float = 6,
  train: str = "train-*.parquet",
  test: str = "test.parquet",
  tokenizer: str = "tokenizer.model",
  zero_shot: str = "",
  examples: int = 3_000_000_000,
) -> tuple[str, dict[str, Any]]:
  """`small` or `full`, by the scale of a study."""
  if scale not in ("small", "full"):
    raise ValueError(f"scale={scale!r} is unknown; known are small, full")
  if scale == "full":
    return full(train, tokenizer, zero_shot, examples)
  return small(data, steps, size, train, test, epochs)
