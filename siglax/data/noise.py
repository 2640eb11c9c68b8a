"""Noise of a data spec: a share of the examples whose picture, texts or pairing is spoilt, to learn
what a training bears (SigLIP, arXiv 2303.15343, section 4.10).

Which examples these are, and what becomes of them, depends on noise_seed and their number alone: it
is the same in every epoch. The shares are exact, and a larger share spoils those of a smaller one
and more.
"""

from __future__ import annotations

from collections.abc import Mapping
import logging

import numpy as np

from siglax.config.parts import Field
from siglax.data import images
from siglax.data.filters import Wrapped

logger = logging.getLogger("siglax")

# Of every data spec.
FIELDS = {
  "noise_images": Field(
    0.0,
    "share of the examples whose picture is random pixels, each as likely, of the picture's size",
    least=0,
    most=1,
  ),
  "noise_texts": Field(
    0.0,
    "share of the examples whose captions are random words of letters, as many as they have",
    least=0,
    most=1,
  ),
  "noise_pairs": Field(
    0.0,
    "share of the examples that trade their captions among themselves, so that none keeps its own; "
    "a label stays with its picture",
    least=0,
    most=1,
  ),
  "noise_seed": Field(0, "of the choice of these examples, and of their noise", least=0),
}
KINDS = ("noise_images", "noise_texts", "noise_pairs")
WORD_LENGTHS = (2, 9)
LETTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", np.uint8)


class Noisy(Wrapped):
  """The examples of a source, some of them spoilt. shares: {kind of noise: share}.

  The choice takes 24 bytes an example that is spoilt, and 16 an example while it is made.
  """

  def __init__(self, source, shares: Mapping[str, float], seed: int):
    super().__init__(source)
    self.shares, self.seed = dict(shares), seed
    self.chosen = {
      kind: _Chosen(len(source), share, self._key(kind)) for kind, share in shares.items()
    }
    if (sizes := getattr(source, "shard_sizes", None)) is not None:
      self.shard_sizes = sizes

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, i: int) -> dict:
    example = self.source[i]
    if (other := self._place("noise_pairs", i)) is not None:
      of_other = self.source[self.chosen["noise_pairs"].next(other)]
      parts = [part for part in ("captions", "caption_weights") if part in example]
      example = example | {part: of_other[part] for part in parts}
    if self._place("noise_texts", i) is not None:
      captions = example["captions"]
      texts = [
        _words(len(x.split()), self._random("noise_texts", i, k)) for k, x in enumerate(captions)
      ]
      example = example | {"captions": texts}
    if self._place("noise_images", i) is not None:
      example = example | {"image": _pixels(example["image"], self._random("noise_images", i))}
    return example

  def _place(self, kind: str, i: int) -> int | None:
    """Among the examples that a kind of noise spoils; None for one that it leaves."""
    return self.chosen[kind].place(i) if kind in self.chosen else None

  def _key(self, kind: str) -> list[int]:
    return [self.seed, KINDS.index(kind)]

  def _random(self, kind: str, *numbers: int) -> np.random.Philox:
    """Bits that no version of NumPy changes."""
    return np.random.Philox(np.random.SeedSequence([*self._key(kind), *numbers]))

  def __reduce__(self):
    return Noisy, (self.source, self.shares, self.seed)


class _Chosen:
  """An exact share of n examples, at random. seed: whole numbers."""

  def __init__(self, n: int, share: float, seed: list[int]):
    bits = np.random.Philox(np.random.SeedSequence(seed)).random_raw(n)
    self._numbers = np.argsort(bits, kind="stable")[: round(share * n)].copy()
    self._places = np.argsort(self._numbers)
    self._sorted = self._numbers[self._places]

  def __len__(self) -> int:
    return len(self._numbers)

  def place(self, i: int) -> int | None:
    at = int(np.searchsorted(self._sorted, i))
    return int(self._places[at]) if at < len(self) and self._sorted[at] == i else None

  def next(self, place: int) -> int:
    """The example at the next place, of the last one that at the first."""
    return int(self._numbers[(place + 1) % len(self)])


def _words(count: int, random: np.random.Philox) -> str:
  """So many words of letters."""
  least, most = WORD_LENGTHS
  lengths = least + random.random_raw(max(count, 1)) % (most - least + 1)
  letters = LETTERS[random.random_raw(int(lengths.sum())) % len(LETTERS)].tobytes().decode()
  ends = np.cumsum(lengths).tolist()
  return " ".join(letters[start:end] for start, end in zip([0, *ends], ends))


def _pixels(picture, random: np.random.Philox) -> np.ndarray:
  """uint8 [height, width, 3] of the size of a picture, encoded or not."""
  if isinstance(picture, np.ndarray):
    height, width = picture.shape[:2]
  else:
    width, height = images.read_header(picture).size
  count = height * width * 3
  return random.random_raw(-(-count // 8)).view(np.uint8)[:count].reshape(height, width, 3)


def opened(source, spec: Mapping, where: str):
  """The source, with the noise of its spec; the log tells how much. where: before the name of a
  field in the log.
  """
  shares = {kind: spec[kind] for kind in KINDS if spec.get(kind)}
  if not shares:
    return source
  found = Noisy(source, shares, spec.get("noise_seed", FIELDS["noise_seed"].default))
  told = ", ".join(f"{kind} {len(found.chosen[kind]):,}" for kind in shares)
  logger.info("%sexamples that are spoilt, of %s: %s", where, f"{len(source):,}", told)
  return found
