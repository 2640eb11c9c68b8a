"""Random overrides of five configs: each is accepted, or refused in one line that names its field,
before anything compiles.
"""

import collections
import functools
import os
import pathlib

import hypothesis
from hypothesis import strategies as st
import jax
import pytest

from siglax import config as config_lib
from siglax import data
from siglax.runs import folder as folder_lib
from siglax.training import checks
from siglax.training import program

ROOT = pathlib.Path(__file__).parent.parent
CONFIGS = (
  "tests/tiny.py",
  "configs/quickstart.py",
  "configs/siglip_b16_one_gpu.py:smoke=True",
  "configs/clip_b32.py:smoke=True",
  "configs/clip_rn50.py:smoke=True",
)
# Texts that a shell could hand over for any field, whatever its type.
HOSTILE = (
  "",
  " ",
  "None",
  "True",
  "false",
  "nan",
  "inf",
  "-inf",
  "1e999",
  "-1e300",
  "1e-300",
  "0",
  "-1",
  "1",
  "2",
  "3.5",
  str(2**31),
  str(10**9),
  str(2**63),
  "-" + "9" * 30,
  "9" * 400,
  "9" * 5000,
  "0x" + "f" * 5000,
  "1e300",
  "abc",
  "ünï",
  "a\nb",
  "\0",
  "gs://bucket/run",
  "s3://a/b",
  "file:///etc/passwd",
  "../../etc/passwd",
  "~",
  "()",
  "[]",
  "{}",
  "(1,)",
  "(None, None, None)",
  "({}, {}, {})",
  "({},)",
  "('a', 'b', 'c')",
  "(0.5, 0.5)",
  "(0.5, 0.5, 0.5)",
  "(1e999, 1, 1)",
  "((1, 2), (3, 4))",
  "((('.*', 1.0),),)",
  "(('.*', 'x'),)",
  "(('(', 1.0),)",
  "(('.*', None),)",
  "(('.*', 1e999),)",
  "((5, 1.0),)",
  "('ab',)",
  "{'a': 1}",
  "{1: 2}",
  "{'source': 'shapes'}",
  "({'source': 'shapes'},)",
  "({'source': ['shapes']},)",
  "({'source': 5},)",
  "({'source': 'shapes', 'examples': 'x'},)",
  "({'source': 'shapes', 'weight': -1},)",
  "({'kind': 'loss'},)",
  "({'kind': [], 'name': 'a', 'data': {}},)",
  "({'kind': 'loss', 'name': 'a', 'data': {'source': 'shapes'}},)",
  "{1, 2}",
  "b'x'",
  "1j",
  "...",
  "{[]: 1}",
  "(" * 5000,
  "[" * 150 + "]" * 150,
  "-" * 50000 + "1",
  "1+" * 50000 + "1",
  "'" * 7,
  "__import__('os').mkdir('executed')",
  "(lambda: open('executed', 'w'))()",
  "$(touch executed)",
  "`touch executed`",
  "%s%n",
  "10:15",
  "15:10",
  "9" * 5000 + ":1",
)
# Places that are not fields of their own: inside of specs, tasks and tuples, groups, and what is
# not there at all.
INSIDE = (
  *(
    f"data.0.{name}"
    for name in (
      "source",
      "path",
      "examples",
      "image_size",
      "split",
      "objects",
      "pairs",
      "captions",
      "detail",
      "arrangements",
      "seed",
      "weight",
      "max_bad_fraction",
      "path.0",
    )
  ),
  *(
    f"eval.tasks.{i}.{name}"
    for i in range(3)
    for name in (
      "kind",
      "name",
      "data",
      "data.source",
      "data.examples",
      "data.objects",
      "examples",
      "templates",
      "templates.0",
      "classnames",
      "distinct",
      "captions_per_image",
    )
  ),
  "data.x",
  "data.-1",
  "data.-1.examples",
  "data.9",
  "data.0",
  "eval.tasks.9.kind",
  "eval.tasks.0",
  "image.std.0",
  "image.mean.7",
  "optim.decay.0",
  "optim.decay.0.1",
  "optim.lr_multipliers.0.0",
  "mesh.shard.0",
  "seed.0",
  "model",
  "model.image",
  "optim",
  "",
  ".",
  "..",
  "a.b.c",
  "__class__",
  "model.__class__",
  "items",
  "x" * 5000,
  "a\nb",
  "ünï",
)


@functools.cache
def fields() -> tuple[str, ...]:
  return (*sorted(config_lib.flatten(config_lib.default())), *INSIDE)


def cases():
  values = st.one_of(
    st.sampled_from(HOSTILE),
    st.integers().map(str),
    st.floats().map(repr),
    st.text(max_size=20),
    st.recursive(
      st.one_of(st.none(), st.booleans(), st.integers(-9, 99), st.floats(), st.text(max_size=5)),
      lambda x: st.one_of(
        st.lists(x, max_size=3).map(tuple), st.dictionaries(st.text(max_size=5), x, max_size=3)
      ),
      max_leaves=5,
    ).map(repr),
  )
  return st.tuples(st.sampled_from(CONFIGS), st.sampled_from(fields()), values)


def outcome(path: str, field: str, text: str) -> str:
  """ "accepted" or the message; all that a run does of the config before it compiles, and any error
  but a ValueError, is raised.
  """
  try:
    config = config_lib.load(str(ROOT / path), {field: text})
    checks.validate(config, jax.device_count())
    config = config_lib.resolve(config, folder_lib.text_processor(config))
    sources = data.open_data(config)
    for task in config.eval.tasks:
      data.open_source(task["data"], "config.eval.tasks")
    program.Program(config, data.num_examples(sources))
  except ValueError as e:
    return str(e)
  return "accepted"


def check(path, field, text):
  said = outcome(path, field, text)
  assert (
    said == "accepted"
    or "config." in said
    and len(said.splitlines()) == 1
    and len(said) < 1000 + 2 * len(text)
  ), said
  assert not os.path.exists("executed")
  return said


def fuzz(examples: int, tmp_path, monkeypatch) -> collections.Counter:
  monkeypatch.chdir(tmp_path)
  counts = collections.Counter()

  @hypothesis.settings(
    max_examples=examples,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
  )
  @hypothesis.given(cases())
  def run(case):
    counts["accepted" if check(*case) == "accepted" else "refused"] += 1

  run()
  return counts


def test_two_hundred_overrides_are_accepted_or_refused_in_one_line(tmp_path, monkeypatch):
  counts = fuzz(200, tmp_path, monkeypatch)
  assert counts["refused"] > 100 and counts["accepted"] > 2


@pytest.mark.slow
def test_a_thousand_overrides(tmp_path, monkeypatch):
  counts = fuzz(1000, tmp_path, monkeypatch)
  print(counts)
  assert counts["refused"] > 500 and counts["accepted"] > 25
