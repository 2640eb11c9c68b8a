"""A plan as a table: what `siglax plan` prints."""

from __future__ import annotations

import shutil
import sys

from siglax.devices import streams

# Columns of a bar that is as long as all of the memory together, at most and at least; and those
# of a terminal that a row's name and the frame of the table take.
BAR, SHORTEST_BAR, FRAME = 40, 8, 26


def show(report: dict, title: str):
  """Prints a plan as a table: rich in a terminal, plain text elsewhere."""
  streams.print_table(
    title,
    [
      *_rows(report),
      *(("suggestion", text) for text in report["suggestions"]),
    ],
  )


def _rows(report):
  work, loss = report["flops"], report["loss"]
  mesh, parameters = report["mesh"], report["parameters"]
  of = " and ".join(map(str, report.get("scaled_from", ())))
  scaled = f"; scaled from programs of {of} devices" if of else ""
  yield "devices", f"{report['devices']:,}: data {mesh['data']:,} × fsdp {mesh['fsdp']}{scaled}"
  yield (
    "batch",
    (
      f"{report['batch_size']:,}, {report['batch_per_device']:,} a device; microbatch "
      f"{report['microbatch'] or 'none'}; "
      f"{report['total_steps']:,} steps"
    ),
  )
  yield (
    "activations",
    f"{report['dtype']}; remat "
    + ", ".join(
      f"{name} {remat}{' (chosen by auto)' if name in report['remat_auto'] else ''}"
      for name, remat in report["remat"].items()
    ),
  )
  yield (
    "parameters",
    (
      f"image {parameters['image']:,}, text {parameters['text']:,}; {report['parameter_bytes']:,} "
      "bytes, "
      f"{report['bytes_per_device']['parameters']:,} a device"
    ),
  )
  tile = f", tile {loss['tile']}" if loss["tile"] else ""
  yield "loss", f"{loss['name']}, {loss['impl']}{tile}{' (chosen by auto)' if loss['auto'] else ''}"
  yield from _memory_rows(report)
  yield (
    "FLOPs",
    (
      f"{_si(work['per_example'])} an example, {_si(work['per_step'])} a step; executed "
      f"{_si(work['executed_per_device'])} a device: the model's × {work['remat_factor']:.2f}, the "
      f"factor of remat, and the loss {_si(work['loss_per_device'])}; {_kinds(work)}"
    ),
  )
  for kind, of in report["collectives"].items():
    yield (
      kind,
      f"{of['count']:,} a step, {gb(of['payload'])}; a device sends {gb(of['sent'])}"
      if of["count"]
      else "none",
    )
  if report["slices"]["count"] > 1:
    yield "between slices", _slices_in_words(report["slices"])
  for name, chip in report["chips"].items():
    yield name, _chip_in_words(chip)
  for name, of in report.get("hours", {}).items():
    yield f"{name} hours", _hours_in_words(of)
  yield "disk", _disk_in_words(report["disk"])
  yield "host memory", _host_in_words(report["host"])


def _memory_rows(report):
  used = report["bytes_per_device"]
  least = gb(used["total_fused"])
  yield (
    "bytes a device",
    (
      f"{gb(used['total'])} on a CPU, an upper bound; about {gb(used['total_estimate'])} in "
      f"{report['dtype']}, {least} with fused attention (estimates); loss alone "
      f"{gb(used['loss_alone'])}"
    ),
  )
  parts = {
    "parameters": used["parameters"],
    "optimizer and others of the state": used["state"] - used["parameters"],
    "batch, and the next one": used["batch"] + used["next_batch"],
    "activations and temporaries": used["temp_fused"],
    "+ without fused attention": used["temp_estimate"] - used["temp_fused"],
    "+ float32 copies of the CPU": used["temp"] - used["temp_estimate"],
  }
  width, longest = max(map(len, parts)), max(map(len, map(gb, parts.values())))
  columns = BAR
  if streams.is_terminal(sys.stdout):
    room = shutil.get_terminal_size().columns - FRAME - width - longest
    columns = min(max(room, SHORTEST_BAR), BAR)
  for name, size in parts.items():
    bar = "█" * round(columns * size / used["total"])
    yield "", f"{name:<{width}}  {gb(size):>{longest}}  {bar}".rstrip()


def _kinds(work) -> str:
  """For example "99% in bfloat16, 1% in float32 at highest precision"."""
  names = {
    "bfloat16": "bfloat16",
    "float32": "float32",
    "highest": "float32 at highest precision",
  }
  of = work["by_kind_per_device"]
  return ", ".join(
    f"{of[kind] / work['executed_per_device']:.1%} in {name}"
    for kind, name in names.items()
    if of[kind] >= 0.0005 * work["executed_per_device"]
  )


def _slices_in_words(slices) -> str:
  sent = {kind: size for kind, size in slices["sent"].items() if size}
  of = ", ".join(f"{gb(size)} in {kind}" for kind, size in sent.items()) or "nothing"
  return (
    f"{slices['count']:,} slices of {slices['devices']:,} devices; a device sends "
    f"{gb(sum(sent.values()))} a step to others: {of}"
  )


def _chip_in_words(chip) -> str:
  times = ", ".join(
    f"{name} {_time(seconds)}" for name, seconds in chip["seconds"].items() if seconds
  )
  other = (
    f"; auto would take loss.impl={chip['other_loss_impl']} there"
    if chip["other_loss_impl"]
    else ""
  )
  return (
    f"{_fit_in_words(chip)}; {_step_in_words(chip)} ({times}){_domains_in_words(chip)}; at best, "
    f"which no run reaches, MFU {chip['mfu_ceiling']:.0%}{other}"
  )


def _step_in_words(chip, of="") -> str:
  binds = {"between": "the network between domains"}.get(chip["binds"], chip["binds"])
  return f"step ≥ {_time(chip['step_seconds'])}{of}, bound by {binds}"


def _fit_in_words(chip) -> str:
  verdict = (
    "fits"
    if chip["fits"]
    else "fits by the estimate"
    if chip["fits_by_estimate"]
    else "fits with fused attention, by the estimate"
    if chip["fits_fused"]
    else "does not fit"
  )
  share = f"{chip['usable_share']:.0%} of {gb(chip['memory'])}, {chip['usable_why']}"
  return (
    f"{verdict}: {gb(chip['least'])} to {gb(chip['most'])} of the {gb(chip['usable'])} that jax "
    f"may use ({share})"
  )


def _domains_in_words(chip) -> str:
  if chip["domains"] == 1:
    return ""
  of = f"{chip['domains']:,} domains of {chip['domain']:,}"
  if chip["between"] is None:
    return f"; {of}, the network between them not counted: give --between GB/s"
  return f"; {of}, {gb(chip['crossing_bytes'])} a step at {chip['between'] / 1e9:.4g} GB/s between"


def _hours_in_words(of) -> str:
  ceiling = ", the most that the roofline allows" if of["mfu_is_ceiling"] else ""
  cost = "" if of["cost"] is None else f"; cost {of['cost']:,.0f}"
  return (
    f"{of['hours']:,.4g} h, {of['chip_hours']:,.0f} chip-hours{cost}, of {of['steps']:,} steps at "
    f"MFU {of['mfu']:.1%}{ceiling} ({of['mfu_source']})"
  )


def _disk_in_words(of) -> str:
  text = (
    f"{gb(of['checkpoint_bytes'])} of checkpoints: {of['checkpoints']:,} of "
    f"{gb(of['one_checkpoint_bytes'])}, those kept and one on its way; cache at most "
    f"{gb(of['cache_bytes_at_most'])} a machine, for data in a bucket"
  )
  if of["examples"] is None:
    return f"{text}; --examples N tells of the data"
  return (
    f"{text}; {of['examples']:,} examples: index {gb(of['index_bytes'])}, converted about "
    f"{gb(of['converted_bytes'])}"
  )


def _host_in_words(of) -> str:
  return (
    f"{gb(of['bytes'])} for {of['batches']} batches of {of['devices']} devices, whatever the "
    "number of threads; and the index of the data"
  )


def compared(rows: list[dict], chip: str) -> list[tuple[str, str]]:
  """(setting, in words) of `compare.compare`: those that fit by the time of a step, then others."""
  found = []
  for row in rows:
    if row["error"]:
      found.append((row["setting"], row["error"]))
      continue
    on = row["chip"]
    found.append(
      (
        row["setting"],
        f"{_step_in_words(on, f' on {chip}')}; {_fit_in_words(on)}; MFU at best "
        f"{on['mfu_ceiling']:.0%}" + (f"; {_hours_in_words(row['hours'])}" if row["hours"] else ""),
      )
    )
  return found


def gb(size: float) -> str:
  """10⁹ bytes, as makers of chips count; MB and kB below 0.1."""
  for unit, name in ((1e9, "GB"), (1e6, "MB")):
    if size >= unit / 10:
      return f"{size / unit:,.4g} {name}"
  return f"{size / 1e3:,.3g} kB"


def _si(number: float) -> str:
  for unit, name in ((1e15, "P"), (1e12, "T"), (1e9, "G")):
    if number >= unit:
      return f"{number / unit:,.3f} {name}FLOP"
  return f"{number / 1e6:,.3f} MFLOP"


def _time(seconds: float) -> str:
  return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
