"""The loop, read from top to bottom: no maths, no I/O of its own.

Order, fixed: evaluate → save → next batch → step → log. Metrics are read one step late, so that the
device never waits for the host.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import dataclasses
import functools
import logging

import jax

from siglax import config as config_lib
from siglax import data as data_lib
from siglax import evals
from siglax import losses
from siglax.config import values
from siglax.devices import distributed
from siglax.devices import mesh as mesh_lib
from siglax.devices import signals
from siglax.devices import streams
from siglax.models import trainable as trainable_lib
from siglax.runs import bucket
from siglax.runs import checkpoint
from siglax.runs import curves
from siglax.runs import each as each_lib
from siglax.runs import goodput as goodput_lib
from siglax.runs import history as history_lib
from siglax.runs import lock as lock_lib
from siglax.runs import metrics as metrics_lib
from siglax.training import branch
from siglax.training import log as log_lib
from siglax.training import profiler as profiler_lib
from siglax.training import remat as remat_lib
from siglax.training import resume
from siglax.training import run as run_lib

logger = logging.getLogger("siglax")


def train(
  config, workdir, *, extend: bool = False, second_signal=signals.interrupt
) -> dict[str, float]:
  """Trains `config` in the run folder `workdir`, a path or a URL, or resumes there; returns the
  metrics of the last evaluation.

  extend: a run in the folder may be made longer although its schedule depends on its length.
  SIGINT, SIGTERM and SIGHUP, to any of the processes, save and return; a second one calls
  second_signal. Raises ValueError in one line for what is wrong with the config, the data, the
  folder or the disk, and FloatingPointError when the loss, the gradient or the state is not finite.
  """
  with signals.StopSignals(second_signal) as stop:
    goodput = goodput_lib.Goodput()
    # Before the config, which names what they add.
    distributed.check_same_imports()
    workdir = bucket.stand_in(workdir)
    distributed.on_first(lambda: resume.check_imports(workdir))
    run = run_lib.Run(config, workdir)
    distributed.check_same_config(run.config)
    run.evaluate.check()
    # Processes agree on what process 0 finds in the folder.
    lock = distributed.on_first(lambda: resume.take(run, extend))
    try:
      resume.check_shared(run, lock)
      with bucket.following(run.workdir, lock):
        return _train(run, stop, goodput, lock)
    finally:
      if lock is not None:
        lock.release()


def _train(run: run_lib.Run, stop: signals.StopSignals, goodput, lock):
  workdir = run.workdir
  keep = run.config.checkpoint
  lower_is_better = keep.keep_best is not None and evals.lower_is_better(keep.keep_best)
  checkpoints = checkpoint.Checkpoints(workdir, keep, run.every["checkpoint"], lower_is_better)
  with contextlib.ExitStack() as closing:
    closing.callback(checkpoints.close)
    state, meta = _first_state(run, checkpoints)
    start = meta["step"]
    _announce(run, start)
    batches = run.batches(start, meta.get("data", {}).get("counts"))
    closing.callback(batches.close)
    profiler = profiler_lib.Profiler(run, start)
    closing.callback(profiler.close)
    with (
      history_lib.History(
        workdir, step=start, goodput=goodput, saved=lambda: checkpoints.on_disk
      ) as history,
      metrics_lib.RunMetrics(
        workdir, run.config, total_steps=run.total_steps, step=start
      ) as writer,
      jax.set_mesh(run.mesh),
    ):
      log = log_lib.Log(
        run, writer, history, start, checkpoints, goodput, meta.get("skipped", 0), lock
      )
      goodput.enter("step")
      if start < run.total_steps:
        remat_lib.choose(run)
      loop = _Loop(run, start, stop, goodput, lock, checkpoints, batches, profiler, log, writer)
      try:
        step = loop.until_the_end(state)
      finally:
        closing.close()  # before the end of this start is noted
      ended_by = stop.requested or "SIGTERM"  # which came to another process
      history.end(step, "finished" if step == run.total_steps else ended_by)
      if step > start:
        writer.write(step, goodput.shares() | (run.costs() if step == run.total_steps else {}))
      if step == run.total_steps:
        _report(run, writer)
  if jax.process_index() == 0 and step < run.total_steps:
    saved_too = (
      ", saved; the same command resumes there"
      if step
      else " before the first one; the same command starts again"
    )
    streams.say(f"stopped by {ended_by} at step {step}{saved_too}")
  return loop.evaluated


def _first_state(run: run_lib.Run, checkpoints: checkpoint.Checkpoints):
  """(state, metadata of its checkpoint) where the run begins, or goes on."""
  restored = checkpoints.restore(run.abstract_state)
  if restored is None and run.config.train.branch_from is not None:
    restored = branch.restore(run)
  state, meta = (run.initial_state(), {"step": 0}) if restored is None else restored
  run.check_tower(state.params)
  if meta["step"] > run.total_steps:
    raise ValueError(
      f"the checkpoint of step {meta['step']} in --workdir {run.shown} is beyond the "
      f"{run.total_steps} steps of config.total_*"
    )
  return state, meta


@dataclasses.dataclass
class _Loop:
  """The steps of a run, with what they use. evaluated: the metrics of the last evaluation."""

  run: run_lib.Run
  start: int
  stop: signals.StopSignals
  goodput: goodput_lib.Goodput
  lock: lock_lib.Lock | None
  checkpoints: checkpoint.Checkpoints
  batches: Iterator
  profiler: profiler_lib.Profiler
  log: log_lib.Log
  writer: metrics_lib.RunMetrics
  evaluated: dict[str, float] = dataclasses.field(default_factory=dict)
  evaluated_at: int | None = None

  @functools.cached_property
  def _fingerprint(self) -> data_lib.Fingerprint:
    return data_lib.Fingerprint(self.run.config, self.run.sources)

  def until_the_end(self, state) -> int:
    """Trains to the last step, or to where a signal stops it; that step, which is saved."""
    run, stop, step = self.run, self.stop, self.start
    while True:
      if step > self.start and run.config.eval.tasks and run.due("eval", step):
        self._evaluate(step, state)
      stopping = stop.requested if jax.process_count() == 1 else distributed.preempted(step)
      last = bool(step == run.total_steps or stopping)
      if self.checkpoints.poll() or last or run.due("checkpoint", step):
        with self.goodput.during("checkpoint"):
          self._save(step, state, last)
        self.log.pause()
      if last:
        return step
      try:
        with self.goodput.during("data_wait"):
          batch = next(self.batches)
      except ValueError as e:
        # Several processes agree on a step to stop at, which may be a later one.
        if not stop.requested or jax.process_count() > 1:
          raise
        logger.warning("%s", e)  # its worker got the signal too: what there is is saved
        continue
      # It travels while the device works on the step before.
      batch = mesh_lib.to_global(run.mesh, batch)
      self.profiler.before(step + 1)
      compiles = step in (self.start, run.masked_steps)
      with jax.transfer_guard("disallow"), self.goodput.during("compile" if compiles else "step"):
        state, metrics = run.update(step)(state, batch)
        if compiles:
          jax.block_until_ready(metrics)
      step += 1
      self.profiler.after(step, metrics)
      self.log.push(step, metrics, compiles, state)

  def _evaluate(self, step: int, state):
    self.log.flush()
    with self.goodput.during("evaluation"):
      self.evaluated, self.evaluated_at = self.run.evaluate(state.evaluated), step
    self.writer.write(step, {**self.evaluated, **self.run.evaluate.facts})
    if step == self.run.total_steps and jax.process_index() == 0:
      each_lib.write(self.run.workdir, self.run.evaluate.each)
    self.log.pause()

  def _save(self, step: int, state, last: bool):
    self.log.flush()
    if step <= self.checkpoints.newest:
      return
    distributed.on_first(self.lock.check if self.lock else None)
    config = self.run.config
    data = {
      "global_next_index": step * config.batch_size,
      "counts": self.batches.counts,
      "examples": list(map(len, self.run.sources)),
      # Process 0 writes what is saved beside the state.
      "order": self._fingerprint(step) if jax.process_index() == 0 else None,
    }
    meta = {"data": data, "config": config_lib.to_json(config), "skipped": self.log.skipped}
    metrics = self.evaluated if step == self.evaluated_at else None
    self.checkpoints.save(step, state, meta, metrics, last=last)


def _report(run: run_lib.Run, writer):
  """The summary and the curves. A run that has lost the file they are made of has ended well all
  the same.
  """
  try:
    writer.print_summary()
    if jax.process_index() == 0:
      streams.say(f"curves: {run.shown}/{curves.plot(run.workdir).name}")
  except (OSError, ValueError) as e:
    logger.warning("no summary, or no curves: %s", values.one_line(e))


def _announce(run: run_lib.Run, start: int):
  logger.info(
    "%s: %s steps of %d on %d %s device(s); parameters: image %s, text %s; loss %s%s",
    run.shown,
    f"{run.total_steps:,}",
    run.config.batch_size,
    jax.device_count(),
    jax.devices()[0].platform,
    _parameters_in_words(run, "image"),
    _parameters_in_words(run, "text"),
    _loss_in_words(run),
    f"; resuming at step {start}" if start else "",
  )
  if start == run.total_steps:
    logger.info("%s is finished; a larger config.total_* makes it longer", run.shown)


def _parameters_in_words(run: run_lib.Run, tower: str) -> str:
  """For example "1,234", "1,234 frozen" or "1,234, of which 56 are trained"."""
  params = run.abstract_state.params[tower]
  total, trained = (
    trainable_lib.count(params),
    trainable_lib.count(trainable_lib.split(params, run.frozen[tower])[0]),
  )
  return f"{total:,}" + (
    "" if trained == total else f", of which {trained:,} are trained" if trained else " frozen"
  )


def _loss_in_words(run: run_lib.Run) -> str:
  """For example "sigmoid (ring of 8, tile 512)", over two slices "(ring of 2 × 4, tile 512)"."""
  config = run.config
  impl, tile = losses.plan(
    config.loss.impl,
    config.loss.tile,
    config.batch_size,
    run.model.embed_dim,
    run.mesh,
    mesh_lib.BATCH_AXES,
  )
  slices = mesh_lib.count_slices(config.mesh.slices)
  size = f"{slices} × {run.mesh.size // slices}" if slices > 1 else run.mesh.size
  of = f"{impl} of {size}" if impl != "dense" and run.mesh.size > 1 else impl
  chosen = ", chosen by auto" if config.loss.impl == "auto" else ""
  return f"{config.loss.name} ({of}{f', tile {tile}' if tile else ''}{chosen})"
