"""What a save costs: its digest, the check that its state is finite, and the whole of it.

    python benchmarks/checkpoint.py                       the quickstart's state
    python benchmarks/checkpoint.py --config configs/siglip_b16.py --repeat 3

Prints medians, one line of JSON last: seconds of the digest alone, of digest and check in one pass
as a save makes them, of a save until it is on disk, of what of it the training waits for, and the
share of the check in the whole.
"""

import argparse
import json
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from step import parse  # benchmarks/step.py
from step import prepare  # benchmarks/step.py

from siglax.runs import checkpoint
from siglax.runs import digest


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--config", default="configs/quickstart.py")
  parser.add_argument("--repeat", type=int, default=20)
  arguments, config = parse(parser, None)
  _, _, state, _ = prepare(config)
  leaves = jax.tree.leaves(state)
  digest_alone = jax.jit(lambda leaves: jnp.stack([digest.leaf_digest(x) for x in leaves]))
  # In turns, so that what else the machine does hits all alike.
  seconds = {"digest": [], "digest_and_check": [], "save": [], "save_blocks": []}
  with tempfile.TemporaryDirectory() as folder:
    checkpoints = checkpoint.Checkpoints(folder, config.checkpoint)
    for i in range(arguments.repeat + 1):
      for name, function in (
        ("digest", lambda: jax.device_get(digest_alone(leaves))),
        # pylint: disable=protected-access
        ("digest_and_check", lambda: jax.device_get(digest._inspect(leaves))),
        (
          "save_blocks",
          lambda: checkpoints.save(
            i + 1, state.replace(step=jax.device_put(np.int32(i + 1), state.step.sharding)), {}
          ),
        ),
      ):
        begin = time.perf_counter()
        function()
        seconds[name].append(time.perf_counter() - begin)
      checkpoints.wait()
      seconds["save"].append(time.perf_counter() - begin)
    checkpoints.close()
  # The first compiles
  medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
  check = statistics.median(
    b - a for a, b in zip(seconds["digest"][1:], seconds["digest_and_check"][1:])
  )
  size = sum(x.size * x.dtype.itemsize for x in leaves)
  print(
    json.dumps(
      {
        "device": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
        "state_bytes": size,
        "leaves": len(leaves),
        **{f"{name}_seconds": round(value, 5) for name, value in medians.items()},
        "check_seconds": round(check, 6),
        "check_share_of_save": round(check / medians["save"], 5),
      }
    )
  )


if __name__ == "__main__":
  main()
