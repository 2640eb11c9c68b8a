"""Where the records of a run go beside metrics.jsonl: TensorBoard, Weights & Biases, a terminal."""

from __future__ import annotations

import pathlib
import secrets
import sys
import time

from ml_collections import ConfigDict

from siglax.devices import disk
from siglax.devices import streams
from siglax.runs import records

# Seconds after which TensorBoard's events reach the disk: what kill -9 may lose there.
EVENTS_FLUSH_SECONDS = 10


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
  """Weights & Biases run of the project config.log.wandb, resumed by the id kept in the
  run folder.
  """

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
      disk.write_atomic(file, secrets.token_hex(4).encode())
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
    evaluation = [
      f"{k.removeprefix('eval/')} {v:.4g}" for k, v in record.items() if records.is_metric(k)
    ]
    parts = [f"step {record['step']}/{self._total}", *evaluation]
    if "loss" in record:
      parts.append(f"loss {record['loss']:.4f}")
    if rate := record.get("examples_per_sec"):
      left = (self._total - record["step"]) * self._batch_size / rate
      parts += [f"{rate:.4g} examples/s", f"eta {streams.clock(left)}"]
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
    if any(map(records.is_metric, record)):
      self._progress.console.print(self._line(record), markup=False, highlight=False)
    else:
      self._progress.update(self._task, completed=record["step"], description=self._line(record))

  def close(self):
    try:
      self._progress.stop()
    finally:
      super().close()


def _grouped(record) -> dict:
  """Names for dashboards: train/loss next to eval/<name>/<metric>."""
  return {
    k if k.startswith(("eval/", "goodput/", "cost/")) else f"train/{k}": v
    for k, v in record.items()
    if k != "step"
  }
