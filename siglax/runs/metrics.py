"""What a run reports, and where: metrics.jsonl, TensorBoard, Weights & Biases, a progress line and
a summary.

A run folder's metrics.jsonl has one JSON object a line, with non-decreasing "step". A training line
carries step, examples, loss, scale, bias, logit_pos, logit_neg, grad_norm, lr, examples_per_sec,
examples_per_sec_per_device, mfu (absent where the device's peak is unknown), data_wait and
step_time (seconds). An evaluation line carries step, examples and eval/<name>/<metric>. The first
one of a task, and one after a change, also carries what is known whatever the model:
eval/<name>/chance/<metric>, what guessing gets, and eval/<name>/batch/loss, the examples of a
batch. The last line of a start carries goodput/<phase>, shares of its wall time. A value that is
not finite is null.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import math
import os
import pathlib
import secrets
import statistics
import sys
import time

import jax
from ml_collections import ConfigDict

from siglax import evals
from siglax.devices import chips
from siglax.devices import streams
from siglax.runs import files
from siglax.runs import history

logger = logging.getLogger("siglax")

FILE = "metrics.jsonl"
# What waits in memory, some MB, while metrics.jsonl cannot be written.
LINES_KEPT = 10_000
# Seconds after which TensorBoard's events reach the disk: what kill -9 may lose there.
EVENTS_FLUSH_SECONDS = 10
# A validation loss that is above its lowest by this share, this many evaluations later, has risen
# for more than noise.
RISE, RISE_EVALUATIONS = 0.01, 2


class RunMetrics:
  """Sends each record of a run to all of its writers. Only process 0 writes; on others every method
  does nothing.

  A writer that fails is dropped with a warning, and the training goes on; metrics.jsonl is tried
  again at each record.
  folder: the run folder. step: the step that training resumes from; later records of an earlier
  attempt are dropped.
  total_steps: for the progress line. Use as a context manager, so that the terminal is restored
  after an error. Raises ValueError when config.log.wandb is set and wandb is not installed, and for
  a metrics.jsonl that cannot be written.
  """

  def __init__(
    self, folder: str | os.PathLike, config: ConfigDict, *, total_steps: int, step: int = 0
  ):
    self._folder, self._config = pathlib.Path(folder), config
    self._writers = []
    if jax.process_index() != 0:
      return
    self._folder.mkdir(parents=True, exist_ok=True)
    lines = JsonLines(self._folder / FILE, step)
    self._facts = {k: v for r in read(folder) for k, v in r.items() if is_fact(k)}
    if config.log.wandb is not None:
      self._open(Wandb, self._folder, config)
    if config.log.tensorboard:
      self._open(TensorBoard, self._folder, step)
    self._writers.append(lines)
    if sys.stderr is not None:
      self._open(
        TerminalProgress if streams.is_terminal(sys.stderr) else PlainProgress,
        total_steps,
        config.batch_size,
        step,
      )

  def write(self, step: int, values: dict):
    """Records training metrics or "eval/…" metrics of a step. values: name → number, array of one,
    or None for unknown.

    What is known of an evaluation task (`is_fact`) is written when it is new.
    """
    if not self._writers:
      return
    # One explicit transfer, which jax.transfer_guard allows. It sorts the names; a record keeps
    # their order.
    fetched = jax.device_get(values)
    values = {k: _number(fetched[k]) for k in values if fetched[k] is not None}
    facts = {k: v for k, v in values.items() if is_fact(k)}
    record = {"step": step, "examples": step * self._config.batch_size}
    record |= {k: v for k, v in values.items() if k not in facts or self._facts.get(k) != v}
    self._facts |= facts
    for writer in list(self._writers):
      self._guard(writer, writer.write, record)

  def close(self):
    """Writes out what is buffered and restores the terminal."""
    for writer in reversed(list(self._writers)):
      self._guard(writer, writer.close)
    self._writers.clear()

  def print_summary(self):
    """Closes, and prints the run's summary as a table: rich in a terminal, plain text elsewhere."""
    if jax.process_index() == 0:
      self.close()
      streams.say(_table(f"siglax run {self._folder.name}", summary(self._folder, self._config)))

  def _open(self, kind, *arguments):
    try:
      self._writers.append(kind(*arguments))
    except ValueError:
      raise
    except Exception as e:
      self._drop(kind.NAME, e)

  def _guard(self, writer, call, *arguments):
    """Calls a writer's method; a writer that fails, whatever its library raises, is closed and
    dropped.
    """
    try:
      call(*arguments)
    except Exception as e:
      self._writers.remove(writer)
      if call != writer.close:
        with contextlib.suppress(Exception):
          writer.close()
      self._drop(writer.NAME, e)

  def _drop(self, name, error):
    logger.warning(
      "%s is dropped, and the training goes on without it: %s: %s",
      name,
      type(error).__name__,
      error,
    )

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.close()


class JsonLines:
  """metrics.jsonl. A start drops the line that a kill tore and those of later steps."""

  NAME = FILE

  def __init__(self, path: pathlib.Path, step: int):
    try:
      if path.exists() and not path.is_file():
        raise OSError("it is no file")
      drop_after(path, step)
      self._lines = files.Lines(path, LINES_KEPT)
    except OSError as e:
      raise ValueError(
        f"{path} cannot be written: {e.strerror or e}; move it away, or use another --workdir"
      ) from e

  def write(self, record):
    self._lines.append({k: v if math.isfinite(v) else None for k, v in record.items()})

  def close(self):
    self._lines.close()


class TensorBoard:
  """Event files in the run folder; events after the step that training resumes from are hidden by
  TensorBoard.

  tensorboardX's SummaryWriter writes in a thread, behind a queue that blocks for ever once a full
  disk has ended the thread. So the events, one a record, are written here.
  """

  NAME = "TensorBoard"

  def __init__(self, folder: pathlib.Path, step: int):
    from tensorboardX import event_file_writer
    from tensorboardX.proto import event_pb2

    self._events = event_pb2
    # The suffix keeps two starts in one second from sharing a file's name.
    self._file, self._flushed = (
      event_file_writer.EventsWriter(str(folder / "events"), f".{step}"),
      0.0,
    )
    # TensorBoard purges the steps from here on.
    self._add(step=step + 1, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

  def write(self, record):
    values = [{"tag": name, "simple_value": value} for name, value in _grouped(record).items()]
    self._add(step=record["step"], summary={"value": values})

  def _add(self, **event):
    now = time.time()
    self._file.write_event(self._events.Event(wall_time=now, **event))
    if now - self._flushed > EVENTS_FLUSH_SECONDS:
      self._file.flush()
      self._flushed = now

  def close(self):
    self._file.close()


class Wandb:
  """Weights & Biases run of the project config.log.wandb, resumed by the id kept in the run folder."""

  NAME = "Weights & Biases"

  def __init__(self, folder: pathlib.Path, config: ConfigDict):
    try:
      import wandb
    except ImportError as e:
      raise ValueError(
        f"config.log.wandb={config.log.wandb!r} needs the package wandb: pip install "
        "siglax[wandb], or set config.log.wandb=None"
      ) from e
    file = folder / "wandb_id.txt"
    if not file.exists():
      files.write_atomic(file, secrets.token_hex(4).encode())
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

  NAME = "the progress on stderr"

  def __init__(self, total_steps: int, batch_size: int, step: int):
    self._total, self._batch_size = total_steps, batch_size

  def write(self, record):
    if not any(k.startswith("goodput/") for k in record):  # that is for the summary
      self._show(record)

  def _show(self, record):
    print(self._line(record), file=sys.stderr, flush=True)

  def _line(self, record) -> str:
    """Step, loss, examples/s and time left of a training record; the metrics of an evaluation."""
    evaluation = [f"{k.removeprefix('eval/')} {v:.4g}" for k, v in record.items() if is_metric(k)]
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
    streams.flush(sys.stderr)


class TerminalProgress(PlainProgress):
  """One line on stderr that follows the training; evaluations stay above it."""

  def __init__(self, total_steps: int, batch_size: int, step: int):
    super().__init__(total_steps, batch_size, step)
    from rich import console
    from rich import progress

    self._progress = progress.Progress(
      progress.BarColumn(bar_width=24),
      progress.TextColumn("{task.description}", markup=False),
      console=console.Console(stderr=True),
    )
    self._task = self._progress.add_task(
      f"step {step}/{total_steps}", total=total_steps, completed=step
    )
    self._progress.start()

  def _show(self, record):
    if any(map(is_metric, record)):
      self._progress.console.print(self._line(record), markup=False, highlight=False)
    else:
      self._progress.update(self._task, completed=record["step"], description=self._line(record))

  def close(self):
    try:
      self._progress.stop()
    finally:
      super().close()


def read(folder: str | os.PathLike) -> list[dict]:
  """The records of a run folder's metrics.jsonl in order; a torn line is left out. ValueError when
  there is no file.
  """
  path = pathlib.Path(folder) / FILE
  if not path.is_file():
    raise ValueError(f"{path}: no such file; give the folder of a run (--workdir of siglax train)")
  return [record for record in files.read_records(path, "step") if _are_numbers(record)]


def _are_numbers(record: dict) -> bool:
  return all(value is None or isinstance(value, (int, float)) for value in record.values())


def drop_after(path: pathlib.Path, step: int):
  """Drops torn lines and lines of later steps from a metrics.jsonl; the new file replaces the old
  in one move.
  """
  if path.is_file():
    kept = b"".join(
      files.encode(record) for record in files.read_records(path, "step") if record["step"] <= step
    )
    if kept != path.read_bytes():
      files.write_atomic(path, kept)


def is_metric(key: str) -> bool:
  """Of an evaluation: eval/<name>/<metric>."""
  return key.startswith("eval/") and not is_fact(key)


def is_fact(key: str) -> bool:
  """Known of an evaluation's metric, whatever the model: eval/<name>/<fact>/<metric>."""
  return key.startswith("eval/") and key.count("/") == 3


def evaluations(records: list[dict]) -> dict[str, list[tuple[int, float]]]:
  """{"eval/<name>/<metric>": [(step, value)]} in the order of the last evaluation, which is that of
  config.eval.tasks and of each kind's METRICS; NaN where a value is not finite.
  """
  found = {}
  for record in reversed(records):
    for k, v in record.items():
      if is_metric(k):
        found.setdefault(k, []).insert(0, (record["step"], math.nan if v is None else v))
  return found


def best(name: str, points: list[tuple[int, float]]) -> list[tuple[int, float]]:
  """The first (step, value) of a metric's best value; none where no value is finite."""
  sign = 1 if evals.lower_is_better(name) else -1
  return sorted(
    (point for point in points if not math.isnan(point[1])), key=lambda point: sign * point[1]
  )[:1]


def fact_in_words(name: str, facts: dict) -> str:
  """ ", chance 0.1000" or ", batch 128" of a metric with such a fact, else ""."""
  task, _, metric = name.rpartition("/")
  chance, batch = facts.get(f"{task}/chance/{metric}"), facts.get(f"{task}/batch/{metric}")
  return (
    f", chance {chance:.4f}"
    if chance is not None
    else f", batch {batch:,}"
    if batch is not None
    else ""
  )


def summary(folder: str | os.PathLike, config: ConfigDict) -> list[tuple[str, str]]:
  """Rows (name, value) of a run's outcome, from its metrics.jsonl and starts.jsonl. Losses come
  with their batch size, without which they compare with nothing.
  """
  records, starts = read(folder), history.read(folder)
  rows = []
  if records:
    rows = [
      ("steps", f"{records[-1]['step']:,}"),
      ("examples", f"{records[-1]['step'] * config.batch_size:,}"),
    ]
  if starts:
    lost, seconds = history.account(starts)
    total = sum(seconds.values())
    again = (
      f" over {len(starts)} starts, with {lost:,} steps lost to stops" if len(starts) > 1 else ""
    )
    rows.append(("time", _duration(total) + again))
  if rates := [r["examples_per_sec"] for r in records if r.get("examples_per_sec")]:
    rows.append(("examples/s (median)", f"{statistics.median(rates):,.4g}"))
  if train := [r["loss"] for r in records if r.get("loss") is not None]:
    rows.append(("final loss", f"{train[-1]:.4f}, batch {config.batch_size:,}"))
  if starts and total:
    rows.append(
      (
        "goodput",
        "  ".join(
          f"{phase} {s / total:.1%}" for phase, s in seconds.items() if s or phase != history.LOST
        ),
      )
    )
  facts = {k: v for r in records for k, v in r.items() if is_fact(k)}
  for name, points in evaluations(records).items():
    step, last = points[-1]
    values = [
      f"{last:.4f} at step {step:,}" if math.isfinite(last) else f"not finite at step {step:,}"
    ]
    values += [f"best {value:.4f} at step {step:,}" for step, value in best(name, points)]
    rows.append((name, ", ".join(values) + fact_in_words(name, facts)))
  return [*rows, *_rises(records), ("files", str(folder))]


def _rises(records):
  for name, points in evaluations(records).items():
    for step, lowest in best(name, points) if evals.lower_is_better(name) else ():
      last, since = points[-1][1], sum(s > step for s, _ in points)
      if since >= RISE_EVALUATIONS and last - lowest > RISE * abs(lowest):
        yield (
          name,
          f"the validation loss has risen since step {step:,} (best {lowest:.4f}, now "
          f"{last:.4f}): the model overfits",
        )


def print_table(title: str, rows):
  """Prints rows (name, value): by rich in a terminal, as plain text elsewhere."""
  print(_table(title, rows))


def _table(title: str, rows) -> str:
  if not streams.is_terminal(sys.stdout):
    width = max(len(name) for name, _ in rows)
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in rows)])
  from rich import box
  from rich import console
  from rich import table

  grid = table.Table(title=title, box=box.SIMPLE, show_header=False, title_justify="left")
  for row in rows:
    grid.add_row(*row)
  terminal = console.Console()
  with terminal.capture() as printed:
    terminal.print(grid)
  return printed.get().rstrip("\n")


def peak_flops(device: jax.Device) -> float | None:
  """Peak dense bf16 FLOP/s of one JAX device; None where it is not known, as on CPUs and slices of
  a GPU.
  """
  chip = None if device.platform == "cpu" else chips.find(device.device_kind)
  return chip and chip.flops


def _number(value) -> int | float:
  return value.item() if hasattr(value, "item") else value


def _grouped(record) -> dict:
  """Names for dashboards: train/loss next to eval/<name>/<metric>."""
  return {
    k if k.startswith(("eval/", "goodput/")) else f"train/{k}": v
    for k, v in record.items()
    if k != "step"
  }


def _duration(seconds: float) -> str:
  return str(datetime.timedelta(seconds=round(seconds)))
