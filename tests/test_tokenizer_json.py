"""tokenizer.json: tokens as the tokenizers library makes them, what stands around a text, training,
and files that are damaged or of something else.
"""

import concurrent.futures
import json
import pathlib
import pickle

import numpy as np
import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import normalizers
from tokenizers import pre_tokenizers
from tokenizers import processors
from tokenizers import trainers

from siglax.data import shapes
from siglax.data import text as text_lib
from siglax.data.text import TextProcessor
from siglax.data.text import train_tokenizer

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared" / "parity"
CAPTIONS = [c for i in range(200) for c in shapes.Shapes("test", examples=200)[i]["captions"]]
# 20 scripts: the first and the last of a range of letters, marks included.
SCRIPTS = {
  "Latin": (0x41, 0x24F),
  "Greek": (0x370, 0x3FF),
  "Cyrillic": (0x400, 0x52F),
  "Armenian": (0x531, 0x58A),
  "Hebrew": (0x591, 0x5F4),
  "Arabic": (0x600, 0x6FF),
  "Devanagari": (0x900, 0x97F),
  "Bengali": (0x980, 0x9FE),
  "Tamil": (0xB82, 0xBFA),
  "Telugu": (0xC00, 0xC7F),
  "Thai": (0xE01, 0xE5B),
  "Tibetan": (0xF00, 0xFDA),
  "Georgian": (0x10A0, 0x10FF),
  "Hangul": (0xAC00, 0xD7A3),
  "Ethiopic": (0x1200, 0x137C),
  "Khmer": (0x1780, 0x17F9),
  "Hiragana": (0x3041, 0x309F),
  "Katakana": (0x30A0, 0x30FF),
  "Han": (0x4E00, 0x9FFF),
  "Cherokee": (0x13A0, 0x13FD),
}
ODD = (
  *("", " ", "\t\n", "\u00a0x\u2003y\u3000z", "a\u200db", "\ufeffa", "a\0b", "e\u0301\u0323x"),
  *(
    "👩\u200d👩\u200d👧\u200d👦 🏳\ufe0f\u200d🌈",
    "🇩🇪🇫🇷",
    "👍🏽!!",
    "ﬁ ﬂ ½ ①",
    "ΟΔΟΣ ΣΑΣ",
    "İstanbul ẞ",
  ),
  *("don't   stop", "<|endoftext|> x <|startoftext|>", "<eos> <pad>", "a_b-c'd's", "x" * 5000),
  *("ab " * 3000, "12,345.67 & 3", "…—“”", "\U0010ffff\u0378", "ǅ Ǆ"),
)


def strings() -> list[str]:
  """1,000 of them."""
  rng = np.random.default_rng(0)
  spaces, marks = [" ", "  ", "\n", "\u00a0", ", ", ". ", "! "], ["", "", "\u0301", "🙂", "7"]
  found = list(ODD)
  while len(found) < 1000:
    first, last = list(SCRIPTS.values())[len(found) % len(SCRIPTS)]
    words = [
      "".join(map(chr, rng.integers(first, last + 1, rng.integers(1, 9)))) + str(rng.choice(marks))
      for _ in range(rng.integers(1, 12))
    ]
    found.append("".join(word + str(rng.choice(spaces)) for word in words))
  return found


TEXTS = strings()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
  """A BPE that siglax trained, in a folder."""
  path = tmp_path_factory.mktemp("clip") / "tokenizer.json"
  train_tokenizer(CAPTIONS, path, 600, kind="bpe")
  return path


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
  """As Gemma's: spaces are letters, bytes where letters are unknown, an end and a padding token."""
  path = tmp_path_factory.mktemp("gemma") / "tokenizer.json"
  special = ["<pad>", "<eos>", "<bos>", "<unk>"]
  t = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
  t.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", "▁")])
  t.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
  bytes_ = [f"<0x{i:02X}>" for i in range(256)]
  trainer = trainers.BpeTrainer(
    vocab_size=500, special_tokens=[*special, *bytes_], show_progress=False
  )
  t.train_from_iterator(CAPTIONS, trainer)
  t.post_processor = processors.TemplateProcessing(
    single="$A <eos>", special_tokens=[("<eos>", t.token_to_id("<eos>"))]
  )
  t.decoder = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
  )
  whole = json.loads(t.to_str())
  whole["added_tokens"] = whole["added_tokens"][:4]  # bytes are tokens like others
  path.write_text(json.dumps(whole))
  names = {"bos_token": "<bos>", "eos_token": {"content": "<eos>"}, "pad_token": "<pad>"}
  (path.parent / "special_tokens_map.json").write_text(json.dumps(names))
  return path


def library(path, length, pad_id):
  """The tokens of a file by the library's own cutting and padding."""
  t = tokenizers.Tokenizer.from_file(str(path))
  t.enable_truncation(length)
  t.enable_padding(length=length, pad_id=pad_id)
  return lambda texts: np.array([e.ids for e in t.encode_batch(list(texts))], np.int32)


def test_there_are_1000_texts_in_20_scripts():
  assert len(set(TEXTS)) > 990 and len(SCRIPTS) == 20


@pytest.mark.parametrize("length", [3, 16, 77])
def test_tokens_are_the_librarys(clip, gemma, length):
  for path, pad, pad_id in ((clip, "eos", 599), (clip, "zero", 0), (gemma, "pad", 0)):
    text = TextProcessor(path, length=length, pad=pad)
    assert text.pad_id == pad_id
    np.testing.assert_array_equal(text(TEXTS), library(path, length, pad_id)(TEXTS))


@pytest.mark.parametrize("name", ["hf_clip_bpe", "siglip2_fixed", "siglip2_naflex"])
def test_tokens_of_released_kinds_are_transformers(name):
  """input_ids are what transformers' AutoTokenizer made of these folders."""
  if not (SHARED / name).is_dir():
    pytest.skip("needs ../shared/parity")
  z = np.load(SHARED / name / "io.npz")
  text = TextProcessor(SHARED / name, length=16, pad="eos" if "clip" in name else "pad")
  np.testing.assert_array_equal(text(z["texts"].tolist()), z["input_ids"])
  library_tokens = library(SHARED / name / "tokenizer.json", 16, text.pad_id)(TEXTS)
  np.testing.assert_array_equal(text(TEXTS), library_tokens)


def test_transformers_clip_tokenizer_agrees(clip):
  transformers = pytest.importorskip("transformers")
  model = json.loads(clip.read_text())["model"]
  theirs = transformers.CLIPTokenizer(
    vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]]
  )
  tokens = theirs(TEXTS, padding="max_length", truncation=True, max_length=32)["input_ids"]
  np.testing.assert_array_equal(TextProcessor(clip, length=32)(TEXTS), tokens)


def test_sentencepiece_tokens_are_sentencepieces():
  pieces = sentencepiece.SentencePieceProcessor(model_file=str(text_lib.SHIPPED["shapes"]))
  text = TextProcessor(length=16)
  canonical = [text_lib.canonicalize(t) for t in TEXTS]
  expected = [(ids[:15] + [1] * 16)[:16] for ids in pieces.encode(canonical)]
  np.testing.assert_array_equal(text(TEXTS), expected)


def test_what_is_asked_comes_before_the_tokenizers_own_rules(clip, gemma):
  for path in (clip, gemma):
    plain, bare = TextProcessor(path), TextProcessor(path, strip_punctuation=True)
    assert (plain.lowercase, plain.strip_punctuation, bare.strip_punctuation) == (True, False, True)
    np.testing.assert_array_equal(bare("A (red) r_i-n.g!"), plain("a red ring"))
    assert (plain("A red ring!") != plain("a red ring")).any()
  with pytest.raises(
    ValueError, match=r"config\.text\.lowercase=False, but .*tokenizer\.json makes"
  ):
    TextProcessor(clip, lowercase=False)


def test_lower_case_where_the_file_has_none(clip, tmp_path):
  train_tokenizer(CAPTIONS, tmp_path / "a.json", 600, kind="bpe", lowercase=False)
  text = TextProcessor(tmp_path / "a.json")
  assert not text.lowercase and (text("RED") != text("red")).any()
  lower = TextProcessor(tmp_path / "a.json", lowercase=True)
  assert lower.lowercase
  np.testing.assert_array_equal(lower(["RED Ring", "İ"]), text(["red ring", "i̇"]))
  (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')  # as SigLIP 2's
  beside = TextProcessor(tmp_path / "a.json")
  assert beside.lowercase and b"do_lower_case" in beside.files["tokenizer_config.json"]
  np.testing.assert_array_equal(beside(TEXTS), lower(TEXTS))


def test_a_text_decodes_up_to_its_end(clip, gemma):
  for path, pad in ((clip, "eos"), (clip, "zero"), (gemma, "pad")):
    text = TextProcessor(path, length=32, pad=pad)
    assert text.decode(text("A red ring !")[0]) == "a red ring !"


def test_threads_and_pickles_agree(clip):
  text = TextProcessor(clip, length=16, strip_punctuation=True)
  expected = text(TEXTS)
  np.testing.assert_array_equal(pickle.loads(pickle.dumps(text))(TEXTS), expected)
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    np.testing.assert_array_equal(np.concatenate(list(pool.map(text, TEXTS))), expected)


def test_the_files_open_it_again(gemma, tmp_path):
  text = TextProcessor(gemma, length=16, pad="pad")
  assert text.files["tokenizer.json"] == gemma.read_bytes()
  for name, data in text.files.items():
    (tmp_path / name).write_bytes(data)
  again = TextProcessor(tmp_path, length=16, pad="pad")
  assert again.files == text.files
  np.testing.assert_array_equal(again(TEXTS), text(TEXTS))


def test_saved_for_other_libraries(clip, tmp_path):
  TextProcessor(clip).save(tmp_path / "same.json")
  assert (tmp_path / "same.json").read_bytes() == clip.read_bytes()
  text = TextProcessor(clip, length=16, strip_punctuation=True)
  text.save(tmp_path / "changed.json", padded=True)
  theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "changed.json"))
  np.testing.assert_array_equal([theirs.encode(t).ids for t in TEXTS], text(TEXTS))


def test_tokens_around_a_text_that_the_config_beside_asks_for(gemma, tmp_path):
  """As in Gemma's folders, whose tokenizer.json begins a text and does not end it."""
  whole = json.loads(gemma.read_text()) | {"post_processor": None}
  (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
  names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
  write = lambda **more: (tmp_path / "tokenizer_config.json").write_text(json.dumps(names | more))
  with pytest.raises(
    ValueError, match=r"puts no end token behind a text; give one whose post-proc"
  ):
    TextProcessor(tmp_path)
  write(add_bos_token=False, add_eos_token=True)
  text = TextProcessor(tmp_path, length=16, pad="pad")
  np.testing.assert_array_equal(text(TEXTS), TextProcessor(gemma, length=16, pad="pad")(TEXTS))
  write(add_bos_token=True, add_eos_token=True)
  row = TextProcessor(tmp_path, length=16, pad="pad")("a red ring")[0].tolist()
  assert row == [2, *text("a red ring")[0].tolist()[:-1]]
  write(add_eos_token=True, eos_token="<nowhere>")
  with pytest.raises(ValueError, match="asks for a eos_token, which is '<nowhere>'"):
    TextProcessor(tmp_path)
  for wrong, match in (
    ({"pad_token": 3}, "pad_token in tokenizer_config.json beside .* is no token"),
    ([], "tokenizer_config.json beside .* is no JSON object"),
  ):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(wrong))
    with pytest.raises(ValueError, match=match):
      TextProcessor(tmp_path)


def test_training_has_clips_conventions_and_the_same_bytes_twice(clip, tmp_path):
  train_tokenizer(iter(CAPTIONS), tmp_path / "again.json", 600, kind="bpe")
  assert (tmp_path / "again.json").read_bytes() == clip.read_bytes()
  vocabulary = json.loads(clip.read_text())["model"]["vocab"]
  assert list(vocabulary.values()) == list(range(600))
  tokens = list(vocabulary)
  # openai/CLIP's bytes_to_unicode and simple_tokenizer.py.
  assert (
    tokens[:3] == ["!", '"', "#"] and tokens[255] == "Ń" and tokens[256:258] == ["!</w>", '"</w>']
  )
  assert tokens[-2:] == ["<|startoftext|>", "<|endoftext|>"]
  text = TextProcessor(clip, length=16)
  row = text("a red ring")[0]
  assert row[0] == 598 and row[-1] == 599 and text.eos_id == 599 == row.max()


def test_the_commonest_pair_is_merged_first(tmp_path):
  """By hand: in three "low" and two "lower", l+o stands five times, lo+w</w> three times."""
  train_tokenizer(["low low low", "lower lower"], tmp_path / "a.json", 514 + 2, kind="bpe")
  merges = json.loads((tmp_path / "a.json").read_text())["model"]["merges"]
  assert [tuple(pair) for pair in merges] == [("l", "o"), ("lo", "w</w>")]


def test_training_errors_say_what_would_work(tmp_path):
  train = lambda texts, n: train_tokenizer(texts, tmp_path / "x.json", n, kind="bpe")
  with pytest.raises(ValueError, match="vocab_size=513 is below 514"):
    train(CAPTIONS, 513)
  with pytest.raises(
    ValueError, match=r"vocab_size=9000 is more than these texts fill; use (\d+)"
  ) as e:
    train(CAPTIONS, 9000)
  train(CAPTIONS, int(str(e.value).split("use ")[1].split()[0]))
  for texts in ([], ["", " \n"]):
    with pytest.raises(ValueError, match="no text to train a tokenizer on"):
      train(texts, 600)


def word_piece(unk="[UNK]", end=False):
  t = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "[SEP]": 1, "a": 2}, unk_token=unk))
  if end:
    t.post_processor = processors.TemplateProcessing("$A [SEP]", special_tokens=[("[SEP]", 1)])
  return t.to_str()


@pytest.mark.parametrize(
  ("content", "match"),
  [
    ("", r"\(0 bytes\) is not a tokenizer.json, or is damaged: EOF"),
    ("{}", "is not a tokenizer.json, or is damaged: Model missing"),
    ("[" * 100_000, "is not a tokenizer.json, or is damaged"),
    ('{"version": "1.0", "model": {"type": "Code"}}', "is not a tokenizer.json, or is damaged"),
    ("\xff\x00", "is not a tokenizer.json, or is damaged"),
    (word_piece(), "puts no end token behind a text"),
    (word_piece(unk="[NONE]", end=True), "splits no text: WordPiece error: Missing"),
  ],
)
def test_files_of_something_else(tmp_path, content, match):
  path = tmp_path / "tokenizer.json"
  path.write_bytes(content.encode("latin-1"))
  with pytest.raises(ValueError, match=match) as e:
    TextProcessor(path)
  assert str(e.value).startswith(f"config.text.tokenizer={str(path)!r}: {path} ")
  assert "\n" not in str(e.value) and len(str(e.value)) < 600


def test_a_file_cut_short_and_a_huge_one(clip, tmp_path):
  path = tmp_path / "tokenizer.json"
  path.write_bytes(clip.read_bytes()[:5000])
  with pytest.raises(ValueError, match="is not a tokenizer.json, or is damaged: EOF"):
    TextProcessor(path)
  with path.open("wb") as f:
    f.truncate(3 * 2**40)  # a hole
  with pytest.raises(ValueError, match="has 3298534883328 bytes, more than the 67108864"):
    TextProcessor(path)


def test_folders_with_two_tokenizers_or_none(clip, tmp_path):
  with pytest.raises(
    ValueError, match="the folder holds no tokenizer; it needs one of tokenizer.mod"
  ):
    TextProcessor(tmp_path)
  (tmp_path / "tokenizer.json").write_bytes(clip.read_bytes())
  np.testing.assert_array_equal(TextProcessor(tmp_path)("a"), TextProcessor(clip)("a"))
  (tmp_path / "spiece.model").write_bytes(text_lib.SHIPPED["shapes"].read_bytes())
  with pytest.raises(
    ValueError, match="holds spiece.model and tokenizer.json; give the path of one"
  ):
    TextProcessor(tmp_path)


def test_lengths_and_texts_that_are_refused(clip):
  with pytest.raises(ValueError, match="config.text.length=2 must be at least 3: .*the 2 tokens"):
    TextProcessor(clip, length=2)
  text = TextProcessor(clip, length=3)
  assert text("red ring").tolist() == [[598, text("red")[0, 1], 599]]
  with pytest.raises(TypeError, match="a text must be a str, not NoneType"):
    text([None])
  with pytest.raises(ValueError, match="the text 'a.ud800' is no Unicode: .* at 1 is half a char"):
    text(["a\ud800"])
  with pytest.raises(ValueError, match="has no padding token"):
    TextProcessor(clip, pad="pad")
