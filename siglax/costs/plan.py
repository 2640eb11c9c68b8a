"""What a run needs, told without its accelerators: the real step compiled for virtual CPU devices,
nothing allocated.

Memory, per device, of XLA's memory_analysis: arguments (state and batch) + results − those that
reuse donated arguments + temporaries (activations, gradients, buffers of collectives). XLA's CPU
backend computes bfloat16 in float32, so the temporaries of a bfloat16 run are more than an
accelerator's. FLOPs are counted over the jaxpr; model FLOPs are three forward passes of both towers
(one of a frozen tower, none of one whose embeddings are precomputed), executed ones are what the
step does: rematerialisation and the loss too. Collectives: siglax/costs/collectives.py.

The roofline of a chip with peak FLOP/s F, HBM bandwidth H and one-way interconnect bandwidth N, all
three perfectly overlapped, so that the step is never faster:

    compute = executed FLOPs of a device / F
    memory  = 2 · bytes of the state of a device / H
    network = bytes a device sends in collectives / N
    step    = max(compute, memory, network)
    MFU     ≤ model FLOPs / (devices · F · step)

The update reads and writes all of the state but what is frozen, and of what a loss remembers of
each example only the entries of a batch.
F is the bf16 peak whatever config.train.dtype is. N is that of all links of a chip at once, TPU's
ICI or NVLink; where a GPU job spans several NVLink domains, what is between them may be slower.
"""

from __future__ import annotations

import math
import pathlib
import time
import types

import jax
import jax.numpy as jnp

from siglax import config as config_lib
from siglax import data as data_lib
from siglax import losses
from siglax.costs import collectives
from siglax.costs import table
from siglax.data import text as text_lib
from siglax.devices import chips as chips_lib
from siglax.devices import flops
from siglax.devices import mesh as mesh_lib
from siglax.models import trainable as trainable_lib
from siglax.runs import folder as folder_lib
from siglax.training import checks
from siglax.training import program as program_lib
from siglax.training import step as step_lib

# A state that takes more of a chip than this leaves too little to activations; and so for the loss
# of all temporaries.
STATE_SHARE = LOSS_SHARE = 1 / 4
# The program, its memory and its collectives are the same; the machine code, which never runs, is
# made in half the time.
UNOPTIMIZED_CODE = {"xla_backend_optimization_level": 0}
# The end token where there is no tokenizer to tell; its value changes no shape.
EOS_ID = 1


def plan(config, devices: int, chips=tuple(chips_lib.NAMED)) -> dict:
  """The figures that `siglax plan` prints, as one dict ready for JSON; bytes and FLOPs are numbers,
  times are seconds.

  config: as of `config.load`. Call in a process whose JAX has that many (virtual) devices. chips:
  names of chips.NAMED. Raises ValueError in one line for a config that does not fit the devices, an
  unknown chip, durations in epochs of data that are not there, and a tokenizer that is not there
  while config.model.text.vocab_size is None.
  """
  chips = [chips_lib.named(name) for name in chips]
  if devices < 1:
    raise ValueError(f"--devices {devices} must be at least 1")
  checks.validate(config, devices)
  if jax.device_count() != devices:
    raise ValueError(
      f"--devices {devices}, but jax has {jax.device_count()}; set JAX_NUM_CPU_DEVICES={devices} "
      "before it starts"
    )
  start = time.perf_counter()
  config = config_lib.resolve(config, _text(config))
  program = program_lib.Program(config, _epoch_examples(config))
  with jax.set_mesh(program.mesh):
    traced = program.update().trace(program.abstract_state, program.abstract_batch())
    compiled = traced.lower().compile(UNOPTIMIZED_CODE)
    largest = compiled
    if 0 < program.masked_steps < program.total_steps:  # the end sees all patches, and has to fit
      end = program.update(program.masked_steps)
      end = end.trace(program.abstract_state, program.abstract_batch()).lower()
      temporaries = lambda x: x.memory_analysis().temp_size_in_bytes
      largest = max(compiled, end.compile(UNOPTIMIZED_CODE), key=temporaries)
  report = _figures(config, program, traced, compiled, largest, devices)
  d = program.model.embed_dim
  report["chips"] = {chip.name: _on_chip(report, chip, config, d, program.mesh) for chip in chips}
  report["suggestions"] = suggestions(report, chips)
  return {**report, "seconds": round(time.perf_counter() - start, 1)}


def _figures(config, program, traced, compiled, largest, devices) -> dict:
  """The figures of the program, whatever the chip. largest: the one that takes the most memory."""
  params, d = program.abstract_state.params, program.model.embed_dim
  traffic = collectives.read(compiled.as_text(), devices)
  impl, tile = losses.plan(
    config.loss.impl, config.loss.tile, config.batch_size, d, program.mesh, mesh_lib.BATCH_AXES
  )
  model_flops = program.model_flops()
  return {
    "devices": devices,
    "mesh": dict(program.mesh.shape),
    "batch_size": config.batch_size,
    "batch_per_device": config.batch_size // devices,
    "microbatch": config.train.microbatch,
    "batch_norm": step_lib.trains_batch_norm(program.model, program.frozen),
    "total_steps": program.total_steps,
    "dtype": config.train.dtype,
    "remat": dict(config.train.remat),
    "parameters": {name: trainable_lib.count(part) for name, part in params.items()},
    "parameter_bytes": sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params)),
    "bytes_per_device": {
      **_memory(largest, program),
      "loss_alone": _loss_alone(config, program, d).memory_analysis().temp_size_in_bytes,
    },
    "flops": {
      "per_example": model_flops / config.batch_size,
      "per_step": model_flops,
      "executed_per_device": flops.count_all_devices(traced.jaxpr.jaxpr) / devices,
    },
    "collectives": {kind: vars(of) for kind, of in traffic.items()},
    "loss": {
      "name": config.loss.name,
      "impl": impl,
      "tile": tile,
      "auto": config.loss.impl == "auto",
    },
  }


def roofline(chip: chips_lib.Chip, *, executed_flops, state_bytes, sent_bytes, model_flops) -> dict:
  """The least time of a step on a chip, what binds it and the most MFU; per device, see
  the module.
  """
  seconds = {
    "compute": executed_flops / chip.flops,
    "memory": 2 * state_bytes / chip.bandwidth,
    "network": sent_bytes / chip.link,
  }
  binds = max(seconds, key=seconds.__getitem__)
  step = seconds[binds]
  return {
    "seconds": seconds,
    "binds": binds,
    "step_seconds": step,
    "mfu_ceiling": model_flops / (chip.flops * step),
  }


def suggestions(report: dict, chips) -> list[str]:
  """What to change, each by itself, so that the step fits the smallest of the chips that it does
  not fit; [] if all do.
  """
  too_small = [chip.memory for chip in chips if report["bytes_per_device"]["total"] > chip.memory]
  if not too_small:
    return []
  memory, used, mesh = min(too_small), report["bytes_per_device"], report["mesh"]
  found = []
  if used["state"] > STATE_SHARE * memory and mesh["fsdp"] < report["devices"]:
    fsdp = _larger_fsdp(report, STATE_SHARE * memory)
    found.append(
      f"mesh.fsdp={fsdp}: splits the state, {table.gb(used['state'])} a device now, over more "
      "devices"
    )
  if report["dtype"] == "float32":
    found.append("train.dtype=bfloat16: halves the activations that are kept")
  kept = [name for name, remat in report["remat"].items() if remat != "full"]
  found += [
    f"train.remat.{name}=full: keeps one activation a layer and computes the others again"
    for name in kept
  ]
  if report["loss"]["impl"] != "ring" and used["loss_alone"] > LOSS_SHARE * used["temp"]:
    found.append(
      f"loss.impl=ring: the loss alone takes {table.gb(used['loss_alone'])} of temporaries"
    )
  examples = report["microbatch"] or report["batch_per_device"]
  if examples > 1 and not report["batch_norm"]:
    fewer = _smaller_microbatch(
      examples, used["temp"], memory - min(used["state"], STATE_SHARE * memory)
    )
    found.append(
      f"train.microbatch={fewer}: the same step with the activations of {fewer} examples at a time "
      f"instead of {examples}"
    )
  if report["batch_per_device"] > 1:
    found.append(
      f"more devices or a smaller batch_size: a device has {report['batch_per_device']} examples"
    )
  return found


def _larger_fsdp(report, most) -> int:
  """The smallest number of devices, of which mesh.fsdp is a divisor, that brings the state under
  `most` bytes; or all.
  """
  state, fsdp, devices = (
    report["bytes_per_device"]["state"],
    report["mesh"]["fsdp"],
    report["devices"],
  )
  larger = [f for f in range(2 * fsdp, devices + 1, fsdp) if devices % f == 0]
  return next((f for f in larger if state * fsdp / f <= most), devices)


def _smaller_microbatch(examples, temp, most) -> int:
  """The largest proper divisor of the examples whose share of the temporaries is at most `most`
  bytes; or 1.
  """
  return next(
    (n for n in range(examples // 2, 0, -1) if examples % n == 0 and temp * n / examples <= most), 1
  )


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


def _epoch_examples(config) -> int:
  """Examples of an epoch; the data are opened only where a duration is in epochs, and for a loss
  that remembers each of them.
  """
  in_epochs = [
    name for name in config_lib.DURATIONS if config_lib.get(config, f"{name}_epochs") is not None
  ]
  remembers = losses.LOSSES.find(config.loss.name, "config.loss.name").gamma is not None
  if not in_epochs and not remembers:
    return 1
  try:
    return data_lib.num_examples(data_lib.open_data(config))
  except ValueError as e:
    if remembers:
      raise ValueError(
        f"config.loss.name={config.loss.name!r} keeps 16 bytes for each example of the data, which "
        f"cannot be opened ({e}); give config.data as it is here, or plan with another loss"
      ) from e
    name = in_epochs[0]
    raise ValueError(
      f"config.{name}_epochs needs the data, which cannot be opened ({e}); "
      f"give config.{name}_steps or config.{name}_examples"
    ) from e


def _memory(compiled, program) -> dict[str, int]:
  """Bytes per device: of the state and its parameters, exact; of everything else, the compiled
  program's.
  """
  held = lambda tree: sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
  )
  analysis = compiled.memory_analysis()
  state, frozen = (
    held(program.abstract_state),
    trainable_lib.split(program.abstract_state.params, program.frozen)[1],
  )
  return {
    "parameters": held(program.abstract_state.params),
    "state": state,
    "frozen": held(frozen),
    "remembered": held(program.abstract_state.normalisers),
    "batch": analysis.argument_size_in_bytes - state,
    "temp": analysis.temp_size_in_bytes,
    "total": program_lib.peak_bytes(compiled),
  }


def _loss_alone(config, program, d):
  """The compiled value and gradients of the loss, as the step calls it, of abstract embeddings."""
  loss = losses.make(config.loss, program.mesh, mesh_lib.BATCH_AXES)
  rows, whole = mesh_lib.batch_sharding(program.mesh), mesh_lib.replicated(program.mesh)
  z = jax.ShapeDtypeStruct((config.batch_size, d), jnp.float32, sharding=rows)
  scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
  batch = program.abstract_batch()
  labels = batch["label"] if config.loss.positives == "label" else None
  value = lambda zimg, ztxt, scale, bias, weights, labels: loss(
    zimg, ztxt, scale, bias, weights=weights, labels=labels
  )
  lowered = jax.jit(jax.value_and_grad(value, (0, 1, 2, 3))).lower(
    z, z, scalar, scalar, batch["weight"], labels
  )
  return lowered.compile(UNOPTIMIZED_CODE)


def _on_chip(report, chip, config, d, mesh) -> dict:
  used = report["bytes_per_device"]
  sent = sum(of["sent"] for of in report["collectives"].values())
  impl = (
    losses.choose(config.batch_size, d, mesh, mesh_lib.BATCH_AXES, chip.memory)
    if report["loss"]["auto"]
    else None
  )
  return {
    "fits": used["total"] <= chip.memory,
    "memory": chip.memory,
    "memory_share": used["total"] / chip.memory,
    **roofline(
      chip,
      executed_flops=report["flops"]["executed_per_device"],
      sent_bytes=sent,
      state_bytes=used["state"] - used["frozen"] - used["remembered"],
      model_flops=report["flops"]["per_step"] / report["devices"],
    ),
    # What auto takes there, where that is not what was compiled: its rule asks for the device's
    # memory.
    "other_loss_impl": impl if impl not in (None, report["loss"]["impl"]) else None,
  }
