"""A run folder in use: siglax.load, siglax evaluate, and imports that stay light."""

import json
import pathlib
import shutil
import subprocess
import sys

import chex
import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import siglax
from siglax import config as config_lib
from siglax import tower as tower_lib
from siglax.commands import cli
from siglax.data import images
from siglax.data import text as text_lib
from siglax.interop import stablehlo
from siglax.runs import checkpoint
from siglax.runs import folder as folder_lib
from siglax.runs import records
from siglax.tower import export
from siglax.training import initial
from siglax.training import loop
from siglax.training import run as run_lib

TINY = pathlib.Path(__file__).parent / "tiny.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run")
  loop.train(config_lib.load(f"{TINY}:steps=2"), workdir)
  return workdir


@pytest.fixture(scope="module")
def tower(folder):
  return siglax.load(folder)


def test_one_text_or_picture_is_no_list_of_them(tower):
  for call in (
    lambda: tower.embed_texts("a red circle"),
    lambda: tower.embed_images("a.png"),
    lambda: tower.embed_images(b"\x89PNG"),
    lambda: tower.zero_shot([np.zeros((16, 16, 3), np.uint8)], "red circle"),
    lambda: tower.zero_shot([np.zeros((16, 16, 3), np.uint8)], ["red circle"], templates="a {}."),
  ):
    with pytest.raises(ValueError, match=r"is one (str|bytes); give a list: \["):
      call()
  assert tower.embed_images([]).shape == tower.embed_texts([]).shape == (0, 16)


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

  monkeypatch.setattr(tower_lib.tower, "Embedder", counted)
  tower, picture = siglax.load(folder), np.zeros((16, 16, 3), np.uint8)
  for count in (1, 9, 12, 40):
    tower.embed_images([picture] * count)
  assert sizes == [8, 16]  # 8 devices; config.eval.batch_size is 16


def test_templates_whose_texts_cancel_say_nothing_of_a_class(tower, monkeypatch):
  """And no NaN, as in an evaluation."""
  up = np.eye(1, tower.model.embed_dim, dtype=np.float32)
  texts = {"a": up, "not a": -up}
  monkeypatch.setattr(tower, "embed_texts", lambda given: np.concatenate([texts[t] for t in given]))
  logits = tower.zero_shot([np.zeros((16, 16, 3), np.uint8)], ["a"], ["{}", "not {}"])
  np.testing.assert_array_equal(logits, [[np.float32(tower.bias)]])
  with pytest.raises(ValueError, match="templates is empty; give at least one"):
    tower.zero_shot([np.zeros((16, 16, 3), np.uint8)], ["a"], [])


def test_logits_and_zero_shot(tower):
  pictures = list(np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3), np.uint8))
  names, templates = ["red circle", "blue ring"], ("a {}.", "the {}")
  zimg = tower.embed_images(pictures)
  np.testing.assert_allclose(np.linalg.norm(zimg, axis=1), 1, atol=1e-6)
  means = np.stack(
    [tower.embed_texts([t.format(n) for t in templates]).mean(axis=0) for n in names]
  )
  want = tower.scale * zimg @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T + tower.bias
  np.testing.assert_allclose(tower.zero_shot(pictures, names, templates), want, atol=1e-5)
  assert tower.logits(zimg, means).shape == (3, 2)


def test_evaluate_repeats_the_last_evaluation_of_the_run(folder, capsys):
  # The training data is not needed
  gone = [
    "--config.data.0.source=parquet",
    "--config.data.0.path=gone.parquet",
  ]
  # The task "loss" has batches of it
  assert cli.main(["evaluate", "--from", str(folder), "--config.batch_size=13"]) == 1
  assert "config.batch_size=13 is not divisible by the 8 devices" in capsys.readouterr().err
  assert cli.main(["evaluate", "--from", str(folder), "--config.text.length=10"]) == 1
  assert (
    "config.text.length is the run's own; an evaluation can change batch_size, "
    in capsys.readouterr().err
  )
  assert cli.main(["evaluate", "--from", str(folder), *gone]) == 0
  last = [r for r in records.read(folder) if any(k.startswith("eval/") for k in r)][-1]
  found = json.loads((folder / "eval.json").read_text())
  assert [r["task"] for r in found] == ["zeroshot_classification", "zeroshot_retrieval", "loss"]
  for record in found:
    for name, value in record["metrics"].items():
      assert value == pytest.approx(last[f"eval/{record['dataset']}/{name}"], abs=1e-6)
  assert "eval/classes/acc1" in capsys.readouterr().out


def test_init_from_starts_from_another_run(folder, tmp_path):
  c = config_lib.load(f"{TINY}:steps=2")
  c.model.init_from = str(folder)
  run = run_lib.Run(c, tmp_path)
  old, new = siglax.load(folder).params, run.initial_state().params
  chex.assert_trees_all_equal(old, new)
  c.model.image.scan = c.model.text.scan = (
    False  # blocks apart, where those of the other run are stacked
  )
  apart = run_lib.Run(c, tmp_path).initial_state().params
  for tower in ("image", "text"):
    for i, block in apart[tower]["encoder"]["blocks"].items():
      jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b[int(i)]),
        block,
        old[tower]["encoder"]["blocks"],
      )
  np.testing.assert_array_equal(apart["text"]["head"]["kernel"], old["text"]["head"]["kernel"])
  image = siglax.load(f"{folder}:img").params
  chex.assert_trees_all_equal(image, {"image": old["image"]})
  jax.tree.map(
    np.testing.assert_array_equal,
    initial.initial_params(f"{folder}:img", run.model, run.mesh),
    image,
  )


def test_init_from_a_run_of_another_resolution_or_loss(folder, tmp_path, caplog):
  c = config_lib.load(str(TINY))
  c.model.init_from, c.image.size, c.loss.name = str(folder), 24, "softmax"
  params = run_lib.Run(c, tmp_path).initial_state().params
  old = siglax.load(folder).params
  assert params["image"]["pos_embedding"].shape == (9, 16) and "bias is left out" in caplog.text
  np.testing.assert_array_equal(params["image"]["norm"]["scale"], old["image"]["norm"]["scale"])
  c.model.image.width = 32
  with pytest.raises(
    ValueError, match="holds other towers: config.model.*image.width is 16 there and 32 here"
  ):
    run_lib.Run(c, tmp_path).initial_state()


def filled(like, value):
  return jax.tree.map(lambda x: jax.device_put(jnp.full(x.shape, value, x.dtype), x.sharding), like)


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
  """A run with an average and a frozen image tower: parameters of 3 throughout, their average 7,
  the frozen ones 3 alone.
  """
  c = config_lib.load(str(TINY))
  c.train.ema, c.optim.lr_multipliers = 0.5, (("image/.*", None), (".*", 1.0))
  run = run_lib.Run(c, tmp_path_factory.mktemp("averaged"))
  folder_lib.write(run.workdir, run.config, run.text)
  shapes = run.abstract_state
  state = filled(shapes, 0).replace(
    step=jax.device_put(np.int32(1), shapes.step.sharding),
    params=filled(shapes.params, 3),
    ema=filled(shapes.ema, 7),
  )
  checkpoints = checkpoint.Checkpoints(run.workdir, c.checkpoint)
  checkpoints.save(1, state, {})
  checkpoints.wait()
  checkpoints.close()
  return run


def test_the_average_is_what_is_loaded_exported_and_started_from(averaged, tmp_path):
  loaded = siglax.load(averaged.workdir)
  started = initial.initial_params(averaged.workdir, averaged.model, averaged.mesh)
  for params in (loaded.params, started):
    assert set(params) == {"image", "text", "log_scale", "bias"}
    for name, tree in params.items():
      assert {float(v) for x in jax.tree.leaves(tree) for v in np.unique(x)} == {
        3.0 if name == "image" else 7.0
      }, name
  assert (loaded.scale, loaded.bias) == (pytest.approx(np.exp(7)), 7)
  assert set(np.unique(siglax.load(f"{averaged.workdir}:txt").params["text"]["embedding"])) == {7}
  values = lambda arrays: {name: set(np.unique(x).tolist()) for name, x in arrays.items()}
  out = {}
  for form in ("hf", "big_vision"):
    export.export(averaged.workdir, form, tmp_path / f"{form}.npz")
  out["hf"] = values(safetensors.numpy.load_file(tmp_path / "hf.npz" / "model.safetensors"))
  out["big_vision"] = values(np.load(tmp_path / "big_vision.npz"))
  for form, image in (("hf", "vision_model."), ("big_vision", "params/img/")):
    for name, found in out[form].items():
      assert found == {3.0 if name.startswith(image) else 7.0}, (form, name)
  params = {name: stablehlo.params(loaded, name, np.float32) for name in ("image", "text")}
  assert [set().union(*values(params[name]).values()) for name in params] == [{3.0}, {7.0}]


def said(caplog, c, source, tmp_path):
  """The lines that a start from `source` writes about its inputs."""
  c.model.init_from = str(source)
  run = run_lib.Run(c, tmp_path)
  caplog.clear()
  initial.initial_params(c.model.init_from, run.model, run.mesh, run.config)
  return [r.getMessage() for r in caplog.records if "other inputs" in r.getMessage()]


def test_a_start_says_which_inputs_it_changes(averaged, tmp_path, caplog):
  c = config_lib.load(str(TINY))
  assert said(caplog, c, averaged.workdir, tmp_path) == []
  c.image.size, c.image.mean, c.image.std, c.image.resize, c.image.fit = (
    24,
    (0.1, 0.5, 0.5),
    (0.5, 0.5, 0.9),
    "bicubic",
    "crop",
  )
  c.text.lowercase, c.text.strip_punctuation = False, False
  image = (
    "config.image.fit is 'squash' there and 'crop' here; config.image.mean is (0.5, 0.5, 0.5) "
    "there and (0.1, 0.5, 0.5) here; "
    "config.image.resize is 'bilinear' there and 'bicubic' here; config.image.size is 16 there and "
    "24 here; "
    "config.image.std is (0.5, 0.5, 0.5) there and (0.5, 0.5, 0.9) here"
  )
  text = (
    "; config.text.lowercase is True there and False here; config.text.strip_punctuation is True "
    "there and False here"
  )
  start = "config.model.init_from={} was trained with other inputs: "
  assert said(caplog, c, averaged.workdir, tmp_path) == [
    start.format(averaged.workdir) + image + text
  ]
  # Of the image tower alone, texts are another's; of a file without a tokenizer nobody knows.
  alone = f"{averaged.workdir}:img"
  assert said(caplog, c, alone, tmp_path) == [start.format(alone) + image]
  export.export(averaged.workdir, "big_vision", tmp_path / "x.npz")
  assert said(caplog, c, tmp_path / "x.npz", tmp_path) == [start.format(tmp_path / "x.npz") + image]
  export.export(averaged.workdir, "hf", tmp_path / "hf")
  (tmp_path / "hf" / "preprocessor_config.json").write_text(
    '{"image_mean": [0.1, 0.5, 0.5], "resample": 3}'
  )
  image = (
    "config.image.fit is 'squash' there and 'crop' here; config.image.size is 16 there and 24 "
    "here; "
    "config.image.std is (0.5, 0.5, 0.5) there and (0.5, 0.5, 0.9) here"
  )
  assert said(caplog, c, tmp_path / "hf", tmp_path) == [
    start.format(tmp_path / "hf") + image + text
  ]


def test_a_start_says_that_the_tokenizer_is_another_one(averaged, tmp_path, caplog):
  c = config_lib.load(str(TINY))
  c.text.tokenizer = str(tmp_path / "copy.model")
  shutil.copy(text_lib.SHIPPED["shapes"], c.text.tokenizer)  # the same under another name
  assert said(caplog, c, averaged.workdir, tmp_path) == []
  text_lib.train_tokenizer(["a red disc", "the blue square"], c.text.tokenizer, 45)
  c.model.text.vocab_size = averaged.config.model.text.vocab_size
  (line,) = said(caplog, c, averaged.workdir, tmp_path)
  assert line.endswith(
    "other inputs: config.text.tokenizer is another one there "
    f"({averaged.workdir}/tokenizer.model) than "
    f"'{c.text.tokenizer}' here"
  )


@pytest.mark.parametrize(
  "text, match",
  [
    ("{", "cannot be read as JSON"),
    ("[1]", "holds no JSON object"),
    ('{"batch_size": "many"}', "is no config of this siglax: config.batch_size='many'"),
    ('{"image": 5}', "is no config of this siglax: config.image=5"),
    (
      '{"model": {"image": {"depht": 3}}}',
      "is no config of this siglax: config.model.image.depht is unknown",
    ),
  ],
)
def test_a_broken_config_of_a_run_is_named(text, match, tmp_path):
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(ValueError, match=match) as e:
    siglax.load(tmp_path)
  assert str(tmp_path / "config.json") in str(e.value) and "\n" not in str(e.value)


def test_tokenizer_command(tmp_path, capsys):
  out = tmp_path / "t.model"
  assert (
    cli.main(
      ["tokenizer", "--from", "shapes:examples=300", "--out", str(out), "--vocab-size", "100"]
    )
    == 0
  )
  from siglax.data.text import TextProcessor

  assert TextProcessor(out, length=24).vocab_size == 100
  assert (
    cli.main(
      [
        "tokenizer",
        "--from",
        "none.parquet",
        "--out",
        str(tmp_path / "u.model"),
        "--vocab-size",
        "100",
      ]
    )
    == 1
  )
  assert "no such file" in capsys.readouterr().err
  data, kept = tmp_path / "mine.parquet", out.read_bytes()
  data.write_bytes(b"all that I have")
  for path in (out, data):
    assert (
      cli.main(
        ["tokenizer", "--from", "shapes:examples=300", "--out", str(path), "--vocab-size", "90"]
      )
      == 1
    )
    assert f"--out {path} exists" in capsys.readouterr().err
    assert cli.main(["evaluate", "--from", str(tmp_path), "--out", str(path)]) == 1
  assert (out.read_bytes(), data.read_bytes()) == (kept, b"all that I have")


@pytest.mark.parametrize(
  "statement",
  [
    "import siglax",
    "from siglax.commands import cli; cli.main(['--help'])",
    "from siglax.commands import cli; sys.argv = ['siglax', '--help']; cli.entry()",
  ],
)
def test_imports_stay_light(statement):
  program = (
    f"import sys\ntry:\n  exec({statement!r})\nexcept SystemExit: pass\n"
    "print([m for m in ('jax', 'flax', 'grain', 'orbax', 'cv2') if m in sys.modules])"
  )
  out = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True, check=True
  ).stdout
  assert out.strip().endswith("[]")
