"""Text preprocessing: SigLIP's canonical form and sticky end, foreign models, training, errors."""

import concurrent.futures
import io
import pickle
import re

import numpy as np
import pytest
import sentencepiece

from siglax.data import shapes
from siglax.data import text as text_lib
from siglax.data.text import TextProcessor
from siglax.data.text import train_tokenizer

CAPTIONS = [c for i in range(200) for c in shapes.Shapes("test", examples=200)[i]["captions"]]


def train(lines, path, **options):
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(lines),
    model_writer=model,
    hard_vocab_limit=False,
    minloglevel=2,
    **options,
  )
  path.write_bytes(model.getvalue())
  return path


def test_shipped_model_has_one_token_for_each_word():
  text = TextProcessor(length=32)
  assert (text.vocab_size, text.eos_id) == (107, 1)
  partial = shapes.Shapes("train", examples=500, detail=0.5)
  captions = CAPTIONS + [c for i in range(500) for c in partial[i]["captions"]]
  tokens = text(captions)
  lengths = [len(c.split()) for c in captions]
  assert max(lengths) < 32
  for row, n in zip(tokens, lengths):
    assert np.all(row[:n] > 2) and np.all(row[n:] == 1)


def test_tokens_decode_to_the_canonical_text(tmp_path):
  text = TextProcessor()
  text.save(tmp_path / "copy.model")
  model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "copy.model"))
  tokens = text(CAPTIONS)
  assert tokens.dtype == np.int32 and tokens.shape == (len(CAPTIONS), 64)
  assert [model.decode(row.tolist()) for row in tokens] == [text.canonicalize(c) for c in CAPTIONS]


def test_canonicalizing_is_siglips_unless_told_otherwise():
  assert text_lib.canonicalize(" A  Red, ring!") == "a red ring"


def test_token_0_may_be_the_padding(tmp_path):
  """As of Gemma's tokenizer."""
  path = train(
    CAPTIONS, tmp_path / "zero.model", vocab_size=100, pad_id=0, eos_id=1, bos_id=2, unk_id=3
  )
  row = TextProcessor(path, length=12, pad="pad")("red")[0].tolist()
  end = row.index(1)
  assert end > 0 and row[end + 1 :] == [0] * (11 - end)


def test_every_text_ends_and_is_padded_with_the_end_token():
  text = TextProcessor(length=6)
  short, exact, long, empty = text(
    ["a red ring", "a red ring above a", "a red ring above a blue star", " .,! "]
  )
  assert np.all(short[3:] == 1) and np.all(short[:3] != 1)
  assert np.array_equal(long, exact) and exact[-1] == 1 and np.all(exact[:-1] != 1)
  assert np.all(empty == 1)
  assert np.array_equal(text("a red ring"), short[None])
  assert text([]).shape == (0, 6)


def test_canonical_form():
  text = TextProcessor()
  assert (
    text.canonicalize("  A Red\tCIRCLE, (above)\n a_blue-square! ")
    == "a red circle above abluesquare"
  )
  assert text.canonicalize("Été “naïf” — 3.5€") == "été “naïf” — 35€"  # only ASCII punctuation goes
  plain = TextProcessor(lowercase=False, strip_punctuation=False)
  assert plain.canonicalize(" A  Red, ring!\n") == "A Red, ring!"
  for processor in (text, plain):
    for s in ("A  Red!", " .a. ", "x"):
      assert processor.canonicalize(processor.canonicalize(s)) == processor.canonicalize(s)
  assert np.array_equal(text(["A red, RING."]), text(["a red ring"]))


def test_unknown_words_fall_back_to_letters():
  text = TextProcessor()
  tokens = text("zebra 42")[0]
  assert 2 not in tokens and np.any(text("€")[0] == 2)


def test_threads_and_pickles_agree():
  text = TextProcessor()
  expected = text(CAPTIONS)
  assert np.array_equal(pickle.loads(pickle.dumps(text))(CAPTIONS), expected)
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    rows = list(pool.map(text, CAPTIONS))
  assert np.array_equal(np.concatenate(rows), expected)


def test_save_writes_the_models_own_bytes(tmp_path):
  TextProcessor().save(tmp_path / "copy.model")
  with open(text_lib.SHIPPED["shapes"], "rb") as f:
    assert (tmp_path / "copy.model").read_bytes() == f.read()
  assert np.array_equal(TextProcessor(tmp_path / "copy.model")(CAPTIONS), TextProcessor()(CAPTIONS))


def test_foreign_model_with_its_own_ids(tmp_path):
  path = train(
    CAPTIONS, tmp_path / "foreign.model", vocab_size=100, unk_id=0, bos_id=1, eos_id=2, pad_id=3
  )
  text = TextProcessor(str(path), length=8)
  assert text.eos_id == 2
  row = text("a red ring")[0]
  assert row[-1] == 2 and 1 not in row and 3 not in row


def test_a_text_ends_with_the_end_token_before_what_pads_it(tmp_path):
  path = train(
    CAPTIONS, tmp_path / "a.model", vocab_size=100, unk_id=0, bos_id=1, eos_id=2, pad_id=3
  )
  model = sentencepiece.SentencePieceProcessor(model_file=str(path))
  for caption in ("a red ring", "", CAPTIONS[0]):
    ids = model.encode(caption)[:11]
    got = TextProcessor(path, length=12, pad="pad")(caption)[0].tolist()
    assert got == [*ids, 2] + [3] * (11 - len(ids))


def test_model_without_end_token(tmp_path):
  path = train(CAPTIONS, tmp_path / "endless.model", vocab_size=100, eos_id=-1)
  with pytest.raises(
    ValueError, match=r"config\.text\.tokenizer=.*endless\.model' has no end token"
  ):
    TextProcessor(path)


def test_training_gives_siglip_ids_and_the_same_bytes_twice(tmp_path):
  for name in "ab":
    train_tokenizer(iter(CAPTIONS), tmp_path / f"{name}.model", 90)
  assert (tmp_path / "a.model").read_bytes() == (tmp_path / "b.model").read_bytes()
  text = TextProcessor(tmp_path / "a.model", length=16)
  model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "a.model"))
  assert (model.pad_id(), model.eos_id(), model.unk_id(), model.bos_id(), text.vocab_size) == (
    0,
    1,
    2,
    -1,
    90,
  )
  assert 2 not in text("the quick brown fox")[0]


def test_training_canonicalizes(tmp_path):
  train_tokenizer(CAPTIONS, tmp_path / "a.model", 90)
  train_tokenizer([f" {c.upper()}!" for c in CAPTIONS], tmp_path / "b.model", 90)
  assert (tmp_path / "a.model").read_bytes() == (tmp_path / "b.model").read_bytes()
  titles = [c.title() + "!" for c in CAPTIONS]
  train_tokenizer(titles, tmp_path / "c.model", 110, lowercase=False, strip_punctuation=False)
  text = TextProcessor(tmp_path / "c.model", lowercase=False, strip_punctuation=False)
  assert 2 not in text("A Zebra!")[0]


@pytest.mark.parametrize("text", ["a red \ud800 ring", "\udcff"])
def test_half_a_character_is_one_line(text):
  """JSON can spell it, and a byte of the command line that is no UTF-8 becomes one."""
  with pytest.raises(ValueError, match="no Unicode: .* is half a character.*; repair it"):
    TextProcessor("shapes")(["a ring", text])


def test_large_vocabulary_falls_back_to_bytes(tmp_path):
  rng = np.random.default_rng(0)
  words = [
    "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), rng.integers(2, 6))) for _ in range(2500)
  ]
  lines = [" ".join(rng.choice(words, 6)) for _ in range(2500)]
  train_tokenizer(lines, tmp_path / "big.model", 1024)
  text = TextProcessor(tmp_path / "big.model")
  assert text.vocab_size == 1024 and 2 not in text("€ 狐 🦊")[0]


def test_training_errors_say_what_would_work(tmp_path):
  out = tmp_path / "x.model"
  with pytest.raises(ValueError, match=r"vocab_size=5000 .* use (\d+) or less") as error:
    train_tokenizer(CAPTIONS, out, 5000)
  train_tokenizer(CAPTIONS, out, int(re.search(r"use (\d+)", str(error.value))[1]))
  with pytest.raises(ValueError, match=r"vocab_size=20 is too small .* use (\d+) or more") as error:
    train_tokenizer(CAPTIONS, out, 20)
  train_tokenizer(CAPTIONS, out, int(re.search(r"use (\d+)", str(error.value))[1]))
  for texts in ([], ["", " ,. "]):
    with pytest.raises(ValueError, match="no text to train a tokenizer on"):
      train_tokenizer(texts, out, 100)


def test_errors_name_path_and_field(tmp_path):
  with pytest.raises(ValueError, match=r"config\.text\.tokenizer='/no/such\.model': no such file"):
    TextProcessor("/no/such.model")
  for content in (b"", b"not a model at all", (tmp_path / "x").write_text("") or b"\x00" * 100):
    path = tmp_path / "bad.model"
    path.write_bytes(content)
    with pytest.raises(
      ValueError, match=r"bad\.model.* \(\d+ bytes\) is not a sentencepiece model, or is damaged"
    ):
      TextProcessor(path)
  with pytest.raises(ValueError, match=r"config\.text\.length=1 must be at least 2"):
    TextProcessor(length=1)
  with pytest.raises(TypeError, match="a text must be a str, not NoneType"):
    TextProcessor()([None])


def test_a_huge_file_is_refused_before_it_is_read(tmp_path):
  with (tmp_path / "a.model").open("wb") as f:
    f.truncate(3 * 2**40)  # a hole
  with pytest.raises(
    ValueError,
    match=r"config\.text\.tokenizer=.*a\.model has 3298534883328 bytes, more than the 67108864",
  ):
    TextProcessor(tmp_path / "a.model")


def test_truncated_model_is_damaged(tmp_path):
  TextProcessor().save(tmp_path / "whole.model")
  whole = (tmp_path / "whole.model").read_bytes()
  (tmp_path / "half.model").write_bytes(whole[: len(whole) // 2])
  with pytest.raises(ValueError, match="damaged"):
    TextProcessor(tmp_path / "half.model")


def test_a_word_that_always_stands_before_another_is_kept_whole(tmp_path):
  """As the colours of captions from a template; sentencepiece by itself fills 48 pieces with these
  texts, none of them a colour.
  """
  colours = ["red", "green", "blue", "yellow", "purple", "orange"]
  captions = [
    f"a {colour} {shape}"
    for colour in colours
    for shape in ("ring", "star", "circle", "square", "triangle")
  ]
  train_tokenizer(captions * 3, tmp_path / "a.model", 53)
  tokens = TextProcessor(tmp_path / "a.model", length=12)(colours)
  assert ((tokens != 1).sum(axis=1) == 1).all()  # one, then the end token


def test_the_shortest_text_and_a_model_without_a_padding_token(tmp_path):
  assert TextProcessor(length=2)("red ring").tolist() == [[TextProcessor(length=2)("red")[0, 0], 1]]
  path = train(
    CAPTIONS, tmp_path / "unpadded.model", vocab_size=60, pad_id=-1, eos_id=1, unk_id=0, bos_id=-1
  )
  assert TextProcessor(path, length=4)("red").shape == (1, 4)
  with pytest.raises(
    ValueError, match='config.text.pad="pad": .*unpadded.model.* has no padding token; use "eos"'
  ):
    TextProcessor(path, length=4, pad="pad")
