"""The towers: pure functions over a dict of parameters."""

from siglax.models.two_towers import TOWERS, TwoTowers, merge_lora, scale_and_bias, stack_blocks, without_lora


def build(config, towers: tuple[str, ...] = TOWERS) -> TwoTowers:
  """The two towers of `config.model`, or one of them; see TwoTowers."""
  return TwoTowers(config, towers)
