"""What a tower declares of itself. siglax/models/towers.py lists the towers."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
from typing import Any

from siglax.config.parts import Field
from siglax.config.parts import Registry

# Fields of config.model.image that say what any tower is given, and of config.model.text.
GIVEN = {
  "image": ("variant", "image_size", "mean", "std", "dtype", "attention"),
  "text": ("variant", "vocab_size", "length", "eos_id", "dtype", "attention"),
}
# Fields that change how a tower is trained and how fast, not what its parameters mean.
OF_TRAINING = ("dropout", "patch_drop", "lora_rank", "scan", "remat")


@dataclasses.dataclass(frozen=True)
class Tower:
  """A family of image towers or of text towers, and what a config, a model and a format need to
  know of it.

  `config` below is config.model.image or config.model.text.
  name: such as "vit". doc: one sentence.
  variants: {name in config.variant: its sizes, as the tower likes them}.
  build: (config, embed_dim, rngs) → nnx.Module. Of images its `__call__(images, keys=None)` is
  float [n, H, W, 3], normalised → [n, embed_dim], and its `tokens(images)` → [n, places, width];
  for maps it may have `patch_embeddings(images)` → [n, places, embed_dim] and
  `pooling_attention(images)` → [n, heads, places], places row by row;
  of texts its `__call__(tokens, keys=None)` is int32 [n, l] → [n, embed_dim]. keys [n] are given in
  training, for what is random. Activations have config.dtype, parameters float32.
  embed_dim: (config) → width of its embedding where config.model.embed_dim is None; of images only.
  uses: the fields of config that it has, beside those of GIVEN; the others stay at their defaults.
  fields: those of its own, which config gets.
  check: (config) raises ValueError for values that do not go together; it names the fields.
  shape: (config) → its sizes, a transformer.Shape where formats are to find blocks and heads in it;
  ValueError for sizes that do not go together, without the name of the tower.
  identity: (config, embed_dim) → {field: value}, which must be the same where parameters come from
  and where they go; None takes all fields but OF_TRAINING.
  rows_before_grid: (config) → rows of its position embedding in front of those of a grid of places.
  stride: (config) → pixels of one side of a place; None where it has no grid.
  normalize: (uint8 images, mean, std) → float, where pictures are not [n, H, W, 3] alone.
  has_batch_norm: it has running statistics, nnx.BatchStat at "…/norm/mean" and "…/norm/var"
  (resnet.BatchNorm), by which `nnx.Module.train` switches batch norm.
  """

  name: str
  doc: str
  variants: Mapping[str, Any]
  build: Callable[..., Any]
  embed_dim: Callable[[Any], int] | None = None
  uses: tuple[str, ...] = ()
  fields: Mapping[str, Field] = dataclasses.field(default_factory=dict)
  check: Callable[[Any], None] = lambda config: None
  shape: Callable[[Any], Any] = lambda config: None
  identity: Callable[[Any, int], dict[str, Any]] | None = None
  rows_before_grid: Callable[[Any], int] = lambda config: 0
  stride: Callable[[Any], int] | None = None
  normalize: Callable[..., Any] | None = None
  has_batch_norm: bool = False

  def same(self, config, embed_dim: int) -> dict[str, Any]:
    """What `identity` says."""
    if self.identity is not None:
      return self.identity(config, embed_dim)
    names = ("variant", *self.uses, *self.fields)
    return {name: config[name] for name in names if name not in OF_TRAINING}

  def unused(self, kind: str, config) -> list[str]:
    """The fields of config that it does not have. kind: image or text."""
    known = (*GIVEN[kind], *self.uses, *self.fields)
    return [name for name in config if name not in known]


class Towers(Registry[Tower]):
  """The towers of one kind, image or text, which a config names by their variants."""

  def __init__(self, kind: str, towers: tuple[Tower, ...]):
    self.of = kind
    super().__init__(f"{kind} tower", towers, merged=True)

  def _add(self, part: Tower):
    for other in self.values():
      for variant in part.variants:
        if variant in other.variants:
          raise ValueError(
            f"the {self.kind} {other.name!r} has a variant {variant!r} already; give yours "
            "another name"
          )
    super()._add(part)

  @property
  def variants(self) -> tuple[str, ...]:
    return tuple(variant for tower in self.values() for variant in tower.variants)

  def of_variant(self, variant: str) -> Tower:
    """The tower that has it; ValueError that names the field and what there is."""
    for tower in self.values():
      if variant in tower.variants:
        return tower
    raise ValueError(
      f"config.model.{self.of}.variant={variant!r} is unknown; known are {', '.join(self.variants)}"
    )
