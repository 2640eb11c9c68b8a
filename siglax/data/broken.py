"""Broken examples: when there are more than a spec allows, and what is said of one."""

from __future__ import annotations

import math
import re

import numpy as np

from siglax.config import values
from siglax.data import files
from siglax.data import storage

# Raised where an example cannot be read through no fault of its own: its server does not answer, no
# memory is left, or the part of the file that holds it and thousands of others is damaged. It goes
# on to who asked.
NOT_BROKEN = (storage.Unreachable, files.DamagedGroup, MemoryError)
# A broken example is replaced by another one, drawn anew this often at most.
MAX_REPLACEMENTS = 32
# Data whose true share of broken examples is at its limit is stopped with at most this probability,
# ever.
FALSE_STOP = 0.02
# Bets on a share above the limit: the small ones win in the end against any, the large ones soon
# against a large one.
BETS = 0.5 ** np.arange(1, 11)


def too_many_bad(bad, drawn, limit: float):
  """Whether `bad` of `drawn` examples show a true share of broken ones above the limit. Asked after
  any draw, as often as one likes: a share p ≤ limit is stopped with probability ≤ FALSE_STOP over
  an endless run.
  Numbers, or arrays of them.

  Of a capital of 1, a part λ is bet on each λ of BETS: a broken example multiplies it by 1 + λ, and
  every draw divides it by 1 + λ·limit, which is what it gains on average at a share of the limit.
  So while p ≤ limit the capital

      Σ_λ λ · (1 + λ)^bad / (1 + λ·limit)^drawn

  is a supermartingale, and by Ville's inequality reaches 1 / FALSE_STOP with probability ≤
  FALSE_STOP; above the limit it grows exponentially. Shafer 2021, "Testing by betting";
  Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting". A limit
  of 0 needs no statistics.
  """
  if not limit:
    return bad > 0
  gained, paid = (
    np.multiply.outer(bad, np.log1p(BETS)),
    np.multiply.outer(drawn, np.log1p(BETS * limit)),
  )
  return np.logaddexp.reduce(np.log(BETS) + gained - paid, axis=-1) >= -math.log(FALSE_STOP)


def reason(error):
  """One line of an exception, with its type where it is no ValueError."""
  kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
  return kind + values.one_line(error)


# Kinds of reasons that are told apart; more are counted together.
MAX_KINDS = 100


class Skipped:
  """Counts what is broken by its reason; names and numbers in a reason make no other one.

  total: how many were counted.
  """

  def __init__(self):
    self.total, self._kinds = 0, {}

  def add(self, example: int, said: str, count: int = 1):
    """count: how many examples, of which this is the first."""
    kind = re.sub(r"'[^']*'|\"[^\"]*\"", "…", said)
    kind = re.sub(r"\d[\d.,]*(?<=\d)", "N", kind)
    if kind not in self._kinds and len(self._kinds) >= MAX_KINDS:
      kind = "others"
    found = self._kinds.setdefault(kind, {"count": 0, "first": example, "reason": said})
    if example < found["first"]:
      found |= {"first": example, "reason": said}
    found["count"] += count
    self.total += count

  def listed(self) -> list[dict]:
    """[{"count", "first": example, "reason": of the first}, …], the most frequent ones first."""
    return sorted(self._kinds.values(), key=lambda found: (-found["count"], found["first"]))
