"""siglax: contrastive image-text training (SigLIP, CLIP) in JAX, from a laptop to a TPU pod."""

import importlib

# Loaded on first use: `import siglax` and `siglax --help` stay fast.
_LAZY = {"load": "siglax.tower", "Tower": "siglax.tower", "train": "siglax.training.loop"}
_MODULES = ("config", "data", "evals", "losses", "models")


def __getattr__(name):
  if name in _LAZY:
    return getattr(importlib.import_module(_LAZY[name]), name)
  if name == "__version__":
    return importlib.import_module("siglax.config.versions").SIGLAX
  if name in _MODULES:
    return importlib.import_module(f"siglax.{name}")
  raise AttributeError(f"module 'siglax' has no attribute {name!r}")
