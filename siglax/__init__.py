"""siglax: contrastive image-text training (SigLIP, CLIP) in JAX, from a laptop core to a TPU pod."""

import importlib

__version__ = "0.1.0"

# Loaded on first use: `import siglax` and `siglax --help` stay fast.
_LAZY = {"load": ("siglax.tower", "load"), "Tower": ("siglax.tower", "Tower"), "train": ("siglax.train", None)}
_MODULES = ("config", "data", "evals", "losses", "metrics", "models", "optim")


def __getattr__(name):
  if name in _LAZY:
    module, attribute = _LAZY[name]
    loaded = importlib.import_module(module)
    return getattr(loaded, attribute) if attribute else loaded
  if name in _MODULES:
    return importlib.import_module(f"siglax.{name}")
  raise AttributeError(f"module 'siglax' has no attribute {name!r}")
