"""Datasets of TensorFlow Datasets that are prepared as ArrayRecord, read without TensorFlow."""

from __future__ import annotations

from typing import Any

from siglax.config import values
from siglax.config.parts import Field
from siglax.data import captions as captions_lib
from siglax.data import tables
from siglax.data.source import Source


class TFDS:
  """Examples of a split, in its order: {"image": bytes, "captions": [str, …], "label", "weight",
  "key"}.

  Its arguments are the fields of SOURCE. classnames: of the ClassLabel in `label`. Pictures stay
  encoded until they are read. Raises ValueError, beginning with the argument, for a dataset or a
  split that is not prepared there as ArrayRecord, and for a feature that it lacks.
  """

  def __init__(self, name, split, data_dir, template, image, caption, label, weights, key):
    self._arguments = (name, split, data_dir, template, image, caption, label, weights, key)
    import tensorflow_datasets as tfds  # late: it is slow, and only this source needs it

    try:
      builder: Any = tfds.builder(name, data_dir=data_dir)
      features = builder.info.features
    except Exception as e:  # it has errors of its own, some of them of TensorFlow
      raise ValueError(f"name={name!r}: {values.one_line(e)}") from None
    given = {"image": image, "caption": caption, "label": label, "weights": weights, "key": key}
    needed = template is None or not any(map(_classnames, features.values()))
    self._names = tables.chosen(features, given, "feature", needed)
    label = self._names.get("label")
    self.classnames = _classnames(features[label]) if label else None
    self._template = template
    skip = {self._names["image"]: tfds.decode.SkipDecoding()}
    try:
      self._records = builder.as_data_source(split=split, decoders=skip)
    except Exception as e:
      raise ValueError(
        f"name={name!r}, split={split!r} is not prepared as ArrayRecord in "
        f"{builder.data_dir}: {values.one_line(e)}; prepare it by tfds.builder({name!r}, "
        'file_format="array_record").download_and_prepare()'
      ) from None

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, i: int) -> dict:
    record = self._records[i]
    row = {field: record.get(name) for field, name in self._names.items()}
    captions = row.get("caption", ())
    captions = [captions] if isinstance(captions, (bytes, str)) else list(captions)
    label = row.get("label")
    texts = [text.decode() if isinstance(text, bytes) else str(text) for text in captions]
    texts = captions_lib.of_class(
      texts, None if label is None else int(label), self.classnames, self._template
    )
    example = {"image": row["image"], "captions": texts}
    for field, part, kind in (
      ("label", "label", int),
      ("weights", "weight", float),
      ("key", "key", _text),
    ):
      if row.get(field) is not None:
        example[part] = kind(row[field])
    return example

  def __repr__(self):
    return f"TFDS({self._arguments[0]!r}, {self._arguments[1]!r})"

  def __reduce__(self):  # a worker process opens the files itself
    return TFDS, self._arguments


def _text(value) -> str:
  return value.decode() if isinstance(value, bytes) else str(value)


def _classnames(feature) -> tuple[str, ...] | None:
  names = getattr(feature, "names", None)
  return tuple(names) if names else None


SOURCE = Source(
  "tfds",
  "examples of a dataset of TensorFlow Datasets, prepared as ArrayRecord",
  TFDS,
  fields={
    "name": Field(None, "name of the dataset, with its version or not: cifar10:3.0.2", kind=str),
    "split": Field("train", "the split, or a part of it: train[:90%]"),
    "data_dir": Field(
      None,
      "folder of the prepared datasets; None takes ~/tensorflow_datasets",
      kind=str,
      optional=True,
    ),
    "template": captions_lib.TEMPLATE,
    **tables.named("feature"),
  },
)
