"""The towers: config.model."""

from __future__ import annotations

from siglax.config import lookups
from siglax.config.declared.group import MANY
from siglax.config.declared.group import Group
from siglax.config.parts import Field
from siglax.config.values import readable_problem


def _sizes(first_of: str) -> dict[str, Field]:
  """The sizes of a transformer that a variant sets."""
  size = lambda doc, most: Field(None, doc, kind=int, optional=True, least=1, most=most)
  return {
    "width": size(f"Width of {first_of}; None takes the variant's.", 2**20),
    "depth": size("Number of blocks; None takes the variant's.", 2**10),
    "heads": size(
      "Attention heads of a block, by which the width is divisible; None takes the variant's.",
      2**20,
    ),
    "mlp_dim": size("Width of the hidden layer of a block's MLP; None takes the variant's.", 2**24),
  }


def _encoder(pool: Field, head: Field) -> dict[str, Field]:
  """What both transformers have beside their sizes."""
  return {
    "pool": pool,
    "norm_eps": Field(1e-6, "Epsilon of the layer norms; CLIP's is 1e-5.", above=0),
    "activation": Field(
      "gelu_tanh",
      "Activation of the MLPs; quick_gelu is that of OpenAI's CLIP.",
      choices=lookups.activations,
    ),
    "head": head,
    "dropout": Field(
      0.0, "Share of activations dropped after attention and after the MLP.", least=0, below=1
    ),
    "lora_rank": Field(
      0,
      "Rank of adapters on the attention of the blocks (LoRA), 0 for none; optim.lr_multipliers "
      "can train them alone.",
      least=0,
      most=2**20,
    ),
    "scan": Field(
      True, "One compiled block for all layers, with the parameters stacked over the depth."
    ),
  }


MODEL = Group(
  "model",
  "The two towers and the space that they share.",
  {
    "embed_dim": Field(
      None,
      "Width of the shared space; None takes that of the image tower, of a ResNet the published "
      "1024 (RN50) or 512 (RN101).",
      kind=int,
      optional=True,
      least=1,
      most=2**20,
    ),
    "init_from": Field(
      None,
      "Parameters to start from: a run folder, an export, a Hugging Face folder or a big_vision "
      '.npz; ":img" or ":txt" at the end takes one tower. Position embeddings are fitted to '
      "image.size and text.length.",
      kind=str,
      optional=True,
      check=readable_problem,
    ),
    "scale_init": Field(None, "The scale where training begins.", follows="loss.scale_init"),
    "bias_init": Field(None, "The bias where training begins.", follows="loss.bias_init"),
    "relative_bias": Field(
      None, "Whether the bias is a relative one.", follows="loss.relative_bias"
    ),
  },
)

IMAGE_TOWER = Group(
  "model.image",
  "The image tower. A ResNet has of these variant and width, and what follows other fields.",
  {
    "variant": Field(
      "S",
      "Sets width, depth, heads and mlp_dim. RN50 and RN101 are CLIP's ResNets (docs/towers.md).",
      choices=lookups.image_variants,
    ),
    **_sizes("the tokens, of a ResNet of its stem"),
    "patch": Field(16, "Patch size in pixels; it divides image.size.", least=1, most=2**14),
    "stem": Field(
      "patch",
      "patch is one linear patch embedding, conv 3×3 convolutions of stride 2 up to the patch "
      "size.",
      choices=("patch", "conv"),
    ),
    "position": Field(
      "learned",
      "Position embeddings: learned, or sines and cosines of two dimensions.",
      choices=("learned", "sincos"),
    ),
    "patch_bias": Field(True, "A bias in the patch embedding; CLIP's has none."),
    "pre_norm": Field(False, "A layer norm before the encoder (CLIP)."),
    **_encoder(
      pool=Field(
        "map",
        "What makes one vector of the tokens: map is an attention head with one probe, mean their "
        "mean, cls a token of its own.",
        choices=("map", "mean", "cls"),
      ),
      head=Field(
        "auto",
        "Map to embed_dim: auto is linear where the widths differ, and nothing where they do not; "
        "linear_no_bias is CLIP's.",
        choices=("auto", "linear", "linear_no_bias"),
      ),
    ),
    "image_size": Field(None, "Height and width of a picture in pixels.", follows="image.size"),
    "mean": Field(None, "Subtracted from pixels in 0..1.", follows="image.mean"),
    "std": Field(None, "Divided by after that.", follows="image.std"),
    "dtype": Field(None, "Type of the activations.", follows="train.dtype"),
    "attention": Field(None, "The kernel of attention.", follows="train.attention"),
    "patch_drop": Field(
      None, "Share of the patches that training leaves out.", follows="train.patch_drop"
    ),
    "remat": Field(None, "What the backward pass recomputes.", follows="train.remat.image"),
  },
  parts=("image tower",),
)

TEXT_TOWER = Group(
  "model.text",
  "The text tower.",
  {
    "variant": Field("S", "Sets width, depth, heads and mlp_dim.", choices=lookups.text_variants),
    **_sizes("the tokens"),
    "vocab_size": Field(
      None,
      "Tokens of the vocabulary; None takes the tokenizer's.",
      kind=int,
      optional=True,
      least=1,
      most=MANY,
    ),
    "eos_id": Field(
      None,
      "Token that ends a text; None takes the tokenizer's.",
      kind=int,
      optional=True,
    ),
    "causal": Field(False, "Each token attends to earlier ones only."),
    **_encoder(
      pool=Field(
        "last",
        "What makes one vector of the tokens: the last position, their mean, an attention head "
        "with one probe (map), the first end token (eos) or the highest token (argmax, CLIP's "
        "first).",
        choices=("last", "mean", "map", "eos", "argmax"),
      ),
      head=Field(
        "linear",
        "Map to embed_dim; linear_no_bias is CLIP's.",
        choices=("linear", "linear_no_bias"),
      ),
    ),
    "length": Field(None, "Tokens of a text.", follows="text.length"),
    "dtype": Field(None, "Type of the activations.", follows="train.dtype"),
    "attention": Field(None, "The kernel of attention.", follows="train.attention"),
    "remat": Field(None, "What the backward pass recomputes.", follows="train.remat.text"),
  },
  parts=("text tower",),
)
