"""How many cores this process may use."""

from __future__ import annotations

import math
import os
import pathlib


def usable() -> int:
  """Cores of this process: of its affinity, and no more than the CPU quota of its cgroup."""
  count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
  return max(1, math.ceil(min(count, quota())))


def quota(root: str = "/") -> float:
  """Cores' worth of time that the cgroups of this process allow, the strictest of each and those
  above it; infinity where none limits it.

  root: the folder that holds proc and sys.
  """
  base = pathlib.Path(root)
  try:
    lines = (base / "proc/self/cgroup").read_text().splitlines()
  except OSError:  # not Linux
    return math.inf
  least = math.inf
  for line in lines:
    _, controllers, path = line.split(":", 2)
    if not controllers:
      top, read = base / "sys/fs/cgroup", _version_2
    elif "cpu" in controllers.split(","):
      top, read = base / "sys/fs/cgroup/cpu", _version_1
    else:
      continue
    folder = top / path.lstrip("/")
    # In a container the path may be the host's, which is not there; its own group is at the top.
    for folder in [folder, *folder.parents]:
      least = min(least, read(folder))
      if folder == top:
        break
  return least


def _version_2(folder: pathlib.Path) -> float:
  try:
    allowed, period = (folder / "cpu.max").read_text().split()
    return math.inf if allowed == "max" else int(allowed) / int(period)
  except (OSError, ValueError):
    return math.inf


def _version_1(folder: pathlib.Path) -> float:
  try:
    allowed = int((folder / "cpu.cfs_quota_us").read_text())
    period = int((folder / "cpu.cfs_period_us").read_text())
  except (OSError, ValueError):
    return math.inf
  return allowed / period if allowed > 0 else math.inf
