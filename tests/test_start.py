"""What a run takes of the checkpoint that it starts from: positions for another length of texts,
and the preprocessing where its config leaves it alone.
"""

import pathlib
import shutil

import jax
import numpy as np
import pytest

import siglax
from siglax import config as config_lib
from siglax import models
from siglax.config import fields
from siglax.devices import mesh as mesh_lib
from siglax.interop import positions
from siglax.training import initial
from siglax.training import run as run_lib

import saved
from tiny import get_config

GOLDEN = pathlib.Path(__file__).parent / "golden"
# Of the built-in tokenizer, where nobody sets another.
TOKENIZERS_OWN = {"text.lowercase": True, "text.strip_punctuation": True}


def config(**changed):
  c = get_config(steps=2)
  c.eval.tasks = ()
  for field, value in changed.items():
    config_lib.override(c, field, str(value))
  return c


@pytest.mark.parametrize("length", [3, 5, 9])
def test_texts_that_fit_are_the_same_to_a_causal_tower(length, caplog):
  """CLIP's, which sees nothing behind the end token: cut or longer, words keep their places."""
  there = siglax.load(GOLDEN / "hf_clip")
  c = there.config
  old = c.text.length
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 36, (8, 3)).astype(np.int32)
  tokens[:4, 1:], tokens[4:, 2:] = 38, 38  # the end token, after one word or two
  pad = lambda n: np.pad(tokens, ((0, 0), (0, n - 3)))
  want = there.model.embed_text(there.params, pad(old))
  c.text.length = length
  model = models.build(c.model)
  params = initial.initial_params(GOLDEN / "hf_clip", model, mesh_lib.make())
  np.testing.assert_allclose(model.embed_text(params, pad(length)), want, atol=1e-6)
  words = (
    "the last of its 6 positions is repeated"
    if length == 9
    else (f"of its 6 positions the first {length} are kept")
  )
  assert f"config.text.length is 6 there and {length} here; {words}" in caplog.text


@pytest.mark.parametrize(
  "length, kept, words",
  [
    (3, [0, 1, 5], "of its 6 positions the first 2 and the last are kept"),
    (9, [0, 1, 2, 3, 4, 5, 5, 5, 5], "the last of its 6 positions is repeated"),
  ],
)
def test_the_last_position_stays_the_last_where_it_is_pooled(length, kept, words, caplog):
  c = siglax.load(GOLDEN / "hf_siglip").config
  want = np.asarray(siglax.load(GOLDEN / "hf_siglip").params["text"]["pos_embedding"])
  c.text.length = length
  params = initial.initial_params(GOLDEN / "hf_siglip", models.build(c.model), mesh_lib.make())
  np.testing.assert_array_equal(params["text"]["pos_embedding"], want[kept])
  assert words in caplog.text
  np.testing.assert_array_equal(positions.resize_texts(want, 6, True), want)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """A run that preprocesses in its own way."""
  c = config(**{"image.resize": "bicubic", "text.lowercase": False, "text.pad": "pad"})
  c.image.mean, c.image.std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
  return saved.write(c, tmp_path_factory.mktemp("base"))


def test_another_length_from_a_run(base, tmp_path, caplog):
  old = np.asarray(base.initial_state().params["text"]["pos_embedding"])
  c = config(**{"model.init_from": base.workdir, "text.length": 8})
  params = run_lib.Run(c, tmp_path).initial_state().params
  np.testing.assert_array_equal(params["text"]["pos_embedding"], old[[*range(7), 11]])
  said = [r.getMessage() for r in caplog.records if "text.length" in r.getMessage()]
  assert said == [
    f"config.model.init_from={base.workdir}: config.text.length is 12 there and 8 here; of its 12 "
    "positions the first 7 and the last are kept"
  ]


INHERITED = {
  "image.mean": (0.1, 0.2, 0.3),
  "image.std": (0.4, 0.5, 0.6),
  "image.resize": "bicubic",
  "image.fit": "squash",
  "text.lowercase": False,
  "text.strip_punctuation": True,
  "text.pad": "pad",
}


def preprocessing(c):
  return {field: config_lib.get(c, field) for field in INHERITED}


def test_preprocessing_comes_from_the_start(base, tmp_path, caplog):
  caplog.set_level("INFO", "siglax")
  c = config(**{"model.init_from": base.workdir})
  run = run_lib.Run(c, tmp_path)
  assert preprocessing(run.config) == INHERITED
  assert run.config.model.image.mean == (0.1, 0.2, 0.3)  # which follows image.mean
  assert run.text.lowercase is False
  lines = [r.getMessage() for r in caplog.records if "from there come" in r.getMessage()]
  assert lines == [
    f"config.model.init_from={base.workdir}: from there come config.image.mean=(0.1, 0.2, 0.3), "
    "config.image.std=(0.4, 0.5, 0.6), config.image.resize='bicubic', config.text.lowercase=False, "
    "config.text.strip_punctuation=True, config.text.pad='pad'"
  ]
  caplog.clear()
  run.initial_state()
  assert "other inputs" not in caplog.text
  assert c.image.resize == "bilinear"  # the config that was given stays as it is


def test_what_a_config_sets_stays_be_it_the_default(base, tmp_path, caplog):
  c = config(**{"model.init_from": base.workdir, "image.resize": "bilinear", "text.pad": "eos"})
  c.image.std = fields.default().image.std
  run = run_lib.Run(c, tmp_path)
  kept = {"image.resize": "bilinear", "text.pad": "eos", "image.std": (0.5, 0.5, 0.5)}
  assert preprocessing(run.config) == INHERITED | kept
  run.initial_state()
  assert "config.image.resize is 'bicubic' there and 'bilinear' here" in caplog.text
  again = config_lib.from_json(config_lib.to_json(config(**{"model.init_from": base.workdir})))
  want = preprocessing(fields.default()) | TOKENIZERS_OWN
  assert preprocessing(run_lib.Run(again, tmp_path).config) == want


def test_of_one_tower_only_its_own(base, tmp_path):
  c = config(**{"model.init_from": f"{base.workdir}:img"})
  image = {name: value for name, value in INHERITED.items() if name.startswith("image.")}
  assert preprocessing(run_lib.Run(c, tmp_path).config) == preprocessing(c) | TOKENIZERS_OWN | image


def test_a_run_that_goes_on_keeps_what_it_began_with(base, tmp_path):
  shutil.copytree(base.workdir, tmp_path / "start")
  c = config(**{"model.init_from": tmp_path / "start"})
  saved.write(c, tmp_path / "run")
  shutil.rmtree(tmp_path / "start")
  assert preprocessing(run_lib.Run(c, tmp_path / "run").config) == INHERITED
  with pytest.raises(ValueError, match="start: no such file or folder"):
    run_lib.Run(c, tmp_path / "another")


def test_of_a_released_clip(tmp_path):
  c = siglax.load(GOLDEN / "hf_clip").config
  fresh = config(**{"model.init_from": f"{GOLDEN / 'hf_clip'}:img"})
  run = run_lib.Run(fresh, tmp_path)
  image = {name: config_lib.get(c, name) for name in INHERITED if name.startswith("image.")}
  assert image["image.fit"] == "crop"
  assert preprocessing(run.config) == preprocessing(fresh) | TOKENIZERS_OWN | image


def test_sharded_positions(monkeypatch):
  """Cut positions go into their shards like any others."""
  monkeypatch.setattr(mesh_lib, "FSDP_MIN_ELEMENTS", 16)
  c = siglax.load(GOLDEN / "hf_siglip").config
  c.text.length = 4
  grid = mesh_lib.make(data=4, fsdp=2)
  params = initial.initial_params(GOLDEN / "hf_siglip", models.build(c.model), grid)
  x = params["text"]["pos_embedding"]
  assert x.shape == (4, 12) and x.addressable_shards[0].data.size == 24
  assert jax.tree.all(jax.tree.map(lambda x: bool(np.isfinite(x).all()), params))
