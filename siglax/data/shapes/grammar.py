"""The words of the built-in dataset: what a scene may hold, and how a caption may say it."""

from __future__ import annotations

# The first word of each tuple names the attribute, the others mean exactly the same.
SIZES = {"small": ("small", "tiny", "little"), "large": ("large", "big", "huge")}
COLOURS = {
  "red": ("red", "crimson"),
  "orange": ("orange", "amber"),
  "yellow": ("yellow", "golden"),
  "green": ("green", "emerald"),
  "cyan": ("cyan", "turquoise"),
  "blue": ("blue", "cobalt"),
  "purple": ("purple", "violet"),
  "pink": ("pink", "rose"),
}
SHAPES = {
  "circle": ("circle", "disc"),
  "square": ("square", "box"),
  "triangle": ("triangle", "wedge"),
  "star": ("star",),
  "cross": ("cross", "plus"),
  "ring": ("ring", "hoop"),
}
ANY_SHAPE = ("thing", "object", "shape")
RELATIONS = {
  "above": ("above", "over"),
  "below": ("below", "under"),
  "left": ("left of", "to the left of"),
  "right": ("right of", "to the right of"),
}
OPPOSITE = {"above": "below", "below": "above", "left": "right", "right": "left"}
PLACES = {
  "top left": ("in the top left corner", "in the upper left corner"),
  "top": ("at the top",),
  "top right": ("in the top right corner", "in the upper right corner"),
  "left": ("on the left",),
  "middle": ("in the middle", "in the center"),
  "right": ("on the right",),
  "bottom left": ("in the bottom left corner", "in the lower left corner"),
  "bottom": ("at the bottom",),
  "bottom right": ("in the bottom right corner", "in the lower right corner"),
}
PLACE_NAMES = tuple(PLACES)  # row by row
OPENINGS = ("", "there is ", "a picture of ", "we see ")
# After a place: "in the middle sits a red circle"
VERBS = (
  "is",
  "there is",
  "sits",
  "we see",
  "lies",
)
FRAMES = len(OPENINGS) + 1  # the last is a sentence: "a red circle is above a blue square"

CLASSNAMES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
# A Latin rule: every colour misses one shape, every shape one or two colours.
UNSEEN = tuple(f"{colour} {list(SHAPES)[i % len(SHAPES)]}" for i, colour in enumerate(COLOURS))
SEEN = tuple(name for name in CLASSNAMES if name not in UNSEEN)

TELLABLE = ("size", "colour", "shape", "where")  # what a caption may leave out
