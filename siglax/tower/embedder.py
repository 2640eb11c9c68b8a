"""Both towers over all devices: pictures and texts to embeddings, many at a time."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import concurrent.futures

import jax
import numpy as np

from siglax import models
from siglax.devices import mesh as mesh_lib


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
  embedding. params may be replaced between calls, by those of the next evaluation.
  """

  def __init__(self, model, params, text, mesh, *, batch_size: int, threads: int = 2):
    self.params, self._text, self._mesh = params, text, mesh
    self._batch_size, self._threads, self._width = batch_size, threads, model.embed_dim
    out = mesh_lib.replicated(mesh)
    self._embed_image = jax.jit(model.embed_image, out_shardings=out)
    self._embed_text = jax.jit(model.embed_text, out_shardings=out)

  def images(self, get: Callable[[int], np.ndarray], count: int) -> np.ndarray:
    """Unit rows float32 [count, d] of the images get(0) … get(count − 1), each uint8 [S, S, 3]."""
    with concurrent.futures.ThreadPoolExecutor(self._threads) as pool:
      return self._run(self._embed_image, lambda rows: np.stack(list(pool.map(get, rows))), count)

  def texts(self, texts: list[str]) -> np.ndarray:
    """Unit rows float32 [len(texts), d]."""
    return self._run(
      self._embed_text, lambda rows: self._text([texts[i] for i in rows]), len(texts)
    )

  def _run(self, embed, read, count):
    mine = mesh_lib.process_indices(self._mesh, self._batch_size)
    # The last batch repeats its last example up to the full size; those rows are cut off again.
    batches = (
      (None, read(np.minimum(start + mine, count - 1).tolist()))
      for start in range(0, count, self._batch_size)
    )
    done = [z for _, z in in_turn(lambda rows: embed(self.params, rows), self._mesh, batches)]
    return np.concatenate(done)[:count] if done else np.zeros((0, self._width), np.float32)


def in_turn(compute: Callable, mesh, batches: Iterable) -> Iterator[tuple]:
  """(what came with a batch, its outputs on the host) of each batch (what comes with it, rows).

  compute: rows sharded over the mesh → a tree of replicated arrays. rows: those of this process.
  The devices work on a batch while the one before is handed out and the next one is read.
  """
  before = None
  for kept, rows in batches:
    with jax.set_mesh(mesh):
      outputs = compute(mesh_lib.to_global(mesh, rows))
    if before is not None:
      yield before[0], jax.tree.map(mesh_lib.to_host, before[1])
    before = kept, outputs
  if before is not None:
    yield before[0], jax.tree.map(mesh_lib.to_host, before[1])
