"""Pictures of the scenes: a muted background, and a polygon for each object."""

from __future__ import annotations

import functools
import math

import cv2
import numpy as np

from siglax.data.shapes.scenes import UNIT

TURNS = 32  # rotations of each shape that are drawn
SHIFT = 6  # cv2's fractional bits of a pixel
RGB = {
  "red": (214, 34, 38),
  "orange": (246, 132, 18),
  "yellow": (248, 220, 40),
  "green": (34, 158, 58),
  "cyan": (44, 204, 218),
  "blue": (38, 76, 222),
  "purple": (130, 44, 186),
  "pink": (250, 132, 194),
}


def draw(draws, scene, size: int) -> np.ndarray:
  """uint8 [size, size, 3] of a scene."""
  image = _background(draws, size)
  scale = size << SHIFT
  for thing in scene.things:
    centre = np.array((thing.x * scale // UNIT, thing.y * scale // UNIT), np.int32) - (
      1 << SHIFT - 1
    )
    radius = thing.radius * scale // UNIT
    light = 222 + draws.below(52)  # brightness × 0.87 … 1.07
    rgb = [min(max((c * light >> 8) + draws.below(25) - 12, 0), 255) for c in RGB[thing.colour]]
    outline = [
      (points * radius >> 12) + centre for points in outlines(thing.shape)[draws.below(TURNS)]
    ]
    cv2.fillPoly(image, outline, rgb, cv2.LINE_AA, SHIFT)
  return image


def _background(draws, size):
  """uint8 [size, size, 3]: a muted gradient or soft clouds."""
  n = 2 + draws.below(5)  # 2 × 2 knots are a gradient
  grey, contrast, tint = 50 + draws.below(156), 8 + draws.below(64), 4 + draws.below(16)
  base = [grey + draws.below(41) - 20 for _ in range(3)]
  noise = draws.bytes(n * n * 4).reshape(n, n, 4).astype(np.int32) - 128
  knots = noise[..., :1] * contrast
  knots = (knots + noise[..., 1:] * tint >> 7) + np.array(base, np.int32)
  # The exact resize is integer arithmetic: no machine rounds otherwise.
  return cv2.resize(
    knots.clip(0, 255).astype(np.uint8), (size, size), interpolation=cv2.INTER_LINEAR_EXACT
  )


@functools.cache
def outlines(shape):
  """TURNS rotations of a shape, each a list of contours: int32 [points, 2] within a circle of
  radius 4096.
  """
  circle = [math.tau * k / 24 for k in range(24)]
  contours = {  # (angle, radius) of each point; 0 points up
    "circle": [[(t, 0.9) for t in circle]],
    "square": [[(math.tau * (k + 0.5) / 4, 1) for k in range(4)]],
    "triangle": [[(math.tau * k / 3, 1) for k in range(3)]],
    "star": [[(math.tau * k / 10, 0.4 if k % 2 else 1) for k in range(10)]],
    "cross": [
      [
        (math.tau * q / 4 + math.atan2(x, y), math.hypot(x, y))
        for q in range(4)
        for x, y in ((-0.3, 0.3), (-0.3, 0.94), (0.3, 0.94))
      ]
    ],
    # Even-odd: the inner one is a hole
    "ring": [
      [(t, 0.96) for t in circle],
      [(t, 0.54) for t in circle],
    ],
  }[shape]
  most = math.pi / 9  # 20°: a square turned further is a diamond
  turned = []
  for turn in range(TURNS):
    angle = most * (2 * turn / (TURNS - 1) - 1)
    turned.append(
      [
        np.array(
          [
            [round(4096 * r * math.sin(t + angle)), -round(4096 * r * math.cos(t + angle))]
            for t, r in contour
          ],
          np.int32,
        )
        for contour in contours
      ]
    )
  return turned
