"""Eight virtual CPU devices for every test, and programs that compile in half of the time, in a
cache for its processes; set before jax is imported.
"""

import atexit
import os
import shutil
import socket
import subprocess
import sys
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# The workers share that of the process which started them
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="siglax-tests-")
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
  atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

# Tests compile for minutes and compute for seconds. An XLA that does not know a flag ends its
# process, so that another one is asked first; the workers get what it said.
FAST_COMPILATION = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


def _is_known(flags: str) -> bool:
  program = [sys.executable, "-c", "import jax; jax.devices()"]
  environment = os.environ | {"XLA_FLAGS": flags}
  return subprocess.run(program, env=environment, capture_output=True).returncode == 0


if "XLA_FLAGS" not in os.environ:
  os.environ["XLA_FLAGS"] = FAST_COMPILATION if _is_known(FAST_COMPILATION) else ""


def free_port() -> int:
  """Where a process group's coordinator may listen."""
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]
