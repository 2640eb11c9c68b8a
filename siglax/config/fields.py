"""Every field of a run, its default and its comment; siglax/config/checks.py checks them."""

from __future__ import annotations

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from siglax.config import durations
from siglax.config.values import get

# A run may be resumed with other values of these: they change its speed and its reports, not its
# losses.
FREE_ON_RESUME = (
  "loader",
  "mesh",
  "eval",
  "checkpoint",
  "log",
  "profile",
  "loss.impl",
  "loss.tile",
  "loss.check_embeddings",
  "train.remat",
  "train.microbatch",
  "model.image.remat",
  "model.text.remat",
  "optim.skip_nonfinite",
)
# So may this field of each data spec: a run that too many broken examples stopped goes on with a
# higher limit.
FREE_IN_SPECS = ".max_bad_fraction"
# Fields that take the value of another one, which is the one to set.
FOLLOWS = {
  "model.scale_init": "loss.scale_init",
  "model.bias_init": "loss.bias_init",
  "model.image.image_size": "image.size",
  "model.image.mean": "image.mean",
  "model.image.std": "image.std",
  "model.image.dtype": "train.dtype",
  "model.image.patch_drop": "train.patch_drop",
  "model.image.remat": "train.remat.image",
  "model.text.length": "text.length",
  "model.text.dtype": "train.dtype",
  "model.text.remat": "train.remat.text",
}


def default() -> ConfigDict:
  """The whole config with every default. Units: examples are image-text pairs, sizes are pixels."""
  from siglax import losses  # which takes the declaration of a field from this package
  from siglax import models
  from siglax.training.optimizers import OPTIMIZERS
  from siglax.training.schedules import SCHEDULES

  c = ConfigDict()
  c.seed = 0  # seeds the parameters, the data order, the augmentation and dropout
  c.batch_size = 256  # examples a step over all devices and processes
  durations.add_duration(
    c, "total"
  )  # length of training: one of total_steps, total_examples, total_epochs

  # Training data: a tuple of specs, mixed by weight. A spec names its source and the source's
  # arguments (siglax/data/sources.py), and may set weight (share of the mix, default: its number of
  # examples) and max_bad_fraction (share of undecodable or caption-less examples above which the
  # run stops, default 0.01).
  c.data = ()

  c.loader = ConfigDict()
  c.loader.threads = 2  # threads that read and decode in each process (or in each worker)
  c.loader.workers = (
    0  # worker processes that read and decode; 0 keeps it in threads of this process
  )
  c.loader.buffer = 2  # batches read ahead

  c.image = ConfigDict()
  c.image.size = 64  # height and width after preprocessing
  c.image.max_pixels = 2**25  # width × height of a file; larger ones are broken, and never decoded
  c.image.max_bytes = 2**26  # of an encoded file; larger ones are broken, and never read
  c.image.mean = (0.5, 0.5, 0.5)  # subtracted on the device, of pixels in 0..1
  c.image.std = (0.5, 0.5, 0.5)  # divided by on the device
  c.image.resize = "bilinear"  # antialiased resampler of evaluation and export: bilinear | bicubic
  # of evaluation and export: squash both sides | crop: shorter side, then its centre (CLIP)
  c.image.fit = "squash"
  c.image.crop_min_area = (
    1.0  # random resized crop keeps at least this share of the area; 1 resizes without a crop
  )
  c.image.crop_max_aspect = 4 / 3  # random resized crop's widest aspect ratio (and its inverse)
  c.image.pad = (
    0  # pixels of reflected border for a random shift after the resize; 0 shifts nothing
  )
  c.image.flip = False  # random left-right flip; leave off where captions name sides

  c.text = ConfigDict()
  c.text.tokenizer = (
    "shapes"  # sentencepiece .model file, or "shapes" for the built-in dataset's own
  )
  c.text.length = 64  # tokens, padded and truncated to it
  c.text.lowercase = True  # lower-case before tokenizing
  c.text.strip_punctuation = (
    True  # remove ASCII punctuation before tokenizing, as SigLIP's canonicalization does
  )
  # what fills a text up: the end token, as in SigLIP | pad: the tokenizer's padding token (SigLIP
  # 2)
  c.text.pad = "eos"

  c.loss = ConfigDict()
  c.loss.name = "sigmoid"  # a name in losses.LOSSES (docs/losses.md)
  # auto | dense: B×B logits | ring: texts go round the devices, flat memory | gather: all texts at
  # once
  c.loss.impl = "auto"
  c.loss.tile = placeholder(
    int
  )  # examples per tile of ring and gather; None chooses by batch and width
  c.loss.positives = (
    "pair"  # pair: an image's own text | label: every text of the same label (UniCL)
  )
  _add_own(c.loss, "config.loss", losses.LOSSES)
  c.loss.scale_init = 10.0  # exp(t') at the start; CLIP's is 1 / 0.07
  # Bias at the start; None is the matched prior: log(1 / batch_size), or the log-odds of a match by
  # label in the data.
  c.loss.bias_init = placeholder(float)
  c.loss.scale_max = placeholder(
    float
  )  # cap of the scale; None takes the loss's own, if it has one
  c.loss.lr_multiplier = (
    1.0  # of the learning rate of scale and bias, on top of optim.lr_multipliers
  )
  c.loss.check_embeddings = (
    False  # stop with the tower's name when embeddings are not finite or not of unit length
  )

  c.train = ConfigDict()
  c.train.dtype = (
    "float32"  # of activations: float32 | bfloat16; parameters and reductions stay float32
  )
  # What the backward pass recomputes, by tower: none | dots: all but matrix products and
  # convolutions | full
  c.train.remat = ConfigDict()
  c.train.remat.image = "none"
  c.train.remat.text = "none"
  # Examples a device embeds at a time, exact (siglax/training/step.py); None all at once. Not for a
  # ResNet that trains.
  c.train.microbatch = placeholder(int)
  c.train.patch_drop = (
    0.0  # share of the patches that training leaves out, at random for each picture (FLIP)
  )
  durations.add_duration(
    c.train, "unmasked", steps=0
  )  # end of the training that sees all patches all the same
  c.train.ema = placeholder(
    float
  )  # decay of an average of the parameters, which is evaluated and exported, e.g. 0.999

  c.model = ConfigDict()
  # Width of the shared space; None takes the image tower's width, of a ResNet the published 1024
  # (RN50) or 512 (RN101).
  c.model.embed_dim = placeholder(int)
  # Parameters to start from: a run folder, an export, a Hugging Face folder, a big_vision .npz;
  # ":img" or ":txt" at the end takes one tower. Position embeddings are resized to this image.size.
  c.model.init_from = placeholder(str)

  c.model.image = ConfigDict()
  # Ti | S | B | L | So400m | g-opt: sets width, depth, heads and mlp_dim | RN50 | RN101: CLIP's
  # ResNets, which of the fields below have width alone, that of the stem (docs/towers.md).
  c.model.image.variant = "S"
  c.model.image.width = placeholder(int)  # overrides the variant's, as do the next three
  c.model.image.depth = placeholder(int)
  c.model.image.heads = placeholder(int)
  c.model.image.mlp_dim = placeholder(int)
  c.model.image.patch = 16  # patch size in pixels; divides image.size
  # patch: one linear patch embedding | conv: 3×3 convolutions of stride 2 up to the patch size
  c.model.image.stem = "patch"
  c.model.image.position = "learned"  # learned | sincos
  c.model.image.pool = "map"  # map: attention head with one probe | mean | cls
  c.model.image.patch_bias = True  # CLIP's patch embedding has no bias
  c.model.image.pre_norm = False  # a layer norm before the encoder (CLIP)
  c.model.image.norm_eps = 1e-6  # of the layer norms; CLIP's is 1e-5
  c.model.image.activation = "gelu_tanh"  # gelu_tanh | gelu | quick_gelu (OpenAI's CLIP)
  # map to embed_dim: auto, linear where the widths differ | linear | linear_no_bias (CLIP)
  c.model.image.head = "auto"
  c.model.image.dropout = 0.0  # after attention and MLP
  c.model.image.lora_rank = (
    0  # adapters on the attention of the blocks (LoRA); train them alone by optim.lr_multipliers
  )
  c.model.image.scan = True  # one compiled block for all layers: parameters stacked over depth

  c.model.text = ConfigDict()
  c.model.text.variant = "S"
  c.model.text.width = placeholder(int)
  c.model.text.depth = placeholder(int)
  c.model.text.heads = placeholder(int)
  c.model.text.mlp_dim = placeholder(int)
  c.model.text.vocab_size = placeholder(int)  # None takes the tokenizer's
  c.model.text.eos_id = placeholder(
    int
  )  # token that ends and pads a text; None takes the tokenizer's
  c.model.text.causal = False  # attend to earlier tokens only
  # last position | mean | map | eos: first end token | argmax: highest token (CLIP's first)
  c.model.text.pool = "last"
  c.model.text.norm_eps = 1e-6
  c.model.text.activation = "gelu_tanh"
  c.model.text.head = "linear"  # linear | linear_no_bias (CLIP)
  c.model.text.dropout = 0.0
  c.model.text.lora_rank = 0
  c.model.text.scan = True

  c.optim = ConfigDict()
  c.optim.name = "adamw"  # adamw | adafactor | lion
  c.optim.lr = 1e-3  # peak learning rate
  c.optim.schedule = "cosine"  # cosine | rsqrt | linear | constant, after the warmup
  durations.add_duration(c.optim, "warmup", steps=0)  # linear from 0
  durations.add_duration(
    c.optim, "cooldown", steps=0
  )  # linear to 0 at the end, for rsqrt and constant
  c.optim.rsqrt_timescale = (
    10_000  # steps; rsqrt is lr·sqrt(timescale / (timescale + step − warmup))
  )
  c.optim.b1 = 0.9
  c.optim.b2 = 0.95
  c.optim.eps = 1e-8
  c.optim.clip_norm = placeholder(float)  # global-norm clip of the gradient; None clips nothing
  # updates in a row that are left out when their gradient is not finite; one more stops the run
  c.optim.skip_nonfinite = 0
  c.optim.weight_decay = 1e-4  # multiplies the learning rate, as in optax.adamw
  # First match wins; the pattern must match the whole path of a parameter, such as
  # "image/encoder/blocks/mlp/fc1/kernel".
  c.optim.decay = ((".*/kernel", 1.0), (".*", 0.0))  # (pattern, multiplier of weight_decay)
  c.optim.lr_multipliers = ((".*", 1.0),)  # (pattern, multiplier of lr); None freezes

  c.optim.layer_decay = (
    ConfigDict()
  )  # of fine-tuning, by tower: lr times it for each layer between a parameter and the head
  c.optim.layer_decay.image = 1.0
  c.optim.layer_decay.text = 1.0

  c.mesh = ConfigDict()
  c.mesh.data = placeholder(
    object
  )  # devices that split the batch: a number or "rest", all that are left
  c.mesh.data = "rest"
  c.mesh.fsdp = 1  # devices that split batch, parameters and optimizer state
  # (pattern, dimension or None) of parameters split otherwise than by their shape; first match wins
  c.mesh.shard = ()

  c.eval = ConfigDict()
  durations.add_duration(c.eval, "every")  # none set evaluates at the end only
  c.eval.batch_size = 256  # examples at a time over all devices
  # Tasks: a tuple of {kind: zero_shot | retrieval | loss, name, data: a spec, …}; see
  # siglax/evals/__init__.py.
  c.eval.tasks = ()

  c.checkpoint = ConfigDict()
  durations.add_duration(c.checkpoint, "every")  # none set saves at the end only
  c.checkpoint.keep_latest = 2  # newest checkpoints kept
  c.checkpoint.keep_every_steps = placeholder(int)  # also keep those whose step is a multiple of it
  c.checkpoint.keep_one_in = placeholder(
    int
  )  # also keep one of so many that are due, for good; None keeps none
  c.checkpoint.keep_one_in = 10
  c.checkpoint.keep_best = placeholder(
    str
  )  # also keep the best by this metric, of a loss the lowest: "eval/<name>/<metric>"

  c.checkpoint.verify = (
    False  # read each checkpoint back after its save and compare it; the training waits for that
  )
  c.checkpoint.max_failed_saves = (
    3  # saves in a row, each tried twice, that may fail before the run stops
  )

  c.log = ConfigDict()
  durations.add_duration(c.log, "every", steps=50)
  c.log.tensorboard = True  # write events next to metrics.jsonl
  c.log.wandb = placeholder(str)  # Weights & Biases project; needs pip install siglax[wandb]

  c.profile = ConfigDict()
  c.profile.steps = placeholder(
    str
  )  # "10:15" traces steps 10 to 15 into the run folder's profile/, for TensorBoard or Perfetto

  for kind, towers in models.BY_KIND.items():
    _add_own(c.model[kind], f"config.model.{kind}", towers)
  for registry in (OPTIMIZERS, SCHEDULES):
    _add_own(c.optim, "config.optim", registry)

  for field, source in FOLLOWS.items():
    (group, key), (source_group, source_key) = (x.rsplit(".", 1) for x in (field, source))
    get(c, group)[key] = get(c, source_group).get_oneway_ref(source_key)
  return c.lock()


def _add_own(group: ConfigDict, name: str, registry):
  """Adds the fields of single parts, which the others leave alone. ValueError for a name that is
  taken.
  """
  for key, field in registry.fields().items():
    if key in group:
      raise ValueError(
        f"{registry.article} {registry.kind} declares the field {key!r}, which {name} has already; give it "
        "another name"
      )
    group[key] = placeholder(field.kind) if field.default is None else field.default
