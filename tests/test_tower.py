"""A run folder in use: siglax.load, siglax evaluate, and imports that stay light."""

import json
import pathlib
import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest

import siglax
from siglax import cli, config as config_lib, metrics, tower as tower_lib, train
from siglax.data import images

TINY = pathlib.Path(__file__).parent / "tiny.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run")
  train.train(config_lib.load(f"{TINY}:steps=2"), workdir)
  return workdir


@pytest.fixture(scope="module")
def tower(folder):
  return siglax.load(folder)


def test_pictures_of_any_kind_and_size(tower, tmp_path):
  rng = np.random.default_rng(0)
  arrays = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((16, 16), (40, 30), (9, 50))]
  png = cv2.imencode(".png", arrays[1][..., ::-1])[1].tobytes()
  (tmp_path / "c.png").write_bytes(cv2.imencode(".png", arrays[2][..., ::-1])[1].tobytes())
  z = tower.embed_images([arrays[0], png, tmp_path / "c.png"])
  pixels = np.stack([images.resize(x, 16) for x in arrays])
  np.testing.assert_allclose(z, tower.model.embed_image(tower.params, pixels), atol=1e-6)
  np.testing.assert_allclose(tower.embed_images(arrays * 7, batch_size=8)[-3:], z, atol=1e-6)
  with pytest.raises(ValueError, match=r"images\[1\]: "):
    tower.embed_images([arrays[0], b"no picture"])
  (tmp_path / "d.png").write_bytes(b"no picture")
  with pytest.raises(ValueError, match=f"^{tmp_path / 'd.png'}: the image"):
    tower.embed_images([arrays[0], tmp_path / "d.png"])


def test_one_picture_is_no_full_batch(folder, monkeypatch):
  sizes, embedder = [], tower_lib.Embedder

  def counted(*parts, batch_size):
    sizes.append(batch_size)
    return embedder(*parts, batch_size=batch_size)

  monkeypatch.setattr(tower_lib, "Embedder", counted)
  tower, picture = siglax.load(folder), np.zeros((16, 16, 3), np.uint8)
  for count in (1, 9, 12, 40):
    tower.embed_images([picture] * count)
  assert sizes == [8, 16]  # 8 devices; config.eval.batch_size is 16


def test_logits_and_zero_shot(tower):
  pictures = list(np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3), np.uint8))
  names, templates = ["red circle", "blue ring"], ("a {}.", "the {}")
  zimg = tower.embed_images(pictures)
  np.testing.assert_allclose(np.linalg.norm(zimg, axis=1), 1, atol=1e-6)
  means = np.stack([tower.embed_texts([t.format(n) for t in templates]).mean(axis=0) for n in names])
  want = tower.scale * zimg @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T + tower.bias
  np.testing.assert_allclose(tower.zero_shot(pictures, names, templates), want, atol=1e-5)
  assert tower.logits(zimg, means).shape == (3, 2)


def test_evaluate_repeats_the_last_evaluation_of_the_run(folder, capsys):
  gone = ["--config.data.0.source=parquet", "--config.data.0.path=gone.parquet"]  # the training data is not needed
  assert cli.main(["evaluate", "--from", str(folder), "--config.batch_size=13"]) == 1  # the task "loss" has batches of it
  assert "config.batch_size=13 is not divisible by the 8 devices" in capsys.readouterr().err
  assert cli.main(["evaluate", "--from", str(folder), "--config.text.length=10"]) == 1
  assert "config.text.length is the run's own; an evaluation can change eval., " in capsys.readouterr().err
  assert cli.main(["evaluate", "--from", str(folder), *gone]) == 0
  last = [r for r in metrics.read(folder) if any(k.startswith("eval/") for k in r)][-1]
  found = json.loads((folder / "eval.json").read_text())
  assert [r["task"] for r in found] == ["zeroshot_classification", "zeroshot_retrieval"]
  for record in found:
    for name, value in record["metrics"].items():
      assert value == pytest.approx(last[f"eval/{record['dataset']}/{name}"], abs=1e-6)
  assert "eval/classes/acc1" in capsys.readouterr().out


def test_init_from_starts_from_another_run(folder, tmp_path):
  c = config_lib.load(f"{TINY}:steps=2")
  c.model.init_from = str(folder)
  run = train.Run(c, tmp_path)
  old, new = siglax.load(folder).params, run.initial_state().params
  jax.tree.map(np.testing.assert_array_equal, old, new)
  c.model.image.scan = c.model.text.scan = False  # blocks apart, where those of the other run are stacked
  apart = train.Run(c, tmp_path).initial_state().params
  for tower in ("image", "text"):
    for i, block in apart[tower]["encoder"]["blocks"].items():
      jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[int(i)]), block, old[tower]["encoder"]["blocks"])
  np.testing.assert_array_equal(apart["text"]["head"]["kernel"], old["text"]["head"]["kernel"])
  image = siglax.load(f"{folder}:img").params
  jax.tree.map(np.testing.assert_array_equal, image, {"image": old["image"]})
  jax.tree.map(np.testing.assert_array_equal, tower_lib.initial_params(f"{folder}:img", run.model, run.mesh), image)


def test_init_from_a_run_of_another_resolution_or_loss(folder, tmp_path, caplog):
  c = config_lib.load(str(TINY))
  c.model.init_from, c.image.size, c.loss.name = str(folder), 24, "softmax"
  params = train.Run(c, tmp_path).initial_state().params
  old = siglax.load(folder).params
  assert params["image"]["pos_embedding"].shape == (9, 16) and "bias is left out" in caplog.text
  np.testing.assert_array_equal(params["image"]["norm"]["scale"], old["image"]["norm"]["scale"])
  c.model.image.width = 32
  with pytest.raises(ValueError, match="holds other towers: config.model.*image.width is 16 there and 32 here"):
    train.Run(c, tmp_path).initial_state()


def test_tokenizer_command(tmp_path, capsys):
  out = tmp_path / "t.model"
  assert cli.main(["tokenizer", "--from", "shapes:size=300", "--out", str(out), "--vocab-size", "100"]) == 0
  from siglax.data.text import TextProcessor

  assert TextProcessor(out, length=24).vocab_size == 100
  assert cli.main(["tokenizer", "--from", "none.parquet", "--out", str(out), "--vocab-size", "100"]) == 1
  assert "no such file" in capsys.readouterr().err


@pytest.mark.parametrize("statement", ["import siglax", "from siglax import cli; cli.main(['--help'])"])
def test_imports_stay_light(statement):
  program = f"import sys\ntry:\n  exec({statement!r})\nexcept SystemExit: pass\nprint([m for m in ('jax', 'flax', 'grain', 'orbax', 'cv2') if m in sys.modules])"
  out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
  assert out.strip().endswith("[]")
