"""Both towers over all devices: pictures and texts to embeddings, many at a time."""

from __future__ import annotations

import collections
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import contextlib
import json

import jax
import numpy as np

from siglax import models
from siglax.data import prepared
from siglax.data import reading
from siglax.devices import cores
from siglax.devices import distributed
from siglax.devices import mesh as mesh_lib

# Batches of pictures, or of texts, that threads read before the devices ask for them.
READ_AHEAD = 2
# Batches that are sent to the devices before the results of the oldest are asked for: one that is
# computed and one that waits for it, so that the devices have work while this process fetches
# results, and makes and sends the next batch.
IN_FLIGHT = 2
# Pictures that are worth the start of worker processes, which takes seconds.
WORKERS_FROM = 4096


class ScaleAndBias:
  """Those of `self.params`, as floats: exp(t'), and 0 where the loss has no bias."""

  @property
  def scale(self) -> float:
    return float(jax.device_get(models.scale_and_bias(self.params)[0]))

  @property
  def bias(self) -> float:
    return float(jax.device_get(models.scale_and_bias(self.params)[1]))


class Embedder(ScaleAndBias):
  """Both towers over all devices, a fixed number of examples at a time, so that each compiles once.

  Global view: all processes call together; each reads its rows of a batch, and all get every
  embedding. params may be replaced between calls, by those of the next evaluation. threads: that
  read; None takes one for each core.
  Reading, sending, computing and fetching overlap. In memory are READ_AHEAD batches that are read,
  one that is sent, and on the devices IN_FLIGHT that they work on.
  """

  def __init__(
    self, model, params, text, mesh, *, batch_size: int, threads: int | None = None, workers=0
  ):
    self.params, self._text, self._mesh = params, text, mesh
    self._batch_size, self._width = batch_size, model.embed_dim
    self.threads, self.workers = threads or cores.usable(), workers
    self._mine = mesh_lib.process_indices(mesh, batch_size)
    out = mesh_lib.replicated(mesh)
    self._embed_image = jax.jit(model.embed_image, out_shardings=out)
    self._embed_text = jax.jit(model.embed_text, out_shardings=out)

  def images(self, get: Callable[[int], np.ndarray], count: int) -> np.ndarray:
    """Unit rows float32 [count, d] of the images get(0) … get(count − 1), each uint8 [S, S, 3].

    Threads call get for the rows of this process, once for each, and go on while the devices work.
    A process without any row of a batch that is not full may ask for the last image besides. A
    ValueError of get is raised by all processes, after the last batch where there are several; of
    two the one for the first image.
    Of `prepared.OfExamples` worker processes read many in place of threads, where there are some.
    """
    if self.workers and count >= WORKERS_FROM and isinstance(get, prepared.OfExamples):
      return self._images_of_workers(get, count)
    mine = (int(i) for _, rows in self._batches(count) for i in rows if i >= 0)
    found = reading.read_ahead(get, mine, READ_AHEAD * len(self._mine), self.threads)
    spare, broken = None, []

    def read(rows):
      nonlocal spare
      images = [None if i < 0 else _sound(*next(found), broken) for i in rows]
      spare = next((image for image in images if image is not None), spare)
      if spare is None and broken:
        raise broken[0][1]
      if spare is None:
        spare = get(count - 1)
      return np.stack([spare if image is None else image for image in images])

    with contextlib.closing(found):
      zimg = self._run(self._embed_image, read, count)
    _raise_first(broken)
    return zimg

  def _images_of_workers(self, get: prepared.OfExamples, count: int) -> np.ndarray:
    rows = [rows for _, rows in self._batches(count)]
    read = prepared.batches(
      get.read, rows, len(self._mine), threads=self.threads, workers=self.workers
    )
    broken = []

    def batches():
      for (places, rows), (images, rests) in zip(self._batches(count), read):
        for i, rest in zip(rows.tolist(), rests):
          if i >= 0 and isinstance(rest, prepared.LeftOut):
            _sound(i, ValueError(rest.said), broken)
          elif i >= 0:
            get.rest[i] = rest
        yield places, images

    with contextlib.closing(read):
      zimg = self._gathered(self._embed_image, batches(), count)
    _raise_first(broken)
    return zimg

  def texts(self, texts: list[str]) -> np.ndarray:
    """Unit rows float32 [len(texts), d]. Threads tokenize the rows of this process."""
    batches = list(self._batches(len(texts)))
    # The rows without a text, -1, take the last one.
    tokenize = lambda k: self._text([texts[i] for i in batches[k][1]])
    found = reading.read_ahead(tokenize, range(len(batches)), READ_AHEAD, self.threads)

    def read(rows):
      del rows
      _, tokens = next(found)
      if isinstance(tokens, Exception):
        raise tokens
      return tokens

    with contextlib.closing(found):
      return self._run(self._embed_text, read, len(texts))

  def _run(self, embed, read, count):
    return self._gathered(
      embed, ((places, read(rows)) for places, rows in self._batches(count)), count
    )

  def _gathered(self, embed, batches, count) -> np.ndarray:
    """The outputs for batches of (row of each example, rows of this process), one after the
    other.
    """
    found, done = np.empty((count, self._width), np.float32), 0
    for places, z in in_turn(lambda rows: embed(self.params, rows), self._mesh, batches):
      found[done : done + len(places)] = z[places]
      done += len(places)
    return found

  def _batches(self, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(row of each example of the batch, example in each row of this process) of all batches; -1
    where a row has none.

    A batch that is not full has its examples on all devices alike, so that every process reads its
    share.
    """
    for start in range(0, count, self._batch_size):
      places = np.arange(self._batch_size)
      if (left := count - start) < self._batch_size:
        places = places.reshape(self._mesh.size, -1).T.ravel()[:left]
      examples = np.full(self._batch_size, -1)
      examples[places] = start + np.arange(len(places))
      yield places, examples[self._mine]


def _sound(i: int, image, broken: list):
  """The image; None for a broken one, which joins `broken` while other processes wait for this."""
  if not isinstance(image, Exception):
    return image
  if jax.process_count() == 1 or not isinstance(image, ValueError):
    raise image
  broken.append((i, image))
  return None


def _raise_first(broken: list):
  """Raises the error of the first broken image of all processes, in all of them."""
  if jax.process_count() == 1:
    return
  mine = [(i, str(error)) for i, error in broken[:1]]
  told = [tuple(x) for text in distributed.of_all(json.dumps(mine)) for x in json.loads(text)]
  if told:
    raise ValueError(min(told)[1])


def in_turn(compute: Callable, mesh, batches: Iterable) -> Iterator[tuple]:
  """(what came with a batch, its outputs on the host) of each batch (what comes with it, rows).

  compute: rows sharded over the mesh → a tree of replicated arrays. rows: those of this process.
  Up to IN_FLIGHT batches are on the devices while the one before them is handed out; their outputs
  travel to the host as soon as they are there. An error of `batches` is raised at once.
  """
  sent = collections.deque()
  for kept, rows in batches:
    with jax.set_mesh(mesh):
      outputs = compute(mesh_lib.to_global(mesh, rows))
    sent.append((kept, jax.tree.map(mesh_lib.to_host_later, outputs)))
    del kept, rows, outputs  # of a batch that is handed out nothing is held here
    if len(sent) > IN_FLIGHT:
      yield _on_host(*sent.popleft())
  while sent:
    yield _on_host(*sent.popleft())


def _on_host(kept, outputs) -> tuple:
  return kept, jax.tree.map(np.asarray, outputs)
