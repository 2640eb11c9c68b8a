"""The config: durations, overrides, files, JSON, and one line for everything that is wrong."""

import dataclasses
import math
import os
import pathlib
import subprocess
import sys

import pytest

from siglax import config as config_lib
from siglax.commands import cli
from siglax.commands import plan
from siglax.config.checks import check_train
from siglax.data.text import TextProcessor
from siglax.devices import streams
from siglax.training import checks

import tiny

ROOT = pathlib.Path(__file__).parent.parent


def valid():
  return tiny.get_config()


def test_a_duration_has_one_unit_and_an_override_replaces_it():
  c = valid()
  config_lib.override(c, "total_epochs", "1.5")
  assert (c.total_steps, c.total_examples, c.total_epochs) == (None, None, 1.5)
  assert config_lib.duration_steps(c, "total", epoch_examples=64) == 6
  config_lib.override(c, "total_examples", "160")
  assert config_lib.duration_steps(c, "total", epoch_examples=64) == 10
  config_lib.override(c, "optim.warmup_examples", "32")
  assert config_lib.duration_steps(c, "optim.warmup", 64) == 2


def test_overrides_are_typed_and_reach_into_specs():
  c = valid()
  for field, text in (
    ("data.0.examples", "99"),
    ("data.0.split", "test"),
    ("text.tokenizer", "12"),
    ("optim.lr", "1"),
  ):
    config_lib.override(c, field, text)
  assert c.data == ({"source": "shapes", "examples": 99, "image_size": 16, "split": "test"},)
  assert c.text.tokenizer == "12" and c.optim.lr == 1.0
  config_lib.override(c, "image.size", "24")
  assert c.model.image.image_size == 24


def test_none_is_a_word_where_a_field_takes_no_none():
  c = valid()
  for field, text in (
    ("train.remat.image", "full"),
    ("train.remat.image", "none"),
    ("loss.name", "none"),
    ("checkpoint.keep_best", "none"),
    ("train.microbatch", "None"),
  ):
    config_lib.override(c, field, text)
  assert c.train.remat.image == c.model.image.remat == c.loss.name == "none"
  assert c.checkpoint.keep_best is c.train.microbatch is None


@pytest.mark.parametrize(
  "field, text, message",
  [
    ("optim.ler", "1", "config.optim.ler is unknown; did you mean config.optim.lr?"),
    ("lr", "1", "did you mean config.optim.lr?"),
    ("data.3.examples", "1", "config.data.3.examples is unknown"),
    ("optim.lr", "fast", "config.optim.lr='fast' is of type str; it needs float"),
    ("optim.lr", "nan", "config.optim.lr='nan' is of type str; it needs float"),
    ("optim.lr", "-1e999", "config.optim.lr=-inf is not finite, or too large"),
    (
      "loss.margin",
      "1e300",
      "config.loss.margin=1e+300 is not finite, or too large: at most 9223372036854775807 or "
      "3.4e+38",
    ),
    ("seed", "9" * 30, "config.seed=999999999999999999999999999999 is not finite, or too large"),
    (
      "seed",
      "0x" + "f" * 5000,
      "config.seed=a number of more than 4300 digits is not finite, or too large",
    ),
    ("seed", "9" * 5000, "is of type str; it needs int"),
    ("seed", "-" * 50000 + "1", "is of type str; it needs int"),
    ("seed", "1+" * 50000 + "1", "is of type str; it needs int"),
    ("seed", "None", "config.seed=None is of type NoneType; it needs int"),
    ("seed", "True", "config.seed=True is of type bool; it needs int"),
    ("optim.lr", "True", "config.optim.lr=True is of type bool; it needs float"),
    (
      "model.image.norm_eps",
      "None",
      "config.model.image.norm_eps=None is of type NoneType; it needs float",
    ),
    (
      "train.microbatch",
      "1.5",
      "config.train.microbatch=1.5 is of type float; it needs int, or None",
    ),
    ("image.std", "half", "config.image.std='half' is of type str; it needs tuple"),
    ("data.0.path", "{b'x': 1}", "config.data.0.path has the key b'x'; a key must be a name"),
    ("data.0.seed", "1j", "config.data.0.seed=1j is of type complex, which a config cannot hold"),
    ("data.0.source.0", "x", "config.data.0.source.0 is unknown"),
    ("data.0.examples.0", "x", "config.data.0.examples.0 is unknown"),
    ("data.x", "1", "config.data.x is unknown"),
    ("data.-1.examples", "1", "config.data.-1.examples is unknown"),
    ("data.00.examples", "1", "config.data.00.examples is unknown"),
    ("eval.tasks.9.kind", "loss", "config.eval.tasks.9.kind is unknown"),
    (
      "model.image",
      "{'variant': 'S'}",
      "config.model.image is a group of fields; set one, such as config.model.image.",
    ),
    ("a\nb", "1", "config.a\\nb is unknown"),
    ("train.rematt.image", "full", "is unknown; did you mean config.train.remat.image?"),
    ("model.image.size", "B", "config.model.image.size is called config.model.image.variant now"),
  ],
)
def test_wrong_overrides(field, text, message):
  with pytest.raises(ValueError) as error:
    config_lib.override(valid(), field, text)
  assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
  "field, text, message",
  [
    ("loss.name", "triplet", "known are sigmoid, softmax, focal, hinge"),
    ("loss.impl", "rings", "known are auto, dense, ring, gather"),
    ("loss.tile", "0", "config.loss.tile=0 must be at least 1, or None"),
    ("loss.gamma", "-1.0", "config.loss.gamma=-1.0 must be at least 0"),
    ("loss.lr_multiplier", "0", "config.loss.lr_multiplier=0.0 must be positive"),
    ("optim.name", "sgd", "known are adamw, adafactor, lion"),
    ("model.image.variant", "XL", "known are Ti, S, B, L, So400m, g-opt"),
    ("data.0.source", "tfdz", "known are shapes, parquet"),
    ("data.0.exampels", "1", "did you mean examples?"),
    (
      "data.0.size",
      "9",
      "config.data.0.size is unknown; it is called examples now; source 'shapes' has split, "
      "examples",
    ),
    ("eval.tasks.0.size", "9", "config.eval.tasks.0.size is unknown; it is called examples now"),
    (
      "eval.tasks.0.data.size",
      "9",
      "config.eval.tasks.0.data.size is unknown; it is called examples now",
    ),
    ("eval.tasks.0.kind", "zero", "known are zero_shot, retrieval, loss, linear_probe"),
    ("batch_size", "1001", "config.batch_size=1001 is not divisible by the 8 devices"),
    ("batch_size", "3", "use 8"),
    ("mesh.fsdp", "3", "config.mesh.fsdp=3 does not divide the 8 devices"),
    ("mesh.slices", "3", 'config.mesh.slices=3 does not divide the 8 devices on mesh axis "data"'),
    ("mesh.slices", "0", "config.mesh.slices=0 must be a number of slices, at least 1, or"),
    ("mesh.data", "3", "config.mesh.data=3 × config.mesh.fsdp=1 is 3, but there are 8 devices"),
    ("image.size", "20", "config.image.size=20 is not divisible by config.model.image.patch=8"),
    ("total_steps", "0", "config.total_steps=0 must be positive"),
    ("total_steps", "None", "none of config.total_{steps,examples,epochs} set; set exactly one"),
    ("loader.threads", "0", "config.loader.threads=0 must be at least 1"),
    ("image.crop_min_area", "0", "config.image.crop_min_area=0.0 must lie in (0, 1]"),
    ("model.image.patch", "0", "config.model.image.patch=0 must be at least 1"),
    ("model.text.depth", "0", "config.model.text.depth=0 must be at least 1, or None"),
    ("optim.lr", "-1.0", "config.optim.lr=-1.0 must be positive"),
    ("loss.scale_max", "0.0", "config.loss.scale_max=0.0 must be positive"),
    ("image.std", "(0.5, 0.0, 0.5)", "config.image.std=(0.5, 0.0, 0.5) must be positive"),
    ("mesh.data", "all", "config.mesh.data='all' must be a number of devices or"),
    (
      "train.microbatch",
      "3",
      "config.train.microbatch=3 does not divide the 2 examples of a device",
    ),
    ("train.patch_drop", "1.0", "config.train.patch_drop=1.0 must lie in [0, 1)"),
    ("train.unmasked_steps", "3", "config.train.unmasked is set, but config.train.patch_drop=0"),
    ("optim.layer_decay.image", "1.5", "config.optim.layer_decay.image=1.5 must lie in (0, 1]"),
    ("model.text.lora_rank", "-1", "config.model.text.lora_rank=-1 must be at least 0"),
    ("train.ema", "1.0", "config.train.ema=1.0 must lie in (0, 1)"),
    ("profile.steps", "10", "config.profile.steps='10' must be two steps"),
    ("loss.scale_init", "0", "config.loss.scale_init=0.0 must be positive"),
    ("data", "()", "config.data is empty"),
    ("image.std", "({}, 1, 1)", "config.image.std=({}, 1, 1) must be three numbers"),
    ("image.std", "(0.5, 0.5)", "config.image.std=(0.5, 0.5) must be three numbers"),
    ("image.mean", "('a', 1, 1)", "config.image.mean=('a', 1, 1) must be three numbers"),
    ("image.mean.1", "True", "config.image.mean=(0.5, True, 0.5) must be three numbers"),
    ("seed", "-1", "config.seed=-1 must be at least 0"),
    ("seed", "4294967296", "config.seed=4294967296 must be at most 4,294,967,295"),
    (
      "model.image.width",
      "1000000000",
      "config.model.image.width=1000000000 must be at most 1,048,576, or None",
    ),
    (
      "model.text.depth",
      "1000000000",
      "config.model.text.depth=1000000000 must be at most 1,024, or None",
    ),
    ("loader.threads", "100000", "config.loader.threads=100000 must be at most 1,024"),
    ("batch_size", "4294967296", "config.batch_size=4294967296 must be at most 2,147,483,647"),
    ("model.image.heads", "3", "config.model.image: width=16 is not divisible by heads=3"),
    ("total_steps", "-5", "config.total_steps=-5 must be positive"),
    ("checkpoint.every_steps", "-5", "config.checkpoint.every_steps=-5 must be positive"),
    (
      "checkpoint.keep_every_steps",
      "0",
      "config.checkpoint.keep_every_steps=0 must be at least 1, or None",
    ),
    (
      "train.microbatch",
      "0",
      "config.train.microbatch=0 does not divide the 2 examples of a device",
    ),
    ("optim.b2", "1.0", "config.optim.b2=1.0 must lie in [0, 1)"),
    ("optim.weight_decay", "-0.1", "config.optim.weight_decay=-0.1 must be at least 0"),
    ("optim.rsqrt_timescale", "0", "config.optim.rsqrt_timescale=0 must be positive"),
    (
      "model.image.dtype",
      "abc",
      "config.model.image.dtype='abc' is not config.train.dtype='float32', which it follows; set "
      "that one",
    ),
    (
      "model.text.remat",
      "half",
      "config.model.text.remat='half' is not config.train.remat.text='none'",
    ),
    (
      "model.image.image_size",
      "64",
      "config.model.image.image_size=64 is not config.image.size=16",
    ),
    ("mesh.shard", "(5,)", "config.mesh.shard.0=5 must be a pair"),
    ("mesh.shard", "({'a': 1, 'b': 2},)", "config.mesh.shard.0={'a': 1, 'b': 2} must be a pair"),
    ("mesh.shard", "(('(', 1),)", "config.mesh.shard.0=('(', 1) must be a pair"),
    (
      "mesh.shard",
      "(('.*', 'a'),)",
      "config.mesh.shard.0=('.*', 'a') must end in a dimension from 0 up, or in None",
    ),
    ("mesh.data", "True", "config.mesh.data=True is of type bool; it needs int | str"),
    ("profile.steps", "9" * 5000 + ":1", "must be two steps"),
    ("model.init_from", "gs:/b/r", "config.model.init_from='gs:/b/r' is a URL, which siglax does "),
    ("text.tokenizer", "", "config.text.tokenizer='' is empty"),
    (
      "data",
      "({'source': ['shapes']},)",
      "config.data.0.source=('shapes',) is unknown; known are shapes",
    ),
    ("data.0", "5", "config.data.0=5 must be a dict"),
    ("data.0.weight", "-1", "config.data.0.weight=-1 must be positive, or None"),
    ("eval.tasks", "({'kind': ['loss']},)", "config.eval.tasks.0.kind=('loss',) is unknown"),
    ("eval.tasks", "({'kind': {}},)", "config.eval.tasks.0.kind={} is unknown"),
    (
      "eval.tasks.0.examples",
      "big",
      "config.eval.tasks.0.examples='big' is of type str; it needs int, or None",
    ),
    (
      "eval.tasks.0.templates",
      "a {} or {}",
      "config.eval.tasks.0.templates='a {} or {}' must be texts with one {} each",
    ),
    (
      "checkpoint.keep_best",
      "eval/none/acc1",
      "config.checkpoint.keep_best='eval/none/acc1' is no metric",
    ),
  ],
)
def test_what_does_not_fit_is_one_line(field, text, message):
  c = valid()
  with pytest.raises(ValueError) as error:
    config_lib.override(c, field, text)
    checks.validate(c, devices=8)
  assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
  "field, value, message",
  [
    (
      "total_epochs",
      1e30,
      "config.total_epochs=1e+30 comes to 4e+30 steps; at most 2,147,483,647 can be counted",
    ),
    ("total_examples", 2**40, "config.total_examples=1099511627776 comes to 6.872e+10 steps"),
    ("log.every_steps", 2**31, "config.log.every_steps=2147483648 comes to 2.147e+09 steps"),
  ],
)
def test_no_more_steps_than_a_state_can_count(field, value, message):
  c = valid()
  config_lib.override(c, field, str(value))
  checks.validate(c, devices=8)
  with pytest.raises(ValueError) as error:
    config_lib.duration_steps(c, field.rpartition("_")[0], epoch_examples=64)
  assert message in str(error.value)


def test_values_that_a_config_file_set_are_checked_too():
  for field, value, message in (
    ("norm_eps", None, "config.model.text.norm_eps=None is of type NoneType"),
    ("scan", 1, None),
    ("pool", None, "it needs str"),
    ("width", float("inf"), None),
    ("dropout", float("nan"), "config.model.text.dropout=nan is not finite"),
  ):
    c = valid()
    try:
      c.model.text[field] = value
    except TypeError:  # ml_collections noticed
      continue
    with pytest.raises(ValueError, match=message):
      checks.validate(c, devices=8)
  c = valid()
  with c.unlocked():
    c.optim.rate = 1.0
  with pytest.raises(ValueError, match="config.optim.rate is unknown"):
    checks.validate(c, devices=8)


@pytest.mark.parametrize(
  "size, microbatch, use",
  [(2**31 - 8, 7, "6 or 8"), (48, 5, "4 or 6"), (49, 5, "1 or 7"), (48, 100, "48")],
)
def test_the_nearest_microbatches_are_found_at_once(size, microbatch, use):
  c = valid()
  c.batch_size, c.train.microbatch = size, microbatch
  with pytest.raises(ValueError, match=f"use {use}$"):
    check_train(c, devices=1)


def test_the_tests_config_is_valid():
  checks.validate(valid(), devices=8)


def test_json_round_trip_and_differences():
  c = valid()
  config_lib.override(c, "eval.tasks.0.templates", "('a {}.', 'the {}')")
  again = config_lib.from_json(config_lib.to_json(c))
  assert config_lib.to_json(again) == config_lib.to_json(c)
  assert not config_lib.differences(c, again)
  again.optim.lr, again.loader.threads, again.eval.batch_size = 0.5, 7, 8
  assert config_lib.differences(c, again) == ["optim.lr is 0.001 there and 0.5 here"]


def test_resolve_fills_in_what_depends_on_other_fields():
  text = TextProcessor()
  sigmoid = config_lib.resolve(valid(), text)
  assert (
    sigmoid.model.bias_init == pytest.approx(-2.772588722)
    and sigmoid.model.text.vocab_size == text.vocab_size
  )
  for name, bias, cap in (
    ("softmax", None, 100),
    ("focal", sigmoid.model.bias_init, None),
    ("hinge", None, None),
  ):
    c = valid()
    c.loss.name = name
    c = config_lib.resolve(c, text)
    assert c.model.bias_init == bias and c.loss.scale_max == cap
  c = valid()
  c.loss.positives = "label"
  # 0 as of pairs; 1 has no odds
  for share, odds in (
    (0.1, 0.15625 / 0.84375),
    (0.0, 1 / 16),
    (1.0, 256),
  ):
    assert config_lib.resolve(c, text, lambda: share).model.bias_init == pytest.approx(
      math.log(odds)
    )
  c.loss.name, c.loss.bias_init = "hinge", -3.0
  with pytest.raises(
    ValueError, match='config.loss.bias_init=-3.0 has no place in config.loss.name="hinge"'
  ):
    config_lib.resolve(c, text)


def test_config_files(tmp_path):
  file = tmp_path / "x.py"
  file.write_text(
    "from siglax import config\ndef get_config(steps=5):\n  c = config.default()\n  c.total_steps "
    "= steps\n  return c\n"
  )
  assert config_lib.load(f"{file}:steps=7").total_steps == 7
  for path, message in (
    (f"{file}:stes=7", "arguments are steps=…"),
    (str(tmp_path / "y.py"), "no such file"),
  ):
    with pytest.raises(ValueError, match=message):
      config_lib.load(path)


@pytest.mark.parametrize(
  "text, message",
  [
    (
      "def get_config():\n  c = config.default()\n  c.optim.ler = 1\n  return c\n",
      'line 4: AttributeError: .*Did you mean "lr"',
    ),
    (
      "def get_config():\n  c = config.default()\n  c.model.text.size = 'B'\n",
      'line 4: AttributeError: "size" is called "variant" now$',
    ),
    (
      "def get_config():\n  c = config.default()\n  c.optim.size = 1\n",
      "line 4: AttributeError: 'Key",
    ),
    ("def get_config(:\n  pass\n", "line 2: SyntaxError: invalid syntax"),
    ("\nraise OSError('gone')\n", "line 3: OSError: gone"),
    (
      "import nothing_of_that_name\n",
      "line 2: ModuleNotFoundError: No module named 'nothing_of_that_name'",
    ),
    ("import sys\nsys.exit(3)\n", "line 3: SystemExit: 3"),
    ("def get_config():\n  return 1 / 0\n", "line 3: ZeroDivisionError: division by zero"),
    (
      "def get_config():\n  return get_config()\n",
      "line 3: RecursionError: maximum recursion depth",
    ),
    (
      "def get_config():\n  config.set_duration(config.default(), 'total', steps='x')\n",
      "line 3: config.total_steps='x' is of type str",
    ),
    ("get_config = 5\n", "the file defines no get_config"),
    ("def get_config(): pass\n", "get_config\\(\\) returns None; it must return the config"),
    (
      "\0",
      "SyntaxError: .*null bytes|ValueError: .*null bytes|source code string cannot contain null "
      "bytes",
    ),
  ],
)
def test_broken_config_files_are_one_line_with_the_place(text, message, tmp_path):
  file = tmp_path / "broken.py"
  file.write_text(f"from siglax import config\n{text}")
  with pytest.raises(ValueError, match=message) as error:
    config_lib.load(str(file))
  assert str(error.value).startswith(f"--config {file}") and "\n" not in str(error.value)


@pytest.mark.parametrize(
  "text, message",
  [
    ("", "no JSON, or cut short: Expecting value"),
    ('{"seed": 1,', "no JSON, or cut short"),
    ("[1, 2]", "holds [1, 2]; it must be a JSON object"),
    ("[" * 100000, "no JSON, or cut short"),
    ("\udcff", "invalid start byte"),
    ('{"seed": "a"}', "config.seed='a' is of type str; it needs int"),
    ('{"optim": 5}', "config.optim is a group of fields"),
    ('{"optim": {"lr": NaN}}', "config.optim.lr=nan is not finite"),
    ('{"optim": {"sharpness": 1}}', "config.optim.sharpness is unknown"),
    ('{"teacher": {"name": "x"}}', "config.teacher is unknown"),
    ('{"version": 3}', "it is of version 3; this siglax reads versions 1 to 2"),
    ('{"version": "x"}', "it is of version 'x'; this siglax reads versions 1 to 2"),
    (
      '{"version": 2, "model": {"text": {"size": "S"}}}',
      "config.model.text.size is called config.model.text.variant now",
    ),
    ('{"model": [1], "eval": 5, "data": 5}', "config.model is a group of fields"),
  ],
)
def test_a_broken_config_json_is_named(text, message, tmp_path, capsys):
  file = tmp_path / "config.json"
  file.write_bytes(text.encode(errors="surrogateescape"))
  (tmp_path / "checkpoints" / "5").mkdir(parents=True)
  with pytest.raises(ValueError) as error:
    config_lib.read(file)
  assert str(error.value).startswith(f"{file} is no config of this siglax: ") and message in str(
    error.value
  )
  assert cli.main(["evaluate", "--from", str(tmp_path)]) == 1
  (line,) = capsys.readouterr().err.splitlines()
  assert line == f"siglax evaluate: {error.value}"


@pytest.mark.parametrize(
  "flags, message",
  [
    (
      ("train", "--workdir", "gs:/b/r"),
      "--workdir='gs:/b/r' is a URL, which siglax does not open; name a local folder or file",
    ),
    (("train", "--workdir", ""), "--workdir='' is empty"),
    (("evaluate", "--from", "s3:/b/r"), "--from='s3:/b/r' is a URL"),
    (("evaluate", "--from", ""), "--from='' is empty"),
    (("evaluate", "--from", "r", "--out", "gs:/b/r.json"), "--out='gs:/b/r.json' is a URL"),
    (
      ("tokenizer", "--from", "shapes", "--vocab-size", "99", "--out", "s3:/b/x.model"),
      "--out='s3:/b/x.model' is a URL",
    ),
    (("export", "--from", "r", "--format", "hf", "--out", ""), "--out='' is empty"),
    (
      ("embed", "--from", "r", "--data", "shapes", "--out", "gs:/b/x.npz"),
      "--out='gs:/b/x.npz' is a URL",
    ),
  ],
)
def test_paths_that_are_no_local_ones(flags, message, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  config = ("--config", tiny.__file__) if flags[0] == "train" else ()
  assert cli.main([*flags, *config]) == 1
  (line,) = capsys.readouterr().err.splitlines()
  assert message in line and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "error, line",
  [
    (PermissionError(13, "Permission denied", "a/b"), "a/b: Permission denied"),
    (IsADirectoryError(21, "Is a directory", "runs"), "runs: Is a directory"),
    (OSError(28, "No space left on device"), "No space left on device"),
    (BrokenPipeError(32, "Broken pipe"), "Broken pipe"),
    (ValueError("one\ntwo"), "one two"),
  ],
)
def test_unexpected_errors_of_files_are_one_line(error, line, monkeypatch, capsys):
  def fail(*_):
    raise error

  monkeypatch.setattr(config_lib, "load", fail)
  assert cli.main(["train", "--config", "x.py", "--workdir", "x"]) == 1
  assert capsys.readouterr().err == f"siglax train: {line}\n"


PRINTS = """
import dataclasses, sys
from siglax.commands import cli, plan
run = lambda _: (print("x" * 100000), print("y", flush=True))
cli.COMMANDS = (dataclasses.replace(plan.COMMAND, run=run),)
given = ["plan", "--config", "x.py", "--devices", "1"] if len(sys.argv) == 1 else ["--help"]
sys.exit(cli.main(given))
"""


def test_a_table_that_cannot_be_printed_is_an_error(monkeypatch, capsys):
  """Unlike in a training, it is all that such a command is for."""
  shown = dataclasses.replace(
    plan.COMMAND, run=lambda _: streams.print_table("a plan", [("devices", "1")])
  )
  monkeypatch.setattr(cli, "COMMANDS", (shown,))
  with open("/dev/full", "w") as full, monkeypatch.context() as patch:
    patch.setattr(sys, "stdout", full)
    assert cli.main(["plan", "--config", "x.py", "--devices", "1"]) == 1
  assert capsys.readouterr().err == "siglax: stdout: No space left on device\n"


@pytest.mark.parametrize("more", [(), ("--help",)])
@pytest.mark.parametrize(
  "stdout, code, line",
  [
    ("> /dev/full", 1, ": stdout: No space left on device\n"),
    (">&-", 0, ""),
    ("| true", 1, ""),
  ],
)
def test_a_stdout_that_is_full_or_closed_ends_a_command_in_one_line(
  more, stdout, code, line, tmp_path
):
  """Without -u, so that Python too flushes what is left at its end, which makes an exit code of 120
  where it cannot.
  """
  program = tmp_path / "prints.py"
  program.write_text(PRINTS)
  environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"} | {
    "PYTHONPATH": str(ROOT)
  }
  # The program waits until the reader of a pipe has gone.
  run = f"'{sys.executable}' '{program}' {' '.join(more)}"
  command = f"({{ sleep 0.2; {run}; echo $? >&3; }} {stdout}) 3>&1"
  done = subprocess.run(
    ["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True
  )
  assert (
    done.stdout.strip() == str(code)
    and done.stderr.endswith(line)
    and done.stderr.count("\n") == bool(line)
  ), done


@pytest.mark.parametrize("words", [["--version"], ["config", "--help"]])
def test_what_argparse_prints_does_not_fail_in_silence(words):
  with open("/dev/full", "w") as full:
    done = subprocess.run(
      [sys.executable, "-u", "-m", "siglax.commands.cli", *words],
      stdout=full,
      stderr=subprocess.PIPE,
      text=True,
    )
  assert (done.returncode, done.stderr) == (1, "siglax: stdout: No space left on device\n")
