"""What a run reports, and where: metrics.jsonl, TensorBoard, Weights & Biases, a progress line and a summary.

A run folder's metrics.jsonl has one JSON object a line, with non-decreasing "step". A training line carries step,
examples, loss, scale, bias, logit_pos, logit_neg, grad_norm, lr, examples_per_sec, examples_per_sec_per_device, mfu
(absent where the device's peak is unknown), data_wait and step_time (seconds); an evaluation line carries step,
examples and eval/<name>/<metric>; the last line of a start carries goodput/<phase>, shares of its wall time. A value that is not finite is null.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import pathlib
import secrets
import statistics
import sys
import time

import jax
from ml_collections import ConfigDict

from siglax import chips

FILE = "metrics.jsonl"
# Seconds after which TensorBoard's events reach the disk: what kill -9 may lose there.
EVENTS_FLUSH_SECONDS = 10


class RunMetrics:
  """Sends each record of a run to all of its writers. Only process 0 writes; on others every method does nothing.

  folder: the run folder. step: the step that training resumes from; later records of an earlier attempt are dropped.
  total_steps: for the progress line. Use as a context manager, so that the terminal is restored after an error.
  Raises ValueError when config.log.wandb is set and wandb is not installed.
  """

  def __init__(self, folder: str | os.PathLike, config: ConfigDict, *, total_steps: int, step: int = 0):
    self._folder, self._batch_size, self._start = pathlib.Path(folder), config.batch_size, time.monotonic()
    self._writers = []
    if jax.process_index() != 0:
      return
    self._folder.mkdir(parents=True, exist_ok=True)
    if config.log.wandb is not None:
      self._writers.append(Wandb(self._folder, config))
    if config.log.tensorboard:
      self._writers.append(TensorBoard(self._folder, step))
    self._writers.append(JsonLines(self._folder / FILE, step))
    progress = TerminalProgress if sys.stderr.isatty() else PlainProgress
    self._writers.append(progress(total_steps, config.batch_size, step))

  def write(self, step: int, values: dict):
    """Records training metrics or "eval/…" metrics of a step. values: name → number, array of one, or None for unknown."""
    if not self._writers:
      return
    # One explicit transfer, which jax.transfer_guard allows.
    values = {k: _number(v) for k, v in jax.device_get(values).items() if v is not None}
    record = {"step": step, "examples": step * self._batch_size, **values}
    for writer in self._writers:
      writer.write(record)

  def close(self):
    """Writes out what is buffered and restores the terminal."""
    while self._writers:
      self._writers.pop().close()

  def print_summary(self):
    """Closes, and prints the run's summary as a table: rich in a terminal, plain text elsewhere."""
    if jax.process_index() == 0:
      self.close()
      print_table(f"siglax run {self._folder.name}", summary(self._folder, time.monotonic() - self._start))

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.close()


class JsonLines:
  """One line a record, flushed at once: kill -9 tears at most the line being written, which the next start drops."""

  def __init__(self, path: pathlib.Path, step: int):
    drop_after(path, step)
    self._file = path.open("a", encoding="utf-8")

  def write(self, record):
    finite = {k: v if math.isfinite(v) else None for k, v in record.items()}
    self._file.write(json.dumps(finite, allow_nan=False) + "\n")
    self._file.flush()

  def close(self):
    self._file.close()


class TensorBoard:
  """Event files in the run folder; events after the step that training resumes from are hidden by TensorBoard."""

  def __init__(self, folder: pathlib.Path, step: int):
    import tensorboardX

    # TensorBoard purges steps ≥ purge_step. The suffix keeps two starts in one second from sharing a file's name.
    self._writer = tensorboardX.SummaryWriter(
        str(folder), purge_step=step + 1, flush_secs=EVENTS_FLUSH_SECONDS, filename_suffix=f".{step}"
    )

  def write(self, record):
    for name, value in _grouped(record).items():
      self._writer.add_scalar(name, value, record["step"])

  def close(self):
    self._writer.close()


class Wandb:
  """Weights & Biases run of the project config.log.wandb, resumed by the id kept in the run folder."""

  def __init__(self, folder: pathlib.Path, config: ConfigDict):
    try:
      import wandb
    except ImportError as e:
      raise ValueError(
          f"config.log.wandb={config.log.wandb!r} needs the package wandb: pip install siglax[wandb], or set config.log.wandb=None"
      ) from e
    file = folder / "wandb_id.txt"
    if not file.exists():
      file.write_text(secrets.token_hex(4))
    self._run = wandb.init(
        project=config.log.wandb,
        id=file.read_text(),
        name=folder.name,
        dir=str(folder),
        resume="allow",
        config=config.copy_and_resolve_references().to_dict(),
    )

  def write(self, record):
    self._run.log(_grouped(record), step=record["step"])

  def close(self):
    self._run.finish()


class PlainProgress:
  """Lines on stderr, for logs."""

  def __init__(self, total_steps: int, batch_size: int, step: int):
    self._total, self._batch_size = total_steps, batch_size

  def write(self, record):
    if not any(k.startswith("goodput/") for k in record):  # that is for the summary
      self._show(record)

  def _show(self, record):
    print(self._line(record), file=sys.stderr, flush=True)

  def _line(self, record) -> str:
    """Step, loss, examples/s and time left of a training record; the metrics of an evaluation."""
    evaluation = [f"{k.removeprefix('eval/')} {v:.4g}" for k, v in record.items() if k.startswith("eval/")]
    parts = [f"step {record['step']}/{self._total}", *evaluation]
    if "loss" in record:
      parts.append(f"loss {record['loss']:.4f}")
    if rate := record.get("examples_per_sec"):
      left = (self._total - record["step"]) * self._batch_size / rate
      parts += [f"{rate:.4g} examples/s", f"eta {_duration(left)}"]
    if "mfu" in record:
      parts.append(f"mfu {record['mfu']:.1%}")
    return "  ".join(parts)

  def close(self):
    pass


class TerminalProgress(PlainProgress):
  """One line on stderr that follows the training; evaluations stay above it."""

  def __init__(self, total_steps: int, batch_size: int, step: int):
    super().__init__(total_steps, batch_size, step)
    from rich import console, progress

    self._progress = progress.Progress(
        progress.BarColumn(bar_width=24),
        progress.TextColumn("{task.description}", markup=False),
        console=console.Console(stderr=True),
    )
    self._task = self._progress.add_task(f"step {step}/{total_steps}", total=total_steps, completed=step)
    self._progress.start()

  def _show(self, record):
    if any(k.startswith("eval/") for k in record):
      self._progress.console.print(self._line(record), markup=False, highlight=False)
    else:
      self._progress.update(self._task, completed=record["step"], description=self._line(record))

  def close(self):
    self._progress.stop()


def read(folder: str | os.PathLike) -> list[dict]:
  """The records of a run folder's metrics.jsonl in order; a torn line is left out. ValueError when there is no file."""
  path = pathlib.Path(folder) / FILE
  if not path.is_file():
    raise ValueError(f"{path}: no such file; give the folder of a run (--workdir of siglax train)")
  return [record for record in map(_parse, path.read_bytes().splitlines()) if record is not None]


def drop_after(path: pathlib.Path, step: int):
  """Drops torn lines and lines of later steps from a metrics.jsonl; the new file replaces the old in one move."""
  if not path.exists():
    return
  lines = path.read_bytes().splitlines()
  kept = [line for line in lines if (record := _parse(line)) is not None and record["step"] <= step]
  temporary = path.with_name(f".{path.name}.{os.getpid()}")
  with temporary.open("wb") as file:
    file.write(b"".join(line + b"\n" for line in kept))
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)


def summary(folder: str | os.PathLike, seconds: float) -> list[tuple[str, str]]:
  """Rows (name, value) of a run's outcome from its metrics.jsonl. seconds: time of this process in training."""
  records = read(folder)
  train = [r for r in records if r.get("loss") is not None]
  rates = [r["examples_per_sec"] for r in records if r.get("examples_per_sec")]
  rows = [("time", _duration(seconds))]
  if records:
    rows = [("steps", f"{records[-1]['step']:,}"), ("examples", f"{records[-1]['examples']:,}"), *rows]
  if rates:
    rows.append(("examples/s (median)", f"{statistics.median(rates):,.4g}"))
  if train:
    rows.append(("final loss", f"{train[-1]['loss']:.4f}"))
  shares = {k: v for r in records for k, v in r.items() if k.startswith("goodput/")}
  if shares:
    rows.append(("goodput", "  ".join(f"{k.removeprefix('goodput/')} {v:.1%}" for k, v in shares.items())))
  last = {k: v for r in records for k, v in r.items() if k.startswith("eval/")}
  rows += [(k, "not finite" if v is None else f"{v:.4f}") for k, v in last.items()]
  return [*rows, ("files", str(folder))]


def print_table(title: str, rows):
  if not sys.stdout.isatty():
    width = max(len(name) for name, _ in rows)
    print("\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in rows)]), flush=True)
    return
  from rich import box, console, table

  grid = table.Table(title=title, box=box.SIMPLE, show_header=False, title_justify="left")
  for row in rows:
    grid.add_row(*row)
  console.Console().print(grid)


def peak_flops(device: jax.Device) -> float | None:
  """Peak dense bf16 FLOP/s of one JAX device; None where it is not known, as on CPUs and slices of a GPU."""
  chip = None if device.platform == "cpu" else chips.find(device.device_kind)
  return chip and chip.flops


def _number(value) -> int | float:
  return value.item() if hasattr(value, "item") else value


def _grouped(record) -> dict:
  """Names for dashboards: train/loss next to eval/<name>/<metric>."""
  return {k if k.startswith(("eval/", "goodput/")) else f"train/{k}": v for k, v in record.items() if k != "step"}


def _parse(line: bytes) -> dict | None:
  try:
    record = json.loads(line)
  except ValueError:
    return None
  return record if isinstance(record, dict) and "step" in record else None


def _duration(seconds: float) -> str:
  return str(datetime.timedelta(seconds=round(seconds)))
