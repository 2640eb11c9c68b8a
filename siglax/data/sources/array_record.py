"""ArrayRecord files of tf.train.Example records, as T5X and MaxText write them."""

from __future__ import annotations

import functools

import numpy as np

from siglax.config import values
from siglax.config.parts import Field
from siglax.data import captions as captions_lib
from siglax.data import names as names_lib
from siglax.data import paths
from siglax.data import remote
from siglax.data import storage
from siglax.data import tables
from siglax.data.numbering import Numbering
from siglax.data.source import Source
from siglax.devices import errors


class ArrayRecord:
  """Records of ArrayRecord files, in the order of the files: {"image": bytes, "captions": [str, …],
  "label", "weight", "key"}.

  A record is a tf.train.Example, whose features the fields of SOURCE name; one that is not there
  is left out. Each record is read when it is asked for; files of a bucket are copied first.
  shard_sizes: int64 [files].
  Raises ValueError, beginning with the argument, for a missing, empty or damaged file, and for a
  first record that is no Example or lacks a feature. classnames, templates: of the files
  classnames.txt and zeroshot_classification_templates.txt beside the files or one folder up, else
  None.
  """

  def __init__(self, path, template, caption_weights, **names):
    from array_record.python import array_record_data_source  # late: 0.1 s, and not for others

    self._arguments = {
      "path": path,
      "template": template,
      "caption_weights": caption_weights,
      **names,
    }
    self._files = paths.find(path, "array_record", in_folder=_in_folder)
    self.classnames = captions_lib.beside(self._files, captions_lib.CLASSNAMES)
    self.templates = captions_lib.templates(self._files)
    for file in self._files:  # a ValueError for one that is missing
      storage.size(file)
    local = [remote.copied(file) for file in self._files]
    try:
      opened = [array_record_data_source.ArrayRecordDataSource(file) for file in local]
      self.shard_sizes = np.array([len(records) for records in opened], np.int64)
    except (RuntimeError, ValueError, OSError) as e:
      raise ValueError(
        f"path={path!r} is not ArrayRecord, or damaged: {values.one_line(e)}"
      ) from None
    self._records, self._numbering = opened, Numbering(self.shard_sizes)
    if not len(self):
      raise ValueError(f"path={path!r} has no records")
    self._caption_templates = captions_lib.read_templates(template)
    self._weights = None if caption_weights is None else names_lib.numbers(caption_weights)
    first = _features(self._record(0))
    needed = template is None or self.classnames is None
    found = tables.chosen(names, first, "feature", "the first record", needed)
    self._captions = found.pop("caption", ())
    # A feature that the first record lacks may be in another one.
    rest = {"label": "label", "weights": "weight", "key": "key"}
    self._names = rest | {field: name for field, (name,) in found.items()}

  def __len__(self) -> int:
    return len(self._numbering)

  def __getitem__(self, i: int) -> dict:
    features = _features(self._record(i))
    columns = [
      [captions_lib.text(text, "a caption") for text in features.get(name) or ()]
      for name in self._captions
    ]
    found = {field: features.get(name) for field, name in self._names.items()}
    first = {field: value[0] if value else None for field, value in found.items()}
    captions = captions_lib.of_example(
      columns, self._weights, first["label"], self.classnames, self._caption_templates
    )
    return {"image": first["image"]} | captions | tables.rest(first)

  def __repr__(self):
    return f"ArrayRecord({self._arguments['path']!r})"

  def __reduce__(self):  # a worker process opens the files itself
    return functools.partial(ArrayRecord, **self._arguments), ()

  def _record(self, i: int) -> bytes:
    file, record = self._numbering.find(i)
    try:
      return self._records[file][record]
    except (RuntimeError, ValueError, OSError) as e:
      if errors.is_passing(e):
        raise storage.Unreachable(f"{self._files[file]!r}: {values.one_line(e)}") from None
      raise ValueError(f"{self._files[file]!r}, record {record}: {values.one_line(e)}") from None


def _in_folder(folder: str) -> list[str]:
  return storage.glob_in(folder, "*.array_record") or paths.refuse_folder(folder, "array_record")


def _features(record: bytes) -> dict[str, list]:
  """{name: values} of a tf.train.Example; ValueError for other bytes."""
  # The message without TensorFlow, which tensorflow-datasets has.
  from tensorflow_datasets.proto import tf_example_pb2

  try:
    example = tf_example_pb2.Example.FromString(record)
  except Exception as e:  # protobuf has one of its own for each of its implementations
    raise ValueError(
      f"a record of {len(record)} bytes is no tf.train.Example: {values.one_line(e)}"
    ) from None
  found = {}
  for name, feature in example.features.feature.items():
    kind = feature.WhichOneof("kind")
    found[name] = list(getattr(feature, kind).value) if kind else []
  return found


SOURCE = Source(
  "array_record",
  "records of ArrayRecord files, each a tf.train.Example",
  ArrayRecord,
  endings=("array_record",),
  check=names_lib.check,
  fields={
    "path": Field(
      None,
      "a file, a folder of them, a glob, braces, a tuple of them, or the same with commas",
      kind=str | tuple,
      check=paths.path_problem,
    ),
    **tables.named("feature"),
    "template": captions_lib.TEMPLATE,
  },
)
