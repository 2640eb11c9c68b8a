"""Data: sources of examples, their images and captions, and batches of them."""

from siglax.data import embeddings
from siglax.data.images import decode, resize
from siglax.data.pipeline import EvalExamples, TrainBatches, num_examples, open_data, same_label, train_batches
from siglax.data.sources import SOURCES, open_source, validate_spec
