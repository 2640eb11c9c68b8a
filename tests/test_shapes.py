"""The built-in dataset: pure, true to its captions, without unseen pairs in training and without
shortcuts.
"""

import collections
import concurrent.futures
import hashlib
import itertools
import math
import re

import numpy as np
import pytest
import sentencepiece

from siglax.data import shapes
from siglax.data import text as text_lib
from siglax.data.shapes import CLASSNAMES
from siglax.data.shapes import SEEN
from siglax.data.shapes import UNSEEN
from siglax.data.shapes import Shapes
from siglax.data.shapes import grammar
from siglax.data.shapes import pictures
from siglax.data.shapes import scenes
from siglax.data.shapes.grammar import COLOURS
from siglax.data.shapes.grammar import OPPOSITE
from siglax.data.shapes.grammar import PLACES
from siglax.data.shapes.grammar import RELATIONS
from siglax.data.shapes.grammar import SHAPES
from siglax.data.shapes.grammar import SIZES
from siglax.data.shapes.pictures import RGB
from siglax.data.shapes.scenes import UNIT

MEANING = {
  w: name for table in (SIZES, COLOURS, SHAPES) for name, words in table.items() for w in words
}


def kind(thing):
  return f"{thing.colour} {thing.shape}"


def parse(caption):
  """(descriptions, relations, place) of a caption, read by rules of its own: no code shared with
  the grammar.
  """
  adjectives = "|".join(w for table in (SIZES, COLOURS) for words in table.values() for w in words)
  nouns = "|".join(w for words in (*SHAPES.values(), grammar.ANY_SHAPE) for w in words)
  found = list(re.finditer(rf"\ban? (?P<words>(?:(?:{adjectives}) )*(?:{nouns}))\b", caption))
  things = []
  for match in found:
    told = match["words"].split()
    things.append(
      {
        "size": next((MEANING[w] for w in told if MEANING.get(w) in SIZES), None),
        "colour": next((MEANING[w] for w in told if MEANING.get(w) in COLOURS), None),
        "shape": next((MEANING[w] for w in told if MEANING.get(w) in SHAPES), None),
      }
    )
  links = [caption[a.end() : b.start()] for a, b in itertools.pairwise(found)]
  relations = []
  for k, link in enumerate(links):
    name = [n for n, forms in RELATIONS.items() for f in forms if re.search(rf"\b{f}\b", link)]
    subject = k if "which" in link else 0
    relations.append((subject, name[0], k + 1) if name else None)
  place = {n for n, forms in PLACES.items() for f in forms if re.search(rf"\b{f}$|^{f}\b", caption)}
  return things, relations, place.pop() if place else None


def told(things, i):
  return tuple(things[i].values())


def test_same_example_from_any_instance_size_and_thread():
  a, b = Shapes("train", examples=200), Shapes("train", examples=10_000)
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    later = list(pool.map(b.__getitem__, reversed(range(200))))[::-1]
  for i in range(200):
    x, y = a[i], later[i]
    assert (
      np.array_equal(x["image"], y["image"])
      and x["captions"] == y["captions"]
      and x["label"] == y["label"]
    )
    assert x["image"].shape == (64, 64, 3) and x["image"].dtype == np.uint8


def test_scenes_and_captions_are_those_of_every_machine():
  """Integers and SHAKE-128 alone make them, so their hash holds anywhere; a change of it changes
  every result.
  """
  dataset = Shapes("test", examples=300, captions=3, detail=0.8)
  text = repr([(dataset.scene(i), dataset[i]["captions"]) for i in range(300)])
  assert hashlib.sha256(text.encode()).hexdigest()[:16] == "5cb3b1ad00021d48"


def test_seeds_splits_and_examples_differ():
  images = [
    Shapes(split, examples=50, seed=seed)[i]["image"].tobytes()
    for split in ("train", "test")
    for seed in (0, 1)
    for i in range(50)
  ]
  assert len(set(images)) == len(images)


@pytest.mark.parametrize("size", [48, 64])
def test_scene_does_not_depend_on_image_size(size):
  assert Shapes(examples=5, image_size=size).scene(3) == Shapes(examples=5).scene(3)
  assert Shapes(examples=5, image_size=size)[3]["image"].shape == (size, size, 3)


def test_training_never_shows_an_unseen_pair():
  dataset = Shapes("train", examples=4000)
  kinds = collections.Counter(kind(t) for i in range(4000) for t in dataset.scene(i).things)
  assert set(kinds) == set(SEEN) and not set(kinds) & set(UNSEEN)
  assert min(kinds.values()) > 0.7 * np.mean(list(kinds.values()))
  assert len(UNSEEN) == 8 and set(SEEN) | set(UNSEEN) == set(CLASSNAMES) and len(CLASSNAMES) == 48
  assert {c.split()[0] for c in SEEN} == set(COLOURS) and {c.split()[1] for c in SEEN} == set(
    SHAPES
  )


def test_pairs_of_test_pictures():
  size = 1500
  unseen, seen, every = (Shapes("test", examples=size, pairs=p) for p in ("unseen", "seen", None))
  assert all(kind(unseen.scene(i).things[0]) in UNSEEN for i in range(size))
  assert all(kind(t) in SEEN for i in range(size) for t in seen.scene(i).things)
  kinds = collections.Counter(kind(t) for i in range(size) for t in every.scene(i).things)
  assert set(kinds) == set(CLASSNAMES) and min(kinds.values()) > 0.5 * np.mean(list(kinds.values()))


def test_label_is_the_first_object():
  for objects in ((1,), (2, 3)):
    dataset = Shapes("test", examples=50, objects=objects)
    for i in range(50):
      assert dataset.classnames[dataset[i]["label"]] == kind(dataset.scene(i).things[0])


def test_objects_stand_where_the_scene_says():
  dataset = Shapes("test", examples=3000)
  for scene in map(dataset.scene, range(3000)):
    for t in scene.things:
      assert t.radius < min(t.x, t.y) and max(t.x, t.y) + t.radius < UNIT
    for a, b in itertools.combinations(scene.things, 2):
      assert math.dist((a.x, a.y), (b.x, b.y)) >= a.radius + b.radius + scenes.GAP
      assert kind(a) != kind(b)
      if a.size != b.size:
        assert 1.6 < max(a.radius, b.radius) / min(a.radius, b.radius) < 2.4
    a = scene.things[0]
    for name, other in scene.relations:
      b = scene.things[other]
      along, across = {
        "above": (b.y - a.y, b.x - a.x),
        "below": (a.y - b.y, b.x - a.x),
        "left": (b.x - a.x, b.y - a.y),
        "right": (a.x - b.x, b.y - a.y),
      }[name]
      assert along >= a.radius + b.radius + scenes.GAP and abs(across) <= 0.4 * along + 1
    if scene.place:
      row, column = divmod(list(PLACES).index(scene.place), 3)
      for k, at in ((row, a.y), (column, a.x)):
        assert (at < 0.38 * UNIT, 0.47 * UNIT < at < 0.53 * UNIT, at > 0.62 * UNIT)[k]
  radii = {
    size: [t.radius for i in range(3000) for t in dataset.scene(i).things if t.size == size]
    for size in SIZES
  }
  assert max(radii["small"]) < 0.8 * min(radii["large"])


@pytest.mark.parametrize("image_size", [48, 64, 224])
def test_pixels_show_the_named_colour(image_size):
  names, palette = list(RGB), np.array(list(RGB.values()))
  dataset = Shapes("test", examples=150, image_size=image_size)
  for i in range(150):
    image = dataset[i]["image"].astype(int)
    for t in dataset.scene(i).things:
      side = 0.75 * t.radius if t.shape == "ring" else 0  # a ring's centre is background
      x, y = int((t.x + side) * image_size / UNIT), int(t.y * image_size / UNIT)
      assert names[np.abs(palette - image[y, x]).sum(1).argmin()] == t.colour, (i, t)


def test_outlines_stay_within_their_radius_and_differ():
  masks = []
  for shape in SHAPES:
    for outline in pictures.outlines(shape):
      assert max(np.hypot(*points.T).max() for points in outline) < 4096 + 2
    draws = scenes.Draws("one")
    thing = scenes.Thing("small", "red", shape, UNIT // 2, UNIT // 2, scenes.RADII[3]["small"])
    drawn = pictures.draw(draws, scenes.Scene((thing,), (), "middle"), 48).astype(int)
    empty = pictures.draw(scenes.Draws("one"), scenes.Scene((), (), None), 48).astype(int)
    masks.append(np.abs(drawn - empty).sum(-1) > 150)
  for a, b in itertools.combinations(masks, 2):  # the smallest objects, at 48 pixels
    assert (a & b).sum() / (a | b).sum() < 0.9


@pytest.mark.parametrize("objects", [(1,), (2,), (3,)])
def test_captions_tell_the_scene(objects):
  dataset = Shapes("test", examples=400, objects=objects, captions=5)
  for i in range(400):
    scene, captions = dataset.scene(i), dataset[i]["captions"]
    assert len(set(captions)) == 5
    objects = {(t.size, t.colour, t.shape) for t in scene.things}
    head = scene.things[0][:3]
    facts = {(head, name, scene.things[other][:3]) for name, other in scene.relations}
    for caption in captions:
      things, relations, place = parse(caption)
      assert {told(things, k) for k in range(len(things))} == objects, caption
      said = {(told(things, a), name, told(things, b)) for a, name, b in relations}
      assert said == {f if f in said else (f[2], OPPOSITE[f[1]], f[0]) for f in facts}, caption
      assert place == scene.place, caption


def test_first_captions_tell_from_either_end():
  dataset = Shapes("test", examples=200, objects=(2,))
  for i in range(200):
    a, b = (parse(c)[0] for c in dataset[i]["captions"])
    assert told(a, 0) == told(b, 1) and told(a, 1) == told(b, 0)


def test_partial_captions_are_true_and_as_frequent_as_asked():
  dataset = Shapes("train", examples=1000, detail=0.7)
  mentioned = collections.Counter()
  for i in range(1000):
    scene = dataset.scene(i)
    for caption in dataset[i]["captions"]:
      things, relations, place = parse(caption)
      assert len(things) == len(scene.things), caption
      for thing in things:
        assert thing["colour"] or thing["shape"], caption
        assert any(
          all(v in (None, getattr(t, k)) for k, v in thing.items()) for t in scene.things
        ), caption
        mentioned.update(k for k, v in thing.items() if v)
        mentioned["things"] += 1
      assert place in (None, scene.place)
      mentioned["where"] += bool(place) or any(relations)
      mentioned["captions"] += 1
  assert abs(mentioned["size"] / mentioned["things"] - 0.7) < 0.03
  assert abs(mentioned["shape"] / mentioned["things"] - 0.7) < 0.03
  assert abs(mentioned["colour"] / mentioned["things"] - (0.7 + 0.3 * 0.3)) < 0.03
  assert abs(mentioned["where"] / mentioned["captions"] - 0.7) < 0.04


def test_no_word_gives_a_picture_away():
  dataset = Shapes("test", examples=256)
  captions = [dataset[i]["captions"][0].split() for i in range(256)]
  counts = collections.Counter(w for c in captions for w in set(c))
  assert min(counts.values()) >= 5, counts.most_common()[-5:]
  for table in (COLOURS, SHAPES, SIZES):  # and attributes are evenly told
    told = collections.Counter(MEANING[w] for c in captions for w in c if MEANING.get(w) in table)
    assert len(told) == len(table) and max(told.values()) < 2.5 * min(told.values())


def test_arrangements_say_the_same_of_the_same_objects():
  for split in ("train", "test"):
    dataset = Shapes(split, examples=400, objects=(2, 3), arrangements=4)
    for group in range(100):
      scenes = [dataset.scene(4 * group + v) for v in range(4)]
      for part in ("colour", "shape", "size"):
        assert len({tuple(sorted(getattr(t, part) for t in s.things)) for s in scenes}) == 1
      assert len({(tuple(map(kind, s.things)), s.relations) for s in scenes}) == 4
      assert split == "test" or all(kind(t) in SEEN for s in scenes for t in s.things)
      for a, b in (scenes[:2], scenes[2:]):
        assert [(OPPOSITE[n], o) for n, o in a.relations] == list(b.relations)
        assert [t[:3] for t in a.things] == [t[:3] for t in b.things]


def test_background_does_not_tell_the_object():
  """The corner pixel is background; its mean must be the same whatever the object's colour or
  shape.
  """
  dataset = Shapes("train", examples=1600, objects=(1,), image_size=16)
  corners = np.array([dataset[i]["image"][0, 0] for i in range(1600)], float)
  for part in ("colour", "shape"):
    names = np.array([getattr(dataset.scene(i).things[0], part) for i in range(1600)])
    for name in set(names):
      mine = corners[names == name]
      assert np.all(
        np.abs(mine.mean(0) - corners.mean(0)) < 4 * corners.std(0) / math.sqrt(len(mine))
      )
  assert corners.std(0).min() > 25 and np.ptp(corners, axis=1).mean() < 60  # varied, and muted


def test_shipped_tokenizer_is_what_make_tokenizer_makes(tmp_path):
  shapes.make_tokenizer(tmp_path / "again.model")
  pieces = []
  for path in (tmp_path / "again.model", text_lib.SHIPPED["shapes"]):
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    pieces.append({model.id_to_piece(k) for k in range(model.get_piece_size())})
  assert pieces[0] == pieces[1]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"split": "val"}, "split='val' is unknown; known are train, test"),
    ({"examples": 0}, "examples=0 must be at least 1"),
    ({"examples": 1e5}, "examples=100000.0 is of type float; it needs int"),
    ({"image_size": 15}, "image_size=15 must be at least 16"),
    ({"objects": ()}, "objects=() must be a tuple of numbers from 1 to 3"),
    ({"objects": 2}, "objects=2 is of type int; it needs tuple"),
    ({"objects": (1, 4)}, "objects=(1, 4) must be"),
    ({"split": "test", "pairs": "all"}, "pairs='all' is unknown"),
    ({"pairs": "unseen"}, 'pairs="unseen" is not for training'),
    ({"captions": 6}, "captions=6 must be at most 5"),
    ({"detail": 1.5}, "detail=1.5 must lie in [0, 1]"),
    ({"arrangements": 3}, "arrangements=3 must be 1, 2 or 4"),
    ({"arrangements": 2}, "arrangements=2 needs two objects or more"),
    (
      {"split": "test", "objects": (2,), "pairs": "unseen", "arrangements": 4},
      "use arrangements=2",
    ),
  ],
)
def test_errors_name_the_argument(arguments, message):
  with pytest.raises(ValueError, match=re.escape(message)) as error:
    Shapes(**arguments)
  assert "\n" not in str(error.value)


def test_index_out_of_range():
  for i in (-1, 3):
    with pytest.raises(IndexError):
      Shapes(examples=3)[i]
  assert (
    len(list(Shapes(examples=3))) == 3
    and Shapes(examples=3)[np.int64(2)]["label"] == Shapes(examples=3)[2]["label"]
  )
