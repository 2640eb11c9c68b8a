"""Reading, sending, computing and fetching overlap, in bounded memory, and change no bit."""

import os
import signal
import threading

import jax
import numpy as np
import pytest

from siglax import config as config_lib
from siglax import models
from siglax.data.text import TextProcessor
from siglax.devices import mesh as mesh_lib
from siglax.tower import embedder as embedder_lib

import tiny


@pytest.fixture(scope="module")
def made():
  """An embedder of 8 rows at a time on the 8 devices, 21 pictures and 21 texts."""
  text = TextProcessor(length=12)
  config = config_lib.resolve(tiny.get_config(), text)
  model, mesh = models.build(config.model), mesh_lib.make()
  params = jax.jit(model.init, out_shardings=mesh_lib.replicated(mesh))(jax.random.key(0))
  embedder = embedder_lib.Embedder(model, params, text, mesh, batch_size=8, threads=2)
  pictures = np.random.default_rng(0).integers(0, 256, (21, 16, 16, 3), np.uint8)
  return embedder, pictures, [f"picture {i} " * (i % 3) for i in range(21)]


def one_device():
  return jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), mesh_lib.BATCH_AXES)


def test_a_batch_is_handed_out_once_two_more_are_on_the_devices():
  said = []

  def batches():
    for k in range(5):
      said.append(f"read {k}")
      yield k, np.full(2, k)

  def compute(rows):
    said.append(f"send {int(rows[0])}")
    return {"twice": 2 * rows}

  for k, outputs in embedder_lib.in_turn(compute, one_device(), batches()):
    assert isinstance(outputs["twice"], np.ndarray)
    said.append(f"fetch {int(outputs['twice'][0]) // 2}")
    assert k == int(outputs["twice"][0]) // 2
  assert said == [
    *("read 0", "send 0", "read 1", "send 1", "read 2", "send 2", "fetch 0"),
    *("read 3", "send 3", "fetch 1", "read 4", "send 4", "fetch 2", "fetch 3", "fetch 4"),
  ]


def test_embeddings_are_those_of_one_batch_after_the_other(made):
  embedder, pictures, texts = made

  def one_by_one(embed, rows, pad):
    found, width = [], 8
    for start in range(0, len(rows), width):
      part = rows[start : start + width]
      whole = np.concatenate([part, np.repeat(pad(part), width - len(part), axis=0)])
      with jax.set_mesh(embedder._mesh):
        z = embed(embedder.params, mesh_lib.to_global(embedder._mesh, whole))
      found.append(np.asarray(z)[: len(part)])
    return np.concatenate(found)

  # What stands in the rows without an example reaches no other row.
  first, last = lambda part: part[:1], lambda part: part[-1:]
  zimg = embedder.images(lambda i: pictures[i], len(pictures))
  want = one_by_one(embedder._embed_image, pictures, first)
  np.testing.assert_array_equal(zimg, want)
  np.testing.assert_array_equal(zimg, embedder.images(lambda i: pictures[i], len(pictures)))
  tokens = np.concatenate([embedder._text([text]) for text in texts])
  ztxt = embedder.texts(texts)
  np.testing.assert_array_equal(ztxt, one_by_one(embedder._embed_text, tokens, last))


@pytest.mark.parametrize("broken", [0, 9, 20])
def test_an_error_of_a_picture_or_a_text_is_raised_as_it_is(made, broken):
  embedder, pictures, texts = made

  def get(i):
    if i == broken:
      raise KeyError("no such picture")
    return pictures[i]

  with pytest.raises(KeyError, match="no such picture"):
    embedder.images(get, len(pictures))
  with pytest.raises(TypeError, match="a text must be a str, not NoneType"):
    embedder.texts([*texts[:broken], None, *texts[broken + 1 :]])
  assert not _readers()


def test_ctrl_c_ends_it_and_its_threads(made):
  embedder, pictures, _ = made

  def get(i):
    if i == 9:
      os.kill(os.getpid(), signal.SIGINT)
    return pictures[i % len(pictures)]

  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    with pytest.raises(KeyboardInterrupt):
      embedder.images(get, 10_000)
  finally:
    signal.signal(signal.SIGINT, before)
  assert not _readers()


def _readers():
  return [t.name for t in threading.enumerate() if t.name.startswith("siglax-read")]
