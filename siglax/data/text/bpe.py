"""Trains a byte-level byte-pair encoding with CLIP's conventions, as a tokenizer.json.

Radford et al., arXiv 2103.00020: text is made lower case and cut into words by CLIP's pattern; a
word is its UTF-8 bytes, of which the last is another symbol ("</w>"), merged pair by pair. Ids: 256
bytes, 256 last bytes, the merges, <|startoftext|>, <|endoftext|>, so that the end token is the
highest.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
import json

import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import normalizers
from tokenizers import pre_tokenizers
from tokenizers import processors
from tokenizers import trainers

START, END = "<|startoftext|>", "<|endoftext|>"
LAST = "</w>"
PATTERN = (
  r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
# Stand for the last bytes of words while merges are counted. The library's own suffix would number
# them in an order that changes from run to run.
_FIRST_LAST = 0xE000
LEAST = 2 * 256 + 2


def train(texts: Iterable[str], vocab_size: int, lowercase: bool, strip_punctuation: bool) -> bytes:
  """The bytes of a tokenizer.json. Punctuation is kept always, as CLIP keeps it."""
  del strip_punctuation
  if vocab_size < LEAST:
    raise ValueError(
      f"vocab_size={vocab_size} is below {LEAST}: 256 bytes, 256 last bytes of words, and the two "
      "tokens around a text"
    )
  empty = _tokenizer([], [], lowercase)
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  lasts = {byte: chr(_FIRST_LAST + i) for i, byte in enumerate(alphabet)}
  counting = tokenizers.Tokenizer(models.BPE())
  counting.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size - 2,
    min_frequency=2,
    initial_alphabet=[*alphabet, *lasts.values()],
    limit_alphabet=2 * 256,
    show_progress=False,
  )
  seen = [0]
  counting.train_from_iterator(_words(texts, empty, lasts, seen), trainer)
  if not seen[0]:
    raise ValueError("no text to train a tokenizer on: every text was empty, or there was none")
  named = str.maketrans({last: byte + LAST for byte, last in lasts.items()})
  merges = [
    tuple(part.translate(named) for part in pair)
    for pair in json.loads(counting.to_str())["model"]["merges"]
  ]
  if len(merges) < vocab_size - LEAST:
    raise ValueError(
      f"vocab_size={vocab_size} is more than these texts fill; use {len(merges) + LEAST} or less, "
      "or give more texts"
    )
  symbols = [*alphabet, *(byte + LAST for byte in alphabet)]
  return _tokenizer(symbols, merges, lowercase).to_str(pretty=True).encode()


def _words(texts, tokenizer, lasts, seen: list[int]) -> Iterator[str]:
  """Each text as its words, of which the last byte is one of `lasts`; seen[0] counts them."""
  for text in texts:
    words = tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))
    seen[0] += len(words)
    yield " ".join(word[:-1] + lasts[word[-1]] for word, _ in words)


def _tokenizer(symbols: list[str], merges: list[tuple[str, ...]], lowercase: bool):
  """As transformers' CLIPTokenizer makes it of a vocabulary and merges."""
  tokens = [*symbols, *("".join(pair) for pair in merges), START, END]
  ids = {token: i for i, token in enumerate(tokens)}
  tokenizer = tokenizers.Tokenizer(
    models.BPE(
      vocab=ids,
      merges=merges,
      continuing_subword_prefix="",
      end_of_word_suffix=LAST,
      fuse_unk=False,
      unk_token=END,
    )
  )
  steps = [normalizers.NFC(), normalizers.Replace(tokenizers.Regex(r"\s+"), " ")]
  tokenizer.normalizer = normalizers.Sequence([*steps, *[normalizers.Lowercase()] * lowercase])
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(PATTERN), behavior="removed", invert=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  tokenizer.post_processor = processors.RobertaProcessing(
    (END, ids[END]), (START, ids[START]), trim_offsets=False, add_prefix_space=False
  )
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.add_special_tokens([START, END])
  return tokenizer
