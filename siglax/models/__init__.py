"""The towers: pure functions over a dict of parameters."""

from siglax.models.two_towers import TOWERS, TwoTowers, count, is_statistic, scale_and_bias


def build(config, towers: tuple[str, ...] = TOWERS) -> TwoTowers:
  """The two towers of `config.model`, or one of them; see TwoTowers."""
  return TwoTowers(config, towers)
