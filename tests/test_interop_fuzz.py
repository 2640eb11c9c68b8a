"""Files of other libraries with bytes changed, cut off or of other types: one line that names the
file, or what it says.

What opens is compared with the undamaged folder: an .npz has checksums, so nothing but the same may
come out; in formats without them only what still is a valid file that says something else.
"""

import functools
import json
import pathlib
import shutil

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest
import safetensors.numpy

import siglax
from siglax import config as config_lib
from siglax import interop
from siglax.models import resnet
from siglax.runs import folder as folder_lib

GOLDEN = pathlib.Path(__file__).parent / "golden"
SHAPES = pathlib.Path(siglax.__file__).parent / "data" / "shapes.model"
OTHERS = [
  None,
  [],
  {},
  "",
  "x",
  True,
  False,
  0,
  -1,
  3,
  0.5,
  1e300,
  float("nan"),
  float("inf"),
  10**30,
  [1],
  [[]],
  {"a": 1},
  "\0",
]
fuzz = functools.partial(
  hypothesis.settings,
  derandomize=True,
  deadline=None,
  database=None,
  suppress_health_check=list(hypothesis.HealthCheck),
)


@pytest.fixture(autouse=True)
def tiny_resnet(monkeypatch):
  monkeypatch.setitem(resnet.SIZES, "RN50", (64, (2, 1, 1, 1), 1024))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """{name: path to load} of a folder or file of each format, with every file that one may have."""
  there = tmp_path_factory.mktemp("fuzz")
  for name in ("hf_siglip", "hf_clip", "open_clip_resnet", "open_clip_vit"):
    shutil.copytree(GOLDEN / name, there / name, ignore=shutil.ignore_patterns("io.npz"))
    if name not in ("hf_clip", "open_clip_vit"):
      shutil.copy(SHAPES, there / name / "spiece.model")
    (there / name / "tokenizer_config.json").write_text(
      '{"tokenizer_class": "SiglipTokenizer", "do_lower_case": false}'
    )
  (there / "hf_siglip" / "preprocessor_config.json").write_text(
    json.dumps(
      {
        "resample": 2,
        "size": {"height": 16, "width": 16},
        "do_resize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.25] * 3,
      }
    )
  )
  tensors = safetensors.numpy.load_file(there / "hf_siglip" / "model.safetensors")
  np.savez(
    there / "x.npz",
    **{  # towers of one array each, which is enough to open a file and to read it
      "params/txt/Encoder_0/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel": np.ones(
        (12, 2, 6), np.float32
      ),
      "params/txt/Encoder_0/encoderblock_0/MlpBlock_0/Dense_0/kernel": np.ones(
        (12, 24), np.float32
      ),
      "params/txt/head/kernel": np.ones((12, 16), np.float32),
      "params/txt/Embed_0/embedding": tensors["text_model.embeddings.token_embedding.weight"],
      "params/txt/pos_embedding": tensors["text_model.embeddings.position_embedding.weight"][None],
    },
  )
  folders = ("hf_siglip", "hf_clip", "open_clip_resnet", "open_clip_vit", "x.npz")
  return {name: there / name for name in folders}


@pytest.fixture(scope="module")
def whole(folders):
  """{name: what it gives undamaged}."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(resnet.SIZES, "RN50", (64, (2, 1, 1, 1), 1024))
    return {name: opened(path) for name, path in folders.items()}


def opened(path):
  """What siglax.load makes of a path before it builds a model: config, arrays and text
  preprocessing.
  """
  found = interop.find(path)
  arrays = {name: found.arrays.read(name) for name in sorted(found.arrays.shapes)}
  with found.naming():
    text = (
      found.tokenizer and folder_lib.text_processor(found.config)(["A small red disc."]).tolist()
    )
  return (
    config_lib.to_json(found.config),
    {k: (x.shape, x.tobytes()) for k, x in arrays.items()},
    text,
  )


def damaged(file, data, path, read=opened):
  """What a path gives with other bytes in one of its files; None where it is refused, in one line
  that names the place.
  """
  whole = file.read_bytes()
  try:
    file.write_bytes(data)
    return read(path)
  except ValueError as e:
    assert str(path) in str(e) and "\n" not in str(e) and len(str(e)) < 1000
    return None
  finally:
    file.write_bytes(whole)


@st.composite
def damage(draw, size):
  """A function of bytes: cut off, some flipped, or some replaced."""
  at = draw(st.integers(0, size - 1))
  flips = draw(
    st.lists(st.tuples(st.integers(0, size - 1), st.integers(1, 255)), min_size=1, max_size=3)
  )
  noise = draw(st.binary(min_size=1, max_size=8))
  kind = draw(st.sampled_from(("cut", "flip", "noise")))

  def apply(data):
    if kind == "cut":
      return data[:at]
    data = bytearray(data)
    if kind == "noise":
      data[at : at + len(noise)] = noise
    else:
      for i, mask in flips:
        data[i] ^= mask
    return bytes(data)

  return kind, apply


FILES = [
  ("hf_siglip", "config.json"),
  ("hf_siglip", "preprocessor_config.json"),
  ("hf_siglip", "tokenizer_config.json"),
  ("hf_clip", "config.json"),
  ("open_clip_resnet", "open_clip_config.json"),
  ("open_clip_vit", "open_clip_config.json"),
]


@pytest.mark.parametrize("name, file", FILES)
@fuzz(max_examples=60)
@hypothesis.given(data=st.data())
def test_damaged_json(folders, whole, name, file, data):
  file = folders[name] / file
  _, apply = data.draw(damage(file.stat().st_size))
  text = apply(file.read_bytes())
  if damaged(file, text, folders[name]) not in (None, whole[name]):
    assert json.loads(text) != json.loads(file.read_bytes())


def places(value, path=()):
  """The path of every value in a JSON file."""
  yield path
  if isinstance(value, (dict, list)):
    for key in value if isinstance(value, dict) else range(len(value)):
      yield from places(value[key], (*path, key))


@pytest.mark.parametrize("name, file", FILES)
@fuzz(max_examples=120)
@hypothesis.given(data=st.data())
def test_values_of_other_types(folders, name, file, data):
  file = folders[name] / file
  value = json.loads(file.read_text())
  *path, last = data.draw(st.sampled_from([p for p in places(value) if p]))
  node = functools.reduce(lambda node, key: node[key], path, value)
  node[last] = data.draw(st.sampled_from(OTHERS))
  damaged(file, json.dumps(value).encode(), folders[name])


@fuzz(max_examples=12)
@hypothesis.given(data=st.data())
def test_other_sizes_in_a_whole_load(folders, data):
  file = folders["hf_clip"] / "config.json"
  value = json.loads(file.read_text())
  section = value[data.draw(st.sampled_from(("text_config", "vision_config")))]
  section[data.draw(st.sampled_from([k for k, v in section.items() if type(v) is int]))] = (
    data.draw(st.sampled_from([1, 2, 3, 100, 10**4]))
  )
  damaged(file, json.dumps(value).encode(), folders["hf_clip"], siglax.load)


@fuzz(max_examples=200)
@hypothesis.given(data=st.data())
def test_a_damaged_npz_never_gives_another_tower(folders, whole, data):
  file = folders["x.npz"]
  _, apply = data.draw(damage(file.stat().st_size))
  assert damaged(file, apply(file.read_bytes()), file) in (None, whole["x.npz"])


@fuzz(max_examples=100)
@hypothesis.given(data=st.data())
def test_damaged_safetensors(folders, whole, data):
  """Cut off they are always refused; of changed bytes only those of values pass, for the format has
  no checksum.
  """
  file = folders["hf_siglip"] / "model.safetensors"
  header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
  kind, apply = data.draw(damage(file.stat().st_size if data.draw(st.booleans()) else header))
  changed = apply(file.read_bytes())
  found, same = damaged(file, changed, folders["hf_siglip"]), whole["hf_siglip"]
  if found is not None and kind == "cut":
    assert found == same
  if found is not None and changed[:header] == file.read_bytes()[:header]:
    assert (found[0], found[1].keys()) == (same[0], same[1].keys())


@fuzz(max_examples=60)
@hypothesis.given(data=st.data())
def test_damaged_tokenizer(folders, whole, data):
  file = folders["hf_siglip"] / "spiece.model"
  _, apply = data.draw(damage(file.stat().st_size))
  found = damaged(file, apply(file.read_bytes()), folders["hf_siglip"])
  assert found is None or found[:2] == whole["hf_siglip"][:2]
