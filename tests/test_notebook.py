"""docs/tower.ipynb from top to bottom, with a small SigLIP in place of the reader's run."""

import json
import pathlib
import shutil

import matplotlib
from matplotlib import pyplot as plt
import numpy as np
import pytest
from test_interop_export import folder  # noqa: F401, the SigLIP folder with a tokenizer

NOTEBOOK = pathlib.Path(__file__).parent.parent / "docs" / "tower.ipynb"


@pytest.fixture
def figures(monkeypatch):
  """What the cells have drawn."""
  monkeypatch.setattr(matplotlib.pyplot, "show", lambda: None)
  before = matplotlib.get_backend()
  plt.switch_backend("Agg")
  yield lambda: [plt.figure(number) for number in plt.get_fignums()]
  plt.close("all")
  plt.switch_backend(before)


def test_the_cells_run(folder, tmp_path, monkeypatch, capsys, figures):  # noqa: F811
  shutil.copytree(folder, tmp_path / "runs/quickstart")
  monkeypatch.chdir(tmp_path)
  cells = [c for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"]
  there = {}
  for cell in cells:
    assert cell["outputs"] == [] and cell["execution_count"] is None  # it is kept without them
    exec(compile("".join(cell["source"]), f"{NOTEBOOK}: {cell['id']}", "exec"), there)
  assert there["difference"] < 1e-5 and there["zimg"].shape[0] == len(there["pictures"])
  assert "pooling 'map'" in capsys.readouterr().out
  # What is drawn over the pictures: maps of the tower, of as many patches as it has.
  rows, columns = there["similarity"].shape[1:]
  patches = there["tower"].config.image.size // there["tower"].config.model.image.patch
  assert rows == columns == patches
  drawn = [[axis.get_images() for axis in figure.axes] for figure in figures()]
  assert [len(axes) for axes in drawn] == [4, 8, 18, 15, 3 * (1 + there["heads"])]
  for axes in drawn[3:]:
    for i, images in enumerate(axes):  # in a row the picture, then maps over it
      assert len(images) == (1 if i % (len(axes) // 3) == 0 else 2)
  last = drawn[3][11][1].get_array()
  np.testing.assert_allclose(
    last,
    there["tower"].patch_similarity([there["pictures"][there["chosen"][2]]], there["things"][2])[
      0, 0
    ],
    atol=1e-6,
  )
  # A patch that is painted over with what it had loses nothing.
  flat = np.full((16, 16, 3), 7, np.uint8)
  np.testing.assert_allclose(there["lost"](flat, ["a disc"], 2, 2), 0, atol=1e-6)
