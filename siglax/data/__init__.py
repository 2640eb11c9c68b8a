"""Data: sources of examples, their images and captions, and batches of them.

A source of one's own is a `Source` that a file given by --import registers in SOURCES:
docs/recipes/source.md.
"""

from siglax.data import embeddings
from siglax.data.examples import EvalExamples
from siglax.data.images import decode
from siglax.data.images import resize
from siglax.data.labels import same_label
from siglax.data.order import Fingerprint
from siglax.data.pipeline import TrainBatches
from siglax.data.pipeline import num_examples
from siglax.data.pipeline import open_data
from siglax.data.pipeline import train_batches
from siglax.data.source import Source
from siglax.data.sources import SOURCES
from siglax.data.sources import open_source
from siglax.data.sources import validate_spec
