"""Studies: many runs that differ in a few fields, and what they show.

A study file (configs/ablate/*.py) defines `get_study(**arguments)`, which returns a `Study`.
`siglax ablate` makes its runs in a study folder (folder.py says what that holds).
"""

from siglax.studies.study import Branches
from siglax.studies.study import Study
