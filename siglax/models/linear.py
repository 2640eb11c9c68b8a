"""Maps whose parameters get their gradients in float32, whatever the activations are: affine ones,
the embedding of patches and the addition of positions.

A product of bfloat16 values accumulates in float32, and its result is rounded to bfloat16. With
nnx.Linear each device rounds its part of a weight's gradient so, and the devices add their parts in
bfloat16. Here the gradient keeps the product's float32.
"""

from __future__ import annotations

import math

from flax import nnx
import jax
import jax.numpy as jnp


class Linear(nnx.Linear):
  """x·W + b: [..., d] → [..., e], computed in dtype. The gradients of W [d, e] and b [e] are
  float32, also while devices add their parts.
  """

  def __call__(self, inputs, out_sharding=None):
    if self.dtype == jnp.float32:
      return super().__call__(inputs, out_sharding)
    y = _product(inputs.astype(self.dtype), self.kernel[...])
    return y if self.bias is None else plus(y, self.bias[...])


class LoRALinear(nnx.LoRALinear, Linear):
  """x·W + b + x·A·B, of which W and b are those of `Linear` (Hu et al., arXiv 2106.09685, section
  4.1).
  """


class Patches(nnx.Conv):
  """A convolution whose strides are the sides of its kernel: [n, H, W, c] → [n, H/p, W/q, e], as
  the product of the pixels of each patch [p·q·c] with W [p, q, c, e], plus b [e]. The gradients of
  W and b are as those of `Linear`.
  """

  def __call__(self, inputs):
    p, q = self.kernel_shape[:2]
    n, height, width, channels = inputs.shape
    rows, columns = height // p, width // q
    x = inputs[:, : rows * p, : columns * q].astype(self.dtype)
    x = x.reshape(n, rows, p, columns, q, channels).transpose(0, 1, 3, 2, 4, 5)
    kernel = self.kernel[...].reshape(math.prod(self.kernel_shape[:-1]), -1)
    product = jnp.dot if self.dtype == jnp.float32 else _product
    y = product(x.reshape(n, rows, columns, -1), kernel)
    return y if self.bias is None else plus(y, self.bias[...])


@jax.custom_vjp
def _product(x, kernel):
  """x [..., d] times a float32 kernel [d, e], in the dtype of x."""
  return jnp.dot(x, kernel.astype(x.dtype))


def _product_forward(x, kernel):
  """Keeps what the gradients that are asked for need: that of the kernel x, and that of x the
  kernel, in the dtype of x.

  Where jax.checkpoint computes the product again, mesh.fsdp so gathers the kernel once for both. A
  policy sees the product here, which it would not see inside of _product.
  """
  narrow = kernel.value.astype(x.value.dtype)
  kept = x.value if kernel.perturbed else None, narrow if x.perturbed else None
  return jnp.dot(x.value, narrow), kept


def _product_backward(kept, dy):
  x, kernel = kept
  dx = None
  if kernel is not None:
    # Not by kernel.T, which would be gathered for itself.
    over = (dy.ndim - 1,), (kernel.ndim - 1,)
    dx = jax.lax.dot_general(dy, kernel, (over, ((), ())))
  if x is None:
    return dx, None
  rows = tuple(range(x.ndim - 1))
  return dx, jax.lax.dot_general(
    x, dy, ((rows, rows), ((), ())), preferred_element_type=jnp.float32
  )


_product.defvjp(_product_forward, _product_backward, symbolic_zeros=True)


@jax.custom_vjp
def plus(y, bias):
  """y [..., *s] plus a float32 bias [*s], in the dtype of y. The bias gets a float32 gradient."""
  return y + bias.astype(y.dtype)


def _plus_forward(y, bias):
  return plus(y, bias), bias


def _plus_backward(bias, dy):
  return dy, dy.sum(tuple(range(dy.ndim - bias.ndim)), dtype=bias.dtype)


plus.defvjp(_plus_forward, _plus_backward)
