"""`siglax train` in a process of its own, which ends with the study that started it.

    python -m siglax.commands.child PARENT CORES train --config …

PARENT: the process of the study. CORES: those that this one may use, "0,1", or "all".
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, cores: str):
  if sys.platform == "linux":
    # A study that is killed leaves no run behind that would hold its folder.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was killed before
      sys.exit(1)
    if cores != "all":
      os.sched_setaffinity(0, {int(core) for core in cores.split(",")})


if __name__ == "__main__":
  main(int(sys.argv[1]), sys.argv[2])
  sys.argv[1:] = sys.argv[3:]
  from siglax.commands import cli  # after the cores are chosen: libraries count them

  sys.exit(cli.entry())
