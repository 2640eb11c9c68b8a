"""Memory, work and time of the losses: value and all gradients, loss × impl × size.

    measured, on 8 virtual devices of a CPU:
      python benchmarks/loss.py --sizes 8192x8x256
    bytes and FLOPs only, nothing runs:
      python benchmarks/loss.py --sizes 32768x8x768 1048576x32x768 --compile-only
    on one GPU:
      python benchmarks/loss.py --accelerator --sizes 32768x1x768 131072x1x768 --dtype bfloat16 \\
        --impls ring
    a loss of one's own, which a file registers (docs/losses.md), beside siglax's:
      python benchmarks/loss.py --sizes 8192x8x256 --import my_parts.py --losses square sigmoid

A size is BxDxd: global batch, devices, width. Prints a markdown table, then the rows as one line of
JSON: temp bytes a device (XLA's memory_analysis; also in units of b·d·4, the embeddings of a device
in float32), matrix FLOPs a device in units of b·B·d (counted over the jaxpr, loops times their
trips), seconds (median of --repeat, the impls of a size in turn, each after a run of itself), the
ratio to "textbook", and on a GPU the FLOP/s reached against a matrix product measured in the same
run. "textbook" is what one would write first: big_vision's ±1 label matrix and log_sigmoid;
log_softmax in both directions.
"""

import argparse
import json
import os
import statistics
import sys
import time


def main():
  arguments = parse()
  sizes = [tuple(map(int, size.split("x"))) for size in arguments.sizes]
  if arguments.compile_only or not arguments.accelerator:
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_NUM_CPU_DEVICES"] = str(max(D for _, D, _ in sizes))
  import jax

  from siglax import config

  for name in arguments.imports:
    config.import_parts(name)
  rows = []
  for size in sizes:
    rows += measure(size, arguments)
  matmul = (
    matmul_flops(arguments.dtype) if arguments.accelerator and not arguments.compile_only else None
  )
  for row in rows:
    if matmul and "seconds" in row:
      row["tflops"] = row["flops"] / row["seconds"] / 1e12
      row["of_matmul"] = row["tflops"] * 1e12 / matmul
  kind = f"{jax.device_count()} × {jax.devices()[0].device_kind}"
  device = f"{kind}, jax {jax.__version__}, {arguments.dtype}"
  print(table(rows, device, matmul))
  print(json.dumps({"device": device, "matmul_tflops": matmul and matmul / 1e12, "rows": rows}))


def parse():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--sizes", nargs="+", required=True, metavar="BxDxd")
  parser.add_argument(
    "--losses", nargs="+", default=["sigmoid", "softmax"], help="names of config.loss.name"
  )
  parser.add_argument("--import", dest="imports", action="append", default=[], metavar="FILE")
  parser.add_argument("--impls", nargs="+", default=["textbook", "dense", "ring", "gather"])
  parser.add_argument("--tile", type=int, help="examples per tile; default as in training")
  parser.add_argument(
    "--dtype", default="float32", choices=["float32", "bfloat16"], help="of the embeddings"
  )
  parser.add_argument("--extras", action="store_true", help="with weights and labels")
  parser.add_argument(
    "--compile-only", action="store_true", help="compile on virtual CPU devices, run nothing"
  )
  parser.add_argument(
    "--accelerator", action="store_true", help="run on the GPU or TPU devices there are"
  )
  parser.add_argument("--repeat", type=int, default=7)
  return parser.parse_args()


def measure(size, arguments):
  """One row for each loss and impl of a size."""
  import jax
  import jax.numpy as jnp
  from jax.sharding import AxisType
  from jax.sharding import NamedSharding
  from jax.sharding import PartitionSpec as P
  import numpy as np

  from siglax.devices import flops

  B, D, d = size
  b = B // D
  mesh = jax.make_mesh((D,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:D])
  rows_of, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
  shape = lambda dims, dtype, sharding: jax.ShapeDtypeStruct(dims, dtype, sharding=sharding)
  z = shape((B, d), arguments.dtype, rows_of)
  weights = shape((B,), jnp.float32, rows_of) if arguments.extras else None
  labels = shape((B,), jnp.int32, rows_of) if arguments.extras else None
  abstract = (z, z, shape((), jnp.float32, whole), shape((), jnp.float32, whole), weights, labels)
  table = []
  for name in arguments.losses:
    for impl in arguments.impls:
      loss = textbook(name) if impl == "textbook" else of_siglax(name, mesh, impl, arguments.tile)
      if loss is None or impl == "textbook" and arguments.extras:
        continue
      function = jax.value_and_grad(loss, (0, 1, 2, 3))
      start = time.perf_counter()
      compiled = jax.jit(function).lower(*abstract).compile()
      temp = compiled.memory_analysis().temp_size_in_bytes
      work = sum(flops.count_all_devices(jax.make_jaxpr(function)(*abstract).jaxpr).values()) / D
      table.append(
        {
          "loss": name,
          "impl": impl,
          "B": B,
          "D": D,
          "d": d,
          "temp_bytes": temp,
          "temp_bd4": temp / (b * d * 4),
          "flops": work,
          "flops_bBd": work / (b * B * d),
          "compile_seconds": time.perf_counter() - start,
          "compiled": compiled,
        }
      )
  if not arguments.compile_only:
    rng = np.random.default_rng(0)
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    zimg, ztxt = (
      jax.device_put(jnp.asarray(unit(rng.normal(size=(B, d))), arguments.dtype), rows_of)
      for _ in range(2)
    )
    optional = (
      {"weights": np.ones(B, np.float32), "labels": np.arange(B, dtype=np.int32)}
      if arguments.extras
      else {}
    )
    put = lambda name: jax.device_put(optional[name], rows_of) if name in optional else None
    scalars = jax.device_put((np.float32(10), np.float32(-10)), whole)
    run(table, (zimg, ztxt, *scalars, put("weights"), put("labels")), arguments.repeat)
  for row in table:
    del row["compiled"]
  return table


def run(table, args, repeat):
  """Fills in seconds and ratio; the programs of a size take turns, so that what slows the machine
  slows all.

  Each runs twice in its turn and the second counts, as in training: what the one before leaves
  behind, hundreds of MiB to be freed, is not charged to the next.
  """
  import jax

  times = [[] for _ in table]
  for _ in range(repeat):
    for row, seconds in zip(table, times):
      jax.block_until_ready(row["compiled"](*args))
      start = time.perf_counter()
      jax.block_until_ready(row["compiled"](*args))
      seconds.append(time.perf_counter() - start)
  for row, seconds in zip(table, times):
    row["seconds"] = statistics.median(seconds)
  base = {row["loss"]: row["seconds"] for row in table if row["impl"] == "textbook"}
  for row in table:
    if row["loss"] in base:
      row["faster_than_textbook"] = base[row["loss"]] / row["seconds"]


def of_siglax(name, mesh, impl, tile):
  from siglax import config
  from siglax import losses

  c = config.default().loss
  c.name, c.impl, c.tile = name, impl, tile
  loss = losses.make(c, mesh)
  return lambda zimg, ztxt, scale, bias, weights, labels: loss(
    zimg, ztxt, scale, bias, weights=weights, labels=labels
  )


def textbook(name):
  """The losses as first written, without weights and labels; None where there is no such habit."""
  import jax
  import jax.numpy as jnp

  def sigmoid(zimg, ztxt, scale, bias, weights, labels):
    logits = jnp.dot(zimg, ztxt.T, preferred_element_type=jnp.float32) * scale + bias
    sign = 2 * jnp.eye(len(zimg)) - jnp.ones_like(logits)
    return -jnp.mean(jnp.sum(jax.nn.log_sigmoid(sign * logits), axis=-1))

  def softmax(zimg, ztxt, scale, bias, weights, labels):
    logits = jnp.dot(zimg, ztxt.T, preferred_element_type=jnp.float32) * scale
    rows, columns = jax.nn.log_softmax(logits, axis=1), jax.nn.log_softmax(logits, axis=0)
    return -0.5 * jnp.mean(jnp.diag(rows) + jnp.diag(columns))

  return {"sigmoid": sigmoid, "softmax": softmax}.get(name)


def matmul_flops(dtype, n=8192, repeat=20) -> float:
  """FLOP/s of an n×n matrix product on one device."""
  import jax
  import jax.numpy as jnp

  x = jnp.ones((n, n), dtype)
  product = jax.jit(lambda x: jnp.dot(x, x, preferred_element_type=jnp.float32).astype(x.dtype))
  jax.block_until_ready(product(x))
  times = []
  for _ in range(repeat):
    start = time.perf_counter()
    jax.block_until_ready(product(x))
    times.append(time.perf_counter() - start)
  return 2 * n**3 / statistics.median(times)


def table(rows, device, matmul) -> str:
  """Markdown; columns that no row has are left out."""
  columns = {
    "loss": lambda r: r["loss"],
    "impl": lambda r: r["impl"],
    "B": lambda r: f"{r['B']:,}",
    "D": lambda r: str(r["D"]),
    "d": lambda r: str(r["d"]),
    "temp MiB": lambda r: f"{r['temp_bytes'] / 2**20:,.1f}",
    "temp / b·d·4": lambda r: f"{r['temp_bd4']:,.2f}",
    "FLOPs / b·B·d": lambda r: f"{r['flops_bBd']:.2f}",
    "ms": lambda r: f"{1e3 * r['seconds']:,.1f}",
    "× textbook": lambda r: f"{r['faster_than_textbook']:.2f}",
    "TFLOP/s": lambda r: f"{r['tflops']:.1f}",
    "of matmul": lambda r: f"{100 * r['of_matmul']:.0f}%",
  }

  def cell(write, row):
    try:
      return write(row)
    except KeyError:
      return ""

  cells = {head: [cell(write, row) for row in rows] for head, write in columns.items()}
  cells = {head: column for head, column in cells.items() if any(column)}
  lines = [device + (f", matmul {matmul / 1e12:.1f} TFLOP/s" if matmul else ""), ""]
  lines += ["| " + " | ".join(cells) + " |", "|" + "---|" * len(cells)]
  lines += [
    "| " + " | ".join(column[i] for column in cells.values()) + " |" for i in range(len(rows))
  ]
  return "\n".join(lines)


if __name__ == "__main__":
  sys.exit(main())
