"""`siglax average`: the parameters between two runs, as a folder that everything opens."""

import json

import jax
import numpy as np
import pytest

import siglax
from siglax import config as config_lib
from siglax.commands import cli
from siglax.devices import paths
from siglax.tower import average
from siglax.tower import export

import saved
from tiny import get_config


def config(**fields):
  c = get_config(steps=2)
  c.eval.tasks = c.eval.tasks[1:2]
  for field, value in fields.items():
    config_lib.override(c, field, str(value))
  return c


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
  """A has its blocks apart; B another seed, a LoRA that is not zero, and an average of its own."""
  folders = [tmp_path_factory.mktemp(name) for name in "ab"]
  saved.write(config(**{"model.text.scan": False}), folders[0])
  changed = {"seed": 1, "image.resize": "bicubic", "model.text.lora_rank": 2, "train.ema": 0.9}
  add = lambda path, x: x + 0.1 if path[-1].key == "lora_b" else x
  saved.write(config(**changed), folders[1], lambda p: jax.tree_util.tree_map_with_path(add, p))
  return folders


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_each_parameter_lies_between(pair, weight, tmp_path, caplog):
  out = average.average(*pair, tmp_path / "out", weight)
  a, b, got = (siglax.load(path) for path in (*pair, out))
  a_of, b_of, got_of = (paths.flatten(t.params) for t in (a, b, got))
  assert got_of.keys() == b_of.keys()
  for name, x in got_of.items():
    # tiny.py has one block a tower
    there = a_of[name] if name in a_of else a_of[name.replace("/blocks/", "/blocks/0/")][None]
    want = (1 - weight) * np.float64(there) + weight * np.float64(b_of[name])
    if weight in (0, 1):
      np.testing.assert_array_equal(x, np.float32(want), err_msg=name)
    else:
      np.testing.assert_allclose(x, want, rtol=1e-6, atol=1e-7, err_msg=name)
  assert "config.image.resize is 'bilinear' in A and 'bicubic' in B" in caplog.text
  assert got.config.image.resize == "bicubic" and got.text.files == b.text.files


def test_it_is_evaluated_exported_and_started_from_but_not_resumed(pair, tmp_path, capsys):
  out = tmp_path / "out"
  command = ["average", *map(str, pair), "--weight", "0.5", "--out", str(out)]
  assert cli.main(command) == 0 and f"wrote {out}" in capsys.readouterr().out
  assert cli.main(command) == 1 and f"--out {out} exists" in capsys.readouterr().err
  assert cli.main(["evaluate", "--from", str(out)]) == 0
  assert json.loads((out / "eval.json").read_text())[0]["task"] == "zeroshot_retrieval"
  export.export(out, "hf", tmp_path / "hf")
  back, tower = siglax.load(tmp_path / "hf").params, siglax.load(out).params
  jax.tree.map(np.testing.assert_array_equal, back, tower)
  start = saved.write(config(**{"model.init_from": str(out)}), tmp_path / "next")
  jax.tree.map(np.testing.assert_array_equal, start.initial_state().params, tower)
  (tmp_path / "tiny.py").write_text(
    "from siglax import config\n"
    f"def get_config(): return config.read({str(out / 'config.json')!r})\n"
  )
  capsys.readouterr()
  resumed = ["train", "--config", str(tmp_path / "tiny.py"), "--workdir", str(out)]
  assert cli.main(resumed) == 1
  (line,) = capsys.readouterr().err.strip().splitlines()
  assert f"--workdir {out} holds an average of other runs" in line
  jax.tree.map(np.testing.assert_array_equal, siglax.load(out).params, tower)


def test_an_export_and_a_run(pair, tmp_path):
  """A released model and its fine-tuning: what is B's is the run's."""
  export.export(pair[0], "hf", tmp_path / "hf")
  out = average.average(tmp_path / "hf", pair[1], tmp_path / "out", 0.0)
  want, got = siglax.load(tmp_path / "hf").params, siglax.load(out)
  jax.tree.map(np.testing.assert_array_equal, got.params, want)
  assert got.config.eval.tasks[0]["kind"] == "retrieval"
  # B has no tokenizer: A's
  export.export(pair[0], "big_vision", tmp_path / "a.npz")
  out = average.average(pair[0], tmp_path / "a.npz", tmp_path / "other", 0.5)
  jax.tree.map(np.testing.assert_array_equal, siglax.load(out).params, want)
  with pytest.raises(ValueError, match="neither .* has a tokenizer"):
    average.average(tmp_path / "a.npz", tmp_path / "a.npz", tmp_path / "none")


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"model.image.width": 32}, "config.model.image.width is 16 in A and 32 in B"),
    ({"image.size": 24}, r"image/pos_embedding is \[4, 16\] in A and \[9, 16\] in B"),
    ({"loss.name": "softmax"}, r"bias is \[\] in A and absent in B"),
  ],
)
def test_towers_that_are_not_the_same(pair, fields, message, tmp_path):
  other = saved.write(config(**fields), tmp_path / "other")
  with pytest.raises(ValueError, match=message) as error:
    average.average(pair[0], other.workdir, tmp_path / "out")
  assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  "arguments, message",
  [
    (["{a}", "{b}", "--weight", "1.5"], "--weight 1.5 must lie in 0 … 1"),
    (["{a}", "{b}", "--weight", "nan"], "--weight nan must lie in 0 … 1"),
    (["{a}:img", "{b}"], "{a}:img has no text tower; siglax average needs both"),
    (["{a}", "{a}/nothing"], "{a}/nothing: no such file or folder"),
  ],
)
def test_wrong_arguments_are_one_line(pair, arguments, message, tmp_path, capsys):
  fill = lambda text: text.format(a=pair[0], b=pair[1])
  assert cli.main(["average", *map(fill, arguments), "--out", str(tmp_path / "out")]) == 1
  lines = capsys.readouterr().err.strip().splitlines()
  assert len(lines) == 1 and fill(message) in lines[0]


def test_other_tokenizers(pair, tmp_path):
  from siglax.data import text as text_lib

  file = tmp_path / "t.model"
  text_lib.train_tokenizer(["a red circle", "a blue square"] * 9, str(file), 40)
  size = text_lib.TextProcessor().vocab_size
  fields = {"text.tokenizer": str(file), "model.text.vocab_size": size}
  other = saved.write(config(**fields), tmp_path / "other")
  with pytest.raises(ValueError, match="have different tokenizers"):
    average.average(pair[0], other.workdir, tmp_path / "out")
