"""Every field of a run, its default and its comment; siglax/checks.py checks them.

A config file (`configs/*.py`) defines `get_config(**arguments)`, starts from
`default()` and changes what it needs. The command line changes single fields:

    siglax train --config configs/quickstart.py --config.optim.lr=3e-4 --config.data.0.size=5000

The config is an `ml_collections.ConfigDict`: locked (no unknown field) and typed.
A field that is None by default and may be set is a placeholder of its type.
Durations are a name and a unit (`total_steps`, `total_examples`, `total_epochs`);
exactly one unit is set, and setting another on the command line replaces the file's.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import functools
import importlib.util
import inspect
import json
import math
import pathlib
import re
import traceback
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

UNITS = ("steps", "examples", "epochs")
# Durations, and whether one unit must be set.
DURATIONS = {
    "total": True,
    "optim.warmup": False,
    "optim.cooldown": False,
    "train.unmasked": False,
    "log.every": True,
    "eval.every": False,
    "checkpoint.every": False,
}
# A run may be resumed with other values of these: they change its speed and its reports, not its losses.
FREE_ON_RESUME = (
    "loader", "mesh", "eval", "checkpoint", "log", "profile", "loss.impl", "loss.tile", "loss.check_embeddings",
    "train.remat", "train.microbatch", "model.image.remat", "model.text.remat", "optim.skip_nonfinite",
)
# So may this field of each data spec: a run that too many broken examples stopped goes on with a higher limit.
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
MAX_STEPS = 2**31 - 1  # a state counts its steps in an int32
MAX_INT, MAX_FLOAT = 2**63 - 1, 3.4e38  # what an int64 and a float32 hold


def add_duration(group: ConfigDict, name: str, **unit):
  """Adds `{name}_steps`, `{name}_examples`, `{name}_epochs` to a group; at most one keyword gives a default."""
  for k, kind in zip(UNITS, (int, int, float)):
    group[f"{name}_{k}"] = placeholder(kind)
    group[f"{name}_{k}"] = unit.get(k)


def default() -> ConfigDict:
  """The whole config with every default. Units: examples are image-text pairs, sizes are pixels."""
  c = ConfigDict()
  c.seed = 0  # seeds the parameters, the data order, the augmentation and dropout
  c.batch_size = 256  # examples a step over all devices and processes
  add_duration(c, "total")  # length of training: one of total_steps, total_examples, total_epochs

  # Training data: a tuple of specs, mixed by weight. A spec names its source and the source's arguments
  # (siglax/data/sources.py), and may set weight (share of the mix, default: its number of examples)
  # and max_bad_fraction (share of undecodable or caption-less examples above which the run stops, default 0.01).
  c.data = ()

  c.loader = ConfigDict()
  c.loader.threads = 2  # threads that read and decode in each process (or in each worker)
  c.loader.workers = 0  # worker processes that read and decode; 0 keeps it in threads of this process
  c.loader.buffer = 2  # batches read ahead

  c.image = ConfigDict()
  c.image.size = 64  # height and width after preprocessing
  c.image.max_pixels = 2**25  # width × height of a file; larger ones are broken, and never decoded
  c.image.max_bytes = 2**26  # of an encoded file; larger ones are broken, and never read
  c.image.mean = (0.5, 0.5, 0.5)  # subtracted on the device, of pixels in 0..1
  c.image.std = (0.5, 0.5, 0.5)  # divided by on the device
  c.image.resize = "bilinear"  # antialiased resampler of evaluation and export: bilinear | bicubic
  c.image.fit = "squash"  # of evaluation and export: squash both sides | crop: shorter side, then its centre (CLIP)
  c.image.crop_min_area = 1.0  # random resized crop keeps at least this share of the area; 1 resizes without a crop
  c.image.crop_max_aspect = 4 / 3  # random resized crop's widest aspect ratio (and its inverse)
  c.image.pad = 0  # pixels of reflected border for a random shift after the resize; 0 shifts nothing
  c.image.flip = False  # random left-right flip; leave off where captions name sides

  c.text = ConfigDict()
  c.text.tokenizer = "shapes"  # sentencepiece .model file, or "shapes" for the built-in dataset's own
  c.text.length = 64  # tokens, padded and truncated to it
  c.text.lowercase = True  # lower-case before tokenizing
  c.text.strip_punctuation = True  # remove ASCII punctuation before tokenizing, as SigLIP's canonicalization does
  c.text.pad = "eos"  # what fills a text up: the end token, as in SigLIP | pad: the tokenizer's padding token (SigLIP 2)

  c.loss = ConfigDict()
  c.loss.name = "sigmoid"  # sigmoid | softmax | focal | hinge (docs/losses.md)
  c.loss.impl = "auto"  # auto | dense: B×B logits | ring: texts go round the devices, flat memory | gather: all texts at once
  c.loss.tile = placeholder(int)  # examples per tile of ring and gather; None chooses by batch and width
  c.loss.positives = "pair"  # pair: an image's own text | label: every text of the same label (UniCL)
  c.loss.gamma = 2.0  # focal: pairs weigh (1 − p)^gamma
  c.loss.margin = 0.2  # hinge: a negative counts when nearer than the positive less this cosine
  c.loss.negatives = "all"  # hinge: sum over all negatives | hardest: the nearest one only
  c.loss.scale_init = 10.0  # exp(t') at the start; CLIP's is 1 / 0.07
  # Bias at the start; None is the matched prior: log(1 / batch_size), or the log-odds of a match by label in the data.
  c.loss.bias_init = placeholder(float)
  c.loss.scale_max = placeholder(float)  # cap of the scale; None leaves the sigmoid free and caps the softmax at 100
  c.loss.lr_multiplier = 1.0  # of the learning rate of scale and bias, on top of optim.lr_multipliers
  c.loss.check_embeddings = False  # stop with the tower's name when embeddings are not finite or not of unit length

  c.train = ConfigDict()
  c.train.dtype = "float32"  # of activations: float32 | bfloat16; parameters and reductions stay float32
  # What the backward pass recomputes, by tower: none | dots: all but matrix products and convolutions | full
  c.train.remat = ConfigDict()
  c.train.remat.image = "none"
  c.train.remat.text = "none"
  # Examples a device embeds at a time, exact (siglax/step.py); None all at once. Not for a ResNet that trains.
  c.train.microbatch = placeholder(int)
  c.train.patch_drop = 0.0  # share of the patches that training leaves out, at random for each picture (FLIP)
  add_duration(c.train, "unmasked", steps=0)  # end of the training that sees all patches all the same
  c.train.ema = placeholder(float)  # decay of an average of the parameters, which is evaluated and exported, e.g. 0.999

  c.model = ConfigDict()
  # Width of the shared space; None takes the image tower's width, of a ResNet the published 1024 (RN50) or 512 (RN101).
  c.model.embed_dim = placeholder(int)
  # Parameters to start from: a run folder, an export, a Hugging Face folder, a big_vision .npz; ":img" or ":txt" at the
  # end takes one tower. Position embeddings are resized to this image.size.
  c.model.init_from = placeholder(str)

  c.model.image = ConfigDict()
  # Ti | S | B | L | So400m | g-opt: sets width, depth, heads and mlp_dim | RN50 | RN101: CLIP's ResNets, which of the
  # fields below have width alone, that of the stem (docs/towers.md).
  c.model.image.size = "S"
  c.model.image.width = placeholder(int)  # overrides the named size, as do the next three
  c.model.image.depth = placeholder(int)
  c.model.image.heads = placeholder(int)
  c.model.image.mlp_dim = placeholder(int)
  c.model.image.patch = 16  # patch size in pixels; divides image.size
  c.model.image.stem = "patch"  # patch: one linear patch embedding | conv: 3×3 convolutions of stride 2 up to the patch size
  c.model.image.position = "learned"  # learned | sincos
  c.model.image.pool = "map"  # map: attention head with one probe | mean | cls
  c.model.image.patch_bias = True  # CLIP's patch embedding has no bias
  c.model.image.pre_norm = False  # a layer norm before the encoder (CLIP)
  c.model.image.norm_eps = 1e-6  # of the layer norms; CLIP's is 1e-5
  c.model.image.activation = "gelu_tanh"  # gelu_tanh | gelu | quick_gelu (OpenAI's CLIP)
  c.model.image.head = "auto"  # map to embed_dim: auto, linear where the widths differ | linear | linear_no_bias (CLIP)
  c.model.image.dropout = 0.0  # after attention and MLP
  c.model.image.lora_rank = 0  # adapters on the attention of the blocks (LoRA); train them alone by optim.lr_multipliers
  c.model.image.scan = True  # one compiled block for all layers: parameters stacked over depth

  c.model.text = ConfigDict()
  c.model.text.size = "S"
  c.model.text.width = placeholder(int)
  c.model.text.depth = placeholder(int)
  c.model.text.heads = placeholder(int)
  c.model.text.mlp_dim = placeholder(int)
  c.model.text.vocab_size = placeholder(int)  # None takes the tokenizer's
  c.model.text.eos_id = placeholder(int)  # token that ends and pads a text; None takes the tokenizer's
  c.model.text.causal = False  # attend to earlier tokens only
  c.model.text.pool = "last"  # last position | mean | map | eos: first end token | argmax: highest token (CLIP's first)
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
  add_duration(c.optim, "warmup", steps=0)  # linear from 0
  add_duration(c.optim, "cooldown", steps=0)  # linear to 0 at the end, for rsqrt and constant
  c.optim.rsqrt_timescale = 10_000  # steps; rsqrt is lr·sqrt(timescale / (timescale + step − warmup))
  c.optim.b1 = 0.9
  c.optim.b2 = 0.95
  c.optim.eps = 1e-8
  c.optim.clip_norm = placeholder(float)  # global-norm clip of the gradient; None clips nothing
  c.optim.skip_nonfinite = 0  # updates in a row that are left out when their gradient is not finite; one more stops the run
  c.optim.weight_decay = 1e-4  # multiplies the learning rate, as in optax.adamw
  # First match wins; the pattern must match the whole path of a parameter, such as "image/encoder/blocks/mlp/fc1/kernel".
  c.optim.decay = ((".*/kernel", 1.0), (".*", 0.0))  # (pattern, multiplier of weight_decay)
  c.optim.lr_multipliers = ((".*", 1.0),)  # (pattern, multiplier of lr); None freezes

  c.optim.layer_decay = ConfigDict()  # of fine-tuning, by tower: lr times it for each layer between a parameter and the head
  c.optim.layer_decay.image = 1.0
  c.optim.layer_decay.text = 1.0

  c.mesh = ConfigDict()
  c.mesh.data = placeholder(object)  # devices that split the batch: a number or "rest", all that are left
  c.mesh.data = "rest"
  c.mesh.fsdp = 1  # devices that split batch, parameters and optimizer state
  c.mesh.shard = ()  # (pattern, dimension or None) of parameters split otherwise than by their shape; first match wins

  c.eval = ConfigDict()
  add_duration(c.eval, "every")  # none set evaluates at the end only
  c.eval.batch_size = 256  # examples at a time over all devices
  # Tasks: a tuple of {kind: zero_shot | retrieval | loss, name, data: a spec, …}; see siglax/evals/__init__.py.
  c.eval.tasks = ()

  c.checkpoint = ConfigDict()
  add_duration(c.checkpoint, "every")  # none set saves at the end only
  c.checkpoint.keep_latest = 2  # newest checkpoints kept
  c.checkpoint.keep_every_steps = placeholder(int)  # also keep those whose step is a multiple of it
  c.checkpoint.keep_one_in = placeholder(int)  # also keep one of so many that are due, for good; None keeps none
  c.checkpoint.keep_one_in = 10
  c.checkpoint.keep_best = placeholder(str)  # also keep the best by this metric, of a loss the lowest: "eval/<name>/<metric>"

  c.checkpoint.verify = False  # read each checkpoint back after its save and compare it; the training waits for that
  c.checkpoint.max_failed_saves = 3  # saves in a row, each tried twice, that may fail before the run stops

  c.log = ConfigDict()
  add_duration(c.log, "every", steps=50)
  c.log.tensorboard = True  # write events next to metrics.jsonl
  c.log.wandb = placeholder(str)  # Weights & Biases project; needs pip install siglax[wandb]

  c.profile = ConfigDict()
  c.profile.steps = placeholder(str)  # "10:15" traces steps 10 to 15 into the run folder's profile/, for TensorBoard or Perfetto

  for field, source in FOLLOWS.items():
    (group, key), (source_group, source_key) = (x.rsplit(".", 1) for x in (field, source))
    get(c, group)[key] = get(c, source_group).get_oneway_ref(source_key)
  return c.lock()


def set_duration(config: ConfigDict, name: str, **unit):
  """Sets one unit of a duration and clears the others: `set_duration(c, "optim.warmup", epochs=1)`."""
  (chosen, value), = unit.items()
  for k in UNITS:
    _set(config, f"{name}_{k}", value if k == chosen else None)


def load(path: str, overrides: dict[str, str] | None = None) -> ConfigDict:
  """The config of `get_config(**arguments)` in a Python file, with overrides.

  path: `configs/x.py` or `configs/x.py:name=value,name=value`, the arguments of get_config.
  overrides: field → text as given on a command line, e.g. {"optim.lr": "3e-4", "data.0.path": "a.parquet"}.
  Raises ValueError in one line for a missing file, an unknown argument or field, or a value of the wrong type.
  """
  filename, _, arguments = path.partition(":")
  file = pathlib.Path(filename)
  if not file.is_file():
    known = sorted(str(p) for p in pathlib.Path("configs").glob("*.py"))
    raise ValueError(f"--config {filename}: no such file" + (f"; here are {', '.join(known)}" if known else ""))
  if file.suffix != ".py":
    raise ValueError(f"--config {filename}: not a Python file")
  spec = importlib.util.spec_from_file_location(f"siglax_config_{file.stem}", file)
  module = importlib.util.module_from_spec(spec)
  with _naming(filename):
    spec.loader.exec_module(module)
  if not callable(getattr(module, "get_config", None)):
    raise ValueError(f"--config {filename}: the file defines no get_config()")
  arguments = _arguments(arguments, module.get_config, filename)
  with _naming(filename):
    config = module.get_config(**arguments)
  if not isinstance(config, ConfigDict):
    raise ValueError(f"--config {filename}: get_config() returns {shown(config)}; it must return the config")
  for field, text in (overrides or {}).items():
    override(config, field, text)
  return config


def override(config: ConfigDict, field: str, text: str):
  """Sets one field from its text on the command line; of a duration, the other units are cleared."""
  for name in DURATIONS:
    if field in [f"{name}_{k}" for k in UNITS]:
      set_duration(config, name, **{field.rpartition("_")[2]: _parse(text)})
      return
  old, (head, _, key) = get(config, field, default=None), field.rpartition(".")
  parent = get(config, head, default=None) if head else config
  kind = parent.get_type(key) if isinstance(parent, ConfigDict) and key in parent else type(old)
  _set(config, field, text if kind is str and text.lower() != "none" else _parse(text))


def get(config: ConfigDict, field: str, **default) -> Any:
  """The value at a dotted path; ValueError names the nearest field when there is none."""
  node = config
  for i, key in enumerate(field.split(".")):
    try:
      node = node[_index(key)] if isinstance(node, (tuple, list)) else node[key]
    except (KeyError, ValueError, IndexError, TypeError):
      if "default" in default and isinstance(node, dict):
        return default["default"]
      raise ValueError(_unknown(config, field)) from None
  return node


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
  """{dotted path: value} of a config or of its dict."""
  if isinstance(node, (ConfigDict, dict)):
    items = node.items()
  elif isinstance(node, (tuple, list)) and any(isinstance(x, dict) for x in node):
    items = ((str(i), x) for i, x in enumerate(node))
  else:
    return {prefix: node}
  flat = {}
  for k, v in items:
    flat.update(flatten(v, f"{prefix}.{k}" if prefix else str(k)))
  return flat


def to_json(config: ConfigDict) -> str:
  """The resolved config as JSON; `from_json` reads it back."""
  return json.dumps(config.copy_and_resolve_references().to_dict(), indent=1)


def from_json(text: str) -> ConfigDict:
  """The config that `to_json` wrote. ValueError in one line for what is no such JSON, or has fields that are not known."""
  try:
    groups = json.loads(text)
  except (ValueError, RecursionError) as e:
    raise ValueError(f"no JSON, or cut short: {_one_line(e)}") from e
  if not isinstance(groups, dict):
    raise ValueError(f"holds {shown(groups)}; it must be a JSON object")
  if "batch_size" not in groups and {"model_type", "architectures"} & groups.keys():
    raise ValueError("it describes a model of Hugging Face; give a run folder of siglax train")
  config = default()
  for group, value in groups.items():
    _update(config, group, value)
  return config


def read(file) -> ConfigDict:
  """The config of a run folder's config.json; ValueError that names the file for one that is damaged, or of a newer siglax."""
  try:
    return from_json(pathlib.Path(file).read_text())
  except (OSError, ValueError) as e:
    raise ValueError(f"{file} is no config of this siglax: {e.strerror if isinstance(e, OSError) else e}") from e


def check_values(config: ConfigDict):
  """ValueError for a field that is missing, unknown, or of a value that a field of its type cannot have.

  That is another type, None where the default is not, a number that is not finite or too large, or what JSON cannot hold.
  """
  kinds = _kinds()
  for field in kinds.keys() ^ _leaves(config).keys():
    raise ValueError(f"config.{field} is missing" if field in kinds else _unknown(config, field))
  for field in kinds:
    _check_value(field, get(config, field))
  for field, source in FOLLOWS.items():
    if (value := get(config, field)) != get(config, source):
      followed = f"config.{source}={shown(get(config, source))}"
      raise ValueError(f"config.{field}={shown(value)} is not {followed}, which it follows; set that one")


def check_local(name: str, path):
  """ValueError for a path that is empty or a URL. name: of the flag or the field."""
  if not str(path):
    raise ValueError(f"{name}={str(path)!r} is empty; name a local folder or file")
  if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", str(path)):
    raise ValueError(f"{name}={shown(str(path))} is a URL, which siglax does not open; name a local folder or file")


def shown(value: Any) -> str:
  """repr(value), cut to about 80 characters."""
  try:
    text = repr(value)
  except ValueError:  # Python prints no integers of more than 4300 digits
    return "a number of more than 4300 digits"
  return text if len(text) <= 80 else f"{text[:60]} … {text[-15:]}"


def differences(first: ConfigDict, second: ConfigDict, where="there", and_where="here") -> list[str]:
  """Fields that keep two configs from being the same run, each as "field is A there and B here"."""
  a, b = (flatten(c.copy_and_resolve_references()) for c in (first, second))
  return [
      f"{k} is {a.get(k)!r} {where} and {b.get(k)!r} {and_where}"
      for k in sorted(a.keys() | b.keys())
      if a.get(k) != b.get(k) and not k.startswith(FREE_ON_RESUME) and not k.endswith(FREE_IN_SPECS) and k not in FOLLOWS
  ]


def duration_steps(config: ConfigDict, name: str, epoch_examples: int) -> int | None:
  """Steps of a duration such as "total" or "optim.warmup"; None when no unit is set.

  epoch_examples: examples of one pass over the training data, for durations in epochs.
  """
  for k, size in zip(UNITS, (config.batch_size, 1, 1 / epoch_examples)):
    value = get(config, f"{name}_{k}")
    if value is not None:
      steps = int(round(value)) if k == "steps" else round(value / size / config.batch_size)
      if steps > MAX_STEPS:
        raise ValueError(f"config.{name}_{k}={value} comes to {steps:.4g} steps; at most {MAX_STEPS:,} can be counted")
      return steps
  return None


def resolve(config: ConfigDict, text, same_label=lambda: 0.0) -> ConfigDict:
  """The config with the defaults that depend on others filled in: what is run, and written to the run folder.

  text: a TextProcessor, which gives vocab_size and eos_id. The sigmoid's bias starts at log(1 / batch_size), the
  log-odds of a pair (−10 near a batch of 22k, as in SigLIP), and so does the focal loss's; the softmax has none, and
  its scale is capped at 100; the hinge has none either, and its scale plays no part.
  same_label: () → the share of pairs of training examples with equal labels. Where these match, and it is above 0, the
  bias starts at log(p / (1 − p)) with p = 1 / batch_size + (1 − 1 / batch_size) · share.
  """
  config = config.copy_and_resolve_references()
  config.model.text.eos_id = text.eos_id
  if config.model.text.vocab_size is None:
    config.model.text.vocab_size = text.vocab_size
  check_vocabulary(config, text)
  if config.loss.name in ("sigmoid", "focal"):
    if config.loss.bias_init is None:
      B, share = config.batch_size, same_label() if config.loss.positives == "label" else 0.0
      match, other = 1 / B + (1 - 1 / B) * share, (1 - 1 / B) * (1 - share)
      # Where all match there are no odds: as if one of the B² pairs did not.
      config.loss.bias_init = math.log(match / max(other, 1 / B**2)) if share else -math.log(B)
  elif config.loss.bias_init is not None:
    raise ValueError(
        f'config.loss.bias_init={config.loss.bias_init} has no place in config.loss.name="{config.loss.name}"; leave it None'
    )
  if config.loss.name == "softmax" and config.loss.scale_max is None:
    config.loss.scale_max = 100.0
  config.model.bias_init = config.loss.bias_init
  return config


def check_vocabulary(config: ConfigDict, text):
  """ValueError when the tokenizer, if there is one, has more tokens than the text tower."""
  if text is not None and config.model.text.vocab_size < text.vocab_size:
    raise ValueError(
        f"config.model.text.vocab_size={config.model.text.vocab_size} is below the {text.vocab_size} tokens of {text.tokenizer}"
    )


def _arguments(text: str, function, filename: str) -> dict[str, Any]:
  """{"smoke": True} of "smoke=True"; unknown names are errors."""
  known = list(inspect.signature(function).parameters)
  arguments = {}
  for part in filter(None, text.split(",")):
    name, equals, value = part.partition("=")
    if name not in known or not equals:
      raise ValueError(f"--config {filename}:{part}: arguments are {', '.join(f'{k}=…' for k in known) or 'none'}")
    arguments[name] = _parse(value)
  return arguments


def _parse(text: str) -> Any:
  lowered = {"true": True, "false": False, "none": None}
  if text.lower() in lowered:
    return lowered[text.lower()]
  try:
    return _tuples(ast.literal_eval(text))
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # also what is too deeply nested for Python
    return text


def _set(config: ConfigDict, field: str, value: Any):
  """Sets a dotted path; tuples of specs are rebuilt around the changed entry."""
  head, _, key = field.rpartition(".")
  parent = get(config, head) if head else config
  if isinstance(parent, ConfigDict):
    if key not in parent:
      raise ValueError(_unknown(config, field))
    _check_value(field, value)
    parent[key] = value
  elif isinstance(parent, dict):
    _set(config, head, {**parent, key: value})
  elif isinstance(parent, tuple):
    get(config, field)
    _set(config, head, tuple(value if i == _index(key) else x for i, x in enumerate(parent)))
  else:
    raise ValueError(_unknown(config, field))


def _index(key: str) -> int:
  """Of an entry of a tuple, from 0; KeyError for another word."""
  if not re.fullmatch("0|[1-9][0-9]{0,8}", key):
    raise KeyError(key)
  return int(key)


@functools.cache
def _kinds() -> dict[str, tuple[type, bool]]:
  """{field: (its type, whether it may be None)} of the fields that are no groups."""
  config = default()
  durations = {f"{name}_{k}" for name in DURATIONS for k in UNITS}
  kinds = {}
  for field, value in _leaves(config).items():
    head, _, key = field.rpartition(".")
    kinds[field] = (get(config, head) if head else config).get_type(key), value is None or field in durations
  return kinds


def _leaves(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
  """{field: value}; unlike in `flatten`, a tuple of specs is one value."""
  leaves = {}
  for key, value in config.items():
    leaves |= _leaves(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else {f"{prefix}{key}": value}
  return leaves


def _check_value(field: str, value: Any):
  if field not in (kinds := _kinds()):
    inside = [f for f in kinds if f.startswith(f"{field}.")]
    what = f"a group of fields; set one, such as config.{inside[0]}" if inside else "no field of siglax/config.py"
    raise ValueError(f"config.{field}={shown(value)}: config.{field} is {what}")
  kind, optional = kinds[field]
  if value is None and optional:
    return
  kinds_too = {float: (int, float), tuple: (tuple, list)}.get(kind, kind)
  if not isinstance(value, kinds_too) or isinstance(value, bool) and kind in (int, float):
    needed = f"{kind.__name__}{', or None' if optional else ''}"
    raise ValueError(f"config.{field}={shown(value)} is of type {type(value).__name__}; it needs {needed}")
  _check_plain(field, value)


def _check_plain(field: str, value: Any):
  """ValueError for what config.json cannot hold, or no array."""
  if isinstance(value, (dict, ConfigDict)):
    for key, inner in value.items():
      if not isinstance(key, str):
        raise ValueError(f"config.{field} has the key {shown(key)}; a key must be a name")
      _check_plain(f"{field}.{key}", inner)
  elif isinstance(value, (tuple, list)):
    for i, inner in enumerate(value):
      _check_plain(f"{field}.{i}", inner)
  elif isinstance(value, (int, float)):
    if not abs(value) <= (MAX_INT if isinstance(value, int) else MAX_FLOAT):
      raise ValueError(f"config.{field}={shown(value)} is not finite, or too large: at most {MAX_INT} or {MAX_FLOAT:g}")
  elif not isinstance(value, str | None):
    raise ValueError(f"config.{field}={shown(value)} is of type {type(value).__name__}, which a config cannot hold")


def _update(config: ConfigDict, field: str, value: Any):
  if isinstance(value, dict) and isinstance(get(config, field), ConfigDict):
    for k, v in value.items():
      _update(config, f"{field}.{k}", v)
  else:
    _set(config, field, _tuples(value))


def _tuples(value):
  if isinstance(value, dict):
    return {k: _tuples(v) for k, v in value.items()}
  return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def _unknown(config: ConfigDict, field: str) -> str:
  fields = list(flatten(config))
  same_name = [f for f in fields if f.rpartition(".")[2] == field.rpartition(".")[2]]
  near = same_name or difflib.get_close_matches(field, fields, n=1, cutoff=0.5)
  hint = f"did you mean config.{near[0]}?" if near else "siglax/config.py lists every field"
  return f"config.{shown(field)[1:-1]} is unknown; {hint}"


@contextlib.contextmanager
def _naming(filename: str):
  """Turns any error of a config file into one line with the file and the line in it."""
  try:
    yield
  except (Exception, SystemExit) as error:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(filename)]
    if isinstance(error, SyntaxError) and (error.filename or "").endswith(filename):
      lines = [error.lineno]
    line = f", line {lines[-1]}" if lines else ""
    name = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    raise ValueError(f"--config {filename}{line}: {name}{_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
  text = str(error).replace("\\n", " ").replace("\n", " ")
  return text if len(text) < 300 else f"{text[:120]} … {text[-150:]}"
