"""The loss, the step and the optimizer: config.loss, config.train, config.optim."""

from __future__ import annotations

from siglax.config import lookups
from siglax.config import values
from siglax.config.declared.group import Group
from siglax.config.durations import Duration
from siglax.config.parts import Field


def checkpoint_problem(value) -> str | None:
  folder, _, step = value.rpartition("@")
  if not step.isascii() or not step.isdecimal():
    return 'must be a run folder and the step of a checkpoint, such as "runs/x@1000"'
  return values.readable_problem(folder)


LOSS = Group(
  "loss",
  "The loss (docs/losses.md). Its last fields belong to single losses; the others leave them "
  "alone.",
  {
    "name": Field("sigmoid", "Which loss.", choices=lookups.losses),
    "impl": Field(
      "auto",
      "How it is computed: dense makes the B×B logits, ring passes the texts round the devices in "
      "flat memory, gather fetches all texts at once, auto chooses by size.",
      choices=lookups.loss_impls,
      resume=True,
      evaluation=True,
    ),
    "tile": Field(
      None,
      "Examples of a tile of ring and gather; None chooses by batch and width.",
      kind=int,
      optional=True,
      least=1,
      resume=True,
      evaluation=True,
    ),
    "dtype": Field(
      "auto",
      "Type of the embeddings that travel between devices and of the operands of the loss's "
      "products, whose sums stay float32: auto is train.dtype, float32 for a loss that needs it.",
      choices=("auto", "float32", "bfloat16"),
    ),
    "positives": Field(
      "pair",
      "What matches an image: pair, its own text, or label, every text of the same label (UniCL).",
      choices=("pair", "label"),
    ),
    "scale_init": Field(10.0, "The scale exp(t') at the start; CLIP's is 1 / 0.07.", above=0),
    "bias_init": Field(
      None,
      "The bias at the start; None is the matched prior: log(1 / batch_size), or the log-odds of a "
      "match by label in the data.",
      kind=float,
      optional=True,
    ),
    "relative_bias": Field(
      False,
      "Trains r of the logits scale·(cosine − r) in the place of the bias, which is −scale·r "
      "(arXiv 2509.18552); r starts at −bias_init / scale_init.",
    ),
    "scale_max": Field(
      None,
      "Cap of the scale; None takes the loss's own, if it has one.",
      kind=float,
      optional=True,
      above=0,
    ),
    "lr_multiplier": Field(
      1.0,
      "Multiplies the learning rate of scale and bias, on top of optim.lr_multipliers, which "
      "freezes them with None.",
      above=0,
    ),
    "check_embeddings": Field(
      False,
      "Stops with the tower's name when embeddings are not finite or not of unit length.",
      resume=True,
    ),
  },
  parts=("loss",),
)

TRAIN = Group(
  "train",
  "The training step.",
  {
    "dtype": Field(
      "float32",
      "Type of the activations; parameters and reductions stay float32.",
      choices=("float32", "bfloat16"),
    ),
    "attention": Field(
      "auto",
      "Kernel of attention in the blocks (docs/plan.md): xla writes the logits to memory; cudnn on "
      "NVIDIA GPUs and flash on TPUs keep none; auto takes the device's, where it takes the dtype "
      "and the widths.",
      choices=lookups.attention,
      resume=True,
      evaluation=True,
    ),
    **{
      f"remat.{tower}": Field(
        "none",
        f"What the backward pass of the {tower} tower recomputes: none; dots, all but matrix "
        "products and convolutions; attn_mlp, all but attention and the MLP's first product; or "
        "full. auto takes the first of these whose step fits the devices (docs/plan.md).",
        choices=lookups.remat,
        resume=True,
      )
      for tower in ("image", "text")
    },
    "microbatch": Field(
      None,
      "Examples that a device embeds at a time, exact (siglax/training/step.py); it divides "
      "those of a device, and None takes them all at once. Not for a ResNet that trains.",
      kind=int,
      optional=True,
      resume=True,
    ),
    "patch_drop": Field(
      0.0,
      "Share of the patches that training leaves out, at random for each picture (FLIP).",
      least=0,
      below=1,
    ),
    "unmasked": Duration(
      "at the end that see all patches, where patch_drop leaves some out before.",
      may_be_zero=True,
      steps=0,
    ),
    "branch_from": Field(
      None,
      "Checkpoint of another run to start from with its full state, RUN@STEP; the run is then "
      "the one trained so from the start. Only total_*, optim.schedule, optim.cooldown_* and "
      "train.unmasked_* may differ, and only after STEP. It is read while the run folder has no "
      "checkpoint of its own.",
      kind=str,
      optional=True,
      check=checkpoint_problem,
      resume=True,
    ),
    "ema": Field(
      None,
      "Decay of an average of the parameters, such as 0.999, which is evaluated and exported in "
      "their place.",
      kind=float,
      optional=True,
      above=0,
      below=1,
    ),
  },
)

OPTIM = Group(
  "optim",
  "The optimizer and its learning rate (siglax/training/optim.py). A pattern must match the whole "
  'path of a parameter, such as "image/encoder/blocks/mlp/fc1/kernel"; the first match wins.',
  {
    "name": Field("adamw", "Which optimizer.", choices=lookups.optimizers),
    "lr": Field(1e-3, "Peak learning rate.", above=0),
    "schedule": Field(
      "cosine",
      "The learning rate after the warmup.",
      choices=lookups.schedules,
    ),
    "hold": Duration(
      "at the start, before the warmup, that leave the parameters as they are and only collect the "
      "optimizer's moments, for fine-tuning (TuneCLIP).",
      may_be_zero=True,
      steps=0,
    ),
    "warmup": Duration(
      "at the start in which the learning rate rises from 0.",
      may_be_zero=True,
      steps=0,
    ),
    "cooldown": Duration(
      "at the end in which the learning rate of rsqrt and constant falls to 0.",
      may_be_zero=True,
      steps=0,
    ),
    "rsqrt_timescale": Field(
      10_000,
      "Timescale of rsqrt in steps: lr·sqrt(timescale / (timescale + step − warmup)).",
      above=0,
    ),
    "b1": Field(
      0.9, "Decay of the momentum; of lion, of the momentum that an update sees.", least=0, below=1
    ),
    "b2": Field(
      0.95,
      "Decay of the second moment, of adafactor its largest; of lion, of the momentum it keeps.",
      least=0,
      below=1,
    ),
    "eps": Field(1e-8, "Added to the root of the second moment by adamw.", least=0),
    "clip_norm": Field(
      None,
      "Global norm to which the gradient is clipped; None clips nothing.",
      kind=float,
      optional=True,
      above=0,
    ),
    "skip_nonfinite": Field(
      0,
      "Updates in a row that are left out when their gradient is not finite; one more stops the "
      "run.",
      least=0,
      resume=True,
    ),
    "weight_decay": Field(
      1e-4, "Weight decay, which multiplies the learning rate, as in optax.adamw.", least=0
    ),
    "start_decay": Field(
      0.0,
      "Decay towards the weights that the training starts from (L2-SP), beside weight_decay and as "
      "it; a copy of them is kept.",
      least=0,
    ),
    "decay": Field(
      ((".*/kernel", 1.0), (".*", 0.0)),
      "(pattern, multiplier of weight_decay and start_decay) of parameters.",
    ),
    "lr_multipliers": Field(
      ((".*", 1.0),), "(pattern, multiplier of lr) of parameters; None freezes."
    ),
    **{
      f"layer_decay.{tower}": Field(
        1.0,
        f"For fine-tuning the {tower} tower: the learning rate times it for each layer between a "
        "parameter and the head; 1 decays nothing.",
        above=0,
        most=1,
      )
      for tower in ("image", "text")
    },
  },
  parts=("optimizer", "schedule"),
)
