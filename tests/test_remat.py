"""train.remat=auto: which choice a plan and a training take, and that nothing else changes."""

import json
import logging

import jax
import pytest

from siglax import config as config_lib
from siglax.costs import memory as memory_lib
from siglax.costs import plan
from siglax.data.text import TextProcessor
from siglax.models import transformer
from siglax.runs import stored
from siglax.training import loop
from siglax.training import program as program_lib
from siglax.training import remat as remat_lib
from siglax.training import replay

import tiny

CHOICES = ("none", "dots", "attn_mlp", "full")


def config_of(image="auto", text="auto"):
  """Of a step whose memory is that of its blocks."""
  c = tiny.get_config(steps=4)
  c.batch_size, c.image.size, c.model.image.patch, c.eval.tasks = 32, 32, 4, ()
  c.data = ({"source": "shapes", "examples": 64, "image_size": 32},)
  c.model.image.depth = 6
  c.train.remat.image, c.train.remat.text = image, text
  return c


@pytest.fixture(scope="module")
def needed():
  """Bytes of a device, as a training counts them, by choice."""
  found = {}
  for remat in CHOICES:
    program = program_of(config_of(remat, remat))
    with jax.set_mesh(program.mesh):
      found[remat] = program_lib.peak_bytes(program.compile_last())
    found[remat] += program_lib.held(program.abstract_batch())
  return found


def program_of(config):
  return program_lib.Program(config_lib.resolve(config, TextProcessor()), 64)


def test_choices_are_from_the_most_memory_to_the_least(needed):
  assert tuple(transformer.REMAT) == CHOICES
  assert list(needed.values()) == sorted(needed.values(), reverse=True)
  assert len(set(needed.values())) == len(needed)


def test_the_first_choice_that_fits_is_taken(needed, monkeypatch, caplog):
  caplog.set_level(logging.INFO, "siglax")
  program = program_of(config_of())
  with jax.set_mesh(program.mesh):
    for remat, size in needed.items():
      for limit, taken in ((size, remat), (size - 1, dict(zip(CHOICES, CHOICES[1:])).get(remat))):
        monkeypatch.setattr(remat_lib, "_limit", lambda: limit / remat_lib.SHARE)
        caplog.clear()
        remat_lib.choose(program)
        assert program.remat == (taken or "full")
        assert [record.levelname for record in caplog.records] == ["INFO" if taken else "WARNING"]
        assert f"auto takes {program.remat}" in caplog.text
        assert program.update(0) is program.update(3)
        chosen = program.training_model(0).config
        assert chosen.image.remat == chosen.text.remat == program.remat


def test_a_tower_with_a_choice_of_its_own_keeps_it(monkeypatch):
  program = program_of(config_of(text="dots"))
  monkeypatch.setattr(remat_lib, "_limit", lambda: 1)
  monkeypatch.setattr(remat_lib, "_needed", lambda program: 2)
  with jax.set_mesh(program.mesh):
    remat_lib.choose(program)
  chosen = program.training_model(0).config
  assert (chosen.image.remat, chosen.text.remat) == ("full", "dots")


def test_more_than_the_compiler_has_does_not_fit(monkeypatch):
  """TPU's compiler raises where a program needs more memory than there is."""
  program = program_of(config_of())
  compiled = program.compile_last

  def of_tpu():
    if program.remat in ("none", "dots"):
      raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: XLA:TPU compile permanent error.")
    if program.remat == "attn_mlp":
      raise jax.errors.JaxRuntimeError("INTERNAL: another")
    return compiled()

  monkeypatch.setattr(program, "compile_last", of_tpu)
  with jax.set_mesh(program.mesh), pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
    remat_lib.choose(program)
  assert program.remat == "attn_mlp"


@pytest.mark.slow
def test_a_training_computes_what_its_choice_says(needed, monkeypatch, tmp_path):
  """The same numbers bit for bit, and in a replay; what is chosen is compiled once."""
  monkeypatch.setattr(remat_lib, "_limit", lambda: needed["attn_mlp"] / remat_lib.SHARE)
  loop.train(config_of("attn_mlp", "attn_mlp"), tmp_path / "named")
  compiled = []
  told = lambda event, *_, **more: compiled.append((event, more.get("fun_name")))
  jax.monitoring.register_event_duration_secs_listener(told)
  try:
    loop.train(config_of(), tmp_path / "auto")
  finally:
    jax.monitoring.unregister_event_duration_listener(told)
  states = [stored.Stored(tmp_path / name).meta(4)["digest"] for name in ("named", "auto")]
  assert states[0] == states[1]
  assert json.loads((tmp_path / "auto/config.json").read_text())["train"]["remat"] == {
    "image": "auto",
    "text": "auto",
  }
  again = replay.replay(tmp_path / "auto", 3)
  assert again["loss"] == again["logged"]
  names = [name for event, name in compiled if "backend_compile" in event]
  assert names.count("jit(step)") == 3  # none, dots and attn_mlp


@pytest.mark.slow
def test_a_plan_takes_the_choice_that_fits_the_smallest_chip(monkeypatch):
  wanted = plan.plan(config_of("dots", "dots"), 8, ["v5e"])
  assert wanted["remat_auto"] == []
  total = wanted["bytes_per_device"]["total_estimate"]
  share = lambda chip: ((1 + 1e-9) * total / remat_lib.SHARE / chip.memory, "")
  monkeypatch.setattr(memory_lib, "usable", share)
  report = plan.plan(config_of(), 8, ["v5e"])
  assert report["remat"] == {"image": "dots", "text": "dots"}
  assert report["remat_auto"] == ["image", "text"]
  assert report["bytes_per_device"] == wanted["bytes_per_device"]
  # A larger chip beside it changes nothing, and where nothing fits it is full.
  smaller = lambda chip: (share(chip)[0] * (0.01 if chip.name == "v5e" else 2), "")
  monkeypatch.setattr(memory_lib, "usable", smaller)
  report = plan.plan(config_of(), 8, ["H100", "v5e"])
  assert report["remat"] == {"image": "full", "text": "full"}
