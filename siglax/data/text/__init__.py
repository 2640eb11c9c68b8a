"""Text to tokens, the same way in training, evaluation and export.

A kind of tokenizer is a file with a declaration (kind.py says what that holds) and its place in
KINDS; TextProcessor makes rows of one length with any of them. What happens to a text before it is
split, and which tokens stand around it, is the tokenizer's own: of a sentencepiece model SigLIP's
rules (sentencepiece_model.py), of a tokenizer.json those that it holds (tokenizer_json.py).
"""

from siglax.data.text.canonical import canonicalize
from siglax.data.text.finding import SHIPPED
from siglax.data.text.finding import names_in
from siglax.data.text.processor import KINDS
from siglax.data.text.processor import TextProcessor
from siglax.data.text.processor import train_tokenizer
