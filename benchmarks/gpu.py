"""What siglax makes of this machine's GPU, in one command:

    python benchmarks/gpu.py
    python benchmarks/gpu.py --only mfu,loss --budget 300 --json gpu.json
    JAX_PLATFORMS=cpu python benchmarks/gpu.py --tiny

- mfu: training steps of SigLIP B/16 and L/16 at 256 px, by batch, dtype, rematerialisation and
  attention (config.train.attention, where the config has it). MFU is model FLOPs, without what is
  computed again, over the chip's published dense bf16 peak, also for float32.
- loss: value and all gradients of the losses on one device: siglax's ring, the dense formula in
  plain jnp, and, where torch and open_clip are installed, open_clip's SigLipLoss and ClipLoss on
  the same card. MiB are temporaries: XLA's for jax, torch's peak less what was there before.
- loader: pictures that the loader makes of JPEGs of 500×375 beside those that a B/16 step takes.
- batch: the batch of configs/siglip_b16_one_gpu.py, 32k, on one device.
- exports: the B/16 image tower as StableHLO, run by jax, and as ONNX, run by onnxruntime; the
  largest difference of an embedding's element from the tower's is beside the rate.

Each part runs in a process of its own, on one device, the first of CUDA_VISIBLE_DEVICES. A cell
that fails, out of memory say, is a line of the table, and so is a process that dies. --budget:
seconds of a process, after which its other cells are left out; one that is stuck is ended after
twice as long. Times are medians of --repeat after a first run, which compiles. Prints a Markdown
table a part, and one line of JSON with the machine last. The flags of XLA are those of the
environment; `source launch/env.sh` sets those of a run. --tiny: shapes that a CPU does in seconds,
to see that all parts run; its figures say nothing.
"""

import argparse
import inspect
import itertools
import json
import os
import pathlib
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent.parent
ROW = "row: "
FULL = {
  "towers": {"B/16": (128, 256, 512, 1024), "L/16": (64, 128, 256, 512)},
  "losses": (4096, 32768, 131072),
  "width": 768,
  "batch": 512,
  "loader_seconds": 20.0,
}
TINY = {
  "towers": {"B/16": (4,), "L/16": (2,)},
  "losses": (64,),
  "width": 16,
  "batch": 4,
  "loader_seconds": 0.1,
}


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between")
  parser.add_argument("--budget", type=float, default=600, help="seconds of each process")
  parser.add_argument("--repeat", type=int, default=5)
  parser.add_argument("--tiny", action="store_true", help="shapes that a CPU does in seconds")
  parser.add_argument("--json", type=pathlib.Path, help="a file for the JSON besides")
  parser.add_argument("--process", help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.process:
    return work(options)
  parts = options.only.split(",")
  if unknown := [part for part in parts if part not in PARTS]:
    parser.error(f"--only {unknown[0]} is unknown; known are {', '.join(PARTS)}")
  for name, least in (("repeat", 1), ("budget", 0)):
    if not (number := getattr(options, name)) >= least:
      parser.error(f"--{name} {number} must be at least {least}")
  if options.json and not options.json.parent.is_dir():  # told before the minutes of work
    parser.error(f"--json {options.json}: there is no folder {options.json.parent}")
  found = {"machine": machine(), "tiny": options.tiny, "rows": []}
  print("\n".join(f"- {name}: {value}" for name, value in found["machine"].items()), flush=True)
  for part in parts:
    rows = [{"part": part} | row for name in PARTS[part] for row in rows_of(name, options)]
    print(f"\n## {part}\n\n{table(rows)}", flush=True)
    found["rows"] += rows
  print("\n" + json.dumps(found), flush=True)
  if options.json:
    options.json.write_text(json.dumps(found))


def rows_of(process: str, options) -> list[dict]:
  """Runs the cells of a process."""
  words = ["--process", process, "--budget", str(options.budget), "--repeat", str(options.repeat)]
  environment = os.environ | {
    "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0],
    "JAX_NUM_CPU_DEVICES": "1",
    "XLA_PYTHON_CLIENT_MEM_FRACTION": os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9"),
    "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")])),
  }
  done = subprocess.run(
    [sys.executable, __file__, *words, *(["--tiny"] if options.tiny else [])],
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    errors="replace",
  )
  lines = done.stdout.splitlines()
  rows = [json.loads(line.removeprefix(ROW)) for line in lines if line.startswith(ROW)]
  if done.returncode:
    how = f"exit code {done.returncode}"
    if done.returncode < 0:
      how = signal.Signals(-done.returncode).name
    said = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "")
    rows.append({"what": process, "note": f"the process ended by {how}: {said}"[:300]})
  return rows


def work(options):
  """What a process does: prints a row for each of its cells."""
  end = time.monotonic() + options.budget
  if options.budget > 0:
    signal.setitimer(signal.ITIMER_REAL, 2 * options.budget)  # ends what is stuck in a compiler
  (cells,) = (PARTS[part][options.process] for part in PARTS if options.process in PARTS[part])
  for names, measure in cells(TINY if options.tiny else FULL, options):
    print(ROW + json.dumps(names | tried(measure, end)), flush=True)


def tried(measure, end: float) -> dict:
  """What a cell measures, or a note why it did not. end: of time.monotonic, no cell begins after
  it.
  """
  if time.monotonic() >= end:
    return {"note": "left out: no time was left"}
  try:
    return measure()
  except Exception as e:  # whatever a device, a library or its compiler raises
    said = " ".join(str(e).split())
    return {"note": f"{type(e).__name__}: {said}"[:200]}


def machine() -> dict:
  """Names and versions, none of which starts jax here: it would take the GPU's memory."""
  told = "--query-gpu=name,driver_version,memory.total,power.limit"
  try:
    gpus = subprocess.run(
      ["nvidia-smi", told, "--format=csv,noheader"], capture_output=True, text=True
    ).stdout.splitlines()
  except OSError:
    gpus = []
  program = "import jax; print(len(jax.devices()), jax.devices()[0].device_kind)"
  devices = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
  return {
    "machine": platform.node(),
    "GPU, driver, memory, power": "; ".join(gpus) or "none",
    "jax devices": (devices.stdout.splitlines() or ["none"])[-1],
    **{name: version(name) for name in ("jax", "jaxlib", "torch", "open_clip_torch")},
    "cores": len(os.sched_getaffinity(0)),
    "load before": round(os.getloadavg()[0], 2),
    "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
  }


def version(package: str) -> str:
  from importlib import metadata

  try:
    return metadata.version(package)
  except metadata.PackageNotFoundError:
    return "not installed"


def table(rows: list[dict]) -> str:
  """Markdown; a column for each name that a row has."""
  heads = list(dict.fromkeys(name for row in rows for name in row if name != "part"))
  heads.sort(key=lambda name: name == "note")
  shown = lambda x: f"{x:,.4g}" if isinstance(x, float) else str(x).replace("|", "\\|")
  lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
  lines += ["| " + " | ".join(shown(row.get(name, "")) for name in heads) + " |" for row in rows]
  return "\n".join(lines)


def seconds(run, repeat: int) -> float:
  """The median of run(), which waits for the device, after one."""
  run()
  times = []
  for _ in range(repeat):
    began = time.perf_counter()
    run()
    times.append(time.perf_counter() - began)
  return statistics.median(times)


def mfu(sizes, options):
  """Cells of mfu: batches first, then what else changes at one of them."""
  values = attentions()
  for tower, batches in sizes["towers"].items():
    middle = batches[len(batches) // 2]
    cells = [("bfloat16", "none", values[0], batch) for batch in batches]
    cells += [("bfloat16", remat, values[0], batches[-1]) for remat in ("dots", "attn_mlp", "full")]
    cells += [("bfloat16", "none", value, middle) for value in values[1:]]
    cells += [("float32", remat, values[0], middle) for remat in ("none", "full")]
    for dtype, remat, attention, batch in cells:
      names = {"tower": tower, "dtype": dtype, "remat": remat, "batch": batch}
      if attention is not None:
        names["attention"] = attention
      yield names, lambda x=names: step_of(config_of(sizes, **x), options.repeat)


def attentions() -> tuple:
  """Values of config.train.attention; (None,) where the config has no such field."""
  from siglax import config as config_lib

  return ("auto", "xla", "cudnn") if "attention" in config_lib.default().train else (None,)


def config_of(sizes, tower="B/16", dtype="bfloat16", remat="none", batch=None, attention=None):
  """SigLIP at 256 px, of one device; shrunk for --tiny."""
  from siglax.config import recipes

  c = recipes.siglip("train.tar", "tokenizer.model")
  c.model.image.variant = c.model.text.variant = tower[0]
  c.model.text.eos_id = 1
  if sizes is TINY:
    recipes.shrink(c)
  c.batch_size = batch or sizes["batch"]
  c.train.dtype, c.train.remat.image, c.train.remat.text = dtype, remat, remat
  if attention is not None:
    c.train.attention = attention
  return c


def step_of(config, repeat: int) -> dict:
  """Time, MFU and memory of a step."""
  import jax
  from step import prepare  # benchmarks/step.py

  from siglax.devices import chips
  from siglax.training import program

  made, compiled, state, batch = prepare(config)

  def step():
    nonlocal state
    state, metrics = compiled(state, batch)
    jax.block_until_ready(metrics)

  took = seconds(step, repeat)
  found = {
    "ms": 1000 * took,
    "examples/s": config.batch_size / took,
    "TFLOP/s": made.model_flops() / took / 1e12,
    "GiB": program.peak_bytes(compiled) / 2**30,
  }
  if peak := chips.peak_flops(jax.devices()[0]):
    found["MFU"] = 1e12 * found["TFLOP/s"] / peak
  return found


def loss(sizes, options):
  """siglax's losses, and the same formulas as first written (benchmarks/loss.py)."""
  import loss as of_jax

  def measure(name, impl, dtype, batch):
    given = argparse.Namespace(
      losses=[name], impls=[impl], tile=None, dtype=dtype, extras=False, compile_only=False
    )
    given.repeat = options.repeat
    (row,) = of_jax.measure((batch, 1, sizes["width"]), given)
    return {"ms": 1000 * row["seconds"], "MiB": row["temp_bytes"] / 2**20}

  for dtype, batch in itertools.product(("float32", "bfloat16"), sizes["losses"]):
    for name, impl in itertools.product(("sigmoid", "softmax"), ("ring", "textbook")):
      of = f"siglax {name}, ring" if impl == "ring" else f"{name} in plain jnp, dense"
      names = {"what": of, "dtype": dtype, "batch": batch}
      yield names, lambda x=(name, impl, dtype, batch): measure(*x)


def torch_loss(sizes, options):
  """open_clip's losses on the same card."""
  try:
    from open_clip.loss import ClipLoss
    from open_clip.loss import SigLipLoss
    import torch
  except ImportError as e:
    yield {"what": "open_clip's losses", "note": f"not measured: {e}"}, dict
    return
  device = "cuda" if torch.cuda.is_available() else "cpu"

  def measure(make, dtype, batch, scalars):
    unit = lambda: torch.nn.functional.normalize(torch.randn(batch, sizes["width"]), dim=-1)
    z = [unit().to(device, getattr(torch, dtype)).requires_grad_() for _ in range(2)]
    z += [torch.tensor(x, device=device, requires_grad=True) for x in scalars]
    computed = make()

    def run():
      computed(*z).backward()
      for x in z:
        x.grad = None
      if device == "cuda":
        torch.cuda.synchronize()

    took = {"ms": 1000 * seconds(run, options.repeat)}
    if device == "cuda":
      before = torch.cuda.memory_allocated()
      torch.cuda.reset_peak_memory_stats()
      run()
      took["MiB"] = (torch.cuda.max_memory_allocated() - before) / 2**20
    return took

  kinds = {
    "open_clip SigLipLoss": (SigLipLoss, (10.0, -10.0)),
    "open_clip ClipLoss": (ClipLoss, (10.0,)),
  }
  if "chunk_size" in inspect.signature(SigLipLoss.__init__).parameters:
    chunked = lambda: SigLipLoss(chunk_size=max(1, sizes["losses"][0] // 4))
    kinds["open_clip SigLipLoss, chunk_size"] = chunked, (10.0, -10.0)
  for dtype, batch in itertools.product(("float32", "bfloat16"), sizes["losses"]):
    for name, (make, scalars) in kinds.items():
      names = {"what": name, "dtype": dtype, "batch": batch, "device": device}
      yield names, lambda x=(make, dtype, batch, scalars): measure(*x)


def loader(sizes, options):
  """The loader's rate over the step's."""
  yield {"what": "loader beside a B/16 step, bfloat16"}, lambda: loaded(sizes, options.repeat)


def loaded(sizes, repeat: int) -> dict:
  from data import Pictures  # benchmarks/data.py

  from siglax import data
  from siglax.data.text import TextProcessor
  from siglax.devices import cores

  config = config_of(sizes)
  few, count = sizes is TINY, cores.usable()
  config.loader.threads = 2 if count > 4 else count
  config.loader.workers = 0 if few or count <= 4 else count // 2
  config.image.crop_min_area = 0.3
  config.data = ({"source": "shapes"},)
  text = TextProcessor(length=config.text.length)
  batches = data.train_batches(config, text, sources=[Pictures()])
  try:
    for _ in range(config.loader.buffer + 1):  # what was made ahead is not counted
      next(batches)
    made, began = 0, time.perf_counter()
    while made < 2 * config.batch_size or time.perf_counter() - began < sizes["loader_seconds"]:
      next(batches)
      made += config.batch_size
    rate = made / (time.perf_counter() - began)
  finally:
    batches.close()
  step = step_of(config_of(sizes), repeat)["examples/s"]
  return {
    "threads × workers": f"{config.loader.threads} × {max(1, config.loader.workers)}",
    "cores": count,
    "loader/s": rate,
    "step/s": step,
    "loader / step": rate / step,
  }


def batch(sizes, options):
  """The large batch on one device."""
  from siglax import config as config_lib

  config = config_lib.load(
    str(HERE / "configs/siglip_b16_one_gpu.py") + (":smoke=True" if sizes is TINY else "")
  )
  if config.model.text.vocab_size is not None:
    config.model.text.eos_id = 1
  names = {"batch": config.batch_size, "microbatch": config.train.microbatch}
  yield names, lambda: step_of(config, min(2, options.repeat))


def exports(sizes, options):
  """The image tower in the formats that run without siglax."""
  for dtype in ("float32", "bfloat16"):
    names = {"what": "StableHLO in jax", "dtype": dtype, "batch": sizes["batch"]}
    yield names, lambda x=dtype: exported("stablehlo", in_jax, x, sizes, options.repeat)
  for provider in ("CUDAExecutionProvider", "CPUExecutionProvider")[: 2 if sizes is TINY else 1]:
    names = {"what": f"ONNX, {provider}", "dtype": "float32", "batch": sizes["batch"]}
    run = lambda folder, config, x, of=provider: in_onnxruntime(folder, config, x, of)
    yield names, lambda of=run: exported("onnx", of, "float32", sizes, options.repeat)


def exported(form: str, make, dtype: str, sizes, repeat: int) -> dict:
  """make: (folder, its config.json, pixels on the host) → what runs them and returns embeddings on
  the host.
  """
  import jax
  import numpy as np

  from siglax import interop
  from siglax import models
  from siglax import tower as tower_lib
  from siglax.devices import mesh as mesh_lib

  interop.FORMATS[form].check_packages()
  config = config_of(sizes, dtype=dtype)
  if config.model.text.vocab_size is None:
    config.model.text.vocab_size, config.model.text.eos_id = 100, 1
  model, mesh = models.build(config.model, ("image",)), mesh_lib.make()
  params = jax.jit(model.init, out_shardings=mesh_lib.replicated(mesh))(jax.random.key(0))
  tower = tower_lib.Tower(config, params, None, mesh, model)
  side = config.image.size
  pixels = np.random.default_rng(0).integers(0, 256, (sizes["batch"], side, side, 3), np.uint8)
  with tempfile.TemporaryDirectory() as parent:
    folder = pathlib.Path(parent, "tower")
    interop.FORMATS[form].write(tower, folder, "float32", folder)
    run = make(folder, json.loads((folder / "config.json").read_text()), pixels)
    took = seconds(run, repeat)
    off = np.abs(run() - np.asarray(jax.jit(model.embed_image)(params, pixels))).max()
  return {"ms": 1000 * took, "pictures/s": len(pixels) / took, "difference": float(off)}


def in_jax(folder, config, pixels):
  import jax
  from jax import export
  import numpy as np

  of = config["functions"]["embed_image"]
  params = jax.device_put(
    {k: x.view(config["dtype"]) for k, x in np.load(folder / of["params"]).items()}
  )
  call = jax.jit(export.deserialize(bytearray((folder / of["file"]).read_bytes())).call)
  return lambda: np.asarray(call(params, pixels))


def in_onnxruntime(folder, config, pixels, provider: str):
  import onnxruntime

  if provider not in (there := onnxruntime.get_available_providers()):
    raise RuntimeError(f"onnxruntime {onnxruntime.__version__} has {', '.join(there)} only")
  of = config["functions"]["embed_image"]
  session = onnxruntime.InferenceSession(folder / of["file"], providers=[provider])
  if session.get_providers()[0] != provider:
    raise RuntimeError(f"onnxruntime could not start {provider}")
  return lambda: session.run([of["output"]], {of["input"]: pixels})[0]


# Of each part the functions whose cells run in a process each.
PARTS = {
  "mfu": {"mfu": mfu},
  "loss": {"loss": loss, "torch_loss": torch_loss},
  "loader": {"loader": loader},
  "batch": {"batch": batch},
  "exports": {"exports": exports},
}


if __name__ == "__main__":
  main()
