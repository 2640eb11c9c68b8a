#!/usr/bin/env bash
# The quickstart in a virtual environment of its own: installs siglax, trains the built-in dataset, leaves runs/quickstart.
set -euo pipefail
cd "$(dirname "$0")/.."
python3 -m venv .venv
.venv/bin/pip install -q -e .
.venv/bin/siglax train --config configs/quickstart.py --workdir runs/quickstart "$@"
