"""`siglax plan`: what it says is what the compiled step takes, sends and computes."""

import json
import os
import pathlib
import re
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
from siglax.commands import plan as plan_command
from siglax.costs import budget
from siglax.costs import buffers
from siglax.costs import collectives
from siglax.costs import compare
from siglax.costs import hlo
from siglax.costs import memory
from siglax.costs import plan
from siglax.costs import roofline
from siglax.costs import scaled
from siglax.costs import storage
from siglax.costs import suggestions
from siglax.costs import table
from siglax.devices import chips
from siglax.devices import flops
from siglax.devices import mesh as mesh_lib
from siglax.devices import streams
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


def flat(tree, prefix=()):
  """(path, number) of each number in dicts and lists."""
  if isinstance(tree, (dict, list)):
    for name, of in tree.items() if isinstance(tree, dict) else enumerate(tree):
      yield from flat(of, (*prefix, name))
  else:
    yield prefix, tree


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
  batch, next_batch = (mesh_lib.to_global(run.mesh, next(batches)) for _ in range(2))
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
  program = analysis.argument_size_in_bytes + results + analysis.temp_size_in_bytes
  # The loop holds the next batch too; and the label of this one, which the step does not read.
  assert used["batch"] + used["next_batch"] == on_one(batch) + on_one(next_batch)
  assert used["total"] == program + on_one(next_batch) + 2 * 4
  assert analysis.alias_size_in_bytes == held  # the new state takes the place of the old one
  # Image, tokens and weight; no label
  assert used["state"] == held and used["batch"] == 2 * (16 * 16 * 3 + 12 * 4 + 4)
  assert used["parameters"] == parameters < split_report["parameter_bytes"] == parameter_bytes
  assert split_report["parameters"]["text"] == text > 20000 * 16
  assert split_report["mesh"] == {"data": 2, "fsdp": 4} and split_report["batch_per_device"] == 2
  assert split_report["total_steps"] == run.total_steps == 12


def test_another_number_of_devices(report):
  many = planned(64, "--batch", "64", "--config.eval.batch_size=64", "--chips", "h100")
  assert list(many["chips"]) == ["H100"] and list(report["chips"]) == list(chips.USUAL)
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
  "groups, ids",
  [
    ("", range(32)),
    ("replica_groups={{0,1,2,3},{4,5,6,7}}", range(4)),
    ("replica_groups=[16,2]<=[32]", range(2)),
    ("replica_groups=[2,16]<=[16,2]T(1,0)", range(0, 32, 2)),
    ("replica_groups={}", range(32)),
    (
      "replica_groups=mesh['a'=16,'b'=2], device_ids=([16,2]T(1,0)) {'a'}",
      [*range(0, 32, 4), *range(1, 32, 4)],
    ),
    ("replica_groups=mesh['a'=4,'b'=8] {'a','b'}", range(32)),
    ("replica_groups=mesh['a'=16,'b'=2] {'a':(2)4}", range(0, 16, 4)),
  ],
)
def test_groups(groups, ids):
  found = collectives._group(f", channel_id=1, {groups}, use_global_device_ids=true", 32)
  assert found == tuple(ids)
  assert collectives._compact(found) == (ids if isinstance(ids, range) else tuple(sorted(ids)))


def test_groups_by_what_they_are_send_and_cross_as_their_members_do():
  """Ranges of device ids, and rings in blocks, of 48 devices in domains of any size."""
  n = 48
  for block, hops in ((48, 1), (48, 24), (12, 1), (12, 5), (12, 6), (3, 2), (2, 1)):
    pairs = tuple((i, i // block * block + (i + hops) % block) for i in range(n))
    assert collectives._ring(pairs, n) == (ring := collectives.Ring(n, block))
    for domain in range(1, n + 2):
      share = lambda of, domain=domain: collectives._share_crossing(
        "collective-permute", of, domain
      )
      assert share(ring) == share(pairs)
  for none in (tuple((i, n - 1 - i) for i in range(n)), ((0, 1), (1, 0)), ((0, 0), (1, 2))):
    assert collectives._ring(none, n) == none
  for group in (range(n), range(0, n, 4), range(4), range(1)):
    for domain in range(1, n + 2):
      most = collectives._most_in_a_domain
      assert most(group, domain) == most(tuple(group), domain)


def test_what_leaves_a_domain():
  """Eight devices in domains of 4; a device's share of what its domain has to fetch."""
  every, ring = tuple(range(8)), tuple((i, (i + 1) % 8) for i in range(8))
  n = 800.0  # the payload
  out = {
    kind: collectives.crossing(
      {kind: collectives.of_group(kind, 1, n, ring if "permute" in kind else every)}, 4
    )
    for kind in ("all-gather", "all-reduce", "all-to-all", "collective-permute")
  }
  # Half of what is gathered is of the other domain, and comes in by four ways. Of an all-to-all
  # each device sends half of its operand to the other domain.
  assert out == pytest.approx(
    {"all-gather": n / 2 / 4, "all-reduce": n / 4, "all-to-all": n / 2, "collective-permute": n}
  )
  inside = {"all-gather": collectives.of_group("all-gather", 1, n, (4, 5, 6, 7))}
  assert collectives.crossing(inside, 4) == 0 < collectives.crossing(inside, 2)


def test_flops_of_all_devices():
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  product = jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
  x = jax.ShapeDtypeStruct((8 * 3, 5), jnp.float32)
  assert flops.count(product, x) == 2 * 3 * 3 * 5
  by_kind = flops.count_all_devices(jax.make_jaxpr(product)(x).jaxpr)
  assert by_kind == {"bfloat16": 0, "float32": 8 * 2 * 3 * 3 * 5, "highest": 0}


def test_flops_by_how_they_are_computed():
  def products(x):
    y = jax.lax.scan(lambda y, _: (y @ x, None), x, length=3)[0]
    narrow = y.astype(jnp.bfloat16) @ y.astype(jnp.bfloat16)
    return jnp.matmul(narrow.astype(jnp.float32), x, precision="highest")

  x = jax.ShapeDtypeStruct((4, 4), jnp.float32)
  one = 2 * 4**3
  assert flops.count_all_devices(jax.make_jaxpr(products)(x).jaxpr) == {
    "bfloat16": one,
    "float32": 3 * one,
    "highest": one,
  }


def test_flops_of_a_part_that_is_mapped_over_one_axis_of_two():
  mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
  product = jax.shard_map(
    lambda x: x @ x.T, mesh=mesh, in_specs=P("data"), out_specs=P("data"), axis_names={"data"}
  )
  x = jax.ShapeDtypeStruct((2 * 3, 5), jnp.float32)
  by_kind = flops.count_all_devices(jax.make_jaxpr(product)(x).jaxpr)
  assert by_kind["float32"] == 2 * 2 * 3 * 3 * 5


def test_attention_is_found_at_the_size_of_a_device_wherever_it_is_mapped():
  """[16, 2, 4, 4] on 8 devices are 64 elements of each, in global view, and inside of a shard_map
  over one axis or both.
  """
  mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
  x = jax.ShapeDtypeStruct((16, 2, 4, 4), jnp.float32)
  assert memory._attention(jax.make_jaxpr(jnp.exp)(x).jaxpr, 8) == {(64, 4)}
  for axes in ("data",), ("data", "fsdp"):
    mapped = jax.shard_map(
      jnp.exp, mesh=mesh, in_specs=P(axes), out_specs=P(axes), axis_names=set(axes)
    )
    assert memory._attention(jax.make_jaxpr(mapped)(x).jaxpr, 8) == {(64, 4)}


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
  figures = dict(compute=4.0, state_bytes=2e12, sent_bytes=100e9, model_flops=300e12)
  found = roofline.roofline(chip, **figures)
  assert found["seconds"] == {"compute": 4.0, "memory": 4.0, "network": 2.0, "between": 0.0}
  assert (
    found["binds"] == "compute" and found["step_seconds"] == 4.0 and found["mfu_ceiling"] == 0.75
  )
  found = roofline.roofline(chip, **{**figures, "sent_bytes": 500e9})
  assert (
    found["binds"] == "network" and found["step_seconds"] == 10.0 and found["mfu_ceiling"] == 0.3
  )
  assert roofline.roofline(chip, **{**figures, "state_bytes": 4e12})["binds"] == "memory"
  assert roofline.roofline(chip, **figures, between=5.0)["binds"] == "between"


def test_float32_has_its_own_peaks(report):
  """The loss asks for float32 at highest precision: FP32 on a GPU, six bf16 passes on a TPU; the
  towers of a float32 run are TF32 on a GPU, and one bf16 pass on a TPU.
  """
  h100, v5e = chips.named("H100"), chips.named("v5e")
  work = {"bfloat16": 989.5e12, "float32": 494.5e12, "highest": 67e12}
  assert h100.seconds(work) == pytest.approx(3)
  assert v5e.seconds(work) == pytest.approx((989.5 + 494.5 + 6 * 67) / 197)
  of = report["flops"]["by_kind_per_device"]
  # The three products of the loss, of 2 images a device with all 16 texts, and two of pairs for
  # the log.
  assert report["flops"]["loss_per_device"] == 3 * 2 * 2 * 16 * 16
  assert of["highest"] == report["flops"]["loss_per_device"] + 2 * 2 * 2 * 16
  assert of["bfloat16"] == 0 and sum(of.values()) == report["flops"]["executed_per_device"]
  for name, chip in (("H100", h100), ("v5e", v5e)):
    expected = of["float32"] / chip.flops_f32 + of["highest"] / chip.flops_highest
    assert report["chips"][name]["seconds"]["compute"] == pytest.approx(expected)


def test_a_network_between_domains(report):
  traffic = {"all-reduce": collectives.of_group("all-reduce", 1, 32e9, tuple(range(16)))}
  used = {**report["bytes_per_device"], "state": 0, "frozen": 0, "remembered": 0}
  many = report | {"devices": 16, "bytes_per_device": used}
  many["collectives"] = {"all-reduce": {"count": 1, "payload": 4, "sent": 60e9}}
  on = plan._on_chip(many, chips.named("H100"), traffic, None)
  # 60 GB·(16 − 8)/(15·8) through each of eight adapters
  assert (on["domains"], on["crossing_bytes"], on["between"]) == (2, pytest.approx(4e9), 50e9)
  assert on["seconds"]["between"] == pytest.approx(4 / 50)
  assert plan._on_chip(many, chips.named("H100"), traffic, 1e9)["seconds"][
    "between"
  ] == pytest.approx(4)
  assert "2 domains of 8, 4 GB a step at 50 GB/s between" in table._domains_in_words(on)
  assert on["binds"] == "network"
  slow = plan._on_chip(many, chips.named("H100"), traffic, 1e9)
  assert "step ≥ 4 s, bound by the network between domains (" in table._chip_in_words(
    slow | {"other_loss_impl": None}
  )
  on = plan._on_chip(many, chips.named("L4"), traffic, None)
  assert on["between"] is None and on["seconds"]["between"] == 0
  assert "give --between GB/s" in table._domains_in_words(on)
  assert plan._on_chip(many, chips.named("v4"), traffic, None)["domains"] == 1


def test_published_figures():
  known = chips.NAMED
  assert set(chips.USUAL) < set(known) and len(known) == 16
  for kind, name in (
    ("TPU v2", "v2"),
    ("TPU v3", "v3"),
    ("TPU v4", "v4"),
    ("TPU v5 lite", "v5e"),
    ("TPU v5", "v5p"),
    ("TPU v6 lite", "v6e"),
    ("TPU7x", "tpu7x"),
    ("NVIDIA A100-SXM4-80GB", "A100-80"),
    ("NVIDIA A100-SXM4-40GB", "A100-40"),
    ("NVIDIA H100 80GB HBM3", "H100"),
    ("NVIDIA H200", "H200"),
    ("NVIDIA B200", "B200"),
    ("NVIDIA GB200", "GB200"),
    ("NVIDIA L4", "L4"),
    ("NVIDIA L40S", "L40S"),
    ("NVIDIA A10", "A10"),
  ):
    assert chips.find(kind) is known[name] is chips.named(name.lower()) is chips.named(name.upper())
  assert (known["v5e"].memory, known["v5e"].bandwidth, known["v5e"].link) == (16e9, 819e9, 200e9)
  assert (known["H100"].memory, known["H100"].bandwidth, known["H100"].link) == (
    80e9,
    3.35e12,
    450e9,
  )
  for kind in ("NVIDIA H100 PCIe", "NVIDIA H200 NVL", "NVIDIA A40", "NVIDIA L40"):
    assert chips.find(kind).name is None
  for chip in known.values():
    # Products of float32 are never faster than those of bfloat16.
    assert chip.flops >= chip.flops_f32 > chip.flops_highest > 0 and chip.domain >= 8


def test_the_table_of_chips(capsys):
  assert cli.main(["plan", "--chips", "List"]) == 0
  title, *lines = capsys.readouterr().out.splitlines()
  assert [line.split()[0] for line in lines] == list(chips.NAMED)
  assert "32 GB at 1200 GB/s; links 300 GB/s among 4,096" in lines[2]
  assert cli.main(["plan", "--chips", "list", "--json"]) == 0
  assert json.loads(capsys.readouterr().out)["H100"]["domain"] == 8


def test_what_jax_may_use(monkeypatch):
  monkeypatch.delenv(memory.VARIABLE, raising=False)
  h100 = chips.named("H100")
  assert memory.usable(h100)[0] == 0.75 and memory.usable(chips.named("v5e"))[0] == 1
  monkeypatch.setenv(memory.VARIABLE, "0.9")
  assert memory.usable(h100) == (0.9, memory.VARIABLE)
  for wrong in ("1.5", "most", "0", "nan"):
    monkeypatch.setenv(memory.VARIABLE, wrong)
    with pytest.raises(ValueError, match="must be a share of a GPU's memory"):
      memory.usable(h100)
  config = tiny.get_config()
  monkeypatch.setattr(plan, "_measure", None)  # it is refused before
  with pytest.raises(ValueError, match="must be a share of a GPU's memory"):
    plan.plan(config, 8, ["v4", "H100"])


WIDENED = """HloModule m, is_scheduled=true

%widen (p: bf16[4,256]) -> f32[4,256] {
  %p = bf16[4,256]{1,0} parameter(0)
  ROOT %convert.1 = f32[4,256]{1,0} convert(%p)
}

%body (carry: (s32[], f32[4,256])) -> (s32[], f32[4,256]) {
  %carry = (s32[], f32[4,256]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %stack = f32[4,256]{1,0} get-tuple-element(%carry), index=1
  %logits = f32[2,8,8]{2,1,0} exponential(%stack)
  %product = f32[128]{0} dot(%logits, %stack)
  %rounded = bf16[128]{0} convert(%product)
  ROOT %next = (s32[], f32[4,256]{1,0}) tuple(%i, %stack)
}

ENTRY %main (a: bf16[4,256]) -> f32[8] {
  %a = bf16[4,256]{1,0} parameter(0)
  %copied = bf16[4,256]{1,0} copy(%a)
  %stacked = f32[4,256]{1,0} fusion(%copied), kind=kLoop, calls=%widen
  %zero = s32[] constant(0)
  %start = (s32[], f32[4,256]{1,0}) tuple(%zero, %stacked)
  %loop = (s32[], f32[4,256]{1,0}) while(%start), condition=%body, body=%body
  %end = f32[4,256]{1,0} get-tuple-element(%loop), index=1
  ROOT %sum = f32[8]{0} reduce(%end)
}
"""


def test_temporaries_at_the_widths_of_the_program():
  """By hand: in the loop the widened stack (4 kB) is alive, with logits of 512 bytes, a product of
  512 that is made into bfloat16, and the 256 bytes of that.
  """
  found = buffers.peaks(hlo.Program(WIDENED), frozenset({(2 * 8 * 8, 8)}))
  # As it is the two kinds meet at the start of the loop's second half; and before the loop there
  # are the copy and the widened stack, 2 kB and 4 kB.
  assert found["as_is"] == 6144
  # There the copy and the stack at its own width.
  assert found["narrow"] == 4096
  assert found["fused"] == 4096
  # Without the copy the peak is in the loop.
  found = buffers.peaks(
    hlo.Program(WIDENED.replace("copy(%a)", "bitcast(%a)")), frozenset({(2 * 8 * 8, 8)})
  )
  assert found == {"as_is": 4096 + 512 + 512, "narrow": 2048 + 512 + 256, "fused": 2048 + 256 + 256}


def test_an_estimate_is_within_its_bounds(report):
  """Of a float32 run nothing is widened; fused attention takes 2 images and texts a device away."""
  used = report["bytes_per_device"]
  assert used["temp_fused"] < used["temp_estimate"] == used["temp"]
  assert used["total"] - used["total_fused"] == used["temp"] - used["temp_fused"]


def test_a_chip_on_which_auto_takes_another_loss(report):
  ring, chip = report | {"loss": report["loss"] | {"impl": "ring"}}, chips.named("v5e")
  assert plan._other_loss(ring, chip)["other_loss_impl"] == "dense"
  assert plan._other_loss(report, chip)["other_loss_impl"] is None


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
    "bytes_per_device": {
      "state": 12e9,
      "temp_estimate": 40e9,
      "loss_alone": 15e9,
      "total_estimate": 52e9,
      **used,
    },
  }


def test_suggestions_for_what_does_not_fit():
  v5e, h100 = chips.named("v5e"), chips.named("H100")
  assert suggestions.suggestions(report_of(), [h100]) == []
  found = suggestions.suggestions(report_of(), [v5e, h100])
  assert [text.split(":")[0] for text in found] == [
    "mesh.fsdp=4",
    "train.dtype=bfloat16",
    "train.remat.image=full",
    "loss.impl=ring",
    "train.microbatch=8",
    "more devices or a smaller batch_size",
  ]
  found = suggestions.suggestions(
    report_of(state=1e9, loss_alone=1e9) | {"dtype": "bfloat16", "microbatch": 8}, [v5e]
  )
  assert [text.split(":")[0] for text in found][0] == "train.remat.image=full"
  assert any(text.startswith("train.microbatch=2:") for text in found)
  assert not any(
    "microbatch" in text
    for text in suggestions.suggestions(report_of() | {"batch_norm": True}, [v5e])
  )


def test_a_plan_in_words(capsys, report, monkeypatch):
  v5e = report["chips"]["v5e"] | {
    **dict.fromkeys(("fits", "fits_by_estimate", "fits_fused"), False),
    "binds": "network",
  }
  table.show(
    report | {"chips": {"v5e": v5e}, "suggestions": ["mesh.fsdp=8: smaller"]}, "siglax plan tiny.py"
  )
  title, *lines = capsys.readouterr().out.splitlines()
  rows = dict(line.strip().split("  ", 1) for line in lines if line[2] != " ")
  assert title == "siglax plan tiny.py" and "mesh.fsdp=8: smaller" in rows["suggestion"]
  assert (
    "image" in rows["parameters"] and f"{report['parameter_bytes']:,} bytes" in rows["parameters"]
  )
  assert (
    "does not fit" in rows["v5e"]
    and "bound by network" in rows["v5e"]
    and "100% of 16 GB" in rows["v5e"]
  )
  assert "chosen by auto" in rows["loss"] and rows["collective-permute"].strip() == "none"
  assert "a device sends" in rows["all-reduce"]
  # The bars of all parts together are as long as that of everything.
  assert abs(sum(line.count("█") for line in lines) - table.BAR) <= 3
  # In a terminal of 80 columns each is shorter, beside the name of its part.
  monkeypatch.setenv("COLUMNS", "80")
  monkeypatch.setattr(streams, "is_terminal", lambda stream: True)
  table.show(report | {"chips": {}}, "siglax plan tiny.py")
  with_bars = [line for line in capsys.readouterr().out.splitlines() if "█" in line]
  assert all(re.search(r"\w.* [\d.,]+ [GMk]B +█+", line) for line in with_bars) and with_bars
  assert table.SHORTEST_BAR - 3 <= sum(line.count("█") for line in with_bars) < table.BAR / 2
  verdict = lambda **of: table._fit_in_words(v5e | of).partition(":")[0]
  assert verdict(fits=True) == "fits" and verdict(fits_by_estimate=True) == "fits by the estimate"


def test_hours_by_hand():
  report = {
    "devices": 32,
    "total_steps": 10,
    "parameters": {"image": 93e6, "text": 110e6},
    "flops": {"total": 1e21},
    "chips": {"v4": {"mfu_ceiling": 0.75}, "v3": {"mfu_ceiling": 0.75}},
  }
  found = budget.hours(report, chips.named("v4"), None, 3.0)
  hours = 1e21 / (32 * 275e12 * 0.27) / 3600
  assert found["hours"] == pytest.approx(hours) and found["mfu"] == 0.27
  assert found["chip_hours"] == pytest.approx(32 * hours)
  assert found["cost"] == pytest.approx(96 * hours) and "2303.15343" in found["mfu_source"]
  assert budget.hours(report, chips.named("v4"), 0.54, None)["hours"] == pytest.approx(hours / 2)
  capped = budget.hours(report, chips.named("v4"), 0.9, None)
  assert capped["mfu"] == 0.75 and capped["mfu_is_ceiling"] and capped["cost"] is None
  # A device of v3 is half a chip.
  found = budget.hours(report, chips.named("v3"), 0.5, None)
  assert found["chip_hours"] == pytest.approx(1e21 / (61.5e12 * 0.5) / 3600 / 2)


@pytest.mark.parametrize(
  "chip, parameters, what",
  [
    ("H100", 1e9, "g/14"),
    ("H100", 1.5e8, "T5X"),
    ("B200", 1.5e8, "T5X"),
    ("H200", 1e9, "NeMo on DGX H100"),
    ("L40S", 1e9, "NeMo on DGX A100"),
    ("A100-40", 1.512e8, "B/32"),
    ("A100-80", 4e8, "L/14"),
    ("v5e", 2e8, "SigLIP"),
    ("v6e", 9e9, "ViT-22B"),
  ],
)
def test_whose_mfu_is_taken(chip, parameters, what):
  assert what in budget.measured(chips.named(chip), parameters).what


def test_disk_and_host(report):
  """The checkpoints that tests/test_ablate.py counts; 2 pictures of 16×16, 12 tokens, a label and a
  weight a device, on eight of them.
  """
  state = report["bytes_per_device"]["state"]  # whole on each device
  disk, host = report["disk"], report["host"]
  # Due at 4, 8 and 12; two are kept, one is on its way.
  assert disk["checkpoints"] == 3 and disk["checkpoint_bytes"] == 3 * state
  assert disk["examples"] is disk["converted_bytes"] is None
  assert host == {"devices": 8, "batches": 4, "bytes": 4 * 16 * (768 + 48 + 4 + 4)}
  known = storage.data(tiny.get_config(), 1000)
  assert known["index_bytes"] == 8000
  assert known["converted_bytes"] == round(1000 * 16 * 16 * 4 / 3 * 20000 / 65536)


def test_settings_to_compare():
  found = compare.settings(["fsdp=1,4", "remat=none,full"])
  assert [one["setting"] for one in found][:2] == ["fsdp=1 remat=none", "fsdp=1 remat=full"]
  assert found[3]["fields"] == {
    "mesh.fsdp": "4",
    "train.remat.image": "full",
    "train.remat.text": "full",
  }
  for wrong in ("fsdp", "fsdp=", "fsdp=1,,4", "=1"):
    with pytest.raises(ValueError, match="must be NAME=VALUE,VALUE"):
      compare.settings([wrong])
  with pytest.raises(ValueError, match="--compare: 'fsd' is unknown.*; did you mean 'fsdp'?"):
    compare.settings(["fsd=1,4"])
  with pytest.raises(ValueError, match="known are fields, such as mesh.fsdp, and fsdp,"):
    compare.settings(["train.remat=full"])


def test_compared_settings_are_sorted():
  of = {"1": (True, 3.0), "2": (False, 1.0), "4": (True, 2.0)}

  def planned_as(fields):
    if fields["mesh.fsdp"] == "8":
      raise ValueError("no\nsuch mesh")
    fits, seconds = of[fields["mesh.fsdp"]]
    return {
      "chips": {"H100": {"fits_by_estimate": fits, "step_seconds": seconds}},
      "bytes_per_device": {},
    }

  rows = compare.compare(planned_as, compare.settings(["fsdp=1,2,4,8"]), "H100")
  assert [row["setting"] for row in rows] == ["fsdp=4", "fsdp=1", "fsdp=2", "fsdp=8"]
  assert rows[-1]["error"] == "no such mesh"
  with pytest.raises(ValueError, match="--compare fsdp=8: no such mesh"):
    compare.compare(planned_as, compare.settings(["fsdp=8"]), "H100")


def test_compared_in_words(capsys):
  words = ["plan", "--config", TINY, "--devices", "8", "--chips", "h100"]
  assert cli.main([*words, "--compare", "fsdp=1,3", "--hours", "--price", "2"]) == 0
  title, first, last = capsys.readouterr().out.splitlines()
  assert title.endswith("on H100") and first.strip().startswith("fsdp=1  step ≥")
  assert " h, " in first and "; cost " in first and "of 12 steps at MFU" in first
  assert "config.mesh.fsdp=3 does not divide the 8 devices" in last


def test_data_and_tokenizer_need_not_be_there(capsys):
  absent = {
    "data": "({'source': 'parquet', 'path': 'none.parquet'},)",
    "text.tokenizer": "none.model",
    "model.text.vocab_size": "500",
  }
  there, not_there = configured(), configured(**absent)
  assert plan._text(there).vocab_size == 107 and plan._text(not_there).vocab_size == 500
  assert plan._known_examples(not_there, None) is None
  assert plan._known_examples(configured(total_epochs="2"), None) == 64
  assert plan._known_examples(configured(total_epochs="2"), 10**9) == 10**9
  words = [f"--config.{field}={value}" for field, value in absent.items()]
  line = fails(capsys, "--devices", "8", *words, "--config.total_epochs=2")
  assert "config.total_epochs needs the data" in line and "none.parquet" in line
  assert "give --examples N, config.total_steps or config.total_examples" in line
  assert "set config.model.text.vocab_size" in fails(capsys, "--devices", "8", *words[:2])


@pytest.mark.parametrize(
  "words, message",
  [
    (
      ("--devices", "8", "--chips", "v5e,P100"),
      "--chips: 'P100' is unknown; known are v2, v3, v4,",
    ),
    (
      ("--devices", "8", "--config.mesh.data=2", "--config.mesh.fsdp=2"),
      "is 4, but there are 8 devices",
    ),
    (("--devices", "8", "--batch", "12"), "config.batch_size=12 is not divisible by the 8 devices"),
    (("--devices", "0"), "--devices 0 must be at least 1"),
    (("--devices", "16"), "--devices 16, but jax has 8"),
    ((), "--devices is missing"),
    (("--devices", "8", "--chips", "v4,P100", "--compare", "fsdp=1"), "--chips: 'P100' is unknown"),
    (("--devices", "8", "--mfu", "40"), "--mfu 40 must be a share of the peak"),
    (("--devices", "8", "--price", "0"), "--price 0 must be above 0"),
    (("--devices", "8", "--between", "-1"), "--between -1 must be above 0"),
    (("--devices", "8", "--examples", "0"), "--examples 0 must be at least 1"),
    (("--devices", "8", "--compare", "fsdp"), "--compare 'fsdp' must be NAME=VALUE,VALUE"),
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


def test_figures_of_thousands_are_on_a_line():
  """Of meshes with few slices, or places in one, to those with many: hops grow with the devices,
  gradients do not, and what is sent follows from payload and groups.
  """
  assert plan_command.VIRTUAL == scaled.VIRTUAL >= scaled.COMPILED

  def figures(mesh):
    hops, rounds = mesh.slices * (mesh.places * mesh.fsdp - 1), mesh.slices - 1
    found = {kind: collectives.Traffic() for kind in collectives.KINDS}
    ways = {"round": hops, "ring": rounds} if mesh.slices > 1 else {"ring": hops}
    for shape, count in ways.items():
      add_to(found, "collective-permute", mesh, shape, count, 100 * count)
    for kind in collectives.KINDS[:3]:
      for shape in ("row", "column", "all"):
        add_to(found, kind, mesh, shape, 2, 64 * mesh.data)
    report = {"a": hops, "b": 7, "c": "x", "d": 0.5, "e": {"f": 0.5 * mesh.devices, "g": None}}
    return {"report": report, "shapes": scaled._by_shape(found, mesh)}, found

  def add_to(found, kind, mesh, shape, count, payload):
    group = scaled._groups(mesh)[shape]
    if not isinstance(group, range) or len(group) > 1:
      found[kind].add(collectives.of_group(kind, count, payload, group))

  for whole in (
    scaled.Mesh(1, 4096, 1),
    scaled.Mesh(1, 1024, 4),
    scaled.Mesh(2, 2048, 1),
    scaled.Mesh(512, 2, 4),
    scaled.Mesh(64, 65, 1),
    scaled.Mesh(64, 64, 16),
  ):
    found = scaled._at(whole, {mesh: figures(mesh)[0] for mesh in scaled._enough(whole)})
    want, traffic = figures(whole)
    assert found == want
    assert scaled._traffic(found["shapes"], whole) == traffic


@pytest.mark.parametrize("slices", [1, 2, 4, 6, 16, 64, 512])
@pytest.mark.parametrize("fsdp", [1, 2, 3, 4, 8, 16, 32, 64, 128, 256])
def test_programs_to_scale_from(fsdp, slices):
  """A row and a column of a mesh are of different sizes, halves of a round are loops of the same
  number of trips, and few devices are enough.
  """
  places = 1008 // slices or 1
  whole = scaled.Mesh(slices, places, fsdp)
  meshes = scaled._enough(whole)
  assert meshes or slices > 1 and fsdp > 32
  for mesh in meshes:
    fixed = mesh.slices == slices and fsdp >= 64
    assert mesh.devices <= (scaled.VIRTUAL if fixed else scaled.COMPILED)
    assert mesh.fsdp == fsdp
    assert len(meshes) == 1 or 1 < mesh.data != fsdp
    assert mesh.slices == slices or mesh.slices in (5, 6, 8, 16)
    assert mesh.places == places or (places - mesh.places) * fsdp % 2 == 0
  assert len(meshes) in (0, 1, 2, 4) and list(meshes) == sorted(meshes)


def test_what_cannot_be_scaled():
  of = lambda **fields: configured(**{"mesh." + name: value for name, value in fields.items()})
  assert scaled.meshes(of(), 512) == [scaled.Mesh(1, 512, 1)]
  assert scaled.meshes(of(fsdp="600"), 600) == [scaled.Mesh(1, 1, 600)]
  with pytest.raises(
    ValueError, match="config.mesh.fsdp=512 cannot be planned for 4096 devices; give .*fsdp=256, or"
  ):
    scaled.meshes(of(fsdp="512"), 4096)
  with pytest.raises(
    ValueError,
    match="config.mesh.fsdp=128 with config.mesh.slices=16 cannot be planned for 16384 devices; "
    "give config.mesh.fsdp=32, or up to 512 --devices",
  ):
    scaled.meshes(of(fsdp="128", slices="16"), 16384)
  with pytest.raises(ValueError, match="all-reduce, runs in groups that are no row, column"):
    odd = {"all-reduce": collectives.of_group("all-reduce", 1, 8, range(3))}
    scaled._by_shape(odd, scaled.Mesh(1, 8, 1))


def test_fewer_devices_remember_as_many_examples_each():
  """1,000,001 examples fill 123 batches of 8,192: of them a device remembers 246."""
  c = configured(**{"loss.name": "global", "batch_size": "8192"})
  given = []

  def of(config, examples):
    given.append((config.batch_size, config.mesh.data, examples))
    return {"loss": {"name": "global"}}, {}

  scaled.measure(config_lib.resolve(c, plan._text(c)), 4096, 1_000_001, of)
  assert given == [(16, 8, 8 * 246), (32, 16, 16 * 246)]


@pytest.mark.slow
@pytest.mark.parametrize(
  "devices, fsdp, impl, slices, examples",
  [
    (64, 1, "ring", 1, 0),
    (128, 4, "gather", 1, 0),
    (64, 16, "gather", 1, 0),
    (64, 1, "ring", 1, 100_000),
    (128, 4, "gather", 1, 100_000),
    (64, 1, "ring", 2, 0),
    (75, 1, "ring", 3, 100_000),
    (96, 4, "ring", 12, 0),
    (144, 1, "ring", 8, 0),
  ],
)
def test_a_scaled_plan_is_the_compiled_one(devices, fsdp, impl, slices, examples):
  """All figures are equal, but for what XLA pads buffers by, and, with 8 slices, for one array of
  embeddings, [2, 16] in float32, that the loss holds longer.
  """
  command = [sys.executable, "plan_process.py", *map(str, (devices, fsdp, impl, slices, examples))]
  environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
  tests = pathlib.Path(__file__).parent
  environment["PYTHONPATH"] = f"{tests.parent}:{tests}"
  done = subprocess.run(
    command, cwd=tests, env=environment, capture_output=True, text=True, timeout=400
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  compiled, many = found["compiled"], found["scaled"]
  assert max(many.pop("scaled_from")) < devices
  padding = {"rel": 1e-4, "abs": 128 if slices == 8 else 0}
  for name, error in (("bytes_per_device", padding), ("traffic", {"rel": 1e-12})):
    of_all, of_few = (dict(flat(report.pop(name))) for report in (compiled, many))
    assert of_few == pytest.approx(of_all, **error)
  assert many == compiled
