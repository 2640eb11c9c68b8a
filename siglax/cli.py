"""The command line: `siglax COMMAND`, train, evaluate, replay, embed, classify, search, export, tokenizer or plan; each has
--help."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys

from siglax import streams

END_SECONDS = 20
INTERRUPTED = 130  # exit code  # of a command that failed
_DATA_HELP = "file.parquet or shapes, and fields of the spec: file.parquet:caption=text"


def main(arguments: list[str] | None = None) -> int:
  """Runs one command; a wrong input, and a file or pipe that fails, prints one line and returns 1."""
  if sys.stdout is None:  # closed by whoever started this: the next file to be opened would take its place
    sys.stdout = open(os.devnull, "w")
  with contextlib.redirect_stdout(streams.Stdout(sys.stdout)) as stdout:
    try:
      try:
        return _main(arguments)
      finally:
        stdout.flush()
    except OSError as e:
      return _failed("siglax", e)


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
  """What is given of the command's own flags, `run` among them, and the other words."""
  parser = argparse.ArgumentParser(prog="siglax", description="Contrastive image-text training (SigLIP, CLIP) in JAX.")
  commands = parser.add_subparsers(dest="command", required=True, metavar="command")
  adders = (
      _add_train, _add_evaluate, _add_replay, _add_embed, _add_classify, _add_search, _add_export, _add_tokenizer, _add_plan,
  )
  for add in adders:
    add(commands)
  return parser.parse_known_args(arguments)


def _main(arguments):
  known, rest = parse(arguments)
  try:
    known.overrides = overrides(rest)
    _check_paths(known)
    known.run(known)
  except KeyboardInterrupt:
    print(f"siglax {known.command}: interrupted", file=sys.stderr)
    return INTERRUPTED
  except (ValueError, FloatingPointError) as e:
    print(f"siglax {known.command}: {' '.join(str(e).splitlines())}", file=sys.stderr)
    return 1
  except OSError as e:
    return _failed(f"siglax {known.command}", e)
  return 0


def _failed(name: str, error: OSError) -> int:
  """Prints one line, but where the reader of what is printed has left, as `| head` does."""
  if not (isinstance(error, BrokenPipeError) and error.filename == "stdout"):
    where = "" if error.filename is None else f"{error.filename}: "
    print(f"{name}: {where}{error.strerror or error}", file=sys.stderr)
  return 1


def _check_paths(arguments):
  """ValueError for a path that is empty or a URL."""
  from siglax import config

  for flag, name in (("--workdir", "workdir"), ("--from", "source"), ("--out", "out")):
    if (path := getattr(arguments, name, None)) is not None:
      config.check_local(flag, path)


def entry() -> int:
  """`main` as a program: one that fails ends within END_SECONDS, whatever its threads still wait for."""
  code = 1  # of an error that nobody foresaw, whose traceback Python prints
  try:
    code = main()
  finally:
    if code == INTERRUPTED:
      sys.stderr.flush()
      os._exit(code)  # a program that XLA compiles in a thread would crash with the interpreter
    if code:
      from siglax import processes

      processes.end_within(END_SECONDS, code)
  return code


def _add_train(commands):
  parser = commands.add_parser(
      "train", help="train a config in a run folder, or resume there",
      description="Trains a config in a run folder. The same command resumes where it stopped.",
      epilog="Fields: --config.optim.lr=3e-4 --config.data.0.path=a.parquet --config.total_epochs=3; "
      "siglax/config.py lists them all.",
  )
  _add_config_flag(parser)
  parser.add_argument("--workdir", required=True, help="run folder: config, checkpoints, metrics, curves")
  parser.add_argument(
      "--extend", action="store_true",
      help="make a run longer although its learning rate depends on its length (cosine, linear, a cooldown that has begun)",
  )
  _add_process_flags(parser)
  parser.set_defaults(run=_train)


def _add_evaluate(commands):
  parser = commands.add_parser(
      "evaluate", help="evaluate a run folder",
      description="Runs the evaluation tasks of a run on its newest good checkpoint and writes eval.json, in "
      "CLIP_benchmark's format.",
      epilog="Fields: --config.eval.tasks.0.data.path=b.parquet --config.eval.batch_size=512",
  )
  parser.add_argument("--from", dest="source", required=True, metavar="DIR", help="run folder")
  parser.add_argument("--out", help="file to write; DIR/eval.json by default")
  _add_process_flags(parser)
  parser.set_defaults(run=_evaluate)


def _add_replay(commands):
  parser = commands.add_parser(
      "replay", help="make one step of a run again",
      description="Makes one step of a run again, from the newest good checkpoint before it: prints its loss and gradient norm, "
      "and the examples of its batch. On the same kind and number of devices the loss is that of metrics.jsonl, bit for bit. "
      "Nothing is written.",
  )
  parser.add_argument("--run", dest="source", required=True, metavar="DIR", help="run folder, with its data in place")
  parser.add_argument("--step", required=True, type=int, metavar="N", help="step as in metrics.jsonl, from 1")
  parser.add_argument("--json", action="store_true", help="print one JSON object")
  parser.set_defaults(run=_replay)


def _add_embed(commands):
  parser = commands.add_parser(
      "embed", help="write the embeddings of a dataset's pictures",
      description="Embeds every picture of a dataset and writes the embeddings with the captions, to train a text tower "
      'on them (data source "embeddings") or for other programs. docs/towers.md tells how to read each format.',
  )
  _add_from_flag(parser)
  parser.add_argument("--data", required=True, metavar="DATA", help=_DATA_HELP)
  parser.add_argument("--out", required=True, metavar="FILE", help=".npz, .parquet or .array_record that does not exist")
  parser.add_argument("--texts", action="store_true", help="also the embeddings of the captions")
  parser.add_argument("--tokens", action="store_true", help="also the image tokens, one for each patch")
  parser.add_argument("--batch-size", type=int, metavar="N", help="pictures at a time; config.eval.batch_size by default")
  parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"), help="of what is stored")
  parser.set_defaults(run=_embed)


def _add_classify(commands):
  parser = commands.add_parser(
      "classify", help="sort pictures by labels it was never trained on",
      description="Compares pictures with labels, each put into the templates, and prints how probable each label is.",
  )
  _add_from_flag(parser)
  parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="image file")
  parser.add_argument("--labels", required=True, metavar="A,B,…", help="names, separated by commas")
  parser.add_argument(
      "--template", action="append", metavar="TEXT",
      help="caption with a {} for the label; several are averaged (default: 'a photo of a {}.')",
  )
  parser.add_argument("--json", action="store_true", help="print one JSON object")
  parser.set_defaults(run=_classify)


def _add_search(commands):
  parser = commands.add_parser(
      "search", help="find pictures by what is on them",
      description="Embeds the pictures of a folder and prints those whose embeddings are nearest to each query, with the "
      "cosine between the two.",
  )
  _add_from_flag(parser)
  parser.add_argument("--images", required=True, metavar="FOLDER", help="searched with its subfolders")
  parser.add_argument("queries", nargs="+", metavar="QUERY", help="text, such as 'a red car'")
  parser.add_argument("--top", type=int, default=20, metavar="N", help="pictures for each query (default: 20)")
  parser.add_argument("--out", metavar="FILE.html", help="page to write with the pictures in it")
  parser.set_defaults(run=_search)


def _add_from_flag(parser):
  parser.add_argument("--from", dest="source", required=True, metavar="DIR", help="run folder, or what siglax.load takes")


def _add_config_flag(parser):
  parser.add_argument("--config", required=True, help="config file, with arguments after a colon: configs/x.py:name=value")


def _add_process_flags(parser):
  group = parser.add_argument_group("several processes", "each with its own devices; found by itself under srun and on TPU")
  group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens, the same for all")
  group.add_argument("--processes", type=int, metavar="N", help="number of processes")
  group.add_argument("--process-id", type=int, metavar="I", help="of this one, from 0")
  group.add_argument("--wait", type=int, default=300, metavar="SECONDS", help="for the others at the start (default: 300)")


def _add_export(commands):
  parser = commands.add_parser(
      "export", help="write the towers in another library's format",
      description="Writes the towers of a run folder, of a Hugging Face folder or of a big_vision .npz for other "
      "libraries: hf is a SiglipModel with its preprocessing and tokenizer, hf-vision its image tower alone, big_vision "
      "an .npz file, open_clip a folder for local-dir:., stablehlo functions that jax runs without siglax.",
  )
  _add_from_flag(parser)
  parser.add_argument("--format", required=True, choices=("hf", "hf-vision", "big_vision", "open_clip", "stablehlo"))
  parser.add_argument("--out", required=True, metavar="DIR_OR_FILE", help="folder, or .npz file, that does not exist yet")
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the parameters")
  parser.set_defaults(run=_export)


def _add_tokenizer(commands):
  parser = commands.add_parser(
      "tokenizer", help="train a sentencepiece model",
      description="Trains a sentencepiece model on the captions of a dataset, preprocessed as in training.",
  )
  parser.add_argument("--from", dest="source", required=True, metavar="DATA", help=_DATA_HELP)
  parser.add_argument("--out", required=True, metavar="FILE.model", help="file to write")
  parser.add_argument("--vocab-size", required=True, type=int, help="number of tokens")
  parser.add_argument("--keep-case", action="store_true", help="for config.text.lowercase=False")
  parser.add_argument("--keep-punctuation", action="store_true", help="for config.text.strip_punctuation=False")
  parser.set_defaults(run=_tokenizer)


def _add_plan(commands):
  parser = commands.add_parser(
      "plan", help="memory, FLOPs, traffic and the fastest step of a config, without its devices",
      description="Compiles the training step for N virtual CPU devices, allocates nothing, and tells what it needs and "
      "how fast it can be on known chips (docs/plan.md).",
      epilog="Fields: --config.mesh.fsdp=16 --config.train.remat.image=full",
  )
  _add_config_flag(parser)
  parser.add_argument("--devices", required=True, type=int, metavar="N", help="devices over all processes")
  parser.add_argument("--batch", type=int, metavar="B", help="config.batch_size, over all devices")
  parser.add_argument("--chips", help="names, separated by commas; all that are known by default")
  parser.add_argument("--json", action="store_true", help="print one JSON object")
  parser.set_defaults(run=_plan)


def _train(arguments):
  _setup()
  _join(arguments)
  from siglax import config, signals, train

  train.train(config.load(arguments.config, arguments.overrides), arguments.workdir, extend=arguments.extend, second_signal=signals.end_now)


def _evaluate(arguments):
  _setup()
  _join(arguments)
  from siglax import evaluate

  evaluate.evaluate(arguments.source, arguments.overrides, arguments.out)


def _replay(arguments):
  _no_overrides(arguments)
  _setup()
  from siglax import replay

  report = replay.replay(arguments.source, arguments.step)
  if arguments.json:
    print(json.dumps(report))
  else:
    replay.show(report, f"siglax replay {arguments.source} step {arguments.step}")


def _embed(arguments):
  _no_overrides(arguments)
  _setup()
  from siglax import embed
  from siglax.data import sources

  made = embed.embed(
      arguments.source, sources.parse_spec(arguments.data), arguments.out, texts=arguments.texts, tokens=arguments.tokens,
      batch_size=arguments.batch_size, dtype=arguments.dtype,
  )
  skipped = f", {made['skipped']:,} skipped" if made["skipped"] else ""
  print(f"wrote {arguments.out}: {made['examples']:,} embeddings of width {made['width']}{skipped}")


def _export(arguments):
  _no_overrides(arguments)
  _setup()
  from siglax.interop import export

  print(f"wrote {export.export(arguments.source, arguments.format, arguments.out, arguments.dtype)}")


def _classify(arguments):
  _no_overrides(arguments)
  _setup()
  from siglax import use

  templates = {} if arguments.template is None else {"templates": tuple(arguments.template)}
  labels = [label.strip() for label in arguments.labels.split(",")]
  report = use.classify(arguments.source, arguments.pictures, labels, **templates)
  if arguments.json:
    print(json.dumps(report))
  else:
    use.show(report)


def _search(arguments):
  _no_overrides(arguments)
  _setup()
  from siglax import use

  use.search(arguments.source, arguments.images, arguments.queries, arguments.top, arguments.out)


def _no_overrides(arguments):
  if arguments.overrides:
    raise ValueError(f"--config.{next(iter(arguments.overrides))} has no use here")


def _tokenizer(arguments):
  _no_overrides(arguments)
  from siglax.data import sources, text

  if not arguments.out.endswith(".model") or os.path.lexists(arguments.out):
    raise ValueError(f"--out {arguments.out} {'exists' if os.path.lexists(arguments.out) else 'must end in .model'}; give a path that does not exist and ends in .model")
  spec = sources.parse_spec(arguments.source)
  source = sources.open_source(spec, "--from")
  captions = (caption for i in range(len(source)) for caption in source[i]["captions"])
  text.train_tokenizer(
      captions, arguments.out, arguments.vocab_size,
      lowercase=not arguments.keep_case, strip_punctuation=not arguments.keep_punctuation,
  )
  print(f"wrote {arguments.out}; use it with --config.text.tokenizer={arguments.out}")


def _plan(arguments):
  # Before jax is imported: the plan's devices, whatever this machine has.
  os.environ["JAX_PLATFORMS"] = "cpu"
  os.environ["JAX_NUM_CPU_DEVICES"] = str(arguments.devices)
  with _uninterrupted():
    from siglax import config as config_lib
    from siglax import plan

  batch = {} if arguments.batch is None else {"batch_size": str(arguments.batch)}
  config = config_lib.load(arguments.config, arguments.overrides | batch)
  chips = {"chips": arguments.chips.split(",")} if arguments.chips else {}
  report = plan.plan(config, arguments.devices, **chips)
  if arguments.json:
    print(json.dumps(report))
  else:
    plan.show(report, f"siglax plan {arguments.config}")


@contextlib.contextmanager
def _uninterrupted():
  """Holds a SIGINT back while C++ libraries are imported: in the middle of that it crashes them, or is lost."""
  old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, old)


def _setup():
  """Logging to stderr, memory kept between steps, compiled programs kept between runs."""
  import logging

  with _uninterrupted():
    from siglax import mesh
    from siglax import train  # all that the commands import
    from siglax.runs import quiet

    del train

  for number in (1, 2):
    try:
      os.fstat(number)
    except OSError:
      os.open(os.devnull, os.O_WRONLY)  # takes the number of the closed stream, which a file of the run would get
  logging.basicConfig(format="%(message)s", level=logging.WARNING, force=True)
  logging.getLogger("siglax").setLevel(logging.INFO)
  # Orbax logs what it raises too, and siglax says that in one line.
  logging.getLogger("absl").setLevel(logging.CRITICAL)
  logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # of writes of one save that fail together, the first is told
  quiet.quiet_orbax()
  mesh.keep_freed_memory()
  mesh.keep_compiled_programs()


def _join(arguments):
  """As one of several processes, of which the first alone reports; after `_setup`."""
  import logging

  from siglax import processes

  processes.start(arguments.coordinator, arguments.processes, arguments.process_id, arguments.wait)
  import jax

  if jax.process_index() > 0:
    logging.getLogger("siglax").setLevel(logging.WARNING)


def overrides(rest: list[str]) -> dict[str, str]:
  """{"optim.lr": "3e-4"} of ["--config.optim.lr=3e-4"] or of its two halves as two words."""
  given, words = {}, iter(rest)
  for word in words:
    name, equals, value = word.partition("=")
    if not name.startswith("--config."):
      raise ValueError(f"{word} is unknown; fields are set as --config.optim.lr=3e-4")
    if not equals and (value := next(words, None)) is None:
      raise ValueError(f"{word} has no value; write {word}=value")
    given[name.removeprefix("--config.")] = value
  return given


if __name__ == "__main__":
  sys.exit(entry())
