"""A plan as a table: what `siglax plan` prints."""

from __future__ import annotations

from siglax.devices import streams


def show(report: dict, title: str):
  """Prints a plan as a table: rich in a terminal, plain text elsewhere."""
  streams.print_table(
    title, [*_rows(report), *(("suggestion", text) for text in report["suggestions"])]
  )


def _rows(report):
  used, work, loss = report["bytes_per_device"], report["flops"], report["loss"]
  mesh, parameters = report["mesh"], report["parameters"]
  yield "devices", f"{report['devices']}: data {mesh['data']} × fsdp {mesh['fsdp']}"
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
    + ", ".join(f"{name} {remat}" for name, remat in report["remat"].items()),
  )
  yield (
    "parameters",
    (
      f"image {parameters['image']:,}, text {parameters['text']:,}; {report['parameter_bytes']:,} "
      "bytes, "
      f"{used['parameters']:,} a device"
    ),
  )
  tile = f", tile {loss['tile']}" if loss["tile"] else ""
  yield "loss", f"{loss['name']}, {loss['impl']}{tile}{' (chosen by auto)' if loss['auto'] else ''}"
  yield (
    "bytes a device",
    (
      f"{gb(used['total'])} = state {gb(used['state'])} + batch {gb(used['batch'])} + "
      "activations and temporaries "
      f"{gb(used['temp'])}; loss alone {gb(used['loss_alone'])}"
    ),
  )
  yield (
    "FLOPs",
    (
      f"{_si(work['per_example'])} an example, {_si(work['per_step'])} a step; "
      f"executed {_si(work['executed_per_device'])} a device"
    ),
  )
  for kind, of in report["collectives"].items():
    yield (
      kind,
      f"{of['count']:,} a step, {gb(of['payload'])}; a device sends {gb(of['sent'])}"
      if of["count"]
      else "none",
    )
  for name, chip in report["chips"].items():
    yield name, _chip_in_words(chip)


def _chip_in_words(chip) -> str:
  fits = "fits" if chip["fits"] else "does not fit"
  times = ", ".join(f"{name} {_time(chip['seconds'][name])}" for name in chip["seconds"])
  other = (
    f"; auto would take loss.impl={chip['other_loss_impl']} there"
    if chip["other_loss_impl"]
    else ""
  )
  return (
    f"{fits}: {chip['memory_share']:.0%} of {gb(chip['memory'])}; step ≥ "
    f"{_time(chip['step_seconds'])}, "
    f"MFU ≤ {chip['mfu_ceiling']:.0%}, bound by {chip['binds']} ({times}){other}"
  )


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
