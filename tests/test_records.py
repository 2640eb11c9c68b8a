"""Sources of other libraries' files: ArrayRecord, TensorFlow Datasets, Hugging Face's datasets."""

import io
import json
import pickle

from array_record.python import array_record_module
import numpy as np
from PIL import Image
import pyarrow as pa
import pytest

from siglax.data.sources import open_source
from siglax.data.sources import parse_spec

NAMES = ("cat", "dog", "cow")


def picture(i) -> bytes:
  out = io.BytesIO()
  Image.fromarray(np.full((4, 5, 3), i, np.uint8)).save(out, "PNG")
  return out.getvalue()


PICTURES = [picture(i) for i in range(7)]


def refused(message, **spec):
  with pytest.raises(ValueError) as e:
    open_source(spec, "config.data.0")
  assert message in str(e.value) and "\n" not in str(e.value)
  assert str(e.value).startswith("config.data.0.")


# ArrayRecord


def record(**features) -> bytes:
  from tensorflow_datasets.proto import tf_example_pb2

  example = tf_example_pb2.Example()
  for name, values in features.items():
    feature = example.features.feature[name]
    kind = {bytes: "bytes_list", int: "int64_list", float: "float_list"}[type(values[0])]
    getattr(feature, kind).value.extend(values)
  return example.SerializeToString()


def write_records(path, records, options="group_size:1,uncompressed"):
  writer = array_record_module.ArrayRecordWriter(str(path), options)
  for item in records:
    writer.write(item)
  writer.close()
  return str(path)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
  folder = tmp_path_factory.mktemp("records")
  for name, rows in (("a", range(3)), ("b", range(3, 7))):
    write_records(
      folder / f"{name}.array_record",
      [
        record(
          image=[PICTURES[i]],
          caption=[f"ä {i}".encode(), b"two"],
          label=[i - 3],
          weight=[0.5],
          key=[b"k%d" % i],
        )
        for i in rows
      ],
    )
  return folder


def test_array_record_files_come_in_order_and_pickle(records):
  source = open_source({"source": "array_record", "path": f"{records}/*.array_record"})
  assert len(source) == 7 and source.shard_sizes.tolist() == [3, 4]
  for examples in (source, pickle.loads(pickle.dumps(source))):
    for i in (6, 0, 3):
      assert examples[i] == {
        "image": PICTURES[i],
        "captions": [f"ä {i}", "two"],
        "label": i - 3,
        "weight": 0.5,
        "key": f"k{i}",
      }
  with pytest.raises(IndexError):
    source[7]


def test_array_record_features_may_have_other_names_or_be_left_out(tmp_path):
  path = write_records(
    tmp_path / "x.array_record",
    [record(jpg=[PICTURES[0]], txt=[b"one"]), record(txt=[b"two"], label=[4]), b"\xff junk"],
    "group_size:1",
  )
  source = open_source({"source": "array_record", "path": path, "image": "jpg", "caption": "txt"})
  assert source[0] == {"image": PICTURES[0], "captions": ["one"]}
  assert source[1] == {"image": None, "captions": ["two"], "label": 4}
  with pytest.raises(ValueError, match="a record of 6 bytes is no tf.train.Example"):
    source[2]
  refused(
    "caption=None: no feature 'captions' or 'caption' in the first record",
    source="array_record",
    path=path,
    image="jpg",
  )
  refused("image='image': no such feature", source="array_record", path=path)


def test_array_record_files_that_are_damaged_are_one_line(records, tmp_path):
  whole = (records / "a.array_record").read_bytes()
  (tmp_path / "cut.array_record").write_bytes(whole[:-9])
  (tmp_path / "junk.array_record").write_bytes(b"junk" * 5000)
  for name in ("cut", "junk"):
    path = str(tmp_path / f"{name}.array_record")
    refused("is not ArrayRecord, or damaged", source="array_record", path=path)


# TensorFlow Datasets


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """A folder with a dataset of captions, "told", and one of classes alone, "named"."""
  import tensorflow_datasets as tfds

  label, image = tfds.features.ClassLabel(names=NAMES), tfds.features.Image(shape=(4, 5, 3))
  features = {"image": image, "label": label}

  class Told(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    FEATURES = features | {"caption": tfds.features.Text()}

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(self.FEATURES))

    def _split_generators(self, _):
      return {"train": self._generate_examples()}

    def _generate_examples(self):
      for i in range(7):
        row = {"image": io.BytesIO(PICTURES[i]), "caption": f"ä {i}", "label": i % 3}
        yield i, {k: v for k, v in row.items() if k in self.FEATURES}

  class Named(Told):
    FEATURES = features

  folder = tmp_path_factory.mktemp("tfds")
  for builder in (Told, Named):
    builder(data_dir=folder, file_format="array_record").download_and_prepare()
  return folder


def stored(prepared, name):
  return open_source({"source": "tfds", "name": name, "data_dir": str(prepared)})


def test_tfds_examples_keep_their_bytes_captions_and_classes(prepared):
  source = stored(prepared, "told")
  assert len(source) == 7 and source.classnames == NAMES
  rows = [source[i] for i in range(7)]
  for row in rows:
    i = PICTURES.index(row["image"])
    assert row == {"image": PICTURES[i], "captions": [f"ä {i}"], "label": i % 3}
  assert sorted(PICTURES.index(row["image"]) for row in rows) == list(range(7))
  again = pickle.loads(pickle.dumps(source))
  assert [again[i] for i in range(7)] == rows


def test_tfds_classes_alone_are_told_by_the_template(prepared):
  row = stored(prepared, "named")[0]
  assert row["captions"] == [f"a photo of a {NAMES[row['label']]}."]


def test_what_tfds_has_not_prepared_is_one_line(prepared):
  refused("name='nothing_of_this_name'", source="tfds", name="nothing_of_this_name")
  refused(
    "split='test' is not prepared", source="tfds", name="told", data_dir=str(prepared), split="test"
  )
  refused(
    "image='picture': no such feature",
    source="tfds",
    name="told",
    data_dir=str(prepared),
    image="picture",
  )


# Hugging Face's datasets


def save(folder, rows: list[range], indices=False, **more):
  """As Dataset.save_to_disk writes it; compared with what datasets wrote."""
  folder.mkdir(parents=True)
  files = []
  for k, part in enumerate(rows):
    files.append({"filename": f"data-{k:05}-of-{len(rows):05}.arrow"})
    table = pa.table(
      {
        "image": [{"bytes": PICTURES[i], "path": None} for i in part],
        "label": [i % 3 for i in part],
        **{name: [make(i) for i in part] for name, make in more.items()},
      }
    )
    with pa.ipc.new_stream(str(folder / files[-1]["filename"]), table.schema) as writer:
      writer.write_table(table, max_chunksize=2)
  features = {"label": {"names": list(NAMES), "_type": "ClassLabel"}, "image": {"_type": "Image"}}
  (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
  state = {"_data_files": files, "_indices_files": [{"filename": "indices.arrow"}] * indices}
  (folder / "state.json").write_text(json.dumps(state))
  return str(folder)


def test_saved_datasets_are_mapped_and_read_in_order(tmp_path):
  path = save(tmp_path / "d", [range(3), range(3, 7)], caption=lambda i: [f"ä {i}", None])
  source = open_source({"source": "hf", "path": path})
  assert len(source) == 7 and source.classnames == NAMES and source.shard_sizes.tolist() == [3, 4]
  for examples in (source, pickle.loads(pickle.dumps(source))):
    for i in (6, 2, 3, 0):
      assert examples[i] == {"image": PICTURES[i], "captions": [f"ä {i}"], "label": i % 3}
  with pytest.raises(IndexError):
    source[7]


def test_saved_classes_alone_are_told_by_the_template(tmp_path):
  path = save(tmp_path / "d", [range(7)])
  source = open_source({"source": "hf", "path": path, "template": "it is a {}"})
  assert source[4]["captions"] == ["it is a dog"]
  refused("caption=None: no column 'captions' or 'caption'", source="hf", path=path, template=None)


def test_a_saved_folder_of_splits_wants_one_of_them(tmp_path):
  for split, rows in (("train", range(5)), ("test", range(5, 7))):
    save(tmp_path / "d" / split, [rows])
  (tmp_path / "d" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
  path = str(tmp_path / "d")
  assert len(open_source({"source": "hf", "path": path, "split": "test"})) == 2
  refused(f"split=None: {path} has the splits train, test; name one", source="hf", path=path)
  refused("split='train': ", source="hf", path=f"{path}/test", split="train")


def test_what_is_no_saved_dataset_is_one_line(tmp_path):
  refused("has no state.json; source hf reads", source="hf", path=str(tmp_path))
  path = save(tmp_path / "shuffled", [range(7)], indices=True)
  refused("dataset.flatten_indices().save_to_disk(…)", source="hf", path=path)
  path = save(tmp_path / "cut", [range(7)])
  file = tmp_path / "cut" / "data-00000-of-00001.arrow"
  file.write_bytes(file.read_bytes()[:400])
  refused("is damaged or missing", source="hf", path=path)
  (tmp_path / "cut" / "state.json").write_text('{"_data_files": [{"filename": "../x"}]}')
  refused("its state.json is damaged", source="hf", path=path)


def test_a_folder_of_a_saved_dataset_is_told_by_what_it_holds(tmp_path):
  path = save(tmp_path / "d", [range(7)])
  assert parse_spec(path) == {"source": "hf", "path": path}
  refused("that holds 2 .json and 1 .arrow: use source hf", source="parquet", path=path)
