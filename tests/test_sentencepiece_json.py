"""A sentencepiece model that goes out as a tokenizer.json: the same tokens, by the tokenizers
library, by transformers, and read back.
"""

import io
import json
import types

import numpy as np
import pytest
import sentencepiece
import test_tokenizer_json
import tokenizers

from siglax import config as config_lib
from siglax import models as models_lib
from siglax.data.text import TextProcessor
from siglax.data.text import train_tokenizer
from siglax.interop import fields
from siglax.interop import sentencepiece_json
from siglax.interop import texts as texts_lib

# But for one that spells out <eos> and <pad>, which are no text to these models, and 5,000 times
# the same letter, which pieces of it cut in many ways that score the same.
OTHERS = [text for text in test_tokenizer_json.ODD if "<pad>" in text or text == "x" * 5000]
TEXTS = [text for text in test_tokenizer_json.TEXTS if text not in OTHERS]
LINES = [" ".join(text.split())[:1000] for text in TEXTS[:60]]
LEARNT = [*test_tokenizer_json.CAPTIONS, *LINES * 2]
LENGTH = 48


def train(path, **options):
  out = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(LEARNT),
    model_writer=out,
    minloglevel=2,
    num_threads=1,
    **options,
  )
  path.write_bytes(out.getvalue())
  return path


def train_gemma(path):
  """As Gemma's: BPE of texts as they are, bytes where letters are unknown, pieces of its own."""
  return train(
    path,
    model_type="bpe",
    vocab_size=1300,
    byte_fallback=True,
    character_coverage=0.99,
    normalization_rule_name="identity",
    add_dummy_prefix=False,
    remove_extra_whitespaces=False,
    split_digits=True,
    **{"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "eos_piece": "<eos>"},
    user_defined_symbols=["<table>", "<start_of_turn>", "  "],
  )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  folder = tmp_path_factory.mktemp("models")
  train_tokenizer(LEARNT, folder / "own.model", 1100, strip_punctuation=False)
  train_gemma(folder / "gemma.model")
  train(folder / "bpe.model", model_type="bpe", vocab_size=800, character_coverage=0.98, pad_id=3)
  train(folder / "char.model", model_type="char", vocab_size=400, character_coverage=0.98)
  return folder


def tower(text, **model):
  """As far as its tokenizer goes."""
  config = config_lib.default()
  config_lib.fill_text(config, text)
  config.text.pad = text.pad
  config.model.text.update(model)
  params = dict.fromkeys(models_lib.TOWERS)
  return types.SimpleNamespace(text=text, config=config, params=params)


CASES = [
  ("own", {"strip_punctuation": False}),
  ("own", {"strip_punctuation": False, "lowercase": False}),
  ("gemma", {"strip_punctuation": False}),
  ("gemma", {"strip_punctuation": False, "lowercase": False, "pad": "pad"}),
  ("bpe", {"pad": "pad"}),
]


def test_there_are_1000_texts():
  assert len(TEXTS) == 998 and len(OTHERS) == 2


@pytest.mark.parametrize(("name", "options"), CASES)
def test_tokens_are_the_same_everywhere(name, options, files, tmp_path):
  text = TextProcessor(files / f"{name}.model", length=LENGTH, **options)
  texts = [*TEXTS, "a <table> of  <start_of_turn>", "ΑΣ ΑΣΑ Σ ΑΣ'Σ ΑΣ.", "cafe\u0301 e\u0302\u0301"]
  want = text(texts)
  texts_lib.write(tower(text), tmp_path)
  assert {file.name for file in tmp_path.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
  theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
  theirs.enable_truncation(LENGTH)
  theirs.enable_padding(length=LENGTH, pad_id=text.pad_id)
  np.testing.assert_array_equal([e.ids for e in theirs.encode_batch(texts)], want)
  config = config_lib.default()
  texts_lib.read(config, tmp_path, is_clip=False)
  given = {field: config.text[field] for field in ("lowercase", "strip_punctuation", "pad")}
  back = TextProcessor(tmp_path, length=LENGTH, **given)
  np.testing.assert_array_equal(back(texts), want)
  assert (back.lowercase, back.vocab_size) == (text.lowercase, text.vocab_size)
  said = "a red ring, left of 2 discs"
  assert back.decode(back(said)[0]) == text.decode(text(said)[0])


@pytest.mark.parametrize(("name", "options"), CASES)
def test_transformers_makes_the_same_tokens(name, options, files, tmp_path):
  transformers = pytest.importorskip("transformers")
  text = TextProcessor(files / f"{name}.model", length=LENGTH, **options)
  texts_lib.write(tower(text), tmp_path)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  found = theirs(TEXTS, padding="max_length", truncation=True)
  np.testing.assert_array_equal(found["input_ids"], text(TEXTS))
  assert list(found) == ["input_ids"]


def test_siglips_own_kind_stays_a_sentencepiece_model(files, tmp_path):
  text = TextProcessor(files / "own.model", length=LENGTH)
  texts_lib.write(tower(text), tmp_path)
  assert (tmp_path / "spiece.model").read_bytes() == (files / "own.model").read_bytes()
  written = json.loads((tmp_path / "tokenizer_config.json").read_text())
  assert written["tokenizer_class"] == "SiglipTokenizer"


def test_a_piece_that_is_no_text_is_a_token_where_it_is_spelled_out(files):
  text = TextProcessor(files / "own.model", length=LENGTH, strip_punctuation=False)
  theirs = tokenizers.Tokenizer.from_str(sentencepiece_json.converted(text).decode())
  assert 0 in theirs.encode("a <pad>").ids and 0 not in text("a <pad>")


def test_what_is_not_converted_is_refused_or_left_out(files):
  text = TextProcessor(files / "char.model", length=LENGTH, strip_punctuation=False)
  assert not sentencepiece_json.converts(text)
  assert texts_lib.carries(tower(text))["text.strip_punctuation"] == (True,)
  clip = tower(text, causal=True, pool="eos")
  assert texts_lib.carries(clip, fields.LEFT_OUT)["text.tokenizer"] == fields.LEFT_OUT
  assert not texts_lib.is_written(clip)
