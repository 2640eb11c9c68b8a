"""An evaluation that worker processes read pictures for is that of threads."""

import cv2
import jax
import numpy as np
import pytest

from siglax import config as config_lib
from siglax import data
from siglax import models
from siglax.data.sources import open_source
from siglax.data.text import TextProcessor
from siglax.devices import mesh as mesh_lib
from siglax.evals import ranking
from siglax.tower import embedder as embedder_lib

import tiny


def test_workers_read_what_threads_do(tmp_path, monkeypatch):
  for i in range(21):
    cv2.imwrite(str(tmp_path / f"{i:02}.png"), np.full((20 + i, 16, 3), 10 * i, np.uint8))
    (tmp_path / f"{i:02}.txt").write_text(f"picture {i}")
  monkeypatch.setattr(embedder_lib, "WORKERS_FROM", 20)
  config = config_lib.resolve(tiny.get_config(), TextProcessor(length=12))
  model, mesh = models.build(config.model), mesh_lib.make()
  params = jax.jit(model.init, out_shardings=mesh_lib.replicated(mesh))(jax.random.key(0))
  examples = data.EvalExamples(open_source({"source": "folder", "path": str(tmp_path)}), config)
  make = lambda workers: embedder_lib.Embedder(
    model, params, None, mesh, batch_size=8, threads=2, workers=workers
  )
  indices, read = list(range(20, -1, -1)), []
  for workers in (0, 2):
    zimg, rest = ranking.embed_images(examples, indices, make(workers))
    assert [example["captions"] for example in rest] == [[f"picture {i}"] for i in indices]
    read.append(zimg)
  np.testing.assert_array_equal(*read)
  (tmp_path / "07.png").write_bytes(b"no picture")
  said = []
  for workers in (0, 2):
    with pytest.raises(ValueError, match="example 7 of .*evaluation data must be without") as e:
      ranking.embed_images(examples, indices, make(workers))
    said.append(str(e.value))
  assert said[0] == said[1]
