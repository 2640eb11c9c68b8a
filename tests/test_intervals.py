"""siglax/studies/intervals.py: coverage on data whose truth is known, and independent formulas."""

import numpy as np
import pytest
from scipy import stats

from siglax.studies import intervals

SIMULATIONS = 1000


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(
  "of_seeds, of_examples, of_both",
  [(1, 0, 0.1), (0, 1, 0.1), (0, 0, 1), (1, 1, 1), (0.5, 1, 1), (1, 0, 1), (0.3, 0.3, 1)],
)
def test_intervals_of_gaussian_data_hold_the_truth_as_often_as_they_say(
  seeds, of_seeds, of_examples, of_both
):
  """Standard deviations of the mean by what seeds, examples, and both together add to it."""
  rng, N = np.random.default_rng(0), 100
  shape = lambda s, n: rng.normal(size=(SIMULATIONS, s, n))
  d = 0.7 + of_seeds * np.sqrt(seeds) * shape(seeds, 1) + of_examples * np.sqrt(N) * shape(1, N)
  d = d + of_both * np.sqrt(seeds * N) * shape(seeds, N)
  _, low, high = intervals.bounds(d)
  # 93 to 97%, and 1.4% of a thousand simulations' own scatter, twice its standard deviation.
  assert 0.93 - 0.014 <= np.mean((low <= 0.7) & (0.7 <= high)) <= 0.97 + 0.014


@pytest.mark.parametrize("n", [2, 3, 5])
def test_intervals_of_seeds_alone_cover_too(n):
  x = np.random.default_rng(1).normal(2, 3, (SIMULATIONS, n))
  found = [intervals.of_values(row) for row in x]
  assert 0.93 <= np.mean([i.low <= 2 <= i.high for i in found]) <= 0.97
  for row, interval in zip(x[:5], found):
    want = stats.t.interval(0.95, n - 1, row.mean(), stats.sem(row))
    np.testing.assert_allclose([interval.low, interval.high], want)


def test_the_variance_is_that_of_drawing_seeds_and_examples_anew():
  """The closed form against 20,000 draws of a bootstrap, each with its own seeds and examples."""
  rng, S, N = np.random.default_rng(2), 6, 40
  d = rng.normal(size=(S, 1)) + rng.normal(size=(1, N)) + 2 * rng.normal(size=(S, N))
  draws = np.empty(20_000)
  for k in range(len(draws)):
    draws[k] = d[np.ix_(rng.integers(0, S, S), rng.integers(0, N, N))].mean()
  a, b = d.mean(1), d.mean(0)
  left = d - a[:, None] - b[None, :] + d.mean()
  # What a draw of both varies by, of which the module takes the unbiased parts.
  want = a.var() / S + b.var() / N + np.mean(left**2) / (S * N)
  assert np.var(draws) == pytest.approx(want, rel=0.05)
  A, B = N * a.var(ddof=1), S * b.var(ddof=1)
  E = np.sum(left**2) / ((S - 1) * (N - 1))
  freedom = (A + B - E) ** 2 / (A**2 / (S - 1) + B**2 / (N - 1) + E**2 / ((S - 1) * (N - 1)))
  half = stats.t.ppf(0.975, freedom) * np.sqrt((A + B - E) / (S * N))
  assert A > E
  np.testing.assert_allclose(
    intervals.of_pairs(d), [d.mean(), d.mean() - half, d.mean() + half], rtol=1e-9
  )


def test_one_seed_tells_of_its_examples_and_one_value_of_nothing():
  x = np.random.default_rng(3).normal(1, 2, 200)
  want = stats.t.interval(0.95, 199, x.mean(), stats.sem(x))
  np.testing.assert_allclose(intervals.of_pairs(x[None])[1:], want)
  alone = intervals.of_values([0.5])
  assert alone.mean == 0.5 and np.isnan(alone.low) and not alone.resolved
  assert intervals.of_pairs(np.zeros((3, 9))) == (0, 0, 0)
  assert intervals.Interval(1, 0.5, 1.5).resolved and not intervals.Interval(1, -0.5, 2.5).resolved


def test_a_power_law_is_found_with_its_interval():
  rng = np.random.default_rng(4)
  x = np.tile(2.0 ** np.arange(5, 11), 3)
  noise = rng.normal(0, 0.05, (SIMULATIONS, len(x)))
  fits = [intervals.power_law(x, 3 * x**-0.25 * np.exp(e)) for e in noise]
  covered = [f.exponent.low <= -0.25 <= f.exponent.high for f in fits]
  assert 0.93 <= np.mean(covered) <= 0.97
  want = stats.linregress(np.log(x), np.log(3 * x**-0.25) + noise[0])
  fit = fits[0]
  assert fit.exponent.mean == pytest.approx(want.slope)
  assert fit.factor == pytest.approx(np.exp(want.intercept))
  assert fit.r2 == pytest.approx(want.rvalue**2)
  half = stats.t.ppf(0.975, len(x) - 2) * want.stderr
  assert fit.exponent.high - fit.exponent.mean == pytest.approx(half)
  y, low, high = fit.at([64.0])
  inside = [f.at([64.0])[1][0] <= 3 * 64**-0.25 <= f.at([64.0])[2][0] for f in fits]
  assert low[0] < y[0] < high[0] and 0.93 <= np.mean(inside) <= 0.97
