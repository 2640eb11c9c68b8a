"""tokenizer.json, the file of the `tokenizers` library: CLIP's byte-level BPE, Gemma's, and others.

Its normalizer says what happens to a text before it is split, its post-processor which tokens stand
around it. tokenizer_config.json and special_tokens_map.json beside it name the padding token.
"""

from __future__ import annotations

import json
import re
import string

import tokenizers
from tokenizers import normalizers
from tokenizers import processors

from siglax.data.text import bpe
from siglax.data.text.canonical import check_str
from siglax.data.text.kind import Kind
from siglax.data.text.kind import Options
from siglax.data.text.kind import Source

CONFIG = "tokenizer_config.json"
# Where special tokens are named; the first file that names one counts.
_BESIDE = (CONFIG, "special_tokens_map.json")
_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
# With either of them transformers makes the tokens around a text anew.
_ADDS = {"add_bos_token": "bos_token", "add_eos_token": "eos_token"}
# Of SigLIP 2's folders, whose tokenizer.json is Gemma's.
_LOWERCASE = "do_lower_case"
# Any text that a tokenizer splits into something, and one of which it may know nothing.
_PROBES = ("a", "A", "the", "0", "\u4e00", "\U0010fffe")


class Json:
  """A tokenizer.json in use. Asked for lower case or no punctuation that it does not see to itself,
  it does that before its own rules.
  """

  def __init__(self, source: Source, options: Options):
    self._source, self._options, self._named = source.data, options, _named(source)
    self._tokenizer = _parsed(source)
    self._changed = _set_ends(self._tokenizer, self._named, source)
    self._canonicalize_first(options, source)
    first, last = _ends(self._tokenizer, source)
    self.ends, self.eos_id = len(first) + len(last), last[-1]
    self.vocab_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
    if self.vocab_size > 2**31:
      raise source.error(f"has a token {self.vocab_size - 1:,}; the largest is {2**31 - 1:,}")
    self.pad_id = self._padding()
    self.unk_id = self._token("unk_token")
    # What is cut to fewer is refused by whoever asked for it.
    self._tokenizer.enable_truncation(max(options.length, self.ends))

  def _canonicalize_first(self, options: Options, source: Source):
    """Sets `lowercase` and `strip_punctuation`, and puts before the normalizer what it lacks."""
    own = self._tokenizer.normalizer
    lowers = own is not None and _lowers(json.loads(own.__getstate__()))
    asked = self._named.get(_LOWERCASE) if options.lowercase is None else options.lowercase
    if lowers and options.lowercase is False:
      raise ValueError(
        f"config.text.lowercase=False, but {source.path} makes letters lower case; leave it None"
      )
    self.lowercase = lowers or bool(asked)
    self.strip_punctuation = bool(options.strip_punctuation)
    first = []
    if asked and not lowers:
      first.append(normalizers.Lowercase())
    if options.strip_punctuation:
      punctuation = tokenizers.Regex(f"[{re.escape(string.punctuation)}]")
      first.append(normalizers.Replace(punctuation, ""))
    if first:
      both = first if own is None else [*first, own]
      self._tokenizer.normalizer, self._changed = normalizers.Sequence(both), True

  def _token(self, name: str) -> int | None:
    token = self._named.get(name)
    return None if token is None else self._tokenizer.token_to_id(token)

  def _padding(self) -> int | None:
    if "pad_token" in self._named:
      return self._token("pad_token")
    padding = json.loads(self._source).get("padding")
    return self._tokenizer.token_to_id(padding["pad_token"]) if padding else None

  def canonicalize(self, text: str) -> str:
    check_str(text)
    own = self._tokenizer.normalizer
    return text if own is None else own.normalize_str(text)

  def encode(self, text: str) -> list[int]:
    return self._tokenizer.encode(text).ids

  def decode(self, tokens: list[int]) -> str:
    text = self._tokenizer.decode(tokens, skip_special_tokens=True)
    suffix = getattr(self._tokenizer.model, "end_of_word_suffix", None)
    return text.replace(suffix, " ").strip() if suffix else text

  def piece(self, token: int) -> str:
    return self._tokenizer.id_to_token(token) or ""

  def files(self) -> dict[str, bytes]:
    named = json.dumps(self._named, indent=2, ensure_ascii=False) + "\n"
    return {KIND.names[0]: self._source, CONFIG: named.encode()}

  def alone(self, pad_id: int | None = None) -> bytes:
    """The file as it was, where it says all by itself."""
    if not self._changed and pad_id is None:
      return self._source
    whole = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
    if pad_id is None:
      whole.no_truncation()
    else:
      token, length = whole.id_to_token(pad_id), self._options.length
      whole.enable_padding(pad_id=pad_id, pad_token=token, length=length)
    return whole.to_str(pretty=True).encode()


def _lowers(normalizer) -> bool:
  """Whether a normalizer, as JSON, makes letters lower case."""
  if normalizer["type"] == "Sequence":
    return any(map(_lowers, normalizer["normalizers"]))
  return normalizer["type"] == "Lowercase" or normalizer.get("lowercase") is True


def _named(source: Source) -> dict:
  """What the files beside it say: the special tokens, whether they are put around a text, and
  whether letters are made lower case.
  """
  named = {}
  for name in reversed(_BESIDE):
    if (data := source.beside(name)) is None:
      continue
    given = _object(source, name, data)
    for key in _TOKENS:
      if given.get(key) is not None:
        named[key] = _content(source, name, key, given[key])
    if isinstance(given.get(_LOWERCASE), bool):
      named[_LOWERCASE] = given[_LOWERCASE]
    if str(given.get("tokenizer_class")).startswith("CLIPTokenizer"):
      continue  # its tokens around a text are always the same
    for key in _ADDS:
      if isinstance(given.get(key), bool):
        named[key] = given[key]
  return named


def _object(source, name, data) -> dict:
  try:
    given = json.loads(data)
  except (ValueError, RecursionError):
    given = None
  if not isinstance(given, dict):
    raise ValueError(f"{source.field}: {name} beside {source.path} is no JSON object")
  return given


def _content(source, name, key, token) -> str:
  """A special token, written as a str or as {"content": str}."""
  token = token.get("content") if isinstance(token, dict) else token
  if not isinstance(token, str):
    raise ValueError(f"{source.field}: {key} in {name} beside {source.path} is no token")
  return token


def _parsed(source: Source) -> tokenizers.Tokenizer:
  """Without padding and truncation of its own."""
  try:
    tokenizer = tokenizers.Tokenizer.from_str(source.data.decode())
  except BaseException as e:  # a panic of the library is no Exception
    if isinstance(e, (KeyboardInterrupt, SystemExit, MemoryError)):
      raise
    reason = " ".join(str(e).split())
    raise source.error(
      f"({len(source.data)} bytes) is not a tokenizer.json, or is damaged: {reason:.200}"
    ) from None
  tokenizer.no_padding()
  tokenizer.no_truncation()
  return tokenizer


def _set_ends(tokenizer, named: dict, source: Source) -> bool:
  """Puts the tokens around a text that the files beside it ask for; whether they ask."""
  if not named.keys() & _ADDS:
    return False
  tokens = {}
  for adds, key in _ADDS.items():
    if named.get(adds):
      token = named.get(key)
      if token is None or tokenizer.token_to_id(token) is None:
        raise ValueError(
          f"{source.field}: {adds} beside {source.path} asks for a {key}, which is {token!r}; "
          "give a tokenizer that has one"
        )
      tokens[key] = token
  template = [tokens.get("bos_token"), "$A", tokens.get("eos_token")]
  tokenizer.post_processor = processors.TemplateProcessing(
    single=" ".join(filter(None, template)),
    special_tokens=[(token, tokenizer.token_to_id(token)) for token in set(tokens.values())],
  )
  return True


def _ends(tokenizer, source: Source) -> tuple[list[int], list[int]]:
  """The tokens before and after a text. ValueError where none follows, or where a text is refused
  or lost.
  """
  found = None
  for probe in _PROBES:
    try:
      bare = tokenizer.encode(probe, add_special_tokens=False).ids
      whole = tokenizer.encode(probe).ids
    except Exception as e:
      raise source.error(f"splits no text: {' '.join(str(e).split()):.200}") from None
    if bare and found is None:
      start = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
      found = whole[:start], whole[start + len(bare) :]
  if found is None:
    raise source.error("has no tokens for letters, digits or anything else")
  if not found[1]:
    raise source.error(
      "puts no end token behind a text; give one whose post-processor does, or with "
      f'"add_eos_token": true and "eos_token" in the {CONFIG} beside it'
    )
  return found


KIND = Kind(
  name="bpe",
  doc="a tokenizer.json of the tokenizers library; trained, a byte-level BPE as CLIP's",
  suffix=".json",
  names=("tokenizer.json",),
  open=Json,
  train=bpe.train,
)
