"""Colour jitter and grey, two of SimCLR's augmentations: Chen et al. 2020, arXiv 2002.05709,
appendix A.

J is the strength, x a picture in 0 … 255, g(x) = 0.299 R + 0.587 G + 0.114 B. With factors b, c, s
uniform in [1 − 0.8 J, 1 + 0.8 J] and a turn h uniform in [−0.2 J, 0.2 J] of the circle of hues:

brightness b·x, contrast c·x + (1 − c)·mean g(x), saturation s·x + (1 − s)·g(x), hue of HSV + h,

each cut to 0 … 255 and rounded, in one of their 24 orders, as torchvision's ColorJitter has them.
"""

from __future__ import annotations

from collections.abc import Sequence
import itertools

import cv2
import numpy as np

# Of the strength J.
FACTOR, TURN = 0.8, 0.2
# Uniform numbers that a picture takes: whether it is jittered, three factors, the turn, the order,
# and whether it is grey.
DRAWS = 7


def is_on(config) -> bool:
  """Whether config.image changes colours at all."""
  return config.jitter > 0 and config.jitter_probability > 0 or config.grey_probability > 0


def changed(image: np.ndarray, draws: Sequence[float], config) -> np.ndarray:
  """uint8 [H, W, 3] in other colours, of DRAWS numbers in [0, 1).

  config: config.image, of which jitter (J), jitter_probability and grey_probability are read.
  """
  jittered, *factors, turn, order, grey = draws
  if config.jitter and jittered < config.jitter_probability:
    steps = [
      (function, 1 + FACTOR * config.jitter * (2 * factor - 1))
      for function, factor in zip((brightness, contrast, saturation), factors)
    ]
    steps.append((hue, TURN * config.jitter * (2 * turn - 1)))
    for k in _ORDERS[int(order * len(_ORDERS))]:
      function, amount = steps[k]
      image = function(image, amount)
  if grey < config.grey_probability:
    image = cv2.cvtColor(_grey(image), cv2.COLOR_GRAY2RGB)
  return image


_ORDERS = list(itertools.permutations(range(4)))
_LEVELS = np.arange(256, dtype=np.float64)


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
  return cv2.LUT(image, _rounded(factor * _LEVELS))


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
  mean = float(_grey(image).mean())
  return cv2.LUT(image, _rounded(factor * _LEVELS + (1 - factor) * mean))


def saturation(image: np.ndarray, factor: float) -> np.ndarray:
  grey = cv2.cvtColor(_grey(image), cv2.COLOR_GRAY2RGB)
  return cv2.addWeighted(image, factor, grey, 1 - factor, 0)


def hue(image: np.ndarray, turn: float) -> np.ndarray:
  """turn: of the circle."""
  channels = list(cv2.split(cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2HSV)))
  # In degrees; from a turn below 0 OpenCV would not come back.
  channels[0] += turn % 1 * 360
  return cv2.convertScaleAbs(cv2.cvtColor(cv2.merge(channels), cv2.COLOR_HSV2RGB))


def _grey(image: np.ndarray) -> np.ndarray:
  return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def _rounded(levels: np.ndarray) -> np.ndarray:
  return np.rint(levels.clip(0, 255)).astype(np.uint8)
