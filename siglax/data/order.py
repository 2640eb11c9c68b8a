"""The order of the examples: of which source element k of a run is."""

from __future__ import annotations

import fractions
import math
import sys

import grain


class Mix(grain.transforms.DatasetSelectionMap):
  """Element k of the mix → (source, element of that source), in exact proportion and without a
  random number.

  shares: positive whole numbers. After any multiple of their sum, each source has given exactly its
  share; in between, it is off by less than the number of sources. With the number of examples as
  shares, one epoch holds every example once. (grain's own mix rounds shares to 1 %.)
  """

  def __init__(self, shares: list[int]):
    self._shares = shares

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, k: int) -> tuple[int, int]:
    rest, after = sum(self._shares), k + 1
    for source, share in enumerate(self._shares[:-1]):
      # Of the first k elements left, those that go to the sources to come.
      left, left_after = k * (rest - share) // rest, after * (rest - share) // rest
      if left_after == left:
        return source, k - left
      k, after, rest = left, left_after, rest - share
    return len(self._shares) - 1, k


def mix_shares(weights: list[float]) -> list[int]:
  """Whole numbers in the exact proportion of the weights as they are written in decimals: 0.3, 2 →
  3, 20.
  """
  exact = [fractions.Fraction(str(weight)) for weight in weights]
  scale = math.lcm(*(x.denominator for x in exact))
  return [int(x * scale) for x in exact]


def shares_of(config, sources) -> list[int]:
  """Of each source in the mix: its spec's weight, or its number of examples."""
  weights = [spec.get("weight") for spec in config.data]
  return mix_shares(
    [len(source) if weight is None else weight for weight, source in zip(weights, sources)]
  )
