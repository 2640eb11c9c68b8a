"""Linear classifiers z W + b of unit rows, learned for any weight decay.

Shapes: n examples, rows z_nd, of which the class is y_n, one of c. Both solvers are made of these
and then called with a decay, which gives (W_dc, b_c). The bias is not decayed, so rows are centred
first: that leaves the optimum where it is, and L-BFGS needs fewer steps.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from siglax.devices import mesh as mesh_lib
from siglax.evals import classification
from siglax.evals import kind

Weights = tuple[np.ndarray, np.ndarray]
# L-BFGS ends where no derivative is larger, where a step gains a smaller share, or after so many.
SMALLEST_DERIVATIVE, SMALLEST_GAIN, MOST_STEPS = 1e-6, 1e-9, 2000


class Logistic:
  """Minimises mean cross-entropy + decay/2 · ‖W‖²: scikit-learn's LogisticRegression with
  C = 1 / (n · decay). Global view: all processes call it together, with the same arrays.

  Sums over examples are made in float32 on all devices, the steps of L-BFGS in float64 on the host,
  from the optimum of the decay nearest to this one of those asked before.
  """

  def __init__(self, z_nd: np.ndarray, y_n: np.ndarray, classes: int):
    mesh, n = mesh_lib.make(), len(z_nd)
    self._whole, self._shape = mesh_lib.replicated(mesh), (z_nd.shape[1] + 1, classes)
    self._mean_d = z_nd.mean(axis=0, dtype=np.float64)
    padded = [
      np.pad(x, [(0, -n % mesh.size)] + [(0, 0)] * (x.ndim - 1))
      for x in (
        (z_nd - self._mean_d).astype(np.float32),
        y_n.astype(np.int32),
        np.full(n, 1 / n, np.float32),
      )
    ]
    rows = mesh_lib.batch_sharding(mesh)
    self._rows = [mesh_lib.from_whole(rows, x) for x in padded]
    self._found = {}

  def __call__(self, decay: float) -> Weights:
    import scipy.optimize  # it takes long, and every training declares this task

    near = min(self._found, key=lambda other: abs(math.log(other / decay)), default=None)
    start = np.zeros(self._shape) if near is None else self._found[near]
    found = scipy.optimize.minimize(
      lambda x: self._objective(x, decay),
      start.ravel(),
      jac=True,
      method="L-BFGS-B",
      options={
        "maxiter": MOST_STEPS,
        "maxfun": 2 * MOST_STEPS,
        "gtol": SMALLEST_DERIVATIVE,
        "ftol": SMALLEST_GAIN,
      },
    )
    self._found[decay] = found.x.reshape(self._shape)
    W_dc, b_c = self._found[decay][:-1], self._found[decay][-1]
    return W_dc, b_c - self._mean_d @ W_dc

  def _objective(self, x: np.ndarray, decay: float):
    """(value, gradient), of which the decay's part is exact."""
    x = x.reshape(self._shape)
    params = mesh_lib.from_whole(self._whole, x.astype(np.float32))
    value, gradient = jax.tree.map(mesh_lib.to_host, _cross_entropy(params, *self._rows))
    W_dc, gradient = x[:-1], gradient.astype(np.float64)
    gradient[:-1] += decay * W_dc
    return float(value) + decay / 2 * np.sum(W_dc**2), gradient.ravel()


@jax.jit
@jax.value_and_grad
def _cross_entropy(params, z_nd, y_n, weight_n):
  logits_nc = jnp.matmul(z_nd, params[:-1], precision=jax.lax.Precision.HIGHEST) + params[-1]
  own_n = jnp.take_along_axis(logits_nc, y_n[:, None], axis=1)[:, 0]
  return jnp.sum(weight_n * (jax.nn.logsumexp(logits_nc, axis=1) - own_n))


class Ridge:
  """Minimises mean ‖z W + b − t‖² + decay · ‖W‖², t 1 for the own class and −1 for others:
  scikit-learn's RidgeClassifier with alpha = n · decay. In closed form, in float64 on the host.
  """

  def __init__(self, z_nd: np.ndarray, y_n: np.ndarray, classes: int):
    n, d = z_nd.shape
    self._mean_d = z_nd.mean(axis=0, dtype=np.float64)
    self._mean_c = 2 * np.bincount(y_n, minlength=classes) / n - 1
    covariance_dd, cross_dc = np.zeros((d, d)), np.zeros((d, classes))
    for start in range(0, n, step := max(1, kind.MAX_NUMBERS // (d + classes))):
      z, y = z_nd[start : start + step] - self._mean_d, y_n[start : start + step]
      t = np.where(y[:, None] == np.arange(classes), 1, -1) - self._mean_c
      covariance_dd += z.T @ z / n
      cross_dc += z.T @ t / n
    self._values_d, self._vectors_dd = np.linalg.eigh(covariance_dd)
    self._cross_dc = self._vectors_dd.T @ cross_dc

  def __call__(self, decay: float) -> Weights:
    inverse_d = 1 / (np.maximum(self._values_d, 0) + decay)
    W_dc = self._vectors_dd @ (inverse_d[:, None] * self._cross_dc)
    return W_dc, self._mean_c - self._mean_d @ W_dc


def places(weights: Weights, z_nd: np.ndarray, y_n: np.ndarray) -> np.ndarray:
  """The place of each row's own class, from 0: see `classification.places`."""
  W_dc, b_c = weights
  step, found = max(1, kind.MAX_NUMBERS // sum(W_dc.shape)), []
  for start in range(0, len(z_nd), step):
    block = slice(start, start + step)
    found.append(classification.places(z_nd[block] @ W_dc + b_c, y_n[block]))
  return np.concatenate(found)


def accuracy(weights: Weights, z_nd: np.ndarray, y_n: np.ndarray) -> float:
  return float(np.mean(places(weights, z_nd, y_n) == 0))
