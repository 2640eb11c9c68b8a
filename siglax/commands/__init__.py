"""The commands, in the order of `siglax --help`. A new one is a file with a COMMAND, and its line
here.
"""

from siglax.commands import ablate
from siglax.commands import average
from siglax.commands import classify
from siglax.commands import config
from siglax.commands import convert
from siglax.commands import embed
from siglax.commands import evaluate
from siglax.commands import export
from siglax.commands import inspect
from siglax.commands import plan
from siglax.commands import replay
from siglax.commands import report
from siglax.commands import search
from siglax.commands import tokenizer
from siglax.commands import train

COMMANDS = (
  train.COMMAND,
  ablate.COMMAND,
  evaluate.COMMAND,
  replay.COMMAND,
  embed.COMMAND,
  classify.COMMAND,
  search.COMMAND,
  export.COMMAND,
  average.COMMAND,
  tokenizer.COMMAND,
  convert.COMMAND,
  inspect.COMMAND,
  plan.COMMAND,
  report.COMMAND,
  config.COMMAND,
)
