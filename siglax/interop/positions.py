"""Learned position embeddings for another grid of patches, or another length of texts."""

from __future__ import annotations

import math

import numpy as np

CUBIC = -0.75  # torch's bicubic; transformers interpolates position embeddings with it


def resize(
  positions: np.ndarray, count: int, extra: int = 0, name: str = "position embedding"
) -> np.ndarray:
  """Positions [extra + rows², d] of a square grid → [count, d] of another; the first `extra` are no
  patches and stay.

  Raises ValueError when one of them is no square grid.
  """
  if len(positions) == count:
    return positions
  old, new = (math.isqrt(max(n - extra, 0)) for n in (len(positions), count))
  if old * old != len(positions) - extra or new * new != count - extra or not old:
    raise ValueError(
      f"{name} has {len(positions)} positions and {count} are needed; only square grids can be "
      "resized"
    )
  return np.concatenate([positions[:extra], resize_grid(positions[extra:], (old, old), (new, new))])


def resize_texts(positions: np.ndarray, count: int, pools_last: bool) -> np.ndarray:
  """Positions [length, d] of a text tower → [count, d], so that each word keeps its own.

  Longer: the last one is repeated. Shorter: the first are kept; with pools_last, of a tower that
  takes its vector from the last place (SigLIP), those before it and the last one.
  """
  if count >= len(positions):
    return np.concatenate([positions, np.repeat(positions[-1:], count - len(positions), axis=0)])
  if pools_last:
    return np.concatenate([positions[: count - 1], positions[-1:]])
  return positions[:count]


def texts_in_words(old: int, new: int, pools_last: bool) -> str:
  """What `resize_texts` does."""
  if new > old:
    return f"the last of its {old} positions is repeated"
  kept = f"the first {new - 1} and the last" if pools_last else f"the first {new}"
  return f"of its {old} positions {kept} are kept"


def resize_grid(grid: np.ndarray, old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
  """[rows·columns, d] → [new rows·new columns, d] by bicubic interpolation, edges repeated
  (align_corners=False).

  Growing, it is torch's `interpolate(mode="bicubic")` and so transformers'
  `interpolate_pos_encoding`. Shrinking, the kernel is widened by the ratio (antialiased), which
  those leave out.
  """
  rows, columns = (weights(a, b) for a, b in zip(old, new))
  x = grid.reshape(*old, -1).astype(np.float64)
  return (
    np.einsum("ai,bj,ijd->abd", rows, columns, x, optimize=True)
    .reshape(-1, x.shape[-1])
    .astype(np.float32)
  )


def weights(old: int, new: int) -> np.ndarray:
  """[new, old]: how much of each old sample goes into each new one; rows sum to 1."""
  ratio = old / new
  width = max(ratio, 1.0)
  matrix = np.zeros((new, old))
  for k in range(new):
    center = (k + 0.5) * ratio - 0.5
    first, last = math.floor(center - 2 * width) + 1, math.ceil(center + 2 * width) - 1
    taps = np.arange(first, last + 1)
    weight = _cubic(np.abs(taps - center) / width)
    np.add.at(matrix[k], taps.clip(0, old - 1), weight / weight.sum())
  return matrix


def _cubic(x: np.ndarray) -> np.ndarray:
  """Keys' kernel with the parameter CUBIC at distances x ≥ 0."""
  near = (CUBIC + 2) * x**3 - (CUBIC + 3) * x**2 + 1
  far = CUBIC * (x**3 - 5 * x**2 + 8 * x - 4)
  return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
