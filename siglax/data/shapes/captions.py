"""Captions of the scenes, in one of many wordings."""

from __future__ import annotations

from siglax.data.shapes.grammar import ANY_SHAPE
from siglax.data.shapes.grammar import COLOURS
from siglax.data.shapes.grammar import OPENINGS
from siglax.data.shapes.grammar import OPPOSITE
from siglax.data.shapes.grammar import PLACES
from siglax.data.shapes.grammar import RELATIONS
from siglax.data.shapes.grammar import SHAPES
from siglax.data.shapes.grammar import SIZES
from siglax.data.shapes.grammar import VERBS


def caption(draws, scene, order, frame, detail):
  """One wording. order: which object and which relation comes first. frame: how it opens."""
  phrases = [_phrase(draws, thing, detail) for thing in scene.things]
  opening, verb = (OPENINGS[frame], " ") if frame < len(OPENINGS) else ("", " is ")
  if not draws.chance(detail["where"]):  # nothing said of where
    if frame == len(OPENINGS):
      opening = "here is "
    return opening + " and ".join(phrases if order & 1 else phrases[::-1])
  if scene.place:
    place = draws.choice(PLACES[scene.place])
    return (
      f"{place} {VERBS[frame]} {phrases[0]}" if order & 1 else f"{opening}{phrases[0]}{verb}{place}"
    )
  told = scene.relations[::-1] if order & 2 else scene.relations
  if order & 1:  # from the other end
    name, other = told[0]
    first, links = phrases[other], [(OPPOSITE[name], phrases[0])]
    joint = " which is "
  else:
    first, links = phrases[0], [(told[0][0], phrases[told[0][1]])]
    joint = " and "
  links += [(name, phrases[other]) for name, other in told[1:]]
  return f"{opening}{first}{verb}" + joint.join(
    f"{draws.choice(RELATIONS[name])} {phrase}" for name, phrase in links
  )


def _phrase(draws, thing, detail):
  """ "a tiny red circle" with some of its words; its colour or its shape is always told."""
  words = []
  if draws.chance(detail["size"]):
    words.append(draws.choice(SIZES[thing.size]))
  shape, colour = draws.chance(detail["shape"]), draws.chance(detail["colour"])
  if colour or not shape:
    words.append(draws.choice(COLOURS[thing.colour]))
  words.append(draws.choice(SHAPES[thing.shape] if shape else ANY_SHAPE))
  return f"{'an' if words[0][0] in 'aeiou' else 'a'} {' '.join(words)}"
