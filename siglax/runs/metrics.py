"""What a run reports, and where: metrics.jsonl, TensorBoard, Weights & Biases, a progress line and
a summary.

A run folder's metrics.jsonl has one JSON object a line, with non-decreasing "step". A training line
carries step, examples, loss, scale, bias, logit_pos, logit_neg, local_accuracy, grad_norm, lr,
examples_per_sec, examples_per_sec_per_device, mfu (absent where the device's peak is unknown),
data_wait (a share of the time), step_time and host_time (seconds), and with
config.optim.skip_nonfinite also skipped. docs/metrics.md says what each means. An evaluation line
carries step, examples and eval/<name>/<metric>. The first one of a task, and one after a change,
also carries what is known whatever the model: eval/<name>/chance/<metric>, what guessing gets, and
eval/<name>/batch/loss, the examples of a batch. The last line of a start carries goodput/<phase>,
shares of its wall time, and that of a finished run also cost/flops, the model FLOPs of all its
steps, and cost/peak_bytes, of a device by the compiled program. A value that is not finite is null.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import pathlib
import sys

import jax
from ml_collections import ConfigDict

from siglax.devices import streams
from siglax.runs import files
from siglax.runs import records
from siglax.runs import summary
from siglax.runs import writers

logger = logging.getLogger("siglax")

# What waits in memory, some MB, while metrics.jsonl cannot be written.
LINES_KEPT = 10_000


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
    lines = JsonLines(self._folder / records.FILE, step)
    self._facts = {k: v for r in records.read(folder) for k, v in r.items() if records.is_fact(k)}
    if config.log.wandb is not None:
      self._open(writers.Wandb, self._folder, config)
    if config.log.tensorboard:
      self._open(writers.TensorBoard, self._folder, step)
    self._writers.append(lines)
    if sys.stderr is not None:
      self._open(
        writers.TerminalProgress if streams.is_terminal(sys.stderr) else writers.PlainProgress,
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
    facts = {k: v for k, v in values.items() if records.is_fact(k)}
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
      rows = summary.summary(self._folder, self._config)
      streams.say(streams.table(f"siglax run {self._folder.name}", rows))

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

  NAME = records.FILE

  def __init__(self, path: pathlib.Path, step: int):
    try:
      if path.exists() and not path.is_file():
        raise OSError("it is no file")
      records.drop_after(path, step)
      self._lines = files.Lines(path, LINES_KEPT)
    except OSError as e:
      raise ValueError(
        f"{path} cannot be written: {e.strerror or e}; move it away, or use another --workdir"
      ) from e

  def write(self, record):
    self._lines.append({k: v if math.isfinite(v) else None for k, v in record.items()})

  def close(self):
    self._lines.close()


def _number(value) -> int | float:
  return value.item() if hasattr(value, "item") else value
