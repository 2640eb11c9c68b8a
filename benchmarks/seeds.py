"""How far the seed alone moves a config: five runs that differ in nothing else.

    siglax ablate --config benchmarks/seeds.py --workdir studies/seeds
    siglax report studies/seeds
    siglax ablate --config benchmarks/seeds.py:config=configs/my.py --workdir studies/my

The seed draws the first parameters, the order of the examples, and what is random of them. The
report has the mean and the standard deviation over the five runs. A difference between two runs of
one seed each that is within a few of these says nothing of what else differs.
"""

from siglax import studies
from siglax.studies import bases


def get_study(config: str = "configs/quickstart.py"):
  return studies.Study(config, set=dict(bases.LEAN), seeds=(0, 1, 2, 3, 4))
