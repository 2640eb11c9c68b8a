"""The declarations of the fields: what is derived of them, what `siglax config` prints, and
docs/config.md.
"""

import pathlib
import subprocess
import sys

import pytest

from siglax import config as config_lib
from siglax.commands import cli
from siglax.config import fields
from siglax.config.parts import Field

import tiny

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.parametrize(
  "field, allowed, good, wrong, problem",
  [
    (Field(1, "", least=1), "int, at least 1", 1, 0, "must be at least 1"),
    (Field(1, "", least=1, most=2000), "int, from 1 to 2,000", 2000, 2001, "must be at most 2,000"),
    (Field(1.0, "", above=0), "float, positive", 0.1, 0.0, "must be positive"),
    (Field(3, "", above=2), "int, above 2", 3, 2, "must be above 2"),
    (Field(3, "", below=4), "int, below 4", 3, 4, "must be below 4"),
    (Field(0.0, "", least=0, below=1), "float, in [0, 1)", 0.0, 1.0, "must lie in [0, 1)"),
    (Field(1.0, "", above=0, most=1), "float, in (0, 1]", 1, 0, "must lie in (0, 1]"),
    (
      Field(None, "", kind=int, optional=True, least=1),
      "int, at least 1, or None",
      None,
      0,
      "must be at least 1, or None",
    ),
    (
      Field("ring", "", choices=lambda: ("ring", "dense")),
      "ring, dense",
      "dense",
      "rings",
      "is unknown; known are ring, dense; did you mean 'ring'?",
    ),
    (
      Field("a", "", choices=("a", "b")),
      "a, b",
      "b",
      "long",
      "is unknown; known are a, b",
    ),
    (
      Field("a", "", check=lambda text: None if text.islower() else "must be lower case"),
      "str",
      "b",
      "B",
      "must be lower case",
    ),
    (
      Field("rest", "", kind=int | str),
      "int | str",
      3,
      None,
      "is of type NoneType; it needs int | str",
    ),
    (Field(1.0, ""), "float", 2, "a", "is of type str; it needs float"),
    (Field(1.0, ""), "float", 2, True, "is of type bool; it needs float"),
    (Field(1.0, ""), "float", 2, float("inf"), "must be finite"),
  ],
)
def test_a_field_says_what_it_allows(field, allowed, good, wrong, problem):
  assert field.allowed == allowed
  assert field.problem(good) is None and field.problem(wrong) == problem


def test_a_check_comes_after_type_choices_and_bounds():
  even = Field(2, "", least=2, check=lambda value: "must be even" if value % 2 else None)
  assert even.problem(4) is None
  assert even.problem("4") == "is of type str; it needs int"
  assert even.problem(1) == "must be at least 2"
  assert even.problem(3) == "must be even"


def test_a_field_has_a_type():
  with pytest.raises(
    ValueError, match=r"Field\(None, 'How many.'\) tells no type; give .*kind=int"
  ):
    Field(None, "How many.", optional=True)
  assert Field(None, "As that.", follows="image.size").kind is None


def test_none_is_a_value_of_optional_fields_only():
  c = tiny.get_config()
  config_lib.override(c, "checkpoint.keep_one_in", "None")
  assert c.checkpoint.keep_one_in is None
  for field in ("mesh.data", "image.pad"):
    with pytest.raises(ValueError, match=f"config.{field}=None is of type NoneType; it needs"):
      config_lib.override(c, field, "None")


def test_every_field_is_what_it_declares():
  config = config_lib.default()
  known = fields.all_fields()
  assert known.keys() == config_lib.leaves(config).keys()
  for name, field in known.items():
    if field.follows:
      assert config_lib.get(config, name) == config_lib.get(config, field.follows)
    else:
      assert config_lib.get(config, name) == field.default and field.problem(field.default) is None
    assert field.doc.endswith("."), name


@pytest.mark.parametrize(
  "field, text, free",
  [
    ("seed", "1", False),
    ("batch_size", "32", False),
    ("data.0.examples", "65", False),
    ("data.0.max_bad_fraction", "0.5", True),
    ("image.size", "24", False),
    ("image.resize", "bicubic", False),
    ("loss.name", "softmax", False),
    ("loss.gamma", "1.0", False),
    ("loss.impl", "dense", True),
    ("loss.check_embeddings", "True", True),
    ("train.dtype", "bfloat16", False),
    ("train.remat.text", "full", True),
    ("train.microbatch", "1", True),
    ("model.text.scan", "False", False),
    ("optim.lr", "0.5", False),
    ("optim.skip_nonfinite", "1", True),
    ("mesh.fsdp", "2", True),
    ("loader.threads", "3", True),
    ("eval.tasks.0.name", "other", True),
    ("checkpoint.keep_latest", "3", True),
    ("log.every_steps", "3", True),
    ("profile.steps", "2:3", True),
  ],
)
def test_what_may_change_on_resume(field, text, free):
  there, here = tiny.get_config(), tiny.get_config()
  if field.endswith("max_bad_fraction"):
    there.data = ({**there.data[0], "max_bad_fraction": 0.1},)
    here.data = there.data
  config_lib.override(here, field, text)
  assert [line.split()[0] for line in config_lib.differences(there, here)] == [field] * (not free)


def printed(capsys, *words) -> str:
  assert cli.main(["config", "--config", f"{ROOT}/tests/tiny.py", *words]) == 0
  return capsys.readouterr().out


def values(text: str) -> dict[str, tuple[str, str]]:
  """{field: (the first line of its value, where it comes from)} of a listing."""
  known = fields.all_fields()
  lines = [line for line in text.splitlines() if line.partition(" ")[0] in known and "  " in line]
  cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
  return {name: (value, origin) for name, value, origin in cells}


def test_siglax_config_prints_values_and_where_they_come_from(capsys):
  gone = "--config.data.0.path=gone.parquet"  # nothing is read
  text = printed(capsys, "--config.optim.warmup_epochs=0.5", "--config.text.length=12", gone)
  assert max(map(len, text.splitlines())) <= 100
  said = values(text)
  assert said.keys() == fields.all_fields().keys()
  for name, value, origin in (
    ("seed", "0", "default"),
    ("batch_size", "16", "file"),
    ("text.length", "12", "command line"),  # as in the file
    ("optim.warmup_epochs", "0.5", "command line"),
    ("optim.warmup_steps", "None", "command line"),  # cleared by the other unit
    ("optim.warmup_examples", "None", "default"),
    ("model.image.image_size", "16", "follows image.size"),
    ("model.text.remat", "'none'", "follows train.remat.text"),
  ):
    assert said[name] == (value, origin)
  assert said["data"][1] == "command line" and "gone.parquet" in text
  for name, field in fields.all_fields().items():
    assert " ".join(field.doc.split()) in " ".join(text.split()), name


@pytest.mark.parametrize(
  "pattern, names",
  [
    ("optim.b?", ["optim.b1", "optim.b2"]),
    ("remat", ["train.remat.image", "train.remat.text", "model.image.remat", "model.text.remat"]),
    ("config.mesh.*", ["mesh.data", "mesh.fsdp", "mesh.slices", "mesh.shard"]),
    ("seed", ["seed"]),
  ],
)
def test_siglax_config_takes_a_pattern(capsys, pattern, names):
  assert list(values(printed(capsys, pattern))) == names


@pytest.mark.parametrize(
  "words, message",
  [
    (("optim.learning",), "no field matches 'optim.learning'"),
    (("optim.schedul*x",), "did you mean 'optim.schedule'?"),
    (("--config.optim.ler=1",), "config.optim.ler is unknown; did you mean config.optim.lr?"),
    (("--config.optim.lr=fast",), "config.optim.lr='fast' is of type str; it needs float"),
  ],
)
def test_siglax_config_says_what_is_wrong_in_one_line(capsys, words, message):
  assert cli.main(["config", "--config", f"{ROOT}/tests/tiny.py", *words]) == 1
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("siglax config: ") and message in line


def test_what_the_docs_take_from_declarations_is_not_stale():
  done = subprocess.run(
    [sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout + done.stderr
