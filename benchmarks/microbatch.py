"""What micro-batching costs and saves: temporary bytes, FLOPs, and how near its gradients are to
those of the whole batch.

    python benchmarks/microbatch.py
    python benchmarks/microbatch.py --errors

The first compiles SigLIP B/16 for one CPU device and never runs it: bytes and FLOPs. The second
takes the gradients of a small model with dropout on 1 and on 8 virtual devices.
"""

import argparse
import itertools
import json
import os

os.environ["JAX_PLATFORMS"], os.environ["JAX_NUM_CPU_DEVICES"] = "cpu", "8"

import jax
import jax.numpy as jnp
import numpy as np

from siglax import config as config_lib
from siglax import models
from siglax.devices import flops
from siglax.devices import mesh as mesh_lib
from siglax.models import trainable as trainable_lib
from siglax.training import step as step_lib


def siglip(size, **fields):
  c = config_lib.default()
  c.model.image.variant = c.model.text.variant = size
  c.image.size, c.text.length = 224, 64
  c.model.text.vocab_size, c.model.text.eos_id, c.loss.bias_init = 32_000, 1, -10.0
  for field, value in fields.items():
    config_lib.override(c, field, str(value))
  return c


def mesh_of(devices):
  return jax.sharding.Mesh(
    np.array(jax.devices()[:devices]).reshape(devices, 1), mesh_lib.BATCH_AXES
  )


def make(config, mesh):
  """(value_and_grad, abstract arguments, forward FLOPs of both towers)."""
  model = models.build(config.model)
  params = jax.eval_shape(model.init, jax.random.key(0))
  B, S, L = config.batch_size, config.image.size, config.text.length
  shapes = {
    "image": ((B, S, S, 3), np.uint8),
    "tokens": ((B, L), np.int32),
    "label": ((B,), np.int32),
    "weight": ((B,), np.float32),
  }
  rows, whole = mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)
  batch = {
    k: jax.ShapeDtypeStruct(shape, dtype, sharding=rows) for k, (shape, dtype) in shapes.items()
  }
  params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), params)
  function = step_lib.make_value_and_grad(
    config, model, mesh, trainable_lib.frozen_mask(config, params)
  )
  forward = flops.count(model.embed_image, params, batch["image"]) + flops.count(
    model.embed_text, params, batch["tokens"]
  )
  return (
    model,
    function,
    (params, batch, jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)),
    forward,
  )


def memory_and_flops():
  mesh, temp = mesh_of(1), {}
  for batch_size, microbatch in ((512, 128), (4096, 128), (512, None)):
    config = siglip(
      "B", **{"batch_size": batch_size, "train.microbatch": microbatch, "loss.impl": "ring"}
    )
    _, function, arguments, forward = make(config, mesh)
    with jax.set_mesh(mesh):
      compiled = jax.jit(function).lower(*arguments).compile({"xla_backend_optimization_level": 0})
    bytes_ = temp[batch_size, microbatch] = compiled.memory_analysis().temp_size_in_bytes
    d = 768
    loss = 6 * batch_size**2 * d
    work = flops.count(function, *arguments)
    print(
      json.dumps(
        {
          "batch_size": batch_size,
          "microbatch": microbatch,
          "temp_gib": round(bytes_ / 2**30, 3),
          "tower_flops_in_forward_passes": round((work - loss) / forward, 4),
          "loss_flops_share": round(loss / work, 4),
        }
      ),
      flush=True,
    )
  embeddings = 2 * 2 * 4096 * 768 * 4  # both towers' and their gradients
  print(
    json.dumps(
      {
        "temp_4096_over_512": round(temp[4096, 128] / temp[512, 128], 4),
        "embeddings_mib": embeddings / 2**20,
        "limit_gib": round((1.2 * temp[512, 128] + embeddings) / 2**30, 3),
      }
    )
  )


def errors():
  """Largest error of loss and gradients relative to each leaf's largest element, over chunks,
  devices and losses.
  """
  small = {
    "image.size": 16,
    "model.image.patch": 8,
    "text.length": 12,
    "batch_size": 64,
    "model.text.vocab_size": 100,
    "model.image.dropout": 0.3,
    "model.text.dropout": 0.2,
  }
  small |= {
    f"model.{tower}.{k}": v
    for tower in ("image", "text")
    for k, v in {"width": 16, "depth": 2, "heads": 2, "mlp_dim": 32}.items()
  }
  rng = np.random.default_rng(0)
  host = {
    "image": rng.integers(0, 256, (64, 16, 16, 3), np.uint8),
    "tokens": rng.integers(3, 100, (64, 12), np.int32),
    "label": np.arange(64, dtype=np.int32),
    "weight": rng.uniform(0.5, 1.5, 64).astype(np.float32),
  }

  def run(devices, **fields):
    mesh = mesh_of(devices)
    config = siglip("Ti", **small, **fields)
    model, function, _, _ = make(config, mesh)
    params = jax.device_put(jax.jit(model.init)(jax.random.key(0)), mesh_lib.replicated(mesh))
    with jax.set_mesh(mesh):
      (loss, _), grads = jax.jit(function)(params, mesh_lib.to_global(mesh, host), jnp.int32(3))
    return jax.device_get((loss, grads))

  worst = 0.0
  for name in ("sigmoid", "softmax"):
    fields = {"loss.name": name, "loss.bias_init": -10.0 if name == "sigmoid" else None}
    want = run(1, **fields)
    largest = max(np.abs(g).max() for g in jax.tree.leaves(want[1]))
    for devices, chunks in itertools.product((1, 8), (2, 4, 8)):
      got = run(
        devices, **fields, **{"train.microbatch": 64 // devices // chunks, "loss.impl": "ring"}
      )
      off = {}
      for (path, g), x in zip(jax.tree_util.tree_leaves_with_path(want), jax.tree.leaves(got)):
        name_of = jax.tree_util.keystr(path, simple=True, separator="/")
        # The bias of the keys moves no attention weight: all of its gradient is rounding.
        size = largest if name_of.endswith("key/bias") else np.abs(g).max()
        off[name_of] = np.abs(x - g).max() / size
      worst = max(worst, *off.values())
      print(
        json.dumps(
          {
            "loss": name,
            "devices": devices,
            "chunks": chunks,
            "largest_relative_error": float(f"{max(off.values()):.2g}"),
          }
        ),
        flush=True,
      )
  print(json.dumps({"worst": float(f"{worst:.2g}")}))


if __name__ == "__main__":
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--errors", action="store_true")
  errors() if parser.parse_args().errors else memory_and_flops()
