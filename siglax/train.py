"""The loop, read from top to bottom: no maths, no I/O of its own.

Order, fixed: evaluate → save → next batch → step → log. Metrics are read one step late, so that the device never
waits for the host.
"""

from __future__ import annotations

import logging
import os
import pathlib

import jax

from siglax import checkpoint
from siglax import checks
from siglax import config as config_lib
from siglax import curves
from siglax import data as data_lib
from siglax import errors
from siglax import evals
from siglax import evaluate
from siglax import goodput as goodput_lib
from siglax import log as log_lib
from siglax import losses
from siglax import mesh as mesh_lib
from siglax import metrics as metrics_lib
from siglax import optim
from siglax import processes
from siglax import program
from siglax import signals
from siglax import state as state_lib
from siglax import streams
from siglax import tower
from siglax.runs import files
from siglax.runs import history as history_lib
from siglax.runs import lock as lock_lib

logger = logging.getLogger("siglax")


class Run(program.Program):
  """Everything a run needs, made of its config before anything compiles; see `train`."""

  def __init__(self, config, workdir):
    checks.validate(config, jax.device_count())
    text = tower.text_processor(config)
    self.sources = data_lib.open_data(config)
    config = config_lib.resolve(config, text, lambda: data_lib.same_label(config, self.sources))
    self.text = text
    self.workdir = pathlib.Path(workdir)
    self.epoch_examples = data_lib.num_examples(self.sources)
    super().__init__(config, self.epoch_examples)
    if self.embedded:
      data_lib.embeddings.check(config, self.sources, self.model.embed_dim)
    self.evaluate = evaluate.Evaluator(config, self.model, text, self.mesh)

  def due(self, what: str, step: int) -> bool:
    """Whether to log, evaluate or save after this many steps; the last step always does.

    An evaluation that would be due less than a tenth of its interval before the last step is left to the last step.
    """
    every = self.every[what]
    if what == "eval" and every and self.total_steps - step < every / 10:
      every = None
    return step == self.total_steps or bool(every and step and step % every == 0)

  def initial_state(self) -> state_lib.TrainState:
    """A fresh state, made in its shards. Parameters of config.model.init_from, read before anything compiles, take the
    place of random ones."""
    init_from = self.config.model.init_from
    loaded = {} if init_from is None else tower.initial_params(init_from, self.model, self.mesh, self.config)
    shardings = jax.tree.map(lambda x: x.sharding, self.abstract_state)
    create = lambda key, loaded: self.create(state_lib.overlay(self.model.init(key), loaded))
    return jax.jit(create, out_shardings=shardings, donate_argnums=1)(jax.random.key(self.config.seed), loaded)

  def check_tower(self, params):
    """ValueError when the embeddings of pictures to train on were made by another image tower than the run's."""
    if self.embedded:
      data_lib.embeddings.check_tower(self.sources, tower.image_digest(self.model, params, self.mesh))

  def batches(self, start_step: int, counts: dict | None = None):
    return data_lib.train_batches(
        self.config, self.text, start_step=start_step, sources=self.sources, counts=counts,
        process_index=jax.process_index(), process_count=jax.process_count(),
    )

  def write_files(self):
    """config.json and tokenizer.model of the run folder. Process 0 does it."""
    try:
      files.write_atomic(self.workdir / tower.CONFIG, config_lib.to_json(self.config).encode())
      files.write_atomic(self.workdir / tower.TOKENIZER, self.text.model)
    except OSError as e:
      raise _unwritable(self.workdir, e) from e

  def check_folder(self, extend: bool = False):
    """ValueError when the run folder holds checkpoints of another config.

    A longer total is no other config where it changes nothing of the steps that the newest checkpoint has behind it: with
    a constant or rsqrt schedule, before its cooldown and before the steps that see all patches. extend: allows a longer
    total in any case.
    """
    checkpoints = checkpoint.Checkpoints(self.workdir)
    meta = checkpoints.newest_meta()
    steps = checkpoints.steps
    if not steps:
      if saved := max((start.get("saved") or 0 for start in history_lib.read(self.workdir)), default=0):
        raise ValueError(
            f"--workdir {self.workdir}: the run there saved step {saved}, but checkpoints/ is empty now; bring it back (is it "
            f"mounted?), use another --workdir, or remove {history_lib.FILE} to begin again"
        )
      return
    # What was trained, and not what config.json says: the files of two runs may have been mixed.
    there = config_lib.from_json(meta["config"]) if meta and "config" in meta else tower.read_config(self.workdir)
    different = config_lib.differences(there, self.config)
    other = [line for line in different if not line.startswith("total_")]
    if other:
      raise ValueError(
          f"--workdir {self.workdir} holds a run of another config: {'; '.join(other)}; "
          "use another --workdir, or the same values to resume"
      )
    self._check_inputs((meta or {}).get("data", {}).get("examples"))
    if different:
      self._check_longer(program.Program(there, self.epoch_examples), max(steps), extend)

  def _check_inputs(self, examples: list[int] | None):
    """ValueError for data or a tokenizer that the steps so far were not trained on. examples: of each source then."""
    for k, (then, now) in enumerate(zip(examples or (), map(len, self.sources))):
      if then != now:
        raise ValueError(
            f"config.data.{k} has {now:,} examples, and had {then:,} when the run in --workdir {self.workdir} was trained: its "
            "batches would be others; give the same data, or use another --workdir"
        )
    kept = self.workdir / tower.TOKENIZER
    if kept.is_file() and kept.read_bytes() != self.text.model:
      raise ValueError(
          f"config.text.tokenizer={self.config.text.tokenizer!r} is another model than {kept}, which the run was trained with; "
          "give that one, or use another --workdir"
      )

  def _check_longer(self, there: program.Program, step: int, extend: bool):
    """there: the program of the run in the folder, whose newest checkpoint is of `step`."""
    lengths = f"the run in --workdir {self.workdir} is of {there.total_steps} steps, this one of {self.total_steps}"
    if self.total_steps < max(step, there.total_steps):
      raise ValueError(f"{lengths}; a run can only be made longer: raise config.total_steps, or use another --workdir")
    rates = [float(made.schedule(step)) for made in (there, self)]
    if rates[0] != rates[1] or there.schedule_end < step:
      changes = (
          f"at step {step} the learning rate goes from {rates[0]:.3g} to {rates[1]:.3g}, and the steps before it followed the "
          f"shorter schedule (config.optim.schedule={self.config.optim.schedule!r})"
      )
    elif there.masked_steps < step:
      changes = f"the steps from {there.masked_steps + 1} on saw all patches (config.train.unmasked_*)"
    else:
      changes = None
    if changes and not extend:
      raise ValueError(f"{lengths}: {changes}; give --extend to go on all the same, or use another --workdir")
    logger.warning(
        "%s; it goes on from step %d, where the learning rate goes from %.3g to %.3g", lengths, step, *rates
    )


def train(config, workdir, *, extend: bool = False, second_signal=signals.interrupt) -> dict[str, float]:
  """Trains `config` in the run folder `workdir`, or resumes there; returns the metrics of the last evaluation.

  extend: a run in the folder may be made longer although its schedule depends on its length.
  SIGINT, SIGTERM and SIGHUP, to any of the processes, save and return; a second one calls second_signal. Raises ValueError in
  one line for what is wrong with the config, the data, the folder or the disk, and FloatingPointError when the loss, the
  gradient or the state is not finite.
  """
  with signals.StopSignals(second_signal) as stop:
    goodput = goodput_lib.Goodput()
    run = Run(config, workdir)
    processes.check_same_config(run.config)
    run.evaluate.check()
    # Processes agree on what process 0 finds in the folder.
    lock = processes.on_first(lambda: _take_folder(run, extend))
    try:
      _check_shared(run.workdir, lock)
      return _train(run, stop, goodput, lock)
    finally:
      if lock is not None:
        lock.release()


def _unwritable(workdir, error: OSError) -> ValueError:
  of = f"{error.filename}: " if error.filename and str(error.filename) != str(workdir) else ""
  return ValueError(f"--workdir {workdir} cannot be written: {of}{error.strerror}; use another folder")


def _check_shared(workdir, lock):
  """ValueError on all processes where one of them sees another folder than process 0: its part of each save would be missing."""
  if jax.process_count() > 1:
    key = processes.of_first(lock and lock.key)
    if processes.any_has(not lock_lib.sees(workdir, key))[0]:
      raise ValueError(f"--workdir {workdir} is not the same folder in all processes; give one on a file system that they share")


def _take_folder(run: Run, extend: bool) -> lock_lib.Lock:
  try:
    str(run.workdir).encode()
  except UnicodeError as e:  # orbax takes no other name, and would say so at the first save
    raise ValueError(f"--workdir {os.fsencode(run.workdir)!r} is not UTF-8, or the locale is not; use another name, or LC_ALL=C.UTF-8") from e
  try:
    run.workdir.mkdir(parents=True, exist_ok=True)
    lock = lock_lib.Lock(run.workdir)
  except OSError as e:
    raise _unwritable(run.workdir, e) from e
  try:
    run.check_folder(extend)
    run.write_files()
  except BaseException:
    lock.release()
    raise
  return lock


def _train(run: Run, stop: signals.StopSignals, goodput, lock):
  workdir = run.workdir
  keep = run.config.checkpoint
  lower_is_better = keep.keep_best is not None and evals.lower_is_better(keep.keep_best)
  checkpoints = checkpoint.Checkpoints(workdir, keep, run.every["checkpoint"], lower_is_better)
  restored = checkpoints.restore(run.abstract_state)
  state = run.initial_state() if restored is None else restored[0]
  run.check_tower(state.params)
  meta = {"step": 0} if restored is None else restored[1]
  start = step = meta["step"]
  if start > run.total_steps:
    raise ValueError(f"the checkpoint of step {start} in --workdir {workdir} is beyond the {run.total_steps} steps of config.total_*")
  _announce(run, start)
  if start == run.total_steps:
    logger.info("%s is finished; a larger config.total_* makes it longer", run.workdir)
  batches = run.batches(start, meta.get("data", {}).get("counts"))
  profiler = Profiler(run, start)
  evaluated, evaluated_at = {}, None

  def save(last: bool):
    log.flush()
    if step > checkpoints.newest:
      processes.on_first(lock.check if lock else None)
      data = {
          "global_next_index": step * run.config.batch_size, "counts": batches.counts, "examples": list(map(len, run.sources)),
      }
      meta = {"data": data, "config": config_lib.to_json(run.config), "skipped": log.skipped}
      checkpoints.save(step, state, meta, evaluated if step == evaluated_at else None, last=last)

  with (
      history_lib.History(workdir, step=start, goodput=goodput, saved=lambda: checkpoints.on_disk) as history,
      metrics_lib.RunMetrics(workdir, run.config, total_steps=run.total_steps, step=start) as writer,
      jax.set_mesh(run.mesh),
  ):
    log = log_lib.Log(run, writer, history, start, checkpoints, goodput, meta.get("skipped", 0), lock)
    goodput.enter("step")
    try:
      while True:
        if step > start and run.config.eval.tasks and run.due("eval", step):
          log.flush()
          with goodput.during("evaluation"):
            evaluated, evaluated_at = run.evaluate(state.evaluated), step
          writer.write(step, {**evaluated, **run.evaluate.facts})
          log.pause()
        stopping = stop.requested if jax.process_count() == 1 else checkpoint.preempted(step)
        last = bool(step == run.total_steps or stopping)
        if checkpoints.poll() or last or run.due("checkpoint", step):
          with goodput.during("checkpoint"):
            save(last)
          log.pause()
        if last:
          break
        try:
          with goodput.during("data_wait"):
            batch = next(batches)
        except ValueError as e:
          if not stop.requested:
            raise
          logger.warning("%s", e)  # its worker got the signal too: what there is is saved
          continue
        batch = mesh_lib.to_global(run.mesh, batch)  # travels while the device works on the step before
        profiler.before(step + 1)
        compiles = step in (start, run.masked_steps)
        with jax.transfer_guard("disallow"), goodput.during("compile" if compiles else "step"):
          state, metrics = run.update(step)(state, batch)
          if compiles:
            jax.block_until_ready(metrics)
        step += 1
        profiler.after(step, metrics)
        log.push(step, metrics, compiles, state)
    finally:
      profiler.close()
      batches.close()
      checkpoints.close()
    history.end(step, "finished" if step == run.total_steps else stop.requested or "SIGTERM")
    if step > start:
      writer.write(step, goodput.shares())
    if step == run.total_steps:
      _report(run, writer)
  if jax.process_index() == 0:
    if step < run.total_steps:
      saved_too = ", saved; the same command resumes there" if step else " before the first one; the same command starts again"
      streams.say(f"stopped by {stop.requested or 'SIGTERM'} at step {step}{saved_too}")
  return evaluated


def _report(run: Run, writer):
  """The summary and the curves. A run that has lost the file they are made of has ended well all the same."""
  try:
    writer.print_summary()
    if jax.process_index() == 0:
      streams.say(f"curves: {curves.plot(run.workdir)}")
  except (OSError, ValueError) as e:
    logger.warning("no summary, or no curves: %s", errors.one_line(e))


class Profiler:
  """Traces the steps of config.profile.steps into the run folder's profile/, on process 0."""

  def __init__(self, run: Run, start: int):
    steps = checks.profile_steps(run.config) if jax.process_index() == 0 else None
    if steps and steps[0] > run.total_steps:
      raise ValueError(f"config.profile.steps={run.config.profile.steps!r} begins after the last of {run.total_steps} steps")
    # A run that resumes inside of the window traces what is left of it.
    self._first, self._last = (max(steps[0], start + 1), steps[1]) if steps else (None, None)
    self._folder, self._running = str(run.workdir / "profile"), False

  def before(self, step: int):
    """Of the step about to be dispatched."""
    if step == self._first and step <= self._last:
      jax.profiler.start_trace(self._folder)
      self._running = True

  def after(self, step: int, metrics):
    """Of the step just dispatched."""
    if self._running and step == self._last:
      jax.block_until_ready(metrics)
      self.close()

  def close(self):
    if self._running:
      self._running = False
      jax.profiler.stop_trace()
      logger.info("profile: %s", self._folder)


def _announce(run: Run, start: int):
  logger.info(
      "%s: %s steps of %d on %d %s device(s); parameters: image %s, text %s; loss %s%s",
      run.workdir, f"{run.total_steps:,}", run.config.batch_size, jax.device_count(), jax.devices()[0].platform,
      _parameters_in_words(run, "image"), _parameters_in_words(run, "text"), _loss_in_words(run),
      f"; resuming at step {start}" if start else "",
  )


def _parameters_in_words(run: Run, tower: str) -> str:
  """For example "1,234", "1,234 frozen" or "1,234, of which 56 are trained"."""
  params = run.abstract_state.params[tower]
  total, trained = optim.count(params), optim.count(state_lib.split(params, run.frozen[tower])[0])
  return f"{total:,}" + ("" if trained == total else f", of which {trained:,} are trained" if trained else " frozen")


def _loss_in_words(run: Run) -> str:
  """For example "sigmoid (ring of 8, tile 512)"."""
  config = run.config
  impl, tile = losses.plan(
      config.loss.impl, config.loss.tile, config.batch_size, run.model.embed_dim, run.mesh, mesh_lib.BATCH_AXES
  )
  of = f"{impl} of {run.mesh.size}" if impl != "dense" and run.mesh.size > 1 else impl
  return f"{config.loss.name} ({of}{f', tile {tile}' if tile else ''}{', chosen by auto' if config.loss.impl == 'auto' else ''})"
