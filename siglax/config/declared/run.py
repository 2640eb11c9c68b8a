"""The run as a whole, and what it reports and keeps: the fields of no group, config.mesh,
config.eval, config.checkpoint, config.log, config.profile.
"""

from __future__ import annotations

from siglax.config.declared.group import MANY
from siglax.config.declared.group import Group
from siglax.config.durations import Duration
from siglax.config.parts import Field
from siglax.config.values import step_range


def number_or_rest(value) -> str | None:
  if value == "rest" or isinstance(value, int) and not isinstance(value, bool):
    return None
  return 'must be a number of devices or "rest"'


def number_or_auto(value) -> str | None:
  if value == "auto" or isinstance(value, int) and not isinstance(value, bool) and value > 0:
    return None
  return 'must be a number of slices, at least 1, or "auto"'


def two_steps(value) -> str | None:
  if step_range(value) is None:
    return 'must be two steps, the first at least 1, such as "10:15"'
  return None


TOP = Group(
  "",
  "Fields of no group.",
  {
    "seed": Field(
      0,
      "Seed of the parameters, of the order of the data, of augmentation and of dropout.",
      least=0,
      most=2**32 - 1,
    ),
    "batch_size": Field(
      256,
      "Examples of a step, over all devices and processes.",
      least=1,
      most=MANY,
      evaluation=True,
    ),
    "total": Duration(
      "of the whole training; a run that is resumed may be made longer.", needed=True
    ),
    "data": Field(
      (),
      "Training data: a tuple of specs, mixed by weight. A spec names its source and the source's "
      "arguments (docs/recipes/source.md). It may set weight, its share of the mix (its number of "
      "examples where it is left out), and max_bad_fraction, the share of examples that cannot be "
      "decoded or have no caption above which the run stops (0.01; a run may go on with another).",
      evaluation=True,
    ),
  },
)
# Of each data spec this may change on resume: a run that too many broken examples stopped goes on
# with a higher limit.
FREE_IN_SPECS = ".max_bad_fraction"

MESH = Group(
  "mesh",
  "How devices share the work.",
  {
    "data": Field(
      "rest",
      'Devices that split the batch: a number, or "rest" for all that mesh.fsdp leaves.',
      kind=int | str,
      check=number_or_rest,
    ),
    "fsdp": Field(
      1, "Devices that split the batch, the parameters and the optimizer's state.", least=1
    ),
    "slices": Field(
      "auto",
      "Groups of as many devices each, between which the network is slow, as between TPU pods or "
      "GPU machines. They split mesh.data; mesh.fsdp lies inside of one. auto: those that the "
      "devices tell.",
      kind=int | str,
      check=number_or_auto,
    ),
    "shard": Field(
      (),
      "Parameters that are split otherwise than by their shape: (pattern, dimension or None) of "
      "paths, of which the first that matches wins.",
    ),
  },
  resume=True,
  evaluation=True,
)

EVAL = Group(
  "eval",
  "The evaluation.",
  {
    "every": Duration("between evaluations; where no unit is set, there is one at the end."),
    "batch_size": Field(256, "Examples at a time, over all devices.", least=1, most=MANY),
    "tasks": Field(
      (),
      "A tuple of tasks {kind, name, data: a spec, …fields of the kind}; docs/evaluation.md lists "
      "the kinds.",
    ),
  },
  resume=True,
  evaluation=True,
)

CHECKPOINT = Group(
  "checkpoint",
  "What is saved, and which of it is kept.",
  {
    "every": Duration("between saves; where no unit is set, there is one at the end."),
    "keep_latest": Field(2, "Newest checkpoints that are kept.", least=1),
    "keep_every_steps": Field(
      None, "Keeps also those whose step is a multiple of it.", kind=int, optional=True, least=1
    ),
    "keep_one_in": Field(
      10,
      "Keeps also one of so many that are due, for good; None keeps none.",
      optional=True,
      least=1,
    ),
    "keep_best": Field(
      None,
      'Keeps also the best by this metric, "eval/<name>/<metric>": of a loss the lowest, of others '
      "the highest.",
      kind=str,
      optional=True,
    ),
    "verify": Field(
      False,
      "Reads each checkpoint back after its save and compares it; the training waits for that.",
    ),
    "max_failed_saves": Field(
      3, "Saves in a row, each tried twice, that may fail before the run stops.", least=0
    ),
  },
  resume=True,
)

LOG = Group(
  "log",
  "What is reported of the training.",
  {
    "every": Duration("between reports.", needed=True, steps=50),
    "tensorboard": Field(True, "Writes TensorBoard's events next to metrics.jsonl."),
    "wandb": Field(
      None,
      "Weights & Biases project; needs pip install siglax[wandb].",
      kind=str,
      optional=True,
    ),
  },
  resume=True,
)

PROFILE = Group(
  "profile",
  "Traces of single steps.",
  {
    "steps": Field(
      None,
      '"10:15" traces steps 10 to 15 into the run folder\'s profile/, for TensorBoard or Perfetto.',
      kind=str,
      optional=True,
      check=two_steps,
    ),
  },
  resume=True,
)
