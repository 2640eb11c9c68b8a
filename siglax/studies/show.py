"""What `siglax ablate` prints: the runs before they begin, and how they get on."""

from __future__ import annotations

from collections.abc import Sequence
import sys
import time
from typing import Any

from siglax.costs import table
from siglax.devices import streams
from siglax.runs import records as records_lib
from siglax.studies import folder as folder_lib
from siglax.studies.grid import Run
from siglax.studies.sizes import Size

# A table in a terminal is drawn anew so often, and shows so many of the runs that ended last.
REDRAW_SECONDS = 1.0
LAST = 8


def dry_run(title: str, runs: Sequence[tuple[Run, Size, str]], chips, sets: int):
  """Prints the runs and what they take. runs: each with its size and status; chips: that the hours
  are told of; sets: of devices, which share the runs.
  """
  print(title)
  width = max((len(run.name) for run, _, _ in runs), default=0)
  for run, size, how in runs:
    words = [
      f"{size.steps:,} steps",
      f"{size.parameters:,} parameters",
      flops(size.flops),
      *(f"≥ {size.hours(chip):.3g} h on {chip.name}" for chip in chips),
      table.gb(size.disk_bytes),
    ]
    mark = f"  {how}" if how != folder_lib.MISSING else ""
    start = f"  from step {run.branch_step} of its trunk" if run.branch_step else ""
    start = f"  after {run.trunk}" if run.trunk and not run.branch_step else start
    print(f"  {run.name:<{width}}  {', '.join(words)}{start}{mark}")
  left = [(run, size) for run, size, how in runs if how != folder_lib.FINISHED]
  total = sum(_own_share(run, size) * size.flops for run, size in left)
  disk = table.gb(sum(size.disk_bytes for _, size, _ in runs))
  print(f"{len(runs)} runs, {len(left)} to make: {flops(total)}, at most {disk} on the disk")
  for chip in chips:
    hours = sum(_own_share(run, size) * size.hours(chip) for run, size in left)
    print(
      f"at least {hours / sets:.3g} hours on {chip.name}, as the roofline of siglax plan has it, "
      f"of model FLOPs alone{f', in {sets} sets of devices' if sets > 1 else ''}"
    )


def _own_share(run: Run, size: Size) -> float:
  """Of a run's steps, those that it makes itself."""
  return 1 - (run.branch_step or 0) / size.steps


def flops(number: float) -> str:
  """Such as "1.23 TFLOP"."""
  for unit, name in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G")):
    if number >= unit:
      return f"{number / unit:,.3g} {name}FLOP"
  return f"{number / 1e6:,.3g} MFLOP"


class Lines:
  """A line for each start and end of a run: for logs. total: the runs of the study that are made
  here.
  """

  def __init__(self, folder, total: int):
    self._folder, self._total, self._done = folder, total, 0

  def started(self, run: Run):
    self._say(f"{run.name}: starts")

  def ended(self, run: Run, how: str, error: str | None, seconds: float, results: list[dict]):
    """how: its status; results: of `folder.results`."""
    self._done += how in (folder_lib.FINISHED, folder_lib.FAILED_STATUS)
    words = f"{run.name}: {how}, {seconds:.0f} s"
    if how == folder_lib.FINISHED:
      found = next((x["metrics"] for x in results if x["name"] == run.name), {})
      words += _metrics_in_words(found)
    elif error:
      words += f": {error}"
    self._say(f"[{self._done}/{self._total}] {words}")

  def stopping(self, name: str, again: bool):
    self._say(
      f"{name}: the runs are ended"
      if again
      else f"{name}: the runs save and end; again to end them at once"
    )

  def tick(self, active: Sequence):
    """Nothing changes in lines between a start and an end."""

  def close(self):
    """Nothing to restore."""

  def _say(self, text: str):
    streams.say(text)


class Table(Lines):
  """A table in a terminal that follows the runs under way, and shows those that ended last."""

  def __init__(self, folder, total: int):
    super().__init__(folder, total)
    from rich import live

    self._ended_last: list[tuple[str, ...]] = []
    self._note, self._drawn = "", 0.0
    self._live = live.Live(auto_refresh=False)
    self._live.start()

  def started(self, run: Run):
    self._drawn = 0.0

  def ended(self, run: Run, how: str, error: str | None, seconds: float, results: list[dict]):
    found = next((x["metrics"] for x in results if x["name"] == run.name), {})
    told = _metrics_in_words(found).removeprefix(", ") if how == folder_lib.FINISHED else error
    self._done += how in (folder_lib.FINISHED, folder_lib.FAILED_STATUS)
    row = run.name, how, streams.clock(seconds), told or ""
    self._ended_last = [*self._ended_last, row][-LAST:]
    self._drawn = 0.0

  def _say(self, text: str):
    self._note, self._drawn = text, 0.0

  def tick(self, active: Sequence):
    if time.monotonic() - self._drawn < REDRAW_SECONDS:
      return
    from rich import box
    from rich import table as table_lib

    title = f"siglax ablate {self._folder}: {self._done} of {self._total} runs"
    grid = table_lib.Table("run", "status", "time", "", title=title, box=box.SIMPLE)
    for row in self._ended_last:
      grid.add_row(*map(_plain, row))
    for process in active:
      seconds = time.monotonic() - process.since
      row = process.run.name, "runs", streams.clock(seconds), self._progress(process)
      grid.add_row(*map(_plain, row))
    grid.caption = self._note
    self._live.update(grid, refresh=True)
    self._drawn = time.monotonic()

  def _progress(self, process) -> str:
    """The last line of its log of metrics, in words."""
    from siglax.studies.running import place

    of_run = self._folder / place(process.run) / process.run.name
    if not (of_run / records_lib.FILE).is_file():
      return ""
    lines = [x for x in records_lib.read(of_run)[-20:] if x.get("loss") is not None]
    if not lines:
      return ""
    rate = lines[-1].get("examples_per_sec")
    words = f"step {lines[-1]['step']:,}, loss {lines[-1]['loss']:.4f}"
    return words + (f", {rate:.4g} examples/s" if rate else "")

  def close(self):
    self._live.stop()


def follow(folder, total: int) -> Lines:
  """A table in a terminal, lines elsewhere."""
  return (Table if streams.is_terminal(sys.stdout) else Lines)(folder, total)


def summary(results: Sequence[dict[str, Any]], shown: str):
  """The end of a study in a few lines: what came of the runs, and why some failed."""
  counts = {how: [x for x in results if x["status"] == how] for how in folder_lib.STATUSES}
  told = ", ".join(f"{len(runs)} {how}" for how, runs in counts.items() if runs)
  streams.say(f"{shown}: {told}")
  for how in (folder_lib.DAMAGED_STATUS, folder_lib.FAILED_STATUS):
    for result in counts[how]:
      streams.say(f"  {result['name']} {how}: {result['error']}")
  if counts[folder_lib.FAILED_STATUS]:
    streams.say("  siglax ablate --retry makes these again; docs/ablations.md")


def _metrics_in_words(metrics: dict) -> str:
  shown = {name.removeprefix("eval/"): x for name, x in metrics.items() if x is not None}
  return "".join(f", {name} {x:.4g}" for name, x in shown.items())


def _plain(text: str):
  from rich import text as text_lib

  return text_lib.Text(text)
