"""What a kind of tokenizer declares of itself. siglax/data/text/__init__.py lists the kinds."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
import dataclasses
from typing import Protocol


@dataclasses.dataclass(frozen=True)
class Source:
  """A tokenizer's file, read. field: such as config.text.tokenizer='a.model', with which messages
  begin. path: of the file. beside: (name) → the bytes of another file of its folder, None where
  there is none.
  """

  field: str
  path: str
  data: bytes
  beside: Callable[[str], bytes | None]

  def error(self, what: str) -> ValueError:
    return ValueError(f"{self.field}: {self.path} {what}")


@dataclasses.dataclass(frozen=True)
class Options:
  """What config.text asks of a tokenizer. lowercase, strip_punctuation: None leaves it to the
  tokenizer.
  """

  length: int
  lowercase: bool | None
  strip_punctuation: bool | None


class Tokenizer(Protocol):
  """A tokenizer in use. It is picklable, and one instance serves many threads.

  vocab_size: one more than the highest token. eos_id, pad_id, unk_id: its end token, and those of
  padding and of what it does not know, where it has them. ends: how many tokens stand around a
  text. lowercase, strip_punctuation: what it does to a text, its own rules included.
  """

  vocab_size: int
  eos_id: int
  pad_id: int | None
  unk_id: int | None
  ends: int
  lowercase: bool
  strip_punctuation: bool

  def canonicalize(self, text: str) -> str:
    """The text as it is split."""
    ...

  def encode(self, text: str) -> list[int]:
    """At most `length` tokens, those around the text included."""
    ...

  def decode(self, tokens: list[int]) -> str:
    """The text that tokens stand for."""
    ...

  def piece(self, token: int) -> str:
    """The string that a token stands for."""
    ...

  def files(self) -> dict[str, bytes]:
    """{name: bytes} of what opens it again, with the same options."""
    ...

  def alone(self, pad_id: int | None = None) -> bytes:
    """Its file for other libraries, with as much of the options as it can say. pad_id: where it can
    say so, texts become `length` tokens, filled up with this one.
    """
    ...


@dataclasses.dataclass(frozen=True)
class Kind:
  """A kind of tokenizer.

  name: in `siglax tokenizer --kind`. doc: what it is, in a few words. suffix: of its files. names:
  of its file in a folder, the first in those that siglax writes.
  open: (source, options) → Tokenizer. It raises ValueError in one line, and executes nothing.
  train: (texts, vocab_size, lowercase, strip_punctuation) → the bytes of a file; the same texts in
  the same order give the same bytes. ValueError for no text, or a vocabulary too large or small.
  """

  name: str
  doc: str
  suffix: str
  names: tuple[str, ...]
  open: Callable[[Source, Options], Tokenizer]
  train: Callable[[Iterable[str], int, bool, bool], bytes]
