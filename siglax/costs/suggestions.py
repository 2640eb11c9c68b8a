"""What to change in a config whose step does not fit a chip."""

from __future__ import annotations

from siglax.costs import memory as memory_lib
from siglax.costs import table

# A state that takes more of a chip than this leaves too little to activations; and so for the loss
# of all temporaries.
STATE_SHARE = LOSS_SHARE = 1 / 4


def suggestions(report: dict, chips) -> list[str]:
  """What to change, each by itself, so that the step fits what jax may use of the smallest of the
  chips that it does not fit by the estimate; [] if all do.
  """
  usable = [memory_lib.usable(chip)[0] * chip.memory for chip in chips]
  too_small = [most for most in usable if report["bytes_per_device"]["total_estimate"] > most]
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
  if report["loss"]["impl"] != "ring" and used["loss_alone"] > LOSS_SHARE * used["temp_estimate"]:
    found.append(
      f"loss.impl=ring: the loss alone takes {table.gb(used['loss_alone'])} of temporaries"
    )
  examples = report["microbatch"] or report["batch_per_device"]
  if examples > 1 and not report["batch_norm"]:
    fewer = _smaller_microbatch(
      examples, used["temp_estimate"], memory - min(used["state"], STATE_SHARE * memory)
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
