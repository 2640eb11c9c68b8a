"""Muon for the matrices of the blocks, Adam for the rest."""

from __future__ import annotations

import math
import re

import jax
import optax
from optax import contrib

from siglax.config.parts import Field
from siglax.devices import paths
from siglax.training.optimizer import Optimizer
from siglax.training.optimizer import by_path

MATRICES = re.compile(r".*/(blocks|pool)/.*/kernel")  # of blocks and of an attention head
RMS = 0.2  # of an update, about that of Adam's


def muon(b1: float, b2: float, eps: float, muon_momentum: float) -> optax.GradientTransformation:
  """Direction of Muon for the kernels [n, m] of blocks and of the pooling head, of Adam for all
  other parameters.

  M = μ·M + (1 − μ)·g with Nesterov's step, made nearly orthogonal by five Newton-Schulz iterations,
  times 0.2·√max(n, m): an element then has the root mean square of Adam's, so that the learning
  rate of adamw serves (Liu et al., arXiv 2502.16982, section 2.2). Each layer of a stack is a
  matrix of its own. b1, b2 and eps are Adam's. As optax.contrib.scale_by_muon.
  Source: Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024.
  """
  dimensions = lambda params: jax.tree.map(
    lambda p: contrib.MuonDimensionNumbers(p.ndim - 2, p.ndim - 1), params
  )
  matrices = optax.chain(
    contrib.scale_by_muon(beta=muon_momentum, weight_dimension_numbers=dimensions),
    by_path(lambda path, u, p: u * RMS * math.sqrt(max(u.shape[-2:]))),
  )

  def label(path, p):
    is_matrix = MATRICES.fullmatch(paths.name(path)) and p.ndim == 2 + paths.is_stacked(
      paths.name(path)
    )
    return "matrices" if is_matrix else "rest"

  return optax.partition(
    {"matrices": matrices, "rest": optax.scale_by_adam(b1, b2, eps)},
    lambda params: jax.tree_util.tree_map_with_path(label, params),
  )


OPTIMIZER = Optimizer(
  "muon",
  "Muon for the matrices of the blocks (arXiv 2502.16982), with Adam for the rest, at adamw's lr",
  muon,
  uses=("b1", "b2", "eps"),
  fields={
    "muon_momentum": Field(0.95, "Decay of muon's momentum, of matrices.", least=0, below=1),
  },
)
