"""`python -m siglax.data.shapes OUT.model`."""

import pathlib
import sys

from siglax.data.shapes.dataset import make_tokenizer

if __name__ == "__main__":
  if len(sys.argv) != 2:
    sys.exit("usage: python -m siglax.data.shapes OUT.model")
  make_tokenizer(pathlib.Path(sys.argv[1]))
