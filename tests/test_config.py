"""The config: durations, overrides, files, JSON, and one line for everything that is wrong."""

import pytest

from siglax import checks
from siglax import config as config_lib
from siglax.data.text import TextProcessor

import tiny


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
  for field, text in (("data.0.size", "99"), ("data.0.split", "test"), ("text.tokenizer", "12"), ("optim.lr", "1")):
    config_lib.override(c, field, text)
  assert c.data == ({"source": "shapes", "size": 99, "image_size": 16, "split": "test"},)
  assert c.text.tokenizer == "12" and c.optim.lr == 1.0
  config_lib.override(c, "image.size", "24")
  assert c.model.image.image_size == 24


@pytest.mark.parametrize("field, text, message", [
    ("optim.ler", "1", "config.optim.ler is unknown; did you mean config.optim.lr?"),
    ("lr", "1", "did you mean config.optim.lr?"),
    ("data.3.size", "1", "config.data.3.size is unknown"),
    ("optim.lr", "fast", "config.optim.lr='fast' is of type str; it needs float"),
])
def test_wrong_overrides(field, text, message):
  with pytest.raises(ValueError) as error:
    config_lib.override(valid(), field, text)
  assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("field, text, message", [
    ("loss.name", "triplet", "known are sigmoid, softmax, focal, hinge"),
    ("loss.impl", "rings", "known are auto, dense, ring, gather"),
    ("loss.tile", "0", "config.loss.tile=0 must be at least 1, or None"),
    ("loss.gamma", "-1.0", "config.loss.gamma=-1.0 must be at least 0"),
    ("loss.lr_multiplier", "0", "config.loss.lr_multiplier=0.0 must be positive"),
    ("optim.name", "sgd", "known are adamw, adafactor, lion"),
    ("model.image.size", "XL", "known are Ti, S, B, L, So400m, g-opt"),
    ("data.0.source", "tfdz", "known are shapes, parquet"),
    ("data.0.sized", "1", "did you mean size?"),
    ("eval.tasks.0.kind", "zero", "known are zero_shot, retrieval, loss"),
    ("batch_size", "1001", "config.batch_size=1001 is not divisible by the 8 devices"),
    ("batch_size", "3", "use 8"),
    ("mesh.fsdp", "3", "config.mesh.fsdp=3 does not divide the 8 devices"),
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
    ("train.microbatch", "3", "config.train.microbatch=3 does not divide the 2 examples of a device"),
    ("train.patch_drop", "1.0", "config.train.patch_drop=1.0 must lie in [0, 1)"),
    ("train.unmasked_steps", "3", "config.train.unmasked is set, but config.train.patch_drop=0"),
    ("optim.layer_decay.image", "1.5", "config.optim.layer_decay.image=1.5 must lie in (0, 1]"),
    ("model.text.lora_rank", "-1", "config.model.text.lora_rank=-1 must be at least 0"),
    ("train.ema", "1.0", "config.train.ema=1.0 must lie in (0, 1)"),
    ("profile.steps", "10", "config.profile.steps='10' must be two steps"),
    ("loss.scale_init", "0", "config.loss.scale_init=0.0 must be positive"),
    ("data", "()", "config.data is empty"),
    ("checkpoint.keep_best", "eval/none/acc1", "config.checkpoint.keep_best='eval/none/acc1' is no metric"),
])
def test_what_does_not_fit_is_one_line(field, text, message):
  c = valid()
  config_lib.override(c, field, text)
  with pytest.raises(ValueError) as error:
    checks.validate(c, devices=8)
  assert message in str(error.value) and "\n" not in str(error.value)


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
  assert sigmoid.model.bias_init == pytest.approx(-2.772588722) and sigmoid.model.text.vocab_size == text.vocab_size
  for name, bias, cap in (("softmax", None, 100), ("focal", sigmoid.model.bias_init, None), ("hinge", None, None)):
    c = valid()
    c.loss.name = name
    c = config_lib.resolve(c, text)
    assert c.model.bias_init == bias and c.loss.scale_max == cap
  c.loss.bias_init = -3.0
  with pytest.raises(ValueError, match='config.loss.bias_init=-3.0 has no place in config.loss.name="hinge"'):
    config_lib.resolve(c, text)


def test_config_files(tmp_path):
  file = tmp_path / "x.py"
  file.write_text("from siglax import config\ndef get_config(steps=5):\n  c = config.default()\n  c.total_steps = steps\n  return c\n")
  assert config_lib.load(f"{file}:steps=7").total_steps == 7
  for path, message in (
      (f"{file}:stes=7", "arguments are steps=…"), (str(tmp_path / "y.py"), "no such file"),
  ):
    with pytest.raises(ValueError, match=message):
      config_lib.load(path)
  file.write_text("from siglax import config\ndef get_config():\n  c = config.default()\n  c.optim.ler = 1\n  return c\n")
  with pytest.raises(ValueError, match='Did you mean "lr"') as error:
    config_lib.load(str(file))
  assert "\n" not in str(error.value)
