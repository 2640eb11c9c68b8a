"""What a run needs, told without its accelerators: the real step compiled for virtual CPU devices,
nothing allocated.

Memory, per device, of XLA's memory_analysis: arguments (state and batch) + the next batch, which
the loop holds already + results − those that reuse donated arguments + temporaries (activations,
gradients, buffers of collectives). XLA's CPU backend computes bfloat16 in float32, so these
temporaries are an upper bound; siglax/costs/buffers.py estimates those at the widths of the
program. FLOPs are counted over the jaxpr; model FLOPs are three forward passes of both towers (one
of a frozen tower, none of one whose embeddings are precomputed), executed ones are what the step
does: rematerialisation and the loss too. Collectives: siglax/costs/collectives.py.

The roofline of a chip with peaks F_k FLOP/s of each kind of product k (16-bit; float32; float32 at
highest precision), F = F_bf16, HBM bandwidth H, one-way interconnect bandwidth N inside a domain of
links and W between domains, all perfectly overlapped, so that the step is never faster:

    compute = Σ_k executed FLOPs of kind k of a device / F_k
    memory  = 2 · bytes of the state of a device / H
    network = bytes a device sends in collectives / N
    between = bytes of these that leave a domain, of a device / W
    step    = max(compute, memory, network, between)
    MFU     ≤ model FLOPs / (devices · F · step)

The update reads and writes all of the state but what is frozen, and of what a loss remembers of
each example only the entries of a batch.
N is that of all links of a chip at once, TPU's ICI or NVLink. A domain is a slice where
config.mesh.slices is a number above 1, else what the links of the chip join.
"""

from __future__ import annotations

import pathlib
import time
import types

import jax
import jax.numpy as jnp

from siglax import config as config_lib
from siglax import data as data_lib
from siglax import losses
from siglax.costs import collectives
from siglax.costs import memory as memory_lib
from siglax.costs import roofline as roofline_lib
from siglax.costs import scaled
from siglax.costs import storage
from siglax.costs import suggestions as suggestions_lib
from siglax.data import text as text_lib
from siglax.devices import chips as chips_lib
from siglax.devices import flops
from siglax.devices import mesh as mesh_lib
from siglax.models import trainable as trainable_lib
from siglax.models import transformer
from siglax.runs import folder as folder_lib
from siglax.training import checks
from siglax.training import program as program_lib
from siglax.training import remat as remat_lib
from siglax.training import step as step_lib

# The program, its memory and its collectives are the same; the machine code, which never runs, is
# made in half the time.
UNOPTIMIZED_CODE = {"xla_backend_optimization_level": 0}
# The end token where there is no tokenizer to tell; its value changes no shape.
EOS_ID = 1


def plan(
  config, devices: int, chips=chips_lib.USUAL, *, examples: int | None = None, between=None
) -> dict:
  """The figures that `siglax plan` prints, as one dict ready for JSON; bytes and FLOPs are numbers,
  times are seconds.

  config: as of `config.load`. Call in a process whose JAX has as many (virtual) devices as the
  largest of scaled.meshes. chips: names of chips.NAMED. examples: of the data, which are then not
  opened. between: bytes/s, one way, of a device between domains, in place of the table's. Raises
  ValueError in one line for a config that does not fit the devices, an unknown chip, a share of GPU
  memory that is none, durations in epochs of data that are not there, and a tokenizer that is not
  there while config.model.text.vocab_size is None.
  """
  chips = [chips_lib.named(name) for name in chips]
  for chip in chips:
    memory_lib.usable(chip)  # a wrong share is refused before anything compiles
  if devices < 1:
    raise ValueError(f"--devices {devices} must be at least 1")
  checks.validate(config, devices)
  needed = max(mesh.devices for mesh in scaled.meshes(config, devices))
  if jax.device_count() < needed or devices == needed < jax.device_count():
    raise ValueError(
      f"--devices {devices}, but jax has {jax.device_count()}; set JAX_NUM_CPU_DEVICES={needed} "
      "before it starts"
    )
  start = time.perf_counter()
  config = config_lib.resolve(config, _text(config))
  known = _known_examples(config, examples)
  measure = (
    _measure
    if needed == devices
    else lambda config, known: scaled.measure(config, devices, known, _measure)
  )
  report, traffic = _with_remat(config, known, chips, measure)
  report["disk"] |= storage.data(config, known)
  report["collectives"] = {
    kind: {"count": of.count, "payload": of.payload, "sent": of.sent}
    for kind, of in traffic.items()
  }
  report["slices"] = _slices(report, traffic)
  report["chips"] = {
    chip.name: _on_chip(report, chip, traffic, between) | _other_loss(report, chip)
    for chip in chips
  }
  report["suggestions"] = suggestions_lib.suggestions(report, chips)
  return {**report, "seconds": round(time.perf_counter() - start, 1)}


def _with_remat(config, known: int | None, chips, measure) -> tuple[dict, dict]:
  """measure(config, known), where train.remat=auto is the first choice that fits all of the chips
  by the estimate, or else full. The report has it, and "remat_auto": the towers that it is for.
  """
  automatic = [name for name, remat in config.train.remat.items() if remat == transformer.AUTO]
  most = remat_lib.SHARE * min(memory_lib.usable(chip)[0] * chip.memory for chip in chips)
  config = config.copy_and_resolve_references()
  for remat in transformer.REMAT:
    for name in automatic:
      config.train.remat[name] = config.model[name].remat = remat
    report, traffic = measure(config, known)
    if not automatic or report["bytes_per_device"]["total_estimate"] <= most:
      break
  return report | {"remat_auto": automatic}, traffic


def _measure(config, examples: int | None) -> tuple[dict, dict]:
  """(figures whatever the chip, traffic by kind) of a resolved config, compiled for the devices of
  its mesh.
  """
  program = program_lib.Program(config, examples or 1)
  devices = program.mesh.size
  (traced, compiled), (traced_largest, largest) = _compiled(program)
  report = _figures(config, program, traced, devices) | {
    "bytes_per_device": memory_lib.figures(largest, program, traced_largest.jaxpr.jaxpr),
    "disk": storage.disk(config, program),
    "host": storage.host(config, program),
  }
  loss = _loss_alone(config, program, program.model.embed_dim)
  report["bytes_per_device"]["loss_alone"] = (
    loss.lower().compile(UNOPTIMIZED_CODE).memory_analysis().temp_size_in_bytes
  )
  _add_shares(report["flops"], loss, devices)
  return report, collectives.read(compiled.as_text(), devices)


def _compiled(program) -> tuple:
  """(traced, compiled) of the step, and of the one that takes the most memory: the end of a
  training may see more patches, and has to fit.
  """
  batch = program.abstract_batch()

  def compile_at(step):
    traced = program.update(step).trace(program.abstract_state, batch)
    return traced, traced.lower().compile(UNOPTIMIZED_CODE)

  with jax.set_mesh(program.mesh):
    first = largest = compile_at(0)
    if 0 < program.masked_steps < program.total_steps:
      temporaries = lambda found: found[1].memory_analysis().temp_size_in_bytes
      largest = max(first, compile_at(program.masked_steps), key=temporaries)
  return first, largest


def _figures(config, program, traced, devices) -> dict:
  """The figures of the program, whatever the chip."""
  params, d = program.abstract_state.params, program.model.embed_dim
  impl, tile = losses.plan(
    config.loss.impl, config.loss.tile, config.batch_size, d, program.mesh, mesh_lib.BATCH_AXES
  )
  model_flops = program.model_flops()
  executed = flops.count_all_devices(traced.jaxpr.jaxpr)
  return {
    "devices": devices,
    "mesh": dict(program.mesh.shape),
    "slices": mesh_lib.count_slices(config.mesh.slices),
    "batch_size": config.batch_size,
    "batch_per_device": config.batch_size // devices,
    "microbatch": config.train.microbatch,
    "batch_norm": step_lib.trains_batch_norm(program.model, program.frozen),
    "embed_dim": d,
    "total_steps": program.total_steps,
    "dtype": config.train.dtype,
    "remat": dict(config.train.remat),
    "parameters": {name: trainable_lib.count(part) for name, part in params.items()},
    "parameter_bytes": sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params)),
    "flops": {
      "per_example": model_flops / config.batch_size,
      "per_step": model_flops,
      "total": program.total_flops(),
      "executed_per_device": sum(executed.values()) / devices,
      "by_kind_per_device": {kind: work / devices for kind, work in executed.items()},
    },
    "loss": {
      "name": config.loss.name,
      "impl": impl,
      "tile": tile,
      "auto": config.loss.impl == "auto",
    },
  }


def _add_shares(work: dict, loss, devices: int):
  """Adds to a plan's FLOPs those of the loss, and how often the towers' are executed: the factor of
  rematerialisation.
  """
  of_loss = sum(flops.count_all_devices(loss.jaxpr.jaxpr).values()) / devices
  work["loss_per_device"] = of_loss
  work["remat_factor"] = (work["executed_per_device"] - of_loss) * devices / work["per_step"]


def _text(config):
  """The tokenizer; where its file is not there, what `config.resolve` reads of one, of
  config.model.text.vocab_size.
  """
  tokenizer, size = config.text.tokenizer, config.model.text.vocab_size
  if tokenizer in text_lib.SHIPPED or pathlib.Path(tokenizer).exists():
    return folder_lib.text_processor(config)
  if size is None:
    raise ValueError(
      f"config.text.tokenizer={tokenizer!r}: no such file; give one, or set "
      "config.model.text.vocab_size, enough for a plan"
    )
  return types.SimpleNamespace(
    vocab_size=size, eos_id=EOS_ID, tokenizer=tokenizer, lowercase=True, strip_punctuation=True
  )


def _known_examples(config, given: int | None) -> int | None:
  """Examples of the data: those that are given, or, where a duration in epochs or a loss that
  remembers each of them needs to know, of the data, which are opened; else None.
  """
  if given is not None:
    if given < 1:
      raise ValueError(f"--examples {given} must be at least 1")
    return given
  in_epochs = [
    name for name in config_lib.DURATIONS if config_lib.get(config, f"{name}_epochs") is not None
  ]
  remembers = losses.LOSSES.find(config.loss.name, "config.loss.name").gamma is not None
  if not in_epochs and not remembers:
    return None
  try:
    return data_lib.num_examples(data_lib.open_data(config))
  except ValueError as e:
    if remembers:
      raise ValueError(
        f"config.loss.name={config.loss.name!r} keeps 16 bytes for each example of the data, which "
        f"cannot be opened ({e}); give --examples N, or plan with another loss"
      ) from e
    name = in_epochs[0]
    raise ValueError(
      f"config.{name}_epochs needs the data, which cannot be opened ({e}); give --examples N, "
      f"config.{name}_steps or config.{name}_examples"
    ) from e


def _loss_alone(config, program, d):
  """The traced value and gradients of the loss, as the step calls it, of abstract embeddings."""
  loss = losses.make(config.loss, *mesh_lib.of_batch(program.mesh, config.mesh.slices))
  rows, whole = mesh_lib.batch_sharding(program.mesh), mesh_lib.replicated(program.mesh)
  z = jax.ShapeDtypeStruct((config.batch_size, d), jnp.float32, sharding=rows)
  scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
  batch = program.abstract_batch()
  labels = batch["label"] if config.loss.positives == "label" else None
  value = lambda zimg, ztxt, scale, bias, weights, labels: loss(
    zimg, ztxt, scale, bias, weights=weights, labels=labels
  )
  return jax.jit(jax.value_and_grad(value, (0, 1, 2, 3))).trace(
    z, z, scalar, scalar, batch["weight"], labels
  )


def _slices(report, traffic) -> dict:
  """How many slices of how many devices there are, and the bytes that a device sends between them,
  by kind of collective.
  """
  count = report["slices"]
  size = report["devices"] // count
  sent = {kind: collectives.crossing({kind: of}, size) for kind, of in traffic.items()}
  return {"count": count, "devices": size, "sent": sent}


def _on_chip(report, chip, traffic, between) -> dict:
  """Whether a plan fits a chip, and how fast it can be there."""
  used = report["bytes_per_device"]
  share, why = memory_lib.usable(chip)
  usable = share * chip.memory
  slices = report["slices"]
  domain = slices["devices"] if slices["count"] > 1 else chip.domain
  domains = -(-report["devices"] // domain)
  crossing = collectives.crossing(traffic, domain) if domains > 1 else 0.0
  speed = between or chip.between
  return {
    "fits": used["total"] <= usable,
    "fits_by_estimate": used["total_estimate"] <= usable,
    "fits_fused": used["total_fused"] <= usable,
    "memory": chip.memory,
    "memory_share": used["total"] / chip.memory,
    "least": used["total_fused"],
    "most": used["total"],
    "usable": usable,
    "usable_share": share,
    "usable_why": why,
    "domain": domain,
    "domains": domains,
    "crossing_bytes": crossing,
    "between": speed if domains > 1 else None,
    **roofline_lib.roofline(
      chip,
      compute=chip.seconds(report["flops"]["by_kind_per_device"]),
      sent_bytes=sum(of["sent"] for of in report["collectives"].values()),
      state_bytes=used["state"] - used["frozen"] - used["remembered"],
      model_flops=report["flops"]["per_step"] / report["devices"],
      between=crossing / speed if speed else 0.0,
    ),
  }


def _other_loss(report, chip) -> dict:
  """What loss.impl=auto takes on a chip, where that is not what was compiled: its rule asks for the
  device's memory.
  """
  if not report["loss"]["auto"]:
    return {"other_loss_impl": None}
  sizes = tuple(report["mesh"][axis] for axis in mesh_lib.BATCH_AXES)
  mesh = jax.sharding.AbstractMesh(sizes, mesh_lib.BATCH_AXES)
  impl = losses.choose(
    report["batch_size"], report["embed_dim"], mesh, mesh_lib.BATCH_AXES, chip.memory
  )
  return {"other_loss_impl": impl if impl != report["loss"]["impl"] else None}
