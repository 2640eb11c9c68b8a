"""sentencepiece models, as SigLIP's: a text is canonicalized, split, and ended by the end token.

Padded with the end token too, as the released SigLIP models are, the last position, where SigLIP
pools, is always an end token ("sticky").
"""

from __future__ import annotations

from collections.abc import Iterable
import io
import re
import string

import sentencepiece

from siglax.data.text.canonical import canonicalize
from siglax.data.text.kind import Kind
from siglax.data.text.kind import Options
from siglax.data.text.kind import Source

BYTE_FALLBACK_VOCAB = (
  1024  # from here on, 256 pieces are spent on bytes, so that no text is unknown
)


class Pieces:
  """A model in use. SigLIP's rules hold where nobody asks for others: lower case, without
  punctuation.
  """

  ends = 1

  def __init__(self, source: Source, options: Options):
    self._pieces, self._last = _open(source), options.length - 1
    self.lowercase = options.lowercase is not False
    self.strip_punctuation = options.strip_punctuation is not False
    self.vocab_size, self.unk_id = self._pieces.get_piece_size(), self._pieces.unk_id()
    self.eos_id, pad_id = self._pieces.eos_id(), self._pieces.pad_id()
    self.pad_id = None if pad_id < 0 else pad_id
    if self.eos_id < 0:
      raise ValueError(f"{source.field} has no end token (eos); give a model trained with one")

  def canonicalize(self, text: str) -> str:
    return canonicalize(text, lowercase=self.lowercase, strip_punctuation=self.strip_punctuation)

  def encode(self, text: str) -> list[int]:
    return [*self._pieces.encode(self.canonicalize(text))[: self._last], self.eos_id]

  def decode(self, tokens: list[int]) -> str:
    return self._pieces.decode(tokens)

  def piece(self, token: int) -> str:
    return self._pieces.id_to_piece(token)

  def files(self) -> dict[str, bytes]:
    return {KIND.names[0]: self.alone()}

  def alone(self, pad_id: int | None = None) -> bytes:
    del pad_id  # it has no place for options
    return self._pieces.serialized_model_proto()


def _open(source: Source) -> sentencepiece.SentencePieceProcessor:
  data = source.data
  try:
    pieces = sentencepiece.SentencePieceProcessor(model_proto=data) if data else None
  except RuntimeError:
    pieces = None
  if pieces is None:
    raise source.error(f"({len(data)} bytes) is not a sentencepiece model, or is damaged")
  return pieces


def _train(
  texts: Iterable[str], vocab_size: int, lowercase: bool, strip_punctuation: bool
) -> bytes:
  """A unigram model of canonicalized texts.

  Ids as in SigLIP's own: padding 0 (unused: the end token pads), end 1, unknown 2, no begin token.
  ASCII letters and digits are always in; from a vocabulary of 1024 on, other characters fall back
  to bytes.
  """
  canonical = (
    canonicalize(t, lowercase=lowercase, strip_punctuation=strip_punctuation) for t in texts
  )
  letters = string.ascii_lowercase if lowercase else string.ascii_letters
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=_with_words(canonical),
      model_writer=model,
      model_type="unigram",
      vocab_size=vocab_size,
      byte_fallback=vocab_size >= BYTE_FALLBACK_VOCAB,
      required_chars=letters + string.digits,
      pad_id=0,
      eos_id=1,
      unk_id=2,
      bos_id=-1,
      num_threads=1,  # sums in one order: the same model on every machine
      minloglevel=2,
    )
  except RuntimeError as e:
    raise ValueError(_why(str(e), vocab_size)) from None
  return model.getvalue()


def _with_words(texts):
  """Each text, and each new word of it as a line of its own.

  sentencepiece starts from the strings that repeat and go on differently. A word that only ever
  stands before another word, as in captions made from templates, goes on with a space each time, so
  it would start as "word " and, because no piece spans words, be lost whole. One line that ends
  after the word keeps it.
  """
  known = set()
  for text in filter(None, texts):
    yield text
    for word in text.split():
      if word not in known:
        known.add(word)
        yield word


def _why(error, vocab_size):
  """One line of sentencepiece's reason to refuse a training."""
  if "sentences_.empty()" in error:
    return "no text to train a tokenizer on: every text was empty, or there was none"
  if most := re.search(r"too high .*<= (\d+)", error):
    largest = int(most[1])
    if vocab_size >= BYTE_FALLBACK_VOCAB > largest:
      largest -= 256  # so small a vocabulary holds no bytes
    return (
      f"vocab_size={vocab_size} is more than these texts fill; use {largest} or less, or give more "
      "texts"
    )
  if least := re.search(r"required_chars\. \d+ vs (\d+)", error):
    return (
      f"vocab_size={vocab_size} is too small for the characters of these texts; use {least[1]} or "
      "more"
    )
  return f"vocab_size={vocab_size}: sentencepiece refuses: {' '.join(error.split())}"


KIND = Kind(
  name="sentencepiece",
  doc="a sentencepiece model",
  suffix=".model",
  names=("tokenizer.model", "spiece.model"),
  open=Pieces,
  train=_train,
)
