"""The config of a run: its fields (declared/, fields.py), files and command lines that change them
(editing.py), checks of single fields (types.py) and of several (checks.py).

A config file (`configs/*.py`) defines `get_config(**arguments)`, starts from `default()` and
changes what it needs. The command line changes single fields:

    siglax train --config configs/quickstart.py --config.optim.lr=3e-4 --config.data.0.examples=5000

The config is an `ml_collections.ConfigDict`: locked (no unknown field) and typed.
A field that is None by default and may be set is a placeholder of its type.
Durations are a name and a unit (`total_steps`, `total_examples`, `total_epochs`);
exactly one unit is set, and setting another on the command line replaces the file's.
"""

from siglax.config.durations import UNITS
from siglax.config.durations import duration_steps
from siglax.config.editing import differences
from siglax.config.editing import from_json
from siglax.config.editing import load
from siglax.config.editing import override
from siglax.config.editing import parse
from siglax.config.editing import read
from siglax.config.editing import replaced
from siglax.config.editing import set_duration
from siglax.config.editing import set_field
from siglax.config.editing import to_json
from siglax.config.fields import DURATIONS
from siglax.config.fields import default
from siglax.config.fields import unset_inherited
from siglax.config.imports import import_parts
from siglax.config.parts import Field
from siglax.config.resolving import check_vocabulary
from siglax.config.resolving import fill_text
from siglax.config.resolving import resolve
from siglax.config.types import check_values
from siglax.config.values import check_local
from siglax.config.values import check_path
from siglax.config.values import flatten
from siglax.config.values import get
from siglax.config.values import leaves
from siglax.config.values import shown
from siglax.config.values import step_range
