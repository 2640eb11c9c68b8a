"""One of two processes of four devices: ring and gather against float64, and an evaluation on a
mesh that lists the devices of both in turn, over gloo. `python loss_process.py RANK PORT`.
"""

import json
import os
import sys
import types

os.environ["JAX_PLATFORMS"], os.environ["JAX_NUM_CPU_DEVICES"] = "cpu", "4"

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

import oracles


def main(rank, port):
  jax.distributed.initialize(
    f"127.0.0.1:{port}", 2, rank, heartbeat_timeout_seconds=10, shutdown_timeout_seconds=10
  )
  from siglax import losses
  from siglax import tower
  from siglax.devices import mesh as mesh_lib

  mesh = mesh_lib.make(4, 2)
  rows = NamedSharding(mesh, P(mesh_lib.BATCH_AXES))
  batch = oracles.batch(8 * 12, 64)
  put = lambda x, dtype: jax.make_array_from_callback(
    x.shape, rows, lambda i: np.asarray(x[i], dtype)
  )
  zimg, ztxt, w = (put(x, np.float32) for x in batch[:3])
  labels = put(batch[3], np.int32)
  worst = {}
  for name, loss, oracle, scalars in (
    ("sigmoid", losses.sigmoid_loss, oracles.sigmoid, (10.0, -3.0)),
    ("softmax", losses.softmax_loss, oracles.softmax, (10.0,)),
  ):
    want = oracle(*batch[:2], 10.0, -3.0, *batch[2:])
    want = (want[0], *want[1])
    for impl in ("ring", "gather"):

      def value_and_grad(zimg, ztxt, weights, labels, *scalars):
        outer = lambda zimg, ztxt, *scalars: (
          3
          * loss(
            zimg,
            ztxt,
            *scalars,
            mesh=mesh,
            axis=mesh_lib.BATCH_AXES,
            impl=impl,
            tile=5,
            weights=weights,
            labels=labels,
          )
        )
        return jax.value_and_grad(outer, tuple(range(2 + len(scalars))))(zimg, ztxt, *scalars)

      value, grads = jax.jit(value_and_grad)(zimg, ztxt, w, labels, *map(jnp.float32, scalars))
      errors = []
      for got, x in zip((value, *grads), want):
        for shard in got.addressable_shards:  # each process holds its own half of the truth
          errors.append(
            np.abs(np.asarray(shard.data) - 3 * np.asarray(x)[shard.index]).max()
            / np.abs(3 * x).max()
          )
      worst[f"{name} {impl}"] = float(max(errors))
  in_turn = jax.sharding.Mesh(
    np.array(jax.devices())[[0, 4, 1, 5, 6, 2, 3, 7]].reshape(4, 2), mesh_lib.BATCH_AXES
  )
  same = lambda params, x: x
  counts = types.SimpleNamespace(embed_image=same, embed_text=same, embed_dim=1)
  embedder = tower.Embedder(counts, {}, None, in_turn, batch_size=16)
  worst["order"] = float(
    np.abs(embedder.images(lambda k: np.float32([k]), 21)[:, 0] - np.arange(21)).max()
  )
  print(json.dumps(worst))


if __name__ == "__main__":
  main(int(sys.argv[1]), int(sys.argv[2]))
