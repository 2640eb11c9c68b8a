"""The memory of a host and of its devices, and its cache of compiled programs."""

from __future__ import annotations

import ctypes
import glob
import hashlib
import os
import pathlib
import platform
import sys

import jax


def keep_freed_memory():
  """On a machine of CPUs only, has glibc keep freed buffers for the next step. Call before jax
  makes its devices.

  XLA's CPU client allocates its temporaries anew each step; by default glibc returns them to the
  system, which then zeroes every page again: a quarter of a small step's time (benchmarks/step.py
  --config configs/quickstart.py).
  """
  accelerators = [
    device
    for pattern in ("nvidia[0-9]*", "accel*", "vfio/*")
    for device in glob.glob(f"/dev/{pattern}")
  ]
  libc = ctypes.CDLL(None) if sys.platform == "linux" and not accelerators else None
  if hasattr(libc, "mallopt"):  # musl has none
    # M_ARENA_MAX: all threads share one heap; those of their own are unmapped when empty
    libc.mallopt(-8, 1)
    libc.mallopt(-4, 0)  # M_MMAP_MAX: no mappings, so everything comes from the heap
    # M_TRIM_THRESHOLD: the heap keeps up to 2 GiB of free memory at its end
    libc.mallopt(-1, 2**31 - 1)


def keep_compiled_programs():
  """Keeps compiled programs in the user's cache folder, so that a run that resumes or repeats
  starts at once.

  JAX_COMPILATION_CACHE_DIR names another folder. The default one is private and this kind of
  machine's own: XLA compiles for the CPU at hand.
  """
  if jax.config.jax_compilation_cache_dir is None:
    machine = hashlib.sha256(
      f"{platform.machine()} {platform.processor()} {_cpu_flags()}".encode()
    ).hexdigest()[:12]
    try:
      cache = (
        pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "siglax"
      )
      folder = cache / f"xla-{machine}"
      folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):
      return  # no home, or one that cannot be written
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _cpu_flags() -> str:
  file = pathlib.Path("/proc/cpuinfo")
  lines = file.read_text().splitlines() if file.exists() else []
  return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def memory() -> int:
  """Bytes of this machine."""
  return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def peak_bytes() -> int | None:
  """The most bytes that a device of this process had in use at a time; None where none of them
  tells, as CPUs do not.
  """
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  return max((x["peak_bytes_in_use"] for x in stats if "peak_bytes_in_use" in x), default=None)
