"""In float64 numpy, written from the formulas: the losses, value and gradients (zimg, ztxt, scale,
bias); the transformer.
"""

import jax
import numpy as np


def batch(B, d, rank=6, seed=1):
  """Unit zimg, ztxt (float32 numbers in float64), weights and labels.

  Texts lean towards their images, and all lie near a subspace of few dimensions: negatives are near
  at any d.
  """
  rng = np.random.default_rng(seed)
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  inside = rng.normal(size=(rank, d))
  draw = lambda: unit(rng.normal(size=(B, rank)) @ inside) + 0.1 * unit(rng.normal(size=(B, d)))
  zimg = unit(draw())
  ztxt = unit(zimg + draw())
  exact = lambda x: x.astype(np.float32).astype(np.float64)
  return exact(zimg), exact(ztxt), exact(rng.uniform(0.5, 2, B)), rng.integers(0, B // 3 + 1, B)


def matching(labels, n):
  return np.eye(n) if labels is None else (labels[:, None] == labels[None, :]).astype(float)


def gradients(dx, zimg, ztxt, scale):
  """Of x = scale·zimg·ztxtᵀ + bias, from dL/dx."""
  return scale * dx @ ztxt, scale * dx.T @ zimg, (dx * (zimg @ ztxt.T)).sum(), dx.sum()


def sigmoid(zimg, ztxt, scale, bias, w=None, labels=None):
  """dL/dx_ij = w_i w_j (σ(x_ij) − p_ij) / Σw."""
  w = np.ones(len(zimg)) if w is None else w
  x, p, ww = scale * zimg @ ztxt.T + bias, matching(labels, len(zimg)), np.outer(w, w) / w.sum()
  loss = (ww * (np.logaddexp(0, x) - p * x)).sum()
  return loss, gradients(ww * (1 / (1 + np.exp(-x)) - p), zimg, ztxt, scale)


def softmax(zimg, ztxt, scale, bias, w=None, labels=None):
  """Row by row, then column by column."""
  w = np.ones(len(zimg)) if w is None else w
  x, p = scale * zimg @ ztxt.T, matching(labels, len(zimg))
  loss, dx = 0.0, np.zeros_like(x)
  for y, g in ((x, dx), (x.T, dx.T)):
    for i in np.flatnonzero(w):
      e = w * np.exp(y[i] - y[i].max())
      q = p[i] * w / (p[i] * w).sum()
      loss += 0.5 * w[i] / w.sum() * (np.log(e.sum()) + y[i].max() - q @ y[i])
      g[i] += 0.5 * w[i] / w.sum() * (e / e.sum() - q)
  return loss, gradients(dx, zimg, ztxt, scale)[:3]


def focal(zimg, ztxt, scale, bias, w=None, labels=None, gamma=2.0):
  """−(1 − p)^γ log p, its derivative by the product rule."""
  w = np.ones(len(zimg)) if w is None else w
  z = 2 * matching(labels, len(zimg)) - 1
  p = 1 / (1 + np.exp(-z * (scale * zimg @ ztxt.T + bias)))
  minus_log = np.logaddexp(0, -z * (scale * zimg @ ztxt.T + bias))
  q = 1 / (1 + np.exp(z * (scale * zimg @ ztxt.T + bias)))
  ww = np.outer(w, w) / w.sum()
  dp = -gamma * q ** (gamma - 1) * minus_log - q**gamma / p
  return (ww * q**gamma * minus_log).sum(), gradients(ww * dp * p * q * z, zimg, ztxt, scale)


def hinge(zimg, ztxt, scale, bias, w=None, labels=None, margin=0.2, negatives="all"):
  """Pair by pair; scale and bias play no part."""
  w = np.ones(len(zimg)) if w is None else w
  s, p = zimg @ ztxt.T, matching(labels, len(zimg))
  loss, ds = 0.0, np.zeros_like(s)
  for y, g in ((s, ds), (s.T, ds.T)):
    for i in np.flatnonzero(w):
      others = [j for j in np.flatnonzero(w) if not p[i, j]]
      if negatives == "hardest":
        others = sorted(others, key=lambda j: -y[i, j])[:1]
      for j in others:
        share = w[i] * (w[j] if negatives == "all" else 1) / w.sum()
        over = margin + y[i, j] - y[i, i]
        assert abs(over) > 1e-6, (
          "a pair at the kink, where float32 may take either side: use another seed"
        )
        if over > 0:
          loss += share * over
          g[i, j] += share
          g[i, i] -= share
  return loss, (ds @ ztxt, ds.T @ zimg)


def softmax_hard(zimg, ztxt, scale, bias, w=None, labels=None, hardness=0.25):
  """Row by row, then column by column; dL/dx by the quotient rule."""
  w = np.ones(len(zimg)) if w is None else w
  x, p = scale * zimg @ ztxt.T, matching(labels, len(zimg))
  loss, dx, beta = 0.0, np.zeros_like(x), hardness
  for y, g in ((x, dx), (x.T, dx.T)):
    for i in np.flatnonzero(w):
      top, pos, neg = y[i].max(), p[i] * w, (1 - p[i]) * w
      e = np.exp(y[i] - top)
      q = pos / pos.sum()
      a, c = (neg * e ** (1 + beta)).sum(), (neg * e**beta).sum()
      P, N = (pos * e).sum(), neg.sum() * a / c
      own = 0.5 * w[i] / w.sum()
      loss += own * (np.log(P + N) + top - q @ y[i])
      dn = N * neg * ((1 + beta) * e ** (1 + beta) / a - beta * e**beta / c)
      g[i] += own * ((pos * e + dn) / (P + N) - q)
  return loss, gradients(dx, zimg, ztxt, scale)[:3]


def cyclip(zimg, ztxt, scale, bias, w=None, labels=None, cross_modal=0.25, in_modal=0.25):
  """The softmax and two sums over pairs, each with its own derivative."""
  loss, (dimg, dtxt, dscale) = softmax(zimg, ztxt, scale, bias, w, labels)
  w = np.ones(len(zimg)) if w is None else w
  ww = np.outer(w, w) / w.sum()
  turned, apart = zimg @ ztxt.T - ztxt @ zimg.T, zimg @ zimg.T - ztxt @ ztxt.T
  loss += (ww * (cross_modal * turned**2 + in_modal * apart**2)).sum()
  a, b = 4 * cross_modal * ww * turned, 4 * in_modal * ww * apart
  return loss, (dimg + a @ ztxt + b @ zimg, dtxt - a @ zimg - b @ ztxt, dscale)


def sigmoid_masked(zimg, ztxt, scale, bias, w=None, labels=None, kept="hardest", ratio=16.0):
  """The sigmoid loss of the pairs that match and of the first of the others, in their order."""
  w = np.ones(len(zimg)) if w is None else w
  s, p, ww = zimg @ ztxt.T, matching(labels, len(zimg)), np.outer(w, w) / w.sum()
  positive, negative = (p == 1) & (ww > 0), (p == 0) & (ww > 0)
  order = np.sort(s[negative])[:: -1 if kept == "hardest" else 1]
  count = min(round(ratio * positive.sum()), len(order))
  gap = np.abs(order[count - 1] - order[count]) if count < len(order) else 1
  assert gap > 1e-7, "two pairs at the limit that float32 may order either way: use another seed"
  last = (order[count - 1] + order[min(count, len(order) - 1)]) / 2 if gap < 1 else order[-1]
  keep = (s >= last if kept == "hardest" else s <= last) & negative | positive
  x = scale * s + bias
  loss = (ww * keep * (np.logaddexp(0, x) - p * x)).sum()
  return loss, gradients(ww * keep * (1 / (1 + np.exp(-x)) - p), zimg, ztxt, scale)


class GlobalContrastive:
  """SogCLR and FastCLIP, example by example: u of each side in a dict by the example's number."""

  def __init__(self, temperature="fixed", rho=6.5, epsilon=1e-14):
    self.temperature, self.rho, self.epsilon = temperature, rho, epsilon
    self.u = {}, {}

  def __call__(self, zimg, ztxt, scale, examples, gamma, w=None, labels=None):
    """(loss, gradients in zimg, ztxt and scale) of a batch, after which u are the new ones."""
    n, tau = len(zimg), 1 / scale
    w = np.ones(n) if w is None else w
    s, p = zimg @ ztxt.T, matching(labels, n)
    logs, ds, dlogs, old = 0.0, np.zeros((n, n)), 0.0, [dict(side) for side in self.u]
    outer = 1.0 if self.temperature == "unscaled" else tau
    for side, (y, dy) in enumerate(((s, ds), (s.T, ds.T))):
      for i in np.flatnonzero(w):
        others = [j for j in np.flatnonzero(w) if not p[i, j] and examples[i] != examples[j]]
        if not others:
          continue
        h = y[i, others] - y[i, i]
        share = w[others] / w[others].sum()
        e = share * np.exp(h / tau)
        seen = old[side].get(examples[i])
        u = e.sum() if seen is None else (1 - gamma) * seen + gamma * e.sum()
        if not any(examples[k] == examples[i] for k in np.flatnonzero(w[:i])):
          self.u[side][examples[i]] = u
        own = w[i] / w.sum()
        logs += own * np.log(self.epsilon + u)
        c = own * e / (self.epsilon + u) * scale
        dlogs += (c * h).sum() * tau
        np.add.at(dy[i], others, outer * c)
        dy[i, i] -= outer * c.sum()
    dscale = {
      "fixed": 0.0,
      "learned": outer * dlogs - (logs + 2 * self.rho) * tau**2,
      "unscaled": dlogs,
    }
    added = 2 * self.rho * tau if self.temperature == "learned" else 0.0
    return outer * logs + added, (ds @ ztxt, ds.T @ zimg, dscale[self.temperature])


# The transformer, over one tower's dict of parameters.


def layer_norm(x, p):
  return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p[
    "scale"
  ] + p["bias"]


def linear(x, p):
  return x @ p["kernel"] + p["bias"]


def gelu_tanh(x):
  return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def mlp(x, p):
  return linear(gelu_tanh(linear(x, p["fc1"])), p["fc2"])


def attention(q, x, p, heads):
  split = lambda y: y.reshape(*y.shape[:2], heads, -1).transpose(0, 2, 1, 3)
  q, k, v = split(linear(q, p["query"])), split(linear(x, p["key"])), split(linear(x, p["value"]))
  a = np.exp(q @ k.transpose(0, 1, 3, 2) / np.sqrt(q.shape[-1]))
  y = (a / a.sum(-1, keepdims=True)) @ v
  return linear(y.transpose(0, 2, 1, 3).reshape(y.shape[0], y.shape[2], -1), p["out"])


def encoder(x, p, heads):
  """A tower's stacked blocks and its last norm."""
  for i in range(len(p["encoder"]["blocks"]["norm1"]["scale"])):
    b = jax.tree.map(lambda leaf: leaf[i], p["encoder"]["blocks"])
    y = layer_norm(x, b["norm1"])
    x = x + attention(y, y, b["attention"], heads)
    x = x + mlp(layer_norm(x, b["norm2"]), b["mlp"])
  return layer_norm(x, p["norm"])


def map_head(x, p, heads):
  """One probe attends to all positions."""
  y = attention(np.broadcast_to(p["probe"], (len(x), 1, x.shape[2])), x, p["attention"], heads)
  return (y + mlp(layer_norm(y, p["norm"]), p["mlp"]))[:, 0]


def unit(x):
  return x / np.linalg.norm(x, axis=1, keepdims=True)
