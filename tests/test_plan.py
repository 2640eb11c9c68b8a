"""`siglax plan`: what it says is what the compiled step takes, sends and computes."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from siglax import config as config_lib
from siglax.commands import cli
from siglax.costs import collectives
from siglax.costs import plan
from siglax.costs import table
from siglax.devices import chips
from siglax.devices import flops
from siglax.devices import mesh as mesh_lib
from siglax.training import run as run_lib

import tiny

TINY = str(pathlib.Path(__file__).parent / "tiny.py")
# Large enough that fsdp splits its embedding table: 2^18 elements and more.
SPLIT = {"model.text.vocab_size": "20000", "mesh.fsdp": "4", "train.remat.image": "full"}


def planned(devices, *words):
  """The plan of the tiny config by a process of its own, which starts with no devices."""
  environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
  command = [
    sys.executable,
    "-m",
    "siglax.commands.cli",
    "plan",
    "--config",
    TINY,
    "--devices",
    str(devices),
    "--json",
    *words,
  ]
  done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


def configured(**fields):
  c = tiny.get_config()
  for field, value in fields.items():
    config_lib.override(c, field, value)
  return c


def fails(capsys, *words):
  """The one line that a plan which fails prints."""
  assert cli.main(["plan", "--config", TINY, *words]) == 1
  (line,) = capsys.readouterr().err.strip().splitlines()
  return line


@pytest.fixture(scope="module")
def report():
  """The plan of the tiny config on the eight devices of this process."""
  return plan.plan(tiny.get_config(), 8)


@pytest.fixture(scope="module")
def split_report():
  """A plan for eight devices by a process of its own, with fsdp and rematerialisation."""
  return planned(8, *(f"--config.{field}={value}" for field, value in SPLIT.items()))


def test_a_plan_for_eight_devices_is_the_run_on_eight_devices_byte_for_byte(tmp_path, split_report):
  run = run_lib.Run(configured(**SPLIT), tmp_path / "run")
  batches = run.batches(0)
  batch = mesh_lib.to_global(run.mesh, next(batches))
  batches.close()
  state = jax.tree.map(
    lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), run.abstract_state
  )
  on_one = lambda tree: sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))
  parameters, held = on_one(state.params), on_one(state)
  parameter_bytes = sum(x.nbytes for x in jax.tree.leaves(state.params))
  text = sum(x.size for x in jax.tree.leaves(state.params["text"]))
  with jax.set_mesh(run.mesh):
    compiled = run.update().lower(state, batch).compile()
  analysis, used = compiled.memory_analysis(), split_report["bytes_per_device"]
  assert used["temp"] == analysis.temp_size_in_bytes > 0
  assert used["state"] + used["batch"] == analysis.argument_size_in_bytes
  results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
  assert used["total"] == analysis.argument_size_in_bytes + results + analysis.temp_size_in_bytes
  assert analysis.alias_size_in_bytes == held  # the new state takes the place of the old one
  # Image, tokens and weight; no label
  assert used["state"] == held and used["batch"] == 2 * (16 * 16 * 3 + 12 * 4 + 4)
  assert used["parameters"] == parameters < split_report["parameter_bytes"] == parameter_bytes
  assert split_report["parameters"]["text"] == text > 20000 * 16
  assert split_report["mesh"] == {"data": 2, "fsdp": 4} and split_report["batch_per_device"] == 2
  assert split_report["total_steps"] == run.total_steps == 12


def test_another_number_of_devices(report):
  many = planned(64, "--batch", "64", "--config.eval.batch_size=64", "--chips", "H100")
  assert list(many["chips"]) == ["H100"] and list(report["chips"]) == list(chips.NAMED)
  assert many["batch_per_device"] == 1 and many["mesh"] == {"data": 64, "fsdp": 1}
  assert many["flops"]["per_step"] == 4 * report["flops"]["per_step"]
  assert many["flops"]["per_example"] == report["flops"]["per_example"]
  # The gradients of all parameters, and a little for metrics.
  assert 1 <= many["collectives"]["all-reduce"]["payload"] / many["parameter_bytes"] < 1.1


def compile_on_eight(function, *shapes, spec=P("data")):
  """A function of per-device arrays, compiled for the eight devices on one axis."""
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  args = [jax.ShapeDtypeStruct(s, jnp.float32, sharding=NamedSharding(mesh, spec)) for s in shapes]
  mapped = jax.shard_map(
    function, mesh=mesh, in_specs=(spec,) * len(shapes), out_specs=spec, check_vma=False
  )
  return collectives.read(jax.jit(mapped).lower(*args).compile().as_text(), 8)


def test_a_sum_in_a_scan_counts_once_a_trip():
  def body(x, _):
    return jnp.sin(jax.lax.psum(x, "data")), None

  traffic = compile_on_eight(lambda x: jax.lax.scan(body, x, length=5)[0], (8 * 16, 32))
  payload = 5 * 16 * 32 * 4
  assert traffic["all-reduce"] == collectives.Traffic(5, payload, 2 * payload * 7 / 8)
  assert all(of.count == 0 for kind, of in traffic.items() if kind != "all-reduce")


def test_loops_in_loops_and_every_kind():
  ring = [(i, (i + 1) % 8) for i in range(8)]

  def inner(x, _):
    return jax.lax.ppermute(jnp.sin(x), "data", ring), None

  def outer(x, _):
    x = jax.lax.scan(inner, x, length=3)[0]
    return x + jnp.sum(jax.lax.all_gather(jnp.cos(x), "data", tiled=True)), None

  def function(x):
    x = jax.lax.scan(outer, x, length=4)[0]
    return jax.lax.all_to_all(x.reshape(8, 2, 32), "data", 0, 0).reshape(16, 32)

  traffic, x = compile_on_eight(function, (8 * 16, 32)), 16 * 32 * 4
  assert traffic["collective-permute"] == collectives.Traffic(12, 12 * x, 12 * x)
  assert traffic["all-gather"] == collectives.Traffic(4, 4 * 8 * x, 4 * 8 * x * 7 / 8)
  assert traffic["all-to-all"] == collectives.Traffic(1, x, x * 7 / 8)


def test_a_sum_that_is_cut_is_a_reduce_scatter():
  traffic = compile_on_eight(
    lambda x: jax.lax.psum_scatter(jnp.sin(x), "data", tiled=True), (8 * 16, 32)
  )
  payload = 16 * 32 * 4
  assert (
    traffic["reduce-scatter"] == collectives.Traffic(1, payload, payload * 7 / 8)
    and traffic["all-reduce"].count == 0
  )

  def cut(x):  # as the gradient of a parameter that fsdp splits
    whole = jax.lax.psum(jnp.sin(x), "data")
    return jax.lax.dynamic_slice_in_dim(whole, 2 * jax.lax.axis_index("data"), 2)

  assert compile_on_eight(cut, (8 * 16, 32))["reduce-scatter"] == collectives.Traffic(
    1, payload, payload * 7 / 8
  )
  traffic = compile_on_eight(
    lambda x: cut(x) + jnp.sum(jax.lax.psum(jnp.sin(x), "data")), (8 * 16, 32)
  )
  assert traffic["all-reduce"].count == 1 and traffic["reduce-scatter"].count == 0


def test_bfloat16_is_sent_in_sixteen_bits():
  def function(x):
    return jax.lax.all_gather(jnp.sin(x).astype(jnp.bfloat16), "data", tiled=True).astype(
      jnp.float32
    )[:16]

  payload = 8 * 16 * 32 * 2
  assert compile_on_eight(function, (8 * 16, 32))["all-gather"] == collectives.Traffic(
    1, payload, payload * 7 / 8
  )


@pytest.mark.parametrize(
  "groups, size",
  [
    ("", 32),
    ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4),
    ("replica_groups=[16,2]<=[32]", 2),
    ("replica_groups={}", 32),
    ("replica_groups=mesh['a'=16,'b'=2], device_ids=([16,2]T(1,0)) {'a'}", 16),
    ("replica_groups=mesh['a'=4,'b'=8] {'a','b'}", 32),
    ("replica_groups=mesh['a'=16,'b'=2] {'a':(2)4}", 4),
  ],
)
def test_sizes_of_groups(groups, size):
  assert (
    collectives._group_size(f", channel_id=1, {groups}, use_global_device_ids=true", 32) == size
  )


def test_flops_of_all_devices():
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  product = jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
  x = jax.ShapeDtypeStruct((8 * 3, 5), jnp.float32)
  assert flops.count(product, x) == 2 * 3 * 3 * 5
  assert flops.count_all_devices(jax.make_jaxpr(product)(x).jaxpr) == 8 * 2 * 3 * 3 * 5


def test_flops_of_a_part_that_is_mapped_over_one_axis_of_two():
  mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
  product = jax.shard_map(
    lambda x: x @ x.T, mesh=mesh, in_specs=P("data"), out_specs=P("data"), axis_names={"data"}
  )
  x = jax.ShapeDtypeStruct((2 * 3, 5), jnp.float32)
  assert flops.count_all_devices(jax.make_jaxpr(product)(x).jaxpr) == 2 * 2 * 3 * 3 * 5


def test_flops_of_a_step(report, split_report):
  """Three forward passes; with the loss, and what is computed again, on top in those that are
  executed.
  """
  # One pass of 16 images through the patch embedding: 4 patches to width 16
  ends = 2 * 16 * 4 * (8 * 8 * 3) * 16
  assert (
    report["flops"]["per_step"]
    == split_report["flops"]["per_step"]
    == 16 * report["flops"]["per_example"]
    > 3 * ends
  )
  once, again = (r["flops"]["executed_per_device"] * 8 for r in (report, split_report))
  # Nothing asks for the gradient of the pixels, so the patch embedding has two passes. The loss has
  # three products.
  assert once == pytest.approx(report["flops"]["per_step"] - ends + 3 * 2 * 16 * 16 * 16, rel=1e-3)
  assert once < again < 4 / 3 * once


def test_roofline():
  chip = chips.Chip("", 100e12, "chip", 16e9, 1e12, 50e9)
  figures = dict(executed_flops=400e12, state_bytes=2e12, sent_bytes=100e9, model_flops=300e12)
  found = plan.roofline(chip, **figures)
  assert found["seconds"] == {"compute": 4.0, "memory": 4.0, "network": 2.0}
  assert (
    found["binds"] == "compute" and found["step_seconds"] == 4.0 and found["mfu_ceiling"] == 0.75
  )
  found = plan.roofline(chip, **{**figures, "sent_bytes": 500e9})
  assert (
    found["binds"] == "network" and found["step_seconds"] == 10.0 and found["mfu_ceiling"] == 0.3
  )
  assert plan.roofline(chip, **{**figures, "state_bytes": 4e12})["binds"] == "memory"


def test_published_figures():
  known = chips.NAMED
  assert list(known) == ["v5e", "v5p", "v6e", "A100-80", "H100", "H200", "B200"]
  for kind, name in (
    ("TPU v5 lite", "v5e"),
    ("TPU v5", "v5p"),
    ("TPU v6 lite", "v6e"),
    ("NVIDIA A100-SXM4-80GB", "A100-80"),
    ("NVIDIA H100 80GB HBM3", "H100"),
    ("NVIDIA H200", "H200"),
    ("NVIDIA B200", "B200"),
  ):
    assert chips.find(kind) is known[name]
  assert (known["v5e"].memory, known["v5e"].bandwidth, known["v5e"].link) == (16e9, 819e9, 200e9)
  assert (known["H100"].memory, known["H100"].bandwidth, known["H100"].link) == (
    80e9,
    3.35e12,
    450e9,
  )
  for kind in ("NVIDIA A100-SXM4-40GB", "NVIDIA H100 PCIe", "NVIDIA GB200", "NVIDIA H200 NVL"):
    assert chips.find(kind).name is None


def test_a_chip_on_which_auto_takes_another_loss(report):
  mesh = mesh_lib.make()
  ring = report | {"loss": report["loss"] | {"impl": "ring"}}
  chip, d = chips.named("v5e"), tiny.get_config().model.image.width
  assert plan._on_chip(ring, chip, tiny.get_config(), d, mesh)["other_loss_impl"] == "dense"
  assert plan._on_chip(report, chip, tiny.get_config(), d, mesh)["other_loss_impl"] is None


def report_of(**used):
  """What suggestions read of a plan: a state of 12 GB and temporaries of 40 GB on each of 64
  devices.
  """
  return {
    "devices": 64,
    "mesh": {"data": 64, "fsdp": 1},
    "batch_per_device": 32,
    "microbatch": None,
    "batch_norm": False,
    "dtype": "float32",
    "remat": {"image": "none", "text": "full"},
    "loss": {"impl": "dense"},
    "bytes_per_device": {"state": 12e9, "temp": 40e9, "loss_alone": 15e9, "total": 52e9, **used},
  }


def test_suggestions_for_what_does_not_fit():
  v5e, h100 = chips.named("v5e"), chips.named("H100")
  assert plan.suggestions(report_of(), [h100]) == []
  found = plan.suggestions(report_of(), [v5e, h100])
  assert [text.split(":")[0] for text in found] == [
    "mesh.fsdp=4",
    "train.dtype=bfloat16",
    "train.remat.image=full",
    "loss.impl=ring",
    "train.microbatch=8",
    "more devices or a smaller batch_size",
  ]
  found = plan.suggestions(
    report_of(state=1e9, loss_alone=1e9) | {"dtype": "bfloat16", "microbatch": 8}, [v5e]
  )
  assert [text.split(":")[0] for text in found][0] == "train.remat.image=full"
  assert any(text.startswith("train.microbatch=2:") for text in found)
  assert not any(
    "microbatch" in text for text in plan.suggestions(report_of() | {"batch_norm": True}, [v5e])
  )


def test_a_plan_in_words(capsys, report):
  v5e = report["chips"]["v5e"] | {"fits": False, "binds": "network"}
  table.show(
    report | {"chips": {"v5e": v5e}, "suggestions": ["mesh.fsdp=8: smaller"]}, "siglax plan tiny.py"
  )
  title, *lines = capsys.readouterr().out.splitlines()
  rows = dict(line.strip().split("  ", 1) for line in lines)
  assert title == "siglax plan tiny.py" and "mesh.fsdp=8: smaller" in rows["suggestion"]
  assert (
    "image" in rows["parameters"] and f"{report['parameter_bytes']:,} bytes" in rows["parameters"]
  )
  assert (
    "does not fit" in rows["v5e"]
    and "bound by network" in rows["v5e"]
    and "of 16 GB" in rows["v5e"]
  )
  assert "chosen by auto" in rows["loss"] and rows["collective-permute"].strip() == "none"
  assert "a device sends" in rows["all-reduce"]


def test_data_and_tokenizer_need_not_be_there(capsys):
  absent = {
    "data": "({'source': 'parquet', 'path': 'none.parquet'},)",
    "text.tokenizer": "none.model",
    "model.text.vocab_size": "500",
  }
  there, not_there = configured(), configured(**absent)
  assert plan._text(there).vocab_size == 107 and plan._text(not_there).vocab_size == 500
  assert (
    plan._epoch_examples(not_there) == 1
    and plan._epoch_examples(configured(total_epochs="2")) == 64
  )
  words = [f"--config.{field}={value}" for field, value in absent.items()]
  line = fails(capsys, "--devices", "8", *words, "--config.total_epochs=2")
  assert "config.total_epochs needs the data" in line and "none.parquet" in line
  assert "give config.total_steps or config.total_examples" in line
  assert "set config.model.text.vocab_size" in fails(capsys, "--devices", "8", *words[:2])


@pytest.mark.parametrize(
  "words, message",
  [
    (("--devices", "8", "--chips", "v5e,P100"), "--chips: 'P100' is unknown; known are v5e, v5p"),
    (
      ("--devices", "8", "--config.mesh.data=2", "--config.mesh.fsdp=2"),
      "is 4, but there are 8 devices",
    ),
    (("--devices", "8", "--batch", "12"), "config.batch_size=12 is not divisible by the 8 devices"),
    (("--devices", "0"), "--devices 0 must be at least 1"),
    (("--devices", "16"), "--devices 16, but jax has 8"),
    (("--devices", "8", "--config.optim.ler=1"), "did you mean config.optim.lr?"),
  ],
)
def test_bad_input_is_one_line(words, message, capsys):
  assert message in fails(capsys, *words)


@pytest.mark.slow
def test_an_end_that_sees_all_patches_has_to_fit_too(report):
  c = configured(**{"train.patch_drop": "0.5", "train.unmasked_steps": "4"})
  dropped = plan.plan(c, 8)
  assert dropped["bytes_per_device"]["temp"] >= report["bytes_per_device"]["temp"]
  assert dropped["flops"]["executed_per_device"] < report["flops"]["executed_per_device"]
  c = configured(**{"train.patch_drop": "0.5"})
  assert plan.plan(c, 8)["bytes_per_device"]["temp"] <= dropped["bytes_per_device"]["temp"]


def test_the_update_of_a_frozen_tower_moves_no_memory(report):
  """The image tower is read for the embeddings, but its parameters are all that there is of it, and
  are not written.
  """
  frozen = plan.plan(
    configured(**{"optim.lr_multipliers": "(('image/.*', None), ('.*', 1.0))"}), 8, chips=("H100",)
  )
  image, text = (4 * report["parameters"][name] for name in ("image", "text"))
  # Scale and bias with their moments; the counts of the run, of Adam and of the rate
  scalars = 4 * (3 * 2 + 3)
  used, chip = frozen["bytes_per_device"], frozen["chips"]["H100"]
  assert used["frozen"] == image
  assert used["state"] == image + 3 * text + scalars
  assert chip["seconds"]["memory"] == pytest.approx(2 * (3 * text + scalars) / 3.35e12)
