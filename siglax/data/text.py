"""Text to tokens, the same way in training, evaluation and export.

A text is canonicalized (optionally lower-cased, ASCII punctuation removed, whitespace collapsed),
split by a sentencepiece model, cut to length − 1, ended by the end token and padded to the length
with it too, as the released SigLIP models are ("sticky": the last position, where SigLIP pools, is
always an end token).
"""

from __future__ import annotations

from collections.abc import Iterable
import io
import os
import pathlib
import re
import string

import numpy as np
import sentencepiece

from siglax.data import storage

SHIPPED = {"shapes": pathlib.Path(__file__).with_name("shapes.model")}
# Of a tokenizer's file; Gemma's 256,000 pieces take 4 MB.
MAX_BYTES = 2**26
BYTE_FALLBACK_VOCAB = (
  1024  # from here on, 256 pieces are spent on bytes, so that no text is unknown
)
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class TextProcessor:
  """Texts to int32 [N, length] tokens.

  tokenizer: path of a sentencepiece .model, or "shapes", the built-in dataset's.
  length: tokens of each text, padded and truncated to it, end token included.
  lowercase, strip_punctuation: see `canonicalize`; a model trained with them must be used with
  them.
  pad: "eos" fills up with the end token, "pad" with the tokenizer's padding token (SigLIP 2).
  vocab_size, eos_id: the model's number of pieces and its end token.
  Picklable, and one instance may serve many threads. Raises ValueError for a missing or damaged
  model, or one without an end token.
  """

  def __init__(
    self,
    tokenizer="shapes",
    *,
    length: int = 64,
    lowercase: bool = True,
    strip_punctuation: bool = True,
    pad: str = "eos",
  ):
    if length < 2:
      raise ValueError(
        f"config.text.length={length} must be at least 2: one token of text and the end token"
      )
    self.tokenizer = os.fspath(tokenizer)
    self.length, self.lowercase, self.strip_punctuation = length, lowercase, strip_punctuation
    self._pieces = _load(self.tokenizer)
    self.vocab_size = self._pieces.get_piece_size()
    self.eos_id = self._pieces.eos_id()
    if self.eos_id < 0:
      raise ValueError(
        f"config.text.tokenizer={self.tokenizer!r} has no end token (eos); give a model trained "
        "with one"
      )
    self.pad_id = self._pieces.pad_id() if pad == "pad" else self.eos_id
    if self.pad_id < 0:
      raise ValueError(
        f'config.text.pad="pad": config.text.tokenizer={self.tokenizer!r} has no padding token; '
        'use "eos"'
      )

  def canonicalize(self, text: str) -> str:
    """The text as the tokenizer sees it; canonicalizing twice changes nothing."""
    return canonicalize(text, lowercase=self.lowercase, strip_punctuation=self.strip_punctuation)

  def __call__(self, texts: str | list[str]) -> np.ndarray:
    """int32 [N, length]; one str counts as a list of one. TypeError for what is not a str."""
    texts = [texts] if isinstance(texts, str) else texts
    tokens = np.full((len(texts), self.length), self.pad_id, np.int32)
    # One by one: for a list it starts threads, which costs more than they save.
    for row, text in zip(tokens, texts):
      ids = self._pieces.encode(self.canonicalize(text))[: self.length - 1]
      row[: len(ids) + 1] = [*ids, self.eos_id]
    return tokens

  @property
  def unk_id(self) -> int:
    """The token of what the model has no piece for."""
    return self._pieces.unk_id()

  def piece(self, token: int) -> str:
    """The string that a token stands for."""
    return self._pieces.id_to_piece(token)

  def decode(self, tokens) -> str:
    """The text that the tokens of one text stand for, up to its end: what a model gets of it."""
    ids = [int(token) for token in tokens]
    ends = [ids.index(end) for end in {self.eos_id, self.pad_id} if end in ids]
    return self._pieces.decode(ids[: min(ends, default=len(ids))])

  @property
  def model(self) -> bytes:
    """The sentencepiece model."""
    return self._pieces.serialized_model_proto()

  def save(self, path):
    """Writes the sentencepiece model, which `tokenizer=path` reads back."""
    pathlib.Path(path).write_bytes(self.model)


def canonicalize(text: str, *, lowercase: bool = True, strip_punctuation: bool = True) -> str:
  """Optionally lower-cased and without ASCII punctuation; whitespace collapsed and stripped.

  The order and the set of characters are those of transformers' SiglipTokenizer. TypeError for what
  is not a str.
  """
  if not isinstance(text, str):
    raise TypeError(f"a text must be a str, not {type(text).__name__}")
  if lowercase:
    text = text.lower()
  if strip_punctuation:
    text = text.translate(_PUNCTUATION)
  return " ".join(text.split())


def train_tokenizer(
  texts: Iterable[str],
  out,
  vocab_size: int,
  *,
  lowercase: bool = True,
  strip_punctuation: bool = True,
) -> None:
  """Trains a sentencepiece unigram model on canonicalized texts and writes it to the path `out`.

  Ids as in SigLIP's own: padding 0 (unused: the end token pads), end 1, unknown 2, no begin token.
  ASCII letters and digits are always in; from a vocabulary of 1024 on, other characters fall back
  to bytes. The same texts in the same order give the same bytes. Raises ValueError for no text, or
  a vocabulary too large or too small for it.
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
  pathlib.Path(out).write_bytes(model.getvalue())


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


def _load(tokenizer):
  """The sentencepiece processor of a name or a path."""
  field = f"config.text.tokenizer={tokenizer!r}"
  path = SHIPPED.get(tokenizer) or pathlib.Path(tokenizer)
  if storage.is_url(tokenizer):
    try:
      return _pieces(storage.read_all(tokenizer, MAX_BYTES), field, tokenizer)
    except (ValueError, storage.Unreachable) as e:
      raise type(e)(f"{field}: {e}") from None
  if not os.path.isfile(path):
    raise ValueError(f"{field}: no such file; give a sentencepiece .model, or {', '.join(SHIPPED)}")
  if (size := path.stat().st_size) > MAX_BYTES:
    raise ValueError(
      f"{field}: {path} has {size} bytes, more than the {MAX_BYTES} of any sentencepiece model; "
      "give another file"
    )
  try:
    model = path.read_bytes()
  except OSError as e:
    raise ValueError(f"{field}: {path} cannot be read: {e.strerror}") from None
  return _pieces(model, field, path)


def _pieces(model: bytes, field: str, path):
  try:
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model) if model else None
  except RuntimeError:
    pieces = None
  if pieces is None:
    raise ValueError(
      f"{field}: {path} ({len(model)} bytes) is not a sentencepiece model, or is damaged"
    )
  return pieces
