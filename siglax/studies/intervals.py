"""Means over seeds and their intervals: what chance alone would change in them.

A paired difference has a value for each seed s and, where single examples are known, each example
i: d_si, [S, N]. Other seeds and other examples would give another mean. The bootstrap draws both
anew, with replacement, many times. Of a mean its variance has a closed form in the limit of many
draws (Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 2007), so nothing is drawn
here. With mean squares A of the seeds' means, B of the examples' means and E of what is left, each
unbiased for the few seeds,

    Var(mean) = (A + B − E) / (S·N),

where −E takes away what drawing both counts twice. The interval is mean ± t·sqrt(Var), with
Student's t for the degrees of freedom of Satterthwaite, as three seeds tell little of their own
spread. Where A ≤ E, seeds differ by no more than examples do, and the variance is B / (S·N).
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from scipy import special

LEVEL = 0.95


class Interval(NamedTuple):
  """A mean and the bounds of its LEVEL interval; NaN bounds where one value is all there is."""

  mean: float
  low: float
  high: float

  @property
  def resolved(self) -> bool:
    """Whether it leaves 0 out."""
    return self.low > 0 or self.high < 0


def of_values(values) -> Interval:
  """Of the mean of independent values, such as those of several seeds: Student's t."""
  values = np.asarray(values, np.float64)
  n = len(values)
  if n < 2:
    return Interval(float(np.mean(values)), np.nan, np.nan)
  return Interval(*map(float, _bounds(values.mean(), values.var(ddof=1) / n, n - 1)))


def of_pairs(difference) -> Interval:
  """Of the mean of [S, N] paired differences, of seeds and examples; see the module. With one seed
  only its examples vary.
  """
  mean, low, high = bounds(np.asarray(difference, np.float64)[None])
  return Interval(float(mean[0]), float(low[0]), float(high[0]))


def bounds(d):
  """(mean, low, high) of each of many tables [tables, S, N], N ≥ 2."""
  _, S, N = d.shape
  mean, of_seeds, of_examples = d.mean((1, 2)), d.mean(2), d.mean(1)
  B = S * of_examples.var(1, ddof=1)
  if S == 1:
    return _bounds(mean, B / N, np.float64(N - 1))
  A = N * of_seeds.var(1, ddof=1)
  # Of the residuals d_si − d_s· − d_·i + d··.
  rest = d.var((1, 2)) - of_seeds.var(1) - of_examples.var(1)
  E = np.maximum(rest, 0) * S * N / ((S - 1) * (N - 1))
  seeds_vary = A > E
  total = np.where(seeds_vary, A + B - E, B)
  spread = A**2 / (S - 1) + B**2 / (N - 1) + E**2 / ((S - 1) * (N - 1))
  spread = np.where(spread > 0, spread, 1)  # all values are equal, and so is the interval
  freedom = np.where(seeds_vary, np.maximum(total**2 / spread, 1), N - 1)
  return _bounds(mean, total / (S * N), freedom)


def _bounds(mean, variance, freedom):
  half = special.stdtrit(freedom, (1 + LEVEL) / 2) * np.sqrt(variance)
  return mean, mean - half, mean + half


@dataclasses.dataclass(frozen=True)
class PowerLaw:
  """y = factor · x^exponent, with the interval of the exponent; at() draws it."""

  factor: float
  exponent: Interval
  r2: float
  _center: float
  _spread: float
  _scatter: float
  _freedom: int

  def at(self, x):
    """(y, low, high) of the fit, with the interval of the fitted mean."""
    u = np.log(np.asarray(x, np.float64))
    v = np.log(self.factor) + self.exponent.mean * u
    variance = self._scatter * (1 / (self._freedom + 2) + (u - self._center) ** 2 / self._spread)
    return tuple(np.exp(part) for part in _bounds(v, variance, self._freedom))


def power_law(x, y) -> PowerLaw:
  """Least squares of log y over log x, one point a run; both positive, with at least two different
  x and three points. r2: the share of the variance of log y that it explains.
  """
  u, v = np.log(np.asarray(x, np.float64)), np.log(np.asarray(y, np.float64))
  n, center = len(u), u.mean()
  spread = np.sum((u - center) ** 2)
  slope = np.sum((u - center) * (v - v.mean())) / spread
  left = np.sum((v - v.mean() - slope * (u - center)) ** 2)
  scatter, total = left / (n - 2), np.sum((v - v.mean()) ** 2)
  exponent = Interval(*map(float, _bounds(slope, scatter / spread, n - 2)))
  r2 = float(1 - left / total) if total else 1.0
  factor = float(np.exp(v.mean() - slope * center))
  return PowerLaw(factor, exponent, r2, float(center), float(spread), float(scatter), n - 2)
