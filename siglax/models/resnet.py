"""The image tower: CLIP's ResNets (Radford et al., arXiv 2103.00020, section 2.4).

ResNets of bottlenecks (He et al., arXiv 1512.03385) with three convolutions for a stem, average
pools for strides, and attention pooling: the mean of the last feature map asks an attention layer
over all of it. Feature maps are [n, h, w, c].
"""

from __future__ import annotations

import dataclasses
import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from siglax.devices import mesh as mesh_lib
from siglax.models import transformer
from siglax.models.tower import Tower

# Width of the stem, bottlenecks of each stage, width of the shared space.
SIZES = {
  "RN50": (64, (3, 4, 6, 3), 1024),
  "RN101": (64, (3, 4, 23, 3), 512),
}
STRIDE = 32  # pixels of one place of the last feature map
EXPANSION = 4  # features that leave a bottleneck, of those inside of it
MOMENTUM = 0.9  # of the running statistics
EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class Shape:
  """Sizes of one ResNet; the last feature map has 32·width features, and a head of its pool 64."""

  width: int
  layers: tuple[int, ...]
  embed_dim: int

  @classmethod
  def of(cls, config) -> Shape:
    """The variant of a tower's config; another width keeps the variant's ratios."""
    width, layers, embed_dim = SIZES[config.variant]
    return cls(config.width or width, layers, embed_dim * (config.width or width) // width)


class BatchNorm(nnx.Module):
  """(x − mean) / √(var + ε) · scale + bias by feature, in float32 (Ioffe & Szegedy, arXiv
  1502.03167).

  Global view. In training mode (`nnx.Module.train`) mean and var are those of all examples on all
  devices, and the running ones become 0.9·running + 0.1·batch, of the unbiased variance as in
  PyTorch. Otherwise they are the running ones.
  """

  def __init__(self, features: int, scale: float = 1.0):
    self.use_running_average = True  # the attribute that nnx.Module.train and eval set
    self.scale = nnx.Param(jnp.full((features,), scale, jnp.float32))
    self.bias = nnx.Param(jnp.zeros((features,)))
    self.mean = nnx.BatchStat(jnp.zeros((features,)))
    self.var = nnx.BatchStat(jnp.ones((features,)))

  def __call__(self, x):
    dtype, x = x.dtype, x.astype(jnp.float32)
    mean, var = self.mean[...], self.var[...]
    if not self.use_running_average:
      count = x.size // x.shape[-1]
      mean, var = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
      self.mean[...] = MOMENTUM * self.mean[...] + (1 - MOMENTUM) * mean
      self.var[...] = MOMENTUM * self.var[...] + (1 - MOMENTUM) * var * (count / max(count - 1, 1))
    return ((x - mean) * (jax.lax.rsqrt(var + EPSILON) * self.scale[...]) + self.bias[...]).astype(
      dtype
    )


class ConvNorm(nnx.Module):
  """A convolution without a bias, then batch norm."""

  def __init__(
    self,
    inputs: int,
    features: int,
    size: int,
    dtype,
    rngs: nnx.Rngs,
    stride: int = 1,
    scale: float = 1.0,
  ):
    self.conv = nnx.Conv(
      inputs,
      features,
      (size, size),
      (stride, stride),
      padding=size // 2,
      use_bias=False,
      dtype=dtype,
      kernel_init=nnx.initializers.zeros,
      rngs=rngs,  # see draw_kernels
    )
    self.norm = BatchNorm(features, scale)

  def __call__(self, x):
    return self.norm(self.conv(x))


class Stem(nnx.Module):
  """Three 3×3 convolutions, the first of stride 2, then an average pool: [n, H, W, 3] → [n, H/4,
  W/4, width].
  """

  def __init__(self, width: int, dtype, rngs: nnx.Rngs):
    self.conv1 = ConvNorm(3, width // 2, 3, dtype, rngs, stride=2)
    self.conv2 = ConvNorm(width // 2, width // 2, 3, dtype, rngs)
    self.conv3 = ConvNorm(width // 2, width, 3, dtype, rngs)

  def __call__(self, x):
    for conv in (self.conv1, self.conv2, self.conv3):
      x = jax.nn.relu(conv(x))
    return average_pool(x, 2)


class Bottleneck(nnx.Module):
  """relu(shortcut(x) + conv3(pool(relu(conv2(relu(conv1(x)))))): 1×1, 3×3, 1×1; the pool, not a
  convolution, has the stride.

  The shortcut is x, or a 1×1 convolution of its pool where the shape changes. The last norm starts
  at 0, so the block at x.
  """

  def __init__(self, inputs: int, width: int, stride: int, dtype, rngs: nnx.Rngs):
    self.stride = stride
    self.conv1 = ConvNorm(inputs, width, 1, dtype, rngs)
    self.conv2 = ConvNorm(width, width, 3, dtype, rngs)
    self.conv3 = ConvNorm(width, EXPANSION * width, 1, dtype, rngs, scale=0.0)
    if stride > 1 or inputs != EXPANSION * width:
      self.shortcut = ConvNorm(inputs, EXPANSION * width, 1, dtype, rngs)

  def __call__(self, x):
    x = mesh_lib.constrain_batch(x)
    y = jax.nn.relu(self.conv2(jax.nn.relu(self.conv1(x))))
    y = self.conv3(average_pool(y, self.stride))
    if hasattr(self, "shortcut"):
      x = self.shortcut(average_pool(x, self.stride))
    return jax.nn.relu(x + y)


class ResNet(nnx.Module):
  """Images [n, H, W, 3], normalised → tokens [n, H/32·W/32, 32·width] and pooled vectors [n,
  embed_dim].
  """

  def __init__(self, config, embed_dim: int, rngs: nnx.Rngs):
    shape, dtype = Shape.of(config), jnp.dtype(config.dtype)
    self.dtype, self.remat = dtype, config.remat
    self.stem = Stem(shape.width, dtype, rngs)
    features, stages = shape.width, []
    for stage, count in enumerate(shape.layers):
      width, blocks = shape.width * 2**stage, []
      for block in range(count):
        blocks.append(Bottleneck(features, width, 2 if stage and not block else 1, dtype, rngs))
        features = EXPANSION * width
      stages.append(nnx.List(blocks))
    self.stages = nnx.List(stages)
    positions = (config.image_size // STRIDE) ** 2 + 1
    self.pos_embedding = nnx.Param(
      nnx.initializers.normal(features**-0.5)(rngs.params(), (positions, features))
    )
    self.pool = transformer.Attention(features, shape.width // 2, dtype, rngs, embed_dim)
    draw_kernels(
      [module for _, module in nnx.iter_modules(self) if isinstance(module, nnx.Conv)],
      rngs.params(),
    )

  def tokens(self, images):
    """The last feature map before the attention pool, row by row, [n, H/32·W/32, 32·width]."""
    x = run(self.stem, images.astype(self.dtype), self.remat)
    for stage in self.stages:
      for block in stage:
        x = run(block, x, self.remat)
    return x.reshape(x.shape[0], -1, x.shape[-1])

  def __call__(self, images, keys=None):
    """keys: of dropout, which there is none of."""
    x = self._positions(images)
    return self.pool(x[:, :1], x)[:, 0]

  def _positions(self, images):
    """The mean of the last feature map, then its places, all with their positions."""
    x = self.tokens(images)
    mean = x.mean(axis=1, keepdims=True, dtype=jnp.float32).astype(x.dtype)
    return jnp.concatenate([mean, x], axis=1) + self.pos_embedding[...].astype(x.dtype)

  def patch_embeddings(self, images):
    """[n, places, embed_dim]: what the tower would give if pooling saw one place alone."""
    x = self._positions(images)[:, 1:]
    n, places, width = x.shape
    x = x.reshape(n * places, 1, width)
    return self.pool(x, x).reshape(n, places, -1)

  def pooling_attention(self, images):
    """Float32 [n, heads, places]: what pooling takes of each place; the sums lack what it takes of
    their mean.
    """
    x = self._positions(images)
    return self.pool.weights(x[:, :1], x)[:, :, 0, 1:]


def draw_kernels(convs: list[nnx.Conv], key: jax.Array):
  """Kernels uniform in ±1/√fan_in: PyTorch's default, from which CLIP's were trained.

  One draw for all: XLA compiles each draw anew, and for a CPU fifty of them take longer than the
  training step.
  """
  sizes = [conv.kernel.size for conv in convs]
  draws = jax.random.uniform(key, (sum(sizes),), minval=-1, maxval=1)
  for conv, draw in zip(convs, jnp.split(draws, np.cumsum(sizes)[:-1])):
    shape = conv.kernel.shape
    conv.kernel[...] = draw.reshape(shape) * math.prod(shape[:-1]) ** -0.5


def average_pool(x: jax.Array, stride: int) -> jax.Array:
  return nnx.avg_pool(x, (stride, stride), (stride, stride)) if stride > 1 else x


def run(module: nnx.Module, x: jax.Array, remat: str) -> jax.Array:
  """module(x), computed again in the backward pass as config.train.remat says."""
  graphdef, state = nnx.split(module)

  def function(x, state):
    module = nnx.merge(graphdef, state)
    x = module(x)
    return x, nnx.state(module, nnx.BatchStat)

  x, statistics = transformer.rematerialised(function, remat)(x, state)
  nnx.update(module, statistics)
  return x


def check(config):
  """ValueError for a size of pictures or of the stem that its strides do not divide."""
  if config.image_size % STRIDE:
    raise ValueError(
      f"config.image.size={config.image_size} is not divisible by {STRIDE}, the stride of "
      f"config.model.image.variant={config.variant!r}"
    )
  if config.width and config.width % 2:
    raise ValueError(
      f"config.model.image.width={config.width} must be even for "
      f"config.model.image.variant={config.variant!r}"
    )


TOWER = Tower(
  name="resnet",
  doc="CLIP's ResNet with attention pooling (arXiv 2103.00020), batch norm over the whole batch",
  variants=SIZES,
  build=ResNet,
  embed_dim=lambda config: Shape.of(config).embed_dim,
  uses=("width", "remat"),
  check=check,
  shape=Shape.of,
  identity=lambda config, _: {"variant": config.variant, "width": Shape.of(config).width},
  rows_before_grid=lambda config: 1,  # the mean token
  stride=lambda config: STRIDE,
  has_batch_norm=True,
)
