"""A sentencepiece model as a tokenizer.json that makes the same tokens.

For texts that transformers' SiglipTokenizer, which opens the model itself, has no place for: it
removes punctuation always, and pads with the end token.

sentencepiece normalises by a table of strings (its charsmap, NFKC and a little more), of which the
longest that fits is replaced. The tokenizers library has that table too, but takes the shortest of
each grapheme; its NFKC orders and joins accents over any distance. So a character that is in no
text is put behind each string that the table replaces at once. Then NFKC sees one string at a time,
and the table replaces what NFKC does not know.
"""

from __future__ import annotations

import collections
import re
import string
import struct
import unicodedata

import numpy as np
from sentencepiece import sentencepiece_model_pb2
import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import normalizers
from tokenizers import pre_tokenizers
from tokenizers import processors

from siglax.data import text as text_lib

UNIGRAM, BPE = 1, 2  # trainer_spec.model_type
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)  # the types of pieces
SPACE = "▁"
# No characters of any text (Unicode's noncharacters): behind a string that is replaced at once, and
# from _KEPT on in the place of characters that NFKC replaces and the table does not.
_BEHIND, _KEPT, _MOST_KEPT = "\ufdd0", 0xFDD1, 31
_SPACES = "".join(c for c in map(chr, range(0x3001)) if c.isspace())


def _proto(text: text_lib.TextProcessor):
  data = text.files[text.file]
  return sentencepiece_model_pb2.ModelProto.FromString(data)


def converts(text: text_lib.TextProcessor) -> bool:
  """Whether a sentencepiece model has a tokenizer.json of the same tokens."""
  proto = _proto(text)
  kinds = {piece.type for piece in proto.pieces}
  of_model = {UNIGRAM: {USER, UNUSED}, BPE: {UNUSED}}.get(proto.trainer_spec.model_type)
  spec = proto.normalizer_spec
  return (
    of_model is not None
    and not kinds & of_model
    and spec.escape_whitespaces
    and not proto.trainer_spec.treat_whitespace_as_suffix
  )


def converted(text: text_lib.TextProcessor) -> bytes:
  """The tokenizer.json of a sentencepiece model that `converts`. A piece that is no text, such as
  the end token, spelled out in a text is that token there.
  """
  proto = _proto(text)
  tokenizer = tokenizers.Tokenizer(_model(proto))
  tokenizer.normalizer = normalizers.Sequence(
    [*_canonical(text), *_charsmap(proto.normalizer_spec), *_whitespace(proto.normalizer_spec)]
  )
  user = sorted((p.piece for p in proto.pieces if p.type == USER), key=len, reverse=True)
  if user:
    pattern = tokenizers.Regex("|".join(map(re.escape, user)))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, behavior="isolated")
  end = text.piece(text.eos_id)
  tokenizer.post_processor = processors.TemplateProcessing(
    single=f"$A {end}", special_tokens=[(end, text.eos_id)]
  )
  decoding = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
  if proto.normalizer_spec.add_dummy_prefix:
    decoding.append(decoders.Strip(content=" ", left=1, right=0))
  tokenizer.decoder = decoders.Sequence(decoding)
  return tokenizer.to_str(pretty=True).encode()


def _model(proto):
  pieces, byte_fallback = proto.pieces, proto.trainer_spec.byte_fallback
  if proto.trainer_spec.model_type == UNIGRAM:
    scores = [(piece.piece, piece.score) for piece in pieces]
    unknown = next(i for i, piece in enumerate(pieces) if piece.type == UNKNOWN)
    return models.Unigram(scores, unk_id=unknown, byte_fallback=byte_fallback)
  normal = {p.piece: (-p.score, i) for i, p in enumerate(pieces) if p.type == NORMAL}
  merges = sorted(
    (*rank, piece[:cut], piece[cut:])
    for piece, rank in normal.items()
    for cut in range(1, len(piece))
    if piece[:cut] in normal and piece[cut:] in normal
  )
  return models.BPE(
    vocab={piece.piece: i for i, piece in enumerate(pieces)},
    merges=[(left, right) for _, _, left, right in merges],
    unk_token=next(piece.piece for piece in pieces if piece.type == UNKNOWN),
    fuse_unk=True,
    byte_fallback=byte_fallback,
    # A user-defined piece, which stands alone then, is no sum of merges.
    ignore_merges=any(piece.type == USER for piece in pieces),
  )


def _canonical(text):
  """siglax.data.text.canonicalize."""
  if text.lowercase:
    # str.lower() knows that a capital sigma ends a word; the library's rule does not.
    sigma = r"\p{Cased}\p{Case_Ignorable}*\KΣ(?!\p{Case_Ignorable}*\p{Cased})"
    yield normalizers.Replace(tokenizers.Regex(sigma), "ς")
    yield normalizers.Lowercase()
  if text.strip_punctuation:
    yield normalizers.Replace(tokenizers.Regex(f"[{re.escape(string.punctuation)}]"), "")
  yield normalizers.Replace(tokenizers.Regex(f"{_set(_SPACES)}+"), " ")
  yield from _stripped()


def _stripped():
  yield normalizers.Replace(tokenizers.Regex(r"\A +| +\z"), "")


def _whitespace(spec):
  if spec.remove_extra_whitespaces:
    yield from _stripped()
    yield normalizers.Replace(tokenizers.Regex(" {2,}"), " ")
  yield normalizers.Replace(" ", SPACE)
  if spec.add_dummy_prefix:
    yield normalizers.Prepend(SPACE)


def _charsmap(spec):
  """What the table of a model does."""
  if not spec.precompiled_charsmap:
    return
  table = _entries(spec.precompiled_charsmap)
  marked = f"(?>{_longest(table)}|.)\\K"
  yield normalizers.Replace(tokenizers.Regex(marked), _BEHIND)
  changed = (c for c in map(chr, range(0x110000)) if unicodedata.normalize("NFKC", c) != c)
  kept = [c for c in changed if c not in table]
  if len(kept) > _MOST_KEPT:
    raise ValueError(
      f"config.text.tokenizer: its sentencepiece model keeps {len(kept)} characters that NFKC "
      f"replaces; a tokenizer.json has room for {_MOST_KEPT}; give one trained with --kind bpe"
    )
  keeping = [(c, chr(_KEPT + i)) for i, c in enumerate(kept)]
  yield from (normalizers.Replace(c, instead) for c, instead in keeping)
  yield normalizers.NFKC()
  yield normalizers.Precompiled(spec.precompiled_charsmap)
  yield from (normalizers.Replace(instead, c) for c, instead in keeping)
  yield normalizers.Replace(_BEHIND, "")


def _entries(charsmap: bytes) -> set[str]:
  """The strings that a charsmap replaces: the keys of its trie, a double array (darts-clone), a
  letter of all of them at a time.
  """
  (size,) = struct.unpack("<I", charsmap[:4])
  units = np.frombuffer(charsmap, "<u4", size // 4, 4).astype(np.int64)
  at, prefixes, found = np.zeros(1, np.int64), [b""], set()
  while prefixes:
    offset = (units[at] >> 10) << ((units[at] & 0x200) >> 6)
    children = at ^ offset
    found.update(prefixes[i].decode() for i in np.flatnonzero(units[at] >> 8 & 1))
    deeper, longer = [], []
    for byte in range(1, 256):
      child = children ^ byte
      label = units[np.minimum(child, len(units) - 1)] & 0x800000FF
      for i in np.flatnonzero((child < len(units)) & (label == byte)):
        deeper.append(child[i])
        longer.append(prefixes[i] + bytes([byte]))
    at, prefixes = np.array(deeper, np.int64), longer
  return found


def _longest(table: set[str]) -> str:
  """A pattern of the longest string of several characters that is in the table."""
  trie: dict = {}
  for entry in table:
    if len(entry) > 1:
      node = trie
      for c in entry:
        node = node.setdefault(c, {})
      node[""] = {}
  # Most characters are followed by none that goes with them.
  seconds = {c for node in trie.values() for c in node}
  return f"(?=.{_set(seconds)}){_pattern(trie)}" if trie else "(?!)"


def _pattern(node: dict) -> str:
  """Of what stands below a node of the trie; characters with the same below them are one set."""
  below = collections.defaultdict(list)
  for c, child in node.items():
    if c:
      below[_pattern(child)].append(c)
  if not below:
    return ""
  either = "|".join(_set(characters) + pattern for pattern, characters in below.items())
  return f"(?:{either}){'?' if '' in node else ''}"


def _set(characters) -> str:
  """A pattern of one of these characters, of ranges."""
  codes, ranges = sorted(map(ord, characters)), []
  for code in codes:
    if ranges and ranges[-1][1] == code - 1:
      ranges[-1][1] = code
    else:
      ranges.append([code, code])
  return "[" + "".join(f"\\x{{{a:X}}}-\\x{{{b:X}}}" for a, b in ranges) + "]"
