"""What examples go through before the towers: config.loader, config.image, config.text."""

from __future__ import annotations

from siglax.config.declared.group import Group
from siglax.config.parts import Field
from siglax.config.values import readable_problem


def three_numbers(value) -> str | None:
  if len(value) != 3 or not all(
    isinstance(x, (int, float)) and not isinstance(x, bool) for x in value
  ):
    return "must be three numbers: of red, green and blue"
  return None


def three_divisors(value) -> str | None:
  if problem := three_numbers(value):
    return problem
  return "must be positive: pixels are divided by it" if min(value) <= 0 else None


LOADER = Group(
  "loader",
  "How fast examples are read and decoded, in each process.",
  {
    "threads": Field(
      None,
      "Threads that read and decode in a process, or in each of its workers. None: one for each "
      "core that the process may use, by affinity and CPU quota of its cgroup; workers share them.",
      kind=int,
      optional=True,
      least=1,
      most=2**10,
    ),
    "workers": Field(
      None,
      "Worker processes that read and decode; 0 leaves it to threads of the process itself. None: "
      "one for two cores in a `siglax` command, where there is memory for what each holds of the "
      "data; 0 with up to 4 cores, where loader.threads is given, and in other programs.",
      kind=int,
      optional=True,
      least=0,
      most=2**10,
    ),
    "buffer": Field(
      2,
      "Batches in memory that are ready or in the making, beside the one that trains. All threads "
      "work on the same batch.",
      least=1,
      most=2**16,
    ),
    "allow_new_order": Field(
      False,
      "Resumes even where the next examples are not those that would have come when the checkpoint "
      "was written, as after a change of the library that permutes them.",
    ),
  },
  resume=True,
  evaluation=True,
)

IMAGE = Group(
  "image",
  "What a picture goes through. Training crops, shifts, flips and recolours at random; evaluation "
  "and export do not. A run that starts from a checkpoint (model.init_from) takes its mean, std, "
  "resize and fit where nobody sets them.",
  {
    "size": Field(64, "Height and width after preprocessing, in pixels.", least=1, most=2**14),
    "max_pixels": Field(
      2**25,
      "Largest width × height of a file; a larger one counts as broken and is never decoded.",
      least=1,
      evaluation=True,
    ),
    "max_bytes": Field(
      2**26,
      "Largest encoded file in bytes; a larger one counts as broken and is never read.",
      least=1,
      evaluation=True,
    ),
    "mean": Field(
      (0.5, 0.5, 0.5),
      "Red, green and blue that the device subtracts from pixels in 0..1.",
      check=three_numbers,
      inherited=True,
    ),
    "std": Field(
      (0.5, 0.5, 0.5),
      "Red, green and blue by which the device then divides.",
      check=three_divisors,
      inherited=True,
    ),
    "resize": Field(
      "bilinear",
      "Antialiased resampler of evaluation and export.",
      choices=("bilinear", "bicubic"),
      inherited=True,
      evaluation=True,
    ),
    "fit": Field(
      "squash",
      "What evaluation and export do with a picture's sides: squash resizes both, crop resizes the "
      "shorter one and takes the centre (CLIP), native keeps their ratio, in patches of which as "
      "many as in size × size are taken (NaFlex).",
      choices=("squash", "crop", "native"),
      inherited=True,
      evaluation=True,
    ),
    "patch": Field(None, 'Side of the patches of fit="native".', follows="model.image.patch"),
    "crop_min_area": Field(
      1.0,
      "Least share of the area that the random resized crop keeps; 1 resizes without a crop.",
      above=0,
      most=1,
    ),
    "crop_max_aspect": Field(
      4 / 3, "Widest aspect ratio of the random resized crop, and its inverse.", least=1
    ),
    "pad": Field(
      0,
      "Pixels of reflected border for a random shift after the resize; 0 shifts nothing.",
      least=0,
      most=2**14,
    ),
    "flip": Field(False, "Random left-right flip; leave it off where captions name sides."),
    "jitter": Field(
      0.0,
      "Strength J of the colour jitter, SimCLR's s, 1 there: brightness, contrast and saturation "
      "change by up to 0.8 J, the hue by up to 0.2 J of its circle. Leave it 0 where captions name "
      "colours.",
      least=0,
      most=1,
    ),
    "jitter_probability": Field(
      0.8, "Share of the pictures that `jitter` changes; 0.8 is SimCLR's.", least=0, most=1
    ),
    "grey_probability": Field(
      0.0,
      "Share of the pictures that lose their colours; SimCLR has 0.2.",
      least=0,
      most=1,
    ),
  },
)

TEXT = Group(
  "text",
  "What a caption goes through. A run that starts from a checkpoint (model.init_from) takes its "
  "lowercase, strip_punctuation and pad where nobody sets them.",
  {
    "tokenizer": Field(
      "shapes",
      "A sentencepiece .model file, a tokenizer.json, a folder that holds one of them, or "
      '"shapes" for the built-in dataset\'s own.',
      check=readable_problem,
    ),
    "length": Field(64, "Tokens, to which a text is padded and cut.", least=2, most=2**20),
    "captions": Field(
      1,
      "Captions of a picture that a batch holds: each of them matches the picture, and the loss "
      "tells all of them from those of other pictures. None is drawn again before all are.",
      least=1,
      most=1000,
    ),
    "lowercase": Field(
      None,
      "Make letters lower case before tokenizing. None: with a sentencepiece model, or where the "
      "tokenizer.json does it.",
      kind=bool,
      optional=True,
      inherited=True,
    ),
    "strip_punctuation": Field(
      None,
      "Remove ASCII punctuation before tokenizing, as SigLIP's canonicalization does. None: with "
      "a sentencepiece model.",
      kind=bool,
      optional=True,
      inherited=True,
    ),
    "pad": Field(
      "eos",
      "The token that fills a text up: eos, the end token (SigLIP, CLIP in transformers); pad, the "
      "tokenizer's padding token (SigLIP 2); zero, token 0 (CLIP in open_clip).",
      choices=("eos", "pad", "zero"),
      inherited=True,
    ),
  },
)
