"""The devices that the runs of a study get, and what is told of the machine.

The process of `siglax ablate` itself computes on the CPU, so that it takes none of their memory. A
process that only asks JAX tells what devices there are: `python -m siglax.studies.environment`.
"""

from __future__ import annotations

from collections.abc import Mapping
import json
import os
import platform
import subprocess
import sys

# The shape of so many chips of a TPU host, for a process of its own.
TPU_BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}


def parse_devices(text: str | None) -> list[tuple[int, ...]]:
  """The sets of devices of "0,1;2,3", in each of which one run at a time is made; [()] of None, all
  devices.
  """
  if text is None:
    return [()]
  try:
    sets = [tuple(map(int, part.split(","))) for part in text.split(";")]
    numbers = [number for one in sets for number in one]
    if min(numbers) < 0:
      raise ValueError
  except ValueError:
    raise ValueError(
      f"--devices {text!r} must be numbers of devices, sets of them with ';' between: '0,1;2,3'"
    ) from None
  for number in numbers:
    if numbers.count(number) > 1:
      raise ValueError(f"--devices {text!r}: device {number} is there twice; sets share none")
  if len({len(one) for one in sets}) > 1:
    raise ValueError(f"--devices {text!r}: the sets must be of equal size")
  return sets


def variables(platform_name: str | None, devices: tuple[int, ...]) -> dict[str, str]:
  """Environment variables that show a process these devices alone. On CPUs they are cores, which
  siglax.commands.child.py takes.
  """
  numbers = ",".join(map(str, devices))
  if not devices or platform_name == "cpu":
    return {}
  if platform_name == "tpu":
    if len(devices) not in TPU_BOUNDS:
      raise ValueError(f"--devices: {len(devices)} chips of a TPU host; a set has 1, 2, 4 or 8")
    return {
      "TPU_VISIBLE_CHIPS": numbers,
      "TPU_CHIPS_PER_PROCESS_BOUNDS": TPU_BOUNDS[len(devices)],
      "TPU_PROCESS_BOUNDS": "1,1,1",
    }
  return {"CUDA_VISIBLE_DEVICES": numbers}  # ROCm reads it too


def check_there(platform_name: str, sets, environment: Mapping[str, str]):
  """ValueError if the machine lacks a device of the sets: every run on that set would fail."""
  numbers = [number for one in sets for number in one]
  if platform_name == "cpu" and sys.platform == "linux":
    if absent := sorted(set(numbers) - (cores := os.sched_getaffinity(0))):
      raise ValueError(
        f"--devices: there is no core {absent[0]}; this process has {', '.join(map(str, cores))}"
      )
  if platform_name in ("cuda", "gpu", "rocm"):
    # CUDA hides a device that does not exist, and all that follow it in the list.
    found = ask({**environment, **variables(platform_name, tuple(numbers))})
    if found["platform"] != platform_name or found["devices"] != len(numbers):
      raise ValueError(
        f"--devices names {len(numbers)} devices, of which JAX finds {found['devices']} of "
        f"{found['platform']}; leave out those that are not there"
      )


def ask(environment: Mapping[str, str]) -> dict[str, str | int]:
  """What a process with these variables finds: {"siglax", "jax", "python", "platform", "device",
  "devices": their number, "host", "cores"}. ValueError in one line where JAX finds no device.
  """
  done = subprocess.run(
    [sys.executable, "-m", "siglax.studies.environment"],
    env=dict(environment),
    capture_output=True,
    text=True,
  )
  if done.returncode:
    said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
    raise ValueError(f"JAX finds no devices for the runs: {said}")
  return json.loads(done.stdout.splitlines()[-1])


def _find() -> dict[str, str | int]:
  import jax

  import siglax

  device = jax.devices()[0]
  return {
    "siglax": str(siglax.__version__),
    "jax": jax.__version__,
    "python": platform.python_version(),
    "platform": device.platform,
    "device": device.device_kind,
    "devices": jax.local_device_count(),
    "host": platform.node(),
    "cores": os.cpu_count() or 1,
  }


if __name__ == "__main__":
  print(json.dumps(_find()))
