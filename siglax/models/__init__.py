"""The towers: pure functions over a dict of parameters. towers.py lists them."""

from siglax.models.tower import Tower
from siglax.models.towers import BY_KIND
from siglax.models.towers import IMAGE_TOWERS
from siglax.models.towers import TEXT_TOWERS
from siglax.models.towers import check_fit
from siglax.models.towers import declared
from siglax.models.two_towers import TOWERS
from siglax.models.two_towers import TwoTowers
from siglax.models.two_towers import is_statistic
from siglax.models.two_towers import plain
from siglax.models.two_towers import plain_params
from siglax.models.two_towers import scale_and_bias
from siglax.models.two_towers import stack_blocks
from siglax.models.two_towers import with_bias


def build(config, towers: tuple[str, ...] = TOWERS) -> TwoTowers:
  """The two towers of `config.model`, or one of them; see TwoTowers."""
  return TwoTowers(config, towers)
