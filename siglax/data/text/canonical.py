"""SigLIP's canonical form of a text."""

from __future__ import annotations

import string

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def canonicalize(text: str, *, lowercase: bool = True, strip_punctuation: bool = True) -> str:
  """Optionally lower-cased and without ASCII punctuation; whitespace collapsed and stripped.

  The order and the set of characters are those of transformers' SiglipTokenizer. TypeError for what
  is not a str.
  """
  check_str(text)
  if lowercase:
    text = text.lower()
  if strip_punctuation:
    text = text.translate(_PUNCTUATION)
  return " ".join(text.split())


def check_str(text):
  """TypeError for what is not a str, ValueError for half a character, which no tokenizer takes."""
  if not isinstance(text, str):
    raise TypeError(f"a text must be a str, not {type(text).__name__}")
  try:
    text.encode()
  except UnicodeEncodeError as e:
    raise ValueError(
      f"the text {text[:60]!r} is no Unicode: {text[e.start]!r} at {e.start} is half a character, "
      "or a byte that is no UTF-8; repair it"
    ) from None
