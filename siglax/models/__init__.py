"""The towers: pure functions over a dict of parameters."""

from siglax.models.two_towers import TwoTowers, scale_and_bias


def build(config) -> TwoTowers:
  """The two towers of `config.model`; see TwoTowers."""
  return TwoTowers(config)
