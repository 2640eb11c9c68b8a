"""The command line of siglax with faults: `python tests/faults/child.py '{"failing_saves": {"kind":
"ENOSPC"}}' train …`.
"""

import contextlib
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(pathlib.Path(__file__).parent)]


def main() -> int:
  from siglax.commands import cli

  import inject

  faults = json.loads(sys.argv.pop(1))
  with contextlib.ExitStack() as stack:
    for name, arguments in faults.items():
      stack.enter_context(inject.FAULTS[name](**arguments))
    return cli.entry()


if __name__ == "__main__":
  sys.exit(main())
