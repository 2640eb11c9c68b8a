"""What the published recipes in configs/ share: SigLIP's and CLIP's, and how to shrink one to
seconds.

In the package because a config file is loaded by its path, from any folder, and cannot import the
file next to it.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from siglax import config as config_lib
from siglax.config import lookups

# OpenAI's pixel statistics, from the preprocessing of the released models.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
RESNETS = ("RN50", "RN101")  # CLIP's image towers that are no transformers


def siglip(
  train: str, tokenizer: str, zero_shot: str = "", examples: int = 40_000_000_000
) -> ConfigDict:
  """SigLIP with B towers at 256 pixels: 256 patches and 64 tokens.

  train: files or a folder (docs/data.md). tokenizer: as of config.text; the released models' has
  32k pieces and was trained on C4.
  zero_shot: data with labels and class names to evaluate on; none when empty.
  Sources: Zhai et al., arXiv 2303.15343, section 4: batch 32k, Adafactor with b2 0.95 against
  spikes at large batches, lr 1e-3, weight decay 1e-4, cosine, scale 10 and bias −10 at the start.
  Tschannen et al. (SigLIP 2), arXiv 2502.14786, section 2.1: clip norm 1, 20k steps of warmup (here
  a tenth of the run, if that is less), 40B examples. The first paper's 73.4% (ImageNet zero-shot,
  B/16, 224 pixels, 16 tokens) took 9B examples. Weight decay: big_vision's is not multiplied by the
  learning rate, ours is, as optax's: its 1e-4 at lr 1e-3 is 0.1 here.
  """
  c = config_lib.default()
  c.batch_size = 32_768
  config_lib.set_duration(c, "total", examples=examples)
  _data(c, train, zero_shot)
  c.image.size = 256
  c.text.tokenizer = tokenizer
  c.text.length = 64
  c.model.image.variant = c.model.text.variant = "B"
  c.model.text.vocab_size = 32_000
  c.loss.scale_init = 10.0
  c.loss.bias_init = -10.0
  c.optim.name = "adafactor"
  c.optim.lr = 1e-3
  c.optim.b2 = 0.95
  c.optim.clip_norm = 1.0
  c.optim.weight_decay = 1e-4 / c.optim.lr
  config_lib.set_duration(c, "optim.warmup", steps=min(20_000, examples // c.batch_size // 10))
  return _at_scale(c)


def clip(
  train: str, tokenizer: str, zero_shot: str = "", epochs: float = 32, image: str = "B"
) -> ConfigDict:
  """OpenAI's CLIP with a ViT-B or ResNet image tower at 224 pixels.

  image: B, RN50 or RN101.
  train, tokenizer, zero_shot: as for `siglip`; CLIP's own tokenizer is a byte-pair encoding of
  49,408 tokens, the tokenizer.json of its folders; another of up to that size may take its place.
  Source: Radford et al., arXiv 2103.00020, section 2.5, tables 18 to 20: batch 32,768, 32 epochs,
  AdamW, weight decay 0.2 on all but gains and biases (times the learning rate, as here), 2000 steps
  of warmup, cosine, scale 1/0.07 capped at 100. The random crop is OpenCLIP's (at least 0.9 of the
  area); the paper crops squares. The towers are OpenAI's.
  """
  c = config_lib.default()
  c.batch_size = 32_768
  config_lib.set_duration(c, "total", epochs=epochs)
  _data(c, train, zero_shot)
  c.image.size = 224
  c.image.mean, c.image.std = CLIP_MEAN, CLIP_STD
  c.image.resize, c.image.fit = "bicubic", "crop"
  c.image.crop_min_area = 0.9
  c.text.tokenizer = tokenizer
  c.text.length = 77
  c.text.strip_punctuation = False
  c.model.image.variant = image
  text = c.model.text
  text.width, text.depth, text.heads, text.mlp_dim = 512, 12, 8, 2048
  text.vocab_size = 49_408
  text.causal = True
  text.pool = "eos"
  if image in RESNETS:
    transformers = (text,)
    c.optim.b2, c.optim.eps = 0.999, 1e-8
  else:
    transformers = (c.model.image, text)
    c.model.embed_dim = 512
    c.model.image.pool = "cls"
    c.model.image.pre_norm, c.model.image.patch_bias = True, False
    c.optim.b2, c.optim.eps = 0.98, 1e-6
  for tower in transformers:
    tower.norm_eps, tower.activation, tower.head = 1e-5, "quick_gelu", "linear_no_bias"
  c.loss.name = "softmax"
  c.loss.scale_init = 1 / 0.07
  c.loss.scale_max = 100.0
  c.optim.lr = 5e-4
  c.optim.weight_decay = 0.2
  c.optim.decay = ((".*/(kernel|embedding|pos_embedding)", 1.0), (".*", 0.0))
  config_lib.set_duration(c, "optim.warmup", steps=2000)
  return _at_scale(c)


def shorten(c: ConfigDict) -> ConfigDict:
  """A recipe whose training takes 4 steps of 16 built-in pictures."""
  c.batch_size = c.eval.batch_size = 16
  config_lib.set_duration(c, "total", steps=4)
  config_lib.set_duration(c, "optim.warmup", steps=1)
  config_lib.set_duration(c, "log.every", steps=1)
  config_lib.set_duration(c, "checkpoint.every", steps=2)
  c.data = ({"source": "shapes", "examples": 64, "image_size": c.image.size},)
  c.eval.tasks = ()
  c.loader.threads = 1
  return c


def shrink(c: ConfigDict, rows: int = 2) -> ConfigDict:
  """A recipe made to run in seconds on one core: `shorten`, through towers of width 16 (a ResNet's
  8) and pictures of `rows` rows of patches.

  What is left of the recipe is its kind: loss, pooling, patch size, optimizer, freezing, dtype, and
  what it starts from, which is to be as small.
  """
  is_resnet = c.model.image.variant in RESNETS
  c.image.size = 64 if is_resnet else rows * c.model.image.patch
  shorten(c)
  c.text.tokenizer = "shapes"
  c.text.length = 12
  c.model.text.vocab_size = None
  for tower in (c.model.text,) if is_resnet else (c.model.image, c.model.text):
    tower.width, tower.depth, tower.heads, tower.mlp_dim = 16, 1, 2, 32
  if is_resnet:
    c.model.image.width = 8
  if c.model.embed_dim:
    c.model.embed_dim = 8
  c.loss.bias_init = None  # the matched prior of a batch of 16
  c.mesh.fsdp = 1
  return c


def _data(c, train, zero_shot):
  c.data = (lookups.spec_of(train),)
  if zero_shot:
    data = lookups.spec_of(zero_shot)
    c.eval.tasks = ({"kind": "zero_shot", "name": "zero_shot", "data": data},)


def _at_scale(c) -> ConfigDict:
  """What thousands of examples a device need: bfloat16, blocks computed again in the backward pass,
  rare reports.
  """
  c.train.dtype = "bfloat16"
  c.train.remat.image = c.train.remat.text = "full"
  c.eval.batch_size = 2048
  config_lib.set_duration(c, "eval.every", steps=5000)
  config_lib.set_duration(c, "checkpoint.every", steps=1000)
  c.checkpoint.keep_every_steps = 50_000
  return c
