"""What jax needs of SLURM, without siglax: the processes find each other and add up their ranks.
Run by tests/slurm/run.sh.
"""

import os

import jax
import jax.numpy as jnp

jax.distributed.initialize(heartbeat_timeout_seconds=10, shutdown_timeout_seconds=10)
count = jax.process_count()
assert count == int(os.environ["SLURM_NTASKS"]), (count, os.environ["SLURM_NTASKS"])
assert jax.process_index() == int(os.environ["SLURM_PROCID"])
mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
rows = jax.make_array_from_process_local_data(
  jax.NamedSharding(mesh, jax.P("data")), jnp.arange(1.0) + jax.process_index()
)
total = jax.jit(
  jax.shard_map(
    lambda x: jax.lax.psum(x.sum(), "data"), mesh=mesh, in_specs=jax.P("data"), out_specs=jax.P()
  )
)(rows)
assert total == count * (count - 1) / 2, total
print(
  f"process {jax.process_index()} of {count} on {jax.device_count()} {jax.devices()[0].platform} "
  f"devices: psum {float(total)}"
)
jax.distributed.shutdown()
