"""Affine maps whose parameters get their gradients in float32, whatever the activations are.

A product of bfloat16 values accumulates in float32, and its result is rounded to bfloat16. With
nnx.Linear each device rounds its part of a weight's gradient so, and the devices add their parts in
bfloat16. Here the gradient keeps the product's float32.
"""

from __future__ import annotations

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
    return y if self.bias is None else _plus(y, self.bias[...])


class LoRALinear(nnx.LoRALinear, Linear):
  """x·W + b + x·A·B, of which W and b are those of `Linear` (Hu et al., arXiv 2106.09685, section
  4.1).
  """


@jax.custom_vjp
def _product(x, kernel):
  """x [..., d] times a float32 kernel [d, e], in the dtype of x."""
  return jnp.dot(x, kernel.astype(x.dtype))


def _product_forward(x, kernel):
  return _product(x, kernel), (x, kernel)


def _product_backward(kept, dy):
  x, kernel = kept
  rows = tuple(range(x.ndim - 1))
  dkernel = jax.lax.dot_general(
    x, dy, ((rows, rows), ((), ())), preferred_element_type=kernel.dtype
  )
  return jnp.dot(dy, kernel.astype(dy.dtype).T), dkernel


_product.defvjp(_product_forward, _product_backward)


@jax.custom_vjp
def _plus(y, bias):
  """y [..., e] plus a float32 bias [e], in the dtype of y."""
  return y + bias.astype(y.dtype)


def _plus_forward(y, bias):
  return _plus(y, bias), bias


def _plus_backward(bias, dy):
  return dy, dy.sum(tuple(range(dy.ndim - 1)), dtype=bias.dtype)


_plus.defvjp(_plus_forward, _plus_backward)
