"""Texts to rows of tokens of one length."""

from __future__ import annotations

from collections.abc import Iterable
import os
import pathlib

import numpy as np

from siglax.config import parts
from siglax.data.text import finding
from siglax.data.text import sentencepiece_model
from siglax.data.text import tokenizer_json
from siglax.data.text.canonical import check_str
from siglax.data.text.kind import Kind
from siglax.data.text.kind import Options

KINDS: parts.Registry[Kind] = parts.Registry(
  "kind of tokenizer", (sentencepiece_model.KIND, tokenizer_json.KIND)
)


class TextProcessor:
  """Texts to int32 [N, length] tokens.

  tokenizer: path of a sentencepiece .model, of a tokenizer.json or of a folder that holds one of
  them; or "shapes", the built-in dataset's.
  length: tokens of each text, padded and truncated to it, those at its ends included.
  lowercase, strip_punctuation: a model trained with them must be used with them. None leaves it to
  the tokenizer: sentencepiece models have both, a tokenizer.json has its own rules.
  pad: what fills up: "eos", the end token; "pad", the tokenizer's padding token (SigLIP 2); "zero",
  token 0, whatever it stands for (open_clip's CLIP).
  kind: a Kind. vocab_size, eos_id, pad_id, unk_id: see kind.Tokenizer.
  Picklable, and one instance may serve many threads. Raises ValueError for a missing or damaged
  file, or a tokenizer without an end token.
  """

  def __init__(
    self,
    tokenizer="shapes",
    *,
    length: int = 64,
    lowercase: bool | None = None,
    strip_punctuation: bool | None = None,
    pad: str = "eos",
  ):
    self.tokenizer, self.length, self.pad = os.fspath(tokenizer), length, pad
    self.kind, source = finding.find(self.tokenizer, KINDS)
    self._tokenizer = self.kind.open(source, Options(length, lowercase, strip_punctuation))
    self.lowercase = self._tokenizer.lowercase
    self.strip_punctuation = self._tokenizer.strip_punctuation
    self.vocab_size, self.eos_id = self._tokenizer.vocab_size, self._tokenizer.eos_id
    self.unk_id = self._tokenizer.unk_id
    if length <= self._tokenizer.ends:
      least = self._tokenizer.ends + 1
      around = "the end token" if least == 2 else f"the {least - 1} tokens around it"
      raise ValueError(
        f"config.text.length={length} must be at least {least}: one token of text and {around}"
      )
    pads = {"eos": self.eos_id, "pad": self._tokenizer.pad_id, "zero": 0}
    if (pad_id := pads[pad]) is None:
      raise ValueError(
        f'config.text.pad="pad": config.text.tokenizer={self.tokenizer!r} has no padding token; '
        'use "eos"'
      )
    self.pad_id = pad_id

  def canonicalize(self, text: str) -> str:
    """The text as the tokenizer splits it; of a sentencepiece model, canonicalizing twice changes
    nothing.
    """
    return self._tokenizer.canonicalize(text)

  def __call__(self, texts: str | list[str]) -> np.ndarray:
    """int32 [N, length]; one str counts as a list of one. Errors as of check_str."""
    texts = [texts] if isinstance(texts, str) else texts
    tokens = np.full((len(texts), self.length), self.pad_id, np.int32)
    # One by one: for a list sentencepiece starts threads, which costs more than they save.
    for row, text in zip(tokens, texts):
      check_str(text)
      ids = self._tokenizer.encode(text)
      row[: len(ids)] = ids
    return tokens

  def piece(self, token: int) -> str:
    """The string that a token stands for."""
    return self._tokenizer.piece(token)

  def decode(self, tokens) -> str:
    """The text that the tokens of one text stand for, up to its end: what a model gets of it."""
    ids = [int(token) for token in tokens]
    # Token 0 may be a letter where it only fills up.
    stops = {self.eos_id} if self.pad == "zero" else {self.eos_id, self.pad_id}
    ends = [ids.index(end) for end in stops if end in ids]
    return self._tokenizer.decode(ids[: min(ends, default=len(ids))])

  @property
  def files(self) -> dict[str, bytes]:
    """{name: bytes} of the files that open it again, from a folder that holds them."""
    return self._tokenizer.files()

  @property
  def file(self) -> str:
    """The name of its own file among `files`; the others say more of it."""
    return self.kind.names[0]

  def save(self, path, *, padded: bool = False):
    """Writes its own file, which `tokenizer=path` reads back; of a tokenizer.json with all that was
    asked of it. padded: then its texts have `length` tokens in other libraries too.
    """
    pathlib.Path(path).write_bytes(self._tokenizer.alone(self.pad_id if padded else None))


def train_tokenizer(
  texts: Iterable[str],
  out,
  vocab_size: int,
  *,
  kind: str = sentencepiece_model.KIND.name,
  lowercase: bool = True,
  strip_punctuation: bool = True,
) -> None:
  """Trains a tokenizer of a kind on texts and writes it to the path `out`.

  The same texts in the same order give the same bytes. Raises ValueError for no text, or a
  vocabulary too large or too small for it.
  """
  data = KINDS[kind].train(texts, vocab_size, lowercase, strip_punctuation)
  pathlib.Path(out).write_bytes(data)
